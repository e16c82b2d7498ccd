# The functions that tool/mod.rs wants, for restic; tried with 0.14.
look() { restic cat --no-lock config; }
make() { restic init; }
snapshots() { restic snapshots --no-lock --json; }
count() {
  { restic ls --no-lock --json "$1" || echo failed; } | awk '/^failed$/ { exit 9 }
/"type":"file"/ { n++; if (match($0, /"size":[0-9]+/)) b += substr($0, RSTART + 7, RLENGTH - 7) }
END { printf "%d 0 %.0f\n", n, b }'
}
# Given to it, since it does not tell when it has begun. Not every date(1) has parts of a second.
begin() {
  began=$(date -u '+%Y-%m-%d %H:%M:%S.%N') || return
  case ${began##*.} in *[!0-9]* | '') began=${began%.*} ;; esac
  echo "$began" >"$t/began"
}
# The next one is a later one, also where a second is the least that can be told.
later() {
  case $began in *.*) return ;; esac
  while [ "$(date -u '+%Y-%m-%d %H:%M:%S')" = "$began" ]; do sleep .1 2>/dev/null || sleep 1; done
}
# Runs restic, or becomes it, with that time.
backup_at() {
  who=$1
  shift
  TZ=UTC && export TZ && backup "$who" --time="$began" "$@"
}
# Progress for people; of the summary what it took, in bytes and files, and the snapshot's name.
hear() {
  awk -v out="$t/out" '
    function value(key, v) {
      if (!match($0, "\"" key "\":\"?[0-9a-f.+-]+")) return ""
      v = substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
      sub(/^"/, "", v)
      return v
    }
    BEGIN { printf "" >out }
    /"message_type":"status"/ {
      printf "%d files, %.1f MiB read", value("files_done"), value("bytes_done") / 1048576
      if (value("total_bytes") + 0 > value("bytes_done") + 0) printf " of %d, %.1f MiB", value("total_files"), value("total_bytes") / 1048576
      print ""; fflush(); next
    }
    /"message_type":"summary"/ { print value("total_bytes_processed"), value("total_files_processed"), value("snapshot_id") >out }'
}
summary() { read -r kept_bytes files id <"$t/out"; }
# The whole name of a snapshot that restic 0.14 tells by its first digits: what it has just written is in its cache.
whole() {
  set -- "$1" "${RESTIC_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/restic}"/*/snapshots/*/"$1"*
  if [ $# = 2 ] && [ -e "$2" ]; then echo "${2##*/}"; else echo "$1"; fi
}
# Reads what it told; $1 is the folder in which it was.
kept() {
  summary
  read -r began <"$t/began" || return 1
  [ -n "$id" ] || { echo 'restic has not told the name of the snapshot' >&2; return 1; }
  id=$(whole "$id")
  told="$id ${began% *}T${began#* }Z $files $kept_bytes $1"
  later
}
attempt() {
  begin || return 1
  { (backup_at restic -- "$@"); echo "$?" >"$t/status"; } | hear
  read -r s <"$t/status" || return 1
  if [ "$s" != 0 ]; then
    summary
    [ -z "$id" ] || drop "$id"
    return "$s"
  fi
  kept "$PWD" || return 1
  # It does not tell what changed while it was read: what has changed since the beginning, of what was taken.
  find "$@" -type f -cnewer "$t/began" 2>/dev/null | sed -e 's|^\./||' -e 's|^/*|/|' >"$t/changed"
  [ -s "$t/changed" ] || return 0
  restic ls --no-lock "$id" | grep -Fxf "$t/changed" | head -n 20 >"$t/which"
  return 0
}
# The next of this action must be the only one.
drop() {
  for pause in 1 2 3 4 5; do
    restic forget "$1" >/dev/null 2>&1 && return
    restic unlock >/dev/null 2>&1
    sleep "$pause"
  done
  echo "runbook: the incomplete snapshot $1 could not be removed: restic forget $1" >&2
  return 1
}
leftovers() { :; }
# An interrupt lets it take its lock away.
quit=INT
keep() { begin && backup_at become --stdin --stdin-filename="$file"; }
found() { restic snapshots --no-lock --json --tag="$mark" 2>/dev/null | tr ',{}' '[\n*]' | sed -n 's/^"id":"\([0-9a-f]*\)"$/\1/p'; }
give_of() { become dump --no-lock --no-cache "$1" "/${2#/}"; }
read_all() { restic dump --no-lock --no-cache --archive tar "$1" / >/dev/null; }
bring() { restic restore --no-lock --no-cache --verify --target "$2" "$1" >/dev/null; }
# What restic 0.14 does not overwrite well makes way: it writes through a link where a file was, gives up where a link was, and removes a
# further name of a file that is there instead of making it.
bring_over() {
  restic ls --no-lock -l "$1" | sed -n -e 's/^[lL][^/]*\(\/.*\) -> .*$/\1/p' -e 's/^-[^/]*\(\/.*\)$/\1/p' |
    (cd "$2" && sed 's/^/./' | tr '\n' '\0' | xargs -0 -r sh -c 'find "$@" -maxdepth 0 \( -type l -o -type f -links +1 \) -exec rm -f {} + 2>/dev/null' sh)
  restic restore --no-lock --verify --target "$2" "$1" >/dev/null
}
tar_of() { restic dump --no-lock --archive tar "$1" /; }
forget() {
  restic unlock >/dev/null 2>&1
  for id; do
    if restic cat --no-lock snapshot "$id" >/dev/null 2>&1; then restic forget "$id" || return; fi
  done
  restic prune
}
sound() {
  restic unlock >/dev/null 2>&1
  case $1 in
    0) restic check --no-cache ;;
    100) restic check --no-cache --read-data ;;
    *) restic check --no-cache --read-data-subset="$1%" ;;
  esac
}
# restic itself tells locks of the dead: of a process of this host that is gone, or not renewed for half an hour.
unlock() {
  if [ "$1" = 1 ]; then restic unlock --remove-all; else restic unlock && { look >/dev/null; held; }; fi
}
held() {
  locks=$(restic list --no-lock locks) || return
  [ -z "$locks" ] || { echo "repository is already locked, by one that lives: $(restic cat --no-lock lock "$(echo "$locks" | head -n 1)" | tr -d ' \n')" >&2; return 1; }
}
