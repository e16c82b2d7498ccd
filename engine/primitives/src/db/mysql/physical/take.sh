# Streams a copy of a whole server to standard output. Set before: d (its data folder), tool, how (--defaults-file or
# --defaults-extra-file), tag. $RUNBOOK_CLIENT has the options, with the login.
umask 077
exec 4<&0
w=$(mktemp -d) || exit 1
r='' g=''
ended() {
  s=$?
  trap - EXIT
  [ -z "$g" ] || kill "$g" 2>/dev/null
  [ -z "$r" ] || kill "$r" 2>/dev/null
  rm -rf "$w"
  exit "$s"
}
trap ended EXIT
trap 'exit 143' TERM INT HUP
cat >"$w/login" <<RUNBOOK
$RUNBOOK_CLIENT
RUNBOOK
unset RUNBOOK_CLIENT
# The file has no name any more when the tool reads it, which it does more than once.
exec 3<"$w/login" && rm "$w/login" || exit 1
RUNBOOK_COPY=$tag "$tool" "$how=/dev/fd/3" --backup --stream=xbstream --datadir="$d" --target-dir="$w" </dev/null 2>"$w/log" 4<&- &
r=$!
# Standard input ends when the controller is gone or has given up: nothing must hold locks on the server then.
(cat <&4 && kill "$r") >/dev/null 2>&1 3<&- &
g=$!
wait "$r"
s=$?
r=''
if [ "$s" != 0 ] || ! tail -n 1 "$w/log" | grep -q 'completed OK'; then
  grep -iE 'error|fatal|failed|denied|cannot' "$w/log" | tail -n 4 >&2
  [ "$s" != 0 ] || exit 1
fi
exit "$s"
