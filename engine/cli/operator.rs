//! Who runs this, from where, with which binary; and whether another controller is alive.

use std::path::Path;

use runbook_core::exec::Liveness;
use runbook_core::journal::Operator;

/// The present process as the journal names it; `state` is the project's state folder.
pub fn here(state: &Path) -> Operator {
    let uname = rustix::system::uname();
    let pid = std::process::id();
    Operator {
        user: user(),
        host: uname.nodename().to_string_lossy().into_owned(),
        pid,
        pid_start: started(pid).unwrap_or(0),
        boot: boot(),
        // The first word is the client's address.
        from: std::env::var("SSH_CLIENT").ok().and_then(|s| s.split_whitespace().next().map(str::to_string)),
        version: env!("CARGO_PKG_VERSION").to_string(),
        binary: crate::binary::sum(state),
    }
}

/// The login name.
pub fn user() -> String {
    let id = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|l| {
        let mut f = l.split(':');
        let name = f.next()?;
        (f.nth(1)?.parse() == Ok(id)).then(|| name.to_string())
    });
    name.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| format!("uid {id}"))
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

/// When a process started, in clock ticks since boot; tells a reused pid from the same process.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // A zombie does nothing any more.
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

/// Whether a controller is alive, as far as this machine can tell.
pub fn alive(o: &Operator) -> Liveness {
    let uname = rustix::system::uname();
    if o.host != uname.nodename().to_string_lossy() {
        return Liveness::Unknown;
    }
    if !o.boot.is_empty() && o.boot != boot() {
        return Liveness::Dead;
    }
    match started(o.pid) {
        Some(t) if t == o.pid_start || o.pid_start == 0 => Liveness::Alive,
        _ => Liveness::Dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_an_earlier_one_with_its_pid_does_not() {
        let me = here(Path::new("/nonexistent"));
        assert_eq!(alive(&me), Liveness::Alive);
        assert_eq!(alive(&Operator { pid_start: me.pid_start - 1, ..me.clone() }), Liveness::Dead);
        assert_eq!(alive(&Operator { boot: "another".into(), ..me.clone() }), Liveness::Dead);
        assert_eq!(alive(&Operator { host: "another".into(), ..me.clone() }), Liveness::Unknown);
        assert_eq!(me.binary.map(|b| b.len()), Some(64));
    }
}
