//! End-to-end tests of the embedded lab: its daemon, with real OpenSSH, `dig` and `nsupdate` as clients.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runbook_lab::{Plan, Status};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::support::{self, have};

struct Lab {
    rt: Runtime,
    dir: PathBuf,
    overlay: Value,
    _tmp: TempDir,
}

fn plan(ttl_s: u64, every_ms: u64) -> Plan {
    support::lab::plan(&["old", "new", "vault"], Duration::from_secs(ttl_s), Duration::from_millis(every_ms))
}

impl Lab {
    fn up(plan: &Plan) -> Lab {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("shop/.runbook/lab/demo");
        let rt = Runtime::new().unwrap();
        rt.block_on(runbook_lab::up(&dir, plan)).unwrap();
        let overlay = rt.block_on(runbook_lab::overlay(&dir)).unwrap();
        Lab { rt, dir, overlay, _tmp: tmp }
    }

    fn status(&self) -> Status {
        self.rt.block_on(runbook_lab::status(&self.dir)).unwrap()
    }

    /// Waits until the status is as wanted.
    fn until(&self, what: &str, good: impl Fn(&Status) -> bool) -> Status {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let s = self.status();
            if good(&s) {
                return s;
            }
            assert!(Instant::now() < end, "{what} did not come true: {s:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The most memory that the daemon has ever had, in KiB.
    fn peak_memory(&self) -> u64 {
        let pid = std::fs::read_to_string(self.dir.join("lab.pid")).unwrap();
        let pid = pid.split(|c: char| !c.is_ascii_digit()).find(|w| !w.is_empty()).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim_end_matches("kB").trim().parse().unwrap()
    }

    fn address(&self, host: &str) -> String {
        self.overlay["hosts"][host]["address"].as_str().unwrap().to_string()
    }

    fn folder(&self, host: &str) -> PathBuf {
        self.dir.join("hosts").join(host)
    }

    /// `ssh` with everything up to the destination, which is the last word.
    fn ssh_to(&self, host: &str, options: &[&str]) -> Command {
        let h = &self.overlay["hosts"][host];
        let (user, port) = h["ssh"].as_str().unwrap().rsplit_once(':').unwrap();
        let mut c = Command::new("ssh");
        c.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"])
            .args(["-i", h["identity_file"].as_str().unwrap(), "-p", port])
            .args(["-o", &format!("UserKnownHostsFile={}", h["known_hosts"].as_str().unwrap())])
            .args(options)
            .arg(user);
        c
    }

    fn ssh(&self, host: &str, script: &str) -> Output {
        self.ssh_to(host, &[]).arg(script).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a script that must succeed and returns its output.
    fn sh(&self, host: &str, script: &str) -> String {
        let out = self.ssh(host, script);
        assert!(out.status.success(), "{script}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn dns(&self) -> (String, String) {
        let server = self.overlay["zones"]["example.test"]["server"].as_str().unwrap();
        let (a, p) = server.rsplit_once(':').unwrap();
        (a.to_string(), p.to_string())
    }

    fn dig(&self, args: &[&str]) -> String {
        let (a, p) = self.dns();
        let out = Command::new("dig").args([&format!("@{a}"), "-p", &p, "+tries=1", "+time=3"]).args(args).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }

    fn secret(&self) -> String {
        std::fs::read_to_string(self.overlay["secrets"]["lab-tsig"]["file"].as_str().unwrap()).unwrap().trim().to_string()
    }

    /// Runs `nsupdate`; `Err` is what it says.
    fn nsupdate(&self, secret: &str, lines: &str) -> Result<(), String> {
        let ((a, p), zone) = (self.dns(), &self.overlay["zones"]["example.test"]);
        let (alg, name) = (zone["tsig_algorithm"].as_str().unwrap(), zone["tsig_name"].as_str().unwrap());
        let script = format!("server {a} {p}\nzone example.test\nkey {alg}:{name} {secret}\n{lines}\nsend\n");
        let mut child = Command::new("nsupdate").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    }

    fn point(&self, host: &str, ttl: u32) {
        let lines = format!("update delete shop.example.test A\nupdate add shop.example.test {ttl} A {}", self.address(host));
        self.nsupdate(&self.secret(), &lines).unwrap();
    }

    /// GET through the public entry: the status and the body.
    fn get(&self, path: &str) -> (u16, String) {
        let entry = self.status().entry.unwrap();
        http(entry.strip_prefix("http://").unwrap(), "shop.example.test", path)
    }

    /// Every process that carries the lab's mark.
    fn processes(&self) -> Vec<i32> {
        marked(&self.dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let done = self.rt.block_on(runbook_lab::down(&self.dir));
        if !std::thread::panicking() {
            done.unwrap();
        }
    }
}

fn marked(dir: &Path) -> Vec<i32> {
    let mark = format!("RUNBOOK_LAB={}", dir.display());
    let mine = |pid: &i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|v| v == mark.as_bytes())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(mine).collect()
}

fn http(to: &str, host: &str, path: &str) -> (u16, String) {
    use std::io::Read;
    let Ok(mut s) = std::net::TcpStream::connect(to) else { return (0, "no connection".into()) };
    write!(s, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut bytes = vec![];
    let _ = s.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, b)| b.to_string()))
}

fn wait_for(what: &str, limit: Duration, good: impl Fn() -> bool) {
    let end = Instant::now() + limit;
    while !good() {
        assert!(Instant::now() < end, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn commands_run_over_ssh_as_on_a_host() {
    if !have("ssh") {
        return;
    }
    let lab = Lab::up(&plan(60, 1000));
    let out = lab.ssh("old", "printf 'a\\0b'; echo oops >&2; pwd >&2; exit 7");
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(7), &b"a\0b"[..]));
    assert_eq!(String::from_utf8(out.stderr).unwrap(), format!("oops\n{}\n", lab.folder("old").display()));
    assert_eq!(lab.sh("vault", "cd; pwd").trim(), lab.folder("vault").display().to_string());
    assert_eq!(lab.ssh("old", "kill -9 $$").status.code(), Some(255), "a signal is no exit status");
    assert_eq!(lab.ssh("old", "no-such-command").status.code(), Some(127));
    // The controller's environment stays with it; HOME is an example of what must not come from here.
    let env = lab.sh("old", "env");
    assert!(!env.contains("CARGO"), "{env}");
    assert!(env.contains(&format!("HOME={}", lab.folder("old").display())), "{env}");

    let data: Vec<u8> = (0..5u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut child = lab.ssh_to("new", &[]).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(out.status.success() && out.stdout == data, "{} bytes came back", out.stdout.len());

    let mut shell = lab.ssh_to("new", &["-T"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"echo from $0\nexit 3\n").unwrap();
    let out = shell.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(3), &b"from /bin/sh\n"[..]));
    if have("setsid") {
        let out = lab.ssh_to("new", &["-tt"]).arg("test -t 0 && test -t 1 && echo on a terminal").stdin(Stdio::null()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "on a terminal");
    }
}

#[test]
fn a_login_needs_the_key_and_a_client_can_tell_the_hosts_apart() {
    if !have("ssh") || !have("ssh-keygen") {
        return;
    }
    let lab = Lab::up(&plan(60, 1000));
    let other = lab.dir.parent().unwrap().join("other");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&other).status().unwrap();
    assert!(made.success());
    let h = &lab.overlay["hosts"]["old"];
    let known = h["known_hosts"].as_str().unwrap();
    let (user, port) = h["ssh"].as_str().unwrap().rsplit_once(':').unwrap();
    let with = |key: &Path, known: &Path| {
        let known = format!("UserKnownHostsFile={}", known.display());
        let mut c = Command::new("ssh");
        c.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"]);
        let out = c.args(["-o", &known, "-p", port, "-i"]).arg(key).args([user, "true"]).output().unwrap();
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(with(&other, Path::new(known)).contains("Permission denied (publickey)"));
    // The key of another host in this one's place.
    let text = std::fs::read_to_string(known).unwrap();
    let (old, new) = (lab.address("old"), lab.address("new"));
    let swapped = text.replace(&old, "X").replace(&new, &old).replace('X', &new);
    let wrong = lab.dir.parent().unwrap().join("wrong");
    std::fs::write(&wrong, swapped).unwrap();
    let identity = h["identity_file"].as_str().unwrap();
    assert!(with(Path::new(identity), &wrong).contains("Host key verification failed"));
    use std::os::unix::fs::PermissionsExt;
    let mode = |p: &str| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(identity), mode(known), mode(lab.dir.to_str().unwrap())), (0o600, 0o600, 0o700));
}

#[test]
fn what_a_command_leaves_running_outlives_the_connection() {
    if !have("ssh") {
        return;
    }
    let lab = Lab::up(&plan(60, 1000));
    let begun = Instant::now();
    lab.sh("old", "nohup sh -c 'sleep 1; echo done > left-behind' >/dev/null 2>&1 &");
    assert!(begun.elapsed() < Duration::from_millis(900), "a detached process does not hold the channel open");
    // A client that is killed: its command goes on, as with sshd, until it meets the closed pipe.
    let mut client = lab.ssh_to("old", &[]).arg("touch begun; sleep 1; touch went-on").stdin(Stdio::null()).spawn().unwrap();
    wait_for("the command's beginning", Duration::from_secs(5), || lab.folder("old").join("begun").exists());
    client.kill().unwrap();
    client.wait().unwrap();
    for file in ["left-behind", "went-on"] {
        wait_for(file, Duration::from_secs(10), || lab.folder("old").join(file).exists());
    }
    // A background process that holds the output keeps the channel open.
    let begun = Instant::now();
    assert_eq!(lab.sh("old", "(sleep 1; echo late) & echo early"), "early\nlate\n");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // Output into a closed channel ends the writer.
    let mut client = lab.ssh_to("old", &[]).arg("echo $$ > writer; exec yes").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let pid = || std::fs::read_to_string(lab.folder("old").join("writer")).unwrap_or_default().trim().parse::<i32>().ok();
    wait_for("the writer's beginning", Duration::from_secs(5), || pid().is_some());
    client.kill().unwrap();
    client.wait().unwrap();
    let pid = pid().unwrap();
    wait_for("the writer's end", Duration::from_secs(10), || !lab.processes().contains(&pid));
}

#[test]
fn a_stuck_command_holds_up_no_other_channel_of_its_connection() {
    if !have("ssh") {
        return;
    }
    let lab = Lab::up(&plan(60, 1000));
    let control = lab.dir.parent().unwrap().join("c");
    let path = format!("ControlPath={}", control.display());
    let mut master = lab.ssh_to("old", &["-M", "-N", "-o", &path]).stdin(Stdio::null()).spawn().unwrap();
    wait_for("the connection", Duration::from_secs(5), || control.exists());
    let mut stuck = lab.ssh_to("old", &["-o", &path]).arg("exec sleep 30").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = stuck.stdin.take().unwrap();
    let before = lab.peak_memory();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let writer = std::thread::spawn(move || {
        let chunk = vec![7u8; 1 << 20];
        // Ends with an error when the client is killed.
        while stdin.write_all(&chunk).is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    wait_for("input far ahead of the command", Duration::from_secs(30), || sent.load(Ordering::SeqCst) >= 40);
    for i in 0..10 {
        let out = lab.ssh_to("old", &["-o", &path]).arg(format!("echo {i}")).stdin(Stdio::null()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{i}\n"));
    }
    assert!(stuck.try_wait().unwrap().is_none(), "it is still stuck");
    let grown = lab.peak_memory() - before;
    assert!(grown < 20 << 10, "the lab took {grown} KiB more for {} MiB of input", sent.load(Ordering::SeqCst));
    for child in [&mut stuck, &mut master] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    writer.join().unwrap();
}

#[test]
fn a_slow_command_gets_all_of_its_input_in_order() {
    if !have("ssh") {
        return;
    }
    let lab = Lab::up(&plan(60, 1000));
    let input: Vec<u8> = (0..6_000_000u32).flat_map(u32::to_le_bytes).collect();
    let mut c = lab.ssh_to("old", &[]).arg("sleep 1; sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = c.stdin.take().unwrap();
    stdin.write_all(&input).unwrap();
    drop(stdin);
    let out = String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(out.split_whitespace().next(), Some(runbook_core::digest::sha256_hex(&input).as_str()));
}

#[test]
fn connections_go_through_a_host_to_another() {
    if !have("ssh") {
        return;
    }
    let lab = Lab::up(&plan(60, 1000));
    let to = format!("{}:8081", lab.address("old"));
    let mut c = lab.ssh_to("vault", &["-W", &to]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Kept open until the answer is there: the shop takes the end of input for the customer's going away.
    let mut stdin = c.stdin.take().unwrap();
    stdin.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let out = String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap();
    drop(stdin);
    assert!(out.contains("\"ok\":true"), "{out}");
    let refused = lab.ssh_to("vault", &["-W", &format!("{}:8081", lab.address("new"))]).stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("connect failed"), "{refused:?}");
}

#[test]
fn services_are_steered_by_systemctl() {
    if !have("ssh") {
        return;
    }
    let lab = Lab::up(&plan(60, 1000));
    let said = |host: &str, script: &str| {
        let out = lab.ssh(host, script);
        (out.status.code().unwrap(), String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    assert_eq!(said("old", "systemctl is-active shop"), (0, "active".into()));
    assert_eq!(said("new", "systemctl is-active shop.service"), (3, "inactive".into()));
    assert_eq!(said("new", "systemctl is-enabled shop"), (1, "disabled".into()));
    assert_eq!(said("new", "systemctl is-active --quiet edge"), (0, String::new()));
    assert_eq!(said("vault", "systemctl start shop").0, 5, "no such unit there");
    let out = lab.ssh("new", "systemctl start shop");
    assert_eq!(out.status.code(), Some(1), "it has no configuration yet");
    assert!(String::from_utf8_lossy(&out.stderr).contains("Job for shop.service failed"));
    assert_eq!(said("new", "systemctl is-active shop"), (3, "failed".into()));
    let status = said("new", "systemctl status shop");
    assert!(status.0 == 3 && status.1.contains("shop.conf cannot be read"), "{status:?}");

    let pid = said("old", "systemctl show -p MainPID --value shop").1;
    assert_eq!(said("old", "systemctl restart shop && systemctl is-active shop"), (0, "active".into()));
    assert_ne!(said("old", "systemctl show -p MainPID --value shop").1, pid);
    assert_eq!(said("old", "systemctl stop shop; systemctl is-active shop"), (3, "inactive".into()));
    assert!(!lab.folder("old").join("shop/shop.db-wal").exists(), "a stopped shop leaves a whole database file");
    assert_eq!(lab.get("/health").0, 502);
    assert_eq!(said("old", "systemctl enable --now shop; systemctl is-active shop edge"), (0, "active\nactive".into()));
    assert_eq!(lab.get("/health").0, 200);
    assert_eq!(said("old", "kill -9 $(systemctl show -p MainPID --value shop); sleep 0.2; systemctl is-active shop"), (3, "failed".into()));
    // The state outlives the daemon.
    lab.sh("old", "systemctl stop edge");
    lab.rt.block_on(runbook_lab::down(&lab.dir)).unwrap();
    lab.rt.block_on(runbook_lab::up(&lab.dir, &plan(60, 1000))).unwrap();
    assert_eq!(said("old", "systemctl is-active edge"), (3, "inactive".into()));
    assert_eq!(said("new", "systemctl is-active edge"), (0, "active".into()));
}

#[test]
fn the_zone_is_changed_by_nsupdate_and_seen_by_dig() {
    if !have("dig") || !have("nsupdate") {
        return;
    }
    let lab = Lab::up(&plan(12, 1000));
    let old = lab.address("old");
    assert_eq!(
        lab.dig(&["+noall", "+answer", "shop.example.test"]).split_whitespace().collect::<Vec<_>>(),
        ["shop.example.test.", "12", "IN", "A", &old]
    );
    assert_eq!(lab.dig(&["+short", "+tcp", "www.example.test"]), format!("shop.example.test.\n{old}\n"));
    assert!(lab.dig(&["nosuch.example.test"]).contains("status: NXDOMAIN"));
    assert!(lab.dig(&["+norec", "shop.example.test", "AAAA"]).contains("AUTHORITY: 1"));
    let serial = |lab: &Lab| lab.dig(&["+short", "example.test", "SOA"]).split(' ').nth(2).unwrap().parse::<u32>().unwrap();
    let before = serial(&lab);
    let secret = lab.secret();
    let add = "update add t.example.test 5 TXT \"hello\"";
    lab.nsupdate(&secret, add).unwrap();
    assert_eq!((lab.dig(&["+short", "t.example.test", "TXT"]), serial(&lab)), ("\"hello\"\n".into(), before + 1));
    let refused = lab.nsupdate("d3Jvbmc=", add).unwrap_err();
    assert!(refused.contains("NOTAUTH(BADSIG)"), "{refused}");
    let stale = lab.nsupdate(&secret, "prereq yxrrset shop.example.test A 127.0.0.9\nupdate delete shop.example.test A").unwrap_err();
    assert!(stale.contains("NXRRSET"), "{stale}");
    let key = format!("hmac-sha256:lab-update:{secret}");
    assert!(lab.dig(&["-y", &key, "example.test", "AXFR"]).contains("hello"));
    assert!(!lab.dig(&["example.test", "AXFR"]).contains("hello"));
    assert_eq!(lab.dig(&["-y", &key, "+short", "shop.example.test"]), format!("{old}\n"), "signed questions get signed answers");
    // What was acknowledged is there after the daemon's death.
    let pid = lab.status().pid.unwrap();
    Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    lab.rt.block_on(runbook_lab::up(&lab.dir, &plan(12, 1000))).unwrap();
    assert_eq!(lab.dig(&["+short", "t.example.test", "TXT"]), "\"hello\"\n");
}

#[test]
fn the_entry_keeps_an_answer_until_its_ttl_has_run_out() {
    if !have("nsupdate") {
        return;
    }
    let lab = Lab::up(&plan(3, 1000));
    assert!(lab.get("/health").1.contains("\"host\":\"old\""));
    lab.point("new", 60);
    let changed = Instant::now();
    let (status, body) = lab.get("/health");
    // The customer asks once a second, so an answer may be up to 3 s old; it is fresh enough unless this machine is very slow.
    if changed.elapsed() < Duration::from_millis(200) && status == 502 {
        lab.point("old", 60);
        panic!("the new value was seen at once: {body}");
    }
    wait_for("the new value", Duration::from_secs(10), || lab.get("/health").0 == 502);
    assert_eq!(lab.status().shop_address, Some(lab.address("new")));
    // A TTL of a minute: the way back is not seen now.
    lab.point("old", 1);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(lab.get("/health").0, 502);
}

#[test]
fn the_edge_shows_its_maintenance_page_and_follows_its_upstream_file() {
    let lab = Lab::up(&plan(60, 20));
    let flag = lab.folder("old").join("edge/maintenance");
    assert_eq!(lab.get("/health").0, 200);
    std::fs::write(&flag, "").unwrap();
    let (status, page) = lab.get("/health");
    assert!(status == 503 && page.contains("Maintenance"), "{status} {page}");
    let before = lab.until("refusals", |s| s.orders_refused > 0);
    assert_eq!(before.orders_lost, None, "nobody can look while the shop is closed");
    std::fs::remove_file(&flag).unwrap();
    let upstream = lab.folder("old").join("edge/upstream");
    let after = lab.until("orders again", |s| s.orders_placed > before.orders_placed && !s.refusing);
    assert_eq!(after.orders_lost, Some(0));
    assert!(after.orders_refused > 0 && after.downtime_s > 0.0 && after.outages >= 1, "{after:?}");
    // To the other host's edge, whose shop is not there.
    std::fs::write(&upstream, format!("{}\n", lab.address("new"))).unwrap();
    let (status, body) = lab.get("/health");
    assert!(status == 502 && body.contains(&lab.address("new")), "{status} {body}");
    std::fs::write(&upstream, "127.0.0.1:8081\n").unwrap();
    assert_eq!(lab.get("/health").0, 200);
    let (status, pdf) = (lab.get("/uploads/mug.jpg").0, lab.get("/uploads/../shop.conf").0);
    assert_eq!((status, pdf), (200, 400));
}

#[test]
fn refused_orders_are_not_lost_and_a_deleted_one_is() {
    let lab = Lab::up(&plan(60, 20));
    lab.until("orders", |s| s.orders_placed > 20);
    let pid = std::fs::read_dir("/proc").unwrap().flatten().find_map(|e| {
        let pid: i32 = e.file_name().to_str()?.parse().ok()?;
        let cmd = std::fs::read(e.path().join("cmdline")).ok()?;
        let text = String::from_utf8_lossy(&cmd).replace('\0', " ");
        (text.contains("__lab shop") && text.contains(lab.dir.to_str()?)).then_some(pid)
    });
    Command::new("kill").args(["-9", &pid.unwrap().to_string()]).status().unwrap();
    let s = lab.until("refusals", |s| s.orders_refused > 5);
    assert_eq!((s.orders_lost, s.refusing), (None, true));
    if !have("ssh") {
        return;
    }
    lab.sh("old", "systemctl start shop");
    let s = lab.until("orders again", |s| !s.refusing && s.orders_unsure == 0 && s.orders_lost == Some(0));
    assert!(s.longest_downtime_s > 0.05 && s.outages >= 1, "{s:?}");
    // A fence: the shop answers with the trigger's text, the customer notes a refusal.
    let db = rusqlite::Connection::open(lab.folder("old").join("shop/shop.db")).unwrap();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    db.execute_batch("CREATE TRIGGER fence BEFORE INSERT ON orders BEGIN SELECT RAISE(ABORT, 'moved'); END").unwrap();
    let fenced = lab.until("refusals", |x| x.orders_refused > s.orders_refused + 5);
    assert_eq!(fenced.orders_lost, Some(0));
    db.execute_batch("DROP TRIGGER fence").unwrap();
    lab.until("orders again", |x| !x.refusing);
    db.execute_batch("DELETE FROM payments WHERE order_id LIKE 'o-%'").unwrap();
    let gone: String = db.query_row("SELECT id FROM orders WHERE id LIKE 'o-%' ORDER BY rowid LIMIT 1", [], |r| r.get(0)).unwrap();
    db.execute("DELETE FROM orders WHERE id = ?", [&gone]).unwrap();
    let s = lab.status();
    assert_eq!((s.orders_lost, s.lost), (Some(1), vec![gone]));
}

#[test]
fn a_cutover_by_hand_loses_no_order() {
    if !have("ssh") || !have("nsupdate") {
        return;
    }
    let lab = Lab::up(&plan(2, 20));
    lab.until("orders", |s| s.orders_placed > 20);
    lab.sh(
        "new",
        "mkdir -p shop/uploads; printf 'port = 8081\ndatabase = \"shop/shop.db\"\nuploads = \"shop/uploads\"\n' > shop/shop.conf",
    );
    for host in ["old", "new"] {
        lab.sh(host, "touch edge/maintenance");
    }
    // Orders that were passed on before the page went up may still come in; the fence is what ends them.
    let from = rusqlite::Connection::open(lab.folder("old").join("shop/shop.db")).unwrap();
    from.busy_timeout(Duration::from_secs(5)).unwrap();
    from.execute_batch("CREATE TRIGGER fence BEFORE INSERT ON orders BEGIN SELECT RAISE(ABORT, 'moved'); END").unwrap();
    let mut to = rusqlite::Connection::open(lab.folder("new").join("shop/shop.db")).unwrap();
    rusqlite::backup::Backup::new(&from, &mut to).unwrap().run_to_completion(100, Duration::ZERO, None).unwrap();
    to.execute_batch("DROP TRIGGER fence").unwrap();
    drop(to);
    lab.sh("new", "systemctl start shop");
    lab.point("new", 60);
    lab.sh("new", "rm edge/maintenance");
    // A customer with a stale answer is served through the old entry.
    lab.sh("old", &format!("echo {} > edge/upstream; rm edge/maintenance", lab.address("new")));
    let before = lab.status().orders_placed;
    let s = lab.until("orders on the new host", |s| s.orders_placed > before + 20 && !s.refusing && s.orders_unsure == 0);
    assert_eq!((s.orders_lost, s.shop_address), (Some(0), Some(lab.address("new"))));
    assert!(lab.get("/health").1.contains("\"host\":\"new\""));
    // Longer than the old TTL: the entry's answer from before the change has run out.
    std::thread::sleep(Duration::from_secs(3));
    let refused = lab.status().orders_refused;
    lab.sh("old", "systemctl stop shop edge");
    let s = lab.until("more orders", |n| n.orders_placed > s.orders_placed + 20);
    assert_eq!((s.orders_lost, s.orders_refused), (Some(0), refused), "nothing leads to the old host any more");
}

#[test]
fn reset_brings_back_the_world_before() {
    if !have("ssh") || !have("nsupdate") {
        return;
    }
    let lab = Lab::up(&plan(60, 20));
    let listing = "find . -type f -not -name 'shop.db*' -not -path './bin/*' -exec sha256sum {} + | sort";
    let (files, addresses) = (lab.sh("old", listing), lab.overlay.clone());
    lab.until("orders", |s| s.orders_placed > 10);
    lab.point("new", 5);
    lab.sh("old", "rm shop/uploads/mug.jpg; echo x > edge/maintenance; systemctl stop shop; nohup sleep 300 >/dev/null 2>&1 &");
    lab.sh("new", "mkdir shop; echo hi > shop/x; systemctl stop edge");
    lab.rt.block_on(runbook_lab::reset(&lab.dir)).unwrap();
    assert_eq!(lab.sh("old", listing), files);
    assert_eq!(lab.sh("new", "ls; cat edge/upstream"), "bin\nedge\n127.0.0.1:8081\n");
    assert_eq!(lab.sh("new", "systemctl is-active edge"), "active\n");
    assert_eq!(lab.rt.block_on(runbook_lab::overlay(&lab.dir)).unwrap(), addresses);
    let s = lab.until("orders", |s| s.orders_placed > 10);
    assert_eq!((s.orders_lost, s.orders_refused, s.downtime_s, s.shop_address), (Some(0), 0, 0.0, Some(lab.address("old"))));
    let db = rusqlite::Connection::open(lab.folder("old").join("shop/shop.db")).unwrap();
    let first: i64 = db.query_row("SELECT count(*) FROM orders WHERE id NOT LIKE 'o-%'", [], |r| r.get(0)).unwrap();
    assert_eq!(first, 320);
    let sleepers =
        lab.processes().into_iter().filter(|p| std::fs::read_to_string(format!("/proc/{p}/comm")).is_ok_and(|c| c.trim() == "sleep"));
    assert_eq!(sleepers.count(), 0);
}

#[test]
fn down_leaves_no_process_even_after_the_daemons_death() {
    if !have("ssh") {
        return;
    }
    let lab = Lab::up(&plan(60, 20));
    let leave = "nohup sleep 300 >/dev/null 2>&1 &";
    lab.sh("vault", leave);
    assert!(lab.processes().len() >= 5, "daemon, shop, two edges, the sleeper");
    lab.rt.block_on(runbook_lab::down(&lab.dir)).unwrap();
    assert_eq!(lab.processes(), Vec::<i32>::new());
    let s = lab.status();
    assert!(!s.up && s.orders_placed > 0 && s.orders_lost.is_none(), "{s:?}");
    lab.rt.block_on(runbook_lab::down(&lab.dir)).unwrap();

    lab.rt.block_on(runbook_lab::up(&lab.dir, &plan(60, 20))).unwrap();
    lab.sh("vault", leave);
    Command::new("kill").args(["-9", &lab.status().pid.unwrap().to_string()]).status().unwrap();
    wait_for("the daemon's death", Duration::from_secs(5), || !lab.status().up);
    assert!(lab.processes().len() >= 4);
    lab.rt.block_on(runbook_lab::down(&lab.dir)).unwrap();
    assert_eq!(lab.processes(), Vec::<i32>::new());
}

#[test]
fn the_lab_ends_by_itself_when_its_folder_is_deleted() {
    let lab = Lab::up(&plan(60, 20));
    // The lab may write a file while its folder is being removed.
    let folder = lab.dir.ancestors().nth(3).unwrap();
    wait_for("the folder's end", Duration::from_secs(10), || std::fs::remove_dir_all(folder).is_ok() || !folder.exists());
    wait_for("the lab's end", Duration::from_secs(15), || lab.processes().is_empty());
}

#[test]
fn up_is_idempotent_and_two_labs_do_not_meet() {
    let (a, b) = (Lab::up(&plan(60, 100)), Lab::up(&plan(60, 100)));
    assert_ne!(a.address("old"), b.address("old"));
    let pid = a.status().pid;
    a.rt.block_on(runbook_lab::up(&a.dir, &plan(60, 100))).unwrap();
    assert_eq!(a.status().pid, pid);
    let e = a.rt.block_on(runbook_lab::up(&a.dir, &plan(61, 100))).unwrap_err();
    assert!(e.message.contains("other hosts or settings"), "{e}");
    let never = a.rt.block_on(runbook_lab::overlay(Path::new("/nonexistent/lab"))).unwrap_err();
    assert_eq!(never.code, runbook_core::Code::LAB_DOWN);
}

/// Not a test by itself: the process that `the_lab_outlives_its_starter` kills.
#[test]
#[ignore = "run by the_lab_outlives_its_starter"]
fn starter() {
    let dir = PathBuf::from(std::env::var_os("LAB_TEST_DIR").unwrap());
    let rt = Runtime::new().unwrap();
    rt.block_on(runbook_lab::up(&dir, &plan(60, 20))).unwrap();
    std::fs::write(dir.with_extension("ready"), "").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_lab_outlives_its_starter() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("demo");
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "lab::starter"])
        .env("LAB_TEST_DIR", &dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    wait_for("the lab", Duration::from_secs(20), || dir.with_extension("ready").exists());
    Command::new("kill").args(["-9", "--", &format!("-{}", starter.id())]).status().unwrap();
    starter.wait().unwrap();
    let rt = Runtime::new().unwrap();
    let overlay = rt.block_on(runbook_lab::overlay(&dir)).unwrap();
    let lab = Lab { rt, dir, overlay, _tmp: tmp };
    let first = lab.status();
    lab.until("more orders", |s| s.orders_placed > first.orders_placed + 20 && s.orders_lost == Some(0));
}
