//! Schedules on a whole host: systemd as its first process, its own restic and borg, timers that really fire (`tests/lab`).

use crate::support::containers::Lab;
use crate::support::desk::{Project, until};

const PASSWORD: &str = "the schedule's \"password\" $HOME";

/// A host with systemd, and a project with a repository on it.
struct Site {
    tool: &'static str,
    lab: Lab,
    p: Project,
}

impl Site {
    fn start(tool: &'static str) -> Option<Site> {
        let s = Site::with(tool, "/srv/store", "")?;
        s.run("init", "vault.init();", 0);
        Some(s)
    }

    /// With a repository of further settings, which is not made.
    fn with(tool: &'static str, repository: &str, more: &str) -> Option<Site> {
        let lab = Lab::take()?;
        // What an earlier test left, when it was killed.
        lab.on(
            "old",
            "systemctl disable --now 'runbook-backup-*.timer' >/dev/null 2>&1; systemctl stop 'runbook-backup-*.service'; umount /srv/shop/orders /srv/disk 2>/dev/null; rm -rf /srv/gone /srv/disk /etc/systemd/system/runbook-backup-* /etc/systemd/system/timers.target.wants/runbook-backup-* \
             /etc/runbook /srv/store /root/.cache/borg /root/.config/borg /srv/shop /var/lib/systemd/timers/stamp-runbook-*; systemctl daemon-reload; mkdir -p /srv/shop; echo order >/srv/shop/orders; echo tmp >/srv/shop/x.tmp",
        );
        let inventory = format!(
            "{}[environments.test.backups.vault]\nkind = {tool:?}\nhost = \"old\"\nrepository = \"{repository}\"\n{more}password = \"store\"\n[secrets]\nstore = {{ file = \"store.pw\" }}\n",
            lab.inventory()
        );
        let p = Project::new(&inventory, "");
        p.write("store.pw", PASSWORD);
        Some(Site { tool, lab, p })
    }

    /// What was said of the last action of the newest run.
    #[track_caller]
    fn note(&self) -> String {
        self.p.entries("outcome").last().map(|o| o["note"].to_string()).unwrap_or_default()
    }

    #[track_caller]
    fn run(&self, name: &str, body: &str, status: i32) -> String {
        self.p.write(
            &format!("{name}.rhai"),
            &format!("let vault = backup(\"vault\");\nlet old = host(\"old\");\nstep \"{name}\" {{\n{body}\n}}\n"),
        );
        self.p.expect(&["run", &format!("{name}.rhai"), "--env", "test"], status)
    }

    /// How many snapshots the stock tool finds, with the password that the schedule has.
    fn count(&self, schedule: &str) -> u32 {
        let file = format!("/etc/runbook/backup/{schedule}/password");
        let words = if self.tool == "borg" {
            // Without a lock: a timed run that meets one looks again after a minute (a 30th of its patience), and not before.
            // It may find a run in the middle of its writing then, and is asked again.
            format!(
                "export BORG_PASSCOMMAND='cat {file}'; for _ in $(seq 20); do l=$(borg --bypass-lock list --short /srv/store 2>/dev/null) && break; \
                 sleep .3; done; printf '%s\\n' \"$l\" | grep -c . || true"
            )
        } else {
            format!("RESTIC_PASSWORD_FILE={file} restic -r /srv/store snapshots --no-lock --json | grep -o short_id | wc -l")
        };
        self.lab.on("old", &words).trim().parse().unwrap()
    }

    fn units(&self) -> String {
        self.lab.on(
            "old",
            "find /etc/systemd/system /etc/runbook -mindepth 1 -name '*runbook*' -o -path '/etc/runbook/backup/*' 2>/dev/null | sort",
        )
    }
}

const NIGHTLY: &str = r#"vault.schedule("nightly", "02:30", old, ["/srv/shop"], #{ exclude: "*.tmp", tags: ["timer"], keep_last: 2, randomized_delay: "10m" });"#;

#[test]
fn a_timer_fires_and_its_snapshots_are_fresh() {
    fires("restic");
}

#[test]
fn a_timer_fires_and_its_snapshots_are_fresh_with_borg() {
    fires("borg");
}

