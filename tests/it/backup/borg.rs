//! Repositories of borg, with Debian's borg on real hosts.

use super::twins::{Place, id};
use super::*;

pub(super) const PASSWORD: &str = "a password with 'quotes'";

/// A host with a shop and a repository in a folder beside it; another host.
pub(super) struct Site {
    pub(super) old: Sshd,
    pub(super) new: Sshd,
    /// What is different about the login of the old host.
    pub(super) login: BTreeMap<String, Value>,
    pub(super) settings: BTreeMap<String, Value>,
    /// A second repository, `other`.
    pub(super) other: Option<BTreeMap<String, Value>>,
    pub(super) world: Arc<World>,
}

impl Store for Site {
    fn cx(&self, action: &str) -> Cx {
        let mut old = self.old.settings();
        old.extend(self.login.clone());
        let mut env = environment(&[("old", old), ("new", self.new.settings())]);
        let backups = env.resources.entry(Section::Backups).or_default();
        let stores = [("store", Some(&self.settings)), ("other", self.other.as_ref())];
        for (name, settings) in stores.into_iter().filter_map(|(n, s)| Some((n, s?))) {
            backups.insert(name.into(), Resource { name: name.into(), kind: "borg".into(), settings: settings.clone() });
        }
        cx(&self.world, env, action)
    }
}

pub(super) fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, Value> {
    pairs.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect()
}

impl Site {
    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.settings.insert(key.into(), value.into());
    }

    /// The stock tool, as anybody would use it on the host.
    pub(super) fn borg(&self, words: &str) -> String {
        let repository = self.settings["repository"].as_str().unwrap().to_string();
        let password = self.world.secrets.lock()["borg"].clone();
        let script = format!("export BORG_REPO=\"$PWD/{repository}\" BORG_PASSPHRASE=\"{password}\" HOME=\"$PWD\" TZ=UTC\nborg {words}");
        sh(&self.old.home(), &script)
    }
}

impl Place for Site {
    fn start() -> Option<Site> {
        if !crate::support::have("borg") {
            return None;
        }
        let lab = Lab::start()?;
        lab.shop();
        lab.world.secrets.lock().insert("borg".into(), PASSWORD.into());
        let settings = settings(&[("host", "old"), ("repository", "my repository"), ("password", "borg")]);
        Some(Site { old: lab.old, new: lab.vault, login: BTreeMap::new(), settings, other: None, world: lab.world })
    }

    fn old(&self) -> &Sshd {
        &self.old
    }

    fn world(&self) -> &World {
        &self.world
    }

