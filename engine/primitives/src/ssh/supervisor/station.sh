# Takes commands, one after another, and starts each apart from this session: many commands share what a session costs. It stands in the
# run's folder, and claims are made there whatever its name is now: once that folder has been removed, with the run, no request that
# comes late begins anything. Requests are sent only after the first line that is said here.
# $1 marker  $2 run  $3 run.sh  $4 reader.sh  $5 look, or nothing
h=$3 y=$4 nl=${IFS#??} w=
exec 3<&0
bye() { if [ -n "$w" ]; then kill "$w" 2>/dev/null; fi; }
trap bye 0
# Handlers, not ignored signals, which a command would inherit.
trap : USR1
trap x=1 USR2
if command -v setsid >/dev/null 2>&1; then z=setsid; else z=; trap "" HUP; fi
echo "$n hi" || exit 255
echo "$n hi" >&2 || exit 255
while :; do
  # A request is a word and a marker for what is said about it, on one line; what remains of earlier ones is passed over.
  l=
  until [ "${l%% *}" = run ] || [ "${l%% *}" = clean ]; do
    IFS= read -r l || exit 0
  done
  n=${l#* }
  if [ "${l%% *}" = clean ]; then
    # Never another folder that has the name by now: a request that comes late would take its claims away.
    if [ "$r" -ef . ]; then
      cd "$HOME" && c=$(rm -rf -- "$r" 2>&1) || no "$c"
      rmdir "$HOME/.runbook" 2>/dev/null
    fi
    echo "$n clean"
    exit 0
  fi
  # a action  j marker of the input  i length of the private input  m how privileges are raised, as run.sh takes it  t limit in s or 0
  # g again: a claim of which nothing more can be known is set aside, since the operator wants the command to run again; another word:
  # so is the claim that was made void under this word, which a request of an earlier try cannot know
  # q raise.sh or nothing  v code for the reader's terminal or nothing; then the script, j, and the private input
  for l in a j i m t g q v; do
    IFS= read -r "$l" || exit 255
  done
  s= a=./$a
  while IFS= read -r l && [ "$l" != "$j" ]; do s=$s$l$nl; done
  # The connection was lost before the script was whole: nothing has begun.
  [ "$l" = "$j" ] || exit 255
  if [ "$i" != 0 ]; then
    # A file without a name: secrets are in memory where there is /dev/shm, and nowhere after the command.
    f=/dev/shm/.runbook-$j
    (set -C; : >"$f") 2>/dev/null || { f=./in-$j; (: >"$f") 2>/dev/null; } || no "cannot write in $r (is the disk full?)"
    exec 5>"$f" 6<"$f" 7<"$f"
    rm -f "$f"
    c=$(head -c "$i" 2>&1 >&5) || no "its input cannot be kept: $c"
    c=$(wc -c <&7)
    # Cut short: the command must not see half of its input.
    [ "$c" -eq "$i" ] || exit 255
    exec 5>&- 7<&-
  else
    exec 6</dev/null
  fi
  if [ -n "$g" ]; then
    c= f=
    if [ -s "$a/pid" ]; then read -r f c <"$a/pid"; fi
    case "$g $f" in again*|"$c void") mv "$a" "$a.old.$j" 2>/dev/null ;; esac
  fi
  if ! mkdir "$a" 2>/dev/null; then
    c=$(mkdir "$a" 2>&1) || if [ -d "$a" ]; then echo "$n taken"; exit 0; else no "$c"; fi
  fi
  x=
  (
    trap - 0 USR1 USR2
    # Whatever was made here before is of another claim, which has taken the name of this one.
    set -C
    cd "$a" && true >script || { kill -USR2 $$; exit 1; }
    # The slot keeps room for the exit status on a disk that the command fills.
    printf "%s" "$s" >|script && echo "             " >slot || { rm -f script slot; rmdir ".$a"; kill -USR2 $$; exit 1; }
    if [ "$t" != 0 ]; then
      # On the clock that nobody sets, where there is one; it goes on while the host sleeps.
      c=
      read -r c l </proc/uptime
      if [ -n "$c" ]; then echo $((${c%%.*} + t)) up >deadline; else echo $(($(date +%s) + t)) >deadline; fi
    fi
    exec $z sh -c "$h" runbook "$j" "$p" "$i" "$m" "$y" "$u" "$q" "$v" <&6 >>out 2>>err 3<&- 6<&-
  ) 2>/dev/null &
  k=$! o=0 e=0
  exec 6<&-
  echo "$n ok" || exit 255
  echo "$n ok" >&2 || exit 255
  # `wait` returns at once when the command ends. For what it prints before, the controller asks when it takes longer: from then on a
  # signal makes `wait` return again and again.
  (
    trap - 0 USR1 USR2
    read -r l
    while kill -USR1 $$; do sleep .2 || sleep 1; done
  ) <&3 >/dev/null 2>&1 3<&- &
  w=$!
  follow
done
