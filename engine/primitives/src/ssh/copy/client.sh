# Prepares the side of a transfer that calls the other one: a folder with the list, the way to the other side, and what it would ask for.
# Environment: rb_run  rb_tag  rb_ssh text of the script by which the other side is called  rb_known known_hosts (empty: no key is made)
# rb_record rsync and its options, quoted, for the list of what it would start on the other side (empty: nothing is recorded)
# Standard input: the list.
umask 077
d=$HOME/.runbook/$rb_run/copy-$rb_tag-client
case $d in *[\"\'\\]*) echo "the home folder has a quote in its name" >&2; exit 98 ;; esac
rm -rf -- "$d"
mkdir -p -- "$d" && cat >"$d/list" && printf '%s\n' "$rb_ssh" >"$d/ssh" || exit 1
: >"$d/args"
if [ -n "$rb_record" ]; then
  printf '%s\n' 'shift; printf "%s\n" "$@" >"${0%/*}/args"; exit 1' >"$d/record" && : >"$d/empty" || exit 1
  (cd -- "$d" && eval "$rb_record") >/dev/null 2>&1 </dev/null
fi
if [ -n "$rb_known" ]; then
  printf '%s\n' "$rb_known" >"$d/known_hosts" || exit 1
  ssh-keygen -q -t ed25519 -N '' -C '' -f "$d/key" </dev/null >&2 || exit 98
fi
printf '%s\n' "$d"
if [ -f "$d/key.pub" ]; then cut -d ' ' -f 1,2 "$d/key.pub"; else echo -; fi
cat "$d/args"
