//! What is the same with every tool that keeps snapshots: each is given a place of its own by the tests of restic and borg.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A place with a repository of a tool, and a shop on its host.
pub(super) trait Place: Store + Sized {
    /// One without a repository; nothing where the tool is not there.
    fn start() -> Option<Self>;
    /// The host.
    fn old(&self) -> &Sshd;
    /// What was said, and the secrets.
    fn world(&self) -> &World;
    /// How many snapshots the stock tool finds, halves too.
    fn count(&self) -> usize;

    /// What tests of restores have left on it.
    fn left(&self) -> String {
        sh(&self.old().home(), "ls -d ../tmp/runbook-restore.* 2>/dev/null || true")
    }

    /// One whose repository is made.
    async fn made() -> Option<Self> {
        let s = Self::start()?;
        assert_eq!(s.call("r0-a", "init", vec![]).await.unwrap().changed, Some(true));
        assert_eq!(s.call("r0-b", "init", vec![]).await.unwrap().changed, Some(false));
        Some(s)
    }
}

pub(super) fn id(v: &Value) -> &str {
    v.as_record().unwrap().str("id")
}

/// What a snapshot says of itself is what is listed, and what is restored: with sparse, empty and linked files.
pub(super) async fn what_is_told_is_what_is_there(s: &impl Place, files: i64, bytes: Option<u64>) {
    sh(
        &s.old().home(),
        "cd shop; truncate -s 5M sparse; ln big 'up loads/twin'; ln -s nowhere dangling; mkdir empty/er ../more; mkfifo pipe; echo g >../more/file",
    );
    for action in ["r1-a", "r1-b"] {
        let paths = list(&["./shop//", "more"]);
        let tags = options(&[("tags", list(&["z", "a b"])), ("exclude", list(&["*.tmp"]))]);
        let made = s.call(action, "snapshot", vec![host("old"), paths, tags]).await.unwrap().value;
        let all = s.call("r1-l", "list", vec![]).await.unwrap().value;
        let (made, listed) = (made.as_record().unwrap(), all.as_list().unwrap().last().unwrap().as_record().unwrap());
        for field in ["id", "time", "host", "paths", "tags", "archive"] {
            assert_eq!(made.get(field), listed.get(field), "{field}");
        }
        assert_eq!((made.get("files"), made.get("bytes")), (&Value::Int(files), &bytes.map_or(Value::Unit, Value::Bytes)), "{made:?}");
        let test = s.call(&format!("r{}-t", s.old().port), "restore_test", vec![made.clone().into()]).await.unwrap().value;
        let test = test.as_record().unwrap();
        // Ten files, and two further names of them.
        assert_eq!(test.get("files"), &Value::Int(12));
        if let Some(bytes) = bytes {
            assert_eq!(test.get("bytes"), &Value::Bytes(bytes));
        }
    }
}

/// A restore has nothing to do the second time, and mends what was changed since, a further name of a file too.
pub(super) async fn restoring_mends_what_was_changed(s: &impl Place) {
    let snapshot = s.call("r1-a", "snapshot", take()).await.unwrap().value;
    sh(&s.old().home(), "mv shop kept");
    let args = || vec![snapshot.clone(), host("old"), ".".into()];
    assert_eq!(s.call("r1-b", "restore", args()).await.unwrap().changed, Some(true));
    assert_eq!(sh(&s.old().home(), "diff -r --no-dereference kept shop | grep -v skip.tmp || true"), "");
    assert_eq!(s.call("r1-c", "restore", args()).await.unwrap().changed, Some(false));
    for change in [
        "echo other >shop/plain",
        "rm shop/plain; ln -s ../outside shop/plain",
        "rm shop/soft",
        "chmod 600 shop/nothing",
        "rmdir shop/empty",
    ] {
        sh(&s.old().home(), change);
        assert_eq!(s.call("r1-d", "restore", args()).await.unwrap().changed, Some(true), "{change}");
    }
    assert!(!s.old().home().join("outside").exists(), "nothing is written through a link");
    assert_eq!(
        sh(&s.old().home(), "cat shop/plain; readlink shop/soft; stat -c '%a %h' shop/nothing shop/plain; ls -d shop/empty"),
        "hello\nplain\n644 1\n640 2\nshop/empty\n"
    );
}

