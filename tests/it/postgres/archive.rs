//! The log archived into a folder, and base backups: what recovery to a point in time needs.

use std::path::Path;
use std::process::Command;

use runbook_core::{Code, Result, Value};

use crate::support::dumps::{Folder, all};
use crate::support::options;
use crate::support::postgres::Site;

pub fn field<'a>(v: &'a Value, name: &str) -> &'a Value {
    v.as_record().unwrap().get(name)
}

pub fn text(v: &Value, name: &str) -> String {
    field(v, name).as_str().unwrap().to_string()
}

/// A primary whose own user may copy it.
pub fn site() -> Option<Site> {
    let s = Site::start(false)?;
    let mut hba = std::fs::read_to_string(s.old.path("data/pg_hba.conf")).unwrap();
    hba.push_str("local replication postgres peer\n");
    std::fs::write(s.old.path("data/pg_hba.conf"), hba).unwrap();
    s.old.sql("shop", "SELECT pg_reload_conf()");
    Some(s)
}

async fn archive(s: &Site, folder: &Value, more: &[(&str, Value)]) -> Result<Value> {
    s.run("shop_old", "archive_to", vec![folder.clone(), options(more)]).await
}

/// What `postgresql.auto.conf` says.
fn conf(s: &Site) -> String {
    std::fs::read_to_string(s.old.path("data/postgresql.auto.conf")).unwrap()
}

fn show(s: &Site, name: &str) -> String {
    s.old.sql("shop", &format!("SHOW {name}"))
}

