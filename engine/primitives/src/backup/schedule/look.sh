# Tells what schedules there are, and how they stand.
LC_ALL=C
TZ=UTC
export LC_ALL TZ
[ "$(id -u)" = 0 ] || { echo "Permission denied: schedules are seen by root" >&2; exit 66; }
for d in /etc/runbook/backup/*/; do
  [ -e "$d/about" ] || continue
  n=${d%/}
  n=${n##*/}
  u=runbook-backup-$n
  echo "schedule $n"
  echo "about $(cat "$d/about")"
  systemctl show "$u.timer" -p ActiveState,UnitFileState,NextElapseUSecRealtime,LastTriggerUSec
  systemctl show "$u.service" -p Result,ExecMainStatus,ActiveState,ExecMainExitTimestamp,ConditionResult,ConditionTimestamp | sed 's/^/service./'
  for f in service timer; do cmp -s "$d/$f" "/etc/systemd/system/$u.$f" || echo "drift $u.$f"; done
done
