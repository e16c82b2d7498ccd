# Adds the line of a transfer key to authorized_keys, or only removes lines: those of this run (and action), and those whose time is over.
# Environment: rb_do add|sweep  rb_run  rb_tag action id, empty for the whole run  rb_key public half  rb_serve what the key may do
# rb_raise prefix of the command, such as sudo
umask 077
rb_home=$HOME
f=$rb_home/.ssh/authorized_keys
case $rb_home in *[\"\'\\]*) echo "the home folder has a quote in its name" >&2; exit 98 ;; esac
mkdir -p -- "$rb_home/.runbook" || exit 1
lock=$rb_home/.runbook/keys.lock
i=0
until mkdir -- "$lock" 2>/dev/null; do
  i=$((i + 1))
  # Whoever holds it works for some milliseconds: a lock this old is that of a dead process.
  if [ $i -gt 50 ]; then rmdir -- "$lock" 2>/dev/null; i=0; fi
  sleep .1 2>/dev/null || sleep 1
done
trap 'rmdir -- "$lock" 2>/dev/null; [ "$rb_do" = add ] || rmdir -- "$rb_home/.runbook/$rb_run" "$rb_home/.runbook" 2>/dev/null; :' 0
if [ -L "$f" ]; then f=$(readlink -f -- "$f") || exit 1; fi
now=$(date +%s)
made=
drop=
if [ -f "$f" ]; then
  found=$(awk -v run="$rb_run" -v tag="$rb_tag" -v now="$now" '
    { i = index($0, " runbook-copy:"); if (!i) next
      split(substr($0, i + 14), p, ":")
      if ((p[1] == run && (tag == "" || p[2] == tag)) || p[3] + 0 < now) print NR "d " p[4] }' "$f") || exit 1
  drop=$(printf '%s\n' "$found" | cut -d ' ' -f 1)
  made=$(printf '%s\n' "$found" | cut -s -d ' ' -f 2 | sort -u | tr -d '\n')
fi
d=$rb_home/.runbook/$rb_run/copy-$rb_tag-server
if [ "$rb_do" = add ]; then
  mkdir -p -- "$d" && printf '%s\n' "$rb_serve" >"$d/serve" || exit 1
  if [ ! -d "$rb_home/.ssh" ]; then mkdir -- "$rb_home/.ssh" || exit 1; made=${made}d; fi
  if [ ! -f "$f" ]; then : >"$f" || exit 1; made=${made}f; fi
  # Logging in with it is over soon; sshd of 7.7 and later holds to that by itself.
  until=$((now + 900))
  expiry=
  v=$(ssh -V 2>&1 | sed -n 's/^OpenSSH_\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  if [ -n "$v" ] && { [ "${v% *}" -gt 7 ] || { [ "${v% *}" -eq 7 ] && [ "${v#* }" -ge 7 ]; }; }; then
    stamp=$(unset TZ; date -d "@$until" +%Y%m%d%H%M 2>/dev/null) && expiry=",expiry-time=\"$stamp\""
  fi
  line="restrict$expiry,command=\"${rb_raise}sh '$d/serve'\" $rb_key runbook-copy:$rb_run:$rb_tag:$until:$made"
elif [ -z "$found" ]; then
  line=
else
  line=
fi
if [ -f "$f" ] && { [ "$rb_do" = add ] || [ -n "$drop" ]; }; then
  n=$f.runbook-$$
  # At one stroke, and with the first line the new one: what was there stays as it was, to the last byte.
  cp -p -- "$f" "$n" && { if [ -n "$line" ]; then printf '%s\n' "$line"; fi; sed "$drop" "$f"; } >"$n" && mv -f -- "$n" "$f" || { rm -f -- "$n"; exit 1; }
  command -v restorecon >/dev/null 2>&1 && restorecon "$rb_home/.ssh" "$f" >/dev/null 2>&1
  if [ "$rb_do" != add ] && [ ! -s "$f" ]; then
    case $made in *f*) rm -f -- "$f" ;; esac
    case $made in *d*) rmdir -- "$rb_home/.ssh" 2>/dev/null ;; esac
  fi
fi
if [ "$rb_do" = sweep ]; then
  for d in "$rb_home/.runbook/$rb_run/copy-$rb_tag"*; do
    [ -d "$d" ] || continue
    p=$(cat "$d/pid" 2>/dev/null)
    # A transfer that was left behind; only a process that names this folder is one.
    if [ -n "$p" ] && grep -q -a -F "$d" "/proc/$p/cmdline" 2>/dev/null; then kill -s TERM "$p" 2>/dev/null; fi
    rm -rf -- "$d"
  done
fi
echo ok
