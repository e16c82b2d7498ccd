//! The words that are added to the language: `step`, `phase`, `gate`, `downtime`, `point_of_no_return`, `parallel`, `wait_until`.
//!
//! Custom syntax with blocks, not closures: a block sees the variables around it as they are, and its errors point at their place.

mod each;
mod group;
pub(crate) mod parallel;
mod plan;
pub(crate) mod results;
mod step;
mod wait;

use std::collections::BTreeMap;
use std::sync::Arc;

use rhai::{Dynamic, Engine, EvalAltResult, EvalContext, Expression, ImmutableString, LexError, ParseError, ParseErrorType, Position};
use runbook_core::error::Location;
use runbook_core::exec::{Frame, Run};
use runbook_core::suggest::closest;
use runbook_core::{Code, Error, Result, Ty, Value};

use crate::bind::{frame_of, run_of};
use crate::convert::to_value;
use crate::engine::Host;
use crate::fault::raise;

type Res<T> = std::result::Result<T, Box<EvalAltResult>>;

/// A word's documentation.
pub struct Word {
    /// The word.
    pub name: &'static str,
    /// How it is written.
    pub syntax: &'static str,
    /// Markdown.
    pub doc: &'static str,
}

/// Every word, for documentation and completion.
pub const WORDS: &[Word] = &[
    Word { name: "phase", syntax: "phase NAME { … }", doc: "Groups steps under a name. Its value is the block's." },
    Word {
        name: "step",
        syntax: "step NAME [#{ retries, backoff, timeout, when, on }] { … } [undo { … } | irreversible \"why\"]",
        doc: "What an operator sees, approves, retries, skips and undoes. Its value is the block's; `()` when it was skipped. `retries` says how \
              often it is tried again after a failure (default 0), `backoff` how long it waits before the first retry (default `1s`, doubled \
              each time up to a minute), `timeout` how long an attempt may take, `when: false` leaves it out, `on` names the host shown. \
              Actions that succeeded in an earlier attempt and must not happen twice are not repeated. The undo block runs when the run is \
              rolled back, also when the step had only begun; it sees the variables as they were when the step ended.",
    },
    Word {
        name: "gate",
        syntax: "gate QUESTION;",
        doc: "Asks a question that a person answers: here, or from another terminal or machine with `runbook approve`. The answer is recorded. \
              No stops the run; it can be resumed, which asks again.",
    },
    Word {
        name: "downtime",
        syntax: "downtime NAME [#{ budget, on_overrun }] { … }",
        doc: "The part of the run in which users are cut off; it is measured, also across crashes. When it is over its `budget`, `on_overrun` \
              decides before the next action: `\"ask\"` (default), `\"rollback\"` or `\"continue\"`.",
    },
    Word {
        name: "point_of_no_return",
        syntax: "point_of_no_return WHY;",
        doc: "Before it the run can be rolled back whole; after it only forward.",
    },
    Word {
        name: "parallel",
        syntax: "parallel [#{ at_once, max_fail, serial }] { branch NAME { … } branch NAME { … } }   or   parallel [#{ … }] { for X in LIST { … } }",
        doc: "Runs branches at the same time and waits for all of them. Its value is a map from branch name (or the item as text) to the branch's \
              value. A branch cannot change variables outside of it. When branches fail, the others still end; the error names each. The options \
              are those of `each`.",
    },
    Word {
        name: "each",
        syntax: "LIST.each([#{ at_once, max_fail, serial, tolerate },] |item| { … })",
        doc: "Does the same for every item of a list, such as `hosts(\"web\")`: each in a branch of its own that is called like the item, all at the \
              same time. `at_once` says how many run at the same time at most. `serial` makes batches of which one ends before the next begins: \
              a number, a share (`\"25%\"`), or a list such as `[1, 5, \"50%\"]` whose last part is repeated. `max_fail` says how many may fail, \
              as a number or a share of all, before no further one begins; without it all begin, but with `serial` the first failure is enough. \
              What has begun always ends. The closure sees the variables around it and cannot change them.\n\n\
              Its value is a Results. When an item fails, `each` fails with RB0022, which names every one that failed (`e.failures`, a map of \
              errors) and every one that was not begun (`e.not_begun`); on resume only these act again. With `tolerate: true` it gives the \
              Results all the same, and the script decides.",
    },
    Word {
        name: "wait_until",
        syntax: "wait_until WHAT [#{ within, every }] { CONDITION }",
        doc: "Evaluates the condition, which may only look, every so often (`every`, default `2s`) until it is true; fails with RB0020 when it is \
              not within `within` (default `5m`).",
    },
];

/// Adds the words to the engine.
pub fn register(e: &mut Engine, host: &Arc<Host>) {
    group::register(e, host);
    step::register(e, host);
    parallel::register(e, host);
    each::register(e, host);
    wait::register(e, host);
}

