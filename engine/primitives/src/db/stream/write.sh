# Pipes a database into a snapshot; nothing of it is written to a disk of this host. Set before: own (the mark of our lines), first (the
# text of the first), and functions: `dump` (writes the database), `count` (reads it, prints "bytes N", "rows N TABLE", "position TEXT",
# "complete"), and those of a tool that keeps snapshots (backup/tool/mod.rs): `keep`, `hear`, `kept`, `found`, `drop`, with the signal `quit`.
#
# What keeps the snapshot sees the end of its input only after all of the database is known to have gone in: until then this script and a
# guard hold the pipe open, and whichever of both still lives ends the keeper first.
umask 077
LC_ALL=C
export LC_ALL
t=$(mktemp -d) || exit 1
k="" g="" made=""
over() {
  [ ! -r "/proc/$k/stat" ] || grep -q ') Z ' "/proc/$k/stat"
}
halt() {
  kill -"$quit" "$k" 2>/dev/null
  n=0
  until over || [ "$n" -ge 30 ]; do
    n=$((n + 1))
    sleep .1 2>/dev/null || sleep 1
  done
  kill -KILL "$k" 2>/dev/null
  wait "$k" 2>/dev/null
}
ended() {
  s=$?
  trap - EXIT
  trap '' TERM INT HUP
  if [ -n "$k" ] && [ -z "$made" ]; then
    halt
    for i in $(found); do drop "$i"; done
  fi
  [ -z "$g" ] || kill "$g" 2>/dev/null
  rm -rf "$t"
  exit "$s"
}
trap ended EXIT
trap 'exit 143' TERM INT HUP
say() { printf 'runbook: %s\n' "$*" >&2; }
# What the keeper said of why it ended.
complaint() {
  wait "$a"
  cat "$t/keeper" "$t/log" 2>/dev/null >&2
}
size() { wc -c <"$1" | tr -d ' '; }
for p in awk sha256sum mkfifo tee grep; do
  command -v "$p" >/dev/null || { say "missing tool $p"; exit 70; }
done
mkfifo "$t/in" "$t/sum" "$t/count" "$t/said" || exit 1
hear <"$t/said" &
a=$!
exec 8<>"$t/in"
(
  trap - EXIT TERM INT HUP
  keep
) <"$t/in" >"$t/said" 2>"$t/keeper" 8>&- &
k=$!
exec 7>"$t/in" 8>&-
(
  trap - EXIT TERM INT HUP
  while kill -0 $$; do sleep 1; done
  kill -KILL "$k"
  rm -rf "$t"
) </dev/null >/dev/null 2>&1 &
g=$!
{ grep -av "^$own " <"$t/sum" | sha256sum >"$t/sha"; } 7>&- &
sums=$!
count <"$t/count" >"$t/counted" 7>&- &
counts=$!
printf '%s %s\n' "$own" "$first" >"$t/head"
cat "$t/head" >&7
# The end of the dump is known by its status alone.
{
  (
    trap - EXIT TERM INT HUP
    dump
  ) 2>"$t/dumper"
  echo "$?" >"$t/dumped"
} 7>&- | tee "$t/sum" "$t/count" >&7
p=$?
d=$(cat "$t/dumped" 2>/dev/null)
if [ "$p" != 0 ] || [ "$d" != 0 ]; then
  if over; then
    complaint
    exit 71
  fi
  cat "$t/dumper" >&2
  if [ -z "$d" ] || [ "$d" -gt 128 ] && [ "$d" != 141 ]; then say "the dump was killed from outside"; fi
  [ -z "$d" ] || [ "$d" = 0 ] || [ "$d" = 141 ] && say "the pipe of the dump was broken from outside"
  exit 70
fi
wait "$sums" && wait "$counts" || {
  say "what counts the dump was killed from outside"
  exit 70
}
grep -qx complete "$t/counted" || {
  say "the dump has ended without its last line"
  exit 70
}
sum=$(cut -c 1-64 "$t/sha") bytes=$(sed -n 's/^bytes //p' "$t/counted")
{
  sed -n -e "s/^rows /$own rows /p" -e "s/^position /$own position /p" "$t/counted"
  printf '%s end %s %s\n' "$own" "$sum" "$bytes"
} >"$t/tail"
cat "$t/tail" >&7 || {
  complaint
  exit 71
}
# Now it is whole.
kill "$g" 2>/dev/null
wait "$g" 2>/dev/null
g=
exec 7>&-
wait "$k"
s=$?
wait "$a"
if [ "$s" != 0 ]; then
  complaint
  exit 71
fi
id="" told="" kept_bytes=""
kept / || {
  complaint
  say "the snapshot's name was not told"
  exit 71
}
if [ "$kept_bytes" != $(($(size "$t/head") + bytes + $(size "$t/tail"))) ]; then
  say "the snapshot has $kept_bytes bytes, and $(size "$t/head") + $bytes + $(size "$t/tail") were written"
  exit 70
fi
made=$id
cat "$t/counted"
echo "sum $sum"
[ -z "$told" ] || printf 'told %s\n' "$told"
echo "made $id"
