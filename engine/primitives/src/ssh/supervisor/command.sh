# One command in a shell that stays (see shell.sh), as its own process.
rb_s=$RB_S
# So the controller knows that it has begun and whom to end, and that what came before is not the command's.
echo "$RB_N "
echo "$RB_N $RB_P" >&2
unset RB_S RB_N RB_P
eval "$rb_s"
