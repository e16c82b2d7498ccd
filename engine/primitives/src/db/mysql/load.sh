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
case $(cat "$j/files") in *.zst*) command -v zstd >/dev/null || fail "missing tool zstd" ;; esac
tab=$(printf '\t')
# The rows of a file NAME.rows as statements of about 1 MB.
inserts='NR == 1 { head = $0; next }
{
  if (n) print row (bytes > 1000000 ? ";" : ",")
  if (!n || bytes > 1000000) { print head; bytes = 0 }
  row = substr($0, 1, length($0) - 4) ")"
  bytes += length(row)
  n = 1
}
END { if (n) print row ";" }'
# The columns of every table, where the server may read rows by itself: what it makes is passed over. One of Galera may commit in the middle.
columns() {
  [ "$(sql -e "SHOW VARIABLES WHERE Variable_name IN ('local_infile', 'wsrep_on') AND Value = 'ON'" 2>/dev/null)" = "local_infile${tab}ON" ] || return 0
  sql -r -e "SET SESSION group_concat_max_len = 1000000; SELECT REPLACE(table_name, '\`', '\`\`'),
    GROUP_CONCAT(IF(extra REGEXP '(VIRTUAL|STORED|PERSISTENT) GENERATED', '@made', CONCAT('\`', REPLACE(column_name, '\`', '\`\`'), '\`')) ORDER BY ordinal_position)
    FROM information_schema.columns WHERE table_schema = DATABASE() AND extra NOT LIKE '%INVISIBLE%' GROUP BY table_name
    HAVING MAX(CONCAT(table_name, column_name) REGEXP '[[:cntrl:]]') = 0"
}
# What follows is of one file: f kind rows bytes sum table, by the job n. mark is the statement that says it is loaded, done the one that
# reads it back, charset that of its statements, columns those of its table. InnoDB's unique_checks stay: without them it loads an empty
# table in bulk, and forgets the whole transaction when it finds a duplicate in the end.
unpacked() {
  unpack "$f"
  echo "$?" >"$j/rc.$n"
}
begin() {
  echo "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO', time_zone = '+00:00', foreign_key_checks = 0, sql_notes = 0, innodb_lock_wait_timeout = 600;"
  case $kind in
    rows) echo "SET autocommit = 0; $mark" ;;
    whole) printf 'DELETE FROM `%s`;\n' "$table" ;;
  esac
}
# Lets the server read the rows by itself, which is half the work of statements for it. It leaves out what it cannot take then, with a
# warning: so what counts is that it took every row, the last one to its end, and had nothing to say. Otherwise all of it is taken back.
by_reading() {
  unpacked 2>"$j/e.$n" | {
    IFS= read -r head
    case $kind in
      rows) end="UPDATE _runbook_loaded SET item = IF(@took, item, NULL) WHERE item = '$f'; COMMIT;" ;;
      *) end="INSERT INTO _runbook_loaded SELECT IF(@took, '$f', NULL);" ;;
    esac
    sql --local-infile=1 --default-character-set="$charset" -e "$(begin) LOAD DATA LOCAL INFILE '/dev/stdin' INTO TABLE \`$table\` CHARACTER SET binary
      FIELDS TERMINATED BY ',' OPTIONALLY ENCLOSED BY 0x27 ESCAPED BY 0x5c LINES STARTING BY '(' TERMINATED BY 0x292c0a ($columns, @whole);
      SET @took = ROW_COUNT() = $rows AND @whole = 1 AND @@warning_count = 0; SELECT 'read'; SET SESSION sql_mode = 'STRICT_ALL_TABLES';
      $end $done"
  } >"$j/o.$n" 2>>"$j/e.$n"
}
by_statements() {
  {
    begin
    case $f in
      *.rows.*)
        unpacked | "$awk" "$inserts"
        s=$?
        [ "$s" = 0 ] || echo "$s" >"$j/rc.$n"
        ;;
      *) unpacked ;;
    esac
    [ "$(cat "$j/rc.$n")" = 0 ] && case $kind in
      rows) echo "COMMIT;" ;;
      *) echo "$mark" ;;
    esac && echo "$done"
  } 2>"$j/e.$n" | sql --default-character-set="$charset" >"$j/o.$n" 2>>"$j/e.$n"
}
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
  done="SELECT 'done' FROM _runbook_loaded WHERE item = '$f';"
  case $f in
    *.rows.* | *.raw.*) charset=binary ;;
    *) charset=utf8mb4 ;;
  esac
  case $f in
    *.rows.*) columns=$(t=$table awk -F '\t' '$1 == ENVIRON["t"] && length($2) < 60000 { print $2 }' "$j/columns") ;;
    *) columns= ;;
  esac
  if [ -n "$columns" ]; then by_reading; else by_statements; fi
  c=$?
  # Refused for a row, and not for something that befell it: the statements say which, or do what reading does not.
  if [ "$(cat "$j/o.$n")" = "read" ] && [ "$c" -le 128 ] && [ "$(cat "$j/rc.$n")" = 0 ]; then
    by_statements
    c=$?
  fi
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
columns >"$j/columns" 2>"$j/e.0" || fail_with "$j/e.0" "the columns of the tables cannot be read"
of_kind 'rows whole'
of_kind after
