# Shows the output of the command claimed in the current folder from the given offsets, waits for its end, says how it ended. Stands
# at the end of start.sh and of attach.sh.
# n marker  o, e bytes of output and errors known  k its runner, when that is our child; else q, b, t its process, boot id, start time
why=process
lives() {
  [ -s status ] && return 1
  if [ -n "$k" ]; then
    kill -0 "$k"
    return
  fi
  c=
  read -r c </proc/sys/kernel/random/boot_id
  if [ "$c" != "$b" ]; then why=boot; return 1; fi
  if [ -r /proc/self/stat ]; then
    [ -r "/proc/$q/stat" ] || return 1
    c=
    read -r c <"/proc/$q/stat" || return 1
    set -f
    set -- ${c##*")" }
    set +f
    # A zombie has ended; another start time is another process.
    [ "$1" != Z ] && [ "${20}" = "$t" ]
  else
    kill -0 "$q"
  fi
}
exec 3<out 4<err
if [ -n "$k" ]; then
  # `wait` returns at once when the command ends; the signal makes it return for new output too.
  trap : USR1
  (trap - USR1; while sleep .2 2>/dev/null || sleep 1; do kill -USR1 $$ || exit; done) </dev/null >/dev/null 2>&1 3<&- 4<&- &
  w=$!
  trap "kill $w 2>/dev/null" 0
fi
f=
if [ "$o" != 0 ]; then tail -c +$((o+1)) <&3 || exit 255; fi
if [ "$e" != 0 ]; then tail -c +$((e+1)) <&4 >&2 || exit 255; fi
while :; do
  # First whether it ended, then what it wrote: the other way round, its last words could be missed.
  lives 2>/dev/null || f=1
  # A failing write means that nobody listens any more; the command goes on without us.
  if [ -s out ]; then cat <&3 || exit 255; fi
  if [ -s err ]; then cat <&4 >&2 || exit 255; fi
  [ -z "$f" ] || break
  if [ -n "$k" ]; then wait "$k"; else sleep .1 2>/dev/null || sleep 1; fi
done
if [ -s status ]; then
  read -r e c <status
  f=; if [ -e raised ]; then f=raised; fi
  g=; if [ -e ended ]; then read -r g <ended; fi
  echo "$n end $e ${f:--} ${g:--}" >&2
else
  echo "$n gone $why" >&2
fi
exit 0
