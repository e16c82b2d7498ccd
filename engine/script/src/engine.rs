//! The Rhai engine of runbooks: chosen packages, limits, types, the words, and the binding of every Spec.

use std::sync::{Arc, OnceLock, Weak};

use parking_lot::RwLock;
use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicBlobPackage, BasicFnPackage, BasicIteratorPackage, BasicMapPackage, BasicMathPackage,
    BasicStringPackage, BitFieldPackage, LanguageCorePackage, LogicPackage, MoreStringPackage, Package,
};
use rhai::{Engine, OptimizationLevel, Token};
use runbook_core::exec::Run;
use runbook_core::primitive::Registry;

use crate::modules::{Resolver, Sources};

/// What the engine's closures need: the run, once there is one, and the engine itself (undo blocks are evaluated later).
pub struct Host {
    /// What scripts can call.
    pub registry: Arc<Registry>,
    pub(crate) run: RwLock<Option<Arc<Run>>>,
    pub(crate) engine: OnceLock<Weak<Engine>>,
    pub(crate) sources: Arc<Sources>,
}

/// How many operations a script may evaluate between two actions and in all; a loop that acts is far below.
pub const MAX_OPERATIONS: u64 = 50_000_000;
/// How deeply functions may call each other.
pub const MAX_CALLS: usize = 64;
/// How large a text may be, in bytes.
pub const MAX_STRING: usize = 16 << 20;
/// How many items an array or map may have.
pub const MAX_ITEMS: usize = 1_000_000;

/// Makes the engine.
#[must_use]
pub fn make(registry: Arc<Registry>, sources: Arc<Sources>) -> (Arc<Engine>, Arc<Host>) {
    let host = Arc::new(Host { registry, run: RwLock::new(None), engine: OnceLock::new(), sources: sources.clone() });
    let mut e = Engine::new_raw();
    // Chosen one by one: no time package (timestamp), and what remains of `sleep`, `exit` and `eval` is replaced or disabled.
    LanguageCorePackage::new().register_into_engine(&mut e);
    ArithmeticPackage::new().register_into_engine(&mut e);
    BasicStringPackage::new().register_into_engine(&mut e);
    BasicIteratorPackage::new().register_into_engine(&mut e);
    BasicFnPackage::new().register_into_engine(&mut e);
    LogicPackage::new().register_into_engine(&mut e);
    BitFieldPackage::new().register_into_engine(&mut e);
    BasicMathPackage::new().register_into_engine(&mut e);
    BasicArrayPackage::new().register_into_engine(&mut e);
    BasicBlobPackage::new().register_into_engine(&mut e);
    BasicMapPackage::new().register_into_engine(&mut e);
    MoreStringPackage::new().register_into_engine(&mut e);

    e.disable_symbol("eval");
    // Rhai reserves these for languages that it is not; in a migration the new server is called `new`.
    #[allow(deprecated)]
    e.on_parse_token(|token, _, _| match token {
        Token::Reserved(word) if ["new", "package", "shared", "default", "public"].contains(&word.as_str()) => Token::Identifier(word),
        token => token,
    });
    e.set_optimization_level(OptimizationLevel::None);
    e.set_strict_variables(true);
    e.set_fail_on_invalid_map_property(true);
    e.set_max_operations(MAX_OPERATIONS);
    e.set_max_call_levels(MAX_CALLS);
    e.set_max_expr_depths(128, 64);
    e.set_max_string_size(MAX_STRING);
    e.set_max_array_size(MAX_ITEMS);
    e.set_max_map_size(MAX_ITEMS);
    e.set_max_modules(100);
    e.set_max_functions(2_000);
    e.set_max_variables(1_000);
    e.set_module_resolver(Resolver(sources));

    crate::types::register(&mut e);
    crate::bind::register(&mut e, &host);
    crate::builtins::register(&mut e, &host);
    crate::words::register(&mut e, &host);

    let e = Arc::new(e);
    let _ = host.engine.set(Arc::downgrade(&e));
    (e, host)
}
