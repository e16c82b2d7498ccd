//! The operator's answers: gates, steps in step mode, overruns, actions in doubt. From the terminal, from flags, or from elsewhere.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use runbook_core::cancel::Cancel;
use runbook_core::error::Result;
use runbook_core::exec::{Ask, DoubtAnswer, GateAnswer, OnFailure, Said, StepChoice, StepView};
use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::units::show_duration;
use runbook_core::{Code, Error};

use crate::command_error::render;
use crate::operator::user;
use crate::terminal::{Style, Terminal, printable};
use crate::view::live::View;
use crate::view::tree::readable;

/// Who answers, and how.
pub struct Asker {
    /// The terminal.
    pub term: Terminal,
    /// What must make room for a question.
    pub view: Arc<View>,
    /// The run's id.
    pub run: String,
    /// Answer every gate with yes.
    pub yes: bool,
    /// Ask before each step.
    pub step: bool,
    /// Ask when something fails for good.
    pub failures: bool,
    /// What `--answer` says of the action in doubt; used once.
    pub doubt: Mutex<Option<DoubtAnswer>>,
    /// Set when the run is to stop.
    pub stop: Cancel,
    /// Where hosts are, for a shell on them.
    pub env: Arc<Environment>,
    /// Held by the question that stands on the screen: branches of `parallel` ask one after another.
    pub turn: Mutex<()>,
}

/// What a step's question offers besides its first answer.
const OFFER: &str = "[s]kip [p]review s[h]ell roll [b]ack [q]uit: ";

impl Asker {
    /// Asks for one of the letters; `None` when nobody answers any more.
    fn letter(&self, question: &str, letters: &str, meanwhile: &mut dyn FnMut() -> Result<bool>) -> Result<Option<(char, String)>> {
        self.view.pause();
        let answer = loop {
            let asked = self.term.ask_while(question, || meanwhile().map(|withdrawn| withdrawn.then(String::new)));
            let Some(line) = (match asked {
                Ok(l) => l,
                Err(e) => {
                    self.view.unpause();
                    return Err(e);
                }
            }) else {
                break None;
            };
            let mut chars = line.trim().chars();
            let first = chars.next().map_or('\n', |c| c.to_ascii_lowercase());
            if first == '\n' && line.is_empty() && meanwhile()? {
                break None;
            }
            if letters.contains(first) {
                // `s the disk is new` and `skip the disk is new` both give the reason.
                let rest = line.trim().split_once(char::is_whitespace).map(|(_, r)| r.trim().to_string()).unwrap_or_default();
                break Some((first, rest));
            }
            let list: Vec<String> = letters.chars().filter(|c| !c.is_control()).map(String::from).collect();
            self.term.err(&format!("  that is no answer: type {}\n", list.join(", ")));
        };
        self.view.unpause();
        Ok(answer)
    }

    fn stopped(&self) -> Result<bool> {
        Ok(self.stop.is_cancelled())
    }

