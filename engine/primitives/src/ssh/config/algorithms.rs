//! Lists of algorithms as the configuration writes them: whole, or changes to what is usual.

use runbook_core::Location;

use super::pattern::matches_list;

/// A list of algorithms as it was written, with the place for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The list with its prefix: `aes256-ctr`, `+ssh-rsa`, `-*cbc`, `^chacha20-poly1305@openssh.com`.
    pub written: String,
    /// Where it was written.
    pub at: Location,
}

impl Names {
    /// The names that are meant: out of `usual`, the order when nothing is configured, and `all` that there are. Names that are not in
    /// `all` are left out.
    ///
    /// `+` appends to the usual ones, `^` puts in front of them, `-` takes patterns away from them; without a prefix the list
    /// replaces them. A name of the list may be a pattern.
    #[must_use]
    pub fn among<'a>(&self, usual: &[&'a str], all: &[&'a str]) -> Vec<&'a str> {
        let (how, list) = match self.written.split_at_checked(1) {
            Some((p @ ("+" | "-" | "^"), rest)) => (p, rest),
            _ => ("", self.written.as_str()),
        };
        let mut out: Vec<&'a str> = vec![];
        let add = |out: &mut Vec<&'a str>, name: &'a str| {
            if !out.contains(&name) {
                out.push(name);
            }
        };
        let listed = |out: &mut Vec<&'a str>| {
            for pattern in list.split(',').filter(|p| !p.is_empty()) {
                for name in all.iter().filter(|n| matches_list(n, pattern, false)) {
                    add(out, name);
                }
            }
        };
        match how {
            "-" => out.extend(usual.iter().filter(|n| !list.split(',').any(|p| matches_list(n, p, false)))),
            "+" => {
                out.extend(usual);
                listed(&mut out);
            }
            "^" => {
                listed(&mut out);
                for name in usual {
                    if !out.contains(name) {
                        out.push(name);
                    }
                }
            }
            _ => listed(&mut out),
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(written: &str) -> String {
        let names = Names { written: written.into(), at: Location { file: "config".into(), line: 1, column: 0 } };
        names.among(&["aes256-gcm", "aes128-ctr", "chacha"], &["3des", "aes128-ctr", "aes256-ctr", "aes256-gcm", "chacha"]).join(" ")
    }

    #[test]
    fn lists_and_what_stands_before_them() {
        for (written, want) in [
            ("chacha,aes128-ctr,chacha", "chacha aes128-ctr"),
            ("+3des,chacha", "aes256-gcm aes128-ctr chacha 3des"),
            ("-aes*", "chacha"),
            ("-none-such", "aes256-gcm aes128-ctr chacha"),
            ("^3des,chacha", "3des chacha aes256-gcm aes128-ctr"),
            ("aes*", "aes128-ctr aes256-ctr aes256-gcm"),
            ("no-such", ""),
            ("+", "aes256-gcm aes128-ctr chacha"),
            ("", ""),
        ] {
            assert_eq!(among(written), want, "{written}");
        }
    }
}
