//! `read_file`, `exists` and `checksum`: looking at files.

use async_trait::async_trait;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result};

use super::{MISSING, check_path, dashed, last_line};
use crate::ssh::exec::KEEP;
use crate::ssh::{Exec, connect, quote};

pub(super) fn register(r: &mut Registry) {
    for kind in [Kind::ReadFile, Kind::Exists, Kind::Checksum] {
        r.add(Inspect::new(kind));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ReadFile,
    Exists,
    Checksum,
}

struct Inspect {
    kind: Kind,
    spec: Spec,
}

impl Inspect {
    fn new(kind: Kind) -> Self {
        let spec = match kind {
            Kind::ReadFile => {
                Spec::method("Host", "read_file", Effect::Read, "Gives the text of a file of at most 4 MiB. Secrets in it are struck.")
                    .returns(Ty::Str)
                    .example(r#"let conf = host("old").read_file("/etc/hostname");"#)
                    .errors(&[Code::FILE_MISSING, Code::FILE_READ, Code::FILE_TOO_LARGE, Code::SUDO])
            }
            Kind::Exists => {
                Spec::method("Host", "exists", Effect::Read, "Tells whether there is a file, a folder or anything else at a path.")
                    .returns(Ty::Bool)
                    .example(r#"if !host("new").exists("shop/shop.conf") { log("not yet"); }"#)
                    .errors(&[Code::SUDO])
            }
            Kind::Checksum => Spec::method("Host", "checksum", Effect::Read, "Gives the SHA-256 of a file, in lower-case hex.")
                .returns(Ty::Str)
                .example(r#"let same = host("old").checksum("a.db") == host("new").checksum("a.db");"#)
                .errors(&[Code::FILE_MISSING, Code::FILE_READ, Code::SUDO]),
        };
        let spec = spec.arg("path", Ty::Str, "The path; relative to the login's home folder.").option(
            "sudo",
            crate::ssh::privilege::ty(),
            "Look with raised privileges: `true` for root, or the name of a user.",
        );
        Inspect { kind, spec }
    }
}

#[async_trait]
impl Primitive for Inspect {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (host, path) = (call.target(), call.str(0));
        check_path(path)?;
        let p = quote(&dashed(path));
        let there = format!("[ -e {p} ] || exit {MISSING}; [ ! -d {p} ] || {{ echo it is a folder >&2; exit 1; }}");
        let script = match self.kind {
            Kind::ReadFile => format!("{there}\nhead -c {} <{p}", KEEP + 1),
            Kind::Exists => format!("[ -e {p} ] || [ -L {p} ] || exit {MISSING}"),
            Kind::Checksum => format!("{there}\nsha256sum <{p}"),
        };
        let done = connect(cx, host).await?.exec(cx, Exec::new(script).raised(call)).await?;
        match (self.kind, done.status) {
            (Kind::Exists, 0) => return Ok(Outcome::from(true)),
            (Kind::Exists, MISSING) => return Ok(Outcome::from(false)),
            (_, MISSING) => {
                return Err(Error::new(Code::FILE_MISSING, format!("there is no {path}"))
                    .host(host)
                    .hint("paths are absolute, or relative to the login's home folder"));
            }
            (_, 0) => {}
            _ => {
                return Err(Error::new(Code::FILE_READ, format!("{path} cannot be read: {}", last_line(&done)))
                    .host(host)
                    .hint("check that the login may read it (or use sudo: true)"));
            }
        }
        if self.kind == Kind::Checksum {
            let text = String::from_utf8_lossy(&done.stdout);
            return Ok(Outcome::from(text.split_whitespace().next().unwrap_or("").to_string()));
        }
        if done.stdout.len() > KEEP {
            return Err(Error::new(Code::FILE_TOO_LARGE, format!("{path} is larger than 4MiB"))
                .host(host)
                .hint("use download or copy_from, or read a part of it with read(\"tail -c 100000 …\")"));
        }
        String::from_utf8(done.stdout).map(Outcome::from).map_err(|_| {
            Error::new(Code::FILE_READ, format!("{path} is not UTF-8 text"))
                .host(host)
                .hint("use download or checksum for files that are not text")
        })
    }
}
