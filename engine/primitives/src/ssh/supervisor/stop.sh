# Ends a supervised command and everything in its process group: politely, and after five seconds not.
# $1 run  $2 action  $3 why
umask 077
cd "$HOME/.runbook/$1/$2" 2>/dev/null || exit 0
read -r q b t <pid || exit 0
[ -s status ] && exit 0
c=
read -r c </proc/sys/kernel/random/boot_id
[ "$c" = "$b" ] || exit 0
echo "$3" >ended
kill -s TERM -- "-$q" 2>/dev/null || kill -s TERM "$q" 2>/dev/null
i=0
while [ $i -lt 50 ] && [ ! -s status ]; do
  i=$((i+1))
  sleep .1 2>/dev/null || { sleep 1; i=$((i+9)); }
done
# The status first: whoever follows must not find the process gone and nothing said.
[ -s status ] || (set -C; echo 137 >status) 2>/dev/null
kill -s KILL -- "-$q" 2>/dev/null || kill -s KILL "$q" 2>/dev/null
exit 0
