# Runs commands that may be repeated, one after another: many of them share what a session costs. Each has a process of its own, and an
# output of its own, which ends when nobody holds it any more: what a command leaves behind never speaks in a later one's.
# $1 marker, by which this process is known  $2 command.sh
rb_y=$2 rb_h=$PWD rb_b=${IFS#??}
# It must not keep anybody from unmounting the login's folder.
cd /
while :; do
  # A request is a marker on a line, the text, and the marker.
  rb_n= rb_l= rb_s=
  while [ -z "$rb_n" ]; do IFS= read -r rb_n || exit 0; done
  while IFS= read -r rb_l && [ "$rb_l" != "$rb_n" ]; do rb_s=$rb_s$rb_l$rb_b; done
  # Half a script must never run.
  [ "$rb_l" = "$rb_n" ] || exit 255
  {
    cd "$rb_h" 2>/dev/null || :
    RB_S=$rb_s RB_N=$rb_n RB_P=$$ sh -c "$rb_y" </dev/null
    echo "${rb_n}e $?" >&2
  } | cat
  echo "${rb_n}e "
done
