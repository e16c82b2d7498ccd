# Claims an action, starts its command apart from this session, and shows its output until it ends.
# Standard input: the script, a marker line, then $4 bytes for the command alone (password, environment, standard input).
# $1 marker  $2 run  $3 action  $4 length of the private input  $5 run.sh  $6 reader.sh  $7 sudo: nothing, n or s  $8 limit in s or 0
# $9 again: a claim of which nothing more can be known is set aside, since the operator wants the command to run again
n=$1 r=$HOME/.runbook/$2 p=$PWD b=${IFS#??} s= u=$(umask)
umask 077
no() { echo "$n no $*"; exit 0; }
while IFS= read -r l && [ "$l" != "$n" ]; do s=$s$l$b; done
# The connection was lost before the script was whole: nothing has begun.
[ "$l" = "$n" ] || exit 255
if [ "$9" = again ]; then mv "$r/$3" "$r/$3.old.$n" 2>/dev/null; fi
if ! mkdir "$r/$3" 2>/dev/null; then
  mkdir -p "$r" 2>/dev/null
  if ! c=$(mkdir "$r/$3" 2>&1); then
    if [ -d "$r/$3" ]; then echo "$n taken"; exit 0; fi
    no "$c"
  fi
fi
cd "$r/$3" || no "cannot enter $r/$3"
drop() { cd "$r"; rm -rf "$r/$3"; }
{ printf "%s" "$s" >script && : >out && : >err; } 2>/dev/null || { drop; no "cannot write in $r (is the disk full?)"; }
if [ "$4" -gt 0 ]; then
  # A file without a name: secrets are in memory where there is /dev/shm, and nowhere after the command.
  f=/dev/shm/.runbook-$n
  (set -C; : >"$f") 2>/dev/null || f=input
  exec 5>"$f" 6<"$f" 7<"$f"
  rm -f "$f"
  cat >&5
  c=$(wc -c <&7)
  # Cut short: the command must not see half of its input.
  [ "$c" -eq "$4" ] || { drop; exit 255; }
  exec 5>&- 7<&-
else
  exec 6</dev/null
fi
[ "$8" = 0 ] || echo $(( $(date +%s) + $8 )) >deadline
if command -v setsid >/dev/null 2>&1; then w=setsid; else w=; trap "" HUP; fi
$w sh -c "$5" runbook "$n" "$p" "$4" "$7" "$6" "$u" <&6 >>out 2>>err &
k=$!
exec 6<&- 3<out 4<err
echo "$n ok"
echo "$n ok" >&2
trap : USR1
(trap - USR1; while sleep .2 2>/dev/null || sleep 1; do kill -USR1 $$ || exit; done) </dev/null >/dev/null 2>&1 3<&- 4<&- &
t=$!
trap "kill $t 2>/dev/null" 0
while :; do
  wait $k
  f=
  # First whether it ended, then what it wrote: the other way round, its last words could be missed.
  if [ -s status ] || ! kill -0 $k 2>/dev/null; then f=1; fi
  # A failing write means that nobody listens any more; the command goes on without us.
  if [ -s out ]; then cat <&3 || exit 255; fi
  if [ -s err ]; then cat <&4 >&2 || exit 255; fi
  [ -z "$f" ] || break
done
if [ -s status ]; then
  read -r e <status
  f=; if [ -e raised ]; then f=raised; fi
  g=; if [ -e ended ]; then read -r g <ended; fi
  echo "$n end $e ${f:--} ${g:--}" >&2
else
  echo "$n gone process" >&2
fi
exit 0
