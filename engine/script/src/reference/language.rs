//! The page of the language: words, functions of the engine, types, modules of the standard library, limits.

use std::fmt::Write as _;

use super::{WRITTEN, tidy};
use crate::builtins::DOCS;
use crate::engine::{MAX_CALLS, MAX_ITEMS, MAX_OPERATIONS, MAX_STRING};
use crate::modules::STDLIB;
use crate::words::WORDS;
use crate::words::parallel::MAX_BRANCHES;

const INTRO: &str = "A runbook is a script in [Rhai](https://rhai.rs/book/) with a few words added. Lines that begin with `//!` at its head say what it is \
for. This page lists what is added and what is taken away; everything that touches the world is in the table of [every primitive](primitives/README.md).";

const WORDS_NOTE: &str = "The words can stand wherever an expression can: in functions, modules, loops and closures. A name must be unique within its parent; in a \
loop, build it from the loop's value. `return`, `break` and `continue` may not leave the block of a word. After the block of a word a line that begins with an operator or \
a bracket would be read as going on, so end the block with a semicolon there; `irreversible \"why\"` needs one too when something follows.";

/// Types that belong to the engine: name, how a value is made, what it can do. As in `types.rs`.
const TYPES: &[(&str, &str, &str)] = &[
    (
        "Duration",
        "`duration(\"2h30m\")`; parts run from large to small, in `w`, `d`, `h`, `m`, `s`, `ms`. Where a primitive or a word wants a Duration, the text alone does.",
        "`+` and `-` with another (never below zero), `*` with a whole number, comparisons, `.seconds` and `.ms` as whole numbers. Shows as `2h30m`.",
    ),
    (
        "Bytes",
        "`bytes(\"64MiB\")` or `bytes(1024)`; units are `B`, `kB`, `MB`, `GB`, `TB` (powers of 1000), `KiB`, `MiB`, `GiB`, `TiB` and `M`, `G`, `T` (powers of 1024). Where a \
         primitive wants Bytes, the text alone does.",
        "`+` and `-` with another (never below zero), `*` with a whole number, comparisons, `.count` in bytes. Shows as `64MiB`.",
    ),
    (
        "Time",
        "primitives that return it: a moment in UTC.",
        "`-` with another gives a Duration, `+` and `-` with a Duration a Time; comparisons. Shows as RFC 3339.",
    ),
    (
        "Secret",
        "`secret(\"name\")`, by its name in `[secrets]` of the inventory.",
        "Only to be handed to a primitive that takes one. Shows as `secret(\"name\")`; `.name` is its name. Its value cannot be read by a script and is struck from everything that is stored or shown.",
    ),
    (
        "Results",
        "`each`: a value for every item, by its name, in the order of the list.",
        "`.value(name)`, `[name]` or `.name` is a value; `.ok()`, `.failed()` and `.not_begun()` are names, the last two only with `tolerate`; `.error(name)` is what went wrong, a map \
         as `catch` has it; `.values()` and `.len()` are of those that went well; `.to_map()` is a plain map, and what a primitive gets.",
    ),
];

/// What Rhai has and runbooks do not.
const TAKEN: &str = "Between two primitives a script is deterministic, since replay depends on it. So there is no clock, no `timestamp`, no random number, no `eval` and no access to files, \
processes or the network but through primitives. Rhai's own `sleep(seconds)` and `exit()` are refused with a hint. `print` shows a line and records nothing; `log` records it. Variables must be \
declared before they are used, and reading a key that a map does not have is an error. `new`, `default`, `shared`, `package` and `public`, which Rhai reserves, are ordinary names.";

const VALUES: &str = "Primitives take and return plain values: `()`, booleans, whole numbers, fractions, text, blobs, arrays, maps, the types above, and records and handles of the types in the reference. \
Functions and closures cannot be given to a primitive ([RB0213](../errors/RB0213.md)). Two handles of the same type and name are equal.";

