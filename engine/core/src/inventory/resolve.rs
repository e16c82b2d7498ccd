//! From the checked file to one environment as scripts see it, and its form in the journal.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::schema::{self, Need};
use super::{Environment, Resource, SecretRef, Section};
use crate::error::{Code, Error, Location, Result};
use crate::spec::Ty;
use crate::suggest::closest;
use crate::value::Value;

/// A checked `runbook.toml`.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The file's name as messages show it.
    pub file: String,
    /// The project's name, when it is given.
    pub project: Option<String>,
    /// Declared parameters by name.
    pub params: BTreeMap<String, ParamDecl>,
    /// The project's secrets by name.
    pub secrets: BTreeMap<String, SecretRef>,
    /// Environments by name.
    pub environments: BTreeMap<String, EnvironmentDecl>,
}

/// A declared parameter.
#[derive(Debug, Clone)]
pub struct ParamDecl {
    /// Its type.
    pub ty: Ty,
    /// Its value when nothing else is given.
    pub default: Option<Value>,
    /// What it is for.
    pub description: Option<String>,
    /// Whether a run needs a value for it.
    pub required: bool,
    /// Where it is declared.
    pub location: Location,
}

/// An environment as the file has it.
#[derive(Debug, Clone)]
pub struct EnvironmentDecl {
    /// See [`Environment::confirm`].
    pub confirm: bool,
    /// See [`Environment::rehearsal`].
    pub rehearsal: bool,
    /// See [`Environment::embedded`].
    pub embedded: bool,
    /// What the embedded lab starts.
    pub lab: Option<Lab>,
    /// Named things.
    pub resources: BTreeMap<Section, BTreeMap<String, Resource>>,
    /// Values of parameters, of their declared types.
    pub params: BTreeMap<String, Value>,
    /// Its own secrets.
    pub secrets: BTreeMap<String, SecretRef>,
    /// Where it is declared.
    pub location: Location,
}

/// What the embedded lab of an environment starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lab {
    /// The host on which the application runs at the beginning.
    pub app_host: String,
    /// The public name that the customer asks for.
    pub name: String,
    /// Its TTL at the beginning.
    pub ttl: Duration,
    /// How often the customer places an order.
    pub order_every: Duration,
}

