//! Errors of the engine and errors of the language, each carried inside the other without loss.

use std::collections::BTreeMap;

use rhai::{Dynamic, EvalAltResult, ImmutableString, Map, Position};
use runbook_core::error::{Kind, Location};
use runbook_core::exec::Fault;
use runbook_core::{Code, Error};

/// The language's error, as the core's steps hold it.
#[derive(Debug)]
pub struct ScriptFault(pub Box<EvalAltResult>);

impl From<Error> for ScriptFault {
    fn from(e: Error) -> Self {
        ScriptFault(raise(e, Position::NONE))
    }
}

impl From<Box<EvalAltResult>> for ScriptFault {
    fn from(e: Box<EvalAltResult>) -> Self {
        ScriptFault(e)
    }
}

impl Fault for ScriptFault {
    fn to_error(&self) -> Error {
        to_error(&self.0)
    }
}

/// Makes the language's error of ours: a map that `try`/`catch` sees, or, for what stops the run, one that nothing catches.
#[must_use]
pub fn raise(e: Error, pos: Position) -> Box<EvalAltResult> {
    if !e.kind.catchable() {
        return Box::new(EvalAltResult::ErrorTerminated(Dynamic::from(e), pos));
    }
    let mut m = shown(&e);
    // The whole error rides along, so that a rethrown map loses nothing.
    m.insert("error".into(), Dynamic::from(e));
    Box::new(EvalAltResult::ErrorRuntime(m.into(), pos))
}

/// What a script sees of an error. Of branches also `failures`, a map from name to error, and `not_begun`, an array of names.
#[must_use]
pub fn shown(e: &Error) -> Map {
    let mut m = Map::new();
    m.insert("code".into(), e.code.to_string().into());
    m.insert("message".into(), e.message.clone().into());
    m.insert("hint".into(), e.hint.clone().map_or(Dynamic::UNIT, Into::into));
    m.insert("host".into(), e.host.clone().map_or(Dynamic::UNIT, Into::into));
    m.insert("retryable".into(), e.retryable.into());
    let details: Map = e.details.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect();
    m.insert("details".into(), details.into());
    if !e.failures.is_empty() || !e.not_begun.is_empty() {
        let failures: Map = e.failures.iter().map(|f| (f.name.as_str().into(), shown(&f.error).into())).collect();
        m.insert("failures".into(), failures.into());
        m.insert("not_begun".into(), e.not_begun.iter().map(|n| Dynamic::from(n.clone())).collect::<rhai::Array>().into());
    }
    m
}

fn place(source: Option<&str>, pos: Position) -> Option<Location> {
    Some(Location { file: source.unwrap_or("").to_string(), line: pos.line()?, column: pos.position().unwrap_or(0) })
}

/// Makes ours of the language's error, with the innermost place that is known.
#[must_use]
pub fn to_error(e: &EvalAltResult) -> Error {
    convert(e, None)
}

fn convert(e: &EvalAltResult, source: Option<&str>) -> Error {
    use EvalAltResult as E;
    let here = place(source, e.position());
    let script = |code: Code, message: String| {
        let mut error = Error::new(code, message);
        error.location = here.clone();
        error
    };
    match e {
        E::ErrorInFunctionCall(_, src, inner, _) => convert(inner, if src.is_empty() { source } else { Some(src) }),
        E::ErrorInModule(path, inner, pos) => {
            let mut error = convert(inner, Some(path));
            if error.location.is_none() {
                error.location = place(source, *pos);
            }
            error
        }
        E::ErrorTerminated(value, _) | E::ErrorRuntime(value, _) => {
            let mut error = thrown(value);
            if error.location.is_none() {
                error.location = here;
            }
            error
        }
        E::ErrorParsing(kind, _) => parse_error(kind, here),
        E::ErrorVariableNotFound(name, _) => script(Code::UNDEFINED_VARIABLE, format!("variable \"{name}\" is not defined")),
        E::ErrorFunctionNotFound(sig, _) => unknown_function(sig, here),
        E::ErrorModuleNotFound(path, _) => script(Code::BAD_IMPORT, format!("there is no module \"{path}\"")),
        E::ErrorPropertyNotFound(name, _) => script(Code::UNKNOWN_PROPERTY, format!("there is no property \"{name}\"")),
        E::ErrorDataRace(what, _) if what.ends_with("'each'") => {
            script(Code::BAD_WORD, "the closure of each uses the list that it goes through".into())
                .hint("use a copy in the closure: let copy = list; before it")
        }
        E::ErrorAssignmentToConstant(name, _) => script(Code::BAD_WORD, format!("\"{name}\" cannot be assigned to here"))
            .hint("it is a constant, or a variable outside of a branch: let the branch have a value instead"),
        E::ErrorNonPureMethodCallOnConstant(name, _) => {
            script(Code::BAD_WORD, format!("\"{}\" would change a value that cannot be changed here", name.trim_start_matches("set$")))
                .hint("it belongs to a constant, or to a variable outside of a branch: let the branch have a value instead")
        }
        E::ErrorTooManyOperations(_) => {
            script(Code::LIMIT, "the script has evaluated too many operations: is there an endless loop?".into())
                .hint("to wait for something use wait_until or sleep, which cost nothing while they wait")
        }
        E::ErrorStackOverflow(_) => script(Code::LIMIT, "functions call each other too deeply: is there an endless recursion?".into())
            .hint("at most 64 calls may be nested"),
        E::ErrorDataTooLarge(what, _) => script(Code::LIMIT, format!("{what} is too large to be held by a script"))
            .hint("leave large data on the hosts: copy files there instead of reading them"),
        E::ErrorTooManyModules(_) => script(Code::LIMIT, "too many modules are imported".into()),
        E::ErrorSystem(text, inner) => match inner.downcast_ref::<Error>() {
            Some(ours) => ours.clone().at_opt(here),
            None => script(Code::SCRIPT, format!("{text}{inner}")),
        },
        other => {
            let mut bare = other.to_string();
            if let Some(cut) = bare.rfind(" (line ") {
                bare.truncate(cut);
            }
            script(Code::SCRIPT, lower_first(&bare))
        }
    }
}

