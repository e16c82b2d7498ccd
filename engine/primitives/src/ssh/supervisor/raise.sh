# Raises privileges where that takes more than a word before the command. A password is the first line of standard input, for sudo the
# first two; what follows is the command's own.
# $1 method: sudo, doas or su; with p behind it there is a password; with t sudo gets a terminal  $2 user  $3 file to make as a sign
# $4 reader.sh  $5 marker  $6 flags for the reader  $7 code for the reader's terminal
# RB_T and RB_C are set before: the command for su, and the command for script.
rb_m=$1 rb_f=$3 rb_p= rb_o= rb_l= rb_n= RB_U=$2 RB_R=$4 RB_N=$5 RB_Q=$6 RB_Y=$7
export RB_U RB_R RB_N RB_Q RB_Y RB_T
set -- sh -c "$RB_R" sh "$RB_N" "" "" "$RB_Q" "$RB_Y"
case $rb_m in
# First alone, with nothing more to read: a wrong password counts once against the login, and not three times.
sudop) IFS= read -r rb_p || exit 255
  { printf %s "$rb_p"; echo; } | sudo -k -S -p "" -u "$RB_U" -- sh -c : || exit 1
  rb_p=
  if [ -n "$rb_f" ]; then : >"$rb_f"; fi
  exec sudo -k -S -p "" -u "$RB_U" -- "$@"
  ;;
sudo | doas) if [ -n "$rb_f" ]; then
    "$rb_m" -n -u "$RB_U" -- sh -c : || exit 1
    : >"$rb_f"
  fi
  exec "$rb_m" -n -u "$RB_U" -- "$@"
  ;;
su) if [ -n "$rb_f" ]; then
    su -s /bin/sh -c : -- "$RB_U" </dev/null || exit 1
    : >"$rb_f"
  fi
  exec su -s /bin/sh -c "$RB_T" -- "$RB_U"
  ;;
esac
# A terminal is wanted. script(1) makes one for the password alone: the command's own streams stay as they are.
case $rb_m in
*p*) IFS= read -r rb_p || exit 255 ;;
esac
command -v script >/dev/null 2>&1 || { echo "runbook: script is missing" >&2; exit 127; }
rb_d=$(mktemp -d "${TMPDIR:-/tmp}/.runbook.XXXXXXXX") && mkfifo "$rb_d/i" "$rb_d/o" || exit 126
RB_T="$RB_T <&3 >&4 2>&5 3<&- 4>&- 5>&-"
exec 3<&0 4>&1 5>&2
SHELL=/bin/sh script -q -e -c "$RB_C" /dev/null <"$rb_d/i" >"$rb_d/o" 2>&1 &
rb_k=$!
exec 6>"$rb_d/i" 7<"$rb_d/o" 0</dev/null 1>&2
rm -r "$rb_d"
while rb_l=$(dd bs=1024 count=1 <&7 2>/dev/null) && [ -n "$rb_l" ]; do
  rb_o=$rb_o$rb_l
  case $rb_o in
  # Asked again: the password is wrong, and a second try would count as well.
  *: | *:" ") if [ -n "$rb_n" ]; then
      kill $rb_k
      rb_o="incorrect password"
      break
    fi
    rb_n=1 rb_o=
    (printf %s "$rb_p"; echo) >&6
    rb_p=
    ;;
  esac
done
wait $rb_k
rb_x=$?
case $rb_o in
*[a-z]*) { printf %s "$rb_o"; echo; } >&5 ;;
*) if [ -n "$rb_f" ] && [ "$RB_U" != root ]; then : >"$rb_f"; fi ;;
esac
exit $rb_x
