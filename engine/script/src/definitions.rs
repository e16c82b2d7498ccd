//! `.d.rhai` definitions for editors, made from the same Specs as everything else.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rhai::Engine;
use runbook_core::primitive::Registry;
use runbook_core::{Param, Spec, Ty};

use crate::builtins::DOCS;
use crate::words::WORDS;

/// The definition files by name: the words and primitives, and what remains of Rhai's own library.
#[must_use]
pub fn files(engine: &Engine, registry: &Registry) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    out.insert("runbook.d.rhai".to_string(), primitives(registry));
    out.insert("words.d.rhai".to_string(), words());
    for (name, text) in engine.definitions().iter_files() {
        if name.starts_with("__builtin") || name.starts_with("__static") {
            out.insert(name, text);
        }
    }
    out
}

fn comment(out: &mut String, text: &str) {
    for line in text.lines() {
        let _ = writeln!(out, "/// {line}");
    }
}

fn ty(t: &Ty) -> String {
    match t {
        Ty::Str => "string".into(),
        Ty::Any | Ty::OneOf(_) => "?".into(),
        Ty::List(_) => "array".into(),
        Ty::Map(_) => "map".into(),
        t => t.to_string(),
    }
}

fn list(out: &mut String, title: &str, params: &[Param]) {
    if params.is_empty() {
        return;
    }
    let _ = writeln!(out, "///\n/// {title}:");
    for p in params {
        let _ = writeln!(out, "/// - `{}` ({}): {}", p.name, p.ty, p.doc);
    }
}

fn function(out: &mut String, s: &Spec) {
    comment(out, s.doc);
    let _ = writeln!(out, "///\n/// Effect: {}.", s.effect.name());
    list(out, "Arguments", &s.params);
    list(out, "Options", &s.options);
    if !s.example.is_empty() {
        let _ = writeln!(out, "///\n/// ```rhai");
        comment(out, s.example.trim());
        let _ = writeln!(out, "/// ```");
    }
    // One definition for each number of arguments.
    let (least, most) = s.arity();
    for n in least..=most {
        let mut args: Vec<String> = s.on.map(|on| format!("this: {on}")).into_iter().collect();
        args.extend(s.params.iter().take(n).map(|p| format!("{}: {}", p.name, ty(&p.ty))));
        if n > s.params.len() {
            args.push("options: map".into());
        }
        let _ = writeln!(out, "fn {}({}) -> {};", s.name, args.join(", "), ty(&s.returns));
    }
    out.push('\n');
}

fn primitives(registry: &Registry) -> String {
    let mut out = String::from("// Written by `runbook definitions`.\nmodule static;\n\n");
    for (_, signature, doc) in DOCS {
        comment(&mut out, doc);
        let _ = writeln!(out, "fn {signature};\n");
    }
    for t in registry.types.values() {
        comment(&mut out, &format!("Type {}: {}", t.name, t.doc));
        list(&mut out, "Properties", &t.fields);
        out.push_str("//\n\n");
    }
    for s in registry.specs() {
        function(&mut out, s);
    }
    out
}

fn words() -> String {
    let mut out = String::from(
        "// Written by `runbook definitions`. The words are syntax, not functions: this file is for reading.\nmodule static;\n\n",
    );
    for w in WORDS {
        comment(&mut out, &format!("`{}`\n\n{}", w.syntax, w.doc));
        out.push_str("//\n\n");
    }
    out
}
