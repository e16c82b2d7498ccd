# The base backup of a server in the folder $d. Set before: d, label, and a function `head` (fields of the manifest). Where the server is
# and who logs in comes by libpq's own variables.
for t in pg_basebackup pg_verifybackup pg_waldump; do command -v "$t" >/dev/null || fail "missing tool $t (postgresql)"; done
cd "$d" || exit 1
rm -rf manifest manifest.new data data.part || exit 1
# It brings its files to the disk.
pg_basebackup --no-password -D "$d/data.part" -X stream -c fast -l "$label" || broken $? pg_basebackup
pg_verifybackup -q data.part || broken $? pg_verifybackup
of() { sed -n "$1" "data.part/$2"; }
# The server writes whole seconds, in its own zone.
begun=$(date -u -d "$(of 's/^START TIME: //p' backup_label)" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null) || begun=$(date -u +%Y-%m-%dT%H:%M:%SZ)
segment=$(of 's/^START WAL LOCATION: .*(file \([0-9A-F]*\)).*/\1/p' backup_label)
end=$(of 's/.*"End-LSN": "\([^"]*\)".*/\1/p' backup_manifest | tail -n 1)
[ -n "$segment" ] && [ -n "$end" ] || fail "the backup does not say where in the log it begins and ends"
bytes=$(du -s -B 1 data.part) || exit 1
{
  printf 'runbook-dump\t1\n'
  head
  printf 'begun\t%s\nstart\t%s\nsegment\t%s\nposition\t%s\n' "$begun" "$(of 's/^START WAL LOCATION: \([^ ]*\) .*/\1/p' backup_label)" "$segment" "$end"
  printf 'file\tdata\tbase\t-\t%s\t-\t\n' "${bytes%%	*}"
  printf 'end\tyes\n'
} >manifest.new && settle manifest.new && mv data.part data && settle . && mv -f manifest.new manifest && settle . ||
  fail "the manifest cannot be written"
