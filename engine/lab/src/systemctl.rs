//! The hosts' `systemctl`: asks the lab's daemon, speaks and exits as systemd's does.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use crate::control;
use crate::units::Shown;

// A reader that has gone away (`systemctl … | head -1`) is no reason to fail.
macro_rules! out {
    ($($arg:tt)*) => { let _ = writeln!(std::io::stdout(), $($arg)*); };
}
macro_rules! err {
    ($($arg:tt)*) => { let _ = writeln!(std::io::stderr(), $($arg)*); };
}

/// What a command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    verb: String,
    units: Vec<String>,
    quiet: bool,
    now: bool,
    value: bool,
    properties: Vec<String>,
}

fn parse(args: &[String]) -> Result<Asked, String> {
    let mut a = Asked::default();
    let mut it = args.iter();
    while let Some(arg) = it.next() {
        match arg.as_str() {
            "-q" | "--quiet" => a.quiet = true,
            "--now" => a.now = true,
            "--value" => a.value = true,
            "-p" | "--property" => {
                let list = it.next().ok_or("option requires an argument -- 'p'")?;
                a.properties.extend(list.split(',').map(str::to_string));
            }
            s if s.starts_with("--property=") => a.properties.extend(s["--property=".len()..].split(',').map(str::to_string)),
            "--no-pager" | "--no-block" | "--no-ask-password" | "--system" | "-l" | "--full" | "--plain" | "--no-legend" => {}
            s if s.starts_with('-') => return Err(format!("unrecognized option '{s}'")),
            s if a.verb.is_empty() => a.verb = s.to_string(),
            s => a.units.push(s.to_string()),
        }
    }
    if a.verb.is_empty() {
        a.verb = "list-units".into();
    }
    Ok(a)
}

fn full(unit: &str) -> String {
    if unit.contains('.') { unit.to_string() } else { format!("{unit}.service") }
}

