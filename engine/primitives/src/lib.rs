//! The primitives: everything that scripts can do to the world, a folder a family.

use runbook_core::primitive::Registry;

pub mod backup;
pub mod db;
pub mod dns;
pub mod http;
pub mod proxy;
#[cfg(test)]
mod settings;
pub mod ssh;

/// A registry with every primitive of this crate.
#[must_use]
pub fn registry() -> Registry {
    let mut r = Registry::default();
    ssh::register(&mut r);
    db::register(&mut r);
    dns::register(&mut r);
    backup::register(&mut r);
    http::register(&mut r);
    proxy::register(&mut r);
    r
}
