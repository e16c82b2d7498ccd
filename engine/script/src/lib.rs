//! The script language: Rhai with a few words added, bound to the core. Names no primitive.

pub mod bind;
pub mod builtins;
pub mod check;
pub mod convert;
pub mod definitions;
pub mod drive;
pub mod engine;
pub mod fault;
pub mod modules;
pub mod reference;
pub mod types;
pub mod vars;
pub mod words;

#[cfg(test)]
mod tests;
