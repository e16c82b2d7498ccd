# Runs the claimed command in a session of its own and keeps its exit status.
# $1 marker  $2 login folder  $3 length of the private input  $4 nothing, n for sudo without a password, or method,user for raise.sh
# $5 reader.sh  $6 umask  $7 raise.sh  $8 code for the reader's terminal
# A handler, not an ignored signal: commands must not inherit deafness. It lets the status be written when the group is ended.
trap : TERM INT
rb_n=$1 rb_p=$2 rb_i=$3 rb_m=$4 rb_r=$5 rb_u=$6 rb_q=$7 rb_t=$8 rb_d=$PWD rb_b= rb_x=
{ read -r rb_b </proc/sys/kernel/random/boot_id; } 2>/dev/null
{ read -r rb_x </proc/$$/stat; } 2>/dev/null
set -f
# shellcheck disable=SC2086
set -- ${rb_x##*")" }
rb_x=${20}
set +f
set --
# The second claim. Who cannot make it does not run: a controller has already decided that this one never started.
set -C
echo "$$ $rb_b $rb_x" >pid || exit 0
set +C
umask "$rb_u"
case $rb_m in
n) sudo -n -- sh -c "$rb_r" sh "$rb_n" "$rb_p" "$rb_d" 1 "$rb_t" ;;
# Another user cannot read this folder: the script comes by standard input as well, and the sign is left by us.
*,*) (cd "$rb_p" || exit 126; exec sh -c "$rb_q" sh "${rb_m%%,*}" "${rb_m#*,}" "$rb_d/raised" "$rb_r" "$rb_n" "q$rb_d/raised" "$rb_t") ;;
*) if [ "$rb_i" = 0 ]; then
    (cd "$rb_p" || exit 126; exec sh "$rb_d/script")
  else
    sh -c "$rb_r" sh "$rb_n" "$rb_p" "$rb_d" "" "$rb_t"
  fi
  ;;
esac
rb_x=$?
umask 077
for rb_i in 1 2 5 10; do
  { echo $rb_x >status; } 2>/dev/null && break
  # On a full disk the slot's room is used: it is written in place, and a name in a folder changes without new room.
  { echo $rb_x 1<> slot && mv slot status; } 2>/dev/null && break
  sleep $rb_i
done
exit $rb_x
