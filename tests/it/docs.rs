//! The documentation: generated pages are those that the code gives, examples are right, links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runbook_core::inventory::{Environment, Resource, SecretRef, Section};
use runbook_core::{Code, Error, Value};
use runbook_script::check::check;
use runbook_script::engine::make;
use runbook_script::modules::Sources;
use runbook_script::reference::pages;
use runbook_testkit::World;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the documentation, and those at the root.
fn documents() -> Vec<PathBuf> {
    fn gather(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                gather(&path, out);
            } else if path.extension().is_some_and(|e| e == "md") {
                out.push(path);
            }
        }
    }
    let mut out = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    gather(&root().join("docs"), &mut out);
    gather(&root().join("runbooks"), &mut out);
    out.sort();
    out
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compares generated files with those on disk, or writes them.
fn compare(generated: &BTreeMap<PathBuf, String>) {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let mut stale = Vec::new();
    for (path, text) in generated {
        if std::fs::read_to_string(path).ok().as_deref() == Some(text.as_str()) {
            continue;
        }
        if update {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        } else {
            stale.push(path.strip_prefix(root()).unwrap().display().to_string());
        }
    }
    assert!(stale.is_empty(), "no longer what the code says: {stale:?}; run with UPDATE_DOCS=1 and read the difference");
}

#[test]
fn the_reference_is_what_the_code_says() {
    let dir = root().join("docs/reference");
    let generated: BTreeMap<PathBuf, String> =
        pages(&runbook_primitives::registry()).into_iter().map(|(path, text)| (dir.join(path), text)).collect();
    compare(&generated);
    compare(&BTreeMap::from([(dir.join("ssh-config.md"), runbook_primitives::ssh::config::keywords::markdown())]));
    let on_disk = std::fs::read_dir(dir.join("primitives")).unwrap().map(|e| e.unwrap().path());
    let left: Vec<PathBuf> = on_disk.filter(|p| !generated.contains_key(p)).collect();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        left.iter().for_each(|p| std::fs::remove_file(p).unwrap());
    } else {
        assert!(left.is_empty(), "pages of types that are gone: {left:?}; run with UPDATE_DOCS=1");
    }
}

/// Every primitive is tried against a real server, and the page says which.
#[test]
fn every_primitive_is_tried_against_a_real_server() {
    let (page, untried) = crate::tried::page();
    assert!(untried.is_empty(), "no test of a real server calls {untried:?}");
    compare(&BTreeMap::from([(root().join("docs/reference/tried.md"), page)]));
}

/// The table of contents: written by hand down to the reference, the lists after that from the files and the code.
#[test]
fn the_table_of_contents_is_complete() {
    const BY_HAND_UNTIL: &str = "\n# Reference\n";
    let file = root().join("docs/SUMMARY.md");
    let text = read(&file);
    let by_hand = text.split(BY_HAND_UNTIL).next().unwrap();
    let title_of = |page: &str| page.lines().next().unwrap().trim_start_matches("# ").replace('`', "");
    let mut whole = format!("{by_hand}{BY_HAND_UNTIL}\n");
    for file in documents().into_iter().filter(|p| p.parent() == Some(&root().join("docs/reference"))) {
        let name = file.file_name().unwrap().to_str().unwrap().to_string();
        whole.push_str(&format!("- [{}](reference/{name})\n", title_of(&read(&file))));
    }
    whole.push_str("\n# Primitives\n\n- [Every primitive](reference/primitives/README.md)\n");
    for (path, page) in pages(&runbook_primitives::registry()) {
        if let Some(name) = path.strip_prefix("primitives/").filter(|n| *n != "README.md") {
            whole.push_str(&format!("  - [{}](reference/primitives/{name})\n", title_of(&page)));
        }
    }
    whole.push_str("\n# Error codes\n\n");
    for (code, _, title) in Code::ALL {
        whole.push_str(&format!("- [{code}: {title}](errors/{code}.md)\n"));
    }
    compare(&BTreeMap::from([(file.clone(), whole)]));
    let listed: BTreeSet<PathBuf> = links(&read(&file)).into_iter().map(|l| root().join("docs").join(l)).collect();
    let docs = root().join("docs");
    let missing: Vec<PathBuf> = documents().into_iter().filter(|p| p.starts_with(&docs) && *p != file && !listed.contains(p)).collect();
    assert!(missing.is_empty(), "docs/SUMMARY.md does not list {missing:?}");
}

/// The texts of the fences of one language in a document.
fn fences(text: &str, language: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut open: Option<Option<String>> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(l)) => open = Some((l.trim() == language).then(String::new)),
            (Some(_), Some(_)) => out.extend(open.take().flatten()),
            (Some(Some(body)), None) => {
                body.push_str(line);
                body.push('\n');
            }
            _ => {}
        }
    }
    out
}

