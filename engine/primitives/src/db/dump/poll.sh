# Tells how a job stands. Set before: j, and a function `counted` that prints "rows N" and "bytes N".
counted 2>/dev/null
# The lock is let go when the last process of the job has ended.
exec 9>>"$j/lock"
flock -n 9 || {
  echo running
  exit 0
}
read -r a b _ <"$j/slot"
if [ "$a" = status ]; then echo "status $b"; else echo gone; fi
echo "free $(df -P "$j" | awk 'NR == 2 { print $4 }')"
echo said
tail -c 4000 "$j/err"
