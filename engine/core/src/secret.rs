//! Secrets that cannot be printed, and the striking of known values from everything that is stored or shown.

use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use parking_lot::RwLock;
use zeroize::Zeroizing;

/// A secret value with the name that it has in the inventory. Shows as its name; compares by name and value.
#[derive(Clone, PartialEq)]
pub struct Secret {
    name: Arc<str>,
    value: Arc<Zeroizing<String>>,
}

impl Secret {
    /// Wraps a value.
    pub fn new(name: impl Into<Arc<str>>, value: impl Into<String>) -> Self {
        Secret { name: name.into(), value: Arc::new(Zeroizing::new(value.into())) }
    }

    /// The name in the inventory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value itself. Only for handing it to the far side by stdin, environment or protocol; never for text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({:?})", self.name)
    }
}

/// What stands in place of a struck value.
pub const STRUCK: &str = "[secret]";

/// The shortest value that is struck. Striking shorter ones would make every text unreadable and protect nothing.
pub const MIN_LEN: usize = 4;

/// Strikes known secret values, in all the forms in which programs print them, from text and from streams.
///
/// Forms: plain, each line of a value with several, base64 (both alphabets, at every alignment within a larger text), URL-encoded
/// (both cases, `+` for space), quoted for a shell (`'…'`, `"…"`, backslashes), escaped as in JSON, hexadecimal.
#[derive(Clone, Default)]
pub struct Redactor {
    inner: Arc<RwLock<Patterns>>,
}

#[derive(Default)]
struct Patterns {
    values: Vec<Zeroizing<String>>,
    machine: Option<Arc<AhoCorasick>>,
    longest: usize,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} secrets)", self.inner.read().values.len())
    }
}

impl Redactor {
    /// Adds a value to be struck from now on; values shorter than [`MIN_LEN`] are ignored.
    pub fn add(&self, value: &str) {
        if value.len() < MIN_LEN {
            return;
        }
        let mut p = self.inner.write();
        if p.values.iter().any(|v| v.as_str() == value) {
            return;
        }
        p.values.push(Zeroizing::new(value.to_string()));
        let mut all: Vec<Vec<u8>> = p.values.iter().flat_map(|v| forms(v)).collect();
        all.sort();
        all.dedup();
        p.longest = all.iter().map(Vec::len).max().unwrap_or(0);
        // Leftmost-longest, so that the quoted form is struck whole and not only the plain part in it.
        p.machine = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&all).ok().map(Arc::new);
    }

    /// Tells whether nothing is to be struck.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.read().machine.is_none()
    }

    /// Strikes every known value from a text.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let Some(machine) = self.inner.read().machine.clone() else { return text.to_string() };
        if !machine.is_match(text) {
            return text.to_string();
        }
        String::from_utf8_lossy(&replace(&machine, text.as_bytes())).into_owned()
    }

    /// Strikes every known value from bytes.
    #[must_use]
    pub fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        match self.inner.read().machine.clone() {
            Some(machine) => replace(&machine, bytes),
            None => bytes.to_vec(),
        }
    }

    /// Begins to strike from a stream whose pieces may cut a value in two.
    #[must_use]
    pub fn stream(&self) -> Stream {
        Stream { redactor: self.clone(), held: Vec::new() }
    }
}

fn replace(machine: &AhoCorasick, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    for m in machine.find_iter(bytes) {
        out.extend_from_slice(&bytes[at..m.start()]);
        out.extend_from_slice(STRUCK.as_bytes());
        at = m.end();
    }
    out.extend_from_slice(&bytes[at..]);
    out
}

/// Strikes from a stream: holds back as many bytes as a value could still continue in.
pub struct Stream {
    redactor: Redactor,
    held: Vec<u8>,
}

impl Stream {
    /// Takes a piece and returns what can safely be passed on.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let (machine, longest) = {
            let p = self.redactor.inner.read();
            (p.machine.clone(), p.longest)
        };
        let Some(machine) = machine else { return [std::mem::take(&mut self.held), piece.to_vec()].concat() };
        self.held.extend_from_slice(piece);
        // A match may begin anywhere in the last `longest - 1` bytes and not be complete: hold these back, and never cut a match.
        let mut cut = self.held.len().saturating_sub(longest.saturating_sub(1));
        for m in machine.find_iter(&self.held) {
            if m.start() < cut && m.end() > cut {
                cut = m.start();
            }
        }
        let rest = self.held.split_off(cut);
        let ready = std::mem::replace(&mut self.held, rest);
        replace(&machine, &ready)
    }

    /// Ends the stream and returns the rest.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        self.redactor.bytes(&held)
    }
}

