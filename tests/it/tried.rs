//! The table of every primitive with the real servers that the tests try it against, made from the tests themselves.
//!
//! A primitive counts as tried against a server when a test of that server's names it in a text: `"copy_from"`, as tests call primitives,
//! or `.copy_from(`, in a runbook. That a test names it does not say that it tests it well; that none does is what this finds.

use std::collections::BTreeSet;
use std::path::Path;

/// What is tried where: types of the language, the server and Debian's package, files below tests/it.
const SERVERS: &[(&[&str], &str, &[&str])] = &[
    (&["Host", "Service"], "OpenSSH (openssh-server)", &["ssh.rs", "ssh", "containers.rs", "terminal"]),
    (&["Host", "Service"], "the embedded lab's server", &["lab.rs", "demo.rs", "crash.rs"]),
    (&["Database"], "MariaDB (mariadb-server)", &["mariadb.rs", "mariadb"]),
    (&["Database"], "MySQL 5.6 (npm)", &["mariadb/mysql.rs"]),
    (&["Database"], "PostgreSQL (postgresql)", &["postgres"]),
    (&["Database"], "SQLite", &["sqlite.rs"]),
    (&["Zone"], "BIND (bind9)", &["dns.rs", "dns/answers.rs", "dns/moves.rs", "dns/on_host.rs"]),
    (&["Zone"], "PowerDNS (pdns-server)", &["dns/moves.rs", "dns/services.rs"]),
    (&["Zone"], "Knot (knot)", &["dns/on_host.rs"]),
    (&["Zone"], "moto's Route 53", &["dns/route53.rs"]),
    (&["Zone"], "a stand-in for Cloudflare that its own client works against", &["dns/cloudflare.rs"]),
    (
        &[
            "Docker",
            "Container",
            "Image",
            "Volume",
            "Network",
            "Compose",
            "Swarm",
            "SwarmNode",
            "SwarmService",
            "SwarmStack",
            "SwarmSecret",
            "SwarmConfig",
        ],
        "Docker Engine (docker.io)",
        &["docker"],
    ),
    (&["Backup"], "restic", &["backup/restic.rs", "backup/remote.rs", "backup/databases.rs", "backup/schedule.rs"]),
    (&["Backup"], "borg (borgbackup)", &["backup/borg.rs", "backup/databases.rs", "backup/schedule.rs"]),
    (&["Backup"], "GNU tar", &["backup.rs"]),
    (&["Http"], "OpenSSL's s_server, Python's http.server", &["http.rs"]),
    (&["Tcp"], "Python's http.server", &["http.rs"]),
    (&["Proxy"], "files by OpenSSH", &["proxy.rs"]),
    (&["Proxy"], "nginx, in the lab of containers", &["../../runbooks/cutover/runbook.rhai"]),
];

/// The texts in the tests of a server; a runbook is one text.
fn texts_of(files: &[&str]) -> Vec<String> {
    fn gather(at: &Path, out: &mut Vec<String>) {
        if at.is_dir() {
            std::fs::read_dir(at).unwrap().for_each(|e| gather(&e.unwrap().path(), out));
        } else if let Ok(source) = std::fs::read_to_string(at) {
            match at.extension().and_then(|e| e.to_str()) {
                Some("rs") => out.extend(texts(&source)),
                Some("rhai") => out.push(source),
                _ => {}
            }
        }
    }
    let mut out = Vec::new();
    files.iter().for_each(|f| gather(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(f), &mut out));
    out
}

/// The texts in a source: what stands between quotes, and what raw strings hold.
fn texts(source: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = source;
    loop {
        let (quote, raw) = (rest.find('"'), rest.find("r#\""));
        match (quote, raw) {
            (Some(q), Some(r)) if r < q => {
                let inside = &rest[r + 3..];
                let Some(end) = inside.find("\"#") else { return out };
                out.push(inside[..end].to_string());
                rest = &inside[end + 2..];
            }
            (Some(q), _) => {
                // A quote as a character is none that begins a text.
                if rest[..q].ends_with('\'') || rest[..q].ends_with("b'") {
                    rest = &rest[q + 1..];
                    continue;
                }
                let inside = &rest[q + 1..];
                let mut end = None;
                let mut escaped = false;
                for (i, c) in inside.char_indices() {
                    match c {
                        _ if escaped => escaped = false,
                        '\\' => escaped = true,
                        '"' => {
                            end = Some(i);
                            break;
                        }
                        _ => {}
                    }
                }
                let Some(end) = end else { return out };
                out.push(inside[..end].to_string());
                rest = &inside[end + 1..];
            }
            (None, _) => return out,
        }
    }
}

fn names(texts: &[String], method: &str) -> bool {
    let call = format!(".{method}(");
    texts.iter().any(|t| t == method || t.contains(&call))
}

/// The page, and the primitives that nothing tries.
pub fn page() -> (String, Vec<String>) {
    let registry = runbook_primitives::registry();
    let servers: Vec<(&[&str], &str, Vec<String>)> =
        SERVERS.iter().map(|(types, server, files)| (*types, *server, texts_of(files))).collect();
    let mut out = String::from(
        "# What was tried against what\n\n<!-- Written from the tests; a test keeps it true. UPDATE_DOCS=1 cargo test --test it docs:: -->\n\n\
         Every primitive that looks at or changes something, and the real servers that the tests in CI try it against. The servers are those of Debian's packages (of MySQL: of a package of npm), started by the tests; \
         a primitive counts as tried when a test of that server calls it.\n\n| primitive | tried against |\n|---|---|\n",
    );
    let mut untried = Vec::new();
    let known: BTreeSet<&str> = servers.iter().flat_map(|(types, ..)| types.iter().copied()).collect();
    for (ty, method) in registry.primitives.keys() {
        let Some(ty) = ty else {
            // A function of its own: by its name in a runbook.
            let call = format!("{method}(");
            let by: Vec<&str> = servers.iter().filter(|(_, _, t)| t.iter().any(|t| t.contains(&call))).map(|(_, s, _)| *s).collect();
            if by.is_empty() {
                untried.push((*method).to_string());
            }
            out.push_str(&format!("| `{method}` | {} |\n", by.join(", ")));
            continue;
        };
        assert!(known.contains(ty), "the type {ty} has no server in SERVERS of tests/it/tried.rs");
        let by: Vec<&str> = servers.iter().filter(|(types, _, t)| types.contains(ty) && names(t, method)).map(|(_, s, _)| *s).collect();
        if by.is_empty() {
            untried.push(format!("{ty}.{method}"));
        }
        out.push_str(&format!("| `{ty}.{method}` | {} |\n", by.join(", ")));
    }
    (out, untried)
}

#[test]
fn texts_are_found_in_sources() {
    let source = "let a = \"one\"; p.stop(); let q = '\"'; call(\"copy_from\", r#\"x.run(\"y\")\"#, \"a \\\" .b(\");";
    assert_eq!(texts(source), ["one", "copy_from", "x.run(\"y\")", "a \\\" .b("]);
    let t = texts(source);
    assert!(names(&t, "copy_from") && names(&t, "run") && names(&t, "b") && !names(&t, "stop"));
}
