//! Configurations out of a generator, compared with `ssh -G`; and whatever text at all, which must be read without a panic.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use runbook_core::Code;
use runbook_primitives::ssh::config::machine::Machine;
use runbook_primitives::ssh::config::read::Reader;
use runbook_primitives::ssh::config::{Files, Query, resolve};

use super::oracle::{Oracle, Tally};

/// How many configurations are asked; `PROPTEST_CASES` asks more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

fn pattern() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "web",
        "db",
        "*",
        "w*",
        "?b",
        "*.example.com",
        "!web",
        "!*.example.com",
        "web.example.com",
        "WEB",
        "192.0.2.*",
    ])
    .prop_map(str::to_string)
}

/// A line that opens a block.
fn block() -> impl Strategy<Value = String> {
    let list = prop::collection::vec(pattern(), 1..3);
    let criterion = prop_oneof![
        (prop::bool::ANY, prop::sample::select(vec!["host", "originalhost", "user", "localuser"]), prop::collection::vec(pattern(), 1..3))
            .prop_map(|(not, what, list)| format!("{}{what} {}", if not { "!" } else { "" }, list.join(","))),
        prop::sample::select(vec![
            "user root",
            "localuser root",
            "exec true",
            "!exec true",
            "exec \"test %h = web\"",
            "final",
            "!final",
            "canonical"
        ])
        .prop_map(str::to_string),
    ];
    prop_oneof![
        3 => list.prop_map(|l| format!("Host {}", l.join(" "))),
        2 => prop::collection::vec(criterion, 1..3).prop_map(|c| format!("Match {}", c.join(" "))),
        1 => Just("Match all".to_string()),
    ]
}

/// A text in one of the ways to write it.
fn quoted(text: String, how: u8) -> String {
    match how % 4 {
        0 if !text.contains(' ') => text,
        1 => format!("'{text}'"),
        2 if !text.contains(' ') => format!("{text} # said"),
        _ => format!("\"{text}\""),
    }
}

fn option() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["a", "Some.Name", "x y", "%h.internal", "~/k", "web", "${KEYS}/k", "%%"]);
    let path = prop::sample::select(vec!["~/.ssh/k", "/k/%h", "%d/%r-%p", "${KEYS}/%n", "/with space/k", "none", "~root/k"]);
    let plain = prop::sample::select(vec![
        "Port 2001",
        "Port=2002",
        "User ann",
        "User \"bob\"",
        "HostName web.example.com",
        "HostName %h.example.com",
        "HostName 192.0.2.7",
        "Compression yes",
        "Compression no",
        "BatchMode true",
        "IdentitiesOnly yes",
        "PasswordAuthentication no",
        "ConnectTimeout 5",
        "ConnectTimeout 1m30s",
        "ServerAliveInterval 20",
        "ServerAliveCountMax 2",
        "ConnectionAttempts 3",
        "AddressFamily inet",
        "StrictHostKeyChecking accept-new",
        "RequestTTY force",
        "ProxyJump gate",
        "ProxyJump a,me@b:22",
        "ProxyJump none",
        "ProxyCommand false %h %p",
        "ProxyCommand none",
        "Ciphers aes128-ctr,aes256-ctr",
        "Ciphers +3des-cbc",
        "Ciphers -aes*",
        "MACs ^hmac-sha2-512",
        "KexAlgorithms -ecdh*,curve*",
        "HostKeyAlgorithms ^ssh-rsa",
        "PubkeyAcceptedAlgorithms -*cert*",
        "SendEnv LANG LC_*",
        "SendEnv -LC_* X",
        "SetEnv A=1 B=2 A=3",
        "SetEnv C=\"d e\"",
        "UserKnownHostsFile none",
        "UserKnownHostsFile /a /b %k",
        "GlobalKnownHostsFile /g",
        "HostKeyAlias Alias",
        "IdentityAgent none",
        "IdentityAgent SSH_AUTH_SOCK",
        "PreferredAuthentications publickey",
        "ForwardAgent yes",
        "ForwardX11 yes",
        "LogLevel VERBOSE",
        "TCPKeepAlive no",
        "PubkeyAuthentication no",
        "CanonicalizeMaxDots 3",
        "CanonicalDomains example.com",
        "NumberOfPasswordPrompts 1",
        "",
        "# a comment",
        "   ",
        "\t# another",
    ]);
    prop_oneof![
        6 => plain.prop_map(str::to_string),
        1 => (word, any::<u8>()).prop_map(|(w, q)| format!("HostKeyAlias {}", quoted(w.to_string(), q))),
        2 => (path.clone(), any::<u8>()).prop_map(|(p, q)| format!("IdentityFile {}", quoted(p.to_string(), q))),
        1 => (path.clone(), any::<u8>()).prop_map(|(p, q)| format!("CertificateFile {}", quoted(p.to_string(), q))),
        1 => (path, any::<u8>()).prop_map(|(p, q)| format!("IdentityAgent {}", quoted(p.to_string(), q))),
        // Now and then something wrong, which both must refuse, also where it does not apply.
        1 => prop::sample::select(vec!["Port x", "User", "Compression perhaps", "ConnectTimeout soon", "User a b", "User \"a", "Nonsense yes"])
            .prop_flat_map(|bad| (Just(bad), 0u8..40)).prop_map(|(bad, n)| if n == 0 { bad.to_string() } else { "Port 22".to_string() }),
    ]
}