pub fn chown(path: &Path) {
    assert!(Command::new("chown").arg("postgres").arg(path).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_archived_and_everything_is_put_back() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    let at = f.at("archive of the shop's");
    let before = (conf(&s), s.old.sql("shop", "SELECT pg_postmaster_start_time()"));
    // A restart is the operator's to allow.
    let e = archive(&s, &at, &[]).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.contains("archive_mode = off, and switching it on takes a restart"), "{e}");
    assert_eq!((conf(&s), s.old.sql("shop", "SELECT pg_postmaster_start_time()")), before);
    assert!(!f.path("archive of the shop's").exists());
    assert_eq!(s.run("shop_old", "stop_archiving", vec![]).await.unwrap(), Value::Unit);
    assert_eq!(conf(&s), before.0);

    let done = archive(&s, &at, &[("restart", true.into())]).await.unwrap();
    assert_eq!((field(&done, "changed"), field(&done, "restarted")), (&Value::Bool(true), &Value::Bool(true)));
    let segment = text(&done, "segment");
    assert_eq!(std::fs::metadata(f.path("archive of the shop's").join(&segment)).unwrap().len(), 16 << 20);
    assert_eq!(show(&s, "archive_timeout"), "1min");
    // Nothing to do, and shown to work all the same; another folder without a restart.
    let again = archive(&s, &at, &[]).await.unwrap();
    assert_eq!(field(&again, "changed"), &Value::Bool(false));
    assert!(text(&again, "segment") > segment);
    let done = archive(&s, &f.at("other"), &[("every", "5m".into())]).await.unwrap();
    assert_eq!((field(&done, "changed"), field(&done, "restarted")), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(show(&s, "archive_timeout"), "5min");
    assert!(f.path("other").join(text(&done, "segment")).exists());
    let left: Vec<String> =
        std::fs::read_dir(f.path("other")).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(left.iter().all(|n| n.len() == 24), "{left:?}");

    // Everything as it was, which takes a restart too.
    let e = s.run("shop_old", "stop_archiving", vec![]).await.unwrap_err();
    assert!(e.message.contains("had archive_mode = off, and putting that back takes a restart"), "{e}");
    assert_eq!(show(&s, "archive_mode"), "on");
    s.run("shop_old", "stop_archiving", vec![options(&[("restart", true.into())])]).await.unwrap();
    assert_eq!((conf(&s), show(&s, "archive_mode")), (before.0.clone(), "off".to_string()));
    s.run("shop_old", "stop_archiving", vec![]).await.unwrap();
    assert_eq!(conf(&s), before.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_archiving_refuses_and_what_fails_is_told() {
    let Some(s) = site() else { return };
    let f = Folder::new();
    let go = [("restart", Value::Bool(true))];
    // Something else in the folder; the log of another cluster.
    std::fs::create_dir(f.path("mine")).unwrap();
    chown(&f.path("mine"));
    std::fs::write(f.path("mine/letter"), "dear").unwrap();
    let e = archive(&s, &f.at("mine"), &go).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.ends_with("/mine holds what is no log of PostgreSQL: letter"), "{e}");
    std::fs::remove_file(f.path("mine/letter")).unwrap();
    s.new.init(false);
    let wal = s.new.path("data/pg_wal/000000010000000000000001");
    std::fs::copy(&wal, f.path("mine/000000010000000000000001")).unwrap();
    chown(&f.path("mine/000000010000000000000001"));
    let e = archive(&s, &f.at("mine"), &go).await.unwrap_err();
    assert!(e.message.contains("/mine holds the log of another cluster ("), "{e}");
    assert_eq!(show(&s, "archive_mode"), "off");
    let e = archive(&s, &"archive".into(), &go).await.unwrap_err();
    assert_eq!(e.code, Code::WRONG_TYPE);

    // Somebody else's command: used where it does the same, refused where it does not, put aside and put back.
    for sub in ["theirs", "here"] {
        std::fs::create_dir(f.path(sub)).unwrap();
        chown(&f.path(sub));
    }
    let theirs = format!("test ! -f {0}/%f && cp %p {0}/%f", f.path("theirs").display());
    s.old.sql("shop", &format!("ALTER SYSTEM SET archive_command = '{theirs}'"));
    s.old.sql("shop", "ALTER SYSTEM SET archive_timeout = '77s'");
    let e = archive(&s, &f.at("theirs"), &go).await.unwrap_err();
    assert!(e.message.contains("which is not in use (archive_mode = off)"), "{e}");
    s.old.sql("shop", "ALTER SYSTEM SET archive_mode = 'on'");
    s.old.as_postgres("pg_ctl", &["-D", &s.old.path("data").display().to_string(), "-m", "fast", "-w", "stop"]);
    s.old.start();
    let before = conf(&s);
    let same = archive(&s, &f.at("theirs"), &[]).await.unwrap();
    assert_eq!(field(&same, "changed"), &Value::Bool(false));
    let e = archive(&s, &f.at("here"), &[("within", "2s".into())]).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.contains("archives by archive_command = test ! -f"), "{e}");
    assert!(e.message.contains("and no attempt has failed") && e.hint.unwrap().contains("replace: true"));
    assert_eq!(conf(&s), before);
    let done = archive(&s, &f.at("here"), &[("replace", true.into())]).await.unwrap();
    assert_eq!((field(&done, "changed"), field(&done, "restarted")), (&Value::Bool(true), &Value::Bool(false)));

    // Another file is there under the segment's name: it is kept, and the failure told in the words of the command.
    let next = s.old.sql("shop", "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    std::fs::write(f.path("here").join(&next), "another").unwrap();
    let e = archive(&s, &f.at("here"), &[]).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.contains(&format!("attempts at {next} have failed")), "{e}");
    assert!(e.message.contains("differ: char 1") && e.hint.unwrap().contains("stop_archiving"), "{}", e.message);
    assert_eq!(std::fs::read_to_string(f.path("here").join(&next)).unwrap(), "another");
    std::fs::remove_file(f.path("here").join(&next)).unwrap();
    s.run("shop_old", "stop_archiving", vec![]).await.unwrap();
    let sorted = |t: &str| {
        let mut lines: Vec<String> = t.lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&conf(&s)), sorted(&before));
    assert_eq!((show(&s, "archive_command"), show(&s, "archive_timeout")), (theirs, "77s".to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_is_whole_or_none() {
    let Some(s) = Site::start(false) else { return };
    let f = Folder::new();
    let e = s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap_err();
    assert!(e.code == Code::DB_SETTINGS && e.message.contains("no pg_hba.conf entry"), "{e:?}");
    assert!(e.hint.unwrap().contains("local replication postgres peer"));
    assert!(!f.path("base/data").exists() && !f.path("base/manifest").exists());
    let mut hba = std::fs::read_to_string(s.old.path("data/pg_hba.conf")).unwrap();
    hba.push_str("local replication postgres peer\n");
    std::fs::write(s.old.path("data/pg_hba.conf"), hba).unwrap();
    s.old.sql("shop", "SELECT pg_reload_conf()");

    let b = s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap();
    assert_eq!(field(&b, "changed"), &Value::Bool(true));
    assert_eq!(text(&b, "segment").len(), 24);
    s.old.as_postgres("pg_verifybackup", &["-q", &f.path("base/data").display().to_string()]);
    let label = std::fs::read_to_string(f.path("base/data/backup_label")).unwrap();
    assert!(label.contains(&format!("LABEL: runbook {}", text(&b, "id"))), "{label}");
    let mut left: Vec<String> =
        std::fs::read_dir(f.path("base")).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    left.sort();
    assert_eq!(left, ["data", "manifest"]);
    // Another's is never replaced; nor is what is no backup; and it is no dump.
    let e = s.run("shop_old", "base_backup", vec![f.at("base")]).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("has a base backup of shop of 20"), "{e}");
    std::fs::create_dir(f.path("mine")).unwrap();
    chown(&f.path("mine"));
    std::fs::write(f.path("mine/letter"), "dear").unwrap();
    let e = s.run("shop_old", "base_backup", vec![f.at("mine")]).await.unwrap_err();
    assert!(e.message.ends_with("/mine has files that are of no base backup"), "{e}");
    let e = s.run("shop_old", "load", vec![f.at("base")]).await.unwrap_err();
    assert!(e.message.contains("is of kind postgresql-base"), "{e}");
    std::fs::create_dir(f.path("space")).unwrap();
    chown(&f.path("space"));
    s.old.sql("shop", &format!("CREATE TABLESPACE fast LOCATION '{}'", f.path("space").display()));
    let e = s.run("shop_old", "base_backup", vec![f.at("more")]).await.unwrap_err();
    assert!(e.code == Code::DB_CANNOT && e.message.contains("(fast)"), "{e}");
    s.old.sql("shop", "DROP TABLESPACE fast");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_or_a_job_that_dies_in_a_base_backup_leaves_none_that_is_not_whole() {
    let Some(s) = site() else { return };
    s.old.sql("shop", "INSERT INTO orders (item) SELECT repeat('order ' || i, 20) FROM generate_series(1, 100000) i");
    let f = Folder::new();
    let began = std::time::Instant::now();
    s.run("shop_old", "base_backup", vec![f.at("whole")]).await.unwrap();
    let whole = began.elapsed();
    let rounds: u32 = if all() { 20 } else { 5 };
    let (mut cuts, mut killed) = (0, 0);
    for n in 0..rounds {
        let at = whole.mul_f64((f64::from(n) + 0.5) / f64::from(rounds));
        // The controller: the next one finds the job at work, or its end.
        let folder = f.at(&format!("cut{n}"));
        let began = std::time::Instant::now();
        let b = s.run_cut("shop_old", "base_backup", vec![folder], Some(at)).await.unwrap_or_else(|e| panic!("cut after {at:?}: {e:?}"));
        cuts += u32::from(began.elapsed() > at);
        s.old.as_postgres("pg_verifybackup", &["-q", &f.path(&format!("cut{n}/data")).display().to_string()]);
        assert_eq!(text(&b, "segment").len(), 24);
        // The job with all of its processes.
        let (folder, path) = (f.at(&format!("kill{n}")), f.path(&format!("kill{n}")));
        let (done, ()) = tokio::join!(s.run("shop_old", "base_backup", vec![folder.clone()]), async {
            tokio::time::sleep(at).await;
            crate::support::dumps::kill_job(&path.join(".job"), &[]);
        });
        if let Err(e) = done {
            killed += 1;
            assert!(e.message.contains("its processes were killed on the host") && e.retryable, "{e:?}");
            // Nothing, or all of it: it may die behind its last file.
            assert!(!path.join("data.part").exists());
            assert_eq!(path.join("manifest").exists(), path.join("data").exists());
            s.run("shop_old", "base_backup", vec![folder]).await.unwrap();
        }
        s.old.as_postgres("pg_verifybackup", &["-q", &path.join("data").display().to_string()]);
        for d in ["cut", "kill"] {
            std::fs::remove_dir_all(f.path(&format!("{d}{n}"))).unwrap();
        }
    }
    println!("{cuts} of {rounds} controllers and {killed} of {rounds} jobs died in the middle of {whole:?}");
    assert!(cuts > 0 && killed > 0);
}
