//! What restic says with `--json` of what went wrong, for people.
//! <https://restic.readthedocs.io/en/stable/075_scripting.html#json-output>

use std::io;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Line {
    message_type: String,
    #[serde(default)]
    error: Value,
    #[serde(default)]
    item: String,
    #[serde(default)]
    message: String,
}

/// A line as restic would print it without `--json`.
pub(super) fn plain(line: &str) -> String {
    let Ok(l) = serde_json::from_str::<Line>(line) else { return line.to_string() };
    match l.message_type.as_str() {
        "error" => {
            // Of an error of the system 0.14 tells the number, of others nothing.
            let number = l.error.get("Err").and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
            let told = l.error.as_str().or_else(|| l.error.get("message").and_then(Value::as_str)).filter(|t| !t.is_empty());
            let why = told.map(str::to_string).or_else(|| Some(io::Error::from_raw_os_error(number?).to_string()));
            format!("{}: {}", l.item, why.unwrap_or_else(|| "it cannot be read".into()))
        }
        "exit_error" => l.message,
        _ => line.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_either_version_have_the_file_and_the_reason() {
        for (line, said) in [
            (
                r#"{"message_type":"error","error":{"Op":"open","Path":"shop/s","Err":13},"during":"archival","item":"/h/shop/s"}"#,
                "/h/shop/s: Permission denied (os error 13)",
            ),
            (r#"{"message_type":"error","error":{},"during":"archival","item":"shop/closed"}"#, "shop/closed: it cannot be read"),
            (r#"{"message_type":"error","error":{"message":"open /s: gone"},"item":"/s"}"#, "/s: open /s: gone"),
            (r#"{"message_type":"exit_error","code":10,"message":"Fatal: repository does not exist"}"#, "Fatal: repository does not exist"),
            ("Fatal: wrong password or no key found", "Fatal: wrong password or no key found"),
        ] {
            assert_eq!(plain(line), said);
        }
    }
}
