# Says what became of a claimed command, and follows it.
# $1 marker  $2 run  $3 action  $4 bytes of output known  $5 bytes of errors known
# "absent WORD" is said only once the folder holds a `pid` of "void WORD": a request to start it that is still on its way finds it taken.
a=./$3 o=$4 e=$5 k= w= x=
if [ ! -d "$a" ]; then c=$(mkdir "$a" 2>&1) || [ -d "$a" ] || no "$c"; fi
i=0
while [ ! -s "$a/pid" ]; do
  # Nothing runs yet: who makes this file decides that nothing ever will.
  if (set -C; echo "void $n" >"$a/pid") 2>/dev/null; then
    echo "$n absent $n"
    exit 0
  fi
  i=$((i+1))
  if [ $i -gt 30 ]; then echo "$n ok -"; echo "$n ok" >&2; echo "$n end"; echo "$n gone start" >&2; exit 0; fi
  sleep .1 2>/dev/null || sleep 1
done
read -r q b t <"$a/pid"
if [ "$q" = void ]; then echo "$n absent $b"; exit 0; fi
g=-
if [ -s "$a/deadline" ]; then
  read -r g c <"$a/deadline"
  # On the clock that nobody sets, where there is one; it goes on while the host sleeps.
  if [ "$c" = up ]; then i=0; read -r i c </proc/uptime; i=${i%%.*}; else i=$(date +%s); fi
  g=$((g - i))
fi
echo "$n ok $g" || exit 255
echo "$n ok" >&2 || exit 255
follow
exit 0
