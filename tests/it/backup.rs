//! End-to-end tests of the area `backup`, over real SSH servers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Outcome, Reconciled};
use runbook_core::{Code, Error, Record, Result, Value};
use runbook_testkit::{World, cx};

use crate::support::lab::plan;
use crate::support::mount::Small;
use crate::support::sshd::{Sshd, environment, world};
use crate::support::{list, options};

mod borg;
mod databases;
mod remote;
mod restic;
mod schedule;
mod twins;
mod ways;

/// A source host, the host of the repository, and what runs there.
struct Lab {
    old: Sshd,
    vault: Sshd,
    path: String,
    world: Arc<World>,
}

fn host(name: &str) -> Value {
    Record::handle("Host", name, BTreeMap::new()).into()
}

fn sh(dir: &Path, script: &str) -> String {
    let out = Command::new("bash").args(["-c", script]).current_dir(dir).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned());
    assert!(out.status.success(), "{script}: {stdout}{stderr}");
    stdout
}

/// A place with a store of backups, `store`, and what is done with it.
trait Store {
    /// What an action gets.
    fn cx(&self, action: &str) -> Cx;

    async fn call_as(&self, cx: &Cx, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        let p = runbook_primitives::registry().primitives[&(Some("Backup"), method)].clone();
        p.act(cx, &p.spec().bind(Some(Record::handle("Backup", "store", BTreeMap::new())), args)?).await
    }

    async fn call(&self, action: &str, method: &'static str, args: Vec<Value>) -> Result<Outcome> {
        self.call_as(&self.cx(action), method, args).await
    }

    async fn fails(&self, action: &str, method: &'static str, args: Vec<Value>) -> Error {
        self.call(action, method, args).await.expect_err("an error")
    }

    async fn reconcile(&self, action: &str) -> Reconciled {
        let p = runbook_primitives::registry().primitives[&(Some("Backup"), "snapshot")].clone();
        let call = p.spec().bind(Some(Record::handle("Backup", "store", BTreeMap::new())), take()).unwrap();
        p.reconcile(&self.cx(action), &call).await.unwrap()
    }
}

impl Store for Lab {
    fn cx(&self, action: &str) -> Cx {
        cx(&self.world, self.env(), action)
    }
}

