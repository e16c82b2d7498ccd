# The load of the folder $d. Set before: d, id, jobs, and a function `sums` that prints "SUM  FILE". Where the server is and who logs in
# comes by libpq's own variables. What is done has a mark in _runbook.loaded, made in the same transaction.
command -v pg_restore >/dev/null && command -v psql >/dev/null || fail "missing tool pg_restore (postgresql-client)"
command -v sha256sum >/dev/null || fail "missing tool sha256sum"
cd "$d" || exit 1
sql() { psql --no-password -X -q -A -t -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -v SHOW_CONTEXT=never "$@"; }
# Before anything is loaded.
sums >"$j/sums"
each "$j/sums" intact
sql -c 'SELECT item FROM _runbook.loaded' >"$j/had" 2>"$j/e.0" || fail_with "$j/e.0" "what is loaded already cannot be read"
for s in pre-data data post-data; do pg_restore -l --section=$s data | grep '^[0-9]' >"$j/$s"; done
# Lines of the list $2 as one transaction, with the mark $1.
once() {
  mark=$1 lines=$2 n=$3
  if grep -qxF "$mark" "$j/had"; then return; fi
  rm -f "$j/rc.$n"
  {
    echo "SET synchronous_commit = off; BEGIN; INSERT INTO _runbook.loaded VALUES ('$mark');"
    pg_restore -f - -L "$lines" data
    s=$?
    echo "$s" >"$j/rc.$n"
    [ "$s" = 0 ] && printf '\nCOMMIT;\n\\echo done\n'
  } 2>"$j/e.$n" | psql --no-password -X -A -t -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -v SHOW_CONTEXT=never >"$j/o.$n" 2>>"$j/e.$n"
  c=$?
  if ! grep -qx 'done' "$j/o.$n"; then
    [ "$(sql -c "SELECT 1 FROM _runbook.loaded WHERE item = '$mark'" 2>/dev/null)" = 1 ] && return
    s=$(cat "$j/rc.$n" 2>/dev/null)
    why=
    [ "$c" -le 128 ] || why=psql
    [ "${s:-0}" -le 128 ] || [ "$s" = 141 ] || why=pg_restore
    [ -s "$j/e.$n" ] || [ -n "$s" ] || why='a part'
    [ -z "$why" ] || echo "runbook: $why was killed from outside" >"$j/e.$n"
    echo "runbook: loading was not finished: $(head -n 1 "$lines")" >>"$j/e.$n"
    return 1
  fi
}
item() {
  printf '%s\n' "$1" >"$j/l.$2"
  once "${1%%;*}" "$j/l.$2" "$2" || return 1
  echo "${1%%;*}" >>"$j/w.$2"
}
one() {
  [ -s "$2" ] || return 0
  once "$1" "$2" 0 || {
    cat "$j/e.0" >&2
    exit 1
  }
}
one pre-data "$j/pre-data"
# The largest first.
ls -S data | sed -n 's/\.dat\.gz$//p' >"$j/order"
awk 'NR == FNR { rank[$1] = ++n; next } { i = $1; sub(/;.*/, "", i); print (i in rank ? rank[i] : 0) "\t" $0 }' "$j/order" "$j/data" | sort -n | cut -f 2- >"$j/items"
each "$j/items" item
# Indexes and keys beside each other; what builds upon them afterwards, in its order.
sql -c 'SELECT item FROM _runbook.loaded' >"$j/had" 2>"$j/e.0" || fail_with "$j/e.0" "what is loaded already cannot be read"
grep -E '^[0-9]+; [0-9]+ [0-9]+ (INDEX|CONSTRAINT) ' "$j/post-data" >"$j/keys"
grep -vE '^[0-9]+; [0-9]+ [0-9]+ (INDEX|CONSTRAINT) ' "$j/post-data" >"$j/rest"
PGOPTIONS="$PGOPTIONS -c maintenance_work_mem=256MB" each "$j/keys" item
one post-data "$j/rest"
