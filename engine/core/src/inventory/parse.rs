//! Reads `runbook.toml`: every finding with its place, not just the first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::resolve::{EnvironmentDecl, Inventory, Lab, ParamDecl};
use super::schema::{self, Field, Holds, Need};
use super::source::Source;
use super::{Resource, SecretRef, Section};
use crate::error::{Code, Error};
use crate::suggest::closest;
use crate::units::parse_duration;
use crate::value::Value;

mod param;
mod secret;

/// A table of the file or a value in it, with its place.
type Item<'i> = Spanned<DeValue<'i>>;

/// Parses and checks an inventory. `file` is the name that messages show.
///
/// # Errors
/// Every finding, in order of place: `RB0102` syntax, `RB0103` unknown key, `RB0104` wrong type, `RB0106` a name that does not exist,
/// `RB0108` a parameter's value, `RB0114` a value that is missing.
pub fn parse(text: &str, file: &str) -> Result<Inventory, Vec<Error>> {
    let src = Source { text, file };
    let (root, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        // What follows a syntax error is guesswork: report these alone.
        return Err(syntax
            .iter()
            .map(|e| {
                let at = src.locate(e.span().map_or(0, |s| s.start));
                let message = e.message().lines().collect::<Vec<_>>().join("; ");
                Error::new(Code::INVENTORY_SYNTAX, message)
                    .at(at)
                    .hint("the file is TOML: see https://toml.io, or `runbook explain RB0102`")
            })
            .collect());
    }
    let mut walk = Walk { src, errors: vec![] };
    let inventory = walk.root(root.get_ref());
    let mut errors = walk.errors;
    if errors.is_empty() {
        return Ok(inventory);
    }
    errors.sort_by_key(|e| e.location.as_ref().map(|l| (l.line, l.column)));
    Err(errors)
}

struct Walk<'a> {
    src: Source<'a>,
    errors: Vec<Error>,
}

/// The names that settings of an environment may refer to.
struct Names {
    hosts: BTreeSet<String>,
    secrets: BTreeSet<String>,
    embedded: bool,
}