    fn count(&self) -> usize {
        self.borg("list --short --consider-checkpoints").lines().count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_read_by_the_stock_tool_and_one_of_the_stock_tool_is_read() {
    let Some(s) = Site::made().await else { return };
    let out = s.call("r1-a", "snapshot", take()).await.unwrap();
    let snapshot = out.value.as_record().unwrap().clone();
    // Eight files, without the one that is excluded; a further name of one of them is no file.
    let facts = (snapshot.get("files"), snapshot.str("host"), snapshot.str("id"), snapshot.get("tags"));
    assert_eq!(facts, (&Value::Int(8), "old", "old.r1-a", &list(&["before"])), "{snapshot:?}");
    assert_eq!(snapshot.get("bytes"), &Value::Unit, "borg tells the size of names and rights with it");
    let again = s.call("r1-a", "snapshot", take()).await.unwrap().value;
    assert_eq!((id(&again), s.count()), (id(&out.value), 1), "the same action makes it once");
    s.call("r1-b", "verify", vec![out.value.clone()]).await.unwrap();
    let compare = options(&[("compare", true.into())]);
    let t = s.call("r1-c", "restore_test", vec![out.value.clone(), compare.clone()]).await.unwrap();
    let test = t.value.as_record().unwrap();
    assert_eq!((test.get("files"), test.get("bytes")), (&Value::Int(9), &Value::Bytes(3_000_006 + 5 * 2)));

    sh(&s.old.home(), "mkdir 'by hand'");
    s.borg("list --short >/dev/null; cd 'by hand'; borg extract ::old.r1-a");
    let diff = "diff -r --no-dereference shop 'by hand/shop' | grep -v skip.tmp || true";
    assert_eq!(sh(&s.old.home(), diff), "");

    s.borg("create '::made by hand' shop/plain");
    let all = s.call("r1-d", "list", vec![]).await.unwrap().value;
    let theirs = all.as_list().unwrap().last().unwrap().clone();
    assert_eq!((id(&theirs), theirs.as_record().unwrap().get("paths")), ("made by hand", &list(&["shop/plain"])));
    s.call("r1-e", "restore_test", vec![theirs.clone()]).await.unwrap();
    s.call("r1-f", "restore", vec![theirs, host("old"), "back".into()]).await.unwrap();
    assert_eq!(sh(&s.old.home(), "cat back/shop/plain"), "hello\n");
    // A change on the host shows when compared, and is no fault of the snapshot; so does a file that is not there any more.
    sh(&s.old.home(), "echo other >shop/nothing; rm 'shop/up loads/deep/  spaces  '");
    let e = s.fails("r1-g", "restore_test", vec![out.value, compare]).await;
    assert!(e.code == Code::BACKUP_RESTORE && e.message.contains("shop/nothing differs"), "{e}");
    assert!(e.message.contains("  spaces   is missing"), "{e}");
    assert_eq!(s.left(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn restoring_has_nothing_to_do_the_second_time_and_mends_what_was_changed() {
    let Some(s) = Site::made().await else { return };
    twins::restoring_mends_what_was_changed(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_repository_is_said_by_name() {
    let Some(s) = Site::start() else { return };
    let e = s.fails("r1-a", "snapshot", take()).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.message.ends_with("is not there"), "{}", e.message);
    assert!(e.hint.unwrap().contains("init()"));
    s.call("r1-b", "init", vec![]).await.unwrap();
    let snapshot = s.call("r1-c", "snapshot", take()).await.unwrap().value;

    s.world.secrets.lock().insert("borg".into(), "another".into());
    for (method, args) in
        [("list", vec![]), ("snapshot", take()), ("init", vec![]), ("restore_test", vec![snapshot.clone()]), ("check", vec![])]
    {
        let e = s.fails("r1-d", method, args).await;
        assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains("is not opened by its password"), "{method}: {e}");
    }
    s.world.secrets.lock().insert("borg".into(), PASSWORD.into());

    let e = s.fails("r1-e", "snapshot", vec![host("old"), list(&["shop", "not there"])]).await;
    assert!(e.code == Code::BACKUP_SNAPSHOT && e.message.contains("not there: there is no such file"), "{e}");
    let e = s.fails("r1-f", "snapshot", vec![host("new"), list(&["shop"])]).await;
    assert!(e.message.contains("takes snapshots of that host alone"), "{e}");
    assert_eq!(s.fails("r1-g", "verify", vec!["old.r1".into()]).await.code, Code::BACKUP_MISSING);
    assert_eq!(s.count(), 1);

    // A damaged and a missing piece of the data.
    s.call("r1-h", "check", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
    let segment = sh(&s.old.home(), "find 'my repository/data' -type f -size +1M | head -n 1").trim().to_string();
    let damage = format!("cp '{segment}' kept; printf XXXX | dd of='{segment}' bs=1 seek=500000 conv=notrunc status=none");
    sh(&s.old.home(), &damage);
    for (method, code) in [("verify", Code::BACKUP_DAMAGED), ("restore_test", Code::BACKUP_RESTORE)] {
        let e = s.fails("r1-i", method, vec![snapshot.clone()]).await;
        assert!(e.code == code && e.message.contains("at shop/big") && e.message.contains("integrity"), "{method}: {e}");
    }
    assert_eq!(s.fails("r1-j", "check", vec![]).await.code, Code::BACKUP_DAMAGED);
    sh(&s.old.home(), &format!("cp kept '{segment}'"));
    s.call("r1-k", "verify", vec![snapshot.clone()]).await.unwrap();
    sh(&s.old.home(), &format!("rm '{segment}'"));
    let e = s.fails("r1-l", "check", vec![]).await;
    assert_eq!(e.code, Code::BACKUP_DAMAGED);
    let e = s.fails("r1-m", "restore_test", vec![snapshot]).await;
    assert!(e.code == Code::BACKUP_RESTORE || e.code == Code::BACKUP_DAMAGED || e.code == Code::BACKUP_REPOSITORY, "{e:?}");
    let name = segment.rsplit('/').next().unwrap();
    assert!(e.message.contains("No such file") && e.message.contains(&format!("/{name}'")), "{e}");
    assert_eq!(s.left(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_is_an_error_and_nothing_is_kept() {
    let Some(s) = Site::made().await else { return };
    // Root reads everything but what the kernel itself refuses.
    let e = s.fails("r1-a", "snapshot", vec![host("old"), list(&["/proc/self/mem", "/proc/self/clear_refs"])]).await;
    assert!(e.code == Code::BACKUP_SNAPSHOT && e.message.contains("proc/self/"), "{e}");
    assert_eq!(s.count(), 0, "borg alone keeps the rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_makes_one_snapshot() {
    let Some(s) = Site::made().await else { return };
    sh(&s.old.home(), "head -c 60000000 /dev/urandom >shop/zz");
    let (mut found, mut begun) = (0, 0);
    for n in 0..10u64 {
        let action = format!("r1-{n}");
        let first = s.cx(&action);
        let died = tokio::time::timeout(Duration::from_millis(60 + n * 230), s.call_as(&first, "snapshot", take())).await.is_err();
        drop(first);
        let made = match s.reconcile(&action).await {
            Reconciled::Done(o) => {
                found += usize::from(died);
                o.value
            }
            Reconciled::NotStarted => {
                begun += 1;
                s.call(&action, "snapshot", take()).await.unwrap().value
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(s.count() as u64, n + 1, "one archive for each action, and no checkpoint");
        s.call("r2-v", "verify", vec![made]).await.unwrap();
    }
    println!("10 deaths: {found} found at work or done, {begun} not begun");
    assert!(found > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_does_not_disturb_it_and_the_password_is_nowhere() {
    let Some(s) = Site::start() else { return };
    twins::a_lost_connection_does_not_disturb_it(&s, "borg", 90_000_000, |l| {
        l.contains("borg") && l.contains(" create --progress") && l.contains("r1-a")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_meanwhile_are_named_and_nothing_is_kept() {
    let Some(s) = Site::made().await else { return };
    twins::files_that_change_meanwhile_are_named(&s, Duration::from_millis(5), |n| n == "hot/log").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_while_copying_makes_each_copy_once() {
    let Some(mut s) = Site::made().await else { return };
    s.world.secrets.lock().insert("second".into(), "another password".into());
    s.other = Some(settings(&[("host", "old"), ("repository", "second"), ("password", "second")]));
    twins::a_controller_that_dies_while_copying(&s, Duration::from_millis(350)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_snapshot_tells_is_what_is_listed_and_restored() {
    let Some(s) = Site::made().await else { return };
    twins::what_is_told_is_what_is_there(&s, 10, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_the_dead_go_and_those_of_the_living_are_named() {
    let Some(s) = Site::made().await else { return };
    // One that is killed in the middle, as by the end of its host, leaves its lock and what it has not committed.
    sh(&s.old.home(), "head -c 200000000 /dev/urandom >shop/zz");
    let script = format!(
        "export BORG_REPO=\"$PWD/my repository\" BORG_PASSPHRASE=\"{PASSWORD}\" HOME=\"$PWD\"\nborg create ::killed shop >/dev/null 2>&1 & p=$!\n\
         while ! [ -e 'my repository/lock.exclusive' ]; do sleep .02; done; kill -9 $p; wait $p; ls 'my repository/lock.exclusive'"
    );
    let lock = sh(&s.old.home(), &format!("{script} || true"));
    assert!(lock.contains('@'), "it has left a lock: {lock}");
    sh(&s.old.home(), "rm shop/zz");
    s.call("r1-a", "snapshot", take()).await.unwrap();
    assert_eq!(s.count(), 1, "half of one is none");

    // Of another host nothing is proven.
    sh(&s.old.home(), "mkdir 'my repository/lock.exclusive'; : >'my repository/lock.exclusive/elsewhere@12.4242-0'");
    for (action, method, args) in [("r1-b", "list", vec![]), ("r1-c", "snapshot", take()), ("r1-d", "unlock", vec![])] {
        let e = s.fails(action, method, args).await;
        assert!(e.code == Code::BACKUP_REPOSITORY && e.retryable && e.message.contains("is locked by another borg"), "{method}: {e}");
        assert!(e.message.contains("held by elsewhere@12, process 4242, which is not there on this host"), "{method}: {e}");
    }
    s.call("r1-e", "unlock", vec![options(&[("force", true.into())])]).await.unwrap();
    assert_eq!(s.call("r1-f", "list", vec![]).await.unwrap().value.as_list().unwrap().len(), 1);
    s.call("r1-g", "unlock", vec![]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_may_have_been_replaced_is_not_opened() {
    let Some(mut s) = Site::made().await else { return };
    let home = s.old.home();
    // The login's own environment says yes to everything: that is no answer.
    s.old.configure("SetEnv BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes");
    s.old.down();
    s.old.up();
    let snapshot = s.call("r1-a", "snapshot", take()).await.unwrap().value;
    sh(&home, "mv 'my repository' moved");
    s.set("repository", "moved");
    for (action, method, args) in [("r1-b", "snapshot", take()), ("r1-c", "list", vec![]), ("r1-d", "verify", vec![snapshot.clone()])] {
        let e = s.fails(action, method, args).await;
        assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains("was somewhere else when this host last used it"), "{method}: {e}");
        assert!(e.hint.unwrap().contains("BORG_RELOCATED_REPO_ACCESS_IS_OK=yes") && !e.retryable);
    }
    // As the hint has it.
    s.borg("list >/dev/null; BORG_RELOCATED_REPO_ACCESS_IS_OK=yes borg list");
    s.call("r1-e", "verify", vec![snapshot]).await.unwrap();

    // One without encryption in its place.
    sh(&home, "mv moved away; HOME=$PWD/elsewhere borg init -e none moved");
    let e = s.fails("r1-f", "snapshot", take()).await;
    assert!(
        e.code == Code::BACKUP_REPOSITORY && (e.message.contains("is not encrypted") || e.message.contains("encrypted otherwise")),
        "{e}"
    );
    // And one that is meant to have none.
    s.settings = settings(&[("host", "old"), ("repository", "moved"), ("encryption", "none")]);
    let snapshot = s.call("r1-g", "snapshot", take()).await.unwrap().value;
    s.call("r1-h", "restore_test", vec![snapshot]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_snapshots_go_by_the_rules_and_a_fresh_one_can_be_required() {
    let Some(s) = Site::made().await else { return };
    for time in ["2024-01-05T10:00:00", "2024-01-05T12:00:00", "2024-01-06T10:00:00", "2024-03-01T10:00:00"] {
        s.borg(&format!("create --timestamp {time} ::a-{time} shop"));
    }
    s.borg("create ::half.checkpoint shop");
    let here = sh(Path::new("/"), "python3 -c 'import socket; print(socket.gethostname())'").trim().to_string();
    let e = s
        .fails("r1-a", "require_fresh", vec![Value::Duration(Duration::from_secs(3600)), options(&[("host", here.as_str().into())])])
        .await;
    assert!(e.code == Code::BACKUP_STALE && e.message.contains("the newest snapshot of"), "{e}");
    let keep = || vec![options(&[("daily", Value::Int(2))])];
    let p = s.call("r1-c", "prune", keep()).await.unwrap();
    let value = p.value.as_record().unwrap().clone();
    assert_eq!(
        (p.changed, value.get("kept"), s.borg("list --short").as_str()),
        (Some(true), &Value::Int(2), "a-2024-01-06T10:00:00\na-2024-03-01T10:00:00\n")
    );
    assert_eq!(s.call("r1-d", "prune", keep()).await.unwrap().changed, Some(false));
    let made = s.call("r1-e", "snapshot", take()).await.unwrap().value;
    let fresh = vec![Value::Duration(Duration::from_secs(3600)), options(&[("tags", list(&["before"]))])];
    assert_eq!(id(&s.call("r1-f", "require_fresh", fresh).await.unwrap().value), id(&made));
    s.call("r1-g", "check", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_on_another_host_is_reached_by_ssh_under_a_forced_command() {
    let Some(mut s) = Site::start() else { return };
    let store = s.new.home().join("store");
    // What the how-to says for authorized_keys.
    let key = std::fs::read_to_string(s.new.path("user_key.pub")).unwrap();
    let forced = format!("command=\"borg serve --append-only --restrict-to-path {}\",restrict {key}", store.display());
    std::fs::write(s.new.path("authorized_keys"), forced).unwrap();
    let rsh = |known: &str| {
        format!(
            "ssh -F none -i {} -o UserKnownHostsFile={} -p {}",
            s.new.path("user_key").display(),
            s.new.path(known).display(),
            s.new.port
        )
    };
    let (good, unknown) = (rsh("known_hosts"), rsh("no_known_hosts"));
    let repository = format!("ssh://{}@127.0.0.1{}", sh(Path::new("/"), "id -un").trim(), store.display());
    s.settings = settings(&[("host", "old"), ("repository", &repository), ("password", "borg"), ("rsh", &unknown)]);
    let e = s.fails("r1-a", "init", vec![]).await;
    assert!(e.code == Code::BACKUP_REPOSITORY && e.retryable && e.message.contains("Host key verification failed"), "{e}");
    // Why is told, however soon the connection ends: borg itself looks first whether there is an answer, and finds the end.
    s.set("rsh", "sh -c 'echo no way in >&2; exit 255' sh");
    for n in 0..4 {
        let e = s.fails(&format!("r1-a{n}"), "init", vec![]).await;
        assert!(e.code == Code::BACKUP_REPOSITORY && e.retryable && e.message.contains("no way in"), "{e}");
    }
    s.set("rsh", &good);
    s.call("r1-b", "init", vec![]).await.unwrap();
    let made = s.call("r1-c", "snapshot", take()).await.unwrap().value;
    assert!(store.join("config").exists());
    s.call("r1-d", "restore_test", vec![made.clone(), options(&[("compare", true.into())])]).await.unwrap();
    // The key opens nothing else.
    s.set("repository", &repository.replace("/store", "/another"));
    let e = s.fails("r1-e", "init", vec![]).await;
    assert_eq!(e.code, Code::BACKUP_REPOSITORY, "{e}");
    s.set("repository", &repository);

    // The server goes away in mid-snapshot.
    sh(&s.old.home(), "head -c 300000000 /dev/urandom >shop/zz");
    let c = s.cx("r1-f");
    let began = store.join("data/0");
    let before = std::fs::read_dir(&began).unwrap().count();
    let gone = async {
        while std::fs::read_dir(&began).unwrap().count() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        s.new.cut();
    };
    let (made, ()) = tokio::join!(s.call_as(&c, "snapshot", take()), gone);
    let e = made.expect_err("an error");
    assert!(e.code == Code::BACKUP_REPOSITORY && e.retryable && e.message.contains("cannot be reached"), "{e}");
    assert!(matches!(s.reconcile("r1-f").await, Reconciled::Failed(_)));
    let made = s.call("r1-g", "snapshot", take()).await.unwrap().value;
    s.call("r1-h", "verify", vec![made]).await.unwrap();
    assert_eq!(s.call("r1-i", "list", vec![]).await.unwrap().value.as_list().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_copied_once_into_another_repository() {
    let Some(mut s) = Site::made().await else { return };
    s.world.secrets.lock().insert("second".into(), "another password".into());
    s.other = Some(settings(&[("host", "old"), ("repository", "disk/second"), ("password", "second"), ("mount", "disk")]));
    let other = || Value::from(Record::handle("Backup", "other", BTreeMap::new()));
    s.call("r1-a", "snapshot", take()).await.unwrap();
    s.borg("create --timestamp 2024-01-05T10:00:00 '::by hand' shop/plain 'shop/up loads'");
    sh(&s.old.home(), "mkdir disk");
    let e = s.fails("r1-b", "copy_to", vec![other()]).await;
    assert!(e.code == Code::BACKUP_DETACHED && e.retryable && e.message.contains("nothing is mounted at disk"), "{e}");
    assert_eq!(sh(&s.old.home(), "ls -A disk"), "", "nothing is written into the empty folder");
    let disk = s.old.home().join("disk");
    let Some(_disk) = Small::mount(disk, "50m") else { return };
    let copies = async {
        let p = runbook_primitives::registry().primitives[&(Some("Backup"), "init")].clone();
        p.act(&s.cx("r1-c"), &p.spec().bind(Some(Record::handle("Backup", "other", BTreeMap::new())), vec![])?).await?;
        let first = s.call("r1-d", "copy_to", vec![other()]).await?;
        let second = s.call("r1-e", "copy_to", vec![other()]).await?;
        let shown = sh(
            &s.old.home(),
            "export BORG_REPO=$PWD/disk/second BORG_PASSPHRASE='another password' HOME=$PWD TZ=UTC; borg list --format '{name} {time}{NL}'; borg check --verify-data && \
             mkdir x && cd x && borg extract ::old.r1-a && diff -r --no-dereference ../shop shop | grep -v skip.tmp; true",
        );
        Ok::<_, Error>((first, second, shown))
    }
    .await;
    let (first, second, shown) = copies.unwrap();
    let made = first.value.as_record().unwrap().get("copied").as_list().unwrap();
    assert_eq!((made.len(), first.changed), (2, Some(true)));
    let ours = made.iter().find(|m| id(m) == "old.r1-a").unwrap().as_record().unwrap();
    assert_eq!((ours.get("tags"), ours.str("host")), (&list(&["before"]), "old"));
    assert_eq!((second.changed, second.note.as_deref()), (Some(false), Some("all 2 snapshots are there already")));
    assert!(shown.starts_with("by hand Fri, 2024-01-05 10:00:00\nold.r1-a ") && shown.lines().count() == 2, "{shown}");
}
