//! Lines of every kind, and the same look-ups as `ssh-keygen -F` does.

use super::*;
use proptest::prelude::*;

const A: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
const B: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio";
const ECDSA: &str = "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA/FnBVqgPBLAVv6io27d+0oX0pRuLTgpdiRXz/Cb4DLjmV411oOAdziLuN6fwSBWUuoNvYxR0NgaF5oqrOCCKQ=";

fn key(blob: &str) -> PublicKey {
    parse_public_key_base64(blob).unwrap()
}

/// A file that is asked of several hosts.
struct File(String);

impl File {
    fn of(&self, host: &str, port: u16) -> KnownHosts {
        let mut k = KnownHosts::of(host, port);
        k.parse(Path::new("kh"), &self.0);
        k
    }

    fn judge(&self, host: &str, port: u16, key: &PublicKey) -> Verdict {
        self.of(host, port).judge(key)
    }
}

fn known(text: &str) -> File {
    File(text.to_string())
}

#[test]
fn plain_names_and_ports() {
    let k = known(&format!("# comment\n\nold,192.0.2.1 ssh-ed25519 {A} note\n[new]:2222 ssh-ed25519 {B}\n"));
    assert_eq!(k.judge("old", 22, &key(A)), Verdict::Known);
    assert_eq!(k.judge("OLD", 22, &key(A)), Verdict::Known);
    assert_eq!(k.judge("192.0.2.1", 22, &key(A)), Verdict::Known);
    assert_eq!(k.judge("old", 22, &key(B)), Verdict::Changed { file: "kh".into(), line: 3 });
    assert_eq!(k.judge("new", 2222, &key(B)), Verdict::Known);
    assert_eq!(k.judge("new", 2222, &key(A)), Verdict::Changed { file: "kh".into(), line: 4 });
    assert_eq!(k.judge("new", 22, &key(B)), Verdict::Unknown);
    assert_eq!(k.judge("other", 22, &key(A)), Verdict::Unknown);
    // Another port: the bare name's key is taken when it is the same, and says nothing when it is not.
    assert_eq!(k.judge("old", 2222, &key(A)), Verdict::Known);
    assert_eq!(k.judge("old", 2222, &key(B)), Verdict::Unknown);
}

#[test]
fn a_key_of_another_type_is_unknown_and_not_changed() {
    let k = known(&format!("old ssh-ed25519 {A}\n"));
    assert_eq!(k.judge("old", 22, &key(ECDSA)), Verdict::Unknown);
    assert_eq!(k.of("old", 22).keys().len(), 1);
}

#[test]
fn wildcards_and_negation() {
    let k = known(&format!("*.example.com,!bad.example.com,10.0.?.1 ssh-ed25519 {A}\n"));
    assert_eq!(k.judge("a.example.com", 22, &key(A)), Verdict::Known);
    assert_eq!(k.judge("bad.example.com", 22, &key(A)), Verdict::Unknown);
    assert_eq!(k.judge("10.0.7.1", 22, &key(A)), Verdict::Known);
    assert_eq!(k.judge("10.0.77.1", 22, &key(A)), Verdict::Unknown);
}

#[test]
fn revoked_keys_and_authorities() {
    let k = known(&format!("@revoked * ssh-ed25519 {B}\nold ssh-ed25519 {B}\n@cert-authority *.example.com ssh-ed25519 {A}\n"));
    assert_eq!(k.judge("old", 22, &key(B)), Verdict::Revoked { file: "kh".into(), line: 1 });
    assert_eq!(k.judge("a.example.com", 22, &key(A)), Verdict::Unknown, "an authority is not a host key");
    assert_eq!(k.of("a.example.com", 22).authorities().len(), 1);
    assert!(k.of("a.example.org", 22).authorities().is_empty());
}

#[test]
fn broken_lines_are_passed_over() {
    let k = known(&format!(
        "old\n@strange old ssh-ed25519 {A}\n@revoked @revoked old ssh-ed25519 {A}\nold ssh-ed25519 !!!\nold ssh-rsa {A}\n|1|x ssh-ed25519 {A}\n\told \t ssh-ed25519\t{A}\r"
    ));
    assert_eq!(k.judge("old", 22, &key(A)), Verdict::Known);
    assert_eq!(k.of("old", 22).entries.len(), 1);
}

/// The lines that `ssh-keygen -F` finds.
fn keygen(file: &Path, name: &str) -> Vec<usize> {
    let out = std::process::Command::new("ssh-keygen").arg("-f").arg(file).args(["-F", name]).output().unwrap();
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|l| l.strip_prefix("# Host ")?.rsplit_once(" found: line ")?.1.split_whitespace().next()?.parse().ok())
        .collect()
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c]{1,3}(\\.[ab]{1,2})?", "\\[[a-c]{1,2}\\]:(22|2222)", "10\\.0\\.[0-2]\\.[0-2]", "(fe80|2001:db8)::[0-2]", "[A-C]{1,2}",]
}

fn field() -> impl Strategy<Value = String> {
    let pattern = prop_oneof![
        4 => name(),
        1 => "!?[a-c*?]{1,4}(\\.[ab*]{1,2})?",
        1 => Just("*".to_string()),
        1 => name().prop_map(|n| format!("!{n}")),
    ];
    prop_oneof![
        3 => proptest::collection::vec(pattern, 1..4).prop_map(|v| v.join(",")),
        1 => name().prop_map(|n| names::hash(&n)),
        1 => "\\|1\\|[A-Za-z0-9+/=|]{0,30}",
    ]
}

fn known_line() -> impl Strategy<Value = String> {
    (prop_oneof![4 => Just(""), 1 => Just("@revoked "), 1 => Just("@cert-authority "), 1 => Just("  ")], field(), any::<bool>())
        .prop_map(|(marker, names, first)| format!("{marker}{names} ssh-ed25519 {} comment", if first { A } else { B }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn look_ups_find_what_ssh_keygen_finds(lines in proptest::collection::vec(known_line(), 0..8), wanted in proptest::collection::vec(name(), 1..4)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
        for name in wanted {
            // OpenSSH lowers a name before it looks it up; ssh-keygen takes it as it stands.
            let name = name.to_lowercase();
            let ours = KnownHosts::read(&[file.path().to_path_buf()], &name, 22);
            let lines_found: Vec<usize> = ours.entries.iter().map(|e| e.line).collect();
            prop_assert_eq!(lines_found, keygen(file.path(), &name), "{} in\n{}", name, lines.join("\n"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn nothing_in_a_file_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[|@!*?,\\[\\]: a-c1=/\\n\\t]{0,200}", host in ".{0,20}", port: u16) {
        let mut k = KnownHosts::of(&host, port);
        k.parse(Path::new("kh"), &String::from_utf8_lossy(&bytes));
        k.parse(Path::new("kh"), &text);
        k.parse(Path::new("kh"), &format!("{text} ssh-ed25519 {A}"));
        let _ = (k.judge(&key(A)), k.authorities(), k.keys());
    }
}
