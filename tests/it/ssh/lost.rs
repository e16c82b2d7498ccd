//! Exactly once: lost connections, dead controllers, hosts that cannot know.

use std::time::{Duration, Instant};

use runbook_core::primitive::Reconciled;
use runbook_core::{Code, Value};
use runbook_primitives::ssh::{self, Exec};

use super::{Bench, field, options};
use crate::support::sshd::processes;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_loses_and_repeats_nothing() {
    let Some(b) = Bench::new("") else { return };
    let script = "echo once >>ran; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; echo e$i >&2; sleep .2; done; exit 5";
    let (o, ()) = tokio::join!(b.act("cut-1", "try_run", vec![script.into()]), async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(600)).await;
            b.host.cut();
        }
    });
    let o = o.unwrap();
    let lines: String = (1..=12).map(|i| format!("line {i}\n")).collect();
    assert_eq!((field(&o, "status"), field(&o, "stdout")), (5i64.into(), lines.into()));
    assert_eq!(field(&o, "stderr"), (1..=12).map(|i| format!("e{i}\n")).collect::<String>().into());
    assert_eq!(b.read("ran"), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_again_and_again_under_heavy_output() {
    let Some(b) = Bench::new("") else { return };
    let project = tempfile::tempdir().unwrap();
    *b.world.folder.lock() = Some(project.path().into());
    let script = "echo once >>ran; i=0; while [ $i -lt 60 ]; do seq $((i*2000)) $((i*2000+1999)); i=$((i+1)); sleep .03; done";
    let (o, ()) = tokio::join!(b.act("cut-2", "run", vec![script.into()]), async {
        for i in 0..6u64 {
            tokio::time::sleep(Duration::from_millis(250 + i * 37)).await;
            b.host.cut();
        }
    });
    let want: String = (0..120_000).map(|i| format!("{i}\n")).collect();
    let file = project.path().join(".runbook/output/test-run/cut-2.stdout");
    assert_eq!(field(&o.unwrap(), "cut"), true.into());
    assert!(std::fs::read_to_string(file).unwrap() == want, "the output is one piece");
    assert_eq!(b.read("ran"), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_at_any_moment_of_the_start_runs_it_once() {
    let Some(b) = Bench::new("") else { return };
    b.act("warm", "run", vec!["true".into()]).await.unwrap();
    for i in 0..24u64 {
        let name = format!("ran-{i}");
        let script = format!("cat >>{name}; sleep .05; echo done");
        let opts = options([("stdin", "once\n".into()), ("env", options([("A", "b".into())]))]);
        let id = format!("cut-{i}");
        let args = vec![Value::from(script), opts];
        let (o, ()) = tokio::join!(b.act(&id, "run", args.clone()), async {
            tokio::time::sleep(Duration::from_micros(i * 800)).await;
            b.host.cut();
        });
        // Cut while it was connecting again: nothing has begun, and the step repeats it.
        let o = match o {
            Err(e) if e.code == Code::SSH_CONNECT && e.retryable => b.act(&id, "run", args).await,
            o => o,
        };
        assert_eq!(field(&o.unwrap(), "stdout"), "done\n".into(), "{i}");
        assert_eq!(b.read(&name), "once\n", "{i}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_controller_finds_the_result() {
    let Some(mut b) = Bench::new("") else { return };
    let args = || vec![Value::from("echo once >>ran; sleep 1; echo the end; exit 0")];
    // Died in mid-command: dropping the future is what a killed controller leaves.
    assert!(tokio::time::timeout(Duration::from_millis(400), b.act("dead-1", "run", args())).await.is_err());
    b.host.cut();
    b.shared = std::sync::Arc::default();
    let began = Instant::now();
    match b.reconcile("dead-1", "run", args()).await.unwrap() {
        Reconciled::Done(o) => assert_eq!(field(&o, "stdout"), "the end\n".into()),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() > Duration::from_millis(200), "it was waited for");
    // Died after the end: again the same answer, and nothing runs again.
    b.shared = std::sync::Arc::default();
    assert!(
        matches!(b.reconcile("dead-1", "run", args()).await.unwrap(), Reconciled::Done(o) if field(&o, "stdout") == "the end\n".into())
    );
    assert_eq!(b.read("ran"), "once\n");
    // Died before anything.
    assert!(matches!(b.reconcile("dead-2", "run", args()).await.unwrap(), Reconciled::NotStarted));
    // A command that failed is reported as failed.
    let fail = || vec![Value::from("echo sorry >&2; exit 7")];
    b.act("dead-3", "run", fail()).await.unwrap_err();
    match b.reconcile("dead-3", "run", fail()).await.unwrap() {
        Reconciled::Failed(e) => {
            assert_eq!((e.code, e.message.as_str()), (Code::COMMAND_FAILED, "`echo sorry >&2; exit 7` ended with status 7: sorry"))
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(b.reconcile("dead-3", "try_run", fail()).await.unwrap(), Reconciled::Done(o) if field(&o, "status") == 7i64.into()));
}

/// Polls a future so many times at most, and drops it.
async fn die_after<F: Future>(polls: u64, work: F) {
    let mut work = std::pin::pin!(work);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        left -= 1;
        if work.as_mut().poll(cx).is_ready() || left == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_at_any_moment_of_the_start_leaves_it_decidable() {
    for mut b in Bench::every() {
        let (mut ran, mut not) = (0, 0);
        for i in 0..24u64 {
            let (id, name) = (format!("die-{i}"), format!("ran-{i}"));
            let args = || vec![Value::from(format!("echo once >>{name}; sleep .02")), options([("env", options([("A", "b".into())]))])];
            // With a session that waits for commands, and with a connection alone.
            let how = if i % 2 == 0 { "run" } else { "read" };
            b.act(&format!("warm-{i}"), how, vec!["true".into()]).await.unwrap();
            // Every time it is woken is a moment at which a controller can die, however fast or slow the machine is.
            die_after(i + 1, b.act(&id, "run", args())).await;
            b.shared = std::sync::Arc::default();
            match b.reconcile(&id, "run", args()).await.unwrap() {
                Reconciled::Done(_) => ran += 1,
                Reconciled::NotStarted => {
                    not += 1;
                    // And then it really has not, and will not by itself, whatever the dead process has handed to its network.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    assert_eq!(b.read(&name), "", "{i}");
                    b.act(&id, "run", args()).await.unwrap();
                }
                other => panic!("{i}: {other:?}"),
            }
            assert_eq!(b.read(&name), "once\n", "{i}");
        }
        eprintln!("decided: {ran} had run, {not} had not");
        assert!(ran > 0 && not > 0, "both sides of the moment were met: {ran} {not}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_cannot_know_is_said_to_be_unknown() {
    for mut b in Bench::every() {
        let args = || vec![Value::from("echo half >>ran; echo so far; sleep 7395")];
        assert!(tokio::time::timeout(Duration::from_millis(500), b.act("gone-1", "run", args())).await.is_err());
        // The supervisor and all it started are killed, as by a lack of memory.
        for p in processes().iter().filter(|p| {
            p.command.contains("sleep 7395") || std::fs::read_link(format!("/proc/{}/cwd", p.pid)).is_ok_and(|c| c.ends_with("gone-1"))
        }) {
            let _ = std::process::Command::new("kill").args(["-KILL", &p.pid.to_string()]).status();
        }
        b.shared = std::sync::Arc::default();
        match b.reconcile("gone-1", "run", args()).await.unwrap() {
            Reconciled::Unknown { known } => assert!(known.contains("no exit status") && known.contains("so far"), "{known}"),
            other => panic!("{other:?}"),
        }
        // A host that was started anew: another boot id.
        let pid = b.host.home().join(".runbook/test-run/gone-1/pid");
        let text = std::fs::read_to_string(&pid).unwrap();
        let mut words: Vec<&str> = text.split_whitespace().collect();
        words[1] = "00000000-0000-0000-0000-000000000000";
        std::fs::write(&pid, words.join(" ") + "\n").unwrap();
        match b.reconcile("gone-1", "run", args()).await.unwrap() {
            Reconciled::Unknown { known } => assert!(known.contains("started anew"), "{known}"),
            other => panic!("{other:?}"),
        }
        // The operator says: again.
        let o = b.act("gone-1", "run", vec!["echo half >>ran; echo again".into()]).await.unwrap();
        assert_eq!((field(&o, "stdout"), b.read("ran").as_str()), ("again\n".into(), "half\nhalf\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stays_away_leaves_the_command_in_doubt() {
    let Some(mut b) = Bench::new("") else { return };
    let mut settings = b.host.settings();
    settings.insert("reconnect_within".into(), Duration::from_millis(800).into());
    b.env = crate::support::sshd::environment(&[("old", settings)]);
    let cx = b.cx("away");
    let handle = b.handle();
    let registry = b.registry.clone();
    let run = tokio::spawn(async move {
        let p = registry.primitives.get(&(Some("Host"), "run")).unwrap();
        let call = p.spec().bind(Some(handle), vec!["sleep 1.5; echo late >>ran".into()]).unwrap();
        p.act(&cx, &call).await
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    b.host.down();
    let e = run.await.unwrap().unwrap_err();
    assert_eq!(e.code, Code::COMMAND_DOUBT, "{e:?}");
    assert!(e.hint.unwrap().contains("resume"));
    b.host.up();
    assert!(matches!(b.reconcile("away", "run", vec!["x".into()]).await.unwrap(), Reconciled::Done(_)));
    assert_eq!(b.read("ran"), "late\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_holds_across_a_dead_controller() {
    for mut b in Bench::every() {
        let args = || vec![Value::from("sleep 7396"), options([("timeout", "2s".into())])];
        assert!(tokio::time::timeout(Duration::from_millis(500), b.act("late", "run", args())).await.is_err());
        b.shared = std::sync::Arc::default();
        match b.reconcile("late", "run", args()).await.unwrap() {
            Reconciled::Failed(e) => assert_eq!(e.code, Code::COMMAND_TIMEOUT),
            other => panic!("{other:?}"),
        }
        assert!(!processes().iter().any(|p| p.command.starts_with("sleep 7396")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_is_private_and_goes_with_the_run() {
    use std::os::unix::fs::PermissionsExt as _;
    for b in Bench::every() {
        b.act("a-1", "run", vec!["true".into()]).await.unwrap();
        let root = b.host.home().join(".runbook");
        let mut stack = vec![root.clone()];
        let mut files = 0;
        while let Some(dir) = stack.pop() {
            assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700, "{}", dir.display());
            for e in std::fs::read_dir(dir).unwrap().flatten() {
                if e.path().is_dir() {
                    stack.push(e.path());
                } else {
                    files += 1;
                    assert_eq!(e.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", e.path().display());
                }
            }
        }
        assert!(files >= 5);
        let cx = b.cx("end");
        for hook in &b.registry.hooks {
            hook.finished(&cx, &["old".to_string()].into()).await.unwrap();
        }
        assert!(!root.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_cannot_be_written_to_is_said() {
    let Some(b) = Bench::new("SetEnv X=1") else { return };
    b.write(".runbook", "a file is in the way");
    let e = super::failure(b.act("a", "run", vec!["touch ran".into()]).await, Code::SUPERVISOR);
    assert!(e.message.contains(".runbook"), "{e}");
    assert!(!b.host.home().join("ran").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn timings() {
    let Some(b) = Bench::new("") else { return };
    let cx = b.cx("t");
    let s = ssh::connect(&cx, "old").await.unwrap();
    let began = Instant::now();
    for _ in 0..100 {
        s.exec(&cx, Exec::new("true")).await.unwrap();
    }
    let plain = began.elapsed() / 100;
    let began = Instant::now();
    for i in 0..100 {
        ssh::supervised(&b.cx(&format!("t-{i}")), "old", Exec::new("true")).await.unwrap();
    }
    eprintln!("`true`: plain {plain:?}, supervised {:?}", began.elapsed() / 100);
}
