# Takes the environment (and for a plain command the script too) from standard input, where `ps` does not show it; what follows on
# standard input is the command's own.
# $1 marker line  $2 working folder or nothing  $3 claim folder or nothing  $4 not empty: leave a sign that sudo let us in
rb_n=$1 rb_d=$3 rb_b=${IFS#??} rb_s=
# Before the first marker stands at most a password that sudo did not ask for.
while IFS= read -r rb_l && [ "$rb_l" != "$rb_n" ]; do :; done
while IFS= read -r rb_l && [ "$rb_l" != "$rb_n" ]; do rb_s=$rb_s$rb_l$rb_b; done
# Half a script must never run.
[ "$rb_l" = "$rb_n" ] || exit 255
if [ -z "$rb_d" ]; then
  # So the controller knows that we were let in and whom to end, and that what came before is not the command's.
  echo "$rb_n "
  echo "$rb_n $$" >&2
elif [ -n "$4" ]; then
  : >"$rb_d/raised"
fi
if [ -n "$2" ]; then cd "$2" || exit 126; fi
unset rb_n rb_b rb_l
set --
if [ -n "$rb_d" ]; then
  eval "$rb_s"
  . "$rb_d/script"
else
  eval "$rb_s"
fi