trait AtOpt {
    fn at_opt(self, location: Option<Location>) -> Self;
}

impl AtOpt for Error {
    fn at_opt(self, location: Option<Location>) -> Self {
        match location {
            Some(l) => self.at(l),
            None => self,
        }
    }
}

fn lower_first(text: &str) -> String {
    let mut c = text.chars();
    c.next().map_or_else(String::new, |f| f.to_lowercase().chain(c).collect())
}

/// What a script threw: one of our errors, a map like one, or anything else.
fn thrown(value: &Dynamic) -> Error {
    if let Some(e) = value.read_lock::<Error>() {
        return e.clone();
    }
    if let Some(m) = value.read_lock::<Map>() {
        let text = |k: &str| m.get(k).and_then(|v| v.clone().try_cast::<ImmutableString>()).map(|s| s.to_string());
        if let Some(e) = m.get("error").and_then(|v| v.read_lock::<Error>()) {
            let mut e = e.clone();
            if let Some(message) = text("message") {
                e.message = message;
            }
            return e;
        }
        let mut e = Error::new(
            text("code").and_then(|c| Code::parse(&c)).unwrap_or(Code::SCRIPT),
            text("message").unwrap_or_else(|| "the script threw an error".into()),
        );
        e.kind = Kind::Failed;
        e.hint = text("hint");
        e.host = text("host");
        e.retryable = m.get("retryable").and_then(|v| v.as_bool().ok()).unwrap_or(false);
        e.details = m
            .get("details")
            .and_then(|v| v.clone().try_cast::<Map>())
            .map(|d| d.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<BTreeMap<_, _>>())
            .unwrap_or_default();
        return e;
    }
    Error::new(Code::SCRIPT, if value.is_unit() { "the script threw an error".into() } else { value.to_string() })
}

/// Makes ours of a parse error.
#[must_use]
pub fn parse_error(kind: &rhai::ParseErrorType, location: Option<Location>) -> Error {
    use rhai::ParseErrorType as P;
    let mut e = match kind {
        P::VariableUndefined(name) => Error::new(Code::UNDEFINED_VARIABLE, format!("variable \"{name}\" is not defined")),
        P::ModuleUndefined(name) => Error::new(Code::BAD_IMPORT, format!("module \"{name}\" is not imported")),
        P::ExprTooDeep => Error::new(Code::LIMIT, "expressions are nested too deeply").kind(Kind::Check),
        P::BadInput(rhai::LexError::ImproperSymbol(_, why)) if !why.is_empty() => Error::new(Code::BAD_WORD, why.clone()),
        other => Error::new(Code::SYNTAX, lower_first(&other.to_string())),
    };
    e.location = location;
    e
}

/// Makes ours of "function not found": `step_one (Host, &str | ImmutableString)`.
fn unknown_function(sig: &str, location: Option<Location>) -> Error {
    let name = sig.split([' ', '(']).next().unwrap_or(sig);
    let args = sig.find('(').map_or("", |i| &sig[i..]);
    let shown = args
        .replace("&str | ImmutableString | String", "string")
        .replace("runbook_core::value::Record", "handle")
        .replace("i64", "int")
        .replace("f64", "float");
    let mut e = Error::new(Code::UNKNOWN_FUNCTION, format!("there is no function or method {name}{shown}"));
    e.location = location;
    e
}