fn configuration() -> impl Strategy<Value = String> {
    let part = (prop::option::weighted(0.8, block()), prop::collection::vec((option(), "[ \t]{0,3}"), 0..5));
    prop::collection::vec(part, 1..6).prop_map(|parts| {
        let mut text = String::new();
        for (block, options) in parts {
            if let Some(b) = block {
                text.push_str(&format!("{b}\n"));
            }
            for (option, indent) in options {
                text.push_str(&format!("{indent}{option}\n"));
            }
        }
        text
    })
}

#[test]
fn generated_configurations_are_read_as_ssh_reads_them() {
    let Some(oracle) = Oracle::new() else { return };
    let tally = RefCell::new(Tally::default());
    let file = oracle.dir.path().join("config");
    let hosts = prop::sample::select(vec!["web", "db", "WEB", "a.example.com", "192.0.2.7"]);
    let user = prop::option::weighted(0.3, prop::sample::select(vec!["root", "ann"]));
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let done = runner.run(&(configuration(), hosts, user), |(text, host, user)| {
        std::fs::write(&file, &text).unwrap();
        let mut t = tally.borrow_mut();
        let query = Query { user: user.map(str::to_string), ..Query::host(host) };
        t.compare(&oracle, &file, &query, &format!("{user:?} {host}"));
        let found = std::mem::take(&mut t.differences);
        prop_assert!(found.is_empty(), "{}\n{text}", found.join("\n"));
        Ok(())
    });
    if let Err(e) = done {
        panic!("{e}");
    }
    tally.into_inner().finish(&format!("{} generated configurations", cases()));
}

/// Text that looks like a configuration, or does not.
fn anything() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "Host ",
        "Match ",
        "Include ",
        "host",
        "all",
        "exec ",
        "final",
        "Port ",
        "ProxyJump ",
        "ProxyCommand ",
        "SetEnv ",
        "IdentityFile ",
        "User ",
        "CanonicalDomains ",
        "HostName ",
        "Ciphers ",
        "\"",
        "'",
        "\\",
        "=",
        "#",
        "!",
        "*",
        "?",
        "%h",
        "%",
        "${",
        "}",
        "~",
        "@",
        ":",
        "[",
        "]",
        ",",
        "ssh://",
        "none",
        "yes",
        "\n",
        "\n",
        "\n",
        " ",
        "\t",
        "\r",
        "\0",
        "\x0c",
        "é",
        "🙂",
        "99999999999",
        "-1",
        "localnetwork ",
        "::1/64",
    ]);
    prop_oneof![
        3 => prop::collection::vec(pieces, 0..40).prop_map(|p| p.concat()),
        1 => "\\PC{0,80}",
        1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(|b| String::from_utf8_lossy(&b).into_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_in_a_file_is_read_or_refused_with_its_place(text in anything()) {
        // No command of such a text is run: there is no such shell.
        let mut machine = Machine::here().unwrap();
        machine.env.insert("SHELL".into(), "/nonexistent/shell".into());
        machine.env.insert("HOME".into(), "/nonexistent".into());
        let mut r = Reader::new(&machine, "web");
        if let Err(e) = r.string("config", &text) {
            prop_assert_eq!(e.code, Code::SSH_CONFIG);
            prop_assert!(e.hint.is_some());
            let at = e.location.unwrap();
            prop_assert!(at.line >= 1 && at.line <= text.matches('\n').count() + 1, "{:?}", at);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        match resolve(&machine, &Files::One(file.path().into()), &Query::host("web")) {
            Ok(o) => prop_assert!(!o.host.is_empty() && o.port > 0),
            Err(e) => prop_assert!(e.code == Code::SSH_CONFIG && e.hint.is_some(), "{:?}", e),
        }
    }
}
