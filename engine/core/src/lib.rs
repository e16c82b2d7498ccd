//! The engine's core: values, errors, the journal, durable execution. Reads no terminal, network, HOME or environment.

pub mod cancel;
pub mod clock;
mod codes;
pub mod digest;
pub mod error;
pub mod exec;
pub mod inventory;
pub mod journal;
pub mod primitive;
pub mod secret;
pub mod spec;
pub mod suggest;
pub mod units;
pub mod value;

pub use error::{Code, Error, Location, Result};
pub use spec::{Call, Effect, Param, Spec, Ty, TypeSpec};
pub use value::{Record, Value};