impl Inventory {
    /// Finds an environment.
    ///
    /// # Errors
    /// `RB0105` with the closest name or those that there are.
    pub fn declared(&self, name: &str) -> Result<&EnvironmentDecl> {
        self.environments.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.environments.keys().map(String::as_str).collect();
            let hint = match (closest(name, known.iter().copied()), known.is_empty()) {
                (Some(c), _) => format!("did you mean \"{c}\"?"),
                (None, true) => format!("{} has no environments: add [environments.{name}]", self.file),
                (None, false) => format!("there are: {}", known.join(", ")),
            };
            Error::new(Code::UNKNOWN_ENVIRONMENT, format!("there is no environment \"{name}\" in {}", self.file)).hint(hint)
        })
    }

    /// Resolves an environment. `given` are parameters from the command line; `overlay` fills settings that are missing, with what the
    /// embedded lab knows (`{"hosts":{"old":{"ssh":"…"}},"secrets":{"key":{"file":"…"}}}`).
    ///
    /// # Errors
    /// `RB0105` for an unknown environment, `RB0107` for a required parameter without a value, `RB0108` for one with a wrong value or
    /// that nothing declares, `RB0114` for a setting that is still missing with the overlay.
    pub fn environment(&self, name: &str, given: &BTreeMap<String, String>, overlay: Option<&Json>) -> Result<Environment> {
        let decl = self.declared(name)?;
        let mut env = Environment {
            name: name.to_string(),
            confirm: decl.confirm,
            rehearsal: decl.rehearsal,
            embedded: decl.embedded,
            resources: decl.resources.clone(),
            params: self.parameters(decl, given)?,
            secrets: self.secrets.clone(),
        };
        env.secrets.extend(decl.secrets.clone());
        if let Some(overlay) = overlay {
            fill(&mut env, overlay)?;
        }
        if !decl.embedded || overlay.is_some() {
            complete(&env)?;
        }
        Ok(env)
    }

    fn parameters(&self, decl: &EnvironmentDecl, given: &BTreeMap<String, String>) -> Result<BTreeMap<String, Value>> {
        let mut params: BTreeMap<String, Value> = self.params.iter().filter_map(|(k, d)| Some((k.clone(), d.default.clone()?))).collect();
        params.extend(decl.params.clone());
        for (name, text) in given {
            let ty = match (self.params.get(name), decl.params.get(name)) {
                (Some(d), _) => d.ty.clone(),
                (None, Some(v)) => type_of_value(v),
                (None, None) => return Err(self.undeclared(name, decl)),
            };
            params.insert(name.clone(), typed(name, &ty, text)?);
        }
        for (name, d) in &self.params {
            if d.required && !params.contains_key(name) {
                let what = d.description.as_deref().map(|t| format!(" ({})", t.trim_end_matches('.'))).unwrap_or_default();
                return Err(Error::new(Code::MISSING_PARAM, format!("parameter \"{name}\" has no value{what}"))
                    .hint(format!("give it with --param {name}=…, or set it in the environment's params"))
                    .at(d.location.clone()));
            }
        }
        Ok(params)
    }

    fn undeclared(&self, name: &str, decl: &EnvironmentDecl) -> Error {
        let known = || self.params.keys().chain(decl.params.keys()).map(String::as_str);
        let hint = match closest(name, known()) {
            Some(c) => format!("did you mean \"{c}\"?"),
            None => format!("declare it in [params] of {}", self.file),
        };
        Error::new(Code::BAD_PARAM, format!("no parameter is called \"{name}\"")).hint(hint)
    }
}

/// Reads a parameter's value from the command line.
fn typed(name: &str, ty: &Ty, text: &str) -> Result<Value> {
    let value = match ty {
        Ty::Int => text.parse().ok().map(Value::Int),
        Ty::Float => text.parse().ok().filter(|f: &f64| f.is_finite()).map(Value::Float),
        Ty::Bool => text.parse().ok().map(Value::Bool),
        Ty::List(_) if text.is_empty() => Some(Value::List(vec![])),
        Ty::List(_) => Some(Value::List(text.split(',').map(|t| t.trim().into()).collect())),
        _ => ty.coerce(text.into()).ok(),
    };
    value.ok_or_else(|| {
        let hint = match ty {
            Ty::Bool => "write true or false",
            Ty::Duration => "write it like 250ms, 10s, 2h30m or 1d",
            Ty::Bytes => "write it like 512B, 64MiB or 1.5GB",
            _ => "see its declaration in runbook.toml",
        };
        Error::new(Code::BAD_PARAM, format!("parameter \"{name}\" is of type {ty}, and \"{text}\" is not")).hint(hint)
    })
}

fn type_of_value(v: &Value) -> Ty {
    match v {
        Value::Bool(_) => Ty::Bool,
        Value::Int(_) => Ty::Int,
        Value::Float(_) => Ty::Float,
        Value::List(_) => Ty::List(Box::new(Ty::Str)),
        _ => Ty::Str,
    }
}

/// Adds what the overlay knows and the file does not say.
fn fill(env: &mut Environment, overlay: &Json) -> Result<()> {
    for section in Section::ALL {
        let Some(named) = overlay.get(section.key()).and_then(Json::as_object) else { continue };
        let Some(resources) = env.resources.get_mut(&section) else { continue };
        for (name, settings) in named {
            let (Some(resource), Some(settings)) = (resources.get_mut(name), settings.as_object()) else { continue };
            for (key, value) in settings {
                if !resource.settings.contains_key(key) {
                    resource.settings.insert(key.clone(), Value::from_json(value)?);
                }
            }
        }
    }
    for (name, source) in overlay.get("secrets").and_then(Json::as_object).into_iter().flatten() {
        if !env.secrets.contains_key(name) {
            let source = serde_json::from_value(source.clone())
                .map_err(|e| Error::internal(format!("the lab's secret \"{name}\" cannot be read: {e}")))?;
            env.secrets.insert(name.clone(), source);
        }
    }
    Ok(())
}

