//! The manifest of a dump's folder: what is in it, of which moment. Its presence says that the dump is whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};

use super::job::As;
use crate::db::driver::Dumped;
use crate::ssh::{self, quote};

/// The name of the file.
pub(in crate::db) const NAME: &str = "manifest";

/// The first line of every manifest.
pub(in crate::db) const FIRST: &str = "runbook-dump\t1";

/// A file of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::db) struct File {
    /// Its name in the folder.
    pub name: String,
    /// What it holds: `rows`, `whole` (rows that are loaded as one), `schema`, `after`, or a word of the driver.
    pub kind: String,
    /// How many rows, when that is known.
    pub rows: Option<u64>,
    /// Its bytes before compression.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// The table.
    pub table: String,
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::db) struct Manifest {
    /// Single values by name: `id`, `kind`, `database`, `version`, `time`, `position` and others.
    pub fields: BTreeMap<String, String>,
    /// The files.
    pub files: Vec<File>,
}

impl Manifest {
    /// A value; empty when there is none.
    pub(in crate::db) fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// Rows of all files; `None` when it is not known of one.
    pub(in crate::db) fn rows(&self) -> Option<u64> {
        self.files.iter().filter(|f| matches!(f.kind.as_str(), "rows" | "whole")).map(|f| f.rows).sum()
    }

    /// Bytes before compression.
    pub(in crate::db) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// How many tables have rows in it.
    pub(in crate::db) fn tables(&self) -> u64 {
        self.get("tables").parse().unwrap_or(0)
    }

    /// What a dump or a load answers; a note says why there was nothing to do.
    pub(in crate::db) fn dumped(&self, note: &str) -> Dumped {
        Dumped {
            tables: self.tables(),
            rows: self.rows(),
            bytes: self.bytes(),
            position: self.get("position").to_string(),
            id: self.get("id").to_string(),
            changed: note.is_empty(),
            note: note.to_string(),
        }
    }

    /// Reads the text of a manifest; `None` when it is none.
    pub(in crate::db) fn parse(text: &str) -> Option<Manifest> {
        let mut lines = text.lines();
        if lines.next()? != FIRST {
            return None;
        }
        let mut m = Manifest::default();
        for line in lines {
            if let Some(rest) = line.strip_prefix("file\t") {
                let mut p = rest.splitn(6, '\t');
                let mut next = || p.next().unwrap_or("").to_string();
                let (name, kind, rows, bytes, sha256, table) = (next(), next(), next(), next(), next(), next());
                m.files.push(File { name, kind, rows: rows.parse().ok(), bytes: bytes.parse().ok()?, sha256, table });
            } else if let Some((k, v)) = line.split_once('\t') {
                m.fields.insert(k.to_string(), v.to_string());
            }
        }
        // Its last line: a manifest that was cut short is none.
        (m.get("end") == "yes").then_some(m)
    }
}

/// The shell function `head`, which prints the fields of a manifest.
pub(in crate::db) fn head(fields: &[(&str, &str)]) -> String {
    let mut out = "head() {\n".to_string();
    for (k, v) in fields {
        let _ = writeln!(out, "printf '%s\\t%s\\n' {k} {}", quote(&v.replace(['\n', '\t'], " ")));
    }
    out.push_str("}\n");
    out
}

/// What lies in the place of a dump's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::db) enum Place {
    /// Nothing.
    Empty,
    /// A dump that is not whole.
    Begun,
    /// A whole dump.
    Whole(Box<Manifest>),
    /// Something else.
    Foreign,
}

/// The path of a dump's folder, checked.
///
/// # Errors
/// `RB0205` when it is not absolute, or is a folder that nobody means.
pub(in crate::db) fn path(text: &str) -> Result<String> {
    let path = text.trim_end_matches('/');
    if !path.starts_with('/') || path.matches('/').count() < 2 || path.contains('\n') || path.split('/').any(|p| p == "..") {
        return Err(Error::new(Code::WRONG_TYPE, format!("\"{text}\" is no place for a dump"))
            .hint("give a folder of its own by its absolute path, such as \"/srv/dumps/shop\""));
    }
    Ok(path.to_string())
}

/// Looks at the place.
///
/// # Errors
/// Those of the connection; `RB0505` when it cannot be read.
pub(in crate::db) async fn look(cx: &Cx, host: &str, who: &As<'_>, path: &str) -> Result<Place> {
    let d = quote(path);
    let script = format!(
        "cd / && if [ ! -e {d} ]; then echo empty; exit 0; fi\ncd {d} || exit 3\n\
         if [ -e {NAME} ]; then echo manifest; cat {NAME}; exit; fi\n\
         if [ -d .job ]; then echo begun; elif [ -z \"$(ls -A)\" ]; then echo empty; else echo foreign; fi"
    );
    let done = ssh::connect(cx, host).await?.exec_again(cx, who(script)).await?;
    let text = String::from_utf8_lossy(&done.stdout);
    match text.split_once('\n').unwrap_or((&text, "")) {
        ("empty", _) => Ok(Place::Empty),
        ("begun", _) => Ok(Place::Begun),
        ("foreign", _) => Ok(Place::Foreign),
        ("manifest", rest) => Ok(Manifest::parse(rest).map_or(Place::Foreign, |m| Place::Whole(Box::new(m)))),
        _ => {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
            Err(Error::new(Code::DB_COPY, format!("{path} cannot be read: {said}"))
                .host(host)
                .hint("the folder must be readable by the user who dumps and loads"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back() {
        let text = format!("{FIRST}\nid\tact-1\nposition\tgtid=0-1-5\nfile\td1-0001.sql.zst\trows\t12\t400\tabc\to`dd\tname\nend\tyes\n");
        let m = Manifest::parse(&text).unwrap();
        assert_eq!((m.get("id"), m.rows(), m.bytes()), ("act-1", Some(12), 400));
        assert_eq!(m.files[0].table, "o`dd\tname");
        assert_eq!(Manifest::parse(text.trim_end_matches("end\tyes\n")), None);
        assert_eq!(Manifest::parse("something else\n"), None);
    }

    #[test]
    fn fields_are_one_line_each() {
        assert_eq!(
            head(&[("id", "a"), ("time", "it's\n1\t2")]),
            "head() {\nprintf '%s\\t%s\\n' id a\nprintf '%s\\t%s\\n' time 'it'\\''s 1 2'\n}\n"
        );
    }

    #[test]
    fn places_that_nobody_means() {
        for bad in ["dumps/shop", "/", "/srv", "/srv/../etc", ""] {
            assert_eq!(path(bad).unwrap_err().code, Code::WRONG_TYPE, "{bad}");
        }
        assert_eq!(path("/srv/dumps/").unwrap(), "/srv/dumps");
    }
}
