# Claims an action and starts its command apart from this session; follow.sh goes on from there.
# Standard input: the script, a marker line, then $4 bytes for the command alone (password, environment, standard input).
# $1 marker  $2 run  $3 action  $4 length of the private input  $5 run.sh  $6 reader.sh  $7 how privileges are raised, as run.sh takes it  $8 limit in s or 0
# $9 again: a claim of which nothing more can be known is set aside, since the operator wants the command to run again; another word: so
# is the claim that was made void under this word, which a request of an earlier try cannot know
# $10 raise.sh or nothing  $11 code for the reader's terminal or nothing
n=$1 r=$HOME/.runbook/$2 p=$PWD b=${IFS#??} s= u=$(umask) o=0 e=0
umask 077
no() { echo "$n no $*"; exit 0; }
while IFS= read -r l && [ "$l" != "$n" ]; do s=$s$l$b; done
# The connection was lost before the script was whole: nothing has begun.
[ "$l" = "$n" ] || exit 255
if [ -n "$9" ]; then
  c= q=
  if [ -s "$r/$3/pid" ]; then read -r q c <"$r/$3/pid"; fi
  case "$9 $q" in again*|"$c void") mv "$r/$3" "$r/$3.old.$n" 2>/dev/null ;; esac
fi
if ! mkdir "$r/$3" 2>/dev/null; then
  [ -n "$HOME" ] || no "the login has no HOME"
  # Never the home folder itself: one that is missing must not be made.
  c=
  [ -d "$HOME/.runbook" ] || c=$(mkdir "$HOME/.runbook" 2>&1) || [ -d "$HOME/.runbook" ] || no "$c"
  [ -d "$r" ] || c=$(mkdir "$r" 2>&1) || [ -d "$r" ] || no "$c"
  if ! c=$(mkdir "$r/$3" 2>&1); then
    if [ -d "$r/$3" ]; then echo "$n taken"; exit 0; fi
    no "$c"
  fi
fi
cd "$r/$3" || no "cannot enter $r/$3"
# Only what is in this folder, whatever its name is now: the name may be another claim's by now. One that was made void stays.
drop() { rm -f script out err slot input; rmdir "$1" 2>/dev/null; }
# The slot keeps room for the exit status on a disk that the command fills.
{ printf "%s" "$s" >script && : >out && : >err && echo "             " >slot; } 2>/dev/null || { drop "$r/$3"; no "cannot write in $r (is the disk full?)"; }
if [ "$4" -gt 0 ]; then
  # A file without a name: secrets are in memory where there is /dev/shm, and nowhere after the command.
  f=/dev/shm/.runbook-$n
  (set -C; : >"$f") 2>/dev/null || f=input
  exec 5>"$f" 6<"$f" 7<"$f"
  rm -f "$f"
  cat >&5
  c=$(wc -c <&7)
  # Cut short: the command must not see half of its input.
  [ "$c" -eq "$4" ] || { drop "$r/$3"; exit 255; }
  exec 5>&- 7<&-
else
  exec 6</dev/null
fi
if [ "$8" != 0 ]; then
  # On the clock that nobody sets, where there is one; it goes on while the host sleeps.
  c=
  read -r c l </proc/uptime
  if [ -n "$c" ]; then echo $((${c%%.*} + $8)) up >deadline; else echo $(($(date +%s) + $8)) >deadline; fi
fi 2>/dev/null
if command -v setsid >/dev/null 2>&1; then w=setsid; else w=; trap "" HUP; fi
$w sh -c "$5" runbook "$n" "$p" "$4" "$7" "$6" "$u" "${10}" "${11}" <&6 >>out 2>>err &
k=$!
exec 6<&-
echo "$n ok" || exit 255
echo "$n ok" >&2 || exit 255
