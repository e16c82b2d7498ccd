//! `Match`: whether a connection meets all of the criteria on a line.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use runbook_core::{Error, Location, Result};

use super::lex::word;
use super::pattern::{matches_host, matches_list};
use super::read::{Reader, wrong};
use super::tokens::{Facts, Tokens, USUAL};

/// Tells whether the criteria are met. `never`: the line stands where nothing applies, and is looked at for its errors alone.
///
/// # Errors
/// `RB0304` for a criterion that does not exist, lacks its argument, or cannot be known here.
pub fn apply(r: &mut Reader<'_>, rest: &str, never: bool, at: &Location) -> Result<bool> {
    let mut rest = Some(rest);
    let mut met = true;
    let mut criteria = 0;
    let bad = |what: String| wrong(at, format!("Match: {what}"));
    while let Some(word_) = word(&mut rest).filter(|w| !w.is_empty()) {
        if word_.starts_with('#') {
            rest = None;
            break;
        }
        let negated = word_.starts_with('!');
        let name = word_.strip_prefix('!').unwrap_or(&word_).to_ascii_lowercase();
        if name == "all" {
            let next = word(&mut rest).filter(|w| !w.is_empty());
            if criteria > 1 || next.as_ref().is_some_and(|w| !w.starts_with('#')) {
                return Err(bad(format!("{word_} stands alone, or after canonical or final")));
            }
            return Ok(met && !negated);
        }
        criteria += 1;
        if name == "canonical" || name == "final" {
            // Asking for a second pass is not undone by criteria that are not met.
            r.wants_final |= name == "final" && !r.final_pass;
            met &= r.final_pass != negated;
            continue;
        }
        let arg = word(&mut rest).filter(|w| !w.is_empty() && !w.starts_with('#'));
        let Some(arg) = arg else { return Err(bad(format!("{name} wants an argument"))) };
        let yes = match name.as_str() {
            "host" => matches_host(&hostname(r, at)?, &arg),
            "originalhost" => matches_host(r.original, &arg),
            "user" => matches_list(r.text("user").unwrap_or(&r.machine.user), &arg, false),
            "localuser" => matches_list(&r.machine.user, &arg, false),
            "tagged" => matches_list(r.text("tag").unwrap_or_default(), &arg, false),
            "sessiontype" => matches_list("exec", &arg, false),
            "localnetwork" => local_network(r, &arg).map_err(bad)?,
            // In order, and only when all before are met: commands may be slow, or mean to be asked in some networks alone.
            "exec" if !met || never => {
                expanded(r, &arg, at)?;
                continue;
            }
            "exec" => run(r, &expanded(r, &arg, at)?, at)?,
            "command" | "version" => {
                return Err(bad(format!(
                    "{name} cannot be known here: one connection serves many commands, and runbook is no version of OpenSSH"
                )));
            }
            _ => return Err(bad(format!("there is no criterion \"{name}\""))),
        };
        met &= yes != negated;
    }
    if criteria == 0 {
        return Err(bad("there are no criteria".into()));
    }
    if rest.is_some_and(|r| !r.is_empty()) {
        return Err(bad("an argument is empty".into()));
    }
    Ok(met)
}

/// The host's name as far as it is known by now.
fn hostname(r: &Reader<'_>, at: &Location) -> Result<String> {
    match r.get("hostname") {
        Some(v) if r.final_pass => Ok(v.text.clone()),
        Some(v) => Tokens::host(&r.host).expand(&v.text, "h", None).map_err(|e| wrong(&v.at, format!("HostName {e}"))),
        None if r.host.is_empty() => Err(wrong(at, "there is no host name")),
        None => Ok(r.host.clone()),
    }
}

fn expanded(r: &Reader<'_>, command: &str, at: &Location) -> Result<String> {
    let host = hostname(r, at)?;
    let home = r.machine.home.to_string_lossy();
    let facts = Facts {
        machine: &r.machine.hostname,
        original: r.original,
        host: &host,
        port: r.text("port").and_then(|p| p.parse().ok()).unwrap_or(22),
        user: r.text("user").unwrap_or(&r.machine.user),
        key_alias: r.text("hostkeyalias").unwrap_or(&host),
        jump: r.text("proxyjump").filter(|j| !j.eq_ignore_ascii_case("none")).unwrap_or_default(),
        local: (&r.machine.user, r.machine.uid, &home),
    };
    Tokens::new(&facts).expand(command, USUAL, None).map_err(|e| wrong(at, format!("Match exec {e}")))
}

