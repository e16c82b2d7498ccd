//! What the tests of `dump` and `load` share: folders, dumps that somebody has edited, jobs that are killed; and the tests
//! that are the same for every kind of server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use runbook_core::inventory::Environment;
use runbook_core::{Code, Result, Value};

use super::actions::handle;
use super::mount::Small;
use super::options;
use super::wires::Wires;

/// Whether the long versions of tests are wanted.
pub fn all() -> bool {
    std::env::var_os("RUNBOOK_TEST_ALL").is_some()
}

/// A folder for dumps that every user of the machine may enter.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::Builder::new().prefix("rbd").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Folder(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn at(&self, name: &str) -> Value {
        self.path(name).display().to_string().into()
    }
}

/// Edits the file of a dump whose rows have that text in them, by `sed`, and its checksum in the manifest with it.
pub fn edit(dump: &Path, text: &str, sed: &str) {
    let script = "cd \"$1\" || exit 1
        for f in *.zst *.gz data/*.gz; do
          [ -e \"$f\" ] || continue
          case $f in *.zst) tool=zstd ;; *) tool=gzip ;; esac
          $tool -dc \"$f\" | grep -q \"$2\" || continue
          $tool -dc \"$f\" | sed \"$3\" >t && cp t \"$4\" && $tool -c t >\"$f\" && rm t || exit 1
          old=$(grep -P \"^file\\t$f\\t\" manifest | cut -f 6)
          new=$(sha256sum \"$f\")
          sed -i \"s/$old/${new%% *}/\" manifest
          exit
        done
        exit 4";
    let whole = tempfile::NamedTempFile::new().unwrap();
    let out = Command::new("sh").args(["-c", script, "sh"]).arg(dump).args([text, sed]).arg(whole.path()).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// Kills processes of the job in that folder by name; all of it when none is given. How many there were.
pub fn kill_job(folder: &Path, names: &[&str]) -> usize {
    let Ok(leader) = std::fs::read_to_string(folder.join("pid")) else { return 0 };
    let leader = leader.trim();
    let mut killed = 0;
    for p in super::sshd::processes() {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", p.pid)).unwrap_or_default();
        let group = stat.rsplit_once(") ").and_then(|(_, t)| t.split(' ').nth(2).map(str::to_string));
        if group.as_deref() != Some(leader) || !(names.is_empty() || names.contains(&p.name.as_str())) {
            continue;
        }
        let of = if names.is_empty() { format!("-{leader}") } else { p.pid.to_string() };
        let done = Command::new("kill").args(["-KILL", "--", &of]).stderr(Stdio::null()).status();
        killed += usize::from(done.is_ok_and(|s| s.success()));
        if names.is_empty() {
            break;
        }
    }
    killed
}

/// Two servers of a kind, with the databases `shop_old` (which has the rows) and `shop_new`.
pub trait Carried {
    /// The programs of a load, by the names of their processes.
    const CLIENTS: &'static [&'static str];
    /// Does an action, whose controller may die on the way.
    async fn act(&self, on: &str, name: &'static str, args: Vec<Value>, cut: Option<Duration>) -> Result<Value>;
    /// Does an action until it is done, with retries; how many tries it took.
    async fn until_done(&self, on: &str, name: &'static str, args: Vec<Value>) -> (Value, u32);
    /// Fills the old database with rows whose dump and load take a while.
    fn fill(&self);
    /// Writes one more row there.
    fn write(&self, row: &str);
    /// Throws away what the new server has.
    fn clear(&self);
    /// Compares what `compare` may not look at.
    fn beside(&self) {}
    /// Kills the new server.
    fn kill(&self);
    /// Waits for the end of the server that was killed, and starts it again.
    async fn again(&mut self);
    /// The environment, and the port at which the new server reaches the old one.
    fn ways(&mut self) -> (&mut Environment, u16);
    /// The hosts of both.
    fn hosts(&self) -> [&super::sshd::Sshd; 2];
    /// Waits until the new server, which replicates, has the old one's last row.
    async fn level(&self);
    /// How many pieces the new server knows to be loaded.
    fn kept(&self) -> usize;

    /// Writes a dump into a folder.
    async fn dump(&self, folder: &Value, cut: Option<Duration>) -> Result<Value> {
        self.act("shop_old", "dump", vec![folder.clone()], cut).await
    }

    /// Loads it.
    async fn load(&self, folder: &Value, replace: bool, cut: Option<Duration>) -> Result<Value> {
        self.act("shop_new", "load", vec![folder.clone(), options(&[("replace", replace.into())])], cut).await
    }

    /// Compares both sides.
    async fn equal(&self) {
        let c = self.act("shop_old", "compare", vec![handle("shop_new").into()], None).await.unwrap();
        let c = c.as_record().unwrap();
        assert_eq!(c.get("equal"), &Value::Bool(true), "{:?}", c.get("differences"));
        self.beside();
    }
}

/// How many rows of what a test has many of: more with RUNBOOK_TEST_ALL.
pub fn many() -> usize {
    if all() { 50_000 } else { 12_000 }
}

/// Lets controllers die at moments all over a dump and a load.
pub async fn a_controller_dies_anywhere(s: &impl Carried) {
    s.fill();
    let f = Folder::new();
    let began = Instant::now();
    s.dump(&f.at("whole"), None).await.unwrap();
    let dump = began.elapsed();
    let began = Instant::now();
    s.load(&f.at("whole"), false, None).await.unwrap();
    let load = began.elapsed();
    let rounds: u32 = if all() { 20 } else { 3 };
    for n in 0..rounds {
        let at = |all: Duration| all.mul_f64((f64::from(n) + 0.5) / f64::from(rounds));
        s.write(&format!("round {n}"));
        let folder = f.at(&format!("cut{n}"));
        s.dump(&folder, Some(at(dump))).await.unwrap();
        let l = s.load(&folder, true, Some(at(load))).await.unwrap();
        s.equal().await;
        std::fs::remove_dir_all(folder.as_str().unwrap()).unwrap();
        let rows = l.as_record().unwrap().get("rows").clone();
        println!("cut {n}: dump at {:?} of {dump:?}, load at {:?} of {load:?}: equal, {rows:?} rows", at(dump), at(load));
    }
}

/// Kills the server, every process of the job (as when the host goes down), or its clients alone (as when memory runs out), at moments
/// all over a load.
pub async fn a_load_goes_on_where_it_was<S: Carried>(s: &mut S) {
    s.fill();
    let f = Folder::new();
    let dump = f.at("shop");
    s.dump(&dump, None).await.unwrap();
    let began = Instant::now();
    s.load(&dump, false, None).await.unwrap();
    let mut whole = began.elapsed();
    let rounds = if all() { 18u32 } else { 6 };
    let (mut kept, mut cut) = (0, 0);
    for n in 0..rounds {
        s.clear();
        let wait = whole.mul_f64((f64::from(n) + 1.5) / (f64::from(rounds) + 2.0));
        let job = f.path("shop/.load-shop_new");
        let what = ["the server", "the job", "the clients"][n as usize % 3];
        let load = async {
            let began = Instant::now();
            (s.load(&dump, false, None).await, began.elapsed())
        };
        let ((first, took), ()) = tokio::join!(load, async {
            tokio::time::sleep(wait).await;
            match what {
                "the server" => s.kill(),
                "the job" => drop(kill_job(&job, &[])),
                _ => drop(kill_job(&job, S::CLIENTS)),
            }
        });
        if what == "the server" {
            s.again().await;
        }
        let done = match first {
            // It was faster than the kill, and than the first.
            Ok(v) => {
                whole = whole.min(took);
                v
            }
            Err(e) => {
                cut += 1;
                assert!(e.retryable, "{what}: {e:?}");
                if e.code == Code::DB_COPY {
                    assert!(e.hint.as_ref().unwrap().starts_with("resume goes on where it was"), "{what}: {e:?}");
                }
                if what != "the server" {
                    assert_eq!(e.message, "the load into \"shop_new\" was ended: its processes were killed on the host", "{what}: {e:?}");
                }
                kept += s.kept();
                s.load(&dump, false, None).await.unwrap()
            }
        };
        s.equal().await;
        let rows = done.as_record().unwrap().get("rows").clone();
        println!("{what} killed after {wait:?} of {whole:?}: {rows:?} rows, {cut} cut, {kept} pieces kept so far");
    }
    assert!(kept > 0, "no load was cut in its middle");
}

/// Dumps to a disk that is too small, and again when there is room.
pub async fn a_full_disk_is_said(s: &impl Carried) {
    s.fill();
    let f = Folder::new();
    let Some(small) = Small::mount(f.path("small"), "1m") else { return };
    let dump = f.at("small/shop");
    let e = s.dump(&dump, None).await.unwrap_err();
    assert_eq!(e.code, Code::DISK_SPACE, "{e:?}");
    assert!(
        e.message.starts_with("no space is left: the dump of \"shop_old\" failed") && e.host.as_deref() == Some("old"),
        "{}",
        e.message
    );
    small.grow("200m");
    s.dump(&dump, None).await.unwrap();
    s.load(&dump, false, None).await.unwrap();
    s.equal().await;
}

/// Cuts the connections to both hosts at random moments all over a dump, a load and the set-up of replication. Whatever fails is done
/// again, as `resume` does; what is there in the end is equal. Prints how often.
pub async fn connections_are_cut_at_random(s: &impl Carried) {
    s.fill();
    let f = Folder::new();
    let mut random = seed();
    let cut = || s.hosts().iter().for_each(|h| h.cut());
    for n in 0..if all() { 20 } else { 1 } {
        carried_over(s, &mut random, &cut, f.at(&format!("d{n}"))).await;
    }
    cut_while(s, &mut random, &cut, "shop_new", "replicate_from", vec![handle("shop_old").into(), replace()]).await;
    s.write("while it replicates");
    s.level().await;
    s.equal().await;
}

/// Resets every connection at random moments, of the controller and between the servers: all over a dump, a load, a copy, the set-up of
/// replication, and while it replicates. Prints how often.
pub async fn connections_are_reset_at_random(s: &mut impl Carried) {
    let wires = Wires::lay(s).await;
    s.fill();
    let f = Folder::new();
    let mut random = seed();
    let cut = || wires.reset();
    for n in 0..if all() { 20 } else { 1 } {
        carried_over(s, &mut random, &cut, f.at(&format!("d{n}"))).await;
        s.clear();
        cut_while(s, &mut random, &cut, "shop_new", "copy_from", vec![handle("shop_old").into()]).await;
        s.equal().await;
    }
    replicate_under_resets(s, &wires, &mut random, replace()).await;
    s.equal().await;
}

/// Sets replication up like that, and replicates, while every connection is reset again and again.
pub async fn replicate_under_resets(s: &impl Carried, wires: &Wires, random: &mut u64, how: Value) {
    let before = wires.between();
    let cut = || wires.reset();
    cut_while(s, random, &cut, "shop_new", "replicate_from", vec![handle("shop_old").into(), how]).await;
    let resets = if all() { 60 } else { 12 };
    for i in 0..resets {
        s.write(&format!("while it replicates, {i}"));
        wires.reset();
        tokio::time::sleep(Duration::from_millis(next(random) % 300)).await;
    }
    s.level().await;
    println!("| replicating | {resets} | {} connections between the servers | equal |", wires.between() - before);
}

/// Dumps into a folder and loads it, both cut at random moments.
async fn carried_over(s: &impl Carried, random: &mut u64, cut: &dyn Fn(), folder: Value) {
    s.write(&format!("before {}", folder.as_str().unwrap()));
    cut_while(s, random, cut, "shop_old", "dump", vec![folder.clone(), replace()]).await;
    cut_while(s, random, cut, "shop_new", "load", vec![folder, replace()]).await;
    s.equal().await;
}

/// Where the moments begin; printed with the head of the table.
pub fn seed() -> u64 {
    let random = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("seed {random}\n| what | cuts | tries | result |\n|---|---|---|---|");
    random
}

/// The next of xorshift's numbers: moments that a failure's seed brings back.
pub fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// Each try is an action of its own here, for which an earlier one's dump is another's.
fn replace() -> Value {
    options(&[("replace", true.into())])
}

async fn cut_while(s: &impl Carried, random: &mut u64, cut: &dyn Fn(), on: &str, what: &'static str, args: Vec<Value>) {
    let (mut cuts, mut tries) = (0, 0);
    loop {
        tries += 1;
        let cutter = async {
            // A host that is cut off for ever is nothing to go on with.
            while cuts < if all() { 8 } else { 4 } {
                tokio::time::sleep(Duration::from_millis(20 + next(random) % 1500)).await;
                cut();
                cuts += 1;
            }
            std::future::pending::<()>().await;
        };
        let done = tokio::select! {
            done = s.act(on, what, args.clone(), None) => done,
            () = cutter => unreachable!("it never ends"),
        };
        match done {
            Ok(_) => break,
            Err(e) if e.retryable && tries < 20 => println!("| {what} | {cuts} | {tries} | {} |", e.message),
            Err(e) => panic!("{what}, try {tries}, cut {cuts} times: {e:?}"),
        }
    }
    println!("| {what} | {cuts} | {tries} | done |");
}
