# Says what became of a claimed command; follow.sh goes on from there.
# $1 marker  $2 run  $3 action  $4 bytes of output known  $5 bytes of errors known
n=$1 r=$HOME/.runbook/$2 o=$4 e=$5 k=
umask 077
cd "$r/$3" 2>/dev/null || { echo "$n absent"; exit 0; }
i=0
while [ ! -s pid ]; do
  # Nothing runs yet: who makes this file decides that nothing ever will.
  if (set -C; echo void >pid) 2>/dev/null; then
    cd "$r" && mv "$3" "$3.void.$n"
    echo "$n absent"
    exit 0
  fi
  i=$((i+1))
  if [ $i -gt 30 ]; then echo "$n ok -"; echo "$n ok" >&2; echo "$n gone start" >&2; exit 0; fi
  sleep .1 2>/dev/null || sleep 1
done
read -r q b t <pid
if [ "$q" = void ]; then echo "$n absent"; exit 0; fi
g=-
if [ -s deadline ]; then
  read -r g c <deadline
  # On the clock that nobody sets, where there is one; it goes on while the host sleeps.
  if [ "$c" = up ]; then i=0; read -r i c </proc/uptime; i=${i%%.*}; else i=$(date +%s); fi
  g=$((g - i))
fi
echo "$n ok $g" || exit 255
echo "$n ok" >&2 || exit 255
