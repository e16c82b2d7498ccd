//! `runbook explain`: the page of an error code.

use clap::Args;
use runbook_core::{Code, Error};
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::embedded::page;
use crate::terminal::Style;

/// Tells what an error code means and what to do
#[derive(Debug, Args)]
pub struct Explain {
    /// The code, such as RB0301; without one, all codes are listed
    #[arg(value_name = "CODE")]
    code: Option<String>,
}

impl Explain {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let Some(given) = self.code else {
            let text = Code::ALL.iter().map(|(c, _, title)| format!("{c}  {title}\n")).collect::<String>();
            let list: Vec<_> = Code::ALL.iter().map(|(c, _, title)| json!({ "code": c, "title": title })).collect();
            return Ok(Done::new(text, json!({ "codes": list })));
        };
        let code = Code::parse(&given).filter(|c| !c.title().is_empty());
        let Some((code, text)) = code.and_then(|c| Some((c, page(c)?))) else {
            return Err(Error::new(Code::USAGE, format!("\"{given}\" is no error code")).hint("`runbook explain` lists all codes").into());
        };
        let shown: String = text
            .lines()
            .map(|l| match l.strip_prefix("# ") {
                Some(title) => format!("{}\n", app.term.paint_out(Style::Bold, title)),
                None => format!("{l}\n"),
            })
            .collect();
        Ok(Done::new(shown, json!({ "code": code, "title": code.title(), "page": text })))
    }
}
