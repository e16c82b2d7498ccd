//! Reads configuration files from top to bottom, as OpenSSH does: what is said first counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runbook_core::{Code, Error, Location, Result};

use super::keywords::{self, Takes};
use super::machine::Machine;
use super::{criteria, glob, lex, pattern};

/// Files that include one another go no deeper than this.
const DEPTH: usize = 16;

/// Which files are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Files {
    /// `~/.ssh/config` and `/etc/ssh/ssh_config`.
    #[default]
    Usual,
    /// This one alone, as `ssh -F` does.
    One(PathBuf),
    /// None, as `ssh -F none` does.
    None,
}

/// A value that is in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The value, in the spelling of `ssh -G`.
    pub text: String,
    /// Where it was written.
    pub at: Location,
    /// Whether it is from the person's own configuration.
    pub own: bool,
}

/// What has been read so far.
pub struct Reader<'m> {
    /// The machine and the person.
    pub machine: &'m Machine,
    /// The name that was asked for.
    pub original: &'m str,
    /// The name that `Host` looks at: first the one that was asked for, in the second pass that of the host.
    pub host: String,
    /// Values in effect, by keyword.
    pub values: BTreeMap<&'static str, Vec<Value>>,
    /// Whether this is the second pass.
    pub final_pass: bool,
    /// Whether `Match final` asks for one.
    pub wants_final: bool,
}

/// Where a line stands.
pub struct Place<'a> {
    /// File and line.
    pub at: &'a Location,
    /// Whether it is in the person's own configuration.
    pub own: bool,
    /// Whether it applies.
    pub active: bool,
}

/// The file that is being read.
struct File<'a> {
    path: &'a Path,
    own: bool,
    checked: bool,
    // Included where nothing applies: it is read for its errors alone.
    never: bool,
    depth: usize,
}

/// An error at a place of a configuration file.
pub fn wrong(at: &Location, what: impl std::fmt::Display) -> Error {
    Error::new(Code::SSH_CONFIG, format!("{}:{}: {what}", at.file, at.line))
        .at(at.clone())
        .hint("mend the file; `ssh -G HOST` shows how ssh reads it, and the reference page \"The SSH configuration\" what runbook follows")
}

impl<'m> Reader<'m> {
    /// Nothing read yet.
    #[must_use]
    pub fn new(machine: &'m Machine, original: &'m str) -> Self {
        Reader { machine, original, host: original.to_string(), values: BTreeMap::new(), final_pass: false, wants_final: false }
    }