/// Sees to it that nothing that is needed is missing.
fn complete(env: &Environment) -> Result<()> {
    for (section, resources) in &env.resources {
        for r in resources.values() {
            let Some(kind) = schema::kind(*section, &r.kind) else { continue };
            for f in kind.fields.iter().filter(|f| f.need != Need::Optional) {
                if !r.settings.contains_key(f.key) {
                    let word = section.word();
                    return Err(Error::new(Code::INVENTORY_MISSING, format!("{word} \"{}\" has no \"{}\" in runbook.toml", r.name, f.key))
                        .hint(format!("add {} = …  ({})", f.key, f.doc.trim_end_matches('.'))));
                }
            }
        }
    }
    Ok(())
}

impl Environment {
    /// The form that is kept with a run, as `@environment.json`. Secrets are in it by reference only.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let values = |m: &BTreeMap<String, Value>| Json::Object(m.iter().map(|(k, v)| (k.clone(), v.to_json())).collect());
        let mut resources = serde_json::Map::new();
        for (section, named) in &self.resources {
            let named: serde_json::Map<String, Json> =
                named.iter().map(|(name, r)| (name.clone(), json!({ "kind": r.kind, "settings": values(&r.settings) }))).collect();
            resources.insert(section.key().into(), Json::Object(named));
        }
        json!({
            "name": self.name,
            "confirm": self.confirm,
            "rehearsal": self.rehearsal,
            "embedded": self.embedded,
            "resources": resources,
            "params": values(&self.params),
            "secrets": self.secrets,
        })
    }

    /// Reads what [`Environment::to_json`] made.
    ///
    /// # Errors
    /// `RB0004` when it is not such a form.
    pub fn from_json(json: &Json) -> Result<Environment> {
        let bad = |what: &str| Error::new(Code::STORE_DAMAGED, format!("the environment kept with the run cannot be read: {what}"));
        let object = |j: Option<&Json>, what: &str| j.and_then(Json::as_object).cloned().ok_or_else(|| bad(what));
        let values = |m: serde_json::Map<String, Json>| -> Result<BTreeMap<String, Value>> {
            m.iter().map(|(k, v)| Ok((k.clone(), Value::from_json(v)?))).collect()
        };
        let flag = |key: &str| json.get(key).and_then(Json::as_bool).unwrap_or(false);
        let mut env = Environment {
            name: json.get("name").and_then(Json::as_str).ok_or_else(|| bad("name"))?.to_string(),
            confirm: flag("confirm"),
            rehearsal: flag("rehearsal"),
            embedded: flag("embedded"),
            params: values(object(json.get("params"), "params")?)?,
            secrets: serde_json::from_value(json.get("secrets").cloned().unwrap_or_default()).map_err(|e| bad(&e.to_string()))?,
            ..Environment::default()
        };
        let resources = object(json.get("resources"), "resources")?;
        for section in Section::ALL {
            let mut named = BTreeMap::new();
            for (name, r) in resources.get(section.key()).and_then(Json::as_object).into_iter().flatten() {
                let kind = r.get("kind").and_then(Json::as_str).ok_or_else(|| bad(name))?.to_string();
                let settings = values(object(r.get("settings"), name)?)?;
                named.insert(name.clone(), Resource { name: name.clone(), kind, settings });
            }
            env.resources.insert(section, named);
        }
        Ok(env)
    }
}
