# The load of the folder $d into the schema $schema. Set before: d, id, schema, jobs, client (names of the program), and a function
# `files` that prints "NAME KIND ROWS BYTES SUM TABLE" with tabs. The login is in RUNBOOK_CLIENT.
login=$RUNBOOK_CLIENT
unset RUNBOOK_CLIENT
found=
for t in $client; do found=$(command -v "$t") && break; done
[ -n "$found" ] || fail "missing tool $client"
command -v sha256sum >/dev/null || fail "missing tool sha256sum"
cd "$d" || exit 1
sql() {
  "$found" --defaults-file=/dev/fd/3 --no-auto-rehash --skip-reconnect -N -B --default-character-set=utf8mb4 --max-allowed-packet=1073741824 "$@" "$schema" 3<<RUNBOOK
$login
RUNBOOK
}
files >"$j/files"
sql -e 'SELECT item FROM _runbook_loaded' >"$j/had" 2>"$j/e.0" || fail_with "$j/e.0" "what is loaded already cannot be read"
unpack() {
  case $1 in
    *.zst) zstd -q -dc "$1" ;;
    *.gz) gzip -dc "$1" ;;
    *) cat "$1" ;;
  esac
}
case $(cat "$j/files") in *.sql.zst*) command -v zstd >/dev/null || fail "missing tool zstd" ;; esac
tab=$(printf '\t')
# One file, as one transaction with its mark; the mark comes first, so that a second try waits for a first that still ends.
item() {
  IFS=$tab read -r f kind rows bytes sum table <<LINE
$1
LINE
  n=$2
  if grep -qxF "$f" "$j/had"; then
    echo "$rows $bytes" >>"$j/w.$n"
    return 0
  fi
  intact "$sum  $f" "$n" || return 1
  rm -f "$j/rc.$n"
  mark="INSERT INTO _runbook_loaded VALUES ('$f');"
  {
    echo "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO', time_zone = '+00:00', foreign_key_checks = 0, unique_checks = 0, sql_notes = 0, innodb_lock_wait_timeout = 600;"
    case $kind in
      rows) echo "SET autocommit = 0; $mark" ;;
      whole) printf 'DELETE FROM `%s`;\n' "$table" ;;
    esac
    unpack "$f"
    s=$?
    echo "$s" >"$j/rc.$n"
    [ "$s" = 0 ] && case $kind in
      rows) echo "COMMIT;" ;;
      *) echo "$mark" ;;
    esac && echo "SELECT 'done';"
  } 2>"$j/e.$n" | sql >"$j/o.$n" 2>>"$j/e.$n"
  c=$?
  if ! grep -qx 'done' "$j/o.$n"; then
    # Another session has come before: its mark is there.
    [ "$(sql -e "SELECT COUNT(*) FROM _runbook_loaded WHERE item = '$f'" 2>/dev/null)" = 1 ] || {
      if grep -qi deadlock "$j/e.$n" && [ "${3:-0}" -lt 9 ]; then
        item "$1" "$n" $((${3:-0} + 1))
        return
      fi
      # What was cut off looks like a wrong statement to the server: then that is not its fault.
      s=$(cat "$j/rc.$n" 2>/dev/null)
      why=
      [ "$c" -le 128 ] || why='the client'
      [ "${s:-0}" -le 128 ] || [ "$s" = 141 ] || why="the reading of $f"
      [ -s "$j/e.$n" ] || [ -n "$s" ] || why='a part'
      [ -z "$why" ] || echo "runbook: $why was killed from outside" >"$j/e.$n"
      echo "runbook: loading $f${table:+ of the table $table} was not finished" >>"$j/e.$n"
      return 1
    }
  fi
  echo "$rows $bytes" >>"$j/w.$n"
}
of_kind() {
  awk -F '\t' -v k=" $1 " 'index(k, " " $2 " ")' "$j/files" | sort -t "$tab" -k 4,4rn >"$j/list"
  all=$jobs
  [ "$1" = 'rows whole' ] || jobs=1
  each "$j/list" item
  jobs=$all
}
of_kind schema
of_kind 'rows whole'
of_kind after
