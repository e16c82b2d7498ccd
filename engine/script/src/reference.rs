//! The reference pages that are made from Specs: a page for each type with its functions, methods and records, a table of all
//! primitives, and the language. `tests/it/docs.rs` compares them with `docs/reference/`. Names no primitive.

mod language;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use runbook_core::primitive::Registry;
use runbook_core::{Code, Effect, Param, Spec, Ty, TypeSpec};

pub use language::page as language;

/// How a generated page says so, and how it is made again.
pub const WRITTEN: &str =
    "<!-- Written from the declarations in the code; a test keeps it true. UPDATE_DOCS=1 cargo test --test it docs:: -->";

/// The page for functions that belong to no type.
const OTHERS: &str = "functions";

/// Every generated page by its path below `docs/reference/`.
#[must_use]
pub fn pages(registry: &Registry) -> BTreeMap<String, String> {
    let book = Book::new(registry);
    let mut out = BTreeMap::from([("language.md".to_string(), language()), ("primitives/README.md".to_string(), book.index())]);
    for (page, types) in &book.pages {
        out.insert(format!("primitives/{page}.md"), book.page(page, types));
    }
    out
}

/// Which page everything is on.
struct Book<'a> {
    registry: &'a Registry,
    specs: Vec<&'a Spec>,
    /// Types by page: those with methods have a page each, plain records are on the page of what returns them.
    pages: BTreeMap<String, Vec<&'a TypeSpec>>,
    /// The page of each type.
    homes: BTreeMap<&'a str, String>,
}

/// The names of the record types in a type.
fn names<'t>(ty: &'t Ty, out: &mut Vec<&'t str>) {
    match ty {
        Ty::Record(name) => out.push(name),
        Ty::List(t) | Ty::Map(t) => names(t, out),
        Ty::OneOf(all) => all.iter().for_each(|t| names(t, out)),
        _ => {}
    }
}

fn page_name(ty: &str) -> String {
    let mut out = String::new();
    for (i, c) in ty.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push('-');
        }
        out.extend(c.to_lowercase());
    }
    out
}

impl<'a> Book<'a> {
    fn new(registry: &'a Registry) -> Self {
        let specs: Vec<&Spec> = registry.specs().collect();
        let owners: BTreeSet<&str> = specs.iter().filter_map(|s| s.on).collect();
        let mut homes: BTreeMap<&str, String> = owners.iter().map(|t| (*t, page_name(t))).collect();
        // A record is described where it is first returned; records within records follow them.
        let mut todo: Vec<(String, Vec<&str>)> = Vec::new();
        for s in &specs {
            let mut found = Vec::new();
            names(&s.returns, &mut found);
            todo.push((s.on.map_or(OTHERS.to_string(), page_name), found));
        }
        for owner in &owners {
            let mut found = Vec::new();
            registry.types.get(owner).into_iter().flat_map(|t| &t.fields).for_each(|f| names(&f.ty, &mut found));
            todo.push((page_name(owner), found));
        }
        // Methods first: a function that returns a plain record gives it a home only when no method does.
        todo.sort_by_key(|(page, _)| page == OTHERS);
        let mut next = 0;
        while let Some((page, found)) = todo.get(next).cloned() {
            next += 1;
            for name in found {
                if homes.contains_key(name) {
                    continue;
                }
                homes.insert(name, page.clone());
                let mut inner = Vec::new();
                registry.types.get(name).into_iter().flat_map(|t| &t.fields).for_each(|f| names(&f.ty, &mut inner));
                todo.push((page.clone(), inner));
            }
        }
        let mut pages: BTreeMap<String, Vec<&TypeSpec>> = BTreeMap::new();
        for t in registry.types.values() {
            let page = homes.entry(t.name).or_insert_with(|| OTHERS.to_string());
            pages.entry(page.clone()).or_default().push(t);
        }
        let mut book = Book { registry, specs, pages, homes };
        for s in book.specs.clone() {
            let page = book.page_of(s);
            book.pages.entry(page).or_default();
        }
        // The type with the methods leads its page.
        for types in book.pages.values_mut() {
            types.sort_by_key(|t| (!owners.contains(t.name), t.name));
        }
        book
    }

