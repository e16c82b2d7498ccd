# The dump of a database into the folder $d. Set before: d, id, jobs, level, and a function `head` (fields of the manifest). Where the
# server is and who logs in comes by libpq's own variables.
command -v pg_dump >/dev/null && command -v pg_restore >/dev/null || fail "missing tool pg_dump (postgresql-client)"
for t in gzip sha256sum; do command -v "$t" >/dev/null || fail "missing tool $t"; done
# zstd unpacks what gzip has packed more than twice as fast, where it was built for that.
unpack='gzip -dc'
if printf 'x' | gzip -c 2>/dev/null | zstd -q -dc >/dev/null 2>&1; then unpack='zstd -q -dc'; fi
cd "$d" || exit 1
rm -rf manifest manifest.new data "$j"/w.* || exit 1
pg_dump --no-password -T '*._runbook_actions' -N _runbook -Fd -j "$jobs" -Z "$level" -f "$d/data" || broken $? pg_dump
pg_restore -l data >"$j/list" || broken $? pg_restore
# It has brought its files to the disk. Every one once more: that it reads, how many rows it has, and what its checksum is.
file() {
  f=$1 n=$2
  i=${f#data/}
  i=${i%.dat.gz}
  of=$(sed -n "s/^$i; [0-9]* [0-9]* TABLE DATA //p" "$j/list")
  kind=other rows=- bytes=0
  if [ -n "$of" ]; then
    kind=rows
    $unpack "$f" 2>"$j/e.$n" | wc -lc >"$j/c.$n"
    read -r lines bytes <"$j/c.$n"
    # A mark of the end and two empty lines are no rows.
    rows=$((lines - 3))
    [ "$rows" -ge 0 ] || {
      echo "runbook: $f is not whole" >>"$j/e.$n"
      return 1
    }
  fi
  sum=$(sha256sum "$f" 2>>"$j/e.$n") || return 1
  printf 'file\t%s\t%s\t%s\t%s\t%s\t%s\n' "$f" "$kind" "$rows" "$bytes" "${sum%% *}" "$of" >>"$j/w.$n"
}
ls -S data | sed 's/^/data\//' >"$j/all"
each "$j/all" file
[ "$(cat "$j"/w.* | wc -l)" = "$(wc -l <"$j/all")" ] || fail "not every file of the dump could be read"
{
  printf 'runbook-dump\t1\n'
  head
  printf 'tables\t%s\n' "$(grep -c '^[0-9]*; [0-9]* [0-9]* TABLE DATA ' "$j/list")"
  cat "$j"/w.*
  printf 'end\tyes\n'
} >manifest.new && settle manifest.new && mv -f manifest.new manifest && settle . || fail "the manifest cannot be written"
