# Tells how a job stands, at its end or after $wait seconds. Set before: j, wait, and a function `counted` that prints "rows N" and
# "bytes N".
# The lock is let go when the last process of the job has ended. Not every flock can wait for it.
exec 9>>"$j/lock"
flock -n 9 || flock -w "$wait" 9 2>/dev/null || flock -n 9 || {
  counted 2>/dev/null
  echo running
  exit 0
}
counted 2>/dev/null
read -r a b _ <"$j/slot"
if [ "$a" = status ]; then echo "status $b"; else echo gone; fi
echo "free $(df -P "$j" | awk 'NR == 2 { print $4 }')"
echo said
tail -c 4000 "$j/err"
