# Takes a snapshot with restic. Set before: tag, host, tries (how often files may change), accept (1: once is enough); a function
# `backup` that calls restic with what to take and leave out; the paths as positional parameters. Prints "made ID".
for p; do
  # restic leaves out what is not there, says so, and ends with 0.
  [ -e "$p" ] || [ -L "$p" ] || { printf '%s: there is no such file\n' "$p" >&2; exit 66; }
done
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
trap 'exit 143' TERM INT HUP
# One that is not kept goes: the next of this action must be the only one.
drop() {
  for pause in 1 2 3 4 5; do
    restic forget "$1" >/dev/null 2>&1 && return
    sleep "$pause"
  done
  echo "the incomplete snapshot $1 could not be removed: restic forget $1" >&2
}
n=0
while :; do
  n=$((n + 1))
  : >"$t/begun" || exit 1
  { backup "$@"; echo "$?" >"$t/status"; } | awk -v out="$t/out" '/^\[/ { print; fflush() } { print >out }'
  read -r s <"$t/status" || exit 1
  id=$(sed -n 's/^snapshot \([0-9a-f]*\) saved.*$/\1/p' "$t/out")
  if [ "$s" != 0 ]; then
    [ -z "$id" ] || drop "$id"
    exit "$s"
  fi
  [ -n "$id" ] || { echo 'restic has not told the name of the snapshot' >&2; exit 1; }
  # What has changed since, of what was taken.
  find "$@" -type f -cnewer "$t/begun" 2>/dev/null | sed -e 's|^\./||' -e 's|^/*|/|' >"$t/changed"
  [ -s "$t/changed" ] || break
  restic ls --no-lock "$id" | grep -Fxf "$t/changed" | head -n 20 >"$t/which"
  [ -s "$t/which" ] || break
  if [ "$accept" = 1 ]; then
    sed 's/^/changed /' "$t/which"
    break
  fi
  drop "$id"
  if [ "$n" = "$tries" ]; then
    sed 's/^/changed /' "$t/which"
    exit 75
  fi
done
echo "made $id"
