# Enters the run's folder, which it makes when it is missing. Stands at the beginning of station.sh and of attach.sh.
# $1 marker  $2 run  $5 look: the folder is not made
n=$1 r=$HOME/.runbook/$2 p=$PWD u=$(umask) c=
umask 077
no() { echo "$n no $*"; exit 0; }
if ! cd "$r" 2>/dev/null; then
  if [ "$5" = look ] && [ ! -d "$r" ]; then echo "$n none"; exit 0; fi
  [ -n "$HOME" ] || no "the login has no HOME"
  # Never the home folder itself: one that is missing must not be made.
  [ -d "$HOME/.runbook" ] || c=$(mkdir "$HOME/.runbook" 2>&1) || [ -d "$HOME/.runbook" ] || no "$c"
  [ -d "$r" ] || c=$(mkdir "$r" 2>&1) || [ -d "$r" ] || no "$c"
  cd "$r" 2>/dev/null || no "cannot enter $r"
fi