/// Runs a command by the person's shell; whether it ended well.
fn run(r: &Reader<'_>, command: &str, at: &Location) -> Result<bool> {
    let shell = r.machine.shell();
    let failed =
        |e: &dyn std::fmt::Display| -> Error { wrong(at, format!("Match exec: {} cannot run \"{command}\": {e}", shell.display())) };
    let mut c = Command::new(shell);
    c.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = c.status().map_err(|e| failed(&e))?;
    status.code().map(|c| c == 0).ok_or_else(|| failed(&status))
}

/// Whether the machine has an address in one of the networks, such as `192.0.2.0/24,2001:db8::/32`.
fn local_network(r: &Reader<'_>, list: &str) -> std::result::Result<bool, String> {
    let mut networks = Vec::new();
    for text in list.split(',') {
        let bad = || format!("\"{text}\" is not a network such as 192.0.2.0/24");
        let (address, bits) = text.split_once('/').ok_or_else(bad)?;
        let (address, bits): (IpAddr, u32) = (address.parse().map_err(|_| bad())?, bits.parse().map_err(|_| bad())?);
        if bits > if address.is_ipv4() { 32 } else { 128 } {
            return Err(bad());
        }
        networks.push((address, bits));
    }
    Ok((r.machine.addresses)().iter().any(|(_, ip)| networks.iter().any(|(net, bits)| within(*ip, *net, *bits))))
}

fn within(ip: IpAddr, net: IpAddr, bits: u32) -> bool {
    match (ip, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => bits == 0 || (a.to_bits() ^ b.to_bits()).leading_zeros() >= bits,
        (IpAddr::V6(a), IpAddr::V6(b)) => bits == 0 || (a.to_bits() ^ b.to_bits()).leading_zeros() >= bits,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::desk;
    use super::*;
    use std::path::Path;

    fn met(before: &str, criteria: &str) -> Result<bool> {
        let machine = desk(Path::new("/home/me"));
        let mut r = Reader::new(&machine, "Web");
        r.string("config", &format!("{before}\nMatch {criteria}\nBatchMode yes\n"))?;
        Ok(r.text("batchmode").is_some())
    }

    #[test]
    fn criteria() {
        for (before, line, want) in [
            ("", "all", true),
            ("", "!all", false),
            ("", "host web", true),
            ("", "host=web", true),
            ("", "host WEB", true),
            ("", "!host web", false),
            ("", "host db,w*", true),
            ("", "host w*,!web", false),
            ("HostName %h.example.com", "host web.example.com", true),
            ("HostName x", "host web", false),
            ("HostName x", "originalhost web host x", true),
            ("", "user me", true),
            ("User Ann", "user Ann", true),
            ("User Ann", "user ann", false),
            ("User ann", "localuser me", true),
            ("Tag prod", "tagged prod,test", true),
            ("", "tagged prod", false),
            ("", "sessiontype exec", true),
            ("", "localnetwork 192.0.2.0/24", true),
            ("", "localnetwork 10.0.0.0/8,2001:db8::/64", true),
            ("", "!localnetwork 10.0.0.0/8", true),
            ("", "exec true", true),
            ("", "exec false", false),
            ("", "!exec false host web", true),
            ("", "exec \"test %n = Web -a %u = me\" # a comment", true),
            ("", "host db exec \"touch %d/never\"", false),
            ("", "canonical", false),
            ("", "!canonical host web", true),
            ("", "host web all", true),
            ("", "final all", false),
        ] {
            assert_eq!(met(before, line).unwrap(), want, "{before} / {line}");
        }
    }

    #[test]
    fn what_is_no_criterion() {
        for (line, why) in [
            ("hots web", "no criterion \"hots\""),
            ("host", "host wants an argument"),
            ("host web user", "user wants an argument"),
            ("all host web", "stands alone"),
            ("# nothing", "no criteria"),
            ("exec \"%z\"", "does not take the token %z"),
            ("localnetwork 192.0.2.0", "is not a network"),
            ("localnetwork 192.0.2.0/33", "is not a network"),
            ("version 9", "cannot be known here"),
        ] {
            let e = met("", line).unwrap_err();
            assert!(e.message.contains(why) && e.location.as_ref().is_some_and(|l| l.line == 2), "{line}: {e}");
        }
    }
}
