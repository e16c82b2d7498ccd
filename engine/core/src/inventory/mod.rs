//! The inventory: what `runbook.toml` says, checked, with one environment resolved.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::suggest::closest;
use crate::value::Value;

mod parse;
mod reference;
mod resolve;
pub mod schema;
mod source;
#[cfg(test)]
mod tests;

pub use parse::parse;
pub use reference::markdown as reference;
pub use resolve::{EnvironmentDecl, Inventory, Lab, ParamDecl};

/// The sections of an environment that name things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// SSH hosts.
    Hosts,
    /// Databases.
    Databases,
    /// DNS zones.
    Zones,
    /// Backup repositories.
    Backups,
    /// Reverse proxies and load balancers.
    Proxies,
    /// Docker Engines.
    Engines,
}

impl Section {
    /// The key in `runbook.toml`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Section::Hosts => "hosts",
            Section::Databases => "databases",
            Section::Zones => "zones",
            Section::Backups => "backups",
            Section::Proxies => "proxies",
            Section::Engines => "engines",
        }
    }

    /// The function that makes a handle of it in scripts.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Section::Hosts => "host",
            Section::Databases => "database",
            Section::Zones => "zone",
            Section::Backups => "backup",
            Section::Proxies => "proxy",
            Section::Engines => "docker",
        }
    }

    /// Every section.
    pub const ALL: [Section; 6] =
        [Section::Hosts, Section::Databases, Section::Zones, Section::Backups, Section::Proxies, Section::Engines];
}

/// One named thing of an environment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resource {
    /// Its name in the inventory.
    pub name: String,
    /// Its kind: `ssh` for hosts; `sqlite`, `rfc2136`, `archive`, `flag-file` and so on for the others.
    pub kind: String,
    /// Its settings, checked against the kind's schema; defaults are not filled in.
    pub settings: BTreeMap<String, Value>,
}

impl Resource {
    /// A text setting.
    #[must_use]
    pub fn str(&self, key: &str) -> Option<&str> {
        self.settings.get(key).and_then(Value::as_str)
    }

    /// A text setting that the thing cannot do without.
    ///
    /// # Errors
    /// `RB0114` naming the thing and the key.
    pub fn need(&self, key: &str) -> Result<&str> {
        self.str(key).ok_or_else(|| {
            Error::new(Code::INVENTORY_MISSING, format!("\"{}\" has no \"{key}\" in runbook.toml", self.name))
                .hint(format!("add {key} = \"…\" to its section"))
        })
    }

    /// A list of texts; empty when it is not set.
    #[must_use]
    pub fn list(&self, key: &str) -> Vec<String> {
        match self.settings.get(key) {
            Some(Value::List(l)) => l.iter().filter_map(|v| v.as_str().map(str::to_string)).collect(),
            Some(Value::Str(s)) => vec![s.clone()],
            _ => vec![],
        }
    }

    /// A setting that is true or false; false when it is not set.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.settings.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A whole-number setting.
    #[must_use]
    pub fn int(&self, key: &str) -> Option<i64> {
        self.settings.get(key).and_then(Value::as_int)
    }
}

/// Where a secret's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// An environment variable of the controller.
    Env(String),
    /// A file, relative to the project or absolute; a final newline is dropped.
    File(String),
    /// A command and its arguments; its standard output, a final newline dropped.
    Command(Vec<String>),
}

/// One environment, resolved: what scripts and primitives see.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// Whether runs ask for its name to be typed.
    pub confirm: bool,
    /// Whether it is for rehearsals.
    pub rehearsal: bool,
    /// Whether it is the embedded lab.
    pub embedded: bool,
    /// Its named things by section and name.
    pub resources: BTreeMap<Section, BTreeMap<String, Resource>>,
    /// Parameters: the project's, overridden by the environment's, overridden by the command line's.
    pub params: BTreeMap<String, Value>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, SecretRef>,
}

impl Environment {
    /// Finds a named thing.
    ///
    /// # Errors
    /// `RB0106` with the closest name there is.
    pub fn resource(&self, section: Section, name: &str) -> Result<&Resource> {
        static NONE: BTreeMap<String, Resource> = BTreeMap::new();
        let all = self.resources.get(&section).unwrap_or(&NONE);
        all.get(name).ok_or_else(|| {
            let known: Vec<&str> = all.keys().map(String::as_str).collect();
            let hint = match (closest(name, known.iter().copied()), known.is_empty()) {
                (Some(c), _) => format!("did you mean \"{c}\"?"),
                (None, true) => format!("add [environments.{}.{}.{name}] to runbook.toml", self.name, section.key()),
                (None, false) => format!("there are: {}", known.join(", ")),
            };
            Error::new(Code::UNKNOWN_NAME, format!("environment \"{}\" has no {} \"{name}\"", self.name, section.word())).hint(hint)
        })
    }
}
