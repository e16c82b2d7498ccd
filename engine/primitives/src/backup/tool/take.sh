# Takes a snapshot. Set before: the functions of a tool and what its `attempt` needs, tries (how often files may change), accept (1: once is
# enough); the paths as positional parameters. Prints "told LINE" and "made ID".
for p; do
  # Tools leave out what is not there, and some say that all is well.
  [ -e "$p" ] || [ -L "$p" ] || { printf '%s: there is no such file\n' "$p" >&2; exit 66; }
done
t=$(mktemp -d) || exit 1
trap 'rm -rf "$t"' EXIT
trap 'exit 143' TERM INT HUP
n=0
while :; do
  n=$((n + 1))
  : >"$t/which" || exit 1
  told=
  attempt "$@" || exit
  [ -s "$t/which" ] || break
  if [ "$accept" = 1 ]; then
    head -n 20 "$t/which" | sed 's/^/changed /'
    break
  fi
  drop "$id"
  if [ "$n" = "$tries" ]; then
    head -n 20 "$t/which" | sed 's/^/changed /'
    exit 75
  fi
done
[ -z "$told" ] || printf 'told %s\n' "$told"
echo "made $id"