/// The literal names that a script asks the inventory for: `host("old")` gives `old` for `host`.
fn asked_for(script: &str, function: &str) -> Vec<String> {
    let call = format!("{function}(\"");
    let starts = script.match_indices(&call).filter(|(i, _)| {
        // Not the end of a longer name, nor a method.
        !script[..*i].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.')
    });
    starts.filter_map(|(i, _)| script[i + call.len()..].split('"').next().map(str::to_string)).collect()
}

/// An environment that has every name which a script asks for, and a few that scripts build.
fn environment_for(script: &str) -> Environment {
    let mut env = Environment { name: "docs".into(), ..Environment::default() };
    for section in Section::ALL {
        let named = asked_for(script, section.word());
        let resources = named.into_iter().map(|n| (n.clone(), Resource { name: n, ..Resource::default() })).collect();
        env.resources.insert(section, resources);
    }
    for role in asked_for(script, "hosts") {
        let name = format!("{}-1", role.replace(['*', '?'], "x"));
        let settings = [("roles".to_string(), Value::List(vec![role.as_str().into()]))].into();
        env.resources.entry(Section::Hosts).or_default().insert(name.clone(), Resource { name, settings, ..Resource::default() });
    }
    env.secrets = asked_for(script, "secret").into_iter().map(|n| (n, SecretRef::Env("NONE".into()))).collect();
    env
}

/// What the static check finds in a script.
fn findings(script: &str) -> Vec<Error> {
    let world = Arc::new(World::default());
    world.files.lock().insert("example.rhai".into(), script.as_bytes().to_vec());
    let registry = Arc::new(runbook_primitives::registry());
    let sources = Sources::new(world);
    let (engine, _host) = make(registry.clone(), sources.clone());
    check(&engine, &registry, &sources, "example.rhai", Some(&environment_for(script))).findings
}

fn wrong(what: &str, script: &str) -> Option<String> {
    let found = findings(script);
    let list: Vec<String> = found.iter().map(|e| format!("{e} ({:?})", e.location.as_ref().map(|l| (l.line, l.column)))).collect();
    (!list.is_empty()).then(|| format!("{what}: {}\n{script}", list.join("; ")))
}

#[test]
fn every_example_of_a_primitive_passes_the_check() {
    let registry = runbook_primitives::registry();
    let without: Vec<String> = registry.specs().filter(|s| s.example.trim().is_empty()).map(|s| s.full_name()).collect();
    assert!(without.is_empty(), "these have no example: {without:?}");
    let wrong: Vec<String> = registry.specs().filter_map(|s| wrong(&s.full_name(), s.example)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_script_in_the_documentation_passes_the_check() {
    let mut wrong_ones = Vec::new();
    let mut checked = 0;
    for file in documents() {
        for script in fences(&read(&file), "rhai") {
            checked += 1;
            wrong_ones.extend(wrong(&file.display().to_string(), &script));
        }
    }
    assert!(wrong_ones.is_empty(), "{}", wrong_ones.join("\n"));
    assert!(checked > 20, "only {checked} scripts were found");
}

#[test]
fn a_wrong_example_would_be_found() {
    assert!(findings("let z = zone(\"example.com\");").is_empty());
    assert!(!findings("let z = zone(\"example.com\"); z.no_such_method();").is_empty());
    assert!(!findings("unknown + 1").is_empty());
}

#[test]
fn every_inventory_in_the_documentation_is_right() {
    for file in documents() {
        for text in fences(&read(&file), "toml") {
            if text.contains("[environments") {
                let parsed = runbook_core::inventory::parse(&text, "runbook.toml");
                assert!(parsed.is_ok(), "{}: {:?}\n{text}", file.display(), parsed.err());
            }
        }
    }
}

/// The targets of the links of a document, fences left out.
fn links(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        }
        if inside {
            continue;
        }
        let mut rest = line;
        while let Some(i) = rest.find("](") {
            rest = &rest[i + 2..];
            out.extend(rest.split(')').next().map(str::to_string));
        }
    }
    out
}

/// The anchor that GitHub and mdBook give to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for file in documents() {
        for link in links(&read(&file)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            if !target.exists() {
                broken.push(format!("{}: {link}", file.display()));
            } else if !fragment.is_empty() && target.extension().is_some_and(|e| e == "md") {
                let text = read(&target);
                let found = text.lines().filter(|l| l.starts_with('#')).any(|l| anchor(l.trim_start_matches('#')) == fragment);
                if !found {
                    broken.push(format!("{}: {link} (no such heading)", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
