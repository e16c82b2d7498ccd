# The load of the folder $d. Set before: d, id, jobs, and a function `sums` that prints "SUM  FILE". Where the server is and who logs in
# comes by libpq's own variables. What is done has a mark in _runbook.loaded, made in the same transaction.
command -v pg_restore >/dev/null && command -v psql >/dev/null || fail "missing tool pg_restore (postgresql-client)"
command -v sha256sum >/dev/null || fail "missing tool sha256sum"
cd "$d" || exit 1
# Before anything is loaded.
sums >"$j/sums"
each "$j/sums" intact
archive=data
had
for s in pre-data data post-data; do entries $s >"$j/$s"; done
one pre-data "$j/pre-data"
# The largest first.
ls -S data | sed -n 's/\.dat\.gz$//p' >"$j/order"
awk 'NR == FNR { rank[$1] = ++n; next } { i = $1; sub(/;.*/, "", i); print (i in rank ? rank[i] : 0) "\t" $0 }' "$j/order" "$j/data" | sort -n | cut -f 2- >"$j/items"
each "$j/items" item
keys >"$j/keys"
after
