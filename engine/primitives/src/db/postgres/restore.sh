# What puts entries of an archive of pg_dump into a database, each lot a transaction with its mark in _runbook.loaded. Set before: j,
# archive. Where the server is and who logs in comes by libpq's own variables.
client='psql --no-password -X -A -t -v ON_ERROR_STOP=1 -v VERBOSITY=verbose -v SHOW_CONTEXT=never'
sql() { $client -q "$@"; }
# What is there already, into $j/had.
had() { sql -c 'SELECT item FROM _runbook.loaded' >"$j/had" 2>"$j/e.0" || fail_with "$j/e.0" "what is loaded already cannot be read"; }
# The entries of the section $1, as lines of a list.
entries() { pg_restore -l --section="$1" "$archive" | grep '^[0-9]'; }
# What $3 and its words print, as one transaction of the job $2, with the mark $1. They must end well.
once() {
  mark=$1 n=$2
  shift 2
  if grep -qxF "$mark" "$j/had"; then return; fi
  rm -f "$j/rc.$n"
  {
    echo "SET synchronous_commit = off; BEGIN; INSERT INTO _runbook.loaded VALUES ('$mark');"
    "$@"
    s=$?
    echo "$s" >"$j/rc.$n"
    [ "$s" = 0 ] && printf '\nCOMMIT;\n\\echo done\n'
  } 2>"$j/e.$n" | $client >"$j/o.$n" 2>>"$j/e.$n"
  found $?
}
# Whether the transaction with $mark of the job $n is there, after psql has ended with the status $1; why not is said.
found() {
  if ! grep -qx 'done' "$j/o.$n"; then
    [ "$(sql -c "SELECT 1 FROM _runbook.loaded WHERE item = '$mark'" 2>/dev/null)" = 1 ] && return
    s=$(cat "$j/rc.$n" 2>/dev/null)
    why=
    [ "$1" -le 128 ] || why=psql
    [ "${s:-0}" -le 128 ] || [ "$s" = 141 ] || why='a program'
    [ -s "$j/e.$n" ] || [ -n "$s" ] || why='a part'
    [ -z "$why" ] || echo "runbook: $why was killed from outside" >"$j/e.$n"
    return 1
  fi
}
# The lines of the list $1.
restored() { pg_restore -f - -L "$1" "$archive"; }
# The entry of the line $1 as the job $2.
item() {
  printf '%s\n' "$1" >"$j/l.$2"
  once "${1%%;*}" "$2" restored "$j/l.$2" || {
    echo "runbook: loading was not finished: $1" >>"$j/e.$2"
    return 1
  }
  echo "${1%%;*}" >>"$j/w.$2"
}
# The entries of the list $2, with the mark $1.
one() {
  [ -s "$2" ] || return 0
  once "$1" 0 restored "$2" || {
    cat "$j/e.0" >&2
    fail "loading was not finished: $(head -n 1 "$2")"
  }
}
# Of the entries behind the rows, those that may be made beside each other.
keys() { grep -E '^[0-9]+; [0-9]+ [0-9]+ (INDEX|CONSTRAINT) ' "$j/post-data" | grep -vE '^[0-9]+; [0-9]+ [0-9]+ INDEX ATTACH '; }
# Makes those, as the list $j/keys has them, and then what builds upon them, in its order.
after() {
  had
  grep -vxF -f "$j/keys" "$j/post-data" >"$j/rest"
  PGOPTIONS="$PGOPTIONS -c maintenance_work_mem=256MB" each "$j/keys" item
  one post-data "$j/rest"
}
