//! A long supervised command, and its connection cut in every way that happens: it runs once, its output is whole and in order, its
//! status is true. A few times each; many times, and 60 s without packets, with `RUNBOOK_TEST_ALL=1`. Prints a table.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use runbook_core::clock::Clock;
use runbook_core::digest::sha256_hex;
use runbook_core::primitive::{Cx, Outcome};

use super::{Bench, field};
use crate::support::netns::Netns;
use crate::support::proxy::Proxy;
use crate::support::server::{Kind, Server};
use crate::support::sshd::{Around, Sshd, environment};

/// How many lines each stream has.
const LINES: u64 = 60;

fn all() -> bool {
    std::env::var_os("RUNBOOK_TEST_ALL").is_some()
}

/// How often each way is tried.
fn tries() -> u64 {
    if all() { 20 } else { 2 }
}

/// Numbered lines on both streams for some two seconds, with a block of 43 kB now and then, and a status that tells.
fn script(ran: &str) -> String {
    format!(
        "echo once >>{ran}; i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i\"; echo \"error $i\" >&2; \
         if [ $((i % 20)) = 0 ]; then seq 1 9000; fi; sleep .03; done; exit 7"
    )
}

fn wanted() -> (String, String) {
    let block: String = (1..=9000).map(|i| format!("{i}\n")).collect();
    let out = (1..=LINES).map(|i| format!("line {i}\n{}", if i % 20 == 0 { block.as_str() } else { "" })).collect();
    (out, (1..=LINES).map(|i| format!("error {i}\n")).collect())
}

/// Checks everything about a command that has ended.
fn check(o: &Outcome, ran: &Path, what: &str) {
    let (out, err) = wanted();
    let text = |f: &str| field(o, f).as_str().unwrap_or_default().to_string();
    assert_eq!(field(o, "status"), 7i64.into(), "{what}: the status");
    assert_eq!(sha256_hex(text("stdout").as_bytes()), sha256_hex(out.as_bytes()), "{what}: the output");
    assert_eq!(text("stderr"), err, "{what}: the errors");
    assert_eq!(std::fs::read_to_string(ran).unwrap_or_default(), "once\n", "{what}: how often it ran");
}

