# Says what became of a claimed command; shows its output from the given offsets, waits for its end.
# $1 marker  $2 run  $3 action  $4 bytes of output known  $5 bytes of errors known
n=$1 r=$HOME/.runbook/$2
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
if [ -s deadline ]; then read -r g <deadline; g=$((g - $(date +%s))); fi
echo "$n ok $g"
echo "$n ok" >&2
why=
lives() {
  [ -s status ] && return 1
  c=
  read -r c </proc/sys/kernel/random/boot_id
  if [ "$c" != "$b" ]; then why=boot; return 1; fi
  why=process
  if [ -r /proc/self/stat ]; then
    [ -r "/proc/$q/stat" ] || return 1
    c=
    read -r c <"/proc/$q/stat" || return 1
    set -f
    set -- ${c##*) }
    set +f
    # A zombie has ended; another start time is another process.
    [ "$1" != Z ] && [ "${20}" = "$t" ]
  else
    kill -0 "$q" 2>/dev/null
  fi
}
exec 3<out 4<err
o=$4 e=$5
f=; lives 2>/dev/null || f=1
tail -c +$((o+1)) <&3 || exit 255
tail -c +$((e+1)) <&4 >&2 || exit 255
while [ -z "$f" ]; do
  sleep .1 2>/dev/null || sleep 1
  lives 2>/dev/null || f=1
  if [ -s out ]; then cat <&3 || exit 255; fi
  if [ -s err ]; then cat <&4 >&2 || exit 255; fi
done
if [ -s status ]; then
  read -r e <status
  f=; if [ -e raised ]; then f=raised; fi
  g=; if [ -e ended ]; then read -r g <ended; fi
  echo "$n end $e ${f:--} ${g:--}" >&2
else
  echo "$n gone $why" >&2
fi
exit 0