impl Lab {
    /// A host with a folder for temporary files of its own, `../tmp` from its home: those are named by actions, which have the same names
    /// in other tests.
    fn host() -> Option<Sshd> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut s = Sshd::start("")?;
        let tmp = s.path("tmp");
        std::fs::create_dir(&tmp).unwrap();
        std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o1777)).unwrap();
        s.configure(&format!("SetEnv TMPDIR={}", tmp.display()));
        s.down();
        s.up();
        Some(s)
    }

    fn start() -> Option<Lab> {
        Some(Lab { old: Lab::host()?, vault: Lab::host()?, path: "my backups".into(), world: world() })
    }

    fn env(&self) -> Environment {
        let mut env = environment(&[("old", self.old.settings()), ("vault", self.vault.settings())]);
        let settings = BTreeMap::from([("host".to_string(), Value::from("vault")), ("path".to_string(), self.path.as_str().into())]);
        let r = Resource { name: "store".into(), kind: "archive".into(), settings };
        env.resources.entry(Section::Backups).or_default().insert("store".into(), r);
        env
    }

    /// A shop with every kind of name that a file can have.
    fn shop(&self) {
        sh(
            &self.old.home(),
            r#"mkdir -p "shop/up loads/deep" shop/empty; cd shop; echo hello >plain; : >nothing; head -c 3000000 /dev/urandom >big
               echo a >"it's \"quoted\""; echo b >$'new\nline'; echo c >'back\slash'; echo d >-rf; echo e >"up loads/deep/  spaces  "
               echo f >"up loads/skip.tmp"; ln plain hard; ln -s plain soft; chmod 640 plain; chmod 755 -- -rf"#,
        );
    }

    fn store(&self) -> std::path::PathBuf {
        self.vault.home().join(&self.path)
    }

    /// What lies in the repository, hidden things too.
    fn kept(&self) -> Vec<String> {
        let mut all: Vec<String> = std::fs::read_dir(self.store())
            .map(|d| d.map(|f| f.unwrap().file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        all.sort();
        all
    }

    async fn snapshot(&self, action: &str) -> Value {
        self.call(action, "snapshot", take()).await.unwrap().value
    }

    fn folder(&self, snapshot: &Value) -> std::path::PathBuf {
        self.store().join(snapshot.as_record().unwrap().str("id"))
    }
}

fn take() -> Vec<Value> {
    vec![host("old"), list(&["shop"]), options(&[("tags", list(&["before"])), ("exclude", list(&["*.tmp"]))])]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_listed_verified_tested_and_restored_by_hand() {
    let Some(lab) = Lab::start() else { return };
    lab.shop();
    let out = lab.call("r1-a", "snapshot", take()).await.unwrap();
    assert_eq!(out.changed, Some(true));
    let s = out.value.as_record().unwrap().clone();
    // plain, nothing, big, it's, newline, backslash, -rf, spaces; the hard link comes on top, the excluded file does not.
    assert_eq!((s.get("files"), s.get("bytes"), s.str("host")), (&Value::Int(8), &Value::Bytes(3_000_006 + 5 * 2), "old"));
    assert!(s.str("id").ends_with(".old.r1-a") && s.str("archive").ends_with("/archive.tar.gz"));
    let again = lab.call("r1-a", "snapshot", take()).await.unwrap().value;
    assert_eq!(again.as_record().unwrap().str("id"), s.str("id"), "the same action makes it once");
    lab.snapshot("r1-b").await;
    let all = lab.call("r1-c", "list", vec![]).await.unwrap().value;
    let all: Vec<&str> = all.as_list().unwrap().iter().map(|s| s.as_record().unwrap().str("id")).collect();
    assert_eq!((all.len(), all[0]), (2, s.str("id")));
    assert_eq!(lab.kept().len(), 2, "nothing temporary stays: {:?}", lab.kept());

    lab.call("r1-d", "verify", vec![out.value.clone()]).await.unwrap();
    lab.call("r1-d", "verify", vec![s.str("id").into()]).await.unwrap();
    let t = lab.call("r1-e", "restore_test", vec![out.value.clone()]).await.unwrap();
    assert_eq!(t.value.as_record().unwrap().get("files"), &Value::Int(9));
    lab.call("r1-f", "restore_test", vec![out.value.clone(), options(&[("on", host("old")), ("compare", true.into())])]).await.unwrap();
    assert_eq!(lab.kept().len(), 2, "{:?}", lab.kept());

    // By hand, with nothing but tar and sha256sum.
    let by_hand = lab.vault.home().join("by hand");
    std::fs::create_dir(&by_hand).unwrap();
    let folder = lab.folder(&out.value);
    sh(&by_hand, &format!("tar xzf '{0}/archive.tar.gz' && sha256sum -c --strict '{0}/SHA256SUMS'", folder.display()));
    let diff = format!("diff -r --no-dereference '{}' shop | grep -v 'skip.tmp' || true", lab.old.home().join("shop").display());
    assert_eq!(sh(&by_hand, &diff), "");
    assert_eq!(sh(&by_hand, "stat -c '%a %h' shop/plain; readlink shop/soft; ls -d shop/empty"), "640 2\nplain\nshop/empty\n");

    // A change on the host shows when compared, and is no fault of the snapshot.
    std::fs::write(lab.old.home().join("shop/nothing"), "other").unwrap();
    let e = lab.fails("r1-g", "restore_test", vec![out.value.clone(), options(&[("compare", true.into())])]).await;
    assert_eq!((e.code, e.host.as_deref()), (Code::BACKUP_RESTORE, Some("old")));
    assert!(e.message.ends_with("restores, but is not what is on the host now: shop/nothing differs"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restoring_brings_everything_back_and_then_has_nothing_to_do() {
    let Some(lab) = Lab::start() else { return };
    lab.shop();
    let s = lab.snapshot("r1-a").await;
    sh(&lab.old.home(), "mv shop kept");
    for (dest, at) in [(".", "shop"), ("-some/where else", "-some/where else/shop")] {
        let args = || vec![s.clone(), host("old"), dest.into()];
        assert_eq!(lab.call("r1-b", "restore", args()).await.unwrap().changed, Some(true));
        let diff = format!("diff -r --no-dereference kept './{at}' | grep -v 'skip.tmp' || true");
        assert_eq!(sh(&lab.old.home(), &diff), "");
        let again = lab.call("r1-c", "restore", args()).await.unwrap();
        assert_eq!((again.changed, again.note.as_deref()), (Some(false), Some("all of it is there already, unchanged")));
    }
    sh(&lab.old.home(), "rm shop/soft; chmod 600 shop/plain; echo new >shop/new");
    assert_eq!(lab.call("r1-d", "restore", vec![s, host("old"), ".".into()]).await.unwrap().changed, Some(true));
    assert_eq!(sh(&lab.old.home(), "readlink shop/soft; stat -c %a shop/plain; cat shop/new"), "plain\n640\nnew\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_named() {
    let Some(lab) = Lab::start() else { return };
    lab.shop();
    let s = lab.snapshot("r1-a").await;
    let folder = lab.folder(&s);
    let id = s.as_record().unwrap().str("id").to_string();

    // One file's content changed, the archive well formed otherwise: only the manifest can tell.
    sh(
        &folder,
        "cp archive.tar.gz good.tar.gz; mkdir x; tar xzf archive.tar.gz -C x; echo evil >x/shop/nothing; rm 'x/shop/back\\slash'; \
         tar -tzf archive.tar.gz --quoting-style=literal --null >/dev/null; tar -czf archive.tar.gz --sort=name -C x shop; rm -rf x",
    );
    let e = lab.fails("r1-b", "restore_test", vec![s.clone()]).await;
    assert_eq!((e.code, e.host.as_deref()), (Code::BACKUP_RESTORE, Some("vault")));
    assert!(e.message.contains("shop/nothing differs") && e.message.contains("slash is missing or cannot be read"), "{e}");
    let e = lab.fails("r1-c", "verify", vec![s.clone()]).await;
    assert_eq!(e.code, Code::BACKUP_DAMAGED);
    assert!(e.message.starts_with(&format!("the snapshot {id} is damaged: ")), "{e}");
    assert!(e.details["whole"].contains("archive.tar.gz does not have its checksum"), "{e:?}");

    // A byte flipped in the middle.
    sh(
        &folder,
        "cp good.tar.gz archive.tar.gz; printf '\\377\\000\\377' | dd of=archive.tar.gz bs=1 seek=1500000 conv=notrunc status=none",
    );
    let e = lab.fails("r1-d", "verify", vec![s.clone()]).await;
    assert!(e.code == Code::BACKUP_DAMAGED && (e.message.contains("shop/big is damaged") || e.message.contains("is missing")), "{e}");
    assert_eq!(lab.fails("r1-e", "restore_test", vec![s.clone()]).await.code, Code::BACKUP_RESTORE);

    // Cut off, as by a full disk.
    sh(&folder, "head -c 1000000 good.tar.gz >archive.tar.gz");
    let e = lab.fails("r1-f", "verify", vec![s.clone()]).await;
    assert!(e.message.contains("is missing or cannot be read"), "{e}");
    sh(&folder, "rm archive.tar.gz");
    let e = lab.fails("r1-g", "verify", vec![s.clone()]).await;
    assert!(e.details["whole"].contains("archive.tar.gz is missing"), "{e:?}");
    // The manifest itself.
    sh(&folder, "cp good.tar.gz archive.tar.gz; sed -i 1d SHA256SUMS");
    let e = lab.fails("r1-h", "verify", vec![s.clone()]).await;
    assert!(e.details["whole"].contains("SHA256SUMS does not have its checksum"), "{e:?}");
    // The description: the others are still listed.
    lab.snapshot("r1-i").await;
    sh(&folder, "echo '{' >snapshot.json");
    assert_eq!(lab.call("r1-j", "list", vec![]).await.unwrap().value.as_list().unwrap().len(), 1);
    assert!(lab.world.messages.lock().iter().any(|m| m.contains("left out of the list")));
    assert_eq!(lab.fails("r1-k", "verify", vec![s]).await.code, Code::BACKUP_DAMAGED);
    assert_eq!(lab.fails("r1-l", "verify", vec!["../x".into()]).await.code, Code::BACKUP_MISSING);
    let e = lab.fails("r1-m", "restore_test", vec!["nothing".into()]).await;
    assert_eq!((e.code, e.message.as_str()), (Code::BACKUP_MISSING, "the repository \"store\" has no snapshot \"nothing\""));
    assert!(lab.kept().iter().all(|k| !k.starts_with('.')), "{:?}", lab.kept());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_leaves_nothing_behind() {
    let Some(lab) = Lab::start() else { return };
    lab.shop();
    let e = lab.fails("r1-a", "snapshot", vec![host("old"), list(&["shop", "not there"])]).await;
    assert_eq!((e.code, e.host.as_deref()), (Code::BACKUP_SNAPSHOT, Some("old")));
    assert!(e.message.contains("nothing was kept") && e.message.contains("not there: Cannot stat"), "{e}");
    assert!(lab.kept().is_empty(), "{:?}", lab.kept());
    assert!(matches!(lab.reconcile("r1-a").await, Reconciled::NotStarted));
    let e = lab.fails("r1-b", "snapshot", vec![host("old"), list(&["/etc", "shop"])]).await;
    assert!(e.message.contains("mixes absolute paths"), "{e}");
    // A folder of its own without any file is a snapshot too.
    let s = lab.call("r1-c", "snapshot", vec![host("old"), "shop/empty".into()]).await.unwrap().value;
    lab.call("r1-d", "verify", vec![s.clone()]).await.unwrap();
    lab.call("r1-e", "restore_test", vec![s]).await.unwrap();
    // Absolute paths go back under the folder that is named.
    let etc = lab.old.home().join("shop/up loads").display().to_string();
    let s = lab.call("r1-f", "snapshot", vec![host("old"), etc.as_str().into()]).await.unwrap().value;
    lab.call("r1-g", "restore_test", vec![s.clone(), options(&[("compare", true.into())])]).await.unwrap();
    lab.call("r1-h", "restore", vec![s, host("vault"), "back".into()]).await.unwrap();
    assert!(lab.vault.home().join("back").join(etc.trim_start_matches('/')).join("skip.tmp").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_leaves_nothing_half() {
    let Some(mut lab) = Lab::start() else { return };
    lab.shop();
    let Some(_small) = Small::mount(lab.vault.home().join("small"), "1m") else { return };
    lab.path = "small/store".into();
    let e = lab.fails("r1-a", "snapshot", take()).await;
    let kept = lab.kept();
    assert_eq!((e.code, e.host.as_deref()), (Code::BACKUP_SNAPSHOT, Some("vault")));
    assert!(e.message.contains("No space left on device") && e.hint.unwrap().contains("free space"), "{}", e.message);
    assert!(kept.is_empty(), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_mid_snapshot_leaves_no_half_and_the_next_attempt_makes_it_whole() {
    let Some(lab) = Lab::start() else { return };
    lab.shop();
    sh(&lab.old.home(), "head -c 20000000 /dev/urandom >shop/zz");
    let c = lab.cx("r1-a");
    let begun = lab.store().join(".new.r1-a/archive.tar.gz");
    let taking = lab.call_as(&c, "snapshot", take());
    // Dropping the work in the middle is what the death of the controller does.
    let crashed = tokio::select! {
        r = taking => Some(r),
        () = async {
            while !std::fs::metadata(&begun).is_ok_and(|m| m.len() > 1_000_000) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        } => None,
    };
    assert!(crashed.is_none(), "the crash came too late to be one");
    assert_eq!(lab.kept(), [".new.r1-a"]);
    let all = lab.call("r1-b", "list", vec![]).await.unwrap().value;
    assert!(all.as_list().unwrap().is_empty(), "half a snapshot is none");
    assert!(matches!(lab.reconcile("r1-a").await, Reconciled::NotStarted));
    assert!(lab.kept().is_empty(), "{:?}", lab.kept());
    let s = lab.snapshot("r1-a").await;
    lab.call("r1-c", "verify", vec![s.clone()]).await.unwrap();
    // And a crash after the act, before its outcome was on record: the repository knows it by the action's id.
    match lab.reconcile("r1-a").await {
        Reconciled::Done(o) => assert_eq!(o.value, s),
        other => panic!("{other:?}"),
    }
    assert!(matches!(lab.reconcile("r1").await, Reconciled::NotStarted), "another action's id that is a part of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_in_mid_snapshot_is_an_error_and_leaves_no_half() {
    let Some(lab) = Lab::start() else { return };
    lab.shop();
    sh(&lab.old.home(), "head -c 30000000 /dev/urandom >shop/zz");
    let begun = lab.store().join(".new.r1-a/archive.tar.gz");
    let c = lab.cx("r1-a");
    let (made, ()) = tokio::join!(lab.call_as(&c, "snapshot", take()), async {
        while !std::fs::metadata(&begun).is_ok_and(|m| m.len() > 500_000) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        lab.old.cut();
    });
    let e = made.expect_err("an error");
    assert!(e.retryable || e.code == Code::SSH_LOST, "{e:?}");
    assert!(lab.kept().is_empty(), "{:?}", lab.kept());
    let s = lab.snapshot("r1-a").await;
    lab.call("r1-b", "verify", vec![s]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_read_is_named_or_accepted() {
    let Some(lab) = Lab::start() else { return };
    lab.shop();
    let home = lab.old.home();
    sh(&home, "mkdir hot; head -c 8000000 /dev/urandom >hot/log; cp hot/log hot/log2");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, file) = (stop.clone(), home.join("hot/log"));
        move || {
            use std::io::Write as _;
            let mut f = std::fs::OpenOptions::new().append(true).open(file).unwrap();
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                f.write_all(b"x").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let refused = lab.call("r1-a", "snapshot", vec![host("old"), "hot".into()]).await;
    let kept = lab.kept();
    let accepted = lab.call("r1-b", "snapshot", vec![host("old"), "hot".into(), options(&[("accept_changing", true.into())])]).await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.join().unwrap();
    let e = refused.expect_err("an error");
    assert!(e.message.contains("3 times in a row") && e.message.contains("hot/log: file changed as we read it"), "{e}");
    assert!(e.retryable && kept.is_empty(), "{kept:?}");
    let s = accepted.unwrap();
    assert!(s.note.unwrap().contains("changed while read: hot/log"));
    lab.call("r1-c", "verify", vec![s.value.clone()]).await.unwrap();
    lab.call("r1-d", "restore_test", vec![s.value]).await.unwrap();
}

#[test]
fn the_embedded_lab_is_backed_up_as_real_hosts() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("shop/.runbook/lab/demo");
    let plan = plan(&["old", "new", "vault"], Duration::from_secs(3), Duration::from_millis(100));
    let rt = tokio::runtime::Runtime::new().unwrap();
    let tested = rt.block_on(async {
        runbook_lab::up(&dir, &plan).await?;
        let overlay = runbook_lab::overlay(&dir).await?;
        let settings = |h: &str| -> BTreeMap<String, Value> {
            let all = overlay["hosts"][h].as_object().unwrap();
            all.iter().filter_map(|(k, v)| Some((k.clone(), Value::from(v.as_str()?)))).collect()
        };
        let mut env = environment(&[("old", settings("old")), ("new", settings("new")), ("vault", settings("vault"))]);
        let store = BTreeMap::from([("host".to_string(), Value::from("vault")), ("path".to_string(), "backups".into())]);
        let r = Resource { name: "store".into(), kind: "archive".into(), settings: store };
        env.resources.entry(Section::Backups).or_default().insert("store".into(), r);
        let world = world();
        let act = |method: &'static str, args: Vec<Value>| {
            let c = cx(&world, env.clone(), method);
            async move {
                let p = runbook_primitives::registry().primitives[&(Some("Backup"), method)].clone();
                p.act(&c, &p.spec().bind(Some(Record::handle("Backup", "store", BTreeMap::new())), args)?).await
            }
        };
        let s = act("snapshot", vec![host("old"), list(&["shop/uploads"])]).await?.value;
        act("verify", vec![s.clone()]).await?;
        act("restore_test", vec![s.clone(), options(&[("on", host("new")), ("compare", true.into())])]).await?;
        act("restore_test", vec![s]).await
    });
    rt.block_on(runbook_lab::down(&dir)).unwrap();
    assert!(tested.unwrap().value.as_record().unwrap().get("files").as_int().unwrap() > 0);
}
