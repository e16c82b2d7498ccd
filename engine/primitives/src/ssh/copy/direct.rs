//! Straight from host to host: one of them logs in to the other with a key made for this copy.
//!
//! The key is made on the side that calls and never leaves it. Its public half goes into the other side's `authorized_keys` with
//! `restrict` and a forced command: a script that holds the one `rsync --server` (or `tar`) of this copy. The calling side knows the other
//! one by the host keys that the controller knows. Key, line and lists are taken back afterwards ([`clean`](super::clean)).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::job::Load;
use super::{Job, Tool, clean, failure, tools};
use crate::ssh::exec::tail;
use crate::ssh::files::dashed;
use crate::ssh::known_hosts::KnownHosts;
use crate::ssh::target::{Target, parse_place};
use crate::ssh::{Channel, Exec, Session, quote};

pub(super) const CLIENT: &str = include_str!("client.sh");

/// Who calls whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The source calls the target.
    Push,
    /// The target calls the source.
    Pull,
}

/// How an attempt ended that did not fail.
pub(super) enum Attempt {
    /// The files are there; so much went over the network.
    Done(u64),
    /// The one host cannot log in to the other, for this reason; nothing was moved.
    NoWay(String),
}

/// Ways that were found closed, so that not every copy waits for them again.
#[derive(Default)]
struct Closed(Mutex<HashMap<String, (Instant, String)>>);

const FORGET: Duration = Duration::from_secs(600);

/// Copies in this direction, if the hosts let it.
pub(super) async fn attempt(job: &Job<'_>, load: &Load<'_>, direction: Direction, able: bool) -> Result<Attempt> {
    let (client, server) = match direction {
        Direction::Push => (&job.from, &job.to),
        Direction::Pull => (&job.to, &job.from),
    };
    let no = |why: String| Ok(Attempt::NoWay(format!("{} to {}: {why}", client.name(), server.name())));
    if !able {
        return no("ssh or ssh-keygen is missing".into());
    }
    if load.tool == Tool::Tar && job.o.bandwidth.is_some() {
        return no("tar cannot be held to a bandwidth there".into());
    }
    let there = &server.slot.target;
    if job.o.sudo && there.sudo_password.is_some() {
        return no("sudo wants a password there".into());
    }
    let address = match direction {
        Direction::Push => &job.o.to_address,
        Direction::Pull => &job.o.from_address,
    };
    let closed = job.cx.shared.get::<Closed>();
    let key = format!("{} {} {} {:?}", job.cx.env.name, client.name(), server.name(), address);
    let known = closed.0.lock().get(&key).filter(|(at, _)| at.elapsed() < FORGET).map(|(_, why)| why.clone());
    if let Some(why) = known.filter(|_| job.o.via.is_none()) {
        return no(why);
    }
    clean::mark(job.cx, &[client, server]).await?;
    job.left.lock().extend([client.clone(), server.clone()]);
    match (Call { job, load, direction, client, server }).make(address.as_deref()).await? {
        Attempt::NoWay(why) => {
            job.tidy().await;
            closed.0.lock().insert(key, (Instant::now(), why.clone()));
            no(why)
        }
        done => Ok(done),
    }
}

/// One call of one host to the other.
struct Call<'a, 'j> {
    job: &'a Job<'j>,
    load: &'a Load<'a>,
    direction: Direction,
    client: &'a Session,
    server: &'a Session,
}

fn env<const N: usize>(all: [(&str, &str); N]) -> Vec<(String, String)> {
    all.map(|(k, v)| (k.to_string(), v.to_string())).to_vec()
}

/// What the calling side has prepared.
pub(super) struct Prepared {
    /// Its folder.
    pub folder: String,
    /// The public half of its key.
    pub key: String,
    /// What it would start on the other side.
    pub words: Vec<String>,
}

/// Prepares the calling side.
pub(super) async fn prepare(
    job: &Job<'_>,
    client: &Session,
    ssh: &str,
    known: &str,
    record: &str,
    names: Vec<u8>,
) -> Result<std::result::Result<Prepared, String>> {
    let cx = job.cx;
    let env = env([("rb_run", &*cx.run), ("rb_tag", &cx.action_id.0), ("rb_ssh", ssh), ("rb_known", known), ("rb_record", record)]);
    let done = client.exec(cx, Exec { env, stdin: Some(names), ..Exec::new(CLIENT) }).await?;
    let why = || tail(&done.stderr).lines().next_back().unwrap_or("").to_string();
    match done.status {
        0 => {}
        98 => return Ok(Err(why())),
        _ => return Err(failure::here(client.name(), "the list of what is to be copied cannot be written there", &done.stderr)),
    }
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let mut lines = said.lines().map(str::to_string);
    Ok(Ok(Prepared { folder: lines.next().unwrap_or_default(), key: lines.next().unwrap_or_default(), words: lines.collect() }))
}