impl Walk<'_> {
    fn report(&mut self, code: Code, at: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        let mut e = Error::new(code, message).at(self.src.locate(at.start));
        e.hint = hint;
        self.errors.push(e);
    }

    fn wrong_type(&mut self, v: &Item<'_>, what: &str, wanted: &str) {
        self.report(Code::INVENTORY_TYPE, v.span(), format!("{what} must be {wanted}, not {}", describe(v.get_ref(), wanted)), None);
    }

    /// Reports the keys of `table` that are not in `known`.
    fn keys(&mut self, table: &DeTable<'_>, known: &[&str], what: &str) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let hint = match closest(name, known.iter().copied()) {
                    Some(c) => format!("did you mean \"{c}\"?"),
                    None => format!("there are: {}", known.join(", ")),
                };
                self.report(Code::INVENTORY_KEY, key.span(), format!("{what} has no key \"{name}\""), Some(hint));
            }
        }
    }

    fn table<'t, 'i>(&mut self, v: &'t Item<'i>, what: &str) -> Option<&'t DeTable<'i>> {
        let t = v.get_ref().as_table();
        if t.is_none() {
            self.wrong_type(v, what, "a table");
        }
        t
    }

    /// The sub-tables of a table of named things.
    fn named<'t, 'i>(&mut self, parent: &'t DeTable<'i>, key: &str, what: &str) -> Vec<(String, Range<usize>, &'t Item<'i>)> {
        let Some(v) = parent.get(key) else { return vec![] };
        let Some(t) = self.table(v, what) else { return vec![] };
        t.iter().map(|(k, v)| (k.get_ref().to_string(), k.span(), v)).collect()
    }

    fn text(&mut self, v: &Item<'_>, what: &str) -> Option<String> {
        let t = v.get_ref().as_str().map(str::to_string);
        if t.is_none() {
            self.wrong_type(v, what, "a text");
        }
        t
    }

    fn flag(&mut self, table: &DeTable<'_>, key: &str, what: &str) -> bool {
        let Some(v) = table.get(key) else { return false };
        v.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(v, &format!("\"{key}\" of {what}"), "true or false");
            false
        })
    }

    fn root(&mut self, root: &DeTable<'_>) -> Inventory {
        let known: Vec<&str> = schema::TOP.iter().map(|(k, _)| *k).collect();
        self.keys(root, &known, self.src.file.to_string().as_str());
        let mut project = None;
        if let Some(v) = root.get("project")
            && let Some(t) = self.table(v, "[project]")
        {
            self.keys(t, &["name"], "[project]");
            project = t.get("name").and_then(|v| self.text(v, "the project's name"));
        }
        let params = self.param_decls(root);
        let secrets = self.secrets(root, "[secrets]");
        let mut environments = BTreeMap::new();
        for (name, at, v) in self.named(root, "environments", "[environments]") {
            let what = format!("environment \"{name}\"");
            if let Some(t) = self.table(v, &what) {
                let env = self.environment(&name, &at, t, &params, &secrets);
                environments.insert(name, env);
            }
        }
        Inventory { file: self.src.file.to_string(), project, params, secrets, environments }
    }

    fn environment(
        &mut self,
        name: &str,
        at: &Range<usize>,
        t: &DeTable<'_>,
        declared: &BTreeMap<String, ParamDecl>,
        project_secrets: &BTreeMap<String, SecretRef>,
    ) -> EnvironmentDecl {
        let what = format!("environment \"{name}\"");
        let known: Vec<&str> = schema::ENVIRONMENT.iter().map(|(k, _)| *k).chain(Section::ALL.iter().map(|s| s.key())).collect();
        self.keys(t, &known, &what);
        let embedded = self.flag(t, "embedded", &what);
        let secrets = self.secrets(t, &format!("secrets of {what}"));
        let hosts = t.get("hosts").and_then(|v| v.get_ref().as_table());
        let names = Names {
            hosts: hosts.map(|h| h.keys().map(|k| k.get_ref().to_string()).collect()).unwrap_or_default(),
            secrets: project_secrets.keys().chain(secrets.keys()).cloned().collect(),
            embedded,
        };
        let mut resources = BTreeMap::new();
        for section in Section::ALL {
            let mut found = BTreeMap::new();
            for (name, at, v) in self.named(t, section.key(), &format!("\"{}\" of {what}", section.key())) {
                if let Some(r) = self.resource(section, &name, &at, v, &names) {
                    found.insert(name, r);
                }
            }
            resources.insert(section, found);
        }
        let lab = t.get("lab").and_then(|v| self.lab(v, &what, &names));
        if embedded && lab.is_none() && !t.contains_key("lab") {
            let hint = format!("add [environments.{name}.lab] with app_host and name");
            self.report(Code::INVENTORY_MISSING, at.clone(), format!("{what} is embedded and has no \"lab\""), Some(hint));
        }
        EnvironmentDecl {
            confirm: self.flag(t, "confirm", &what),
            rehearsal: self.flag(t, "rehearsal", &what),
            embedded,
            lab,
            resources,
            params: self.param_values(t, &what, declared),
            secrets,
            location: self.src.locate(at.start),
        }
    }

    fn resource(&mut self, section: Section, name: &str, at: &Range<usize>, v: &Item<'_>, names: &Names) -> Option<Resource> {
        let what = format!("{} \"{name}\"", section.word());
        let t = self.table(v, &what)?;
        let kind = if section == Section::Hosts {
            schema::kinds(section).next()?
        } else {
            let kinds = schema::kinds(section).map(|k| k.kind).collect::<Vec<_>>().join(", ");
            let Some(k) = t.get("kind") else {
                self.report(
                    Code::INVENTORY_MISSING,
                    at.clone(),
                    format!("{what} has no \"kind\""),
                    Some(format!("add kind = \"…\"; there are: {kinds}")),
                );
                return None;
            };
            let given = self.text(k, &format!("\"kind\" of {what}"))?;
            let Some(found) = schema::kind(section, &given) else {
                let hint = match closest(&given, schema::kinds(section).map(|k| k.kind)) {
                    Some(c) => format!("did you mean \"{c}\"? There are: {kinds}"),
                    None => format!("there are: {kinds}"),
                };
                self.report(Code::INVENTORY_TYPE, k.span(), format!("no kind of {} is called \"{given}\"", section.word()), Some(hint));
                return None;
            };
            found
        };
        let settings = self.settings(t, kind.fields, section != Section::Hosts, &what, at, names);
        Some(Resource { name: name.to_string(), kind: kind.kind.to_string(), settings })
    }

    /// Checks a table against its fields.
    fn settings(
        &mut self,
        t: &DeTable<'_>,
        fields: &[Field],
        has_kind: bool,
        what: &str,
        at: &Range<usize>,
        names: &Names,
    ) -> BTreeMap<String, Value> {
        let mut known: Vec<&str> = fields.iter().map(|f| f.key).collect();
        if has_kind {
            known.push("kind");
        }
        self.keys(t, &known, what);
        let mut settings = BTreeMap::new();
        for f in fields {
            match t.get(f.key) {
                Some(v) => {
                    if let Some(value) = self.setting(v, f, what, names) {
                        settings.insert(f.key.to_string(), value);
                    }
                }
                None if f.need == Need::Always || (f.need == Need::UnlessEmbedded && !names.embedded) => self.report(
                    Code::INVENTORY_MISSING,
                    at.clone(),
                    format!("{what} has no \"{}\"", f.key),
                    Some(format!("add {} = …  ({})", f.key, f.doc.trim_end_matches('.'))),
                ),
                None => {}
            }
        }
        settings
    }

    fn setting(&mut self, v: &Item<'_>, f: &Field, what: &str, names: &Names) -> Option<Value> {
        let label = format!("\"{}\" of {what}", f.key);
        let value = v.get_ref();
        let texts = |v: &DeValue<'_>| -> Option<Value> {
            let items = v.as_array()?.iter().map(|i| i.get_ref().as_str().map(Value::from));
            items.collect::<Option<Vec<_>>>().map(Value::List)
        };
        let found = match f.holds {
            Holds::Text | Holds::Duration | Holds::Host | Holds::Secret => value.as_str().map(Value::from),
            Holds::Flag => value.as_bool().map(Value::Bool),
            Holds::Port => value.as_integer().and_then(|i| integer(i).ok()).filter(|i| (1..=65_535).contains(i)).map(Value::Int),
            Holds::Texts | Holds::Command => value.as_str().map(Value::from).or_else(|| texts(value)),
            Holds::Vars => value.as_table().and_then(|_| free(value)),
        };
        let Some(found) = found else {
            self.wrong_type(v, &label, f.holds.name());
            return None;
        };
        let text = found.as_str().unwrap_or_default();
        match f.holds {
            Holds::Duration => {
                if let Err(e) = parse_duration(text) {
                    self.report(Code::INVENTORY_TYPE, v.span(), format!("{label}: {}", e.message), e.hint);
                    return None;
                }
            }
            Holds::Host if !names.hosts.contains(text) => self.unknown_name(v, &label, "host", text, &names.hosts),
            // An embedded environment's secrets may be made by the lab.
            Holds::Secret if !names.secrets.contains(text) && !names.embedded => {
                self.unknown_name(v, &label, "secret", text, &names.secrets);
            }
            _ => {}
        }
        Some(found)
    }

    fn unknown_name(&mut self, v: &Item<'_>, label: &str, word: &str, name: &str, known: &BTreeSet<String>) {
        let hint = match closest(name, known.iter().map(String::as_str)) {
            Some(c) => format!("did you mean \"{c}\"?"),
            None if known.is_empty() => format!("no {word} is declared: add one to the inventory"),
            None => format!("there are: {}", known.iter().cloned().collect::<Vec<_>>().join(", ")),
        };
        self.report(Code::UNKNOWN_NAME, v.span(), format!("{label}: there is no {word} \"{name}\""), Some(hint));
    }

    fn lab(&mut self, v: &Item<'_>, env: &str, names: &Names) -> Option<Lab> {
        let what = format!("the lab of {env}");
        let t = self.table(v, &what)?;
        let s = self.settings(t, schema::LAB, false, &what, &v.span(), names);
        let text = |k: &str| s.get(k).and_then(Value::as_str);
        let span = |k: &str, default: Duration| text(k).map_or(Some(default), |t| parse_duration(t).ok());
        Some(Lab {
            app_host: text("app_host")?.to_string(),
            name: text("name")?.to_string(),
            ttl: span("ttl", Duration::from_secs(60))?,
            order_every: span("order_every", Duration::from_millis(20))?,
        })
    }
}

