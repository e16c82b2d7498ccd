//! The driver for proxies that show a maintenance page while a file exists and read their upstream from a file.
//!
//! Any proxy can be set up so, and it needs no privileges but to write two files. The optional `reload` command runs after a
//! change; a mark beside the file remembers that it is still due, so that a crash between the two does not lose it.

use async_trait::async_trait;
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result, Value};

use super::{Driver, Status};
use crate::ssh::{Exec, connect, quote};

/// A proxy steered by files.
pub struct FlagFile {
    name: String,
    host: String,
    flag: Option<String>,
    file: Option<String>,
    upstream: String,
    reload: Option<String>,
}

impl FlagFile {
    /// Reads the settings `host`, `maintenance_flag`, `upstream_file`, `upstream`, `reload`.
    ///
    /// # Errors
    /// `RB0114` when `host` is missing.
    pub fn new(r: &Resource) -> Result<Self> {
        let reload = match r.settings.get("reload") {
            Some(Value::List(words)) => Some(words.iter().filter_map(Value::as_str).map(quote).collect::<Vec<_>>().join(" ")),
            other => other.and_then(Value::as_str).map(str::to_string),
        };
        Ok(FlagFile {
            name: r.name.clone(),
            host: r.need("host")?.to_string(),
            flag: r.str("maintenance_flag").map(str::to_string),
            file: r.str("upstream_file").map(str::to_string),
            upstream: r.str("upstream").unwrap_or_default().to_string(),
            reload,
        })
    }

    fn need<'a>(&self, setting: &'a Option<String>, key: &str) -> Result<&'a str> {
        setting.as_deref().ok_or_else(|| {
            Error::new(Code::INVENTORY_MISSING, format!("the proxy \"{}\" has no \"{key}\" in runbook.toml", self.name))
                .hint(format!("add {key} = \"…\" to its section"))
        })
    }

    async fn run(&self, cx: &Cx, what: &str, script: String) -> Result<String> {
        let done = connect(cx, &self.host).await?.exec(cx, Exec::new(script)).await?;
        let said = String::from_utf8_lossy(&done.stdout).trim().to_string();
        if done.status == 0 {
            return Ok(said);
        }
        let why = String::from_utf8_lossy(&done.stderr).trim().to_string();
        let why = if why.is_empty() { format!("exit status {}", done.status) } else { why };
        let reload = done.status == RELOAD_FAILED;
        let message = match (&self.reload, reload) {
            (Some(r), true) => format!("the files of the proxy \"{}\" are changed, but its reload command {r:?} failed: {why}", self.name),
            _ => format!("{what} of the proxy \"{}\" failed: {why}", self.name),
        };
        let hint = if reload {
            "mend what the command complains about, then resume: it runs again"
        } else {
            "check that the login may write the files of the proxy in runbook.toml"
        };
        Err(Error::new(Code::PROXY, message).host(&self.host).hint(hint).retryable(reload))
    }

    /// `change` runs when `test` fails, then the reload; a reload left over from an earlier attempt is made up for.
    fn script(&self, path: &str, test: &str, change: &str) -> String {
        let f = quote(&safe(path));
        let reload = match &self.reload {
            Some(command) => format!(
                "if [ -e \"$f.reload\" ]; then ( {command}\n) >/dev/null || {{ s=$?; echo \"exit status $s\" >&2; exit {RELOAD_FAILED}; }}; rm -f \"$f.reload\"; c=changed; fi"
            ),
            None => ":".into(),
        };
        let mark = if self.reload.is_some() { ": >\"$f.reload\"" } else { ":" };
        format!(
            "set -e; f={f}; c=same\nif {test}; then :; else mkdir -p \"$(dirname \"$f\")\"; {mark}; {change}; c=changed; fi\n{reload}\n\
             if {test}; then echo $c; else echo 'it is not as it was made, a moment later' >&2; exit 1; fi"
        )
    }
}

const RELOAD_FAILED: i32 = 81;

/// A path that no tool takes for an option.
fn safe(path: &str) -> String {
    if path.starts_with('-') { format!("./{path}") } else { path.to_string() }
}

#[async_trait]
impl Driver for FlagFile {
    async fn status(&self, cx: &Cx) -> Result<Status> {
        let word = |p: &Option<String>| p.as_ref().map_or_else(|| "''".to_string(), |p| quote(&safe(p)));
        let script = format!(
            "set -e; f={}; u={}\nif [ -n \"$f\" ] && [ -e \"$f\" ]; then echo on; else echo off; fi\nif [ -n \"$u\" ] && [ -e \"$u\" ]; then cat \"$u\"; fi",
            word(&self.flag),
            word(&self.file)
        );
        let said = self.run(cx, "reading the state", script).await?;
        let (maintenance, upstream) = said.split_once('\n').unwrap_or((&said, ""));
        let upstream = if upstream.trim().is_empty() { self.upstream.as_str() } else { upstream.trim() };
        Ok(Status { maintenance: maintenance == "on", upstream: upstream.to_string() })
    }

    async fn maintenance(&self, cx: &Cx, on: bool) -> Result<bool> {
        let flag = self.need(&self.flag, "maintenance_flag")?;
        let script =
            if on { self.script(flag, "[ -e \"$f\" ]", ": >\"$f\"") } else { self.script(flag, "[ ! -e \"$f\" ]", "rm -f \"$f\"") };
        let what = if on { "turning on the maintenance page" } else { "turning off the maintenance page" };
        Ok(self.run(cx, what, script).await? == "changed")
    }

    async fn forward_to(&self, cx: &Cx, address: &str) -> Result<bool> {
        let file = self.need(&self.file, "upstream_file")?;
        let a = quote(address);
        // A new file under another name, then renamed over: the proxy never reads half an address.
        let change = format!("t=\"$f.new\"; printf '%s\\n' {a} >\"$t\"; mv -f \"$t\" \"$f\"");
        let script = self.script(file, &format!("[ -e \"$f\" ] && [ \"$(cat \"$f\")\" = {a} ]"), &change);
        Ok(self.run(cx, "changing the upstream", script).await? == "changed")
    }
}