/// `rsync` with its options as shell text, before the list and both places.
pub(super) fn rsync_words(job: &Job<'_>, load: &Load<'_>) -> String {
    let words = tools::rsync(job, load.diff, load.tools, load.forced);
    format!("rsync {}", words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "))
}

/// The command by which `rsync` is asked what it would start on the other side.
pub(super) fn record(rsync: &str, direction: Direction) -> String {
    let places = if direction == Direction::Push { "./ peer:./" } else { "peer:./ ./" };
    format!("{rsync} --files-from=empty --from0 -e \"sh \\\"$d/record\\\"\" {places}")
}

impl Call<'_, '_> {
    async fn make(&self, address: Option<&str>) -> Result<Attempt> {
        let (job, load, direction) = (self.job, self.load, self.direction);
        let rsync = rsync_words(job, load);
        let recorded = if load.tool == Tool::Rsync { record(&rsync, direction) } else { String::new() };
        let names = load.names();
        // tar reads its list where it packs, rsync where it calls.
        let (names, over_there) = match (load.tool, direction) {
            (Tool::Tar, Direction::Pull) => (Vec::new(), Some(names)),
            _ => (names, None),
        };
        let there = &self.server.slot.target;
        let ssh = ssh_script(&there.user, &there.host, there.port, there.known_as().0, address)?;
        let known = known_hosts(there);
        let prepared = match prepare(job, self.client, &ssh, &known, &recorded, names).await? {
            Ok(p) => p,
            Err(why) => return Ok(Attempt::NoWay(why)),
        };
        let serve = self.serve(&prepared)?;
        if let Some(why) = self.open_door(&prepared.key, &serve, over_there).await? {
            return Ok(Attempt::NoWay(why));
        }
        self.carry(&prepared.folder, &rsync).await
    }

    /// The script that the key may run, and nothing else.
    fn serve(&self, prepared: &Prepared) -> Result<String> {
        let job = self.job;
        let sends = self.direction == Direction::Pull;
        let command = match self.load.tool {
            Tool::Rsync => {
                let words: Vec<&str> = prepared.words.iter().map(String::as_str).collect();
                format!("exec {}", tools::served(&words, sends).map_err(|e| e.host(self.client.name()))?)
            }
            Tool::Tar if sends => self.load.pack(job, "\"$l\""),
            Tool::Tar => self.load.unpack(job),
        };
        let enter = if sends { format!("cd -- {} || exit 96", quote(&dashed(job.source))) } else { into(job.target) };
        Ok(format!("l=${{0%/*}}/list\ncd || exit 96\n{enter}\n{command}"))
    }

    /// Lets the key in. `Some` reason when this host cannot be entered that way.
    async fn open_door(&self, key: &str, serve: &str, names: Option<Vec<u8>>) -> Result<Option<String>> {
        let cx = self.job.cx;
        let raise = if self.job.o.sudo { "sudo -n -- " } else { "" };
        let env = env([
            ("rb_do", "add"),
            ("rb_run", &*cx.run),
            ("rb_tag", &cx.action_id.0),
            ("rb_key", key),
            ("rb_serve", serve),
            ("rb_raise", raise),
        ]);
        let mut script = clean::KEYS.to_string();
        if names.is_some() {
            script.push_str("cat >\"$HOME/.runbook/$rb_run/copy-$rb_tag-server/list\" || exit 1\n");
        }
        let done = self.server.exec(cx, Exec { env, stdin: names, ..Exec::new(script) }).await?;
        match done.status {
            0 => Ok(None),
            _ => Ok(Some(format!("its key cannot be let in: {}", tail(&done.stderr).lines().next_back().unwrap_or("").trim()))),
        }
    }

    async fn carry(&self, folder: &str, rsync: &str) -> Result<Attempt> {
        let (job, load) = (self.job, self.load);
        let d = quote(folder);
        let ssh = format!("sh {d}/ssh peer");
        let (here, commands) = match (load.tool, self.direction) {
            (Tool::Rsync, direction) => {
                let places = if direction == Direction::Push { "./ peer:./" } else { "peer:./ ./" };
                let how = "--info=progress2,stats2 --outbuf=N --files-from=\"$d/list\" --from0";
                (direction, format!("{rsync} {how} -e \"sh \\\"$d/ssh\\\"\" {places} </dev/null & r=$! t=\n"))
            }
            (Tool::Tar, Direction::Push) => {
                let pack = load.pack(job, "\"$d/list\"");
                (Direction::Push, format!("mkfifo \"$d/pipe\" || exit 1\n({pack}) >\"$d/pipe\" & t=$!\n{ssh} <\"$d/pipe\" >&2 & r=$!\n"))
            }
            (Tool::Tar, Direction::Pull) => {
                let unpack = load.unpack(job);
                (
                    Direction::Pull,
                    format!("mkfifo \"$d/pipe\" || exit 1\n{ssh} </dev/null >\"$d/pipe\" & r=$!\n({unpack}) <\"$d/pipe\" >&2 & t=$!\n"),
                )
            }
        };
        let enter = if here == Direction::Push { format!("cd -- {} || exit 96", quote(&dashed(job.source))) } else { into(job.target) };
        // When standard input ends, the controller is gone or has given up: then nothing may go on by itself.
        let script = format!(
            "d={d}\n{enter}\nexec 3<&0\n{commands}echo \"$r\" >\"$d/pid\"\n\
             trap 'kill $r $t 2>/dev/null' 0; trap 'exit 143' 1 2 15\n\
             (cat <&3; kill $r $t) >/dev/null 2>&1 9<&- & w=$!\n\
             if [ -n \"$t\" ]; then (while kill -0 $t; do sleep 1 >/dev/null; sed -n 's/^wchar: /+/p' /proc/$r/io; done) 2>/dev/null 9<&- & m=$!; fi\n\
             wait $r; s=$?; e=0\nif [ -n \"$t\" ]; then wait $t; e=$?; kill $m 2>/dev/null; fi\n\
             trap - 0\nkill $w 2>/dev/null\necho \"rb-end $s $e\"\nexit $s"
        );
        let Channel { stdin, mut stdout, done } = self.client.open(job.cx, Exec { sudo: job.o.sudo, ..Exec::new(script) }).await?;
        let said = follow(job, load, &mut stdout).await;
        let (status, stderr) = done.await?;
        drop(stdin);
        if matches!(said.end, Some((74, _) | (_, 74))) {
            return Err(failure::shorter(&job.sides()));
        }
        let status = said.end.map_or(status, |(s, e)| if s == 0 { e } else { s });
        let moved = said.sent.unwrap_or(if load.tool == Tool::Tar { load.diff.bytes } else { said.bytes });
        if status == 0 || (matches!(status, 23 | 24 | 1 | 2) && failure::only_vanished(&stderr)) {
            return Ok(Attempt::Done(moved));
        }
        if said.bytes == 0
            && let Some(why) = failure::no_way(&stderr)
        {
            return Ok(Attempt::NoWay(why));
        }
        Err(ended(job, status, &stderr))
    }
}

/// What it means that a transfer ended with this status.
pub(super) fn ended(job: &Job<'_>, status: i32, stderr: &str) -> Error {
    let cut = [
        "connection unexpectedly closed",
        "Broken pipe",
        "Connection reset",
        "Connection to ",
        "onnection closed",
        "timeout in data",
        "Timeout, server",
        "unexpected end of file",
        "Unexpected EOF",
    ];
    let cause = ["No space left", "ermission denied", "quota exceeded", "Read-only", "not found", "Not a directory"];
    if cut.iter().any(|c| stderr.contains(c)) && !cause.iter().any(|c| stderr.contains(c)) {
        let why = stderr.lines().find(|l| cut.iter().any(|c| l.contains(c))).unwrap_or("").trim().to_string();
        return Error::new(Code::SSH_LOST, format!("the hosts lost each other in mid-copy: {why}"))
            .host(job.to.name())
            .retryable(true)
            .hint("what has come is kept: run `runbook resume`, and the copy goes on from there");
    }
    failure::transfer(&job.sides(), failure::Side::Both, stderr, status)
}

/// Goes into the target folder, made when it is missing, and locks it as long as something of this script works there.
///
/// What a controller that died has left at work there ends within moments, and must not end after the copy that follows it. Where there is
/// no `flock`, or it waits in vain, the copy goes on without.
pub(super) fn into(target: &str) -> String {
    let t = quote(&dashed(target));
    format!("mkdir -p -- {t} && cd -- {t} || exit 96\nif command -v flock >/dev/null 2>&1; then exec 9<. && flock -w 10 9 2>/dev/null; fi")
}

/// How the calling side logs in to the other one.
fn ssh_script(user: &str, host: &str, port: u16, alias: &str, address: Option<&str>) -> Result<String> {
    let (mut host, mut port) = (host.to_string(), port);
    if let Some(text) = address {
        let place = parse_place(text)?;
        (host, port) = (place.host, place.port.unwrap_or(22));
    }
    // AES in hardware is faster than what ssh prefers by itself.
    Ok(format!(
        "cd -- \"${{0%/*}}\" || exit 1\nunset SSH_AUTH_SOCK\nc=\n\
         grep -qw aes /proc/cpuinfo 2>/dev/null && c=-caes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr,chacha20-poly1305@openssh.com\n\
         exec ssh -F /dev/null -T -a -x $c -i key -o IdentitiesOnly=yes -o BatchMode=yes -o PreferredAuthentications=publickey \
         -o StrictHostKeyChecking=yes -o UserKnownHostsFile=known_hosts -o GlobalKnownHostsFile=/dev/null -o UpdateHostKeys=no -o CheckHostIP=no \
         -o {} -o ConnectTimeout=8 -o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o ClearAllForwardings=yes -o LogLevel=ERROR \
         -p {port} -l {} -- {} copy",
        quote(&format!("HostKeyAlias={alias}")),
        quote(user),
        quote(&host)
    ))
}

/// What the controller knows of a host's keys, as a `known_hosts` for the other host.
fn known_hosts(there: &Target) -> String {
    let (alias, port) = there.known_as();
    let known = KnownHosts::read(&there.known_hosts(), alias, port);
    let mut out = String::new();
    for (marker, keys) in [("", known.keys()), ("@cert-authority ", known.authorities())] {
        for mut key in keys {
            key.set_comment("");
            if let Ok(text) = key.to_openssh() {
                out.push_str(&format!("{marker}{alias} {}\n", text.trim()));
            }
        }
    }
    out
}

/// What a transfer said of itself while it ran.
#[derive(Default)]
struct Said {
    bytes: u64,
    sent: Option<u64>,
    end: Option<(i32, i32)>,
}

/// Reads how far the transfer is: the lines of `--info=progress2,stats2`, or bytes as `/proc` counts them.
async fn follow(job: &Job<'_>, load: &Load<'_>, out: &mut (dyn AsyncRead + Send + Unpin)) -> Said {
    let (mut said, mut held, mut buffer) = (Said::default(), Vec::new(), vec![0u8; 16 << 10]);
    let (began, total, files) = (Instant::now(), load.diff.bytes, load.diff.copy.len());
    let mut sent: [u64; 2] = [0; 2];
    loop {
        let n = out.read(&mut buffer).await.unwrap_or(0);
        let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
        held.extend_from_slice(piece);
        while let Some(at) = held.iter().position(|b| matches!(b, b'\r' | b'\n')) {
            let line = String::from_utf8_lossy(held.get(..at).unwrap_or_default()).trim().to_string();
            held.drain(..=at);
            let number = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>().parse::<u64>().ok();
            if let Some(rest) = line.strip_prefix("rb-end ") {
                let mut words = rest.split(' ').map(|w| w.parse().unwrap_or(255));
                said.end = words.next().zip(words.next());
            } else if let Some(rest) = line.strip_prefix("Total bytes sent: ") {
                sent[0] = number(rest).unwrap_or(0);
            } else if let Some(rest) = line.strip_prefix("Total bytes received: ") {
                sent[1] = number(rest).unwrap_or(0);
            } else if line.starts_with(|c: char| c.is_ascii_digit() || c == '+') {
                said.bytes = number(line.split(' ').next().unwrap_or("")).unwrap_or(0);
                let done = line.split_once("(xfr#").and_then(|(_, r)| number(r.split(',').next()?));
                let rate = said.bytes as f64 / began.elapsed().as_secs_f64().max(0.001);
                let count = done.map(|n| format!(", {n} of {files} files")).unwrap_or_default();
                let what = format!("copying {} from {}{count}, {}/s", job.source, job.from.name(), show_bytes(rate as u64));
                job.cx.progress(what, said.bytes.min(total), Some(total), "bytes");
            }
        }
    }
    said.sent = Some(sent[0] + sent[1]).filter(|n| *n > 0);
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_of_ssh_is_one_line_of_quoted_words() {
        let of = |address| ssh_script("me", "192.0.2.1", 2222, "192.0.2.1", address);
        let s = of(None).unwrap();
        assert!(
            s.contains("-p 2222 -l me -- 192.0.2.1 copy")
                && s.contains("HostKeyAlias=192.0.2.1")
                && s.contains("StrictHostKeyChecking=yes"),
            "{s}"
        );
        let s = of(Some("10.0.0.5:22")).unwrap();
        assert!(s.contains("-p 22 -l me -- 10.0.0.5 copy") && s.contains("HostKeyAlias=192.0.2.1"), "{s}");
        assert!(of(Some("-oProxyCommand=x")).is_err());
    }
}