    /// The value in effect.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).and_then(|v| v.first())
    }

    /// The text of the value in effect.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).map(|v| v.text.as_str())
    }

    /// Reads the files.
    ///
    /// # Errors
    /// `RB0304` for the first thing that OpenSSH would not take either.
    pub fn files(&mut self, files: &Files) -> Result<()> {
        match files {
            Files::None => Ok(()),
            Files::One(path) => match self.file(&File { path, own: true, checked: false, never: false, depth: 0 }, &mut true)? {
                true => Ok(()),
                false => Err(Error::new(Code::SSH_CONFIG, format!("there is no SSH configuration {}", path.display()))
                    .hint("check ssh_config in runbook.toml; it is relative to the project")),
            },
            Files::Usual => {
                let own = self.machine.ssh().join("config");
                self.file(&File { path: &own, own: true, checked: true, never: false, depth: 0 }, &mut true)?;
                let system = self.machine.system.join("ssh_config");
                self.file(&File { path: &system, own: false, checked: false, never: false, depth: 0 }, &mut true)?;
                Ok(())
            }
        }
    }

    /// Reads a file; `false` when there is none.
    fn file(&mut self, file: &File<'_>, active: &mut bool) -> Result<bool> {
        let path = file.path;
        if path.is_dir() {
            return Ok(true);
        }
        let cannot = |e: std::io::Error| {
            Error::new(Code::SSH_CONFIG, format!("{} cannot be read: {e}", path.display())).hint("let the person who runs runbook read it")
        };
        let bytes = match std::fs::read(path) {
            Ok(b) => b,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            // As OpenSSH: what cannot be opened is passed over unless it was asked for by name.
            Err(_) if file.depth == 0 && file.checked => return Ok(false),
            Err(e) => return Err(cannot(e)),
        };
        if file.checked && !self.machine.trusts(&std::fs::metadata(path).map_err(cannot)?) {
            return Err(Error::new(Code::SSH_CONFIG, format!("bad owner or permissions on {}", path.display()))
                .at(Location { file: path.display().to_string(), line: 0, column: 0 })
                .hint(format!("it must belong to you or root, and nobody else may write to it: chmod go-w {}", path.display())));
        }
        let name = path.display().to_string();
        for (i, text) in String::from_utf8_lossy(&bytes).split('\n').enumerate() {
            let at = Location { file: name.clone(), line: i + 1, column: 0 };
            self.line(text, file, &at, active)?;
        }
        Ok(true)
    }

    /// Reads a file's text as if it were the person's own configuration.
    ///
    /// # Errors
    /// As [`Reader::files`].
    pub fn string(&mut self, name: &str, text: &str) -> Result<()> {
        let file = File { path: Path::new(name), own: true, checked: false, never: false, depth: 0 };
        let mut active = true;
        for (i, line) in text.split('\n').enumerate() {
            self.line(line, &file, &Location { file: name.into(), line: i + 1, column: 0 }, &mut active)?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str, file: &File<'_>, at: &Location, active: &mut bool) -> Result<()> {
        let Some(line) = lex::line(text) else { return Ok(()) };
        if line.rest.is_empty() {
            return Err(wrong(at, format!("{} has no argument", shown(&line.keyword))));
        }
        let keyword = keywords::find(&line.keyword);
        let ignored = || self.text("ignoreunknown").is_some_and(|list| pattern::matches_list(&line.keyword, list, true));
        if keyword.is_none() && !ignored() {
            let hint = match runbook_core::suggest::closest(&line.keyword, keywords::KEYWORDS.iter().map(|k| k.key)) {
                Some(c) => format!("did you mean {}? Options of other programs are let through by IgnoreUnknown", shown(c)),
                None => "an option of another program or version is let through by a line `IgnoreUnknown NAME` above it".into(),
            };
            let mut e = wrong(at, format!("there is no option \"{}\"", line.keyword));
            e.hint = Some(hint);
            return Err(e);
        }
        let Some(args) = lex::arguments(line.rest) else { return Err(wrong(at, "a quote is not closed")) };
        let Some(keyword) = keyword else { return Ok(()) };
        match keyword.takes {
            Takes::Host => *active = self.host_applies(&args, file.never, at)?,
            Takes::Match => *active = criteria::apply(self, line.rest, file.never, at)? && !file.never,
            Takes::Include => self.include(&args, file, at, *active)?,
            _ => self.option(keyword, line.rest, &args, &Place { at, own: file.own, active: *active })?,
        }
        Ok(())
    }

    fn host_applies(&self, args: &[String], never: bool, at: &Location) -> Result<bool> {
        let mut applies = false;
        for arg in args {
            if arg.is_empty() {
                return Err(wrong(at, "Host has an empty pattern"));
            }
            let (negated, pattern) = arg.strip_prefix('!').map_or((false, arg.as_str()), |p| (true, p));
            if !never && pattern::matches(&self.host, pattern) {
                if negated {
                    return Ok(false);
                }
                applies = true;
            }
        }
        Ok(applies)
    }

    fn include(&mut self, args: &[String], file: &File<'_>, at: &Location, active: bool) -> Result<()> {
        for arg in args {
            if arg.is_empty() {
                return Err(wrong(at, "Include has an empty argument"));
            }
            let path = match arg.starts_with('~') {
                true if !file.own => return Err(wrong(at, format!("the machine's configuration cannot include {arg}"))),
                true => arg.clone(),
                false if arg.starts_with('/') => arg.clone(),
                false if file.own => format!("~/.ssh/{arg}"),
                false => format!("{}/{arg}", self.machine.system.display()),
            };
            let Ok(path) = self.machine.tilde_of_include(&path) else { continue };
            for found in glob::glob(&path) {
                if file.depth >= DEPTH {
                    return Err(wrong(at, format!("files include one another more than {DEPTH} deep")));
                }
                // What Host or Match say inside ends with the file.
                let inner = File { path: &found, own: file.own, checked: true, never: file.never || !active, depth: file.depth + 1 };
                self.file(&inner, &mut active.clone())?;
            }
        }
        Ok(())
    }
}