    /// Waits until no other branch asks; `None` when the question is withdrawn meanwhile.
    fn turn(&self, meanwhile: &mut dyn FnMut() -> Result<bool>) -> Result<Option<MutexGuard<'_, ()>>> {
        loop {
            if let Some(turn) = self.turn.try_lock_for(Duration::from_millis(300)) {
                return Ok(Some(turn));
            }
            if meanwhile()? {
                return Ok(None);
            }
        }
    }

    /// Asks for what no secret holds: a passphrase, a one-time code. `None` when nobody answers, and after Ctrl-C.
    pub fn secret(&self, question: &str, echo: bool) -> Option<String> {
        if !self.term.can_ask() {
            return None;
        }
        let _turn = self.turn(&mut || self.stopped()).ok().flatten()?;
        self.view.pause();
        let answer = self.term.ask_secret(question, echo, || self.stop.is_cancelled());
        self.view.unpause();
        answer
    }

    /// Ctrl-C at a question is no answer to it.
    fn interrupted(&self) -> Result<()> {
        if !self.stop.is_cancelled() {
            return Ok(());
        }
        let hint = format!("`runbook resume {}` goes on from here, and asks again", self.run);
        Err(Error::new(Code::INTERRUPTED, "the run was interrupted at a question").hint(hint))
    }

    fn reason(&self, given: String) -> String {
        if !given.is_empty() {
            return given;
        }
        self.view.pause();
        let r = self.term.ask("  why is it left out? (goes into the log) ").filter(|r| !r.is_empty());
        self.view.unpause();
        r.unwrap_or_else(|| "no reason given".into())
    }

    fn say(&self, text: &str) {
        self.view.pause();
        self.term.err(text);
        self.view.unpause();
    }

    /// An interactive login on the step's host, with what the inventory says of it.
    fn shell(&self, on: Option<&str>) {
        let hosts = self.env.resources.get(&Section::Hosts);
        let mut all = hosts.into_iter().flat_map(|m| m.keys());
        let name = match on.map(str::to_string).or_else(|| (hosts.map_or(0, |h| h.len()) == 1).then(|| all.next().cloned()).flatten()) {
            Some(n) => n,
            None => {
                let names = hosts.into_iter().flat_map(|m| m.keys().cloned()).collect::<Vec<_>>().join(", ");
                self.view.pause();
                let n = self.term.ask(&format!("  on which host? ({names}) ")).unwrap_or_default();
                self.view.unpause();
                n
            }
        };
        let Some(host) = hosts.and_then(|h| h.get(&name)) else { return self.say(&format!("  there is no host \"{name}\"\n")) };
        let Some(words) = ssh_words(host) else { return self.say(&format!("  \"{name}\" has no ssh in runbook.toml\n")) };
        self.view.pause();
        self.term.err(&format!("  {}\n  a shell on {name}; `exit` comes back to the run\n", words.join(" ")));
        let mut words = words.into_iter();
        let done = std::process::Command::new(words.next().unwrap_or_default()).args(words).status();
        if let Err(e) = done {
            self.term.err(&format!("  ssh cannot be started: {e}\n"));
        }
        self.view.unpause();
    }
}

/// The OpenSSH command for a host of the inventory.
fn ssh_words(host: &Resource) -> Option<Vec<String>> {
    let target = host.str("ssh")?;
    let (user_part, rest) = target.rsplit_once('@').map_or((None, target), |(u, r)| (Some(u), r));
    // `host:port`, `[v6]:port`, a bare IPv6 address, or an alias.
    let (name, port) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((v6, tail)) => (v6.to_string(), tail.strip_prefix(':').map(str::to_string)),
        None if rest.matches(':').count() == 1 => {
            rest.split_once(':').map(|(n, p)| (n.to_string(), Some(p.to_string()))).unwrap_or((rest.to_string(), None))
        }
        None => (rest.to_string(), None),
    };
    let mut words = vec!["ssh".to_string(), "-t".into()];
    let mut option = |flag: &str, value: String| words.extend([flag.to_string(), value]);
    if let Some(p) = host.int("port").map(|p| p.to_string()).or(port) {
        option("-p", p);
    }
    if let Some(u) = host.str("user").or(user_part) {
        option("-l", u.to_string());
    }
    if let Some(i) = host.str("identity_file") {
        option("-i", i.to_string());
    }
    if let Some(k) = host.str("known_hosts") {
        option("-o", format!("UserKnownHostsFile={k}"));
    }
    words.extend(["--".to_string(), name]);
    Some(words)
}

impl Ask for Asker {
    fn gate(&self, _path: &str, question: &str, elsewhere: &mut dyn FnMut() -> Result<Option<GateAnswer>>) -> Result<Option<GateAnswer>> {
        if let Some(a) = elsewhere()? {
            return Ok(Some(a));
        }
        if self.yes {
            return Ok(Some(GateAnswer { yes: true, by: user(), comment: Some("--yes".into()) }));
        }
        if self.term.no_input {
            return Ok(None);
        }
        if !self.term.can_ask() {
            self.term.err(&format!("waiting for an answer to \"{question}\": runbook approve {}\n", self.run));
            loop {
                if let Some(a) = elsewhere()? {
                    return Ok(Some(a));
                }
                std::thread::sleep(Duration::from_millis(300));
            }
        }
        let mut other = None;
        let text = format!(
            "{} {}  [y/n, and a comment] ",
            self.term.paint(Style::Yellow, "?"),
            self.term.paint(Style::Bold, &printable(question))
        );
        let mut answered = || {
            if other.is_none() {
                other = elsewhere()?;
            }
            Ok(other.is_some())
        };
        let answer = match self.turn(&mut answered)? {
            Some(_turn) => self.letter(&text, "yn", &mut answered)?,
            None => None,
        };
        if let Some(a) = other {
            return Ok(Some(a));
        }
        Ok(answer.map(|(c, comment)| GateAnswer { yes: c == 'y', by: user(), comment: Some(comment).filter(|c| !c.is_empty()) }))
    }

