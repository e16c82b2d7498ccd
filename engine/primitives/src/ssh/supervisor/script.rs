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
    start = "start.sh" "follow.sh";
    run = "run.sh";
    raise = "raise.sh";
    attach = "attach.sh" "follow.sh";
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

    #[test]
    fn every_login_shell_takes_them_in_single_quotes() {
        for text in all() {
            assert!(!text.contains(['\n', '\'', '\\']), "{text}");
            let marks = text.match_indices('!').map(|(i, _)| text[i + 1..].chars().next());
            assert!(marks.clone().all(|c| matches!(c, None | Some(' ' | '='))), "csh would look for an event: {text}");
        }
    }
}