const ERRORS: &str = "A primitive that fails throws a map with `code`, `message`, `hint`, `host` and `retryable`, which `try { … } catch (e) { … }` sees. When branches fail it also has `failures`, a map from name to \
such a map, and `not_begun`, an array of names. What stops the run itself cannot be caught: \
interruption, a pause, a rollback, a mismatch with the record, an action in doubt, a store that fails.";

/// The text.
#[must_use]
pub fn page() -> String {
    let mut out = format!("# The language\n\n{WRITTEN}\n\n{INTRO}\n\n## Words\n\n{WORDS_NOTE}\n\n");
    for w in WORDS {
        let _ = writeln!(out, "### {}\n\n```\n{}\n```\n\n{}\n", w.name, w.syntax, codes(w.doc));
    }
    out.push_str("## Functions of the engine\n\n| function | |\n|---|---|\n");
    for (_, signature, doc) in DOCS {
        let _ = writeln!(out, "| `{signature}` | {} |", doc.replace('|', "\\|"));
    }
    let _ = writeln!(out, "\n## Types\n");
    for (name, made, does) in TYPES {
        let _ = writeln!(out, "### {name}\n\n*Made by* {made}\n\n{does}\n");
    }
    let _ = writeln!(out, "### Values\n\n{VALUES}\n\n### Errors\n\n{ERRORS}\n\n## What is taken away\n\n{TAKEN}\n");
    out.push_str("## Modules\n\n`import \"std/NAME\" as x;` takes a module of the standard library, `import \"./x\" as x;` a file beside the importing one, anything else a file counted from the project's \
                  folder; `.rhai` may be left out. An import cannot leave the project. The top level of a module only defines; its functions act when they are called.\n\n");
    for (name, text) in STDLIB {
        module(&mut out, name, text);
    }
    let _ = writeln!(
        out,
        "## Limits\n\nA script that goes over one ends with [RB0207](../errors/RB0207.md).\n\n| what | at most |\n|---|---|\n| operations evaluated | {MAX_OPERATIONS} |\n| depth of calls | {MAX_CALLS} |\n\
         | a text | {MAX_STRING} bytes |\n| items of an array or a map | {MAX_ITEMS} |\n| branches at the same time | {MAX_BRANCHES}; the others wait |"
    );
    tidy(out)
}

/// Makes links of the codes in a text.
fn codes(text: &str) -> String {
    let words: Vec<String> = text
        .split(' ')
        .map(|w| {
            let code = w.trim_end_matches(|c: char| !c.is_ascii_digit());
            let is = code.len() == 6 && code.starts_with("RB") && code.get(2..).is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()));
            if is { w.replace(code, &format!("[{code}](../errors/{code}.md)")) } else { w.to_string() }
        })
        .collect();
    words.join(" ")
}

/// A module: its head and its functions with the comments above them.
fn module(out: &mut String, name: &str, text: &str) {
    let head: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("//!")).map(str::trim).collect();
    let _ = writeln!(out, "### std/{name}\n\n{}\n\n| function | |\n|---|---|", head.join(" "));
    let mut doc: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some(d) = line.strip_prefix("///") {
            doc.push(d.trim());
            continue;
        }
        if let Some(signature) = line.strip_prefix("fn ").and_then(|l| l.split('{').next()) {
            let _ = writeln!(out, "| `{name}::{}` | {} |", signature.trim(), doc.join(" ").replace('|', "\\|"));
        }
        doc.clear();
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_word_function_and_module() {
        let page = page();
        let all = WORDS.iter().map(|w| w.name).chain(DOCS.iter().map(|d| d.0)).chain(STDLIB.iter().map(|m| m.0));
        for name in all {
            assert!(page.contains(name), "{name}");
        }
        assert!(page.contains("| `sql::require_equal(a, b)` | Throws unless"), "{page}");
        assert!(page.contains("fails with [RB0020](../errors/RB0020.md) when"), "{page}");
    }
}