    fn before_step(&self, step: &StepView) -> Result<StepChoice> {
        if !self.step {
            return Ok(StepChoice::Run);
        }
        let on = step.on.as_ref().map(|h| format!(" on {h}")).unwrap_or_default();
        let _turn = self.turn(&mut || self.stopped())?;
        loop {
            self.interrupted()?;
            let question = format!(
                "{} {}{on}  [r]un (Enter) {OFFER}",
                self.term.paint(Style::Yellow, "?"),
                self.term.paint(Style::Bold, &printable(&readable(&step.path)))
            );
            let Some((choice, rest)) = self.letter(&question, "\nrsphbq", &mut || self.stopped())? else {
                self.interrupted()?;
                return Ok(StepChoice::Quit);
            };
            match choice {
                '\n' | 'r' => return Ok(StepChoice::Run),
                's' => return Ok(StepChoice::Skip(self.reason(rest))),
                'p' => self.say(&preview(&step.source)),
                'h' => self.shell(Some(rest.as_str()).filter(|r| !r.is_empty()).or(step.on.as_deref())),
                'b' => return Ok(StepChoice::RollBack),
                _ => return Ok(StepChoice::Quit),
            }
        }
    }

    fn failed_step(&self, step: &StepView, error: &Error) -> Result<OnFailure> {
        if !(self.step || self.failures) || !self.term.can_ask() {
            return Ok(OnFailure::Stop);
        }
        let Some(_turn) = self.turn(&mut || self.stopped())? else { return Ok(OnFailure::Stop) };
        self.say(&render(error, &self.term, None));
        let what = if step.undo { "taking back " } else { "" };
        loop {
            let question = format!(
                "{} {what}{} failed  [r]etry {OFFER}",
                self.term.paint(Style::Yellow, "?"),
                self.term.paint(Style::Bold, &printable(&readable(&step.path)))
            );
            let Some((choice, rest)) = self.letter(&question, "rsphbq", &mut || self.stopped())? else { return Ok(OnFailure::Stop) };
            match choice {
                'r' => return Ok(OnFailure::Retry),
                's' => return Ok(OnFailure::Skip(self.reason(rest))),
                'p' => self.say(&preview(&step.source)),
                'h' => self.shell(Some(rest.as_str()).filter(|r| !r.is_empty()).or(step.on.as_deref())),
                'b' => return Ok(OnFailure::RollBack),
                _ => return Ok(OnFailure::Stop),
            }
        }
    }

    fn overrun(&self, window: &str, open: Duration, budget: Duration) -> Result<Option<Said<bool>>> {
        if self.yes {
            return Ok(Some(by_flag(true, "--yes")));
        }
        let question = format!(
            "{} \"{}\" is open for {}, its budget is {}  [g]o on, roll [b]ack: ",
            self.term.paint(Style::Yellow, "?"),
            printable(window),
            show_duration(Duration::from_secs(open.as_secs())),
            show_duration(budget)
        );
        let answer = match self.turn(&mut || self.stopped())? {
            Some(_turn) => self.letter(&question, "gb", &mut || self.stopped())?,
            None => None,
        };
        if answer.is_none() {
            self.interrupted()?;
        }
        Ok(answer.map(|(c, _)| Said { answer: c == 'g', by: user() }))
    }

    fn doubt_told(&self) -> bool {
        self.doubt.lock().is_some()
    }

    fn doubt(&self, call: &str, known: &str) -> Result<Option<Said<DoubtAnswer>>> {
        if let Some(a) = self.doubt.lock().take() {
            return Ok(Some(by_flag(a, "--answer")));
        }
        let question = format!(
            "{} it cannot be known what became of {}\n{}  look at the host, then answer:\n  [r]etry: it did not happen, do it   [d]one: it happened, go on   roll [b]ack   [q]uit: ",
            self.term.paint(Style::Yellow, "?"),
            printable(call),
            known.lines().map(|l| format!("  {}\n", printable(l))).collect::<String>()
        );
        let answer = match self.turn(&mut || self.stopped())? {
            Some(_turn) => self.letter(&question, "rdbq", &mut || self.stopped())?,
            None => None,
        };
        if answer.is_none() {
            self.interrupted()?;
        }
        let answer = answer.and_then(|(c, _)| match c {
            'r' => Some(DoubtAnswer::Retry),
            'd' => Some(DoubtAnswer::Done),
            'b' => Some(DoubtAnswer::RollBack),
            _ => None,
        });
        Ok(answer.map(|answer| Said { answer, by: user() }))
    }
}

