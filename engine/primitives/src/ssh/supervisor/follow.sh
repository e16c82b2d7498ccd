# Shows what a claimed command prints, waits for its end, says how it ended. Used by station.sh and by attach.sh, in the run's folder.
# n marker  a action  o, e bytes of output and errors known  k its runner, when that is our child; else q, b, t its process, boot id, start time
# w a helper that wakes us, or nothing  x whether the runner could not make its files
lives() {
  [ -s "$a/status" ] && return 1
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
    # From here on the function's own parameters are the words of that line.
    # shellcheck disable=SC2086
    set -- ${c##*")" }
    set +f
    # A zombie has ended; another start time is another process.
    [ "$1" != Z ] && [ "${20}" = "$t" ]
  else
    kill -0 "$q"
  fi
}
# A failing write means that nobody listens any more; the command goes on without us.
show() {
  if [ -z "$d" ]; then
    # The runner makes it after the other.
    [ -e "$a/err" ] || return 0
    exec 8<"$a/out" 9<"$a/err"
    d=1
    if [ "$o" != 0 ]; then tail -c +$((o+1)) <&8 || exit 255; fi
    if [ "$e" != 0 ]; then tail -c +$((e+1)) <&9 >&2 || exit 255; fi
  fi
  if [ -s "$a/out" ]; then cat <&8 || exit 255; fi
  if [ -s "$a/err" ]; then cat <&9 >&2 || exit 255; fi
}
follow() {
  d= f= why=process
  while :; do
    # First whether it ended, then what it wrote: the other way round, its last words could be missed.
    lives 2>/dev/null || f=1
    show
    [ -z "$f" ] || break
    if [ -n "$k" ]; then wait "$k" 2>/dev/null; else sleep .1 2>/dev/null || sleep 1; fi
  done
  if [ -n "$w" ]; then
    # Not TERM, which a shell that has just forked may miss (mksh): it would wait for ever.
    { kill -s KILL "$w"; wait "$w"; } 2>/dev/null
    w=
  fi
  if [ -s "$a/status" ]; then
    read -r s c <"$a/status"
    f=-
    if [ -e "$a/raised" ]; then f=raised; fi
    g=-
    if [ -e "$a/ended" ]; then read -r g c <"$a/ended"; fi
    c="end $s $f $g"
  elif [ -n "$x" ]; then
    c="no cannot write in $r (is the disk full?)"
  else
    c="gone $why"
  fi
  if [ -n "$d" ]; then exec 8<&- 9<&-; fi
  echo "$n end" || exit 255
  echo "$n $c" >&2 || exit 255
}
