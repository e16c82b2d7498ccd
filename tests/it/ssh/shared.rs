//! Commands that may be repeated, one after another in a shell that stays: none of them notices the others.

use std::time::{Duration, Instant};

use runbook_core::Code;
use runbook_primitives::ssh::{self, Exec};

use super::{Bench, failure, field, options};
use crate::support::sshd::processes;

async fn read(b: &Bench, id: &str, command: &str) -> String {
    let o = b.act(id, "read", vec![command.into()]).await.unwrap_or_else(|e| panic!("{id}: {e:?}"));
    field(&o, "stdout").as_str().unwrap().to_string()
}

/// Tells the process of the shell that stays: the parent of the command's parent.
const SHELL: &str = "read -r _ _ _ p _ </proc/$PPID/stat; echo $p";

#[tokio::test(flavor = "multi_thread")]
async fn reads_one_after_another_share_a_session() {
    for b in Bench::every() {
        let first = read(&b, "a-1", SHELL).await;
        assert_eq!(read(&b, "a-2", SHELL).await, first, "the session is the same");
        // What one changes the next does not see.
        read(&b, "a-3", "cd /tmp; export A=1; umask 077; ulimit -n 20; set -f; true() { exit 9; }").await;
        let seen = read(&b, "a-4", "true; pwd; echo \"[$A]\" \"$(umask)\"; echo /et[c]; ulimit -n").await;
        let home = b.host.home();
        let n = seen.lines().last().unwrap();
        assert!(seen.starts_with(&format!("{}\n[] 0022\n/etc\n", home.display())) && n != "20", "{seen}");
        let e = failure(b.act("a-5", "read", vec!["echo half; echo why >&2; exit 4".into()]).await, Code::COMMAND_FAILED);
        assert!(e.message.contains("status 4: why"), "{e}");
        // Any bytes, a stream of any size, and an end without an end of line.
        assert_eq!(read(&b, "a-6", "printf '\\0\\377\\nx' | od -A n -t x1").await.trim(), "00 ff 0a 78");
        let cx = b.cx("a-7");
        let s = ssh::connect(&cx, "old").await.unwrap();
        let done = s.exec_again(&cx, Exec::new("head -c 3000000 /dev/zero; printf '\\0\\377' >&2")).await.unwrap();
        assert_eq!((done.stdout.len(), done.stderr.as_slice()), (3_000_000, b"\0\xff".as_slice()));
        assert_eq!(read(&b, "a-8", SHELL).await, first, "still");
        // Side by side they have one each.
        let slow = format!("sleep .3; {SHELL}");
        let two = tokio::join!(read(&b, "a-9", &slow), read(&b, "a-10", &slow));
        assert_ne!(two.0, two.1);
        assert_eq!(read(&b, "a-11", "echo \"$A\" | tr -d '\\n'").await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_leaves_behind_does_not_speak_in_a_later_one() {
    for b in Bench::every() {
        let first = read(&b, "a-1", SHELL).await;
        let began = Instant::now();
        let said = read(&b, "a-2", "(sleep 7; echo late) & echo early").await;
        assert!(said == "early\n" && began.elapsed() < Duration::from_secs(7), "{said} {:?}", began.elapsed());
        for i in 0..5 {
            let said = read(&b, &format!("b-{i}"), "sleep 1; echo mine").await;
            assert_eq!(said, "mine\n");
        }
        assert_ne!(read(&b, "a-3", SHELL).await, first, "that session is not used again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_is_gone_is_replaced() {
    for b in Bench::every() {
        for (i, end) in ["kill -9 PID", "kill PID"].into_iter().enumerate() {
            let shell = read(&b, &format!("a-{i}"), SHELL).await;
            let kill = end.replace("PID", shell.trim());
            assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
            let began = Instant::now();
            assert_ne!(read(&b, &format!("b-{i}"), SHELL).await, shell);
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        }
        // One that ends itself is alone in that.
        let shell = read(&b, "c-1", SHELL).await;
        let e = failure(b.act("c-2", "read", vec!["echo last words >&2; kill -9 $$; sleep 5".into()]).await, Code::COMMAND_FAILED);
        assert!(e.message.contains("status 137"), "{e}");
        assert_eq!(read(&b, "c-3", SHELL).await, shell);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_too_long_is_ended_with_all_that_it_began() {
    for b in Bench::every() {
        let shell = read(&b, "a-1", SHELL).await;
        let limit = options([("timeout", "1s".into())]);
        failure(b.act("a-2", "read", vec!["sleep 7397 & sleep 7397".into(), limit]).await, Code::COMMAND_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!processes().iter().any(|p| p.command.starts_with("sleep 7397")));
        assert_ne!(read(&b, "a-3", SHELL).await, shell);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_supervised_commands_have_room_beside_a_shell_that_waits() {
    for b in [Bench::new("MaxSessions 1"), Bench::new("")].into_iter().flatten() {
        for i in 0..4 {
            assert_eq!(read(&b, &format!("a-{i}"), "echo read").await, "read\n");
            let cx = b.cx(&format!("b-{i}"));
            let s = ssh::connect(&cx, "old").await.unwrap();
            let stream = s.open(&cx, Exec::new("echo stream")).await.unwrap();
            assert_eq!(stream.done.await.unwrap().0, 0);
            let o = b.act(&format!("c-{i}"), "run", vec!["echo run".into()]).await.unwrap();
            assert_eq!(field(&o, "stdout"), "run\n".into());
        }
    }
}
