//! `run`, `try_run`, `read`, `converge`: output, status, options, limits, secrets.

use std::time::{Duration, Instant};

use runbook_core::secret::Secret;
use runbook_core::{Code, Value};
use runbook_primitives::ssh::{self, Exec};

use super::{Bench, failure, field, options};
use crate::support::server::Kind;
use crate::support::sshd::processes;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gives_output_status_and_live_output() {
    for b in Bench::every() {
        let o = b.act("a-1", "run", vec!["echo out; echo err >&2; pwd".into()]).await.unwrap();
        assert_eq!(o.changed, Some(true));
        assert_eq!(field(&o, "stdout"), Value::from(format!("out\n{}\n", b.host.home().display())));
        assert_eq!((field(&o, "stderr"), field(&o, "status"), field(&o, "ok")), ("err\n".into(), 0i64.into(), true.into()));
        assert!(b.output().contains("out\n") && b.output().contains("err\n"));
        let words = Value::List(vec!["printf".into(), "%s|".into(), "a b".into(), "$HOME".into(), "it's".into(), "".into(), "*".into()]);
        let o = b.act("a-2", "run", vec![words]).await.unwrap();
        assert_eq!(field(&o, "stdout"), "a b|$HOME|it's||*|".into());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_command_is_an_error_except_for_try_run() {
    for b in Bench::every() {
        let e = failure(b.act("a-1", "run", vec!["echo no such luck >&2; exit 3".into()]).await, Code::COMMAND_FAILED);
        assert_eq!(e.to_string(), "RB0310: `echo no such luck >&2; exit 3` ended with status 3: no such luck (host old)");
        assert_eq!(e.details.get("status").map(String::as_str), Some("3"));
        assert!(!e.retryable);
        let o = b.act("a-2", "try_run", vec!["exit 3".into()]).await.unwrap();
        assert_eq!((field(&o, "status"), field(&o, "ok")), (3i64.into(), false.into()));
        let o = b.act("a-3", "try_run", vec!["kill -9 $$".into()]).await.unwrap();
        assert_eq!(field(&o, "status"), 137i64.into(), "the shell of the command itself may be killed");
        let e = failure(b.act("a-4", "read", vec!["no-such-program-here".into()]).await, Code::COMMAND_FAILED);
        assert!(e.hint.unwrap().contains("program"));
        failure(b.act("a-5", "run", vec!["  ".into()]).await, Code::COMMAND_BAD);
        failure(b.act("a-6", "run", vec!["true".into(), options([("env", options([("BAD-NAME", "x".into())]))])]).await, Code::COMMAND_BAD);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_options_for_plain_and_supervised_commands() {
    for b in Bench::every() {
        std::fs::create_dir_all(b.host.home().join("it's a folder")).unwrap();
        for (i, name) in ["run", "try_run", "read", "converge"].into_iter().enumerate() {
            let opts = options([
                ("cwd", "it's a folder".into()),
                ("env", options([("A", "x 'y' $z\nnext".into()), ("B", "".into())])),
                ("stdin", Value::Blob((0..=255).collect())),
            ]);
            let o = b.act(&format!("a-{i}"), name, vec!["pwd; echo \"$A|$B|\"; sha256sum; umask".into(), opts]).await.unwrap();
            let sum = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880";
            let want = format!("{}/it's a folder\nx 'y' $z\nnext||\n{sum}  -\n", b.host.home().display());
            let got = field(&o, "stdout").as_str().unwrap().to_string();
            assert!(got.starts_with(&want), "{name}: {got}");
            assert!(got.ends_with("22\n"), "{name}: the login's umask, not the supervisor's: {got}");
        }
        let e = failure(b.act("b", "run", vec!["true".into(), options([("cwd", "nowhere".into())])]).await, Code::COMMAND_FAILED);
        assert!(e.message.contains("126"), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn converge_knows_when_there_is_nothing_to_do() {
    for b in Bench::every() {
        let args = || vec![Value::from("echo x >>made"), options([("creates", "made".into())])];
        assert_eq!(b.act("a-1", "converge", args()).await.unwrap().changed, Some(true));
        let o = b.act("a-2", "converge", args()).await.unwrap();
        assert_eq!((o.changed, o.note.as_deref()), (Some(false), Some("made exists")));
        let o = b.act("a-3", "converge", vec!["echo x >>made".into(), options([("unless", "grep -q x made".into())])]).await.unwrap();
        assert_eq!((o.changed, o.note.as_deref()), (Some(false), Some("`grep -q x made` says that there is nothing to do")));
        assert_eq!(b.read("made"), "x\n");
        assert_eq!(b.act("a-4", "converge", vec!["true".into(), options([("unless", "false".into())])]).await.unwrap().changed, Some(true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_output_is_kept_whole_beside_the_record() {
    for b in Bench::every() {
        let project = tempfile::tempdir().unwrap();
        *b.world.folder.lock() = Some(project.path().into());
        for name in ["run", "read"] {
            b.world.output.lock().clear();
            let o = b.act(name, name, vec!["head -c 5242880 /dev/zero | tr '\\0' x".into()]).await.unwrap();
            let out = field(&o, "stdout").as_str().unwrap().to_string();
            let file = format!(".runbook/output/test-run/{name}.stdout");
            assert!(out.ends_with(&format!("\n[output cut: 4980736 bytes more; stdout: 5MiB in {file}]\n")), "{}", &out[out.len() - 120..]);
            assert_eq!(out.matches('x').count(), 256 << 10);
            assert_eq!((field(&o, "cut"), o.note.as_deref()), (true.into(), Some(format!("stdout: 5MiB in {file}").as_str())));
            let all = vec![b'x'; 5 << 20];
            assert_eq!(kept(&o, "stdout").get("sha256").as_str(), Some(runbook_core::digest::sha256_hex(&all).as_str()));
            assert!(std::fs::read(project.path().join(file)).unwrap() == all);
            if name == "run" {
                assert_eq!(b.world.output.lock().len(), 5 << 20, "live output is whole");
            }
        }
        // What is no text is kept as it was; what is neither long nor binary needs no file.
        let o = b.act("bin", "run", vec!["printf '\\000\\377'; echo e >&2".into()]).await.unwrap();
        assert_eq!(std::fs::read(project.path().join(kept(&o, "stdout").str("file"))).unwrap(), b"\0\xff");
        assert!(!project.path().join(".runbook/output/test-run/bin.stderr").exists());
        // An error's text has the last lines; the file has all.
        let e = failure(b.act("fails", "run", vec!["seq 1000; seq 5 >&2; exit 3".into()]).await, Code::COMMAND_FAILED);
        let file = project.path().join(e.details.get("stdout_file").unwrap());
        assert_eq!(std::fs::read_to_string(file).unwrap(), (1..=1000).map(|i| format!("{i}\n")).collect::<String>());
        assert_eq!(e.details.get("stderr").map(String::as_str), Some("1\n2\n3\n4\n5"));
        // Secrets are struck before anything is written.
        let opts = options([("env", options([("PASSWORD", Secret::new("pw", "hunter2-very-secret").into())]))]);
        b.act("secret", "run", vec!["seq 200000; echo \"$PASSWORD\"".into(), opts]).await.unwrap();
        let text = std::fs::read_to_string(project.path().join(".runbook/output/test-run/secret.stdout")).unwrap();
        assert!(text.ends_with("\n200000\n[secret]\n"), "{}", &text[text.len() - 40..]);
    }
}

fn kept(o: &runbook_core::primitive::Outcome, stream: &str) -> runbook_core::Record {
    field(o, "whole").as_map().and_then(|m| m.get(stream)?.as_record()).unwrap_or_else(|| panic!("{stream} is kept: {:?}", o.note)).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_megabytes_of_binary_input_arrive() {
    for b in Bench::every() {
        let data: Vec<u8> = (0..5u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for name in ["run", "read"] {
            let o = b.act(name, name, vec!["wc -c; cat >/dev/null".into(), options([("stdin", Value::Blob(data.clone()))])]).await.unwrap();
            assert_eq!(field(&o, "stdout").as_str().unwrap().trim(), "5242880", "{name}");
            // A command that does not read its input must not hang.
            let o =
                b.act(&format!("{name}-b"), name, vec!["echo done".into(), options([("stdin", Value::Blob(data.clone()))])]).await.unwrap();
            assert_eq!(field(&o, "stdout"), "done\n".into());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_show_in_no_process_list_and_are_struck_from_output() {
    for b in Bench::every() {
        let secret = "hunter2-very-secret";
        for name in ["run", "read"] {
            let opts = options([
                ("env", options([("PASSWORD", Secret::new("pw", secret).into())])),
                ("stdin", Secret::new("in", "another-secret-value").into()),
            ]);
            let args = vec![Value::from("echo \"<$PASSWORD>\"; cat; sleep 1"), opts];
            let (o, seen) = tokio::join!(b.act(name, name, args), async {
                let mut seen = 0;
                for _ in 0..8 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    for p in processes() {
                        assert!(!p.command.contains(secret) && !p.command.contains("another-secret"), "{}", p.command);
                        seen += usize::from(p.command.contains("rb_n="));
                    }
                }
                seen
            });
            assert!(seen > 0, "the command was looked at while it ran");
            assert_eq!(field(&o.unwrap(), "stdout"), "<[secret]>\n[secret]".into());
        }
        assert!(!b.output().contains("secret-value") && !b.output().contains(secret));
        // Nothing of what went in stays on the host's disk (what a command prints itself is there until the run ends).
        std::fs::remove_dir_all(b.host.home().join(".runbook")).unwrap();
        let opts = options([
            ("env", options([("PASSWORD", Secret::new("pw", secret).into())])),
            ("stdin", Secret::new("in", "another-secret-value").into()),
        ]);
        b.act("quiet", "run", vec!["test -n \"$PASSWORD\" && test -n \"$(cat)\"".into(), opts]).await.unwrap();
        let found = std::process::Command::new("grep").args(["-rlE", "hunter2|another-secret"]).arg(b.host.home()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_ends_the_command_and_its_children() {
    for b in Bench::every() {
        for (name, mark) in [("run", "7391.1"), ("converge", "7391.2")] {
            let began = Instant::now();
            let script = format!("sleep {mark} & sleep {mark}; echo never >>ran");
            let e = failure(b.act(name, name, vec![script.into(), options([("timeout", "1s".into())])]).await, Code::COMMAND_TIMEOUT);
            assert_eq!(e.message, "the command took longer than 1s and was ended");
            assert!(began.elapsed() < Duration::from_secs(8), "{name}: {:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(300)).await;
            let left: Vec<String> =
                processes().into_iter().map(|p| p.command).filter(|c| c.contains(mark) && c.starts_with("sleep")).collect();
            assert!(left.is_empty(), "{name}: {left:?}");
        }
        // One that does not listen to TERM is killed.
        let script = "trap '' TERM; while :; do sleep 0.0739; done";
        failure(b.act("deaf", "run", vec![script.into(), options([("timeout", "1s".into())])]).await, Code::COMMAND_TIMEOUT);
        // The status is written before what does not listen is killed.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!processes().iter().any(|p| p.command.contains("0.0739")));
        assert_eq!(b.read("ran"), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_command_is_ended() {
    for b in Bench::every() {
        for (name, mark) in [("run", "7392.1"), ("read", "7392.2")] {
            let cx = b.cx(name);
            let (o, ()) = tokio::join!(b.act_on(&cx, b.handle(), name, vec![format!("sleep {mark}").into()]), async {
                tokio::time::sleep(Duration::from_millis(700)).await;
                cx.cancel.cancel();
            });
            assert_eq!(o.unwrap_err().code, Code::ABORTED);
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(!processes().iter().any(|p| p.command.contains(mark) && p.command.starts_with("sleep")), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_left_behind_does_not_hold_up_the_run() {
    for b in Bench::every() {
        let began = Instant::now();
        let o = b.act("a", "run", vec!["sleep 7393 & echo started $!".into()]).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let pid = field(&o, "stdout").as_str().unwrap().trim().replace("started ", "");
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "it lives on");
        assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_channel_a_connection_is_enough() {
    let Some(b) = Bench::new("MaxSessions 1") else { return };
    let cx = b.cx("a");
    let s = ssh::connect(&cx, "old").await.unwrap();
    let all = futures::future::join_all((0..8).map(|i| {
        let (s, cx) = (s.clone(), cx.clone());
        async move { s.exec(&cx, Exec::new(format!("echo {i}; sleep 0.2"))).await }
    }));
    for (i, done) in all.await.into_iter().enumerate() {
        assert_eq!(done.unwrap().stdout, format!("{i}\n").into_bytes());
    }
    assert_eq!(b.act("b", "run", vec!["echo supervised".into()]).await.map(|o| field(&o, "stdout")).unwrap(), "supervised\n".into());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_at_once_share_connections() {
    for b in Bench::every() {
        let cx = b.cx("a");
        let s = ssh::connect(&cx, "old").await.unwrap();
        let all = futures::future::join_all((0..40).map(|i| {
            let (s, cx) = (s.clone(), cx.clone());
            async move { s.exec(&cx, Exec::new(format!("echo {i}"))).await }
        }));
        for (i, done) in all.await.into_iter().enumerate() {
            assert_eq!(done.unwrap().stdout, format!("{i}\n").into_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_were_made_ahead_are_there_when_they_are_needed() {
    for kind in Kind::ALL {
        let Some((b, proxy, _dir)) = super::cuts::behind_a_proxy(kind).await else { continue };
        let cx = b.cx("a");
        ssh::ready(&cx, "old", 3).await;
        ssh::ready(&cx, "old", 3).await;
        assert_eq!(proxy.connections(), 3, "{kind:?}");
        // Two streams, each with one of its own, and a command beside them.
        let s = ssh::connect(&cx, "old").await.unwrap();
        let (one, two) = (s.open(&cx, Exec::new("cat")).await.unwrap(), s.open(&cx, Exec::new("cat")).await.unwrap());
        assert_eq!(s.exec(&cx, Exec::new("echo hi")).await.unwrap().stdout, b"hi\n");
        assert_eq!(proxy.connections(), 3, "{kind:?}");
        ssh::ready(&cx, "old", 2).await;
        assert_eq!(proxy.connections(), 4, "{kind:?}: what carries a stream is not idle");
        drop((one, two));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_any_size_both_ways_on_one_host() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    for b in Bench::every() {
        let cx = b.cx("a");
        let s = ssh::connect(&cx, "old").await.unwrap();
        let mut from = s.open(&cx, Exec::new("head -c 30000000 /dev/zero")).await.unwrap();
        let mut to = s.open(&cx, Exec::new("wc -c; echo end >&2; exit 4")).await.unwrap();
        drop(from.stdin);
        let n = tokio::io::copy(&mut from.stdout, &mut to.stdin).await.unwrap();
        assert_eq!(n, 30_000_000);
        to.stdin.shutdown().await.unwrap();
        let mut said = String::new();
        to.stdout.read_to_string(&mut said).await.unwrap();
        assert_eq!((said.trim(), from.done.await.unwrap().0), ("30000000", 0));
        assert_eq!(to.done.await.unwrap(), (4, "end\n".to_string()));
        // Dropping it ends the command.
        let ch = s.open(&cx, Exec::new("sleep 7394")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(ch);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!processes().iter().any(|p| p.command.starts_with("sleep 7394")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sudo_with_and_without_a_password() {
    if !crate::support::have("sudo") {
        return;
    }
    let Some(mut b) = Bench::new("") else { return };
    let args = || {
        vec![
            Value::from("echo \"$SUDO_COMMAND\" | cut -c1-8; echo \"$A\"; cat; exit 3"),
            options([("sudo", true.into()), ("env", options([("A", "x y".into())])), ("stdin", "the input\n".into())]),
        ]
    };
    // Without a password, and with one that sudo does not ask root for: it must not end up in the command's input.
    for with in [false, true] {
        if with {
            b.world.secrets.lock().insert("sudo".into(), "open-sesame".into());
            let mut settings = b.host.settings();
            settings.insert("sudo_password".into(), "sudo".into());
            b.env = crate::support::sshd::environment(&[("old", settings)]);
            b.shared = std::sync::Arc::default();
        }
        let o = b.act(&format!("a-{with}"), "try_run", args()).await.unwrap();
        let sh = field(&o, "stdout").as_str().unwrap().to_string();
        assert!(sh.ends_with("x y\nthe input\n") && sh.starts_with('/'), "{sh}");
        assert_eq!((field(&o, "status"), field(&o, "stderr")), (3i64.into(), "".into()));
        let e = failure(b.act(&format!("b-{with}"), "read", args()).await, Code::COMMAND_FAILED);
        assert!(e.message.contains("status 3"), "{e}");
    }
    // A sudo that refuses.
    let bin = tempfile::tempdir().unwrap();
    let fake = bin.path().join("sudo");
    std::fs::write(&fake, "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n").unwrap();
    std::process::Command::new("chmod").arg("755").arg(&fake).status().unwrap();
    let Some(b) = Bench::new(&format!("SetEnv PATH={}:/usr/bin:/bin", bin.path().display())) else { return };
    for name in ["run", "converge"] {
        let e = failure(b.act(name, name, vec!["touch ran".into(), options([("sudo", true.into())])]).await, Code::SUDO);
        assert_eq!(e.message, "sudo refuses: sudo: a password is required", "{name}");
    }
    assert!(!b.host.home().join("ran").exists());
}
