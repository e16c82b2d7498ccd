//! Parameters: their declarations, and their values in environments.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::DeTable;

use super::{Item, Walk, free};
use crate::error::Code;
use crate::inventory::resolve::ParamDecl;
use crate::inventory::schema;
use crate::spec::Ty;
use crate::value::Value;

impl Walk<'_> {
    pub(super) fn param_decls(&mut self, root: &DeTable<'_>) -> BTreeMap<String, ParamDecl> {
        let mut found = BTreeMap::new();
        for (name, at, v) in self.named(root, "params", "[params]") {
            if let Some(d) = self.param_decl(&name, &at, v) {
                found.insert(name, d);
            }
        }
        found
    }

    fn param_decl(&mut self, name: &str, at: &Range<usize>, v: &Item<'_>) -> Option<ParamDecl> {
        let what = format!("parameter \"{name}\"");
        let location = self.src.locate(at.start);
        let Some(t) = v.get_ref().as_table() else {
            let default = self.param_value(v, &what)?;
            return Some(ParamDecl { ty: type_for(&default), default: Some(default), description: None, required: false, location });
        };
        let known: Vec<&str> = schema::PARAM.iter().map(|(k, _)| *k).collect();
        self.keys(t, &known, &what);
        let description = t.get("description").and_then(|d| self.text(d, &format!("\"description\" of {what}")));
        let required = self.flag(t, "required", &what);
        let declared = match t.get("type") {
            None => None,
            Some(ty) => {
                let given = self.text(ty, &format!("\"type\" of {what}"))?;
                let found = TYPES.iter().find(|(n, _)| *n == given);
                if found.is_none() {
                    let names: Vec<&str> = TYPES.iter().map(|(n, _)| *n).collect();
                    let hint = format!("there are: {}", names.join(", "));
                    self.report(Code::INVENTORY_TYPE, ty.span(), format!("{what}: no type is called \"{given}\""), Some(hint));
                    return None;
                }
                found.map(|(_, t)| t())
            }
        };
        let default = match t.get("default") {
            None => None,
            Some(d) => {
                let value = self.param_value(d, &what)?;
                match declared.clone().unwrap_or_else(|| type_for(&value)).coerce(value) {
                    Ok(value) => Some(value),
                    Err(e) => {
                        self.report(Code::BAD_PARAM, d.span(), format!("default of {what}: {}", e.message), e.hint);
                        return None;
                    }
                }
            }
        };
        let Some(ty) = declared.or_else(|| default.as_ref().map(type_for)) else {
            let hint = "add type = \"string\" (or another), or a default".to_string();
            self.report(Code::INVENTORY_MISSING, at.clone(), format!("{what} has neither type nor default"), Some(hint));
            return None;
        };
        Some(ParamDecl { ty, default, description, required, location })
    }

    fn param_value(&mut self, v: &Item<'_>, what: &str) -> Option<Value> {
        let value = free(v.get_ref()).filter(|v| !matches!(v, Value::Map(_)));
        if value.is_none() {
            self.wrong_type(v, what, "a text, a number, true or false, or an array");
        }
        value
    }

    pub(super) fn param_values(
        &mut self,
        env: &DeTable<'_>,
        what: &str,
        declared: &BTreeMap<String, ParamDecl>,
    ) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        for (name, _, v) in self.named(env, "params", &format!("\"params\" of {what}")) {
            let Some(value) = self.param_value(v, &format!("parameter \"{name}\"")) else { continue };
            let ty = declared.get(&name).map_or_else(|| type_for(&value), |d| d.ty.clone());
            match ty.coerce(value) {
                Ok(value) => {
                    found.insert(name, value);
                }
                Err(e) => self.report(Code::BAD_PARAM, v.span(), format!("parameter \"{name}\" of {what}: {}", e.message), e.hint),
            }
        }
        found
    }
}

/// The types that a parameter can be declared with.
pub(in crate::inventory) const TYPES: &[(&str, fn() -> Ty)] = &[
    ("string", || Ty::Str),
    ("int", || Ty::Int),
    ("float", || Ty::Float),
    ("bool", || Ty::Bool),
    ("duration", || Ty::Duration),
    ("bytes", || Ty::Bytes),
    ("list", || Ty::List(Box::new(Ty::Str))),
];

/// The type that a parameter has by its default.
fn type_for(v: &Value) -> Ty {
    match v {
        Value::Bool(_) => Ty::Bool,
        Value::Int(_) => Ty::Int,
        Value::Float(_) => Ty::Float,
        Value::Str(_) => Ty::Str,
        Value::List(l) if l.iter().all(|v| matches!(v, Value::Str(_))) => Ty::List(Box::new(Ty::Str)),
        Value::List(_) => Ty::List(Box::new(Ty::Any)),
        _ => Ty::Any,
    }
}
