//! Containers that run to their end, exactly once.

use std::time::Duration;

use super::*;
use crate::support::desk::Project;

fn lines(p: &Pair) -> Vec<String> {
    std::fs::read_to_string(p.a.volume("data").join("ran")).unwrap_or_default().lines().map(str::to_string).collect()
}

fn args(p: &Pair, action: &str, seconds: &str) -> (Arc<dyn runbook_core::primitive::Primitive>, Call) {
    let script = format!("echo {action} >>/data/ran; sleep {seconds}; echo to the log; echo $WORD >&2");
    let env = Value::Map(BTreeMap::from([("WORD".to_string(), Value::from("it's here"))]));
    p.bind("old", "docker", "run", vec!["base:1".into(), script.into(), options(&[("volumes", list(&["data:/data"])), ("env", env)])])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_once_however_often_the_controller_dies() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    let (mut found, mut begun) = (0, 0);
    for n in 0..8u64 {
        let action = format!("r1-{n}");
        let (run, call) = args(&p, &action, "0.3");
        let died = tokio::time::timeout(Duration::from_millis(30 + n * 70), run.act(&p.cx(&action), &call)).await.is_err();
        let out = match run.reconcile(&p.cx(&action), &call).await.unwrap() {
            Reconciled::Done(o) => {
                found += usize::from(died);
                o
            }
            Reconciled::NotStarted => {
                begun += 1;
                run.act(&p.cx(&action), &call).await.unwrap()
            }
            other => panic!("{other:?}"),
        };
        let r = out.value.as_record().unwrap();
        assert_eq!((r.str("stdout"), r.str("stderr")), ("to the log\n", "it's here\n"));
        assert_eq!(lines(&p).iter().filter(|l| **l == action).count(), 1, "{:?}", lines(&p));
    }
    println!("8 deaths: {found} found at work or done, {begun} not begun");
    assert!(found > 0 && lines(&p).len() == 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_does_not_disturb_it_and_failures_are_said() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    let (run, call) = args(&p, "r1-a", "2");
    let cx = p.cx("r1-a");
    let (out, ()) = tokio::join!(run.act(&cx, &call), async {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        p.old.cut();
    });
    assert_eq!(out.unwrap().value.as_record().unwrap().str("stdout"), "to the log\n");
    assert_eq!(lines(&p), ["r1-a"]);
    let run = async |action: &str, words: &[&str], more: &[(&str, Value)]| {
        let (run, call) = p.bind("old", "docker", "run", vec!["base:1".into(), list(words), options(more)]);
        run.act(&p.cx(action), &call).await
    };
    let e = run("r1-b", &["sh", "-c", "echo no such table >&2; exit 4"], &[]).await.unwrap_err();
    assert!(e.code == Code::COMMAND_FAILED && e.message.contains("ended with status 4: no such table"), "{e}");
    let e = run("r1-c", &["sleep", "60"], &[("timeout", "1s".into())]).await.unwrap_err();
    assert!(e.code == Code::COMMAND_TIMEOUT && e.message == "the container was killed after 1s", "{e}");
    let e = run("r1-d", &["/nonexistent"], &[]).await.unwrap_err();
    assert!(e.code == Code::COMMAND_FAILED && e.message.contains("/nonexistent` ended with status 127"), "{e}");
    let (none, call) = p.bind("old", "docker", "run", vec!["none:1".into()]);
    let e = none.act(&p.cx("r1-f"), &call).await.unwrap_err();
    assert!(e.code == Code::DOCKER_MISSING && e.hint.as_deref().unwrap().contains("copy_from"), "{e}");
    let big = run("r1-e", &["sh", "-c", "head -c 3000000 /dev/zero | busybox tr '\\0' x"], &[]).await.unwrap();
    let whole = big.value.as_record().unwrap().get("whole").as_map().unwrap()["stdout"].as_record().unwrap().clone();
    assert_eq!(whole.get("bytes"), &Value::Int(3_000_000));
}

#[test]
fn its_containers_are_gone_when_the_run_has_ended() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    let desk = Project::new(
        &p.inventory(),
        r#"step "Migrate" { log(docker("old").run("base:1", "echo migrated").stdout); }
           step "Fail" { if host("old").read("ls /srv").stdout == "" { throw "not yet"; } }"#,
    );
    desk.expect(&["run", "a.rhai", "--env", "test"], 1);
    assert_eq!(p.a.docker(&["ps", "-aq"]).lines().count(), 1, "what it left is kept as long as somebody may ask");
    std::fs::write(p.srv[0].path().join("go"), "").unwrap();
    desk.expect(&["resume"], 0);
    assert_eq!(p.a.docker(&["ps", "-aq"]), "");
    assert!(desk.expect(&["log"], 0).contains("migrated"));
}
