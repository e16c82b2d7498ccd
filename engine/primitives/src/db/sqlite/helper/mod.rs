//! The helper: this program itself, run on the database's host as `runbook __helper sqlite`, with SQLite built in.
//!
//! It does one request and ends. It keeps no state but what is in the database, so that it can be killed at any point.

mod copy;
mod data;
mod digest;
mod fence;
mod guard;
mod open;
mod processes;
mod state;
mod switch;
#[cfg(test)]
mod tests;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use runbook_core::{Code, Error, Result};
use serde::Serialize;
use serde_json::Value as Json;

pub use digest::is_internal;
pub use open::{ident, literal};

use super::proto::{Envelope, Offer, Reply, Request, RowLine};
use crate::ssh::helper::PROTOCOL;

/// Reads one request from `input`, does it, answers on `out`. False when it failed; the error was answered then.
pub fn serve(input: &mut dyn Read, out: &mut dyn Write) -> bool {
    let mut input = BufReader::with_capacity(64 << 10, input);
    let mut text = Vec::new();
    let envelope: Result<Envelope> = match input.read_until(b'\n', &mut text) {
        Err(e) => Err(Error::new(Code::DB_HELPER, format!("the request cannot be read: {e}"))),
        Ok(_) => serde_json::from_slice(&text).map_err(|e| Error::new(Code::DB_HELPER, format!("the request is not understood: {e}"))),
    };
    let rows = matches!(&envelope, Ok(Envelope { request: Request::Rows { .. }, .. }));
    let result = envelope.and_then(|e| {
        if e.protocol != PROTOCOL {
            return Err(Error::new(Code::DB_HELPER, format!("the helper speaks version {PROTOCOL}, the controller {}", e.protocol)));
        }
        answer(&open::resolve(&e.db)?, e.request, &mut input, out)
    });
    let last = match result {
        Ok(None) => return out.flush().is_ok(),
        Ok(Some(v)) => digest::line(out, &Reply::Ok(v)),
        Err(e) if rows => digest::line(out, &RowLine::Error(Box::new(e))).and(Err(Error::internal("answered"))),
        Err(e) => digest::line(out, &Reply::Error(Box::new(e))).and(Err(Error::internal("answered"))),
    };
    last.is_ok() & out.flush().is_ok()
}

fn json(v: impl Serialize) -> Result<Option<Json>> {
    serde_json::to_value(v).map(Some).map_err(|e| Error::internal(e.to_string()))
}

/// Does a request; `None` when the answer was already written.
fn answer(path: &Path, request: Request, input: &mut dyn Read, out: &mut dyn Write) -> Result<Option<Json>> {
    let ms = Duration::from_millis;
    match request {
        Request::Query { sql, params } => json(data::query(path, &sql, &params)?),
        Request::Execute { sql, params, action, time } => json(data::execute(path, &sql, &params, &action, &time)?),
        Request::Executed { action } => json(data::executed(path, &action)?),
        Request::Facts => json(data::facts(path)?),
        Request::Digest { checksums } => json(digest::digest(&open::read(path)?, path, checksums)?),
        Request::Rows { table } => digest::rows(&open::read(path)?, path, &table, out).map(|()| None),
        Request::State => json(state::state(path)?),
        Request::Send { unless } => {
            copy::send(path, unless.as_ref(), out, |offer: &Offer, out| digest::line(out, &Reply::Ok(json(offer)?.unwrap_or_default())))?;
            Ok(None)
        }
        Request::Receive { header, origin, time } => json(copy::receive(path, &header, &origin, &time, input)?),
        Request::Restore { header, within_ms } => json(copy::restore(path, &header, ms(within_ms), input)?),
        Request::CopyFile { to } => json(copy::to_file(path, &open::resolve(&to)?)?),
        Request::DropCopy => json(copy::drop_copy(path)?),
        Request::Fence { id, name, time, within_ms } => json(fence::fence(path, &id, &name, &time, ms(within_ms))?),
        Request::CheckFence { id } => json(fence::check(path, &id)?),
        Request::Unfence { force } => json(fence::unfence(path, force)?),
        Request::HandOver { to } => json(fence::hand_over(path, to.as_deref())?),
        Request::Promote { fence, stamp, action, time } => json(switch::promote(path, &fence, &stamp, &action, &time)?),
        Request::Hold { within_ms } => json(switch::hold(path, ms(within_ms))?),
        Request::BecomeCopy { fence, stamp, time } => json(switch::become_copy(path, fence, &stamp, &time)?),
    }
}
