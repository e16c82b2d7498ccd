//! The primitives: everything that scripts can do to the world, a folder a family.
//!
//! Functions that many others call and that have much behind them, such as [`ssh::connect`], give a boxed future. The compiler proves of
//! every caller anew that its future may change threads, with all that is in it, and looks no further than a box: without these, that
//! was three quarters of the time of a build.

use runbook_core::primitive::Registry;

pub mod backup;
pub mod db;
pub mod dns;
pub mod docker;
pub mod http;
pub mod proxy;
#[cfg(test)]
mod settings;
pub mod ssh;
mod tar_stream;

/// Serves what runs on hosts as this program: `runbook __helper NAME …`. Gives the exit status.
#[must_use]
pub fn helper_main(args: &[String]) -> i32 {
    let words = args.strip_prefix(&["__helper".to_string()]).unwrap_or(args);
    let (name, rest) = words.split_first().map_or(("", words), |(name, rest)| (name.as_str(), rest));
    match name {
        "sqlite" => return db::sqlite::serve(),
        "image" => return docker::serve(rest),
        _ => {}
    }
    ssh::helper::serve(name, rest).unwrap_or_else(|| {
        eprintln!("runbook __helper: there is no helper {name:?}");
        2
    })
}

/// A registry with every primitive of this crate.
#[must_use]
pub fn registry() -> Registry {
    let mut r = Registry::default();
    ssh::register(&mut r);
    db::register(&mut r);
    dns::register(&mut r);
    backup::register(&mut r);
    docker::register(&mut r);
    http::register(&mut r);
    proxy::register(&mut r);
    r
}