/// A snapshot goes on when the connection is cut. `secret` is the password by its name, `large` what the shop has more, `working` knows the command line of the tool.
pub(super) async fn a_lost_connection_does_not_disturb_it(s: &impl Place, secret: &str, large: u64, working: impl Fn(&str) -> bool) {
    // Other tests have theirs on command lines of their own.
    let password = format!("this password is of one {secret} test");
    s.world().secrets.lock().insert(secret.into(), password.as_str().into());
    s.call("r0-a", "init", vec![]).await.unwrap();
    sh(&s.old().home(), &format!("head -c {large} /dev/urandom >shop/zz"));
    let c = s.cx("r1-a");
    let seen = parking_lot::Mutex::new((0usize, false));
    let watch = async {
        let mut cut = false;
        loop {
            for p in std::fs::read_dir("/proc").unwrap().flatten() {
                let line = std::fs::read(p.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let mut seen = seen.lock();
                seen.0 += usize::from(working(&line));
                seen.1 |= line.contains(&password);
            }
            if seen.lock().0 > 0 && !cut {
                cut = true;
                s.old().cut();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let made = tokio::select! {
        m = s.call_as(&c, "snapshot", take()) => m.unwrap().value,
        () = watch => unreachable!(),
    };
    assert!(seen.lock().0 > 0 && !seen.lock().1, "{:?}", seen.lock());
    s.call("r1-b", "verify", vec![made]).await.unwrap();
    assert_eq!(s.count(), 1);
    assert!(!format!("{:?}", s.world().messages.lock()).contains(&password));
    let left = sh(&s.old().home(), &format!("grep -rl '{password}' .runbook 2>/dev/null || true"));
    assert_eq!(left, "", "the supervisor keeps no environment");
}

/// A file that changes all the time while it is read is an error with its name, unless that is accepted. `pause` is how long it stays as it is.
pub(super) async fn files_that_change_meanwhile_are_named(s: &impl Place, pause: Duration, named: impl Fn(&str) -> bool) {
    sh(&s.old().home(), "mkdir hot; head -c 20000000 /dev/urandom >hot/log");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, file) = (stop.clone(), s.old().home().join("hot/log"));
        move || {
            use std::io::Write as _;
            while !stop.load(Ordering::Relaxed) {
                std::fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"x").unwrap();
                std::thread::sleep(pause);
            }
        }
    });
    let args = |accept: bool| vec![host("old"), "hot".into(), options(&[("accept_changing", accept.into())])];
    let e = s.fails("r1-a", "snapshot", args(false)).await;
    let left = s.count();
    let accepted = s.call("r1-b", "snapshot", args(true)).await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert!(e.code == Code::BACKUP_SNAPSHOT && e.retryable && e.message.contains("3 times in a row; nothing was kept: "), "{e}");
    assert!(named(e.message.rsplit("nothing was kept: ").next().unwrap()), "{e}");
    assert_eq!(left, 0);
    let note = accepted.unwrap().note.unwrap();
    assert!(named(note.rsplit("changed while read: ").next().unwrap()), "{note}");
}

/// The controller dies somewhere in the middle of copies from `store` into `other`, each of which has one snapshot more: none is doubled, none is lost.
/// `pace` is how much later it dies each time.
pub(super) async fn a_controller_that_dies_while_copying(s: &impl Place, pace: Duration) {
    let on = |action: String, method: &'static str, store: &'static str, args: Vec<Value>| {
        let c = s.cx(&action);
        let p = runbook_primitives::registry().primitives[&(Some("Backup"), method)].clone();
        async move { p.act(&c, &p.spec().bind(Some(Record::handle("Backup", store, BTreeMap::new())), args)?).await }
    };
    let other = || vec![Value::from(Record::handle("Backup", "other", BTreeMap::new()))];
    on("r1-i".into(), "init", "other", vec![]).await.unwrap();
    let (mut caught, mut begun) = (0, 0);
    for n in 0..8u32 {
        sh(&s.old().home(), "head -c 8000000 /dev/urandom >shop/zz");
        s.call(&format!("r2-{n}"), "snapshot", take()).await.unwrap();
        let action = format!("r3-{n}");
        let died =
            tokio::time::timeout(Duration::from_millis(60) + pace * n, on(action.clone(), "copy_to", "store", other())).await.is_err();
        let p = runbook_primitives::registry().primitives[&(Some("Backup"), "copy_to")].clone();
        let call = p.spec().bind(Some(Record::handle("Backup", "store", BTreeMap::new())), other()).unwrap();
        match p.reconcile(&s.cx(&action), &call).await.unwrap() {
            Reconciled::Done(_) => caught += usize::from(died),
            Reconciled::NotStarted => {
                begun += 1;
                on(action, "copy_to", "store", other()).await.unwrap();
            }
            Reconciled::Failed(e) => panic!("{e}"),
            other => panic!("{other:?}"),
        }
        let sets = |list: Value| {
            let all: Vec<_> = list.as_list().unwrap().iter().map(|s| s.as_record().unwrap().get("time").clone()).collect();
            format!("{all:?}")
        };
        let from = on(format!("r4-{n}"), "list", "store", vec![]).await.unwrap().value;
        let to = on(format!("r5-{n}"), "list", "other", vec![]).await.unwrap().value;
        assert_eq!(to.as_list().unwrap().len() as u32, n + 1, "none is doubled, none is lost");
        assert_eq!(sets(from), sets(to));
    }
    println!("8 deaths of the controller while copying: {caught} found at work or done, {begun} not begun or begun again; one copy each");
    on("r6-a".into(), "check", "other", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
    let all = on("r6-b".into(), "list", "other", vec![]).await.unwrap().value;
    for snapshot in all.as_list().unwrap() {
        on("r6-c".into(), "verify", "other", vec![snapshot.clone()]).await.unwrap();
    }
    assert!(caught > 0);
}
