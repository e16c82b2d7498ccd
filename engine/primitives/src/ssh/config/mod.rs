//! OpenSSH's configuration files, read as OpenSSH reads them.

pub mod algorithms;
pub mod options;
pub mod pattern;

pub use algorithms::Names;
pub use options::{Agent, Family, Hop, Options, StrictHostKeys, Tty};