/// An answer that a flag gave before anything was asked.
fn by_flag<T>(answer: T, flag: &str) -> Said<T> {
    Said { answer, by: format!("{} ({flag})", user()) }
}

fn preview(source: &str) -> String {
    let text = if source.trim().is_empty() { "(its source is not at hand)" } else { source };
    let indent = text.lines().filter(|l| !l.trim().is_empty()).map(|l| l.len() - l.trim_start().len()).min().unwrap_or(0);
    text.lines().map(|l| format!("  | {}\n", printable(l.get(indent..).unwrap_or_default()))).collect()
}

/// The flag `--answer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Answer {
    /// It did not happen: do it
    Retry,
    /// It happened: go on with an empty result
    Done,
    /// Take the run back
    Rollback,
}

impl From<Answer> for DoubtAnswer {
    fn from(a: Answer) -> Self {
        match a {
            Answer::Retry => DoubtAnswer::Retry,
            Answer::Done => DoubtAnswer::Done,
            Answer::Rollback => DoubtAnswer::RollBack,
        }
    }
}

/// Has the environment's name typed when it wants that.
///
/// # Errors
/// `RB0112`.
pub fn confirm(term: &Terminal, env: &Environment, given: Option<&str>) -> Result<()> {
    let wrong = |message: String| Err(Error::new(Code::NOT_CONFIRMED, message).hint(format!("add --confirm {}", env.name)));
    match given {
        Some(n) if n == env.name => Ok(()),
        Some(n) => wrong(format!("--confirm says \"{n}\", and the environment is \"{}\"", env.name)),
        None if !env.confirm => Ok(()),
        None => match term.ask(&format!("This works on {}. Type its name to go on: ", term.paint(Style::Bold, &env.name))) {
            Some(typed) if typed == env.name => Ok(()),
            Some(_) => wrong(format!("environment \"{}\" was not confirmed", env.name)),
            None => wrong(format!("environment \"{}\" wants its name confirmed", env.name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runbook_core::Value;

    #[test]
    fn a_shell_goes_where_the_inventory_says() {
        let host = |settings: &[(&str, Value)]| Resource {
            name: "h".into(),
            kind: "ssh".into(),
            settings: settings.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect(),
        };
        let words = |s: &[(&str, Value)]| ssh_words(&host(s)).unwrap().join(" ");
        assert_eq!(words(&[("ssh", "web".into())]), "ssh -t -- web");
        assert_eq!(words(&[("ssh", "ann@192.0.2.1:2222".into())]), "ssh -t -p 2222 -l ann -- 192.0.2.1");
        assert_eq!(words(&[("ssh", "[2001:db8::1]:22".into()), ("user", "bob".into())]), "ssh -t -p 22 -l bob -- 2001:db8::1");
        assert_eq!(
            words(&[("ssh", "lab@127.0.0.2:2222".into()), ("identity_file", "/k/id".into()), ("known_hosts", "/k/known".into())]),
            "ssh -t -p 2222 -l lab -i /k/id -o UserKnownHostsFile=/k/known -- 127.0.0.2"
        );
        assert!(ssh_words(&host(&[])).is_none());
    }

    #[test]
    fn a_preview_stands_at_the_margin() {
        assert_eq!(preview("    step \"é\" {\n        x();\n\n    }"), "  | step \"é\" {\n  |     x();\n  | \n  | }\n");
        assert_eq!(preview(" "), "  | (its source is not at hand)\n");
    }

    #[test]
    fn a_name_must_be_confirmed_where_nobody_can_type_it() {
        let t = Terminal::plain();
        let env = Environment { name: "production".into(), confirm: true, ..Environment::default() };
        assert_eq!(confirm(&t, &env, None).unwrap_err().code, Code::NOT_CONFIRMED);
        assert_eq!(confirm(&t, &env, Some("staging")).unwrap_err().code, Code::NOT_CONFIRMED);
        confirm(&t, &env, Some("production")).unwrap();
        confirm(&t, &Environment { confirm: false, ..env }, None).unwrap();
    }
}
