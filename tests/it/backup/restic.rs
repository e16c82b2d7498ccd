//! Repositories of restic, with Debian's restic on real hosts.

use super::twins::{Place, id};
use super::*;

pub(super) const PASSWORD: &str = "a password with 'quotes'";

/// A host with a shop and a repository in a folder beside it; another host.
pub(super) struct Site {
    pub(super) old: Sshd,
    pub(super) new: Sshd,
    pub(super) repository: String,
    pub(super) extra: Vec<(&'static str, String)>,
    /// The settings of a second repository, `other`.
    pub(super) other: Option<BTreeMap<String, Value>>,
    pub(super) world: Arc<World>,
}

/// The settings of a repository that the old host keeps.
pub(super) fn settings_of(repository: &str, password: &str) -> BTreeMap<String, Value> {
    BTreeMap::from([("host".to_string(), "old".into()), ("repository".into(), repository.into()), ("password".into(), password.into())])
}

impl Store for Site {
    fn cx(&self, action: &str) -> Cx {
        let mut env = environment(&[("old", self.old.settings()), ("new", self.new.settings())]);
        let mut settings = settings_of(&self.repository, "restic");
        settings.extend(self.extra.iter().map(|(k, v)| (k.to_string(), v.as_str().into())));
        let r = Resource { name: "store".into(), kind: "restic".into(), settings };
        let backups = env.resources.entry(Section::Backups).or_default();
        backups.insert("store".into(), r);
        if let Some(settings) = self.other.clone() {
            let kind = settings.get("kind").and_then(Value::as_str).unwrap_or("restic").to_string();
            backups.insert("other".into(), Resource { name: "other".into(), kind, settings });
        }
        cx(&self.world, env, action)
    }
}

impl Site {
    /// The stock tool, as anybody would use it on the host.
    pub(super) fn restic(&self, words: &str) -> String {
        let password = self.world.secrets.lock()["restic"].clone();
        let script = format!("export RESTIC_REPOSITORY='{}' RESTIC_PASSWORD=\"{password}\" HOME=\"$PWD\"\nrestic {words}", self.repository);
        sh(&self.old.home(), &script)
    }
}

impl Place for Site {
    fn start() -> Option<Site> {
        if !crate::support::have("restic") {
            return None;
        }
        let lab = Lab::start()?;
        lab.shop();
        lab.world.secrets.lock().insert("restic".into(), PASSWORD.into());
        Some(Site { old: lab.old, new: lab.vault, repository: "my repository".into(), extra: vec![], other: None, world: lab.world })
    }

    fn old(&self) -> &Sshd {
        &self.old
    }

    fn world(&self) -> &World {
        &self.world
    }

