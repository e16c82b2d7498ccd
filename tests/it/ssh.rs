//! End-to-end tests of the area `ssh`.

use std::time::{Duration, Instant};

use runbook_core::primitive::Reconciled;
use runbook_core::{Code, Value};
use runbook_primitives::ssh::{self, Exec};
use runbook_testkit::cx;

use crate::support::sshd::{Sshd, environment, world};

fn text(done: ssh::Done) -> runbook_core::Result<Value> {
    Ok(Value::from(String::from_utf8_lossy(&done.stdout).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_and_supervised_commands_give_output_and_status() {
    let Some(host) = Sshd::start("") else { return };
    let world = world();
    let c = cx(&world, environment(&[("old", host.settings())]), "a-1");
    let s = ssh::connect(&c, "old").await.unwrap();
    let d = s
        .exec(
            &c,
            Exec {
                cwd: Some("/".into()),
                env: vec![("A".into(), "x'y".into())],
                stdin: Some(b"in\0put".to_vec()),
                ..Exec::new("pwd; echo \"$A\" >&2; cat; exit 3")
            },
        )
        .await
        .unwrap();
    assert_eq!((d.status, d.stdout.as_slice(), d.stderr.as_slice()), (3, b"/\nin\0put".as_slice(), b"x'y\n".as_slice()));
    let d = ssh::supervised(
        &c,
        "old",
        Exec {
            live: true,
            cwd: Some("/".into()),
            env: vec![("A".into(), "x'y".into())],
            stdin: Some(b"in\0put".to_vec()),
            ..Exec::new("pwd; echo \"$A\" >&2; cat; umask; exit 3")
        },
    )
    .await
    .unwrap();
    assert_eq!((d.status, d.stdout.as_slice(), d.stderr.as_slice()), (3, b"/\nin\0put0022\n".as_slice(), b"x'y\n".as_slice()));
    // The same action again: not run again, its result collected.
    let d2 = ssh::supervised(&c, "old", Exec::new("echo never")).await.unwrap();
    assert_eq!(d2, d);
    let r = ssh::reconcile_supervised(&c, "old", false, &text).await.unwrap();
    assert!(matches!(r, Reconciled::Done(o) if o.value == Value::from("/\nin\0put0022\n")));
    let other = cx(&world, environment(&[("old", host.settings())]), "a-2");
    assert!(matches!(ssh::reconcile_supervised(&other, "old", false, &text).await.unwrap(), Reconciled::NotStarted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_does_not_lose_or_repeat_anything() {
    let Some(host) = Sshd::start("") else { return };
    let world = world();
    let c = cx(&world, environment(&[("old", host.settings())]), "cut-1");
    let run = tokio::spawn({
        let c = c.clone();
        async move {
            ssh::supervised(
                &c,
                "old",
                Exec {
                    live: true,
                    ..Exec::new(
                        "echo once >>ran; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; echo e$i >&2; sleep .2; done; exit 5",
                    )
                },
            )
            .await
        }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        host.cut();
    }
    let d = run.await.unwrap().unwrap();
    let lines: String = (1..=12).map(|i| format!("line {i}\n")).collect();
    assert_eq!((d.status, String::from_utf8(d.stdout).unwrap()), (5, lines));
    assert_eq!(String::from_utf8(d.stderr).unwrap(), (1..=12).map(|i| format!("e{i}\n")).collect::<String>());
    assert_eq!(std::fs::read_to_string(host.home().join("ran")).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn timings() {
    let Some(host) = Sshd::start("") else { return };
    let world = world();
    let env = environment(&[("old", host.settings())]);
    let c = cx(&world, env.clone(), "t");
    let s = ssh::connect(&c, "old").await.unwrap();
    let t = Instant::now();
    for _ in 0..50 {
        s.exec(&c, Exec::new("true")).await.unwrap();
    }
    eprintln!("plain true: {:?}", t.elapsed() / 50);
    let t = Instant::now();
    for i in 0..50 {
        let mut c = c.clone();
        c.action_id.0 = format!("t-{i}");
        ssh::supervised(&c, "old", Exec::new("true")).await.unwrap();
    }
    eprintln!("supervised true: {:?}", t.elapsed() / 50);
    let _ = Code::SUDO;
}
