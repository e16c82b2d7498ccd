# Sets up a schedule: its files, its units, its timer. Set before: name, repository (names), replace (1: what somebody else has changed goes), former (1: what was
# there is kept aside), at (expressions, a line each), calendar (whether they are only looked at), program, and functions `run_text`, `service_text`, `timer_text`, `about_text`
# that print what is to be there. In the environment: RB_ENV, RB_PASSWORD.
umask 077
LC_ALL=C
export LC_ALL
base=/etc/runbook/backup
units=/etc/systemd/system
unit=runbook-backup-$name
now=$base/$name new=$base/.new.$name
no() {
  s=$1
  shift
  printf '%s\n' "$*" >&2
  rm -rf "$new"
  exit "$s"
}
[ -d /run/systemd/system ] || no 64 "systemd does not run there"
command -v "$program" >/dev/null || no 127 "$program"
for a in systemctl systemd-analyze; do command -v "$a" >/dev/null || no 127 "$a"; done
printf '%s\n' "$at" | while IFS= read -r a; do
  said=$(systemd-analyze calendar -- "$a" 2>&1) || { printf '%s: %s\n' "$a" "$(printf '%s\n' "$said" | head -n 1)" >&2; exit 1; }
done || exit 65
[ "$(id -u)" = 0 ] || no 66 "Permission denied: a schedule is set up by root"
mkdir -p "$base" || exit 1
rm -rf "$new" && mkdir "$new" "$new/try" || exit 1
run_text >"$new/run"
printf '%s' "$RB_ENV" >"$new/env"
printf '%s' "$RB_PASSWORD" >"$new/password"
service_text >"$new/service"
timer_text >"$new/timer"
about_text >"$new/about"
unset RB_ENV RB_PASSWORD
cp "$new/service" "$new/try/$unit.service" && cp "$new/timer" "$new/try/$unit.timer" || exit 1
# Other units of the host may have faults of their own.
said=$(systemd-analyze verify "$new/try/$unit.service" "$new/try/$unit.timer" 2>&1)
said=$(printf '%s\n' "$said" | grep -F "$unit")
[ -z "$said" ] || no 67 "$said"
rm -rf "$new/try"
# What somebody else has done: named, and left alone.
drift=
note() { drift="$drift$1
"; }
differs() {
  # $1 what it is called  $2 as it was written  $3 as it is
  [ -e "$3" ] || return 0
  cmp -s "$2" "$3" && return 0
  note "$1: $(diff "$2" "$3" 2>/dev/null | sed -n -e 's/^> \(.*\)/now "\1"/p' -e 's/^< \(.*\)/was "\1"/p' | head -n 6 | tr '\n' ' ')"
}
if [ -d "$now" ]; then
  differs "$unit.service" "$now/service" "$units/$unit.service"
  differs "$unit.timer" "$now/timer" "$units/$unit.timer"
  is=$(cd "$now" && sha256sum run env password service timer about 2>/dev/null)
  [ "$is" = "$(cat "$now/sums")" ] || for f in run env password service timer about; do
    grep -qxF "$(cd "$now" && sha256sum "$f" 2>/dev/null)" "$now/sums" || note "$now/$f was changed"
  done
else
  for u in service timer; do
    [ ! -e "$units/$unit.$u" ] || note "$units/$unit.$u is there, and no schedule of runbook"
  done
fi
for u in service timer; do
  for f in "$units/$unit.$u.d"/*.conf; do
    [ ! -e "$f" ] || note "$f changes it"
  done
done
if [ -n "$drift" ] && [ "$replace" != 1 ]; then no 68 "$drift"; fi
(cd "$new" && sha256sum run env password service timer about >sums) || exit 1
same=1
for f in run env password service timer about; do cmp -s "$new/$f" "$now/$f" || same=; done
for u in service timer; do cmp -s "$new/$u" "$units/$unit.$u" || same=; done
[ -z "$drift" ] || same=
if [ -n "$same" ]; then
  rm -rf "$new"
  if systemctl is-enabled --quiet "$unit.timer" && systemctl is-active --quiet "$unit.timer"; then
    echo same
    exit 0
  fi
else
  if [ -d "$now" ]; then
    rm -rf "$base/.former.$name" && mv "$now" "$base/.former.$name" || exit 1
  fi
  mv "$new" "$now" || exit 1
  if [ "$replace" = 1 ]; then rm -rf "$units/$unit.service.d" "$units/$unit.timer.d"; fi
  for u in service timer; do
    # systemd reads them as anybody.
    (umask 022 && cat "$now/$u" >"$units/.$unit.$u") && mv -f "$units/.$unit.$u" "$units/$unit.$u" || exit 1
  done
fi
systemctl daemon-reload || exit 69
systemctl enable --quiet "$unit.timer" && systemctl restart "$unit.timer" || exit 69
echo changed
[ -z "$drift" ] || printf 'replaced %s\n' "$drift"
