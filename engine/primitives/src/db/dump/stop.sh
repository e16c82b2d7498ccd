# Ends a job with all of its processes. Set before: j.
[ -d "$j" ] || exit 0
exec 9>>"$j/lock"
n=0
while ! flock -n 9; do
  p=$(cat "$j/pid" 2>/dev/null)
  s=TERM
  [ "$n" -lt 30 ] || s=KILL
  [ -z "$p" ] || kill -s "$s" -- "-$p" 2>/dev/null
  n=$((n + 1))
  [ "$n" -lt 80 ] || exit 4
  sleep .1 2>/dev/null || sleep 1
done
