# The last error of a worker of logical replication before its end, of a server's log, unless one has started since.
# The log is of everybody: what a worker said is known by its number, where each line has that ([%p] in log_line_prefix, as usual).
function who(line) { return match(line, /\[[0-9]+\]/) ? substr(line, RSTART + 1, RLENGTH - 2) : "" }
function after(line, word) { return substr(line, index(line, word) + length(word)) }
# Told to end: no error.
/FATAL:  terminating logical replication worker due to administrator command/ { next }
/(ERROR|FATAL):  / { said[who($0)] = $0 }
/DETAIL:  / { p = who($0); if (said[p] != "") said[p] = said[p] " (" after($0, "DETAIL:  ") ")" }
/CONTEXT:  / { p = who($0); if (said[p] != "") said[p] = said[p] "; " after($0, "CONTEXT:  ") }
/logical replication ([a-z]+ )?worker.*exited with exit code/ {
  p = match($0, /PID [0-9]+/) ? substr($0, RSTART + 4, RLENGTH - 4) : ""
  last = said[p] != "" ? said[p] : said[""]
  delete said[p]
  delete said[""]
}
/logical replication (apply|table synchronization) worker .*has started/ { last = "" }
END { print last }
