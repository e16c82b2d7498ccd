# Takes the environment (and for a plain command the script too) from standard input, where `ps` does not show it; what follows on
# standard input is the command's own.
# $1 marker line  $2 working folder or nothing  $3 claim folder or nothing  $4 not empty: leave a sign that sudo let us in; q: say nothing,
# and make the file behind it as the sign  $5 code that runs the command on a terminal, when it is to have one
unset RB_U RB_R RB_N RB_Q RB_Y RB_T
rb_n=$1 rb_d=$3 rb_t=$5 rb_b=${IFS#??} rb_s=
# Before the first marker stands at most a password that sudo did not ask for.
while IFS= read -r rb_l && [ "$rb_l" != "$rb_n" ]; do :; done
while IFS= read -r rb_l && [ "$rb_l" != "$rb_n" ]; do rb_s=$rb_s$rb_l$rb_b; done
# Half a script must never run.
[ "$rb_l" = "$rb_n" ] || exit 255
case $4 in
q*) if [ -n "${4#q}" ]; then (: >"${4#q}") 2>/dev/null; fi ;;
*) if [ -z "$rb_d" ]; then
  # So the controller knows that we were let in and whom to end, and that what came before is not the command's.
  echo "$rb_n "
  echo "$rb_n $$" >&2
elif [ -n "$4" ]; then
  : >"$rb_d/raised"
fi ;;
esac
if [ -n "$2" ]; then
  cd "$2" || exit 126
else
  # Another user may not be allowed into the login's folder.
  cd . 2>/dev/null || cd /
fi
unset rb_n rb_b rb_l
set --
if [ -n "$rb_t" ]; then
  command -v script >/dev/null 2>&1 || { echo "runbook: script is missing" >&2; exit 127; }
  # An input that never ends: at its end script would type the end of input into the command.
  RB_D=$(mktemp -d "${TMPDIR:-/tmp}/.runbook.XXXXXXXX") && mkfifo "$RB_D/i" || exit 126
  exec 9<>"$RB_D/i"
  rm -r "$RB_D"
  RB_S=$rb_s RB_D=$rb_d SHELL=/bin/sh
  export RB_S RB_D SHELL
  exec script -q -e -c "$rb_t" /dev/null <&9 9<&-
fi
if [ -n "$rb_d" ]; then
  eval "$rb_s"
  . "$rb_d/script"
else
  eval "$rb_s"
fi
