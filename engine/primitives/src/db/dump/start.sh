# Begins a job apart from the connection. Set before: j (the job's folder), id (what it is for). Standard input: the job's script.
umask 077
for t in flock setsid awk; do
  command -v "$t" >/dev/null 2>&1 || { echo "tool $t"; exit 0; }
done
mkdir -p "$j" || exit 3
exec 9>>"$j/lock" || exit 3
if ! flock -n 9; then
  echo "busy $(cat "$j/id" 2>/dev/null)"
  exit 0
fi
rm -rf "$j"/w.* "$j"/e.*
# Room for the answer, also when the disk is full by then.
printf '%-40s\n' '' >"$j/slot" && printf '%s\n' "$id" >"$j/id" && cat >"$j/script" || exit 3
setsid sh "$j/script" </dev/null >"$j/out" 2>"$j/err" &
echo "$!" >"$j/pid"
echo started
