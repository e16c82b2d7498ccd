//! The shell text of the supervisor, without its comments.

use std::sync::LazyLock;

fn strip(text: &str) -> String {
    text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')).map(|l| format!("{l}\n")).collect()
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => { $(
        pub(in crate::ssh) fn $name() -> &'static str {
            static TEXT: LazyLock<String> = LazyLock::new(|| strip(include_str!($file)));
            &TEXT
        }
    )* };
}

scripts! {
    reader = "reader.sh";
    start = "start.sh";
    run = "run.sh";
    attach = "attach.sh";
    stop = "stop.sh";
}
