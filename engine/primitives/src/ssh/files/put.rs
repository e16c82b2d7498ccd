//! Puts a file in place at one stroke: written beside it, checked, renamed.

use runbook_core::digest::sha256_hex;
use runbook_core::primitive::{Cx, Outcome};
use runbook_core::spec::Call;
use runbook_core::{Code, Error, Result};

use super::{check_path, dashed, last_line};
use crate::ssh::{Exec, connect, quote};

/// Answers `same`, `mode` (only permissions or owner were changed) or `done`.
const SCRIPT: &str = r#"
umask 022
fail() { echo "$*" >&2; exit 1; }
if [ -L "$t" ]; then t=$(readlink -f -- "$t") || fail "the link leads nowhere"; fi
[ ! -d "$t" ] || fail "it is a folder"
d=$(dirname -- "$t")
has() { set -- $(stat -c "%a %U %G %u %g" -- "$1"); a=$1 o=$2 g=$3 ou=$4 gu=$5; }
own() {
  if [ -n "$owner" ] || [ -n "$group" ]; then chown -- "$owner${group:+:$group}" "$1" || return 1; fi
}
fits() {
  { [ -z "$mode" ] || [ "$a" = "$mode" ]; } &&
  { [ -z "$owner" ] || [ "$o" = "$owner" ] || [ "$ou" = "$owner" ]; } &&
  { [ -z "$group" ] || [ "$g" = "$group" ] || [ "$gu" = "$group" ]; }
}
sum() { sha256sum <"$1" | cut -c1-64; }
if [ -f "$t" ]; then
  has "$t" || exit 1
  if [ "$(sum "$t")" = "$want" ]; then
    if fits; then cat >/dev/null; echo same; exit 0; fi
    own "$t" && { [ -z "$mode" ] || chmod "$mode" -- "$t"; } || exit 1
    cat >/dev/null; echo mode; exit 0
  fi
  keep=1
else
  mkdir -p -- "$d" || exit 1
fi
n=$(mktemp -- "$d/.runbook-XXXXXXXX") || exit 1
trap 'rm -f -- "$n"' 0
cat >"$n" || exit 1
[ "$(sum "$n")" = "$want" ] || fail "the content did not arrive whole"
if [ -n "$keep" ]; then
  # The file's own owner and permissions stay, unless they were given.
  if [ "$(id -u)" = 0 ]; then chown "$ou:$gu" -- "$n" || exit 1; fi
  own "$n" && chmod "${mode:-$a}" -- "$n" || exit 1
else
  own "$n" && chmod "${mode:-644}" -- "$n" || exit 1
fi
sync -- "$n" 2>/dev/null
mv -f -- "$n" "$t" || exit 1
trap - 0
sync -- "$d" 2>/dev/null
echo done
"#;

/// Brings `path` on the host to this content, with the mode, owner and group of the call's options. The value is whether anything was changed.
pub(super) async fn put(cx: &Cx, call: &Call, path: &str, content: Vec<u8>) -> Result<Outcome> {
    let host = call.target();
    check_path(path)?;
    let mode = match call.opt_str("mode") {
        Some(m) => normal_mode(m)?,
        None => String::new(),
    };
    for who in ["owner", "group"] {
        let name = call.opt_str(who).unwrap_or("");
        if name.starts_with('-') || name.contains(|c: char| c.is_whitespace() || c == ':' || c.is_control()) {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{name}\" cannot be the {who} of a file")));
        }
    }
    let vars = [
        ("t", dashed(path)),
        ("want", sha256_hex(&content)),
        ("mode", mode),
        ("owner", call.opt_str("owner").unwrap_or("").to_string()),
        ("group", call.opt_str("group").unwrap_or("").to_string()),
    ];
    let head: String = vars.iter().map(|(k, v)| format!("{k}={}\n", quote(v))).collect();
    let size = content.len() as u64;
    let exec = Exec { stdin: Some(content), ..Exec::new(format!("{head}keep=\n{SCRIPT}")) }.raised(call);
    let done = connect(cx, host).await?.exec(cx, exec).await?;
    let said = String::from_utf8_lossy(&done.stdout);
    match (done.status, said.trim()) {
        (0, "same") => Ok(Outcome::unchanged(false, format!("{path} is so already"))),
        (0, "mode") => Ok(Outcome::changed(true).note("only its permissions or owner were changed")),
        (0, "done") => Ok(Outcome::changed(true).note(runbook_core::units::show_bytes(size))),
        _ => Err(Error::new(Code::FILE_WRITE, format!("{path} cannot be written: {}", last_line(&done)))
            .host(host)
            .hint("check that the login may write there (or use sudo: true), and the space left")
            .detail("stderr", crate::ssh::exec::tail(&done.stderr))),
    }
}

/// `"0640"` as `stat` shows it: `640`.
fn normal_mode(mode: &str) -> Result<String> {
    let digits = mode.trim_start_matches("0o");
    let ok = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    if !ok {
        return Err(Error::new(Code::COMMAND_BAD, format!("\"{mode}\" is not a file mode")).hint("write it like \"0644\" or \"0750\""));
    }
    let short = digits.trim_start_matches('0');
    Ok(if short.is_empty() { "0".into() } else { short.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        assert_eq!(normal_mode("0640").unwrap(), "640");
        assert_eq!(normal_mode("4755").unwrap(), "4755");
        assert_eq!(normal_mode("000").unwrap(), "0");
        for bad in ["", "64", "u+x", "0888", "06400"] {
            assert_eq!(normal_mode(bad).unwrap_err().code, Code::COMMAND_BAD, "{bad}");
        }
    }
}
