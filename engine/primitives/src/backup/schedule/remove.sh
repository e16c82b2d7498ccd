# Takes a schedule back. Set before: name, replace, former (1: the schedule that it replaced comes back).
umask 077
LC_ALL=C
export LC_ALL
base=/etc/runbook/backup
units=/etc/systemd/system
unit=runbook-backup-$name
now=$base/$name
[ "$(id -u)" = 0 ] || { echo "Permission denied: a schedule is taken back by root" >&2; exit 66; }
there=
if [ -d "$now" ] || [ -e "$units/$unit.timer" ]; then there=1; fi
if [ "$former" = 1 ] && [ -d "$base/.former.$name" ]; then there=1; fi
[ -n "$there" ] || { echo same; exit 0; }
drift=
if [ -d "$now" ]; then
  for u in service timer; do
    [ ! -e "$units/$unit.$u" ] || cmp -s "$now/$u" "$units/$unit.$u" || drift="$drift$unit.$u: $(diff "$now/$u" "$units/$unit.$u" | sed -n 's/^> \(.*\)/now "\1"/p' | head -n 6 | tr '\n' ' ')
"
  done
elif [ ! -d "$base/.former.$name" ]; then
  drift="$units/$unit.timer is there, and no schedule of runbook"
fi
if [ -n "$drift" ] && [ "$replace" != 1 ]; then
  printf '%s\n' "$drift" >&2
  exit 68
fi
if [ "$former" = 1 ] && [ -d "$base/.former.$name" ]; then
  rm -rf "$now" && mv "$base/.former.$name" "$now" || exit 1
  for u in service timer; do
    (umask 022 && cat "$now/$u" >"$units/.$unit.$u") && mv -f "$units/.$unit.$u" "$units/$unit.$u" || exit 1
  done
  systemctl daemon-reload && systemctl enable --quiet "$unit.timer" && systemctl restart "$unit.timer" || exit 69
  echo former
  exit 0
fi
# One that is at work ends in order: only its timer is stopped.
systemctl disable --quiet --now "$unit.timer" 2>/dev/null
rm -f "$units/$unit.timer" "$units/$unit.service"
rm -rf "$units/$unit.timer.d" "$units/$unit.service.d" "/var/lib/systemd/timers/stamp-$unit.timer"
systemctl daemon-reload || exit 69
systemctl reset-failed "$unit.service" 2>/dev/null
rm -rf "$now" "$base/.former.$name" "$base/.new.$name"
echo changed