    fn count(&self) -> usize {
        serde_json::from_str::<serde_json::Value>(&self.restic("snapshots --json")).unwrap().as_array().map_or(0, Vec::len)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_read_by_the_stock_tool_and_one_of_the_stock_tool_is_read() {
    let Some(s) = Site::made().await else { return };
    let out = s.call("r1-a", "snapshot", take()).await.unwrap();
    let snapshot = out.value.as_record().unwrap().clone();
    // Nine files and a further name of one of them, without the one that is excluded.
    assert_eq!((snapshot.get("files"), snapshot.str("host")), (&Value::Int(9), "old"), "{snapshot:?}");
    let again = s.call("r1-a", "snapshot", take()).await.unwrap().value;
    assert_eq!((id(&again), s.count()), (id(&out.value), 1), "the same action makes it once");
    s.call("r1-b", "verify", vec![out.value.clone()]).await.unwrap();
    let compare = options(&[("compare", true.into())]);
    let t = s.call("r1-c", "restore_test", vec![out.value.clone(), compare.clone()]).await.unwrap();
    assert_eq!(t.value.as_record().unwrap().get("files"), &Value::Int(9));

    s.restic(&format!("restore {} --target 'by hand' --quiet", id(&out.value)));
    let diff = "diff -r --no-dereference shop 'by hand/shop' | grep -v skip.tmp || true";
    assert_eq!(sh(&s.old.home(), diff), "");

    s.restic("backup --quiet --tag by-hand shop/plain");
    let all = s.call("r1-d", "list", vec![]).await.unwrap().value;
    let theirs = all.as_list().unwrap().last().unwrap().clone();
    assert_eq!(theirs.as_record().unwrap().get("tags"), &list(&["by-hand"]));
    s.call("r1-e", "restore_test", vec![theirs.clone()]).await.unwrap();
    let e = s.fails("r1-g", "restore_test", vec![theirs.clone(), compare]).await;
    assert_eq!(e.code, Code::UNKNOWN_NAME, "it was made on no host of the inventory: {e}");
    assert!(e.message.contains(&format!("the snapshot {} was made on \"", id(&theirs))), "{e}");
    s.call("r1-f", "restore", vec![theirs, host("old"), "back".into()]).await.unwrap();
    assert_eq!(sh(&s.old.home(), "cat back/shop/plain"), "hello\n");
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
    assert!(
        e.code == Code::BACKUP_REPOSITORY && e.message.ends_with("is not there") && e.hint.unwrap().contains("init()"),
        "{}",
        e.message
    );
    s.call("r1-b", "init", vec![]).await.unwrap();

    s.world.secrets.lock().insert("restic".into(), "another".into());
    for (method, args) in [("list", vec![]), ("snapshot", take()), ("init", vec![]), ("check", vec![])] {
        let e = s.fails("r1-c", method, args).await;
        assert!(e.code == Code::BACKUP_REPOSITORY && e.message.contains("is not opened by its password"), "{method}: {e}");
    }
    s.world.secrets.lock().insert("restic".into(), PASSWORD.into());

    // restic itself leaves out what is not there, and ends with 0.
    let e = s.fails("r1-d", "snapshot", vec![host("old"), list(&["shop", "not there"])]).await;
    assert!(e.code == Code::BACKUP_SNAPSHOT && e.message.contains("not there: there is no such file"), "{e}");
    let e = s.fails("r1-e", "snapshot", vec![host("new"), list(&["shop"])]).await;
    assert!(e.message.contains("takes snapshots of that host alone"), "{e}");
    assert_eq!(s.count(), 0);
    let e = s.fails("r1-f", "verify", vec!["0123456789abcdef".into()]).await;
    assert_eq!(e.code, Code::BACKUP_MISSING);

    // A damaged and a missing piece of the data.
    let snapshot = s.call("r1-g", "snapshot", take()).await.unwrap().value;
    s.call("r1-h", "check", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
    let pack = sh(&s.old.home(), "find 'my repository/data' -type f -size +100k | head -n 1").trim().to_string();
    sh(
        &s.old.home(),
        &format!("chmod u+w '{pack}'; cp '{pack}' kept; printf XXXX | dd of='{pack}' bs=1 seek=5000 conv=notrunc status=none"),
    );
    for method in ["verify", "restore_test"] {
        let e = s.fails("r1-i", method, vec![snapshot.clone()]).await;
        let code = if method == "verify" { Code::BACKUP_DAMAGED } else { Code::BACKUP_RESTORE };
        assert!(e.code == code && e.message.contains("verification failed"), "{method}: {e}");
    }
    let e = s.fails("r1-j", "restore_test", vec![snapshot.clone()]).await;
    assert!(e.message.contains("/shop/big"), "{e}");
    let e = s.fails("r1-k", "check", vec![options(&[("data", Value::Int(100))])]).await;
    assert_eq!(e.code, Code::BACKUP_DAMAGED);
    sh(&s.old.home(), &format!("rm -f '{pack}'"));
    let e = s.fails("r1-l", "check", vec![]).await;
    assert!(e.code == Code::BACKUP_DAMAGED, "{e}");
    assert_eq!(s.left(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_makes_one_snapshot() {
    let Some(s) = Site::made().await else { return };
    sh(&s.old.home(), "head -c 30000000 /dev/urandom >shop/zz");
    let (mut found, mut begun) = (0, 0);
    for n in 0..8u64 {
        let action = format!("r1-{n}");
        let first = s.cx(&action);
        let died = tokio::time::timeout(Duration::from_millis(60 + n * 170), s.call_as(&first, "snapshot", take())).await.is_err();
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
        assert_eq!(s.count() as u64, n + 1, "one snapshot for each action");
        s.call("r2-v", "verify", vec![made]).await.unwrap();
    }
    println!("8 deaths: {found} found at work or done, {begun} not begun");
    assert!(found > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_does_not_disturb_it_and_the_password_is_nowhere() {
    let Some(s) = Site::start() else { return };
    twins::a_lost_connection_does_not_disturb_it(&s, "restic", 60_000_000, |l| l.starts_with("restic backup ")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_meanwhile_are_named_and_nothing_is_kept() {
    let Some(s) = Site::made().await else { return };
    twins::files_that_change_meanwhile_are_named(&s, Duration::from_millis(10), |n| n.ends_with("/hot/log")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_while_copying_makes_each_copy_once() {
    let Some(mut s) = Site::made().await else { return };
    s.world.secrets.lock().insert("second".into(), "another password".into());
    s.other = Some(settings_of("second", "second"));
    twins::a_controller_that_dies_while_copying(&s, Duration::from_millis(250)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_snapshot_tells_is_what_is_listed_and_restored() {
    let Some(s) = Site::made().await else { return };
    twins::what_is_told_is_what_is_there(&s, 12, Some(2 * 3_000_000 + 2 * 6 + 6 * 2 + (5 << 20))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_snapshots_go_by_the_rules_and_a_fresh_one_can_be_required() {
    let Some(s) = Site::made().await else { return };
    for time in ["2024-01-05 10:00:00", "2024-01-05 12:00:00", "2024-01-06 10:00:00", "2024-03-01 10:00:00"] {
        s.restic(&format!("backup --quiet --host old --time '{time}' shop"));
    }
    s.restic("backup --quiet --host gone --time '2020-01-01 00:00:00' shop");
    let e = s.fails("r1-a", "require_fresh", vec![Value::Duration(Duration::from_secs(3600)), options(&[("host", host("old"))])]).await;
    assert!(e.code == Code::BACKUP_STALE && e.message.contains("the newest snapshot of old"), "{e}");
    let e = s.fails("r1-b", "prune", vec![]).await;
    assert!(e.message.contains("keep nothing"), "{e}");
    let keep = || vec![options(&[("daily", Value::Int(2))])];
    let p = s.call("r1-c", "prune", keep()).await.unwrap();
    let value = p.value.as_record().unwrap().clone();
    // Of the old host two days; of the one that is gone its only one.
    assert_eq!((p.changed, value.get("kept"), s.count()), (Some(true), &Value::Int(3), 3));
    assert_eq!(s.call("r1-d", "prune", keep()).await.unwrap().changed, Some(false));
    let made = s.call("r1-e", "snapshot", take()).await.unwrap().value;
    let fresh = vec![Value::Duration(Duration::from_secs(3600)), options(&[("tags", list(&["before"]))])];
    let newest = s.call("r1-f", "require_fresh", fresh).await.unwrap().value;
    assert_eq!(id(&newest), id(&made));
    s.call("r1-g", "check", vec![options(&[("data", Value::Int(100))])]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_on_another_host_is_reached_by_sftp() {
    let Some(mut s) = Site::start() else { return };
    s.new.configure("Subsystem sftp internal-sftp");
    s.new.down();
    s.new.up();
    // The old host's way to the new one, as its administrator would have it in ssh_config.
    let key = s.new.path("user_key");
    let known = s.new.path("known_hosts");
    let command = format!(
        "ssh -F none -i {} -o UserKnownHostsFile={} -p {} -l {} 127.0.0.1 -s sftp",
        key.display(),
        known.display(),
        s.new.port,
        whoami()
    );
    s.extra = vec![("sftp_command", command), ("host", "old".into())];
    s.repository = format!("sftp:new:{}", s.new.home().join("store").display());
    s.call("r1-a", "init", vec![]).await.unwrap();
    let made = s.call("r1-b", "snapshot", take()).await.unwrap().value;
    assert!(s.new.home().join("store/config").exists());
    s.call("r1-c", "restore_test", vec![made, options(&[("compare", true.into())])]).await.unwrap();
}

fn whoami() -> String {
    sh(Path::new("/"), "id -un").trim().to_string()
}
