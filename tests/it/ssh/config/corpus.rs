//! The corpus: configurations and what is asked of each, compared with `ssh -G`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use runbook_primitives::ssh::config::{Query, place};

use super::oracle::{Oracle, Tally};
use crate::support::have;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/ssh/config/corpus")
}

/// Copies a folder, with modes that do not depend on how it was checked out.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
            let mode = if entry.file_name() == "writable.conf" { 0o666 } else { 0o644 };
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// The queries of a file: its lines `# ask [user@]host[:port]`.
fn queries(text: &str) -> Vec<(String, Query)> {
    text.lines()
        .filter_map(|l| l.strip_prefix("# ask "))
        .map(|asked| {
            let hop = if asked.matches(':').count() > 1 { None } else { place::hop(asked).ok() };
            let query = match hop {
                Some(h) => Query { user: h.user, host: h.host, port: h.port, jumps: None },
                None => Query::host(asked),
            };
            (asked.to_string(), query)
        })
        .collect()
}

/// The files of the corpus, each written to where it is read from.
fn each(oracle: &Oracle, mut f: impl FnMut(&str, &Path, &str)) -> usize {
    copy(&corpus().join("inc"), &oracle.dir.path().join(".ssh/inc"));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(corpus()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some()).collect();
    files.sort();
    for path in &files {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(path).unwrap().replace("@DIR@", &oracle.dir.path().display().to_string());
        let file = oracle.dir.path().join("config");
        std::fs::write(&file, &text).unwrap();
        f(name, &file, &text);
    }
    files.len()
}

#[test]
fn the_corpus_is_read_as_ssh_reads_it() {
    let Some(oracle) = Oracle::new() else { return };
    let mut tally = Tally::default();
    let files = each(&oracle, |name, file, text| {
        for (asked, query) in queries(text) {
            tally.compare(&oracle, file, &query, &format!("{name} {asked}"));
            // What is meant to be refused is, and nothing else.
            let refused = oracle.ours(file, &query).err();
            assert_eq!(refused.is_some(), name.starts_with("bad-"), "{name}: {refused:?}");
            if let Some(e) = refused.filter(|_| name != "bad-25-include-loop") {
                let at = e.location.unwrap_or_else(|| panic!("{name}: without a place: {}", e.message));
                assert!(at.file.contains(oracle.dir.path().to_str().unwrap()), "{name}: {at:?}");
            }
        }
    });
    assert!(files >= 60 && tally.queries >= 200, "{files} files, {} queries", tally.queries);
    tally.finish(&format!("corpus of {files} files"));
}

