//! The terminal: what goes where, in which colours, and how a person is asked.
//!
//! Results go to standard output, progress, hints and questions to standard error. Nothing here fails when the other end is gone.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

/// How text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Names and headings.
    Bold,
    /// Errors.
    Red,
    /// What was done.
    Green,
    /// Warnings and questions.
    Yellow,
    /// Places and hints.
    Blue,
    /// What matters less.
    Dim,
}

/// What is known of the terminal, and what the operator asked for.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// One JSON document instead of text.
    pub json: bool,
    /// Never ask.
    pub no_input: bool,
    /// Standard error is a terminal that can move its cursor.
    pub live: bool,
    /// Standard input and standard error are terminals.
    pub interactive: bool,
    color_out: bool,
    color_err: bool,
}

impl Terminal {
    /// Looks at the streams and at `NO_COLOR` and `TERM`.
    pub fn new(json: bool, no_input: bool) -> Self {
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb" || t.is_empty());
        let color = !dumb && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Terminal {
            json,
            no_input,
            live: err && !dumb,
            interactive: err && std::io::stdin().is_terminal(),
            color_out: color && out,
            color_err: color && err,
        }
    }

    /// A terminal without colours and without anybody to ask.
    #[cfg(test)]
    pub fn plain() -> Self {
        Terminal { json: false, no_input: true, live: false, interactive: false, color_out: false, color_err: false }
    }

    /// Whether a person can be asked.
    pub fn can_ask(&self) -> bool {
        self.interactive && !self.no_input
    }

    /// Paints text for standard error.
    pub fn paint(&self, style: Style, text: &str) -> String {
        paint(self.color_err, style, text)
    }

    /// Paints text for standard output.
    pub fn paint_out(&self, style: Style, text: &str) -> String {
        paint(self.color_out, style, text)
    }

    /// Writes a result.
    pub fn out(&self, text: &str) {
        write(&mut std::io::stdout().lock(), text);
    }

    /// Writes progress, a hint or an error.
    pub fn err(&self, text: &str) {
        write(&mut std::io::stderr().lock(), text);
    }

    /// The size of standard error in columns and lines; a usual one when it is not known.
    pub fn size(&self) -> (usize, usize) {
        let known = rustix::termios::tcgetwinsize(std::io::stderr()).ok().filter(|s| s.ws_col > 0 && s.ws_row > 0);
        known.map_or((80, 24), |s| (usize::from(s.ws_col), usize::from(s.ws_row)))
    }

    /// The width of standard output in columns; wide enough for everything when it is no terminal.
    pub fn width_out(&self) -> usize {
        let known = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|s| s.ws_col > 0);
        known.map_or(usize::MAX, |s| usize::from(s.ws_col))
    }

    /// Asks and waits for a line; `None` when nobody can be asked or the input has ended.
    pub fn ask(&self, question: &str) -> Option<String> {
        let answer: Result<Option<String>, std::convert::Infallible> = self.ask_while(question, || Ok(None));
        answer.ok().flatten()
    }

    /// Asks for a line that shows while it is typed only with `echo`. `None` when nobody can be asked, when the input has ended, and
    /// once `withdrawn` says so.
    pub fn ask_secret(&self, question: &str, echo: bool, withdrawn: impl Fn() -> bool) -> Option<String> {
        if !self.can_ask() {
            return None;
        }
        let question = question.lines().map(printable).collect::<Vec<_>>().join("\n");
        let hidden = (!echo).then(Hidden::new);
        let answer = self.ask_while(&question, || if withdrawn() { Err(()) } else { Ok(None) }).ok().flatten();
        drop(hidden);
        if !echo {
            self.err("\n");
        }
        answer
    }

    /// Asks and waits for a line, calling `meanwhile` every few hundred milliseconds: when that gives an answer, the question is
    /// withdrawn. `Ok(None)` when nobody can be asked.
    pub fn ask_while<E>(&self, question: &str, mut meanwhile: impl FnMut() -> Result<Option<String>, E>) -> Result<Option<String>, E> {
        if !self.can_ask() {
            return Ok(None);
        }
        // What was typed before the question stood there is no answer to it: an Enter too many must not approve a step.
        let _ = rustix::termios::tcflush(std::io::stdin(), rustix::termios::QueueSelector::IFlush);
        self.err(question);
        loop {
            if readable(Duration::from_millis(300)) {
                let mut line = String::new();
                return Ok(match std::io::stdin().lock().read_line(&mut line) {
                    Ok(0) | Err(_) => None,
                    Ok(_) => Some(line.trim().to_string()),
                });
            }
            match meanwhile() {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    self.err("\n");
                    return Ok(Some(answer));
                }
                Err(e) => {
                    self.err("\n");
                    return Err(e);
                }
            }
        }
    }
}