    /// The page of a function or method: its type's, or that of the type which it makes.
    fn page_of(&self, s: &Spec) -> String {
        if let Some(on) = s.on {
            return page_name(on);
        }
        let mut found = Vec::new();
        names(&s.returns, &mut found);
        found.iter().find_map(|n| self.homes.get(n).cloned()).unwrap_or_else(|| OTHERS.to_string())
    }

    /// A type as text, with links to the record types in it.
    fn ty(&self, ty: &Ty, here: &str) -> String {
        let mut text = ty.to_string();
        let mut found = Vec::new();
        names(ty, &mut found);
        found.sort_unstable();
        found.dedup();
        for name in found {
            let Some(home) = self.homes.get(name).filter(|_| self.registry.types.contains_key(name)) else { continue };
            let anchor = name.to_lowercase();
            let target = if home == here { format!("#{anchor}") } else { format!("{home}.md#{anchor}") };
            text = text.replace(name, &format!("[{name}]({target})"));
        }
        text
    }

    fn table(&self, out: &mut String, title: &str, params: &[Param], here: &str) {
        if params.is_empty() {
            return;
        }
        let _ = writeln!(out, "| {title} | type | |\n|---|---|---|");
        for p in params {
            let optional = if p.optional && title == "argument" { " (may be left out)" } else { "" };
            let _ = writeln!(out, "| `{}` | {}{optional} | {} |", p.name, self.ty(&p.ty, here), cell(p.doc));
        }
        out.push('\n');
    }

    fn spec(&self, out: &mut String, s: &Spec, here: &str) {
        let _ = writeln!(out, "### {}\n\n```\n{}\n```\n", s.full_name(), s.signature());
        let _ = writeln!(out, "{}\n\n*Effect:* {}.\n", s.doc.trim(), effect(s.effect));
        self.table(out, "argument", &s.params, here);
        self.table(out, "option", &s.options, here);
        if s.returns != Ty::Unit {
            let _ = writeln!(out, "*Returns* {}.\n", self.ty(&s.returns, here));
        }
        if !s.errors.is_empty() {
            let list: Vec<String> = s.errors.iter().map(|c| error(*c)).collect();
            let _ = writeln!(out, "*Errors:* {}.\n", list.join("; "));
        }
        if !s.example.trim().is_empty() {
            let _ = writeln!(out, "```rhai\n{}\n```\n", s.example.trim());
        }
    }

    fn page(&self, page: &str, types: &[&TypeSpec]) -> String {
        let lead = types.first().filter(|t| page_name(t.name) == page);
        let title = lead.map_or("Functions of no type", |t| t.name);
        let mut out = format!("# {title}\n\n{WRITTEN}\n\n");
        if lead.is_none() {
            out.push_str(
                "What the engine itself has (`param`, `log`, `sleep` and so on) is on the page of [the language](../language.md).\n\n",
            );
        }
        for s in self.specs.iter().filter(|s| s.on.is_none() && self.page_of(s) == page) {
            self.spec(&mut out, s, page);
        }
        for t in types {
            // The lead's name is the page's title as well, so that links to it need no anchor of their own.
            let _ = writeln!(out, "## {}\n\n{}\n", t.name, t.doc.trim());
            self.table(&mut out, "property", &t.fields, page);
            if t.open {
                out.push_str("It may have further properties.\n\n");
            }
            for s in self.specs.iter().filter(|s| s.on == Some(t.name)) {
                self.spec(&mut out, s, page);
            }
        }
        tidy(out)
    }