#[test]
fn files_and_commands_are_named_as_ssh_uses_them() {
    let Some(oracle) = Oracle::new() else { return };
    let mut compared = 0;
    let mut differences = Vec::new();
    each(&oracle, |name, file, text| {
        // `ssh -G` does not expand these; `ssh -v` shows them expanded. Nothing of the corpus connects: its commands are all `false`.
        let keys = text.contains("IdentityFile") || text.contains("CertificateFile");
        let command = text.lines().any(|l| l.trim_start().starts_with("ProxyCommand") && l.contains("false"));
        if name.starts_with("bad-") || !(keys || command) {
            return;
        }
        for (asked, query) in queries(text) {
            let ours = oracle.ours(file, &query).unwrap();
            let own = ours.proxy_command.is_some();
            let (identities, certificates, command) = oracle.in_earnest(file, &query, own);
            let mut same = |what: &str, ssh: String, us: String| {
                compared += 1;
                if ssh != us {
                    differences.push(format!("{name} {asked}: {what}: ssh {ssh}, we {us}"));
                }
            };
            if ours.identities_configured {
                same("identity files", format!("{identities:?}"), format!("{:?}", ours.identity_files));
            }
            same("certificate files", format!("{certificates:?}"), format!("{:?}", ours.certificate_files));
            if own {
                same("proxy command", format!("{command:?}"), format!("{:?}", ours.proxy_command));
            }
        }
    });
    println!("files and commands in earnest: {compared} compared, {} differ", differences.len());
    assert!(compared > 40, "{compared}");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn home_is_taken_from_where_ssh_takes_it() {
    let Some(oracle) = Oracle::new() else { return };
    // HOME is the oracle's folder and not the home of the user database: `~` is the latter, but for Include it is HOME.
    std::fs::create_dir_all(oracle.dir.path().join(".ssh")).unwrap();
    std::fs::write(oracle.dir.path().join(".ssh/more"), "Port 7\n").unwrap();
    let file = oracle.dir.path().join("config");
    std::fs::write(&file, "Include more\nUserKnownHostsFile ~/kh %d/kh2\n").unwrap();
    let query = Query::host("h");
    let theirs = oracle.ask(&file, &query).unwrap();
    let home = oracle.machine().home.display().to_string();
    assert_ne!(home, oracle.dir.path().display().to_string());
    assert_eq!(theirs.get("userknownhostsfile"), Some(&vec![format!("{home}/kh {home}/kh2")]));
    assert_eq!(theirs.get("port"), Some(&vec!["7".to_string()]));
    let ours = oracle.ours(&file, &query).unwrap();
    assert_eq!((ours.port, ours.user_known_hosts.first()), (7, Some(&PathBuf::from(format!("{home}/kh")))));
}

/// Names that are in the DNS (here: in a list of hosts that a namespace of its own has) are found in the domains as ssh finds them.
#[test]
fn short_names_are_canonicalized_as_ssh_does_it() {
    if Oracle::new().is_none() || !have("unshare") {
        return;
    }
    let hosts = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(hosts.path(), "127.0.0.1 localhost\n127.0.0.5 web.b.example web.b.example.\n127.0.0.6 x.y.a.example x.y.a.example.\n")
        .unwrap();
    let mut c = std::process::Command::new("unshare");
    c.args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/hosts || exit 77; exec \"$@\""]).arg(hosts.path());
    c.arg(std::env::current_exe().unwrap());
    c.args(["--exact", "ssh::config::corpus::canonicalize_helper", "--ignored", "--nocapture"]);
    let out = c.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if !out.status.success() && !said.contains("running 1 test") {
        assert!(std::env::var_os("CI").is_none(), "no namespace for mounts, and CI is set: {said}");
        return eprintln!("skipped: no namespace for mounts here: {said}");
    }
    assert!(out.status.success(), "{said}");
    said.lines().filter(|l| l.contains("compared")).for_each(|l| println!("{l}"));
}

#[test]
#[ignore = "run by short_names_are_canonicalized_as_ssh_does_it"]
fn canonicalize_helper() {
    let oracle = Oracle::new().unwrap();
    let mut tally = Tally::default();
    let file = oracle.dir.path().join("config");
    let after = "Host *.b.example\n User found\nMatch canonical host *.a.example\n Port 7\nMatch final\n Compression yes\n";
    for more in [
        "",
        "CanonicalizeMaxDots 0",
        "CanonicalizeMaxDots 2",
        "ProxyJump none",
        "ProxyJump g",
        "ProxyCommand none",
        "ProxyCommand x",
        "CanonicalizeFallbackLocal no",
        "AddressFamily inet6",
        "HostName web",
        "HostName %h.b.example",
        "CanonicalizePermittedCNAMEs none",
    ] {
        for on in ["yes", "always", "no"] {
            let text = format!("CanonicalizeHostname {on}\nCanonicalDomains a.example b.example\n{more}\n{after}");
            std::fs::write(&file, text).unwrap();
            for host in ["web", "web.", "x.y", "nothere", "web.b.example", "WEB", "localhost"] {
                tally.compare(&oracle, &file, &Query::host(host), &format!("{on} {more} {host}"));
            }
        }
    }
    tally.finish("canonicalized names");
}
