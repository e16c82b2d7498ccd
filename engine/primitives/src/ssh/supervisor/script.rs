//! The shell text that goes to hosts, each in one line.
//!
//! One line, because it passes through the login's shell inside single quotes: csh takes no newline there, and `!` only before a
//! blank or `=`; fish takes a backslash there for an escape. So the texts have neither. What an operator wrote never goes that way.

use std::sync::LazyLock;

/// Joins the lines of a text without comments, as the shell's grammar wants it.
fn one_line(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let word = out.rsplit(' ').next().unwrap_or("");
        let open = matches!(word, "then" | "do" | "else" | "in") || ["{", "(", ";;", "&&", "|", "&"].iter().any(|o| out.ends_with(o));
        if !out.is_empty() {
            out.push_str(if open || line.starts_with(";;") { " " } else { " ; " });
        }
        out.push_str(line);
    }
    out
}

macro_rules! scripts {
    ($($name:ident = $($file:literal)+;)*) => { $(
        pub(in crate::ssh) fn $name() -> &'static str {
            static TEXT: LazyLock<String> = LazyLock::new(|| one_line(concat!($(include_str!($file)),+)));
            &TEXT
        }
    )*
        #[cfg(test)]
        pub(super) fn all() -> Vec<&'static str> {
            vec![$($name()),*]
        }
    };
}

scripts! {
    reader = "reader.sh";
    shell = "shell.sh";
    command = "command.sh";
    station = "place.sh" "follow.sh" "station.sh";
    run = "run.sh";
    raise = "raise.sh";
    attach = "place.sh" "follow.sh" "attach.sh";
    stop = "stop.sh";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_by_the_grammar() {
        let text = "# a\nif x; then\n  y &\n  z\nfi\ncase $a in\nb) c ;;\n*) if d; then\n    e\n  fi\n  ;;\nesac\nf() {\n  g ||\n  h\n}\n";
        assert_eq!(one_line(text), "if x; then y & z ; fi ; case $a in b) c ;; *) if d; then e ; fi ;; esac ; f() { g || h ; }");
    }

    /// Every file of shell text of this family: name and text.
    fn files() -> Vec<(String, String)> {
        let mut all = vec![];
        for folder in ["supervisor", "copy"] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ssh").join(folder);
            for f in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "sh")) {
                all.push((f.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(f).unwrap()));
            }
        }
        assert!(all.len() > 8);
        all
    }

    #[test]
    fn no_function_reads_the_parameters_of_the_script() {
        let parameter = |l: &str| {
            l.match_indices('$').any(|(i, _)| l[i + 1..].trim_start_matches('{').starts_with(|c: char| "123456789@*#".contains(c)))
        };
        for (name, text) in files() {
            let mut function: Option<String> = None;
            for line in text.lines().filter(|l| !l.trim_start().starts_with('#')) {
                if let Some((head, body)) = line.split_once("() {") {
                    // What is said to the operator is handed to it.
                    function = (!body.ends_with('}')).then(|| head.to_string());
                    assert!(head == "no" || !parameter(body), "{name}: {line}");
                } else if line == "}" || line.trim_start().starts_with("set -- ") {
                    // From `set --` on they are the function's own.
                    function = None;
                } else if let Some(f) = &function {
                    assert!(!parameter(line), "{name}: {f}() has parameters of its own: {line}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_expanded_unquoted() {
        // What stands here is meant: variables of other parts (2034, 2153, 2154), `a= b=` (1007), `a && b || c` (2015), text for another shell (2016), a file that is
        // open for both (2094), names read into (2229), `-ef` (3013), files that are there at run time alone (1091).
        let meant = "SC1007,SC1091,SC2015,SC2016,SC2034,SC2094,SC2153,SC2154,SC2229,SC3013";
        let texts: Vec<String> = files().into_iter().map(|(name, text)| format!("# {name}\n{text}")).collect();
        runbook_testkit::shellcheck(&texts.iter().map(String::as_str).collect::<Vec<_>>(), meant);
    }

    #[test]
    fn every_login_shell_takes_them_in_single_quotes() {
        for text in all() {
            assert!(!text.contains(['\n', '\'', '\\']), "{text}");
            let marks = text.match_indices('!').map(|(i, _)| text[i + 1..].chars().next());
            assert!(marks.clone().all(|c| matches!(c, None | Some(' ' | '='))), "csh would look for an event: {text}");
        }
    }
}
