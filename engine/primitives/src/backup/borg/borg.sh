# The functions that tool/mod.rs wants, for borg; tried with 1.2.4. A borg that must not ask never gets a yes: see borg/mod.rs.
borg() {
  command borg --log-json --lock-wait 20 "$@"
  rb_s=$?
  if [ "$rb_s" = 2 ]; then holders; fi
  return "$rb_s"
}
# Who holds locks, for a message: borg itself says only that there is one.
holders() {
  for rb_l in "$BORG_REPO"/lock.exclusive/* "${BORG_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/borg}"/*/lock.exclusive/*; do
    [ -e "$rb_l" ] || continue
    rb_l=${rb_l##*/}
    rb_p=${rb_l##*.}
    rb_p=${rb_p%-*}
    if [ -d "/proc/$rb_p" ]; then rb_w='which is there on this host'; else rb_w='which is not there on this host'; fi
    echo "held by ${rb_l%.*}, process $rb_p, $rb_w" >&2
  done
}
# Runs a borg that lists what it reads: where it fails, the last one is what it failed at. A warning is a failure.
named() {
  { "$@" 2>&1 >/dev/null; echo "status $?"; } | awk '
    /"name": "borg.output.list"/ { last = $0; next }
    /^status [0-9]+$/ { s = $2; next }
    /"levelname": "(WARNING|ERROR|CRITICAL)"/ { bad = 1 }
    { print >"/dev/stderr" }
    END { if (s != 0 || bad) { if (last != "") print "at " last >"/dev/stderr"; exit (s != 0 ? s : 1) } }'
}
look() { borg list --short >/dev/null; }
make() { borg init --encryption="$encryption" >/dev/null; }
# Without checkpoints, which are halves.
snapshots() { borg list --json --format '{comment}{hostname}{command_line}{end}'; }
count() {
  { borg list --format '{mode} {size}{NL}' "::$1" || echo failed; } | awk '/^failed$/ { exit 9 }
/^-/ { n++; b += $2 }
/^h/ { l++ }
END { printf "%d %d %.0f\n", n, l, b }'
}
# Progress for people, changed files into one list, what it tells of the archive into another, complaints into the third.
hear() {
  awk -v which="$t/which" -v summary="$t/summary" -v log_="$t/log" '
    /"type": "archive_progress"/ {
      if (match($0, /"time": [0-9]+/)) now = substr($0, RSTART + 8, RLENGTH - 8)
      if (now >= last + 2 && match($0, /"original_size": [0-9]+/)) {
        size = substr($0, RSTART + 17, RLENGTH - 17); files = 0
        if (match($0, /"nfiles": [0-9]+/)) files = substr($0, RSTART + 10, RLENGTH - 10)
        printf "%d files, %.1f MiB read\n", files, size / 1048576; fflush(); last = now
      }
      next
    }
    /"type": "progress_/ { next }
    # The summary, over many lines: when it began, and how many files it took.
    /^ *"start": "/ { split($0, words, "\""); start = words[4]; next }
    /^ *"nfiles": / { files = $2 + 0; next }
    /^(\{$|\}| )/ { next }
    /"levelname": "WARNING"/ && (/: file changed while we backed it up"/ || /\[Errno 2\] No such file/) { print >which; next }
    { print >log_ }
    END { print start, files >summary }'
}
summary() { read -r told <"$t/summary"; }
attempt() {
  id=$name
  : >"$t/log" || return 1
  { create borg -- "$archive" "$@" 2>&1; echo "$?" >"$t/status"; } | hear
  read -r s <"$t/status" || return 1
  summary
  case $s in
    0) return 0 ;;
    1)
      # The archive is there, with less in it than it should have.
      if grep -q '"levelname": "WARNING"' "$t/log"; then
        cat "$t/log" >&2
        drop "$id"
        return 65
      fi
      [ -s "$t/which" ] || { echo 'borg has ended with a warning that it did not tell' >&2; drop "$id"; return 65; }
      ;;
    *)
      # Named by the action: it is the one that an earlier attempt made.
      if grep -q '"msgid": "Archive.AlreadyExists"' "$t/log"; then return 0; fi
      cat "$t/log" >&2
      return "$s"
      ;;
  esac
}
drop() {
  # Without a name borg would delete the repository.
  [ -n "$1" ] || return 1
  for pause in 1 2 3 4 5; do
    borg delete "::$1" >/dev/null 2>&1 && return
    sleep "$pause"
  done
  echo "runbook: the incomplete archive $1 could not be removed: borg delete ::$1" >&2
  return 1
}
found() { borg list --short --consider-checkpoints --glob-archives "$name*" 2>/dev/null; }
leftovers() {
  borg list --short --consider-checkpoints --glob-archives "$name.checkpoint*" | while IFS= read -r c; do drop "$c"; done
}
become() { exec borg --log-json --lock-wait 20 "$@"; }
# An interrupt would have it keep a checkpoint.
quit=TERM
keep() { create become --stdin-name="$file" -- "$archive" - 2>&1; }
kept() {
  summary
  id=$name
  # Its own number has more in it than the file.
  kept_bytes=$(borg list --format '{size}' "$archive")
  told="$told $kept_bytes"
}
give_of() { become extract --stdout "::$1" "$2"; }
read_all() { named borg extract --dry-run --list "::$1"; }
bring() (cd "$2" && named borg extract --list "::$1")
bring_over() { bring "$@"; }
tar_of() { borg export-tar "::$1" -; }
forget() {
  # Without a name borg would delete the repository. One that is not there is a warning.
  if [ $# -gt 0 ]; then
    borg delete -- "$BORG_REPO" "$@" >/dev/null
    [ $? -le 1 ] || return 2
  fi
  borg compact >/dev/null
}
sound() { if [ "$1" = 0 ]; then borg check; else borg check --verify-data; fi >/dev/null; }
# borg itself removes locks of processes of this host that are gone.
unlock() { if [ "$1" = 1 ]; then borg break-lock; else borg with-lock "$BORG_REPO" true; fi >/dev/null; }
# Runs its words against the repository to copy from.
other() (
  unset BORG_PASSPHRASE BORG_PASSCOMMAND BORG_RSH BORG_REMOTE_PATH
  export BORG_REPO="$FROM_REPO"
  [ -z "$FROM_PASSPHRASE" ] || export BORG_PASSPHRASE="$FROM_PASSPHRASE"
  [ -z "$FROM_PASSCOMMAND" ] || export BORG_PASSCOMMAND="$FROM_PASSCOMMAND"
  [ -z "$FROM_RSH" ] || export BORG_RSH="$FROM_RSH"
  [ -z "$FROM_REMOTE_PATH" ] || export BORG_REMOTE_PATH="$FROM_REMOTE_PATH"
  export BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="$FROM_UNENCRYPTED"
  "$@"
)
# All but what depends on the order in which further names of a file were found, which `count` compares.
listing() { borg list --format '{mode} {uid} {gid} {isomtime} {path}{NL}' "::$1" | sed 's/^.//' | sort; }
# Copies one: $1 its name, $2 comment, $3 time, then what it holds. borg 1.2 has no copy: restored, taken again, and compared.
copy() {
  id=$1 comment=$2 time=$3
  shift 3
  echo "copying $id"
  rm -rf "$t/x" && mkdir "$t/x" && other bring "$id" "$t/x" || return
  (cd "$t/x" && borg create --comment "$comment" --timestamp "$time" -- "::$id" "$@" >/dev/null) || return
  { other listing "$id"; other count "$id"; } >"$t/from" || return
  { listing "$id"; count "$id"; } >"$t/to" || return
  cmp -s "$t/from" "$t/to" && return
  drop "$id"
  echo "the copy of $id is not what was copied (does it need sudo, for the owners of files?): $(diff "$t/from" "$t/to" | grep '^[<>]' | head -n 4 | tr '\n' ';')" >&2
  return 1
}
