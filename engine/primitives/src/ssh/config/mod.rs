//! OpenSSH's configuration files, read as OpenSSH reads them.
//!
//! [`resolve()`] gives everything that they say of a host. Its parts, in the order in which a file goes through them: [`lex`] takes lines apart,
//! [`keywords`] has the table of every option and what becomes of it, [`read`] goes through files, `Include` and `Host`, [`criteria`] is
//! `Match`, [`value`] reads values, [`apply`] lets the first one count; [`canonical`] and the second pass follow, and [`finish`] expands
//! [`tokens`] into [`Options`].
//!
//! `~` is the home of the user database, as OpenSSH takes it, whatever `HOME` says; for `Include` alone it is `HOME`.

pub mod algorithms;
pub mod apply;
pub mod canonical;
pub mod criteria;
pub mod finish;
pub mod glob;
pub mod keywords;
pub mod lex;
pub mod machine;
pub mod options;
pub mod pattern;
pub mod place;
pub mod read;
pub mod resolve;
pub mod tokens;
pub mod value;

pub use algorithms::Names;
pub use machine::Machine;
pub use options::{Agent, Family, Hop, Options, StrictHostKeys, Tty};
pub use read::Files;
pub use resolve::{Query, resolve};
