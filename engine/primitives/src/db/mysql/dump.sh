# The dump of a schema into the folder $d. Set before: d, id, schema, jobs, dump (names of the program), client (likewise), tables,
# views, lock, unlock, where (statements that show the position), data (options), binlog (yes or no), head (fields of the manifest),
# and functions `groups` (calls `work N TABLE…` for each group), `all_tables`, `all_views` (call "$@" with the names), `wholes` (prints
# the tables that are loaded as one). The login is in RUNBOOK_CLIENT.
login=$RUNBOOK_CLIENT
unset RUNBOOK_CLIENT
find_tool() {
  for t in "$@"; do command -v "$t" && return; done
  fail "missing tool $*"
}
dump=$(find_tool $dump) || exit 1
client=$(find_tool $client) || exit 1
z='gzip -1' ext=.gz
if command -v zstd >/dev/null; then z='zstd -q -1' ext=.zst; fi
command -v sha256sum >/dev/null || fail "missing tool sha256sum"
cd "$d" || exit 1
rm -f manifest manifest.new files.new ./*.sql.gz ./*.sql.zst ./*.rows.gz ./*.rows.zst ./*.raw.gz ./*.raw.zst "$j"/index.* "$j"/pos.* "$j"/began.* "$j"/rc.* "$j"/names "$j"/in || exit 1

ask() {
  "$client" --defaults-file=/dev/fd/3 --no-auto-rehash -N -B --unbuffered "$@" 3<<RUNBOOK
$login
RUNBOOK
}
dumped() {
  "$dump" --defaults-file=/dev/fd/3 --quick --max-allowed-packet=1073741824 "$@" 3<<RUNBOOK
$login
RUNBOOK
}
defined() { dumped --default-character-set=utf8mb4 --single-transaction --no-data "$@"; }
# Definitions, by several calls into one file that is whole or not at all.
kept() {
  f=$1$ext
  kind=$2
  {
    "$kind"
    echo $? >"$j/rc.$kind"
  } | $z >"$f" || fail "$f cannot be written"
  [ -s "$j/rc.$kind" ] || fail "the definitions' tool was killed from outside"
  [ "$(cat "$j/rc.$kind")" = 0 ] || broken "$(cat "$j/rc.$kind")" "the definitions' tool"
  printf '%s\t%s\t-\t0\t\n' "$f" "$kind" >>"$j/index.0"
}
schema() { [ "$tables" = 0 ] || all_tables defined --skip-triggers "$schema"; }
after() {
  defined --no-create-info --skip-triggers --routines "$schema" || return 1
  [ "$views" = 0 ] || all_views defined --skip-triggers "$schema" || return 1
  [ "$tables" = 0 ] || all_tables defined --no-create-info --triggers --add-drop-trigger "$schema" || return 1
  defined --no-create-info --skip-triggers --events "$schema"
}
: >"$j/index.0"
kept schema.sql schema
kept after.sql after

# Rows: cut into files, each of which is loaded as a transaction. Bytes are as the server has them, in whatever character set: where the tool
# writes a row to a line, NAME.rows is the head of the INSERT, then each row as "(…,1),", whose last field says that it is whole; otherwise
# (old tools) NAME.raw has its statements, cut at their ends. NAME.sql has statements in utf8mb4, for tables that take no bytes.
cat >"$j/cut.awk" <<'EOT'
function shut() {
  if (cmd == "") return
  if (close(cmd) != 0) { print "runbook: rows cannot be written" | "cat >&2"; exit 1 }
  print file "\t" (table in whole ? "whole" : "rows") "\t" (counted ? rows : "-") "\t" bytes "\t" table >>index_file
  fflush(index_file)
  cmd = ""
}
# What is written after the transaction has begun.
function has_begun() {
  if (!told) { print "yes" >began; close(began) }
  told = 1
}
BEGIN { while ((getline name <names) > 0) whole[name] = 1 }
/^-- Dumping data for table `/ { shut(); has_begun(); table = $0; sub(/^[^`]*`/, "", table); sub(/`[^`]*$/, "", table); next }
/^-- CHANGE (MASTER|REPLICATION SOURCE) TO / { print >pos; close(pos); next }
/^INSERT / {
  counted = !/VALUES *\(/
  if (cmd == "" || bytes >= limit && !(table in whole)) {
    shut()
    lines = counted && how == "bytes"
    file = sprintf("d%d-%05d.%s%s", n, ++seq, lines ? "rows" : how == "bytes" ? "raw" : "sql", ext)
    cmd = z " >" file
    rows = 0; bytes = 0
    if (lines) print | cmd
  }
  inside = 1
  if (lines) next
}
inside {
  if (/^\(/) rows++
  bytes += length($0) + 1
  if (/;$/) inside = 0
  if (lines) $0 = substr($0, 1, length($0) - 2) ",1),"
  print | cmd
}
/^-- Dump completed/ { complete = 1; has_begun() }
END { shut(); if (!complete) exit 1 }
EOT
work() {
  n=$1
  how=$2
  shift 2
  case $how in
    bytes) set -- --default-character-set=binary "$schema" "$@" ;;
    *) set -- --default-character-set=utf8mb4 --hex-blob "$schema" "$@" ;;
  esac
  {
    dumped --single-transaction $data --no-create-info --skip-triggers --skip-add-locks --skip-disable-keys \
      --net-buffer-length=1046528 "$@" 2>"$j/e.$n"
    echo $? >"$j/rc.$n"
  } | "$awk" -v n="$n" -v how="$how" -v limit=16000000 -v ext="$ext" -v z="$z" -v index_file="$j/index.$n" -v pos="$j/pos.$n" -v began="$j/began.$n" -v names="$j/names" -f "$j/cut.awk" 2>>"$j/e.$n"
  s=$?
  [ "$s" = 0 ] && [ "$(cat "$j/rc.$n")" = 0 ] && return
  # The first that fails says why, and only then all ends.
  if mkdir "$j/claim" 2>/dev/null; then
    cat "$j/e.$n" >&2
    [ -s "$j/rc.$n" ] && [ "$(cat "$j/rc.$n")" -le 128 ] || say "the dump of its rows was killed from outside"
    kill -TERM $$
  fi
  exit 1
}
wholes >"$j/names"
rm -rf "$j/claim"
# One moment for all: nobody commits while the sessions begin. A session of its own holds that, and lets go when this script dies.
mkfifo "$j/in" || exit 1
ask --skip-reconnect <"$j/in" >"$j/told" 2>&1 &
holder=$!
exec 5>"$j/in"
told() {
  n=0
  while ! grep -q "^$1" "$j/told"; do
    kill -0 "$holder" 2>/dev/null || return 1
    n=$((n + 1))
    [ "$n" -lt 1500 ] || return 1
    sleep .02
  done
}
echo "SET SESSION lock_wait_timeout = 20; $lock; SELECT 'held'; $where; SELECT 'end';" >&5
told end || fail_with "$j/told" "writes cannot be held up for the moment of the snapshot"
sed -n '/^held/,/^end/p' "$j/told" | sed '1d;$d' >"$j/position"
(
  trap - EXIT TERM INT HUP
  # Whatever happens, writes are not held up for longer.
  exec 5>&- 9>&-
  sleep 20
  kill "$holder"
) &
guard=$!
groups 5>&-
# Each session of the dump shows by what it writes that it has begun. The server's list of sessions would not do: others may use the
# same account.
begun() {
  have=0
  i=0
  while [ "$i" -lt "$count" ]; do
    i=$((i + 1))
    [ ! -e "$j/began.$i" ] || have=$((have + 1))
  done
  [ "$have" = "$count" ]
}
n=0
until begun; do
  kill -0 "$holder" 2>/dev/null || later "writes could not be held up until every session of the dump had begun ($have of $count)"
  n=$((n + 1))
  [ "$n" -lt 600 ] || later "the sessions of the dump do not begin ($have of $count)"
  sleep .02
done
# That it answers shows that writes were held up all the time.
trap '' PIPE
echo "$unlock; SELECT 'free';" >&5
trap - PIPE
told free || later "writes could not be held up until every session of the dump had begun"
exec 5>&-
kill "$guard" 2>/dev/null
wait "$holder"
if [ "$binlog" = yes ] && [ "$count" -gt 1 ]; then
  [ "$(cat "$j"/pos.[1-9]* | sort -u | wc -l)" = 1 ] || later "the sessions of the dump have not begun at one moment"
fi
await $kids
cat "$j"/index.* >"$j/files" || exit 1
cut -f 1 "$j/files" >"$j/all"
summed() { settle "$1" && sha256sum "$1" >>"$j/w.$2" 2>"$j/e.$2"; }
each "$j/all" summed
cat "$j"/w.* >"$j/sums"
[ "$(wc -l <"$j/sums")" = "$(wc -l <"$j/all")" ] || fail "not every file of the dump could be read"
{
  printf 'runbook-dump\t1\n'
  head
  printf 'position\t%s\n' "$(tr '\t\n' '  ' <"$j/position")"
  awk -F '\t' -v OFS='\t' 'NR == FNR { split($0, p, /  /); sum[p[2]] = p[1]; next } { print "file", $1, $2, $3, $4, sum[$1], $5 }' "$j/sums" "$j/files"
  printf 'end\tyes\n'
} >manifest.new && settle manifest.new && mv -f manifest.new manifest && settle . || fail "the manifest cannot be written"
