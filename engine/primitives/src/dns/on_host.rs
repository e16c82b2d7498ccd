//! The provider for zones whose file lies on a host: changed there, checked by the name server's own tool, put in place at once, reloaded.
//!
//! The file as it was is kept beside it until the reload has succeeded (`FILE.runbook-before`): a controller or host that dies in between
//! leaves the name server with the old zone, and so it is read until the change is made again. What people wrote around the changed
//! records stays, comments too.

use async_trait::async_trait;
use hickory_proto::rr::{Name, RData, RecordType};
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};
use sha2::{Digest, Sha256};
use std::time::Duration;

use super::exchange::{endpoint, exchange};
use super::name;
use super::provider::{Change, Provider};
use super::record::RrSet;
use super::rfc2136::question;
use super::zone_file;
use crate::ssh::{Done, Exec, connect, quote};

/// How long the server may take to answer from the new file.
const LOADED_WITHIN: Duration = Duration::from_secs(30);

const OTHER: i32 = 81;
const BAD_ZONE: i32 = 82;
const NO_RELOAD: i32 = 83;
const DYNAMIC: i32 = 84;

/// A zone in a file on a host.
pub struct OnHost {
    origin: Name,
    host: String,
    path: String,
    check: String,
    reload: String,
    sudo: bool,
    server: Option<String>,
}

fn command(given: Option<&Value>, default: String) -> String {
    match given {
        Some(Value::List(words)) => words.iter().filter_map(Value::as_str).map(quote).collect::<Vec<_>>().join(" "),
        Some(Value::Str(text)) => text.clone(),
        _ => default,
    }
}

impl OnHost {
    /// Reads the settings `host`, `path`, `check`, `reload`, `sudo`, `server`.
    ///
    /// # Errors
    /// `RB0114` when one is missing.
    pub fn new(r: &Resource, origin: Name) -> Result<Self> {
        let shown = quote(&name::show(&origin));
        Ok(OnHost {
            host: r.need("host")?.to_string(),
            path: r.need("path")?.to_string(),
            check: command(r.settings.get("check"), format!("named-checkzone {shown} \"$FILE\"")),
            reload: command(r.settings.get("reload"), format!("rndc reload {shown}")),
            sudo: r.flag("sudo"),
            server: r.str("server").map(str::to_string),
            origin,
        })
    }

    fn file(&self) -> String {
        // A name that begins with `-` would be an option.
        quote(&if self.path.starts_with('-') { format!("./{}", self.path) } else { self.path.clone() })
    }

    async fn run(&self, cx: &Cx, script: String, stdin: Option<Vec<u8>>) -> Result<Done> {
        let exec = Exec { stdin, sudo: self.sudo, timeout: Some(Duration::from_secs(120)), ..Exec::new(script) };
        connect(cx, &self.host).await?.exec(cx, exec).await
    }

    /// The text that the server was last told to serve.
    async fn text(&self, cx: &Cx) -> Result<String> {
        let script =
            format!("f={}; b=$f.runbook-before; if [ -e \"$b\" ]; then f=$b; fi; sha256sum <\"$f\" >&2 && cat \"$f\"", self.file());
        let done = self.run(cx, script, None).await?;
        let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
        if done.status != 0 {
            return Err(Error::new(Code::FILE_READ, format!("the zone file {} cannot be read: {said}", self.path))
                .host(&self.host)
                .hint("check path of the zone in runbook.toml, and whether the login may read it (sudo = true)"));
        }
        let sum = runbook_core::digest::hex(&Sha256::digest(&done.stdout));
        if !said.starts_with(&sum) {
            return Err(Error::new(
                Code::FILE_TOO_LARGE,
                format!("the zone file {} does not come whole: it is larger than 4 MiB, or holds the value of a secret", self.path),
            )
            .host(&self.host)
            .hint("let the name server take dynamic updates, and use the kind \"rfc2136\""));
        }
        String::from_utf8(done.stdout).map_err(|_| {
            Error::new(Code::DNS_RECORD, format!("the zone file {} is not UTF-8", self.path))
                .host(&self.host)
                .hint("write other bytes as \\DDD")
        })
    }