fn fires(tool: &'static str) {
    let Some(s) = Site::start(tool) else { return };
    let fast =
        r#"vault.schedule("fast", ["*:*:0/6", "*:*:3/6"], old, ["/srv/shop"], #{ exclude: "*.tmp", tags: ["timer"], keep_last: 2 });"#;
    s.run("fast", fast, 0);
    // Nobody but systemd starts it.
    let count = || s.count("fast");
    until("a snapshot appeared", || count() > 0);
    until("a second one appeared", || count() > 1);
    let runs = || {
        s.lab.on("old", "journalctl -u runbook-backup-fast.service -o cat | grep -c 'Finished' || true").trim().parse::<u32>().unwrap_or(0)
    };
    until("it ran four times", || runs() > 3);
    assert!(count() <= 3, "two stay, and one that was just made: {}", count());
    let out = s.run(
        "look",
        r#"let fresh = vault.require_fresh("1m", #{ host: old, tags: ["schedule:fast", "timer"] });
           let l = vault.schedules(old); let f = l[0];
           log(`${l.len()} ${f.name} ${f.active} ${f.result} ${f.at} ${f.paths} ${type_of(f.last)} ${type_of(f.next)} ${f.drift.len()} of ${fresh.host}`);"#,
        0,
    );
    assert!(out.contains("1 fast true") && out.contains("0 of old"), "{out}");
    assert!(out.contains(" success ") || out.contains(" running "), "{out}");
    // While it is tested the next ones must not come, of which the second would prune it.
    s.lab.on("old", "systemctl stop runbook-backup-fast.timer");
    let state = || s.lab.on("old", "systemctl show -p ActiveState runbook-backup-fast.service");
    until("none is at work", || !state().contains("activating"));
    s.run("test", r#"vault.restore_test(vault.require_fresh("5m", #{ host: old }), #{ compare: false });"#, 0);
    s.lab.on("old", "systemctl start runbook-backup-fast.timer");
    // The password is for root alone, and on no command line or unit.
    assert_eq!(
        s.lab.on("old", "stat -c '%a %U' /etc/runbook/backup/fast /etc/runbook/backup/fast/password /etc/runbook/backup/fast/env").trim(),
        "700 root\n600 root\n600 root"
    );
    assert_eq!(s.lab.on("old", "cat /etc/runbook/backup/fast/password"), PASSWORD);
    let found = s.lab.on(
        "old",
        "grep -rlF \"schedule's\" /etc/systemd /run/systemd /etc/runbook 2>/dev/null; journalctl -o cat | grep -cF \"schedule's\" || true",
    );
    assert_eq!(found.trim(), "/etc/runbook/backup/fast/password\n0");

    // How the last run has ended; nothing is true of one that is at work, whose result counts as a success so far.
    let ended = |how: &str| {
        let is = s.lab.on("old", "systemctl show -p ActiveState -p Result -p ExecMainStatus runbook-backup-fast.service");
        !is.contains("ActiveState=activating") && is.contains(how)
    };
    if tool == "borg" {
        // What cannot be read fails it, where borg itself only warns.
        s.lab.on("old", "mount --bind /proc/1/mem /srv/shop/orders");
        until("it failed", || ended("ExecMainStatus=65"));
        s.lab.on("old", "umount /srv/shop/orders");
        until("it is well again", || ended("Result=success"));
    }

    // What fails is told.
    s.lab.on("old", "mv /srv/shop /srv/gone");
    until("it failed", || ended("ExecMainStatus=66"));
    let out = s.run("failed", r#"for f in vault.schedules(old) { log(`result ${f.result}`); }"#, 0);
    assert!(out.contains("result exit-code 66") || out.contains("result running"), "{out}");
    s.lab.on("old", "mv /srv/gone /srv/shop");

    s.run("stop", r#"vault.unschedule("fast", old);"#, 0);
    assert_eq!(s.units(), "");
    let out = s.run("stop-again", r#"if vault.schedules(old).len() != 0 { throw "there"; } vault.unschedule("fast", old);"#, 0);
    assert!(s.note().contains("there is no such schedule"), "{out}");
    s.run("kept", "if vault.list().len() == 0 { throw \"no snapshots\"; }", 0);
}

#[test]
fn a_timer_does_nothing_without_its_disk() {
    let Some(s) = Site::with("restic", "/srv/disk/store", "mount = \"/srv/disk\"\n") else { return };
    s.lab.on("old", "mkdir /srv/disk");
    // While the disk is in the safe.
    let fast = r#"vault.schedule("fast", ["*:*:0/6", "*:*:3/6"], old, ["/srv/shop"]);"#;
    s.run("fast", fast, 0);
    let told = || s.run("look", r#"for f in vault.schedules(old) { log(`result ${f.result}`); }"#, 0);
    until("it was skipped", || told().contains("result skipped"));
    assert_eq!(s.lab.on("old", "ls -A /srv/disk; systemctl is-failed runbook-backup-fast.service || true").trim(), "inactive");
    s.lab.on("old", "mount -t tmpfs -o size=60m tmpfs /srv/disk");
    // There is no repository on it yet, which is a failure and no reason to skip.
    until("it failed", || told().contains("result exit-code"));
    s.run("init", "vault.init();", 0);
    until("it ran", || told().contains("result success"));
    s.run("fresh", r#"vault.require_fresh("1m", #{ host: old, tags: ["schedule:fast"] });"#, 0);
    s.lab.on("old", "while ! umount /srv/disk; do sleep .2; done");
    until("it was skipped again", || told().contains("result skipped"));
    assert_eq!(s.lab.on("old", "ls -A /srv/disk"), "");
    s.run("stop", r#"vault.unschedule("fast", old);"#, 0);
    assert_eq!(s.units(), "");
}

#[test]
fn nothing_wrong_is_installed_and_drift_is_named() {
    let Some(s) = Site::start("restic") else { return };
    for (calendar, said) in [("25:00", "25:00: "), ("every now and then", "every now and then: ")] {
        let out = s.run("bad", &format!(r#"vault.schedule("nightly", "{calendar}", old, ["/srv/shop"]);"#), 1);
        assert!(
            out.contains("RB0707") && out.contains("the calendar of the schedule \"nightly\" is not one") && out.contains(said),
            "{out}"
        );
        assert!(out.contains("bad.rhai:4:"), "located: {out}");
    }
    let out = s.run("relative", r#"vault.schedule("nightly", "02:30", old, ["shop"]);"#, 1);
    assert!(out.contains("\"shop\" is no absolute path"), "{out}");
    assert_eq!(s.units(), "");

    s.run("set", NIGHTLY, 0);
    assert!(s.note().contains("02:30, up to 10m later"), "{}", s.note());
    s.run("again", NIGHTLY, 0);
    assert!(s.note().contains("it is so already"), "{}", s.note());
    // Stopped by hand: put right.
    s.lab.on("old", "systemctl disable --now --quiet runbook-backup-nightly.timer");
    s.run("right", &format!("{NIGHTLY} if !vault.schedules(old)[0].active {{ throw \"it is not\"; }}"), 0);
    // The password is another: the schedule follows.
    s.p.write("store.pw", "another");
    s.run("password", NIGHTLY, 0);
    assert!(!s.note().contains("it is so already"), "{}", s.note());
    assert_eq!(s.lab.on("old", "cat /etc/runbook/backup/nightly/password"), "another");
    s.p.write("store.pw", PASSWORD);
    s.run("password-back", NIGHTLY, 0);

    // Edited, beside it, and in the script.
    for (edit, said) in [
        ("sed -i s/02:30/05:00/ /etc/systemd/system/runbook-backup-nightly.timer", "was \"OnCalendar=02:30\" now \"OnCalendar=05:00\""),
        (
            "mkdir -p /etc/systemd/system/runbook-backup-nightly.service.d; printf '[Service]\\nNice=0\\n' >/etc/systemd/system/runbook-backup-nightly.service.d/own.conf",
            "runbook-backup-nightly.service.d/own.conf changes it",
        ),
        ("echo true >>/etc/runbook/backup/nightly/run", "/etc/runbook/backup/nightly/run was changed"),
    ] {
        s.lab.on("old", edit);
        let out = s.run("drift", NIGHTLY, 1);
        assert!(out.contains("RB0708") && out.contains(said) && out.contains("replace: true"), "{edit}: {out}");
        s.run("over", &NIGHTLY.replace("#{ ", "#{ replace: true, "), 0);
        s.run("so", NIGHTLY, 0);
        assert!(s.note().contains("it is so already"), "{}", s.note());
    }
    // One that is edited is not removed either, unless told.
    s.lab.on("old", "sed -i s/02:30/05:00/ /etc/systemd/system/runbook-backup-nightly.timer");
    let out = s.run("keep", r#"vault.unschedule("nightly", old);"#, 1);
    assert!(out.contains("RB0708") && out.contains("05:00"), "{out}");
    s.run("gone", r#"vault.unschedule("nightly", old, #{ replace: true });"#, 0);
    assert_eq!(s.units(), "");
    // A unit of that name that is somebody else's.
    s.lab.on("old", "printf '[Timer]\\nOnCalendar=daily\\n' >/etc/systemd/system/runbook-backup-nightly.timer");
    let out = s.run("foreign", NIGHTLY, 1);
    assert!(out.contains("RB0708") && out.contains("no schedule of runbook"), "{out}");
    s.lab.on("old", "rm /etc/systemd/system/runbook-backup-nightly.timer; systemctl daemon-reload");
}

#[test]
fn a_rollback_brings_the_former_schedule_back() {
    let Some(s) = Site::start("restic") else { return };
    s.run("set", NIGHTLY, 0);
    let former = s.lab.on("old", "cat /etc/systemd/system/runbook-backup-nightly.* /etc/runbook/backup/nightly/run");
    s.p.write(
        "change.rhai",
        r#"let vault = backup("vault"); let old = host("old");
           step "Hourly" { vault.schedule("nightly", "hourly", old, ["/srv/shop", "/etc/hosts"]); } undo { vault.unschedule("nightly", old, #{ former: true }); }
           step "New" { vault.schedule("more", "hourly", old, ["/etc/hosts"]); } undo { vault.unschedule("more", old, #{ former: true }); }
           step "Fails" { throw "no"; }"#,
    );
    s.p.expect(&["run", "change.rhai", "--env", "test"], 1);
    assert!(s.lab.on("old", "cat /etc/systemd/system/runbook-backup-nightly.timer").contains("OnCalendar=hourly"));
    s.p.expect(&["rollback"], 6);
    assert_eq!(s.lab.on("old", "cat /etc/systemd/system/runbook-backup-nightly.* /etc/runbook/backup/nightly/run"), former);
    assert!(!s.units().contains("more"), "{}", s.units());
    s.run("so", NIGHTLY, 0);
    assert!(s.note().contains("it is so already"), "{}", s.note());
    // By its service, at once; and the controller killed while it sets one up.
    s.run("now", r#"old.run("systemctl start runbook-backup-nightly"); vault.require_fresh("1m", #{ tags: ["schedule:nightly"] });"#, 0);
    let mut kills = 0;
    for n in 0..8u64 {
        s.p.write("kill.rhai", &format!(r#"step "set" {{ backup("vault").schedule("nightly", "0{n}:15", host("old"), ["/srv/shop"]); }}"#));
        let mut run = s.p.start(&["run", "kill.rhai", "--env", "test"]);
        std::thread::sleep(std::time::Duration::from_millis(150 + n * 130));
        if run.0.try_wait().unwrap().is_none() {
            run.0.kill().unwrap();
            kills += 1;
        }
        let _ = run.0.wait();
        let (status, out, err) = s.p.text(&["resume"]);
        if status != 0 {
            // It had not begun, or was done.
            s.p.expect(&["run", "kill.rhai", "--env", "test"], 0);
        }
        let text = s.lab.on("old", "cat /etc/systemd/system/runbook-backup-nightly.timer; systemctl is-active runbook-backup-nightly.timer; ls -A /etc/runbook/backup");
        assert!(text.contains(&format!("OnCalendar=0{n}:15")) && text.contains("active") && !text.contains(".new."), "{text} {out} {err}");
    }
    println!("the controller killed {kills} times while a schedule was changed: as wanted each time, nothing left behind");
    s.run("end", r#"vault.unschedule("nightly", old);"#, 0);
    assert_eq!(s.units(), "");
}
