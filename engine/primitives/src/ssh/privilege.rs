//! Raised privileges: sudo, doas and su, with and without a password, as root or as another user; and a terminal for a command.
//!
//! The script says what is wanted (`sudo: true`, `sudo: "postgres"`), the inventory how it is had (`sudo_method`, `sudo_password`).
//! A password goes by standard input alone, and is tried once: three wrong tries may lock the login out.

use runbook_core::inventory::Section;
use runbook_core::primitive::Cx;
use runbook_core::secret::Secret;
use runbook_core::spec::{Call, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::exec::tail;
use super::supervisor::script;
use super::{Exec, Session, quote};

/// The type of the option `sudo`.
pub(super) fn ty() -> Ty {
    Ty::OneOf(vec![Ty::Bool, Ty::Str])
}

/// What the option `sudo` says: whether privileges are raised, and to which user when that is not root.
pub(super) fn wanted(call: &Call) -> (bool, Option<String>) {
    match call.opt("sudo") {
        Some(Value::Str(user)) => (true, Some(user.clone()).filter(|u| u != "root")),
        _ => (call.opt_bool("sudo"), None),
    }
}

impl Exec {
    /// With the privileges that the option `sudo` of a call wants.
    pub(super) fn raised(self, call: &Call) -> Exec {
        let (sudo, user) = wanted(call);
        Exec { sudo, user, ..self }
    }
}

/// How privileges are raised on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Sudo,
    Doas,
    Su,
}

/// Raised privileges for one command.
#[derive(Debug, Clone)]
pub(super) struct Raise {
    method: Method,
    user: String,
    password: Option<Secret>,
    /// sudo is to find a terminal (`requiretty`).
    tty: bool,
}

/// What of a command goes where, for privileges and a terminal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// Before the shell that reads the command; for one that is raised by a word.
    pub prefix: String,
    /// What the supervisor's run.sh takes: nothing, `n`, or `method,user`.
    pub mode: String,
    /// The text of raise.sh, when it is needed.
    pub raise: String,
    /// Lines before everything else on standard input.
    pub secret: String,
    /// The code that runs a command on a terminal, when it is to have one.
    pub tty: &'static str,
}

/// Runs the command that reader.sh has read, on the terminal that script(1) gives.
const ON_TTY: &str = r#"rb_s=$RB_S rb_d=$RB_D; unset RB_S RB_D; eval "$rb_s"; if [ -n "$rb_d" ]; then . "$rb_d/script"; fi"#;
/// The raised command as su takes it.
const READ: &str = r#"exec sh -c "$RB_R" sh "$RB_N" "" "" "$RB_Q" "$RB_Y""#;

impl Session {
    /// How the privileges that a command wants are raised on this host.
    ///
    /// # Errors
    /// `RB0304` for a method that there is not, `RB0313` for a user that cannot be, `RB0109` when the password cannot be had.
    pub(super) fn raise(&self, cx: &Cx, exec: &Exec) -> Result<Option<Raise>> {
        if exec.tty && exec.stdin.as_ref().is_some_and(|s| !s.is_empty()) {
            return Err(Error::new(Code::COMMAND_BAD, "a command on a terminal takes no standard input")
                .hint("leave out tty or stdin; write the data to a file first when the command needs both"));
        }
        if !exec.sudo {
            return Ok(None);
        }
        let user = exec.user.clone().unwrap_or_else(|| "root".into());
        if user.is_empty() || user.starts_with('-') || !user.chars().all(|c| c.is_ascii_alphanumeric() || "._-$@+".contains(c)) {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{user}\" cannot be the name of a user"))
                .hint("write sudo: true for root, or sudo: \"NAME\""));
        }
        let host = self.name();
        let named = cx.env.resource(Section::Hosts, host).ok().and_then(|r| r.str("sudo_method")).unwrap_or("sudo");
        let method = match named {
            "sudo" => Method::Sudo,
            "doas" => Method::Doas,
            "su" => Method::Su,
            other => {
                return Err(Error::new(Code::SSH_CONFIG, format!("sudo_method = \"{other}\" of host \"{host}\" is none that there is"))
                    .host(host)
                    .hint("write sudo, doas or su"));
            }
        };
        let password = self.slot.target.sudo_password.as_deref().map(|n| cx.secret(n)).transpose()?;
        if password.as_ref().is_some_and(|p| p.reveal().contains(['\n', '\0'])) {
            return Err(Error::new(Code::COMMAND_BAD, "the password for raised privileges has more than one line")
                .host(host)
                .hint("check the secret that sudo_password names; one final newline is dropped from what a file or a command gives"));
        }
        Ok(Some(Raise { method, user, password, tty: exec.tty }))
    }
}