fn integer(i: &toml::de::DeInteger<'_>) -> Result<i64, std::num::ParseIntError> {
    i64::from_str_radix(&i.as_str().replace('_', ""), i.radix())
}

/// Any TOML value as a value of the script language; `None` for a number that does not fit.
fn free(v: &DeValue<'_>) -> Option<Value> {
    Some(match v {
        DeValue::String(s) => Value::Str(s.to_string()),
        DeValue::Integer(i) => Value::Int(integer(i).ok()?),
        DeValue::Float(f) => Value::Float(f.as_str().replace('_', "").parse().ok()?),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(d) => Value::Str(d.to_string()),
        DeValue::Array(a) => Value::List(a.iter().map(|i| free(i.get_ref())).collect::<Option<_>>()?),
        DeValue::Table(t) => Value::Map(t.iter().map(|(k, v)| Some((k.get_ref().to_string(), free(v.get_ref())?))).collect::<Option<_>>()?),
    })
}

/// What a value is, for a message that says that something else is wanted. Texts are not repeated: one may be a secret.
fn describe(v: &DeValue<'_>, wanted: &str) -> String {
    match v {
        DeValue::String(_) => "a text".into(),
        DeValue::Integer(i) => format!("the number {i}"),
        DeValue::Float(f) => format!("the number {f}"),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(_) => "a date or time".into(),
        DeValue::Array(_) if wanted.contains("an array") => "an array with something else in it".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}