    fn refused(&self, done: &Done) -> Error {
        let mut said = String::from_utf8_lossy(&done.stderr).trim().to_string();
        if said.is_empty() {
            said = String::from_utf8_lossy(&done.stdout).trim().to_string();
        }
        let (file, e) = (&self.path, |code, text: String| Error::new(code, text).host(&self.host));
        match done.status {
            OTHER => e(Code::DNS_RECORD, format!("{file} was changed by somebody else between reading and writing; nothing was written"))
                .hint("look at the file, then try again")
                .retryable(true),
            BAD_ZONE => e(Code::DNS_REFUSED, format!("the check of the new zone file refuses it, and {file} stays as it was: {said}"))
                .hint("see what the tool says of the records; it checks the whole file, also what this run does not change"),
            NO_RELOAD => e(Code::DNS_REFUSED, format!("{file} is changed, but its name server did not reload it: {said}"))
                .hint("mend what the command complains about, then resume: it runs again")
                .retryable(true),
            DYNAMIC => e(
                Code::DNS_REFUSED,
                format!("{file} has a journal beside it: its name server takes dynamic updates and would overwrite the file"),
            )
            .hint("use the kind \"rfc2136\" for this zone"),
            n => e(Code::FILE_WRITE, format!("the zone file {file} cannot be written: {said} (exit status {n})"))
                .hint("check whether the login may write the file and its folder (sudo = true)"),
        }
    }

    /// Waits until the server answers with that serial number or a later one.
    async fn loaded(&self, cx: &Cx, server: &str, serial: u32) -> Result<()> {
        let begun = tokio::time::Instant::now();
        loop {
            let answer = exchange(cx, endpoint(server).await?, question(&self.origin, RecordType::SOA, false), None).await?;
            let has = answer.answers.iter().find_map(|r| if let RData::SOA(s) = &r.data { Some(s.serial) } else { None });
            // RFC 1982: numbers go round.
            if has.is_some_and(|n| n.wrapping_sub(serial) < 1 << 31) {
                return Ok(());
            }
            if begun.elapsed() > LOADED_WITHIN {
                let is = has.map_or_else(|| "no SOA".to_string(), |n| format!("the serial number {n}"));
                return Err(Error::new(
                    Code::DNS_WAIT,
                    format!("{server} was told to reload {}, and still answers {is}, not {serial}", self.path),
                )
                .hint("see the name server's log: it may not be able to load the zone")
                .retryable(true));
            }
            cx.sleep(Duration::from_millis(200)).await?;
        }
    }
}

#[async_trait]
impl Provider for OnHost {
    fn supports(&self, ty: RecordType) -> bool {
        ty != RecordType::from(65401) && ty != RecordType::from(65402)
    }

    async fn list(&self, cx: &Cx) -> Result<Vec<RrSet>> {
        let text = self.text(cx).await?;
        zone_file::read(&self.origin, &text).map_err(|e| e.host(&self.host))
    }

    async fn apply(&self, cx: &Cx, changes: &[Change]) -> Result<()> {
        let text = self.text(cx).await?;
        let now = zone_file::read(&self.origin, &text)?;
        Change::all_as_read(changes, &now).map_err(|e| e.host(&self.host).hint("look at the file, then try again"))?;
        let today = cx.clock.now().strftime("%Y%m%d").to_string();
        let (new, serial) = zone_file::edit(&self.origin, &text, changes, &today)?;
        let sum = runbook_core::digest::hex(&Sha256::digest(text.as_bytes()));
        let script = format!(
            r#"set -u
f={file}; b=$f.runbook-before; n=$f.runbook-new
[ ! -e "$f.jnl" ] || exit {DYNAMIC}
# The copy has owner and mode of the file.
cp -p "$f" "$n" && cat >"$n" || exit 1
if [ -e "$b" ]; then o=$b; else o=$f; fi
s=$(sha256sum <"$o") || exit 1
case $s in {sum}*) ;; *) rm -f "$n"; exit {OTHER};; esac
FILE=$n; export FILE
said=$( ( {check}
) 2>&1 ) || {{ rm -f "$n"; printf '%s\n' "$said" >&2; exit {BAD_ZONE}; }}
[ -e "$b" ] || {{ cp -p "$f" "$b.part" && mv "$b.part" "$b" && sync; }} || exit 1
mv "$n" "$f" && sync || exit 1
FILE=$f
said=$( ( {reload}
) 2>&1 ) || {{ printf '%s\n' "$said" >&2; exit {NO_RELOAD}; }}
rm -f "$b"
"#,
            file = self.file(),
            check = self.check,
            reload = self.reload,
        );
        let done = self.run(cx, script, Some(new.into_bytes())).await?;
        if done.status != 0 {
            return Err(self.refused(&done));
        }
        match &self.server {
            Some(server) => self.loaded(cx, server, serial).await,
            None => Ok(()),
        }
    }

    fn primary(&self) -> Option<String> {
        self.server.clone()
    }
}
