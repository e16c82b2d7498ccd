//! placeholder

use runbook_core::primitive::Registry;

/// Adds the primitives of this family.
pub fn register(_r: &mut Registry) {}