/// A keyword as the manual writes it.
fn shown(keyword: &str) -> &str {
    keywords::find(keyword).map_or(keyword, |k| k.name)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::machine::tests::desk;
    use super::*;

    /// Every value that is in effect for a host.
    pub fn read(host: &str, text: &str) -> Result<BTreeMap<&'static str, Vec<String>>> {
        let machine = desk(Path::new("/home/me"));
        let mut r = Reader::new(&machine, host);
        r.string("config", text)?;
        Ok(r.values.into_iter().map(|(k, v)| (k, v.into_iter().map(|v| v.text).collect())).collect())
    }

    /// The values of one option, joined.
    pub fn one(host: &str, text: &str, key: &str) -> String {
        read(host, text).unwrap().get(key).map(|v| v.join("|")).unwrap_or_default()
    }

    #[test]
    fn a_negated_pattern_wins_wherever_it_stands() {
        for line in ["Host *.a !x.a", "Host !x.a *.a"] {
            let text = format!("{line}\nPort 7");
            assert_eq!((one("y.a", &text, "port"), one("x.a", &text, "port")), ("7".into(), String::new()), "{line}");
        }
        assert_eq!(one("y", "Host !x\nPort 7", "port"), "", "a negation alone matches nothing");
    }

    #[test]
    fn every_error_has_its_place() {
        for (text, what) in [
            ("\n\nPort x", "Port wants a port"),
            ("\nx\nHostNam y", "has no argument"),
            ("# c\n\nHostNam y", "there is no option \"hostnam\""),
            ("\n\nUser a b", "\"b\" is a second"),
            ("\n\nUser \"a", "a quote is not closed"),
            ("\n\nPort", "Port has no argument"),
            ("\n\nPort # 22", "Port has no argument"),
            ("\n\nBatchMode perhaps", "only true, false, yes, no"),
            ("Host nobody\n\n ProxyJump @x", "the user is missing"),
            ("\n\nHost \"\"", "empty pattern"),
            ("\n\nMatch", "has no argument"),
            ("\n\nMatch host", "host wants"),
            ("\n\nSendEnv A=b", "names of environment variables"),
            ("\n\nSetEnv A", "NAME=value"),
            ("\n\nUserKnownHostsFile none a", "\"none\" alone"),
            ("\n\nCanonicalDomains a..b", "two dots"),
            ("\n\nConnectTimeout soon", "wants a time"),
        ] {
            let e = read("h", text).unwrap_err();
            assert_eq!(e.code, Code::SSH_CONFIG);
            assert!(e.message.contains(what), "{text:?}: {e}");
            let at = e.location.unwrap();
            assert_eq!(
                (at.file.as_str(), at.line),
                ("config", if what == "has no argument" && text.starts_with("\nx") { 2 } else { 3 }),
                "{text:?}"
            );
            assert!(e.hint.is_some());
        }
        assert!(read("h", "HostNam y").unwrap_err().hint.unwrap().contains("did you mean HostName"));
    }

    #[test]
    fn unknown_options_can_be_let_through() {
        assert_eq!(one("h", "IgnoreUnknown UseKeychain,Other*\nUseKeychain yes\nOtherThing \"a b\"\nPort 7", "port"), "7");
        assert!(read("h", "UseKeychain yes\nIgnoreUnknown UseKeychain").is_err(), "it must stand above");
    }

    #[test]
    fn included_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = desk(dir.path());
        machine.env.insert("HOME".into(), dir.path().display().to_string());
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(".ssh/config", "Host web\n Include conf.d/*.conf missing\n User last\nInclude loop\n");
        write(".ssh/conf.d/1.conf", "Port 1\nHost db\nPort 2\n");
        write(".ssh/conf.d/2.conf", "User first\n");
        write(".ssh/loop", "");
        write("etc/ssh_config", "Include ssh_config.d/*.conf\nPort 9\n");
        write("etc/ssh_config.d/a.conf", "Compression yes\n");
        let of = |host: &str| {
            let mut r = Reader::new(&machine, host);
            r.files(&Files::Usual).map(|()| ["port", "user", "compression"].map(|k| r.text(k).unwrap_or("").to_string()).join(" "))
        };
        assert_eq!(of("web").unwrap(), "1 first yes");
        assert_eq!(of("db").unwrap(), "9  yes", "an included Host does not apply where the file itself does not");
        write(".ssh/loop", "Include loop\n");
        write(".ssh/config", "Include loop\n");
        let e = of("web").unwrap_err();
        assert!(e.message.contains("16 deep") && e.location.unwrap().file.ends_with("loop"), "{}", e.message);
        write(".ssh/config", "Include ~/bad\n");
        write("bad", "\nPort x\n");
        let e = of("web").unwrap_err();
        assert_eq!(e.location.map(|l| (l.file.ends_with("/bad"), l.line)), Some((true, 2)));
        write("etc/ssh_config", "Include ~/bad\n");
        write(".ssh/config", "");
        assert!(of("web").unwrap_err().message.contains("cannot include ~/bad"));
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let machine = desk(dir.path());
        std::fs::create_dir(dir.path().join(".ssh")).unwrap();
        let file = dir.path().join(".ssh/config");
        std::fs::write(&file, "Port 7").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        let mut r = Reader::new(&machine, "h");
        let e = r.files(&Files::Usual).unwrap_err();
        assert!(e.message.starts_with("bad owner or permissions on ") && e.hint.unwrap().contains("chmod go-w"), "{}", e.message);
        // A file that was named is taken as it is, as with ssh -F.
        r.files(&Files::One(file)).unwrap();
        assert_eq!(r.text("port"), Some("7"));
        assert!(r.files(&Files::One(dir.path().join("none"))).unwrap_err().message.contains("there is no SSH configuration"));
    }
}
