//! What a line says is taken, unless something was said of it before.

use runbook_core::Result;

use super::keywords::{Keyword, Takes};
use super::place::hop;
use super::read::{Place, Reader, Value, wrong};
use super::{pattern, value};

/// OpenSSH takes no more keys, certificates or files of host keys than these.
const MANY: usize = 100;
const FILES: usize = 32;

impl Reader<'_> {
    /// Takes the value of an option, unless one is in effect already. What it says is checked also where it does not apply.
    ///
    /// # Errors
    /// `RB0304` for a value that OpenSSH would not take either.
    pub fn option(&mut self, k: &'static Keyword, rest: &str, args: &[String], place: &Place<'_>) -> Result<()> {
        let (at, active) = (place.at, place.active);
        let bad = |what: String| wrong(at, format!("{} {what}", k.name));
        let make = |text: String| Value { text, at: at.clone(), own: place.own };
        let vacant = !self.values.contains_key(k.key);
        match k.takes {
            Takes::Command => {
                let command = rest.trim_start_matches([' ', '\t', '\r', '\n', '=']);
                // Hosts on the way that were named first count.
                let jumps = self.text("proxyjump").is_some_and(|j| !j.eq_ignore_ascii_case("none"));
                let overridden = k.key == "proxycommand" && jumps;
                if active && vacant && !overridden {
                    self.values.insert(k.key, vec![make(command.to_string())]);
                }
            }
            Takes::Hops => {
                let hops = rest.trim_start_matches([' ', '\t', '\r', '\n', '=']);
                let hops = hops.split('#').next().unwrap_or_default().trim();
                if !hops.eq_ignore_ascii_case("none") {
                    for h in hops.split(',') {
                        hop(h).map_err(|why| bad(format!("\"{}\": {why}", h.trim())))?;
                    }
                }
                if active && vacant && !self.values.contains_key("proxycommand") {
                    self.values.insert(k.key, vec![make(hops.to_string())]);
                }
            }
            Takes::Anything => {
                if active && vacant {
                    self.values.insert(k.key, vec![make(args.join(" "))]);
                }
            }
            Takes::Files | Takes::Domains => {
                let alone = args.len() == 1;
                let mut all = Vec::new();
                for arg in args {
                    if arg.is_empty() {
                        return Err(bad("has an empty argument".into()));
                    }
                    if arg.eq_ignore_ascii_case("none") && !alone {
                        return Err(bad("takes \"none\" alone only".into()));
                    }
                    all.push(make(if k.takes == Takes::Domains { value::domain(arg).map_err(bad)? } else { arg.clone() }));
                }
                if active && vacant && !all.is_empty() {
                    if all.len() > FILES {
                        return Err(bad(format!("takes no more than {FILES}")));
                    }
                    self.values.insert(k.key, all);
                }
            }
            Takes::EnvNames => {
                for arg in args {
                    if arg.is_empty() || arg.contains('=') {
                        return Err(bad(format!("takes names of environment variables, not \"{arg}\"")));
                    }
                    if !active {
                        continue;
                    }
                    let list = self.values.entry(k.key).or_default();
                    match arg.strip_prefix('-') {
                        Some(gone) => list.retain(|v| !pattern::matches(&v.text, gone)),
                        None => list.push(make(arg.clone())),
                    }
                }
            }
            Takes::EnvValues => {
                let mut all: Vec<Value> = Vec::new();
                for arg in args {
                    let Some((name, _)) = arg.split_once('=') else { return Err(bad(format!("takes NAME=value, not \"{arg}\""))) };
                    let same = |v: &Value| v.text.split_once('=').is_some_and(|(n, _)| n == name);
                    if !all.iter().any(same) {
                        all.push(make(arg.clone()));
                    }
                }
                if active && vacant && !all.is_empty() {
                    self.values.insert(k.key, all);
                }
            }
            _ => {
                let Some(arg) = args.first() else { return Err(bad("has no argument".into())) };
                let text = value::single(&k.takes, arg).map_err(bad)?;
                if let Some(extra) = args.get(1) {
                    return Err(bad(format!("takes one argument, and \"{extra}\" is a second")));
                }
                // `none` leaves a time unset: a later line may set it.
                if !active || (k.takes == Takes::Time && text == "none") {
                    return Ok(());
                }
                let v = make(text);
                let list = self.values.entry(k.key).or_default();
                if k.takes != Takes::EachFile {
                    if list.is_empty() {
                        list.push(v);
                    }
                } else if !list.iter().any(|o| o.text == v.text && o.own == v.own) {
                    if list.len() >= MANY {
                        return Err(bad(format!("is there more than {MANY} times")));
                    }
                    list.push(v);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::one;

    #[test]
    fn the_first_value_counts_and_lists_add_up() {
        let text = "Host web\n Port 1\n IdentityFile a\nHost *\n Port 2\n IdentityFile b\n IdentityFile a\n User x\n";
        assert_eq!(
            (one("web", text, "port"), one("web", text, "identityfile"), one("web", text, "user")),
            ("1".into(), "a|b".into(), "x".into())
        );
        assert_eq!((one("db", text, "port"), one("db", text, "identityfile")), ("2".into(), "b|a".into()));
    }

    #[test]
    fn jump_and_command_exclude_each_other() {
        assert_eq!(one("h", "ProxyJump a\nProxyCommand b", "proxycommand"), "");
        assert_eq!(one("h", "ProxyCommand b # c\nProxyJump a", "proxycommand"), "b # c");
        assert_eq!(one("h", "ProxyCommand b\nProxyJump a", "proxyjump"), "");
        assert_eq!(one("h", "ProxyJump none\nProxyCommand b\nProxyJump c", "proxycommand"), "b");
        assert_eq!(one("h", "ProxyCommand none\nProxyJump c", "proxyjump"), "");
        assert_eq!(one("h", "ProxyJump a,b:2 # c", "proxyjump"), "a,b:2");
    }

    #[test]
    fn environment() {
        let text = "SendEnv LANG LC_*\nSendEnv A B\nSendEnv -L*\nSetEnv X=1 X=2 Y=a=b\nSetEnv Z=3";
        assert_eq!((one("h", text, "sendenv"), one("h", text, "setenv")), ("A|B".into(), "X=1|Y=a=b".into()));
    }
}