/// Takes a command apart for its privileges and its terminal.
pub(super) fn parts(exec: &Exec, raise: Option<&Raise>) -> Parts {
    let tty = if exec.tty { ON_TTY } else { "" };
    let Some(r) = raise else { return Parts { tty, ..Parts::default() } };
    let word = match r.method {
        Method::Sudo => "sudo",
        Method::Doas => "doas",
        Method::Su => "su",
    };
    let password = r.password.as_ref();
    let with_tty = r.tty && r.method == Method::Sudo;
    let plain = password.is_none() && r.method != Method::Su && !with_tty;
    let as_user = if r.user == "root" { String::new() } else { format!("-u {} ", quote(&r.user)) };
    if plain && r.method == Method::Sudo && r.user == "root" {
        return Parts { prefix: "sudo -n -- ".into(), mode: "n".into(), tty, ..Parts::default() };
    }
    let on_tty = match (r.method, with_tty) {
        (Method::Su, _) => r#"exec su -s /bin/sh -c "$RB_T" -- "$RB_U""#.to_string(),
        (m, _) => {
            let how = if m == Method::Doas { "doas" } else { "sudo -k" };
            format!(r#"exec {how} -u "$RB_U" -- sh -c "$RB_R" sh "$RB_N" "" "" "$RB_Q" "$RB_Y" <&3 >&4 2>&5 3<&- 4>&- 5>&-"#)
        }
    };
    let mode = format!("{word}{}{}", if password.is_some() { "p" } else { "" }, if with_tty { "t" } else { "" });
    let line = |n: usize| password.map(|p| format!("{}\n", p.reveal()).repeat(n)).unwrap_or_default();
    Parts {
        prefix: if plain { format!("{word} -n {as_user}-- ") } else { String::new() },
        mode: format!("{mode},{}", r.user),
        raise: format!("RB_T={} RB_C={} ; {}", quote(READ), quote(&on_tty), script::raise()),
        // sudo reads it twice: once to try it alone.
        secret: line(if mode == "sudop" { 2 } else { 1 }),
        tty,
    }
}

/// The command line of an unsupervised command.
pub(super) fn command(parts: &Parts, marker: &str) -> String {
    let (reader, tty) = (quote(script::reader()), quote(parts.tty));
    if !parts.prefix.is_empty() || parts.raise.is_empty() {
        let prefix = &parts.prefix;
        return format!("cd; exec {prefix}sh -c {reader} sh {marker} '' '' '' {tty}");
    }
    let (method, user) = parts.mode.split_once(',').unwrap_or_default();
    format!("cd; exec sh -c {} sh {method} {} '' {reader} {marker} '' {tty}", quote(&parts.raise), quote(user))
}

/// Why privileges were not raised, from what was said.
pub(super) fn refused(host: &str, said: &[u8]) -> Error {
    let text = tail(said);
    let lower = text.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|p| lower.contains(p));
    let who = ["doas", "su", "sudo"].into_iter().find(|w| lower.contains(&format!("{w}:"))).unwrap_or("sudo");
    let (code, hint) = if has(&["must have a tty", "must be run from a terminal", "a tty is required"]) {
        (
            Code::RAISE_TTY,
            "give the command a terminal with #{ tty: true }, or take requiretty away for this login: Defaults:LOGIN !requiretty",
        )
    } else if has(&["expired", "account validation failure", "password change required"]) {
        (Code::RAISE_EXPIRED, "log in by hand and change the password, or have the account renewed (chage -l LOGIN shows its dates)")
    } else if has(&["not in the sudoers", "may not run sudo", "is not allowed to", "operation not permitted", "permission denied"]) {
        (Code::RAISE_DENIED, "allow it on the host: a file in /etc/sudoers.d (visudo -f), a line in /etc/doas.conf, or the group that may")
    } else if has(&["no password was provided", "incorrect password"]) {
        (Code::RAISE_PASSWORD, "check the secret that sudo_password names; it was tried once, so that the login is not locked out")
    } else if has(&["password is required", "terminal is required", "authentication required", "authorization required", "a tty"]) {
        (
            Code::SUDO,
            "allow the login to use sudo without a password (NOPASSWD), or set sudo_password for this host to the name of a secret",
        )
    } else if has(&["try again", "authentication failure", "authentication failed", "auth could not"]) {
        (Code::RAISE_PASSWORD, "check the secret that sudo_password names; it was tried once, so that the login is not locked out")
    } else if has(&["not found", "script is missing", "no such file"]) {
        (Code::HOST_TOOL_MISSING, "install it, or say with sudo_method how privileges are raised on this host; as root leave sudo out")
    } else {
        (
            Code::SUDO,
            "allow the login to use sudo without a password (NOPASSWD), or set sudo_password for this host to the name of a secret",
        )
    };
    Error::new(code, format!("{who} refuses: {}", text.trim())).host(host).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(user: Option<&str>, tty: bool) -> Exec {
        Exec { sudo: true, user: user.map(str::to_string), tty, ..Exec::new("true") }
    }

    fn raise(method: Method, user: &str, password: bool) -> Raise {
        Raise { method, user: user.into(), password: password.then(|| Secret::new("p", "s3cret")), tty: false }
    }

    #[test]
    fn no_password_is_on_a_command_line() {
        for method in [Method::Sudo, Method::Doas, Method::Su] {
            for user in ["root", "postgres"] {
                let p = parts(&exec(None, false), Some(&raise(method, user, true)));
                let line = command(&p, "rbm");
                assert!(!line.contains("s3cret") && !p.mode.contains("s3cret"), "{line}");
                assert_eq!(p.secret.lines().count(), if method == Method::Sudo { 2 } else { 1 });
                let marks = line.match_indices('!').map(|(i, _)| line[i + 1..].chars().next());
                assert!(!line.contains('\n') && marks.clone().all(|c| matches!(c, None | Some(' ' | '='))), "csh takes neither: {line}");
            }
        }
    }

    #[test]
    fn without_a_password_a_word_before_the_command_is_enough() {
        let line = |m, u: &str| command(&parts(&exec(None, false), Some(&raise(m, u, false))), "rbm");
        assert!(line(Method::Sudo, "root").starts_with("cd; exec sudo -n -- sh -c "));
        assert!(line(Method::Sudo, "web").starts_with("cd; exec sudo -n -u web -- sh -c "));
        assert!(line(Method::Doas, "root").starts_with("cd; exec doas -n -- sh -c "));
        assert!(line(Method::Su, "web").starts_with("cd; exec sh -c "));
        assert!(command(&parts(&Exec::new("x"), None), "rbm").starts_with("cd; exec sh -c "));
    }

    #[test]
    fn what_is_said_has_a_code_of_its_own() {
        let code = |said: &str| refused("old", said.as_bytes()).code;
        assert_eq!(code("sudo: a password is required"), Code::SUDO);
        assert_eq!(code("sudo: 1 incorrect password attempt"), Code::RAISE_PASSWORD);
        assert_eq!(code("sudo: no password was provided\nsudo: a password is required"), Code::RAISE_PASSWORD);
        assert_eq!(code("su: Authentication failure"), Code::RAISE_PASSWORD);
        assert_eq!(code("ann is not in the sudoers file."), Code::RAISE_DENIED);
        assert_eq!(code("Sorry, user ann may not run sudo on web."), Code::RAISE_DENIED);
        assert_eq!(code("doas: Operation not permitted"), Code::RAISE_DENIED);
        assert_eq!(code("sudo: sorry, you must have a tty to run sudo"), Code::RAISE_TTY);
        assert_eq!(code("sudo: Account or password is expired, reset your password and try again"), Code::RAISE_EXPIRED);
        assert_eq!(code("sh: 1: exec: doas: not found"), Code::HOST_TOOL_MISSING);
        assert_eq!(refused("old", b"doas: Authentication failed").message, "doas refuses: doas: Authentication failed");
    }
}
