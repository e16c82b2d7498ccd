//! Secrets: where each comes from, never its value.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::DeTable;

use super::{Item, Walk};
use crate::error::Code;
use crate::inventory::{SecretRef, schema};

impl Walk<'_> {
    pub(super) fn secrets(&mut self, parent: &DeTable<'_>, what: &str) -> BTreeMap<String, SecretRef> {
        let mut found = BTreeMap::new();
        for (name, at, v) in self.named(parent, "secrets", what) {
            if let Some(r) = self.secret(&name, &at, v) {
                found.insert(name, r);
            }
        }
        found
    }

    fn secret(&mut self, name: &str, at: &Range<usize>, v: &Item<'_>) -> Option<SecretRef> {
        let what = format!("secret \"{name}\"");
        let how = "write it as { env = \"NAME\" }, { file = \"path\" } or { command = [\"program\", \"argument\"] }";
        if v.get_ref().is_str() {
            // The value itself is not repeated in the message.
            let message = format!("{what} must not be in this file: say where it comes from");
            self.report(Code::INVENTORY_TYPE, v.span(), message, Some(how.into()));
            return None;
        }
        let t = self.table(v, &what)?;
        self.keys(t, &secret_keys(), &what);
        let given: Vec<&str> = secret_keys().into_iter().filter(|k| t.contains_key(*k)).collect();
        let &[key] = given.as_slice() else {
            let message = if given.is_empty() { format!("{what} has no source") } else { format!("{what} has several sources") };
            self.report(Code::INVENTORY_MISSING, at.clone(), message, Some(how.into()));
            return None;
        };
        let value = t.get(key)?;
        if key == "command" {
            let words = value.get_ref().as_array().and_then(|a| {
                a.iter().map(|i| i.get_ref().as_str().map(str::to_string)).collect::<Option<Vec<_>>>().filter(|w| !w.is_empty())
            });
            if words.is_none() {
                self.wrong_type(value, &format!("\"command\" of {what}"), "an array of words (no shell reads it)");
            }
            return words.map(SecretRef::Command);
        }
        let text = self.text(value, &format!("\"{key}\" of {what}"))?;
        Some(if key == "env" { SecretRef::Env(text) } else { SecretRef::File(text) })
    }
}

fn secret_keys() -> Vec<&'static str> {
    schema::SECRET.iter().map(|(k, _)| *k).collect()
}
