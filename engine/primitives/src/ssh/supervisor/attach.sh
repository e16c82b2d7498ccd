# Says what became of a claimed command; follow.sh goes on from there.
# $1 marker  $2 run  $3 action  $4 bytes of output known  $5 bytes of errors known
# "absent WORD" is said only once the folder holds a `pid` of "void WORD": a request to start it that is still on its way finds it taken.
n=$1 r=$HOME/.runbook/$2 o=$4 e=$5 k=
umask 077
no() { echo "$n no $*"; exit 0; }
if ! cd "$r/$3" 2>/dev/null; then
  [ -n "$HOME" ] || no "the login has no HOME"
  c=
  [ -d "$HOME/.runbook" ] || c=$(mkdir "$HOME/.runbook" 2>&1) || [ -d "$HOME/.runbook" ] || no "$c"
  [ -d "$r" ] || c=$(mkdir "$r" 2>&1) || [ -d "$r" ] || no "$c"
  c=$(mkdir "$r/$3" 2>&1)
  cd "$r/$3" 2>/dev/null || no "$c"
fi
i=0
while [ ! -s pid ]; do
  # Nothing runs yet: who makes this file decides that nothing ever will.
  if (set -C; echo "void $n" >pid) 2>/dev/null; then
    echo "$n absent $n"
    exit 0
  fi
  i=$((i+1))
  if [ $i -gt 30 ]; then echo "$n ok -"; echo "$n ok" >&2; echo "$n gone start" >&2; exit 0; fi
  sleep .1 2>/dev/null || sleep 1
done
read -r q b t <pid
if [ "$q" = void ]; then echo "$n absent $b"; exit 0; fi
g=-
if [ -s deadline ]; then
  read -r g c <deadline
  # On the clock that nobody sets, where there is one; it goes on while the host sleeps.
  if [ "$c" = up ]; then i=0; read -r i c </proc/uptime; i=${i%%.*}; else i=$(date +%s); fi
  g=$((g - i))
fi
echo "$n ok $g" || exit 255
echo "$n ok" >&2 || exit 255
