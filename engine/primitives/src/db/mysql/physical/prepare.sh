# Makes the streamed copy a data folder that a server can start on. Set before: d (the data folder), tool, tag.
n=$d.runbook-new
if [ ! -e "$n/runbook-prepared" ]; then
  # Broken off in the middle, it cannot be done again on the same files.
  if [ -e "$n/runbook-preparing" ]; then
    say "an earlier preparation was broken off"
    exit 70
  fi
  : >"$n/runbook-preparing" && sync || exit 1
  RUNBOOK_COPY=$tag "$tool" --prepare --target-dir="$n" >"$j/log" 2>&1
  s=$?
  if [ "$s" != 0 ] || ! tail -n 1 "$j/log" | grep -q 'completed OK'; then
    grep -iE 'error|fatal|failed|cannot' "$j/log" | tail -n 4 | while IFS= read -r l; do say "$l"; done
    [ "$s" != 0 ] || s=1
    broken "$s" "$tool"
  fi
  # What the host's own packages and configuration have put there.
  for f in "$d"/*.flag "$d"/*_upgrade_info "$d"/*.pem; do
    [ ! -f "$f" ] || cp -p "$f" "$n/" || exit 1
  done
  chown -R "$(stat -c %u:%g "$d")" "$n" && chmod "$(stat -c %a "$d")" "$n" || exit 1
  if command -v restorecon >/dev/null; then restorecon -R "$n" || exit 1; fi
  mv "$n/runbook-preparing" "$n/runbook-prepared" && sync || exit 1
fi
