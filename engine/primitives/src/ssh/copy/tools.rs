//! What both hosts have to copy with, and the options that both ends of a transfer get.

use std::collections::HashMap;

use parking_lot::Mutex;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::diff::{Diff, PARTIAL};
use super::manifest::Said;
use super::{Job, Tool};
use crate::ssh::{Session, quote};

/// What a host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tools {
    /// Its `rsync`, when it is new enough to be used.
    pub rsync: bool,
    pub rsync_xattrs: bool,
    pub rsync_acls: bool,
    /// Whether `tar` is GNU's.
    pub tar: bool,
    pub tar_xattrs: bool,
    /// Whether `split`, `dd` and the like are GNU's.
    pub coreutils: bool,
    /// Whether it has Python; whether that can do what is wanted shows when it is used.
    pub python: bool,
    /// Whether it can log in to another host with a key of its own.
    pub ssh: bool,
}

#[derive(Default)]
struct Known(Mutex<HashMap<String, Tools>>);

fn key(cx: &Cx, session: &Session, sudo: bool) -> String {
    format!("{}/{}/{sudo}", cx.env.name, session.name())
}

/// By what a host tells what it has, together with what it lists: asked once a process.
pub(super) const PROBE: &str = "echo @rsync; rsync --version; echo @tar; tar --version; tar --help; echo @split; split --version; echo @python; command -v python3 || command -v /usr/libexec/platform-python; echo @ssh; command -v ssh && command -v ssh-keygen && echo yes\n";

/// What a host has, once it was asked.
pub(super) fn known(cx: &Cx, session: &Session, sudo: bool) -> Option<Tools> {
    cx.shared.get::<Known>().0.lock().get(&key(cx, session, sudo)).copied()
}

/// Keeps what a host has answered.
pub(super) fn learn(cx: &Cx, session: &Session, sudo: bool, said: &Said) {
    cx.shared.get::<Known>().0.lock().insert(key(cx, session, sudo), read(said));
}

