# Reads what mariadb-binlog or mysqlbinlog prints of relay logs, "@@ FILE" before each, "@@@ END" after the last. Finds the first group
# of events (transaction or statement) that is wanted. Variables: mode (time, gtid, place), want, wantfile, curfile, curpos, base, skip.
# Prints, separated by tabs: kind (target, applied, newest), applied (1 or 0), file, byte, moment, GTID, and file and byte of the primary's log.
function done() {
    if (!open) return
    open = 0
    # What looks like an event and is none: text of a statement.
    if (index(skip, " " file ":" gat " ")) return
    rec = applied "\t" file "\t" gat "\t" when "\t" gtid "\t" src "\t" start
    n++
    if (applied) last = rec
    newest = rec
    if (target != "") return
    if (mode == "time") hit = (when >= want)
    else if (mode == "gtid") hit = (gtid == want)
    else hit = (src == wantfile && start != "" && start + 0 == want + 0)
    if (hit) { target = rec; count = n }
}
/^@@ / { done(); file = $2; at = ""; if (file == curfile) state = 1; else if (state == 1) state = 2; next }
/^@@@ END$/ { done(); ended = 1; next }
/^# at [0-9]+$/ {
    if (open && start == "" && gend > 0) start = gend - ($3 - gat)
    done()
    at = $3
    next
}
at != "" && /^#[0-9][0-9][0-9][0-9][0-9][0-9] +[0-9]+:[0-9][0-9]:[0-9][0-9] server id / && $6 == "end_log_pos" {
    i = ($8 == "CRC32") ? 10 : 8
    if ($i == "Rotate") {
        if (index($(i + 2), base ".") != 1) src = $(i + 2)
    } else if ($i == "GTID" || $i == "Anonymous_GTID") {
        split($2, t, ":")
        when = sprintf("20%s%02d%02d%02d", substr($1, 2), t[1], t[2], t[3])
        gtid = ($i == "GTID" && $(i + 1) !~ /=/) ? $(i + 1) : ""
        gat = at
        gend = $7
        start = ""
        applied = (state == 0 || (state == 1 && at + 0 < curpos + 0)) ? 1 : 0
        open = 1
    }
    at = ""
    next
}
# MySQL names the GTID in the statement that follows the event.
open && gtid == "" && /^SET @@SESSION.GTID_NEXT= '[^']*:[0-9]+'/ { split($0, q, "'"); gtid = q[2] }
END {
    if (!ended) exit 1
    print "count\t" n + 0 "\t" count + 0
    if (target != "") print "target\t" target
    if (last != "") print "applied\t" last
    if (newest != "") print "newest\t" newest
}