/// The properties that `systemctl show` prints for a unit.
fn properties(unit: &str, shown: Option<&Shown>) -> Vec<(&'static str, String)> {
    let id = full(unit);
    let stamp = |s: &Shown| {
        let at = i64::try_from(s.since).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        at.filter(|_| s.since > 0).map(|t| t.strftime("%a %Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default()
    };
    match shown {
        None => vec![
            ("Id", id),
            ("LoadState", "not-found".into()),
            ("ActiveState", "inactive".into()),
            ("SubState", "dead".into()),
            ("UnitFileState", String::new()),
            ("MainPID", "0".into()),
        ],
        Some(s) => {
            let sub = match s.state.as_str() {
                "active" => "running",
                "failed" => "failed",
                _ => "dead",
            };
            vec![
                ("Type", "notify".into()),
                ("Id", id.clone()),
                ("Names", id),
                ("Description", format!("the lab's {unit}")),
                ("LoadState", "loaded".into()),
                ("ActiveState", s.state.clone()),
                ("SubState", sub.into()),
                ("UnitFileState", if s.enabled { "enabled" } else { "disabled" }.into()),
                ("Result", s.result.clone()),
                ("MainPID", s.pid.to_string()),
                ("ExecMainStatus", s.status.to_string()),
                ("NRestarts", "0".into()),
                ("StateChangeTimestamp", stamp(s)),
                ("ActiveEnterTimestamp", if s.state == "active" { stamp(s) } else { String::new() }),
            ]
        }
    }
}

/// Runs `systemctl ARGS` for a host and returns its exit status.
pub(crate) async fn run(dir: &Path, host: &str, args: &[String]) -> i32 {
    let asked = match parse(args) {
        Ok(a) => a,
        Err(e) => {
            err!("systemctl: {e}");
            return 1;
        }
    };
    match act(dir, host, &asked).await {
        Ok(status) => status,
        Err(e) => {
            err!("Failed to connect to bus: {e}");
            1
        }
    }
}

async fn act(dir: &Path, host: &str, asked: &Asked) -> runbook_core::Result<i32> {
    let ask = async |verb: &str, unit: &str| {
        control::ask(dir, &json!({ "do": "unit", "host": host, "unit": unit.trim_end_matches(".service"), "verb": verb })).await
    };
    let show = async |unit: &str| -> runbook_core::Result<Option<Shown>> {
        let v = ask("show", unit).await?;
        Ok(serde_json::from_value(v).unwrap_or(None))
    };
    match asked.verb.as_str() {
        "daemon-reload" | "reset-failed" | "daemon-reexec" => return Ok(0),
        "is-system-running" => {
            out!("running");
            return Ok(0);
        }
        "list-units" | "list-unit-files" => {
            for unit in ["edge", "shop"] {
                if let Some(s) = show(unit).await? {
                    let sub = if s.state == "active" { "running" } else { "dead" };
                    out!("{unit}.service loaded {} {sub} the lab's {unit}", s.state);
                }
            }
            return Ok(0);
        }
        _ if asked.units.is_empty() => {
            err!("Too few arguments.");
            return Ok(1);
        }
        _ => {}
    }
    let mut worst = 0;
    let mut best = i32::MAX;
    for unit in &asked.units {
        let (shown, id) = (show(unit).await?, full(unit));
        let status = match (asked.verb.as_str(), &shown) {
            ("is-active", s) => {
                let state = s.as_ref().map_or("inactive", |s| s.state.as_str());
                if !asked.quiet {
                    out!("{state}");
                }
                match s {
                    Some(s) if s.state == "active" => 0,
                    Some(_) => 3,
                    None => 4,
                }
            }
            ("is-failed", s) => {
                let state = s.as_ref().map_or("inactive", |s| s.state.as_str());
                if !asked.quiet {
                    out!("{state}");
                }
                i32::from(state != "failed")
            }
            ("is-enabled", Some(s)) => {
                if !asked.quiet {
                    out!("{}", if s.enabled { "enabled" } else { "disabled" });
                }
                i32::from(!s.enabled)
            }
            ("is-enabled", None) => {
                out!("not-found");
                4
            }
            ("show", s) => {
                let all = properties(unit, s.as_ref());
                let wanted: Vec<_> = if asked.properties.is_empty() {
                    all
                } else {
                    let find = |p: &String| all.iter().find(|(k, _)| k == p).cloned();
                    asked.properties.iter().filter_map(find).collect()
                };
                for (k, v) in wanted {
                    let line = if asked.value { v } else { format!("{k}={v}") };
                    out!("{line}");
                }
                0
            }
            ("status", Some(s)) => {
                let enabled = if s.enabled { "enabled" } else { "disabled" };
                out!("● {id} - the lab's {unit}\n     Loaded: loaded ({id}; {enabled})\n     Active: {}", s.state);
                if s.pid > 0 {
                    out!("   Main PID: {}", s.pid);
                }
                out!("");
                for line in &s.log {
                    out!("{line}");
                }
                if s.state == "active" { 0 } else { 3 }
            }
            ("status", None) => {
                err!("Unit {id} could not be found.");
                4
            }
            ("stop" | "disable", None) => {
                err!("Failed to {} {id}: Unit {id} not loaded.", asked.verb);
                if asked.verb == "stop" { 5 } else { 1 }
            }
            ("enable", None) => {
                err!("Failed to enable unit: Unit file {id} does not exist.");
                1
            }
            ("start" | "restart" | "reload" | "try-restart" | "reload-or-restart", None) => {
                err!("Failed to {} {id}: Unit {id} not found.", asked.verb);
                5
            }
            ("reload", Some(s)) if s.state != "active" => {
                err!("{id} is not active, cannot reload.");
                1
            }
            ("try-restart", Some(s)) if s.state != "active" => 0,
            (verb @ ("start" | "stop" | "restart" | "try-restart" | "reload" | "reload-or-restart" | "enable" | "disable"), Some(_)) => {
                let mut good = ask(verb, unit).await?.as_bool().unwrap_or(false);
                if asked.now && good {
                    good = match verb {
                        "enable" => ask("start", unit).await?.as_bool().unwrap_or(false),
                        "disable" => ask("stop", unit).await?.as_bool().unwrap_or(false),
                        _ => good,
                    };
                }
                if !good {
                    err!("Job for {id} failed because the control process exited with error code.");
                    err!("See \"systemctl status {id}\" for details.");
                }
                i32::from(!good)
            }
            (verb, _) => {
                err!("Unknown command verb {verb}.");
                1
            }
        };
        worst = worst.max(status);
        best = best.min(status);
    }
    // Of several units, is-active and is-enabled are content with one.
    Ok(if asked.verb.starts_with("is-") { best } else { worst })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(s: &str) -> Vec<String> {
        s.split(' ').map(str::to_string).collect()
    }

    #[test]
    fn command_lines_are_read() {
        let a = parse(&words("--no-pager show -p MainPID,ActiveState --property=Id --value shop")).unwrap();
        assert_eq!((a.verb.as_str(), a.value, a.units), ("show", true, words("shop")));
        assert_eq!(a.properties, ["MainPID", "ActiveState", "Id"]);
        assert!(parse(&words("start --what shop")).unwrap_err().contains("--what"));
    }
}
