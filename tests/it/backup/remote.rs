//! restic's repositories on servers, and copies from one repository into another.

use super::restic::{PASSWORD, Site, settings_of};
use super::twins::{Place, id};
use super::*;
use crate::support::remote::{REST_PASSWORD, REST_USER, Rest, S3};

/// Whether a text is on a command line of any process, while work goes on.
async fn on_no_command_line<T>(secret: &str, work: impl Future<Output = T>) -> T {
    let watch = async {
        loop {
            for p in std::fs::read_dir("/proc").unwrap().flatten() {
                let line = std::fs::read(p.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line);
                assert!(!line.contains(secret), "on a command line: {line}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = watch => unreachable!(),
    }
}

fn nowhere(s: &Site, secret: &str) {
    assert!(!format!("{:?}", s.world.messages.lock()).contains(secret));
    assert_eq!(sh(&s.old.home(), &format!("grep -rlF '{secret}' .runbook 2>/dev/null || true")), "", "the supervisor keeps no environment");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_snapshots_and_its_key_is_checked_and_nowhere() {
    let Some(mut s) = Site::start() else { return };
    let Some(server) = S3::start() else { return };
    s.world.secrets.lock().insert("s3".into(), server.key.as_str().into());
    s.repository = format!("s3:http://127.0.0.1:{}/shop-backup", server.port);
    s.extra = vec![("access_key", server.id.clone()), ("secret_key", "s3".into()), ("region", "us-east-1".into())];
    // A bucket that is not there is no repository.
    for (action, method, args) in [("r1-a", "list", vec![]), ("r1-b", "snapshot", take())] {
        let e = s.fails(action, method, args).await;
        assert!(e.code == Code::BACKUP_REPOSITORY && e.message.ends_with("is not there") && !e.retryable, "{method}: {e}");
    }
    s.call("r1-c", "init", vec![]).await.unwrap();
    assert_eq!(s.call("r1-d", "init", vec![]).await.unwrap().changed, Some(false));
    // Several packs.
    sh(&s.old.home(), "head -c 60000000 /dev/urandom >shop/zz");
    let made = on_no_command_line(&server.key, s.call("r1-e", "snapshot", take())).await.unwrap().value;
    s.call("r1-f", "restore_test", vec![made.clone(), options(&[("compare", true.into())])]).await.unwrap();
    s.call("r1-g", "check", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
    nowhere(&s, &server.key);

    // The wrong secret of the key, a key that nobody has, the wrong password.
    let wrong = "this is not the key of the bucket tests";
    s.world.secrets.lock().insert("s3".into(), wrong.into());
    for (action, method, args) in [("r1-h", "list", vec![]), ("r1-i", "snapshot", take()), ("r1-j", "restore_test", vec![made.clone()])] {
        let e = s.fails(action, method, args).await;
        assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains("does not let this login in") && !e.retryable, "{method}: {e}");
        assert!(!format!("{e:?}").contains(wrong));
    }
    s.world.secrets.lock().insert("s3".into(), server.key.as_str().into());
    s.extra[0].1 = "AKIAIOSFODNN7EXAMPLE".into();
    assert!(s.fails("r1-k", "list", vec![]).await.message.contains("does not let this login in"));
    s.extra[0].1.clone_from(&server.id);
    s.world.secrets.lock().insert("restic".into(), "another".into());
    assert!(s.fails("r1-l", "list", vec![]).await.message.contains("is not opened by its password"));
    s.world.secrets.lock().insert("restic".into(), PASSWORD.into());

    // A server that does not answer for a while, in mid-snapshot.
    sh(&s.old.home(), "head -c 90000000 /dev/urandom >shop/yy");
    let c = s.cx("r1-m");
    let stopped = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        server.signal("-STOP");
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.signal("-CONT");
    };
    let (second, ()) = tokio::join!(s.call_as(&c, "snapshot", take()), stopped);
    let second = second.unwrap().value;
    s.call("r1-n", "verify", vec![second.clone()]).await.unwrap();
    // Removed, with what only it needed.
    let p = s.call("r1-o", "prune", vec![options(&[("last", Value::Int(1))])]).await.unwrap();
    assert_eq!(p.value.as_record().unwrap().get("removed").as_list().unwrap().len(), 1);
    s.call("r1-p", "check", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
    s.call("r1-q", "restore_test", vec![second]).await.unwrap();
    drop(server);
    let e = s.fails("r1-r", "list", vec![]).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.retryable && e.message.contains("cannot be reached"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rest_server_with_a_login_and_its_own_authority_keeps_snapshots() {
    let Some(mut s) = Site::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(mut server) = Rest::start(dir.path()) else { return };
    s.world.secrets.lock().insert("rest".into(), REST_PASSWORD.into());
    s.repository = format!("rest:https://127.0.0.1:{}/shop/", server.port);
    s.extra = vec![("rest_user", REST_USER.into()), ("rest_password", "rest".into())];
    let e = s.fails("r1-a", "init", vec![]).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains("certificate that is not trusted") && !e.retryable, "{e}");
    s.extra.push(("ca_file", dir.path().join("ca.pem").display().to_string()));
    s.call("r1-b", "init", vec![]).await.unwrap();
    // Plain, and as it is in the address.
    let encoded = "p%40ss%3Aw%2Frd%20of%20the%20REST%20tests";
    let made = on_no_command_line(REST_PASSWORD, on_no_command_line(encoded, s.call("r1-c", "snapshot", take()))).await.unwrap().value;
    s.call("r1-d", "restore_test", vec![made.clone(), options(&[("compare", true.into())])]).await.unwrap();
    nowhere(&s, REST_PASSWORD);
    nowhere(&s, encoded);
    s.world.secrets.lock().insert("rest".into(), "another".into());
    let e = s.fails("r1-e", "snapshot", take()).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains("does not let this login in"), "{e}");
    s.world.secrets.lock().insert("rest".into(), REST_PASSWORD.into());

    // The server is killed in mid-snapshot and comes back: it goes on.
    sh(&s.old.home(), "head -c 200000000 /dev/urandom >shop/zz");
    let c = s.cx("r1-f");
    let data = dir.path().join("rest/shop/data");
    let count = || sh(&data, "find . -type f | wc -l").trim().parse::<usize>().unwrap();
    let before = count();
    let killed = async {
        while count() < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.down();
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.up();
    };
    let (second, ()) = tokio::join!(s.call_as(&c, "snapshot", take()), killed);
    s.call("r1-g", "verify", vec![second.unwrap().value]).await.unwrap();
    s.call("r1-h", "check", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
    assert_eq!(s.call("r1-i", "list", vec![]).await.unwrap().value.as_list().unwrap().len(), 2);
    server.down();
    let e = s.fails("r1-j", "snapshot", take()).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.retryable && e.message.contains("cannot be reached"), "{e}");
    assert!(matches!(s.reconcile("r1-j").await, Reconciled::Failed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_copied_once_and_a_disk_that_is_away_is_said() {
    let Some(mut s) = Site::made().await else { return };
    s.world.secrets.lock().insert("second".into(), "another password".into());
    let mut usb = settings_of("disk/second", "second");
    usb.insert("mount".into(), "disk".into());
    s.other = Some(usb);
    let other = || Value::from(Record::handle("Backup", "other", BTreeMap::new()));
    let on_other = |action: &'static str, method: &'static str, args: Vec<Value>| {
        let c = s.cx(action);
        async move {
            let p = runbook_primitives::registry().primitives[&(Some("Backup"), method)].clone();
            p.act(&c, &p.spec().bind(Some(Record::handle("Backup", "other", BTreeMap::new())), args)?).await
        }
    };
    s.call("r1-a", "snapshot", take()).await.unwrap();
    for time in ["2024-01-05 10:00:00", "2024-03-01 10:00:00"] {
        s.restic(&format!("backup --quiet --host old --time '{time}' shop/plain"));
    }
    sh(&s.old.home(), "mkdir disk");
    for (action, method, args) in [("r1-b", "init", vec![]), ("r1-c", "snapshot", take()), ("r1-d", "list", vec![])] {
        let e = on_other(action, method, args).await.expect_err("an error");
        assert!(e.code == Code::BACKUP_DETACHED && e.retryable && e.message.contains("nothing is mounted at disk"), "{method}: {e}");
    }
    assert_eq!(on_other("r1-e", "attached", vec![]).await.unwrap().value, Value::Bool(false));
    assert_eq!(s.call("r1-f", "attached", vec![]).await.unwrap().value, Value::Bool(true));
    assert_eq!(s.fails("r1-g", "copy_to", vec![other()]).await.code, Code::BACKUP_DETACHED);
    assert_eq!(sh(&s.old.home(), "ls -A disk"), "", "nothing is written into the empty folder");
    let disk = s.old.home().join("disk");
    let Some(_disk) = Small::mount(disk, "50m") else { return };
    let copies = async {
        assert_eq!(on_other("r1-h", "attached", vec![]).await?.value, Value::Bool(true));
        on_other("r1-i", "init", vec![]).await?;
        let newest = s.call("r1-j", "copy_to", vec![other(), options(&[("last", Value::Int(1))])]).await?;
        // The controller dies in the middle of the next.
        let c = s.cx("r1-k");
        let died = tokio::time::timeout(Duration::from_millis(900), s.call_as(&c, "copy_to", vec![other()])).await.is_err();
        let p = runbook_primitives::registry().primitives[&(Some("Backup"), "copy_to")].clone();
        let call = p.spec().bind(Some(Record::handle("Backup", "store", BTreeMap::new())), vec![other()])?;
        let resumed = p.reconcile(&s.cx("r1-k"), &call).await?;
        if matches!(resumed, Reconciled::NotStarted) {
            s.call("r1-k", "copy_to", vec![other()]).await?;
        }
        println!("the controller died in mid-copy: {died}; then {resumed:?}");
        let again = s.call("r1-l", "copy_to", vec![other()]).await?;
        let all = on_other("r1-m", "list", vec![]).await?.value;
        on_other("r1-n", "check", vec![options(&[("data", Value::Int(100))])]).await?;
        let test =
            on_other("r1-o", "restore_test", vec![all.as_list().unwrap().last().unwrap().clone(), options(&[("compare", true.into())])])
                .await?;
        // Each has rules of its own.
        on_other("r1-p", "prune", vec![options(&[("last", Value::Int(1))])]).await?;
        let left = on_other("r1-q", "list", vec![]).await?.value;
        Ok::<_, Error>((newest, again, all, test, left))
    }
    .await;
    let (newest, again, all, test, left) = copies.unwrap();
    // The newest of each set of paths: the shop, and the plain file.
    assert_eq!(newest.value.as_record().unwrap().get("copied").as_list().unwrap().len(), 2, "{newest:?}");
    assert_eq!((again.changed, again.note.as_deref()), (Some(false), Some("all 3 snapshots are there already")));
    assert_eq!((all.as_list().unwrap().len(), left.as_list().unwrap().len()), (3, 2), "{all:?}");
    assert_eq!(test.value.as_record().unwrap().get("files"), &Value::Int(9));
    assert_eq!(s.count(), 3, "the first is as it was");
    let copy = all.as_list().unwrap().last().unwrap().clone();
    assert_eq!((copy.as_record().unwrap().get("tags"), id(&copy).len()), (&list(&["before"]), 64));
    // Another kind is said.
    let mut archive = settings_of("x", "second");
    archive.insert("kind".into(), "archive".into());
    archive.insert("path".into(), "x".into());
    s.other = Some(archive);
    let e = s.fails("r1-r", "copy_to", vec![other()]).await;
    assert!(e.message.contains("one is of the kind restic, the other archive"), "{e}");
}
