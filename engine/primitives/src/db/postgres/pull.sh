# The copy of a database of another server, as of one moment: a session there holds the snapshot, others read the rows in it, and what
# they read goes straight into this server. Set before: j, jobs, login (the other server, as libpq has it), options (those of its
# sessions, with an empty search_path), locked (milliseconds to wait for a table there). Where this server is and who logs in comes by
# libpq's own variables.
for t in pg_dump pg_restore psql mkfifo; do command -v $t >/dev/null || fail "missing tool $t (postgresql-client)"; done
password=$RUNBOOK_FROM_PASSWORD
unset RUNBOOK_FROM_PASSWORD
archive=$j/archive
from() { PGSSLMODE=prefer PGPASSWORD=$password PGOPTIONS=$options "$@"; }
their() { from $client -q -d "$login" "$@"; }
# The session whose snapshot all see. Until it ends nobody empties or changes a table there, which a snapshot would not hide.
hold() {
  rm -f "$j/hold" "$j/snapshot" && mkfifo "$j/hold" && : >"$j/snapshot" || exit 1
  their <"$j/hold" >"$j/snapshot" 2>"$j/e.hold" &
  holder=$!
  exec 8>"$j/hold"
  cat >&8 <<'RUNBOOK'
BEGIN READ ONLY;
SELECT format('LOCK TABLE ONLY %I.%I IN ACCESS SHARE MODE', s.nspname, r.relname) FROM pg_class r JOIN pg_namespace s ON s.oid = r.relnamespace
WHERE r.relkind IN ('r', 'p') AND r.relpersistence <> 't' AND s.nspname !~ '^pg_' AND s.nspname NOT IN ('information_schema', '_runbook') ORDER BY 1 \gexec
SELECT pg_export_snapshot();
RUNBOOK
  until read -r snapshot <"$j/snapshot"; do
    kill -0 "$holder" 2>/dev/null || let_go
    sleep .05 2>/dev/null || sleep 1
  done
}
# Ends it, and sees that it has held to the end.
let_go() {
  (echo 'COMMIT;' >&8) 2>/dev/null
  exec 8>&-
  wait "$holder" || fail_with "$j/e.hold" "the snapshot was not held to the end"
}
within() { echo "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT '$snapshot';"; }
# Tables with rows: their numbers, bytes, pages (0 for what must be read as one) and whether their rows may go as the servers keep them
# (COPY's binary form, of types that every server has alike). Of an extension's own tables, only those that it says are the user's.
sizes() {
  within
  cat <<'RUNBOOK'
SELECT r.oid, pg_table_size(r.oid),
  CASE WHEN e.oid IS NULL AND t.plain IS NOT NULL AND current_setting('server_version_num')::int >= 140000
    THEN pg_relation_size(r.oid) / current_setting('block_size')::int ELSE 0 END,
  e.oid IS NULL AND coalesce(t.plain, false)
FROM pg_class r JOIN pg_namespace s ON s.oid = r.relnamespace
  LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'e'
  LEFT JOIN pg_extension e ON e.oid = d.refobjid
  CROSS JOIN LATERAL (SELECT bool_and(a.oid < 16384 AND coalesce(nullif(a.typelem, 0), a.oid)::regtype = ANY ('{bool,bytea,int2,int4,int8,float4,float8,numeric,text,varchar,bpchar,
      date,time,timetz,timestamp,timestamptz,interval,uuid,json,jsonb,inet,cidr,macaddr,bit,varbit}'::regtype[])) AS plain
    FROM pg_attribute c JOIN pg_type a ON a.oid = c.atttypid
    WHERE c.attrelid = r.oid AND c.attnum > 0 AND NOT c.attisdropped AND c.attgenerated = '') t
WHERE r.relkind = 'r' AND (r.relpersistence = 'p' OR r.relpersistence = 'u' AND NOT pg_is_in_recovery())
  AND s.nspname !~ '^pg_' AND s.nspname NOT IN ('information_schema', '_runbook') AND r.relname <> '_runbook_actions'
  AND (e.oid IS NULL OR r.oid = ANY (e.extconfig))
ORDER BY 2 DESC;
RUNBOOK
}
# What one transaction copies, the largest first: a table, a part of one that would keep the others waiting, or a lot of small ones.
parcels() {
  awk -v jobs="$jobs" -F '|' '
    { id[NR] = $1; bytes[NR] = $2; pages[NR] = $3; plain[NR] = $4; all += $2 }
    function flush() { if (list != "") print "tables" list; list = ""; sum = 0; n = 0 }
    END {
      share = all / jobs
      for (i = 1; i <= NR; i++) {
        how = plain[i] == "t" ? "binary " : "text "
        k = bytes[i] > 67108864 && bytes[i] > share * 1.5 ? int(bytes[i] / share * 2) : 1
        if (k > 1 && pages[i] >= k) {
          for (p = 0; p < k; p++) print how id[i], int(pages[i] * p / k), p < k - 1 ? int(pages[i] * (p + 1) / k) : ""
        } else if (bytes[i] > 8388608) {
          print how id[i]
        } else {
          list = list " " id[i]; sum += bytes[i]
          if (sum > 8388608 || ++n >= 100) flush()
        }
      }
      flush()
    }'
}
# How the rows of the table $2 are copied in the form $1, or those of its pages from $3 up to $4: the variable `head` takes them here, and
# `copy` gives them there. New rows of a table that is made empty in the same transaction are frozen at once: nobody has to write to
# their pages again.
rows() {
  part=
  [ -z "${3:-}" ] || part="WHERE ctid >= ''($3,0)''${4:+ AND ctid < ''($4,0)''}"
  cat <<RUNBOOK
SELECT CASE WHEN part = '' AND e.oid IS NULL THEN format('TRUNCATE ONLY %s; COPY %s%s FROM stdin WITH (FREEZE, FORMAT $1);', n, n, ' (' || l || ')')
    ELSE format('COPY %s%s FROM stdin WITH (FORMAT $1);', n, ' (' || l || ')') END AS head,
  CASE WHEN part || w = '' THEN format('COPY %s%s TO STDOUT WITH (FORMAT $1)', n, ' (' || l || ')')
    ELSE format('COPY (SELECT %s FROM ONLY %s %s) TO STDOUT WITH (FORMAT $1)', l, n, part || w) END AS copy
FROM pg_class r JOIN pg_namespace s ON s.oid = r.relnamespace
  LEFT JOIN pg_extension e ON r.oid = ANY (e.extconfig)
  CROSS JOIN LATERAL (SELECT format('%I.%I', s.nspname, r.relname) AS n, '$part'::text AS part,
    coalesce(e.extcondition[array_position(e.extconfig, r.oid)], '') AS w,
    (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
      WHERE attrelid = r.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '') AS l) t
WHERE r.oid = $2 \\gset
RUNBOOK
}
# Statements that give the sequences their values: these are no part of a snapshot.
numbers() {
  cat <<'RUNBOOK'
SELECT format('SELECT format(''SELECT setval(%%L, %%s, %%L);'', %L, last_value, is_called) FROM %s', n, n)
FROM (SELECT format('%I.%I', s.nspname, r.relname) AS n FROM pg_class r JOIN pg_namespace s ON s.oid = r.relnamespace
  WHERE r.relkind = 'S' AND s.nspname !~ '^pg_' AND s.nspname NOT IN ('information_schema', '_runbook') AND (r.relpersistence = 'p' OR NOT pg_is_in_recovery())
    AND NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
      WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'e' AND NOT r.oid = ANY (coalesce(e.extconfig, '{}')))) q \gexec
RUNBOOK
}
# Rows as psql reads them here in the midst of statements.
text() {
  rows text "$@"
  printf '%s\n' "SELECT :'head';" "SELECT :'copy' \\gexec" "\\echo '\\\\.'"
}
printed() {
  what=$1
  shift
  {
    within
    case $what in
      tables) for t in "$@"; do text "$t"; done ;;
      text) text "$@" ;;
      numbers) numbers ;;
    esac
  } | their
}
# The same as `once` in the binary form, of which nothing tells where it ends: psql reads it from its own input, and then what to do.
binary() {
  mark="binary $*" n=$job
  rm -f "$j/rc.$n" "$j/then.$n"
  head=$({ rows binary "$@" && echo "SELECT :'head';"; } | their 2>"$j/e.$n") || return 1
  {
    { within && rows binary "$@" && echo "SELECT :'copy' \\gexec"; } | their
    s=$?
    echo "$s" >"$j/rc.$n"
    if [ "$s" = 0 ]; then printf 'COMMIT;\n\\echo done\n'; else echo 'ROLLBACK;'; fi >"$j/then.$n"
  } 2>"$j/e.$n" | $client -c 'SET synchronous_commit = off' -c BEGIN \
    -c "INSERT INTO _runbook.loaded VALUES ('$mark')" -c "$head" -c "\\i '$j/then.$n'" >"$j/o.$n" 2>>"$j/e.$n"
  found $?
}
parcel() {
  job=$2
  # shellcheck disable=SC2086
  case $1 in
    binary\ *) $1 ;;
    *) once "$1" "$2" printed $1 ;;
  esac || {
    echo "runbook: copying was not finished" >>"$j/e.$job"
    return 1
  }
  sed -n 's/^COPY //p' "$j/o.$job" >>"$j/rows.$job"
}
had
if ! grep -q '^all ' "$j/had"; then
  [ ! -s "$j/had" ] || later "an earlier try has ended in its middle, at this moment"
  rm -f "$j"/rows.*
  hold
  from pg_dump --no-password --no-subscriptions -T '*._runbook_actions' -N _runbook --section=pre-data --section=post-data --snapshot="$snapshot" \
    --lock-wait-timeout="$locked" -Fc -Z 0 -f "$archive" -d "$login" || broken $? pg_dump
  entries pre-data >"$j/pre-data"
  entries post-data >"$j/post-data"
  one pre-data "$j/pre-data"
  { sizes | their >"$j/sizes"; } 2>"$j/e.0" || fail_with "$j/e.0" "the tables cannot be listed"
  { parcels <"$j/sizes" && echo numbers; } >"$j/parcels" || exit 1
  each "$j/parcels" parcel
  their -c "SELECT '1259 ' || indexrelid, pg_table_size(indrelid) FROM pg_index
    UNION ALL SELECT '2606 ' || oid, pg_table_size(conrelid) FROM pg_constraint WHERE conrelid <> 0" >"$j/weights" 2>"$j/e.0" ||
    fail_with "$j/e.0" "the indexes cannot be listed"
  # Of the largest tables first; an index makes no key of its table wait.
  keys | awk -F '[ |]' 'NR == FNR { size[$1 " " $2] = $3; next } { print ($4 != "CONSTRAINT") "\t" size[$2 " " $3] + 0 "\t" $0 }' "$j/weights" - | sort -s -k 1,1n -k 2,2nr | cut -f 3- >"$j/keys"
  let_go
  once "all $(cat "$j"/rows.* | awk '{ n += $1 } END { print n + 0 }')" 0 true || fail_with "$j/e.0" "it cannot be kept that all rows are here"
fi
after
