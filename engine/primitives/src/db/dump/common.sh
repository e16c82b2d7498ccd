# What the jobs of dumps and loads share. Set before: j, jobs.
umask 077
LC_ALL=C
export LC_ALL
# Whatever ends it, the answer is there, and nothing goes on behind it.
ended() {
  s=$?
  trap - EXIT
  trap '' TERM INT HUP
  printf 'status %-6s' "$s" 1<>"$j/slot"
  [ "$s" = 0 ] || kill -TERM 0
  wait
  exit "$s"
}
trap ended EXIT
trap 'exit 143' TERM INT HUP
# Only lines with this mark, and those of known tools, are shown to people: others may have rows in them.
say() { printf 'runbook: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}
# Fails in a way that may pass by itself: it is worth another try.
later() {
  say "$*"
  exit 75
}
# Fails after a program, with what is in the file $1 and the words.
fail_with() {
  s=$?
  cat "$1" >&2
  [ "$s" -le 128 ] || say "a program was killed from outside ($((s - 128)))"
  shift
  fail "$*"
}
# Fails after the program $2, which has ended with the status $1 and said why, unless a signal has ended it.
broken() {
  [ "$1" -le 128 ] || say "$2 was killed from outside ($(($1 - 128)))"
  exit 1
}
# Where there are several, the fastest: for what every row passes through.
awk=$(command -v mawk) || awk='awk'
# Brings files to the disk: these alone, where sync can.
settle() { sync "$@" 2>/dev/null || sync; }
# Whether the file of the line "SUM  FILE" has that sum; why not is said for the job $2 of `each`.
intact() {
  echo "$1" | sha256sum -c --status 2>"$j/e.$2"
  s=$?
  [ "$s" != 0 ] || return 0
  if [ "$s" -gt 128 ]; then
    echo "runbook: sha256sum was killed from outside ($((s - 128)))" >"$j/e.$2"
  else
    echo "runbook: ${1#*  } is not as it was dumped: its checksum is another" >"$j/e.$2"
  fi
  return 1
}
# Calls $2 with every line of the file $1, as many at once as there are jobs; what fails has said why in $j/e.N, and ends all. The
# names of its own begin with each_, since all names are of the whole script.
each() {
  each_list=$1 each_what=$2
  rm -rf "$j/claim" && mkdir "$j/claim" || exit 1
  kids=
  each_n=0
  while [ "$each_n" -lt "$jobs" ]; do
    each_n=$((each_n + 1))
    (
      trap - EXIT TERM INT HUP
      each_i=0
      while IFS= read -r each_line; do
        each_i=$((each_i + 1))
        mkdir "$j/claim/$each_i" 2>/dev/null || continue
        "$each_what" "$each_line" "$each_n" || {
          # The first that fails says why, and only then all ends.
          if mkdir "$j/claim/bad" 2>/dev/null; then
            cat "$j/e.$each_n" >&2
            kill -TERM $$
          fi
          exit 1
        }
      done <"$each_list"
    ) &
    kids="$kids $!"
  done
  await $kids
}
# Waits for all of those; whoever has failed has said why.
await() {
  bad=0
  for p in "$@"; do
    wait "$p"
    s=$?
    [ "$s" -le 128 ] || say "a part was killed from outside ($((s - 128)))"
    [ "$s" = 0 ] || bad=1
  done
  [ "$bad" = 0 ] || exit 1
}