fn read(said: &Said) -> Tools {
    let (rsync, tar) = (said.part("rsync"), said.part("tar"));
    let mut words = rsync.split_whitespace().skip_while(|w| *w != "version").skip(1);
    let mut numbers = words.next().unwrap_or("").trim_start_matches('v').split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    Tools {
        // --info, --outbuf and times in nanoseconds came with 3.1.
        rsync: (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (3, 1),
        rsync_xattrs: rsync.contains("xattrs") && !rsync.contains("no xattrs"),
        rsync_acls: rsync.contains("ACLs") && !rsync.contains("no ACLs"),
        tar: tar.lines().next().is_some_and(|l| l.contains("GNU tar")),
        tar_xattrs: tar.contains("--xattrs-include") && tar.contains("--acls"),
        coreutils: said.part("split").contains("GNU coreutils"),
        python: !said.part("python").trim().is_empty(),
        ssh: said.part("ssh").ends_with("yes"),
    }
}

/// What both have.
pub(super) fn both(a: Tools, b: Tools) -> Tools {
    Tools {
        rsync: a.rsync && b.rsync,
        rsync_xattrs: a.rsync_xattrs && b.rsync_xattrs,
        rsync_acls: a.rsync_acls && b.rsync_acls,
        tar: a.tar && b.tar,
        tar_xattrs: a.tar_xattrs && b.tar_xattrs,
        coreutils: a.coreutils && b.coreutils,
        python: a.python && b.python,
        ssh: a.ssh && b.ssh,
    }
}

/// Below this a copy is over before another way would have been prepared.
const SMALL: (usize, u64) = (2000, 16 << 20);

pub(super) fn is_small(diff: &Diff) -> bool {
    diff.copy.len() <= SMALL.0 && diff.bytes <= SMALL.1
}

/// Whether `tar` is over sooner: it asks nothing back for each file and computes no sums, but sends whole files.
///
/// A large file that came in part is another version at the next try, which `rsync` then completes.
fn suits_tar(job: &Job<'_>, diff: &Diff) -> bool {
    let largest = diff.copy.iter().map(|e| e.size).max().unwrap_or(0);
    let many_small = largest < 8 << 20 && diff.bytes / (diff.copy.len() as u64).max(1) < 128 << 10;
    is_small(diff) || ((many_small || diff.updated == 0) && job.o.bandwidth.is_none())
}

/// Which tool carries the files.
pub(super) fn choose(job: &Job<'_>, diff: &Diff, t: Tools, forced: bool) -> Result<Tool> {
    let missing = |what: &str| {
        Error::new(Code::HOST_TOOL_MISSING, format!("{what} is not on both {} and {}", job.from.name(), job.to.name()))
            .host(job.to.name())
            .hint(super::failure::TOOLS)
    };
    match job.o.tool {
        Some(Tool::Rsync) if !t.rsync => Err(missing("rsync (3.1 or newer)")),
        Some(Tool::Tar) if !t.tar => Err(missing("GNU tar")),
        Some(tool) => Ok(tool),
        None if t.rsync && (!t.tar || forced || !suits_tar(job, diff)) => Ok(Tool::Rsync),
        None if t.tar => Ok(Tool::Tar),
        None => Err(missing("neither rsync (3.1 or newer) nor GNU tar")),
    }
}

/// The options of `rsync`, without the list and the way to the other side.
pub(super) fn rsync(job: &Job<'_>, diff: &Diff, t: Tools, forced: bool) -> Vec<String> {
    let mut short = String::from("-lpt");
    for (letters, when) in [
        ("go", diff.owners),
        ("H", diff.copy.iter().any(|e| e.linked)),
        ("S", diff.copy.iter().any(super::manifest::Entry::sparse)),
        ("X", t.rsync_xattrs),
        ("A", t.rsync_acls),
        ("I", forced),
    ] {
        if when {
            short.push_str(letters);
        }
    }
    let mut all = vec![short, format!("--partial-dir={PARTIAL}"), "--timeout=600".into(), "--no-protect-args".into()];
    if job.o.numeric_ids {
        all.push("--numeric-ids".into());
    }
    if let Some(limit) = job.o.bandwidth {
        all.push(format!("--bwlimit={}", limit.div_ceil(1024).max(1)));
    }
    if t.rsync_xattrs {
        all.push("--filter=-x security.selinux".into());
    }
    all
}

/// What the calling `rsync` wants started on the other side, as words that are safe to start there.
///
/// The words come from a host, and go to another one: nothing passes but the options that the calling side was given.
pub(super) fn served(words: &[&str], sends: bool) -> Result<String> {
    let refuse = |w: &str| {
        Err(Error::new(Code::HOST_TOOL_MISSING, format!("rsync asks for an option that is not allowed: {w:?}"))
            .hint("use #{ tool: \"tar\" }"))
    };
    let mut rest = words.iter();
    if rest.next() != Some(&"rsync") || rest.next() != Some(&"--server") {
        return refuse(words.first().unwrap_or(&""));
    }
    let mut out = vec!["rsync".to_string(), "--server".to_string()];
    let mut sender = false;
    let mut value_next = false;
    let numbers =
        |w: &str| w.split_once('=').is_some_and(|(_, n)| n.chars().all(|c| c.is_ascii_digit() || c == '.' || c == 'k' || c == 'K'));
    for w in rest {
        let known = match *w {
            PARTIAL if value_next => true,
            "--sender" => {
                sender = true;
                true
            }
            "--partial-dir" => true,
            "--partial" | "--numeric-ids" | "--from0" | "--files-from=-" | "--no-inc-recursive" | "--ignore-times" | "--old-args" | "."
            | "./" => true,
            w if w.starts_with("--timeout=") || w.starts_with("--bwlimit=") => numbers(w),
            w if w == format!("--partial-dir={PARTIAL}") => true,
            w if w.starts_with("--") => false,
            w => w.strip_prefix('-').is_some_and(|s| {
                let (flags, version) = s.split_once('e').unwrap_or((s, ""));
                flags.chars().all(|c| "lptgoHSXAIRdrvD".contains(c)) && version.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
            }),
        };
        if !known {
            return refuse(w);
        }
        value_next = *w == "--partial-dir";
        out.push(quote(w));
    }
    if sender != sends || words.last() != Some(&"./") {
        return refuse(words.last().unwrap_or(&""));
    }
    Ok(out.join(" "))
}

/// `tar` that packs the files of a list (a file, or `-` for standard input) onto standard output.
pub(super) fn pack(job: &Job<'_>, diff: &Diff, t: Tools, list: &str) -> String {
    // Numbers for sizes and times beyond ustar, and fractions of seconds: the pax format.
    let mut c = format!("tar -c --format=posix -b 128 --no-recursion --ignore-failed-read --null -T {list} -f -");
    if diff.copy.iter().any(super::manifest::Entry::sparse) {
        c.push_str(" --sparse");
    }
    attributes(job, t, &mut c);
    c
}

/// `tar` that packs one file, named after it, with all that it has, onto standard output.
pub(super) fn pack_one(job: &Job<'_>, t: Tools) -> String {
    let mut c = "tar -c --format=posix --no-recursion -f -".to_string();
    attributes(job, t, &mut c);
    c
}

/// `tar` that unpacks standard input into the present folder.
pub(super) fn unpack(job: &Job<'_>, t: Tools) -> String {
    let mut c = "tar -x -p -b 128 --delay-directory-restore -f -".to_string();
    attributes(job, t, &mut c);
    c
}

fn attributes(job: &Job<'_>, t: Tools, c: &mut String) {
    if t.tar_xattrs {
        c.push_str(" --xattrs --xattrs-include='*' --xattrs-exclude=security.selinux --acls");
    }
    if job.o.numeric_ids {
        c.push_str(" --numeric-owner");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_read() {
        let of = |text: &str| {
            let mut said = Said::default();
            text.lines().for_each(|l| said.take(l));
            read(&said)
        };
        let t = of(
            "@rsync\nrsync  version 3.2.7  protocol version 31\nCapabilities:\n    ACLs, xattrs, no iconv\n@tar\ntar (GNU tar) 1.34\n\n\
                    --acls\n --xattrs-include=MASK\n@split\nsplit (GNU coreutils) 9.1\n@python\n/usr/bin/python3\n@ssh\n/usr/bin/ssh\n/usr/bin/ssh-keygen\nyes\n",
        );
        let all = Tools {
            rsync: true,
            rsync_xattrs: true,
            rsync_acls: true,
            tar: true,
            tar_xattrs: true,
            coreutils: true,
            python: true,
            ssh: true,
        };
        assert_eq!(t, all);
        assert_eq!(of("@rsync\nrsync  version v3.0.6  protocol\n@tar\ntar (busybox) 1.36\n@ssh\n/usr/bin/ssh\n"), Tools::default());
        assert!(!of("@rsync\nrsync  version 3.1.3 no ACLs, no xattrs").rsync_acls && !of("@rsync\n@tar\n@ssh\n").rsync);
    }

    #[test]
    fn only_what_was_asked_for_is_served() {
        let ok = [
            "rsync",
            "--server",
            "-lHogtpAXIRSe.LsfxCIvu",
            "--timeout=600",
            "--bwlimit=1000",
            "--partial-dir",
            PARTIAL,
            "--numeric-ids",
            ".",
            "./",
        ];
        assert_eq!(served(&ok, false).unwrap(), ok.join(" "));
        let pull = ["rsync", "--server", "--sender", "-logtpRe.LsfxCIvu", "--files-from=-", "--from0", ".", "./"];
        assert!(served(&pull, true).is_ok() && served(&pull, false).is_err(), "the other direction is another permission");
        for bad in [
            &["rsync", "--server", "--daemon", ".", "./"][..],
            &["rsync", "--server", "-logse.L", ".", "./"],
            &["rsync", "--server", "-log", ".", "/etc"],
            &["rsync", "--server", "-log", "--log-file=/etc/passwd", ".", "./"],
            &["rsync", "--server", "-log", "--files-from=/etc/shadow", ".", "./"],
            &["rsync", "--server", "-log", "--timeout=1;id", ".", "./"],
            &["rsync", "--server", "-log", "--partial-dir", "/etc", ".", "./"],
            &["sh", "-c", "id"],
            &[],
        ] {
            assert!(served(bad, false).is_err(), "{bad:?}");
        }
    }
}