/// The terminal as it was before something was typed unseen.
static BEFORE: parking_lot::Mutex<Option<rustix::termios::Termios>> = parking_lot::Mutex::new(None);

/// The terminal does not show what is typed while this lives.
struct Hidden;

impl Hidden {
    fn new() -> Self {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        if let Ok(before) = tcgetattr(&stdin) {
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO);
            *BEFORE.lock() = Some(before);
            let _ = tcsetattr(&stdin, OptionalActions::Flush, &quiet);
        }
        Hidden
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        restore();
    }
}

/// Has the terminal show again what is typed; for an end in mid-question.
pub fn restore() {
    if let Some(before) = BEFORE.lock().take() {
        let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, &before);
    }
}

/// Whether a line can be read without waiting longer than `limit`. The terminal hands on whole lines.
fn readable(limit: Duration) -> bool {
    let stdin = std::io::stdin();
    let mut fds = [rustix::event::PollFd::new(&stdin, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
    matches!(rustix::event::poll(&mut fds, Some(&limit)), Ok(n) if n > 0)
}

fn write(to: &mut dyn Write, text: &str) {
    // The reader may be gone (`runbook log | head`): then there is nobody to tell.
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

fn paint(color: bool, style: Style, text: &str) -> String {
    if !color {
        return text.to_string();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Red => "1;31",
        Style::Green => "32",
        Style::Yellow => "33",
        Style::Blue => "34",
        Style::Dim => "2",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// How many columns a text takes; colour codes take none.
pub fn columns(text: &str) -> usize {
    let mut code = false;
    text.chars().map(|c| cells(c, &mut code)).sum()
}

/// Cuts a text so that it takes fewer than `width` columns: a full line would make some terminals wrap.
pub fn cut(text: &str, width: usize) -> String {
    let (mut out, mut taken, mut code) = (String::new(), 0, false);
    for c in text.chars() {
        let cells = cells(c, &mut code);
        if taken + cells >= width.max(1) {
            // The end of a colour must still come.
            if text.contains('\x1b') {
                out.push_str("\x1b[0m");
            }
            return out;
        }
        taken += cells;
        out.push(c);
    }
    out
}

fn cells(c: char, code: &mut bool) -> usize {
    if c == '\x1b' {
        *code = true;
    }
    if *code {
        *code = c != 'm';
        return 0;
    }
    unicode_width::UnicodeWidthChar::width(c).unwrap_or(0)
}

/// A number of things: `1 step`, `2 steps`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Makes text from hosts safe to show in a line: no control characters, tabs and ends of lines as spaces.
pub fn printable(text: &str) -> String {
    text.trim_end().chars().map(|c| if c == '\t' || c == '\n' { ' ' } else { c }).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\tc\r\nd\n"), "a[2Jb c d");
    }

    #[test]
    fn lines_are_cut_at_the_width_and_colours_end() {
        assert_eq!(cut("abcdef", 4), "abc");
        assert_eq!(cut("\x1b[1mabcdef\x1b[0m", 4), "\x1b[1mabc\x1b[0m");
        assert_eq!(cut("abc", 4), "abc");
        assert_eq!((cut("日本語", 4).as_str(), cut("日本語", 5).as_str()), ("日", "日本"), "wide characters take two columns");
        assert_eq!((columns("\x1b[1m日本\x1b[0m-e\u{301}"), cut("abc", 0).as_str()), (6, ""));
    }

    #[test]
    fn a_plain_terminal_has_no_colours_and_nobody_to_ask() {
        let t = Terminal::plain();
        assert_eq!(t.paint(Style::Red, "x"), "x");
        assert_eq!(t.ask("? "), None);
    }
}