/// Waits until the command has begun: what a lost connection does before that is the step's to repeat.
async fn begun(ran: &Path) {
    let began = Instant::now();
    while !ran.exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A moment within the command, another one each time; the last of them may come right behind its end.
fn moment(i: u64) -> Duration {
    Duration::from_millis(60 + (i * 611) % 1900)
}

/// One line of the table.
fn row(way: &str, server: &str, tries: u64, cuts: u64, took: Duration) {
    eprintln!("| {way} | {server} | {tries} | {cuts} | {tries} of {tries} | {:.0} s |", took.as_secs_f64());
}

/// A way to cut: what it does to the server, and for how long. A command that had ended before it was cut, as it does on a machine that is
/// slow to wake us, is another try's. How many commands there were.
async fn cut_and_check(b: &mut Bench, way: &str, server: &str, tries: u64, mut cut: impl AsyncFnMut(&mut Bench, u64)) -> u64 {
    let (began, mut cuts, mut commands) = (Instant::now(), 0, 0);
    while cuts < tries {
        let i = commands;
        commands += 1;
        assert!(i < 3 * tries, "{way} on {server}: {cuts} of {i} commands were cut");
        // Each time without a connection from before.
        b.shared = Arc::default();
        let id = format!("{}-{i}", way.split(' ').next().unwrap_or(way));
        let name = format!("ran-{id}");
        let work = {
            let (cx, handle, registry) = (b.cx(&id), b.handle(), b.registry.clone());
            let script = script(&name);
            tokio::spawn(async move {
                let p = registry.primitives.get(&(Some("Host"), "try_run")).unwrap();
                let call = p.spec().bind(Some(handle), vec![script.into()]).unwrap();
                p.act(&cx, &call).await
            })
        };
        let ran = b.host.home().join(&name);
        while !ran.exists() && !work.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(moment(i)).await;
        let late = work.is_finished();
        if !late {
            cut(b, i).await;
        }
        let o = work.await.unwrap().unwrap_or_else(|e| panic!("{way} on {server}, try {i}: {e:?}"));
        check(&o, &b.host.home().join(&name), &format!("{way} on {server}, try {i}"));
        cuts += u64::from(!late);
    }
    row(way, server, tries, cuts, began.elapsed());
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_servers_are_killed() {
    for kind in [Kind::OpenSsh, Kind::Dropbear] {
        let Some(s) = Server::start(kind) else { continue };
        let mut b = Bench::of(s);
        cut_and_check(&mut b, "session process killed", &format!("{kind:?}"), tries(), async |b, _| b.host.cut()).await;
        cut_and_check(&mut b, "server killed, started again 1 s later", &format!("{kind:?}"), tries(), async |b, _| {
            b.host.down();
            tokio::time::sleep(Duration::from_secs(1)).await;
            b.host.up();
        })
        .await;
    }
}

/// A server behind a proxy.
pub(super) async fn behind_a_proxy(kind: Kind) -> Option<(Bench, Proxy, tempfile::TempDir)> {
    let mut b = Bench::of(Server::start(kind)?);
    let place = b.host.settings().get("ssh").and_then(|v| v.as_str()?.split_once('@').map(|(_, p)| p.to_string()))?;
    let proxy = Proxy::start(place).await;
    let dir = tempfile::tempdir().unwrap();
    b.env = environment(&[("old", proxy.settings(&b.host.settings(), dir.path()))]);
    Some((b, proxy, dir))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_reset() {
    for kind in Kind::ALL {
        let Some((mut b, proxy, _dir)) = behind_a_proxy(kind).await else { continue };
        let commands = cut_and_check(&mut b, "TCP reset", &format!("{kind:?}"), tries(), async |_, _| proxy.reset()).await;
        assert!(proxy.connections() >= commands + tries(), "each try was cut");
    }
    let Some(net) = Netns::new() else { return };
    let around = Around { address: Some(net.address.clone()), prefix: net.prefix(), ..Around::default() };
    let Some(s) = Sshd::start_in("", around) else { return };
    let port = s.port;
    let mut b = Bench::of(Server::OpenSsh(s));
    cut_and_check(&mut b, "reset by the firewall for 2 s", "OpenSsh", tries(), async |_, _| {
        net.reset_packets(port);
        tokio::time::sleep(Duration::from_secs(2)).await;
        net.heal();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_are_dropped() {
    let Some(net) = Netns::new() else { return };
    let around = Around { address: Some(net.address.clone()), prefix: net.prefix(), ..Around::default() };
    let Some(s) = Sshd::start_in("", around) else { return };
    let mut b = Bench::of(Server::OpenSsh(s));
    let (long, n) = if all() { (60, 3) } else { (4, 2) };
    cut_and_check(&mut b, &format!("packets dropped for {long} s"), "OpenSsh", n, async |_, _| {
        net.drop_packets();
        tokio::time::sleep(Duration::from_secs(long)).await;
        net.heal();
    })
    .await;
}

/// A wall clock that can be set forward, as it is after a sleep.
struct Jumping(Mutex<SignedDuration>);

impl Clock for Jumping {
    fn now(&self) -> Timestamp {
        Timestamp::now() + *self.0.lock()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_laptop_sleeps() {
    for kind in Kind::ALL {
        let Some((b, proxy, _dir)) = behind_a_proxy(kind).await else { continue };
        let began = Instant::now();
        let n = if all() { 10 } else { 1 };
        for i in 0..n {
            let clock = Arc::new(Jumping(Mutex::default()));
            let id = format!("sleep-{i}");
            let cx = Cx { clock: clock.clone(), shared: Arc::default(), ..b.cx(&id) };
            let ran = format!("ran-{id}");
            let (o, ()) = tokio::join!(b.act_on(&cx, b.handle(), "try_run", vec![script(&ran).into()]), async {
                begun(&b.host.home().join(&ran)).await;
                tokio::time::sleep(moment(i)).await;
                // The connection is dead when it wakes, and nobody says so; the clock has gone on.
                proxy.freeze();
                *clock.0.lock() += SignedDuration::from_hours(8);
            });
            check(&o.unwrap(), &b.host.home().join(&ran), &id);
        }
        let each = began.elapsed() / u32::try_from(n).unwrap();
        assert!(each < Duration::from_secs(25), "a sleep is noticed long before keep-alive gives up: {each:?}");
        row("asleep for 8 h, the connection dead", &format!("{kind:?}"), n, n, began.elapsed());
        // With a connection that has survived the sleep, nothing is cut.
        let clock = Arc::new(Jumping(Mutex::default()));
        let cx = Cx { clock: clock.clone(), shared: Arc::default(), ..b.cx("short") };
        let before = proxy.connections();
        let (o, ()) = tokio::join!(b.act_on(&cx, b.handle(), "try_run", vec!["sleep 4; echo done".into()]), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            *clock.0.lock() += SignedDuration::from_mins(5);
        });
        assert_eq!((field(&o.unwrap(), "stdout"), proxy.connections()), ("done\n".into(), before + 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_given_up_by_keep_alive() {
    if !all() {
        return;
    }
    let Some((mut b, proxy, _dir)) = behind_a_proxy(Kind::OpenSsh).await else { return };
    cut_and_check(&mut b, "the peer falls silent for ever", "OpenSsh", 3, async |_, _| proxy.freeze()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_may_be_repeated_begins_anew() {
    for kind in Kind::ALL {
        let Some((b, proxy, _dir)) = behind_a_proxy(kind).await else { continue };
        for name in ["read", "converge"] {
            let script = format!("echo begun >>{name}; sleep 1.5; echo ended >>{name}; echo done");
            let (o, ()) = tokio::join!(b.act(name, name, vec![script.into()]), async {
                tokio::time::sleep(Duration::from_millis(700)).await;
                proxy.reset();
            });
            assert_eq!(field(&o.unwrap(), "stdout"), "done\n".into(), "{kind:?}");
            tokio::time::sleep(Duration::from_millis(1200)).await;
            assert_eq!(b.read(name), "begun\nbegun\nended\n", "{kind:?}: what still ran was ended before it began anew");
        }
        assert!(b.world.messages.lock().iter().any(|m| m.contains("begins anew")), "it was said");
    }
}

/// A project with one host and one step, for the binary.
struct OnDisk {
    dir: tempfile::TempDir,
}

impl OnDisk {
    fn new(s: &Server, command: &str) -> OnDisk {
        let dir = tempfile::tempdir().unwrap();
        let set: String = s.settings().iter().map(|(k, v)| format!("{k} = \"{}\"\n", v.as_str().unwrap())).collect();
        std::fs::write(dir.path().join("runbook.toml"), format!("[environments.test]\n[environments.test.hosts.old]\n{set}")).unwrap();
        let text = format!("//! A test.\nstep \"long\" {{ host(\"old\").try_run(`{command}`); }} irreversible \"a test\"\n");
        std::fs::write(dir.path().join("long.rhai"), text).unwrap();
        OnDisk { dir }
    }

    fn spawn(&self, args: &[&str]) -> Child {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_runbook"))
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// All that the step's command printed, as `runbook log --output` gives it.
    fn output(&self) -> (Vec<u8>, Vec<u8>) {
        let out =
            Command::new(env!("CARGO_BIN_EXE_runbook")).args(["log", "--output", "long"]).current_dir(self.dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (out.stdout, out.stderr)
    }
}

#[test]
fn the_controller_is_killed() {
    for kind in Kind::ALL {
        let Some(s) = Server::start(kind) else { continue };
        let began = Instant::now();
        let (mut kills, mut good) = (0, 0);
        for i in 0.. {
            let mut killed = 0;
            assert!(i < 3 * tries(), "{kind:?}: {good} of {i} runs were killed before their end");
            let ran: PathBuf = s.home().join(format!("ran-killed-{i}"));
            let p = OnDisk::new(&s, &script(&ran.display().to_string()));
            let mut child = p.spawn(&["run", "long.rhai", "--env", "test"]);
            // Killed once or more often: after the command began, and again while it is followed after the resume.
            let mut code = None;
            for round in 0..3 {
                std::thread::sleep(moment(i * 3 + round).min(Duration::from_millis(900)));
                if let Some(s) = child.try_wait().unwrap() {
                    code = s.code();
                    break;
                }
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
                child = p.spawn(&["resume", "--yes"]);
            }
            let code = code.or_else(|| child.wait().unwrap().code());
            // A controller that died before it had recorded the run leaves nothing to resume.
            let log = p.log();
            // One whose run had ended when it was killed is another try's; all that is asked of the run below holds for it, too.
            let late = code != Some(0) && log.contains("cannot be resumed: it has finished");
            if log.contains("RB0008") {
                let done = p.spawn(&["run", "long.rhai", "--env", "test"]).wait().unwrap();
                assert!(done.success(), "{kind:?}, try {i}: {done}: {}", p.log());
            } else if !late {
                assert_eq!(code, Some(0), "{kind:?}, try {i}: {log}");
            }
            let (out, err) = p.output();
            let want = wanted();
            assert_eq!(sha256_hex(&out), sha256_hex(want.0.as_bytes()), "{kind:?}, try {i}");
            assert_eq!(String::from_utf8_lossy(&err), want.1, "{kind:?}, try {i}");
            assert_eq!(std::fs::read_to_string(&ran).unwrap(), "once\n", "{kind:?}, try {i}");
            let export = Command::new(env!("CARGO_BIN_EXE_runbook")).args(["audit", "export"]).current_dir(p.dir.path()).output().unwrap();
            assert!(String::from_utf8_lossy(&export.stdout).contains("\"status\":7"), "{kind:?}, try {i}: the status");
            if late {
                continue;
            }
            (kills, good) = (kills + killed, good + 1);
            if good == tries() {
                break;
            }
        }
        row("controller killed (SIGKILL), resumed", &format!("{kind:?}"), tries(), kills, began.elapsed());
    }
}

#[test]
fn fifty_megabytes_pass_through_a_small_controller() {
    let Some(s) = Server::start(Kind::OpenSsh) else { return };
    let p = OnDisk::new(&s, "seq 1 6500000");
    let mut child = p.spawn(&["run", "long.rhai", "--env", "test", "--json"]);
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let hwm = text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        peak = peak.max(hwm.unwrap_or(0));
        if let Some(s) = child.try_wait().unwrap() {
            break s.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(code, Some(0), "{}", p.log());
    let (out, _) = p.output();
    let want: Vec<u8> = (1..=6_500_000u32).flat_map(|i| format!("{i}\n").into_bytes()).collect();
    assert_eq!(sha256_hex(&out), sha256_hex(&want));
    let store = std::fs::metadata(p.dir.path().join(".runbook/runs.db")).unwrap().len();
    eprintln!("{} bytes of output: peak memory {peak} kB, the record {store} bytes", want.len());
    assert!(peak > 0 && peak < 100 << 10, "peak memory {peak} kB");
    assert!(store < 8 << 20, "the record is {store} bytes");
}