    fn index(&self) -> String {
        let mut out = format!("# Every primitive\n\n{WRITTEN}\n\n");
        out.push_str("What scripts can do to the world. The words, the functions of the engine and the types are on the page of [the language](../language.md).\n\n");
        for e in [Effect::Pure, Effect::Read, Effect::Converge, Effect::Once] {
            let _ = writeln!(out, "- {}", effect(e));
        }
        out.push_str("\n| primitive | effect | |\n|---|---|---|\n");
        for s in &self.specs {
            let page = self.page_of(s);
            let (name, anchor) = (s.full_name(), s.full_name().to_lowercase().replace('.', ""));
            let _ = writeln!(out, "| [`{name}`]({page}.md#{anchor}) | {} | {} |", s.effect.name(), cell(first_sentence(s.doc)));
        }
        tidy(out)
    }
}

/// What an effect means, after its name.
fn effect(e: Effect) -> String {
    let what = match e {
        Effect::Pure => "needs nothing but the inventory; evaluated again on replay, never recorded",
        Effect::Read => "looks; may be repeated; its result is recorded",
        Effect::Converge => "writes, and is safe to repeat",
        Effect::Once => "must not happen twice; after a crash the far side is asked",
    };
    format!("`{}`: {what}", e.name())
}

fn error(c: Code) -> String {
    format!("[{c}](../../errors/{c}.md) {}", c.title())
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn first_sentence(doc: &str) -> &str {
    let paragraph = doc.trim().split("\n\n").next().unwrap_or("");
    paragraph.find(". ").map_or(paragraph, |i| paragraph.get(..=i).unwrap_or(paragraph))
}

/// One newline at the end, no two empty lines.
fn tidy(mut out: String) -> String {
    while out.contains("\n\n\n") {
        out = out.replace("\n\n\n", "\n\n");
    }
    format!("{}\n", out.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        let mut r = Registry::default();
        let nothing = |_: &runbook_core::inventory::Environment, _: &runbook_core::Call| Ok(runbook_core::Value::Unit);
        r.add_pure(Spec::function("box_of", Effect::Pure, "Names a box. It is not opened.").returns(Ty::Record("BigBox")), nothing);
        r.add_pure(
            Spec::method("BigBox", "open", Effect::Pure, "Opens it: one | two.\n\nMore of it.")
                .arg("key", Ty::Str, "The key, a|b.")
                .option("slowly", Ty::Bool, "Whether to take care.")
                .returns(Ty::List(Box::new(Ty::Record("Content"))))
                .example("box_of().open(\"k\");")
                .errors(&[Code::USAGE]),
            nothing,
        );
        r.add_type(TypeSpec::new("BigBox", "A box."));
        r.add_type(TypeSpec::new("Content", "What is in it.").field("parts", Ty::List(Box::new(Ty::Record("Part"))), "Its parts."));
        r.add_type(TypeSpec::new("Part", "A part.").field("size", Ty::Bytes, "How large."));
        r
    }

    #[test]
    fn a_page_has_the_function_that_makes_the_type_its_methods_and_their_records() {
        let all = pages(&registry());
        assert_eq!(all.keys().collect::<Vec<_>>(), ["language.md", "primitives/README.md", "primitives/big-box.md"]);
        let page = &all["primitives/big-box.md"];
        let order = ["# BigBox", "### box_of", "## BigBox", "### BigBox.open", "## Content", "## Part"];
        let places: Vec<usize> = order.iter().map(|h| page.find(&format!("{h}\n")).unwrap_or_else(|| panic!("{h} in {page}"))).collect();
        assert!(places.windows(2).all(|w| w[0] < w[1]), "{page}");
        for part in [
            "*Returns* array of [Content](#content).",
            "| `key` | string | The key, a\\|b. |",
            "| `slowly` | bool | Whether to take care. |",
            "*Errors:* [RB0100](../../errors/RB0100.md) Wrong usage.",
            "```rhai\nbox_of().open(\"k\");\n```",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
    }

    #[test]
    fn the_table_has_every_primitive_with_its_first_sentence() {
        let index = &pages(&registry())["primitives/README.md"];
        assert!(index.contains("| [`box_of`](big-box.md#box_of) | pure | Names a box. |"), "{index}");
        assert!(index.contains("| [`BigBox.open`](big-box.md#bigboxopen) | pure | Opens it: one \\| two. |"), "{index}");
    }
}
