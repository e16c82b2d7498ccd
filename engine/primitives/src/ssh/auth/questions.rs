//! keyboard-interactive: who answers which question of the host.

use runbook_core::inventory::Section;
use runbook_core::primitive::Cx;
use runbook_core::secret::Secret;
use runbook_core::{Code, Error, Result, Value};
use russh::client::Prompt;

use super::super::target::Target;

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// For the password.
    Password,
    /// For a new password: the old one is over.
    NewPassword,
    /// For something else.
    Other,
}

/// What a question is after. The words are those of PAM's modules, also in other languages.
fn kind(prompt: &Prompt, alone: bool) -> Asks {
    let text = prompt.prompt.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if has(&["new password", "current password", "(current)", "retype", "neues passwort", "nouveau mot de passe"]) {
        return Asks::NewPassword;
    }
    if has(&["code", "token", "otp", "one-time", "one time", "verification", "passcode", "pin", "challenge", "duo"]) {
        return Asks::Other;
    }
    let word =
        has(&["password", "passwort", "mot de passe", "contraseña", "wachtwoord", "senha", "heslo", "hasło", "пароль", "パスワード"]);
    if !prompt.echo && (word || alone) { Asks::Password } else { Asks::Other }
}

/// Answers the questions of one host.
pub(super) struct Answers<'a> {
    cx: &'a Cx,
    target: &'a Target,
    password: Option<Secret>,
    named: Vec<(String, String)>,
    may_ask: bool,
    /// Whether the password's secret was given.
    pub gave_password: bool,
    /// Whether anything was asked of the operator.
    pub asked: bool,
}

impl<'a> Answers<'a> {
    pub(super) fn new(cx: &'a Cx, target: &'a Target, password: Option<Secret>, may_ask: bool) -> Self {
        let settings = cx.env.resource(Section::Hosts, &target.name).ok().and_then(|r| r.settings.get("answers"));
        let named = match settings {
            Some(Value::Map(m)) => m.iter().filter_map(|(k, v)| Some((k.to_lowercase(), v.as_str()?.to_string()))).collect(),
            _ => vec![],
        };
        Answers { cx, target, password, named, may_ask, gave_password: false, asked: false }
    }

    /// Answers one round. `None` when the host asks again for what it was given.
    ///
    /// # Errors
    /// `RB0301` naming the question when nobody can answer, or when the password has expired; `RB0109`.
    pub(super) async fn round(&mut self, instructions: &str, prompts: &[Prompt]) -> Result<Option<Vec<String>>> {
        let mut out = vec![];
        for p in prompts {
            let asks = kind(p, prompts.len() == 1);
            let name = self.named.iter().find(|(part, _)| p.prompt.to_lowercase().contains(part.as_str())).map(|(_, s)| s.clone());
            if let Some(secret) = name {
                out.push(self.cx.secret(&secret)?.reveal().to_string());
                continue;
            }
            match asks {
                Asks::NewPassword => {
                    let t = self.target;
                    return Err(Error::new(
                        Code::SSH_AUTH,
                        format!("the password of {} on {} has expired and must be changed", t.user, t.host),
                    )
                    .host(&t.name)
                    .hint(format!("change it by hand: ssh -p {} {}@{}", t.port, t.user, t.host)));
                }
                Asks::Password if self.password.is_some() => {
                    if std::mem::replace(&mut self.gave_password, true) {
                        return Ok(None);
                    }
                    out.push(self.password.as_ref().map(|s| s.reveal().to_string()).unwrap_or_default());
                }
                _ => out.push(self.ask(instructions, p).await?),
            }
        }
        Ok(Some(out))
    }

    async fn ask(&mut self, instructions: &str, p: &Prompt) -> Result<String> {
        let t = self.target;
        self.asked = true;
        let clean = |s: &str| s.chars().filter(|c| !c.is_control() || *c == '\n').collect::<String>();
        let before = Some(clean(instructions).trim().to_string()).filter(|i| !i.is_empty()).map(|i| format!("{i}\n")).unwrap_or_default();
        let question = format!("{before}({}@{}) {}", t.user, t.host, clean(&p.prompt));
        let answer = if self.may_ask { self.cx.ask(question, p.echo).await? } else { None };
        answer.map(|a| a.reveal().to_string()).ok_or_else(|| {
            let prompt = clean(&p.prompt).trim().trim_end_matches(':').to_string();
            Error::new(Code::SSH_AUTH, format!("{} asks \"{prompt}\" at the login of {}, and nobody can answer", t.host, t.user))
                .host(&t.name)
                .hint(format!(
                    "run it in a terminal without --no-input, or name a secret for this question: answers = {{ \"{prompt}\" = \"SECRET\" }} at this host in runbook.toml"
                ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_codes_and_new_passwords_are_told_apart() {
        let of = |text: &str, echo: bool, alone: bool| kind(&Prompt { prompt: text.into(), echo }, alone);
        assert_eq!(of("Password: ", false, true), Asks::Password);
        assert_eq!(of("(root@web) Mot de passe : ", false, false), Asks::Password);
        assert_eq!(of("???", false, true), Asks::Password, "a lone hidden question");
        assert_eq!(of("Login name: ", true, true), Asks::Other);
        for code in ["Verification code: ", "One-time password (OATH) for `ann': ", "Duo passcode: ", "Token: "] {
            assert_eq!(of(code, false, true), Asks::Other, "{code}");
        }
        assert_eq!(of("New password: ", false, true), Asks::NewPassword);
        // Who is asked for the one just given is to change it.
        assert_eq!(of("Current password: ", false, true), Asks::NewPassword);
    }
}
