# Loads a database from a stream. Set before: j (the job's folder), own (the mark of the stream's own lines), and functions: `give`
# (prints the stream), `load` (becomes the client that reads statements), `before`, `after` (print the first and the last statements;
# after them the client prints "done"). What `after` says is said only when the stream was whole and as it was made.
cd "$j" || exit 1
for p in sha256sum mkfifo tee grep sed; do
  command -v "$p" >/dev/null || fail "missing tool $p"
done
rm -f in own sum body lines sha rc.give pid.sum e.* o.load || exit 1
mkfifo in own sum body || exit 1
exec 8<>in
(
  trap - EXIT TERM INT HUP
  load
) <in >o.load 2>e.load 8>&- &
l=$!
exec 7>in 8>&-
grep -a "^$own " <own >lines 7>&- &
owns=$!
sha256sum <body >sha 7>&- &
sums=$!
echo "$sums" >pid.sum
grep -av "^$own " <sum >body 7>&- &
before >b.sql
cat b.sql >&7
{
  (
    trap - EXIT TERM INT HUP
    give
  ) 2>e.give
  echo "$?" >rc.give
} 7>&- | tee own sum >&7
p=$?
s=$(cat rc.give 2>/dev/null)
gone() { [ ! -r "/proc/$l/stat" ] || grep -q ') Z ' "/proc/$l/stat"; }
if [ "$p" != 0 ] || [ "$s" != 0 ]; then
  sleep .2 2>/dev/null || sleep 1
  if gone; then
    cat e.load >&2
    wait "$l"
    c=$?
    [ "$c" -le 128 ] || say "the client was killed from outside ($((c - 128)))"
    fail "the database takes not all of the snapshot"
  fi
  sed 's/^/from the repository: /' e.give >&2
  fail "the snapshot cannot be read"
fi
wait "$owns" && wait "$sums" || fail "what counts the stream was killed from outside"
is=$(cut -c 1-64 sha) want=$(sed -n "s/^$own end \([0-9a-f]*\) .*\$/\1/p" lines)
[ -n "$want" ] || fail "the snapshot is not whole: its last line is missing, so the dump did not end"
[ "$is" = "$want" ] || fail "the snapshot is not as it was made: its SHA-256 is $is, and was $want"
after >a.sql
cat a.sql >&7
exec 7>&-
wait "$l"
c=$?
if [ "$c" != 0 ] || ! grep -qx 'done' o.load; then
  cat e.load >&2
  [ "$c" -le 128 ] || say "the client was killed from outside ($((c - 128)))"
  fail "the database takes not all of the snapshot"
fi