/// Refuses what would otherwise be read as a continuation: after `step "a" { 5 }`, a line that begins with `-x` or `[` would be taken as
/// an operator on the step's value.
fn end(look_ahead: &str) -> std::result::Result<Option<ImmutableString>, ParseError> {
    const INFIX: [&str; 14] = ["-", "+", "*", "/", "[", "(", "?[", "<", ">", "&", "|", "**", "%", "?."];
    if INFIX.contains(&look_ahead) {
        return improper(format!(
            "'{look_ahead}' after the block would be taken as an operator on its value: end the block with a semicolon"
        ));
    }
    Ok(None)
}

fn improper<T>(why: String) -> std::result::Result<T, ParseError> {
    Err(ParseError(Box::new(ParseErrorType::BadInput(LexError::ImproperSymbol(String::new(), why))), Position::NONE))
}

fn next(symbol: &'static str) -> std::result::Result<Option<ImmutableString>, ParseError> {
    Ok(Some(symbol.into()))
}

/// The parser of a word that is written `WORD NAME [#{ … }] { … }`; [`name_and_block`] takes it apart.
fn named_block(symbols: &[ImmutableString], look: &str, _: &mut Dynamic) -> std::result::Result<Option<ImmutableString>, ParseError> {
    match symbols.len() {
        1 => next("$expr$"),
        2 if look == "#{" => next("$expr$"),
        2 => next("$block$"),
        3 if symbols.last().is_some_and(|s| s == "$expr$") => next("$block$"),
        _ => end(look),
    }
}

/// The name, the options and the block of a word that [`named_block`] has parsed.
fn name_and_block<'i, 'a>(inputs: &'i [Expression<'a>]) -> Option<(&'i Expression<'a>, Option<&'i Expression<'a>>, &'i Expression<'a>)> {
    match inputs {
        [name, block] => Some((name, None, block)),
        [name, options, block] => Some((name, Some(options), block)),
        _ => None,
    }
}

/// The frame and the run of the place where a word stands.
fn here(ctx: &EvalContext<'_, '_, '_, '_, '_, '_>, host: &Host) -> Result<(Arc<Frame>, Arc<Run>)> {
    Ok((frame_of(Some(ctx.tag()))?, run_of(host)?))
}

fn place(ctx: &EvalContext<'_, '_, '_, '_, '_, '_>, pos: Position) -> Option<Location> {
    Some(Location { file: ctx.source().unwrap_or("").to_string(), line: pos.line()?, column: pos.position().unwrap_or(0) })
}

/// Gives an error the place of the word and makes it the language's.
fn fail(ctx: &EvalContext<'_, '_, '_, '_, '_, '_>, pos: Position, mut e: Error) -> Box<EvalAltResult> {
    if e.location.is_none() {
        e.location = place(ctx, pos);
    }
    raise(e, pos)
}

/// Evaluates a block with another frame.
fn eval_in(ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>, frame: Arc<Frame>, block: &Expression<'_>) -> Res<Dynamic> {
    let before = std::mem::replace(ctx.tag_mut(), Dynamic::from(frame));
    let result = ctx.eval_expression_tree(block);
    *ctx.tag_mut() = before;
    result
}

/// Evaluates an expression that must give text.
fn text(ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>, expr: &Expression<'_>, what: &str) -> Res<String> {
    let v = ctx.eval_expression_tree(expr)?;
    if v.is_string() {
        return Ok(v.to_string());
    }
    let e = Error::new(Code::BAD_WORD, format!("{what} must be text, not {}", ctx.engine().map_type_name(v.type_name())));
    Err(fail(ctx, expr.position(), e))
}

/// Evaluates an options map and checks its keys and types.
fn options(
    ctx: &mut EvalContext<'_, '_, '_, '_, '_, '_>,
    expr: Option<&Expression<'_>>,
    word: &str,
    known: &[(&str, Ty)],
) -> Res<BTreeMap<String, Value>> {
    let Some(expr) = expr else { return Ok(BTreeMap::new()) };
    let v = ctx.eval_expression_tree(expr)?;
    check_options(v, word, known).map_err(|e| fail(ctx, expr.position(), e))
}

fn check_options(v: Dynamic, word: &str, known: &[(&str, Ty)]) -> Result<BTreeMap<String, Value>> {
    let Value::Map(m) = to_value(v)? else {
        return Err(Error::new(Code::BAD_WORD, format!("the options of {word} are a map: #{{ … }}")));
    };
    let mut out = BTreeMap::new();
    for (k, v) in m {
        let Some((_, ty)) = known.iter().find(|(n, _)| *n == k) else {
            let names: Vec<&str> = known.iter().map(|(n, _)| *n).collect();
            let e = Error::new(Code::UNKNOWN_OPTION, format!("{word} has no option \"{k}\""));
            return Err(match closest(&k, names.iter().copied()) {
                Some(c) => e.hint(format!("did you mean \"{c}\"?")),
                None => e.hint(format!("it has: {}", names.join(", "))),
            });
        };
        let v = ty.coerce(v).map_err(|mut e| {
            e.message = format!("option \"{k}\" of {word}: {}", e.message);
            e
        })?;
        out.insert(k, v);
    }
    Ok(out)
}

fn duration(m: &BTreeMap<String, Value>, key: &str) -> Option<std::time::Duration> {
    if let Some(Value::Duration(d)) = m.get(key) { Some(*d) } else { None }
}
