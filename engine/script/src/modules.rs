//! Where scripts come from: modules of the standard library by `std/NAME`, files of the project by path, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rhai::{AST, Engine, EvalAltResult, Module, ModuleResolver, Position, Scope, Shared};
use runbook_core::error::Location;
use runbook_core::primitive::Files;
use runbook_core::suggest::closest;
use runbook_core::{Code, Error, Result};

use crate::fault::raise;

/// The modules that are compiled in, by name.
pub const STDLIB: &[(&str, &str)] = &[("dns", include_str!("../../../stdlib/dns.rhai")), ("sql", include_str!("../../../stdlib/sql.rhai"))];

/// The texts of scripts, each read once.
pub struct Sources {
    files: Arc<dyn Files>,
    texts: Mutex<BTreeMap<String, Arc<str>>>,
    compiled: Mutex<BTreeMap<String, Shared<Module>>>,
}

impl Sources {
    /// Reads from these files.
    #[must_use]
    pub fn new(files: Arc<dyn Files>) -> Arc<Self> {
        Arc::new(Sources { files, texts: Mutex::default(), compiled: Mutex::default() })
    }

    /// The text of a script by its path in the project, or `std/NAME`.
    ///
    /// # Errors
    /// `RB0209` for an unknown module of the library; what the files say.
    pub fn text(&self, path: &str) -> Result<Arc<str>> {
        if let Some(t) = self.texts.lock().get(path) {
            return Ok(t.clone());
        }
        let text: Arc<str> = match path.strip_prefix("std/") {
            Some(name) => STDLIB.iter().find(|(n, _)| *n == name).map(|(_, t)| Arc::from(*t)).ok_or_else(|| {
                let mut e = Error::new(Code::BAD_IMPORT, format!("the standard library has no module \"{path}\""));
                e.hint = closest(name, STDLIB.iter().map(|(n, _)| *n)).map(|c| format!("did you mean \"std/{c}\"?"));
                e
            })?,
            None => {
                let bytes = self.files.read(path)?;
                let text = String::from_utf8(bytes).map_err(|_| Error::new(Code::SYNTAX, format!("{path} is not UTF-8 text")))?;
                text.into()
            }
        };
        self.texts.lock().insert(path.to_string(), text.clone());
        Ok(text)
    }

    /// Takes the library's modules as a run kept them: a newer version of this program must not change what it does.
    pub fn keep_library(&self, kept: &BTreeMap<String, Vec<u8>>) {
        let library = kept.iter().filter(|(p, _)| p.starts_with("std/"));
        self.texts.lock().extend(library.filter_map(|(p, t)| Some((p.clone(), std::str::from_utf8(t).ok()?.into()))));
    }

    /// Every text read so far, by path, the library's modules as `std/NAME`.
    #[must_use]
    pub fn read_so_far(&self) -> BTreeMap<String, Vec<u8>> {
        self.texts.lock().iter().map(|(p, t)| (p.clone(), t.as_bytes().to_vec())).collect()
    }
}

/// Finds the file that an import means: `std/NAME`, `./x` beside the importing file, anything else from the project's folder.
///
/// # Errors
/// `RB0110` when it would leave the project.
pub fn locate(importer: &str, import: &str) -> Result<String> {
    if import.starts_with("std/") {
        return Ok(import.to_string());
    }
    let outside = || {
        Error::new(Code::OUTSIDE_PROJECT, format!("the import \"{import}\" leaves the project folder"))
            .hint("a runbook can only import std/… and files of its own project")
    };
    if import.starts_with('/') || import.contains('\\') || import.contains('\0') {
        return Err(outside());
    }
    let mut parts: Vec<&str> = Vec::new();
    if import.starts_with("./") || import.starts_with("../") {
        parts.extend(importer.split('/'));
        parts.pop();
    }
    for p in import.split('/') {
        match p {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(outside)?;
            }
            p => parts.push(p),
        }
    }
    let path = parts.join("/");
    Ok(if path.ends_with(".rhai") { path } else { format!("{path}.rhai") })
}

/// Resolves imports at run time.
pub struct Resolver(pub Arc<Sources>);

impl Resolver {
    fn load(&self, engine: &Engine, importer: &str, import: &str) -> Result<Shared<Module>, Box<EvalAltResult>> {
        let path = locate(importer, import).map_err(|e| raise(e, Position::NONE))?;
        if let Some(m) = self.0.compiled.lock().get(&path) {
            return Ok(m.clone());
        }
        let ast = compile(engine, &self.0, &path).map_err(|e| raise(e, Position::NONE))?;
        let module: Shared<Module> = Module::eval_ast_as_new(Scope::new(), &ast, engine)?.into();
        self.0.compiled.lock().insert(path, module.clone());
        Ok(module)
    }
}

impl ModuleResolver for Resolver {
    fn resolve(&self, engine: &Engine, source: Option<&str>, path: &str, pos: Position) -> Result<Shared<Module>, Box<EvalAltResult>> {
        self.load(engine, source.unwrap_or(""), path).map_err(|mut e| {
            if e.position().is_none() {
                e.set_position(pos);
            }
            e
        })
    }
}

/// Parses a script.
///
/// # Errors
/// `RB0200` and its like with the place; what the files say.
pub fn compile(engine: &Engine, sources: &Sources, path: &str) -> Result<AST> {
    let text = sources.text(path)?;
    let mut ast = engine.compile(text.as_ref()).map_err(|e| {
        let at = e.position();
        let location = Location { file: path.to_string(), line: at.line().unwrap_or(1), column: at.position().unwrap_or(0) };
        crate::fault::parse_error(e.err_type(), Some(location))
    })?;
    ast.set_source(path);
    Ok(ast)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_stay_in_the_project() {
        assert_eq!(locate("runbooks/a/runbook.rhai", "./lib").unwrap(), "runbooks/a/lib.rhai");
        assert_eq!(locate("runbooks/a/runbook.rhai", "../b/x.rhai").unwrap(), "runbooks/b/x.rhai");
        assert_eq!(locate("runbooks/a/runbook.rhai", "lib/x").unwrap(), "lib/x.rhai");
        assert_eq!(locate("a.rhai", "std/sql").unwrap(), "std/sql");
        for bad in ["../x", "/etc/passwd", "lib/../../x", "a\\b"] {
            assert_eq!(locate("a.rhai", bad).unwrap_err().code, Code::OUTSIDE_PROJECT, "{bad}");
        }
    }
}