fn forms(value: &str) -> Vec<Vec<u8>> {
    let mut out: Vec<String> = vec![value.to_string()];
    out.extend(value.lines().filter(|l| l.trim().len() >= MIN_LEN.max(8)).map(|l| l.trim().to_string()));
    // URL-encoding as the common encoders have it: RFC 3986, and form data (space as +, * unescaped).
    for (keep, plus) in [("-._~", false), ("-._~/", false), ("-._*", true), ("-_.!~*'()", false)] {
        for upper in [true, false] {
            out.push(percent(value, keep, plus, upper));
        }
    }
    out.push(value.replace('\'', r"'\''"));
    out.push(value.replace('\'', r#"'"'"'"#));
    out.push(escape(value, r#"\"$`!"#));
    out.push(escape(value, r#"\"$`"#));
    out.push(escape(value, " \t!\"#$&'()*,;<=>?[\\]^`{|}~"));
    out.push(escape(value, " \t!\"#$&'()*;<>?[\\]^`{|}"));
    if let Ok(json) = serde_json::to_string(value) {
        out.push(json[1..json.len() - 1].to_string());
        out.push(json[1..json.len() - 1].replace('/', r"\/"));
    }
    let hex: String = value.bytes().map(|b| format!("{b:02x}")).collect();
    out.push(hex.to_uppercase());
    out.push(hex);
    let mut bytes: Vec<Vec<u8>> = out.into_iter().map(String::into_bytes).collect();
    bytes.extend(base64_forms(value.as_bytes()));
    bytes.retain(|f| f.len() >= MIN_LEN);
    bytes
}

fn percent(value: &str, keep: &str, plus: bool, upper: bool) -> String {
    let mut out = String::new();
    for b in value.bytes() {
        match b {
            b' ' if plus => out.push('+'),
            b if b.is_ascii_alphanumeric() || keep.as_bytes().contains(&b) => out.push(char::from(b)),
            b if upper => out.push_str(&format!("%{b:02X}")),
            b => out.push_str(&format!("%{b:02x}")),
        }
    }
    out
}

fn escape(value: &str, special: &str) -> String {
    let mut out = String::new();
    for c in value.chars() {
        if special.contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The base64 text that a value gives at each of the three alignments that it can have inside a larger text; the characters
/// that also depend on the neighbours are left off.
fn base64_forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for lead in 0..3usize {
        let mut padded = vec![0u8; lead];
        padded.extend_from_slice(value);
        for text in [STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
            let skip = [0, 2, 3][lead];
            let keep = text.len() - usize::from(padded.len() % 3 != 0);
            // A very short rest would strike innocent text.
            if keep > skip + 5 {
                out.push(text.as_bytes()[skip..keep].to_vec());
            }
            if lead == 0 {
                out.push(text.into_bytes());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    const SECRET: &str = "p4ss w'ord/\"$1+é";

    fn redactor() -> Redactor {
        let r = Redactor::default();
        r.add(SECRET);
        r
    }

    #[test]
    fn every_form_is_struck() {
        let r = redactor();
        for form in [
            SECRET.to_string(),
            STANDARD.encode(SECRET),
            STANDARD.encode(format!("user:{SECRET}")),
            STANDARD.encode(format!("ab{SECRET}cd")),
            "p4ss%20w%27ord%2F%22%241%2B%C3%A9".into(),
            "p4ss+w%27ord%2F%22%241%2B%C3%A9".into(),
            r#"'p4ss w'\''ord/"$1+é'"#.into(),
            r#"p4ss\ w\'ord/\"\$1+é"#.into(),
            serde_json::to_string(SECRET).unwrap(),
        ] {
            let shown = r.text(&format!("before {form} after"));
            assert!(shown.contains(STRUCK) && !shown.contains("ord"), "{form} -> {shown}");
        }
        assert_eq!(r.text("nothing here"), "nothing here");
    }

    proptest! {
        #[test]
        fn a_stream_cut_anywhere_shows_what_the_whole_shows(before in "[a-z ']{0,40}", after in "[a-z ']{0,40}", cuts in proptest::collection::vec(0usize..120, 0..6)) {
            let r = redactor();
            let whole = format!("{before}{SECRET}{after}{}", STANDARD.encode(SECRET));
            let bytes = whole.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut s = r.stream();
            let (mut out, mut at) = (Vec::new(), 0);
            for c in cuts {
                out.extend(s.push(&bytes[at..c]));
                at = c;
            }
            out.extend(s.push(&bytes[at..]));
            out.extend(s.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), r.text(&whole));
        }
    }
}
