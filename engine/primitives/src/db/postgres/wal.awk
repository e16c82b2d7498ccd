# Reads what `pg_waldump --rmgr=Transaction` prints and finds the first commit of a moment (mode=time) or from a position on (mode=lsn),
# and the last one before it; or the last end of any transaction (mode=end). What comes behind it is "status" and the tool's exit status.
# Set before: mode, want (the moment in UTC, or the position as `place` makes it).
# "X/Y" in a form that sorts as text.
function place(l, p) {
  split(l, p, "/")
  return toupper(substr("00000000" p[1], length(p[1]) + 1) substr("00000000" p[2], length(p[2]) + 1))
}
function said(what, line) { print what "\t" line }
/^status / { status = $2; next }
mode == "end" ? !/desc: (COMMIT|ABORT|PREPARE)/ : !/desc: COMMIT/ { next }
{
  if (!match($0, /lsn: [0-9A-Fa-f]+\/[0-9A-Fa-f]+/)) next
  lsn = substr($0, RSTART + 5, RLENGTH - 5)
  if (!match($0, /tx: +[0-9]+/)) next
  xid = substr($0, RSTART + 3, RLENGTH - 3)
  gsub(/ /, "", xid)
  # What was prepared before is committed by its own number.
  if (match($0, /COMMIT_PREPARED [0-9]+/)) xid = substr($0, RSTART + 16, RLENGTH - 16)
  if (match($0, /[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]\.[0-9]+/)) time = substr($0, RSTART, RLENGTH)
  # The name of one that was prepared may have a line break before its time. Its place is what counts.
  else if (mode != "end") next
  else if (time == "") time = "1970-01-01 00:00:00.0"
  line = lsn "\t" xid "\t" time
  if (mode == "time" && time >= want || mode == "lsn" && (place(lsn) "") >= (want "")) {
    rels = ""
    if (match($0, /; rels: [^;]*/)) rels = substr($0, RSTART + 8, RLENGTH - 8)
    said("target", line "\t" substr(rels, 1, 2000))
    found = 1
    exit
  }
  before = line
}
END {
  if (before != "") said("before", before)
  # Without a status it was killed together with who reports it.
  print "end\t" (found ? 0 : status == "" ? 255 : status)
}
