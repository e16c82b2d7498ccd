//! The reference page `docs/reference/inventory.md`, written from the schema.

use std::fmt::Write as _;

use super::Section;
use super::schema::{self, Field, Need};

/// The page.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(INTRO);
    for (key, doc) in schema::TOP {
        let _ = writeln!(out, "| `{key}` | {doc} |");
    }
    out.push_str("\n## `[project]`\n\n");
    fields(&mut out, schema::PROJECT);
    out.push_str("\n## `[params]`\n\n```toml\n[params]\nsmoke_path = \"/health\"\nwindow = { type = \"duration\", default = \"10m\", description = \"How long the shop may be away\" }\n```\n\nOn the command line: `--param window=15m`; a list is separated by commas. Only declared parameters can be given.\n\n");
    pairs(&mut out, schema::PARAM);
    out.push_str("\n## `[secrets]`\n\nThe values are never in the file, nor on a command line, nor in the journal.\n\n```toml\n[secrets]\ndb-password = { env = \"DB_PASSWORD\" }\ntsig-key = { command = [\"pass\", \"show\", \"dns/tsig\"] }\n```\n\n");
    pairs(&mut out, schema::SECRET);
    out.push_str("\n## `[environments.NAME]`\n\n");
    pairs(&mut out, schema::ENVIRONMENT);
    out.push_str("\n### `lab`\n\n");
    fields(&mut out, schema::LAB);
    for section in Section::ALL {
        let _ = write!(out, "\n## `[environments.NAME.{}.NAME]`\n\nScripts: `{}(\"NAME\")`.\n", section.key(), section.word());
        for kind in schema::kinds(section) {
            let heading = if section == Section::Hosts { String::new() } else { format!("### `kind = \"{}\"`\n\n", kind.kind) };
            let _ = write!(out, "\n{heading}{}\n\n", kind.doc);
            fields(&mut out, kind.fields);
        }
    }
    out
}

const INTRO: &str = "\
# The inventory: `runbook.toml`

<!-- Written from engine/core/src/inventory/schema.rs; a test keeps it true. RUNBOOK_UPDATE_DOCS=1 cargo test -p runbook-core inventory -->

The inventory is a TOML file at the root of the project. It names the things that runbooks work on, once an environment, under the same names in
each. Unknown keys and wrong types are errors with their place. `runbook init` writes a commented one.

| key | meaning |
|---|---|
";

fn pairs(out: &mut String, rows: &[(&str, &str)]) {
    out.push_str("| key | meaning |\n|---|---|\n");
    for (key, doc) in rows {
        let _ = writeln!(out, "| `{key}` | {doc} |");
    }
}

fn fields(out: &mut String, rows: &[Field]) {
    out.push_str("| key | holds | needed | meaning |\n|---|---|---|---|\n");
    for f in rows {
        let need = match f.need {
            Need::Optional => "",
            Need::Always => "yes",
            Need::UnlessEmbedded => "unless embedded",
        };
        let _ = writeln!(out, "| `{}` | {} | {need} | {} |", f.key, f.holds.name(), f.doc);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_is_what_the_schema_says() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/inventory.md");
        if std::env::var_os("RUNBOOK_UPDATE_DOCS").is_some() {
            std::fs::write(file, super::markdown()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), super::markdown(), "run it with RUNBOOK_UPDATE_DOCS=1");
    }
}
