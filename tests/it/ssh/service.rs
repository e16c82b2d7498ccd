//! Services, against a `systemctl` that keeps its state in files (systemd itself does not run in a test).

use runbook_core::{Code, Value};

use super::{Bench, failure, field};

const SYSTEMCTL: &str = r#"#!/bin/sh
d=$HOME/units; u=$2
case $1 in
is-active) [ -e "$d/$u.active" ] && echo active && exit 0; echo inactive; exit 3 ;;
is-enabled) [ -e "$d/$u.enabled" ] && echo enabled && exit 0; echo disabled; exit 1 ;;
start|restart) echo "$1" >>"$d/log"; [ -e "$d/$u.broken" ] && { echo "Job for $u failed." >&2; exit 1; }; [ -e "$d/$u.dies" ] || : >"$d/$u.active" ;;
stop) echo stop >>"$d/log"; rm -f "$d/$u.active" ;;
reload) echo reload >>"$d/log" ;;
enable) : >"$d/$u.enabled" ;;
disable) rm -f "$d/$u.enabled" ;;
status) echo "$u: main process exited" ;;
*) exit 64 ;;
esac
"#;

#[tokio::test(flavor = "multi_thread")]
async fn services_are_brought_to_a_state() {
    use std::os::unix::fs::PermissionsExt as _;
    let bin = tempfile::tempdir().unwrap();
    let Some(b) = Bench::new(&format!("SetEnv PATH={}:/usr/bin:/bin", bin.path().display())) else { return };
    std::fs::write(bin.path().join("systemctl"), SYSTEMCTL).unwrap();
    std::fs::set_permissions(bin.path().join("systemctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    b.write("units/log", "");
    let unit = |name: &str| b.pure(Some("Host"), "service", Some(b.handle()), vec![name.into()]).unwrap().as_record().unwrap().clone();
    let cx = b.cx("a");
    let go = |name: &'static str, verb: &'static str| b.act_on(&cx, unit(name), verb, vec![]);
    for (verb, changed) in [
        ("start", true),
        ("start", false),
        ("restart", true),
        ("reload", true),
        ("stop", true),
        ("stop", false),
        ("enable", true),
        ("enable", false),
    ] {
        let o = go("shop", verb).await.unwrap();
        assert_eq!(o.changed, Some(changed), "{verb}");
        assert_eq!(o.note.is_some(), !changed);
    }
    assert_eq!(b.read("units/log"), "start\nrestart\nreload\nstop\n");
    let o = go("shop", "status").await.unwrap();
    assert_eq!((field(&o, "active"), field(&o, "enabled"), field(&o, "raw")), (false.into(), true.into(), "inactive enabled".into()));
    assert_eq!(go("shop", "disable").await.unwrap().changed, Some(true));
    assert_eq!(field(&go("shop", "status").await.unwrap(), "enabled"), Value::Bool(false));
    b.write("units/bad.broken", "");
    let e = failure(go("bad", "start").await, Code::SERVICE_FAILED);
    assert_eq!(e.message, "bad cannot be made to start: bad: main process exited");
    b.write("units/brief.dies", "");
    let e = failure(go("brief", "start").await, Code::SERVICE_FAILED);
    assert!(e.message.ends_with("afterwards it is inactive"), "{e}");
}
