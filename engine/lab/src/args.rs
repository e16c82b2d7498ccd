//! The hidden subcommand `__lab`: the daemon, its services, and the hosts' `systemctl`, all in this one executable.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use runbook_core::{Code, Error, Result};

use crate::{daemon, edge, shop, systemctl};

/// Values of `--name value` pairs, and everything after `--`.
struct Given<'a> {
    pairs: Vec<(&'a str, &'a str)>,
    rest: &'a [String],
}

impl<'a> Given<'a> {
    fn read(args: &'a [String]) -> Result<Given<'a>> {
        let mut pairs = vec![];
        let mut args = args;
        loop {
            match args {
                [] => return Ok(Given { pairs, rest: &[] }),
                [dashes, rest @ ..] if dashes == "--" => return Ok(Given { pairs, rest }),
                [name, value, rest @ ..] if name.starts_with("--") => {
                    pairs.push((&name[2..], value.as_str()));
                    args = rest;
                }
                [other, ..] => return Err(Error::new(Code::USAGE, format!("__lab does not take \"{other}\" here"))),
            }
        }
    }

    fn get(&self, name: &str) -> Result<&'a str> {
        let found = self.pairs.iter().find(|(n, _)| *n == name);
        found.map(|(_, v)| *v).ok_or_else(|| Error::new(Code::USAGE, format!("__lab needs --{name}")))
    }

    fn address(&self) -> Result<Ipv4Addr> {
        self.get("address")?.parse().map_err(|_| Error::new(Code::USAGE, "__lab needs an IPv4 address"))
    }
}

/// Runs `__lab ARGS` and returns the exit status. For the lab's own use, not for people.
///
/// Call it from `main` before anything else, outside any async runtime: it makes its own.
#[must_use]
pub fn lab_main(args: &[String]) -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(r) => r,
        Err(e) => {
            eprintln!("runbook __lab: no async runtime: {e}");
            return 1;
        }
    };
    let done = runtime.block_on(dispatch(args));
    // Blocking work left over must not keep the process.
    runtime.shutdown_background();
    match done {
        Ok(status) => status,
        Err(e) => {
            eprintln!("{e}");
            if e.code == Code::USAGE { 2 } else { 1 }
        }
    }
}

async fn dispatch(args: &[String]) -> Result<i32> {
    let [verb, rest @ ..] = args else { return Err(Error::new(Code::USAGE, "__lab needs to be told what to do")) };
    let given = Given::read(rest)?;
    match verb.as_str() {
        "serve" => daemon::serve(&PathBuf::from(given.get("dir")?)).await?,
        "shop" => shop::run(given.get("root")?.into(), given.address()?, given.get("host")?.to_string()).await?,
        "edge" => {
            let port = given.get("port")?.parse().map_err(|_| Error::new(Code::USAGE, "__lab needs a port number"))?;
            edge::run(given.get("root")?.into(), SocketAddrV4::new(given.address()?, port)).await?;
        }
        "systemctl" => return Ok(systemctl::run(&PathBuf::from(given.get("dir")?), given.get("host")?, given.rest).await),
        other => return Err(Error::new(Code::USAGE, format!("__lab does not know \"{other}\""))),
    }
    Ok(0)
}

/// Returns when the process is asked to end.
pub(crate) async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        // Without handlers the signals end the process by themselves.
        _ => std::future::pending().await,
    }
}
