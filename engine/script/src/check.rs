//! The static check: nothing is contacted. Every finding comes with file, line and column.
//!
//! Walks the syntax trees of the runbook and of everything it imports: unknown functions, methods and arities, imports, undefined
//! variables (the parser's strictness), names missing from the inventory, arguments of the wrong type (`check/types.rs`), and the rules of steps.

mod types;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use rhai::{AST, ASTNode, CustomExpr, Engine, Expr, Position, Stmt};
use runbook_core::error::Location;
use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::Registry;
use runbook_core::suggest::closest;
use runbook_core::{Code, Effect, Error, Value};

use types::Types;

use crate::convert::to_value;
use crate::modules::{Sources, compile, locate};

/// What a check found and went through.
pub struct Checked {
    /// Every finding, in order of place.
    pub findings: Vec<Error>,
    /// The runbook, when it could be parsed.
    pub ast: Option<AST>,
}

/// Checks a runbook and everything that it imports; with `env`, also the names that it takes from the inventory.
#[must_use]
pub fn check(engine: &Engine, registry: &Arc<Registry>, sources: &Sources, entry: &str, env: Option<&Environment>) -> Checked {
    let mut walker = Walker {
        engine,
        registry,
        sources,
        env,
        known: known(engine, registry),
        language: Arc::new(types::language()),
        findings: vec![],
        modules: BTreeMap::new(),
    };
    let ast = walker.file(entry, None);
    let mut findings = walker.findings;
    let key = |e: &Error| e.location.as_ref().map(|l| (l.file.clone(), l.line, l.column));
    findings.sort_by_key(key);
    findings.dedup_by(|a, b| a.message == b.message && a.location == b.location);
    Checked { findings, ast }
}

/// Functions by name with the numbers of arguments that they take, receivers counted.
type Known = BTreeMap<String, BTreeSet<usize>>;

fn known(engine: &Engine, registry: &Registry) -> Known {
    let mut out = Known::new();
    for (name, n) in engine.collect_fn_metadata(None, |f| Some((f.metadata.name.to_string(), f.metadata.num_params)), true) {
        out.entry(name).or_default().insert(n);
    }
    for spec in registry.specs() {
        let (least, most) = spec.arity();
        let receiver = usize::from(spec.on.is_some());
        out.entry(spec.name.to_string()).or_default().extend((least..=most).map(|n| n + receiver));
    }
    out
}

/// Names that take any number of arguments or are not functions at all.
const FREE: [&str; 12] =
    ["call", "curry", "Fn", "is_def_var", "is_def_fn", "type_of", "print", "debug", "is_shared", "import", "this", "eval"];

struct Walker<'a> {
    engine: &'a Engine,
    registry: &'a Arc<Registry>,
    sources: &'a Sources,
    env: Option<&'a Environment>,
    known: Known,
    language: Arc<BTreeSet<String>>,
    findings: Vec<Error>,
    /// Functions of each module that was gone through.
    modules: BTreeMap<String, Known>,
}

impl Walker<'_> {
    fn found(&mut self, file: &str, pos: Position, mut e: Error) {
        e.location = Some(location(file, pos));
        self.findings.push(e);
    }

    fn file(&mut self, path: &str, imported: Option<(&str, Position)>) -> Option<AST> {
        self.modules.insert(path.to_string(), Known::new());
        let ast = match compile(self.engine, self.sources, path) {
            Ok(ast) => ast,
            Err(e) => {
                match (imported, e.location.is_some()) {
                    (Some((file, pos)), false) => self.found(file, pos, e),
                    _ => self.findings.push(e),
                }
                return None;
            }
        };
        let mut own = Known::new();
        for f in ast.iter_functions() {
            own.entry(f.name.to_string()).or_default().insert(f.params.len());
        }
        self.modules.insert(path.to_string(), own.clone());
        let mut imports: BTreeMap<String, String> = BTreeMap::new();
        // Imports first: a call may stand above them inside a function.
        let mut found = Vec::new();
        ast.walk(&mut |nodes| {
            if let Some(ASTNode::Stmt(Stmt::Import(x, pos))) = nodes.last()
                && let Some(import) = literal(&x.0)
            {
                found.push((import.to_string(), x.1.as_str().to_string(), *pos));
            }
            true
        });
        for (import, alias, pos) in found {
            match locate(path, &import) {
                Err(e) => self.found(path, pos, e),
                Ok(target) => {
                    if !self.modules.contains_key(&target) {
                        self.file(&target, Some((path, pos)));
                    }
                    imports.insert(alias, target);
                }
            }
        }
        ast.walk(&mut |nodes| {
            self.node(path, nodes, &own, &imports, &ast);
            true
        });
        self.types(path, &own, &ast);
        self.names(path, ast.statements(), &mut HashSet::new());
        Some(ast)
    }

    fn node(&mut self, file: &str, nodes: &[ASTNode<'_>], own: &Known, imports: &BTreeMap<String, String>, ast: &AST) {
        match nodes.last() {
            Some(ASTNode::Expr(Expr::FnCall(x, pos)) | ASTNode::Stmt(Stmt::FnCall(x, pos))) => {
                if x.is_operator_call() {
                    return;
                }
                if x.is_qualified() {
                    let alias = x.namespace.root().to_string();
                    if let Some(target) = imports.get(&alias) {
                        self.qualified(file, target.clone(), &x.name, x.args.len(), *pos);
                    }
                    return;
                }
                self.function(file, &x.name, x.args.len(), false, own, *pos);
                self.inventory(file, &x.name, &x.args, *pos);
            }
            Some(ASTNode::Expr(Expr::MethodCall(x, pos))) => {
                self.function(file, &x.name, x.args.len(), true, own, *pos);
                if x.name == "each"
                    && let Some(closure) = x.args.last()
                {
                    let receiver = nodes.iter().rev().nth(1).and_then(receiver);
                    let window = nodes.iter().any(|n| matches!(n, ASTNode::Expr(Expr::Custom(c, _)) if word(c) == "downtime"));
                    self.closure(file, ast, closure, receiver, window, *pos);
                }
            }
            // `throw` is a `return` with this flag; it ends the step as a failure, which is recorded.
            Some(ASTNode::Stmt(Stmt::Return(_, flags, pos))) if !flags.intersects(rhai::ASTFlags::BREAK) => {
                self.escape(file, nodes, "return", false, *pos)
            }
            Some(ASTNode::Stmt(Stmt::BreakLoop(_, _, pos))) => self.escape(file, nodes, "break or continue", true, *pos),
            Some(ASTNode::Stmt(Stmt::Assignment(x))) => self.assignment(file, nodes, &x.1.lhs),
            Some(ASTNode::Expr(Expr::Custom(x, pos))) => self.reversible(file, false, nodes, x, *pos),
            _ => {}
        }
    }

    /// Calls whose arguments are of a type that is refused for certain.
    fn types(&mut self, file: &str, own: &Known, ast: &AST) {
        let (registry, language) = (self.registry.clone(), self.language.clone());
        let is_own = |name: &str| own.contains_key(name);
        let types = Types::of(&registry, &is_own, &language, ast);
        ast.walk(&mut |nodes| {
            if let Some(ASTNode::Expr(chain @ Expr::Dot(..))) = nodes.last() {
                for (pos, e) in types.faults(chain) {
                    // No method of that name takes so many: that is said already.
                    let here = Some(location(file, pos));
                    if !self.findings.iter().any(|f| f.code == e.code && f.location == here) {
                        self.found(file, pos, e);
                    }
                }
            }
            true
        });
    }

    fn function(&mut self, file: &str, name: &str, args: usize, method: bool, own: &Known, pos: Position) {
        if FREE.contains(&name) || name.starts_with("anon$") {
            return;
        }
        let n = args + usize::from(method);
        let mut fits: BTreeSet<usize> = self.known.get(name).cloned().unwrap_or_default();
        // A script's own function called as a method has its receiver in `this`.
        fits.extend(own.get(name).into_iter().flatten().map(|k| k + usize::from(method)));
        fits.extend(own.get(name).into_iter().flatten());
        if fits.contains(&n) {
            return;
        }
        let what = if method { "method" } else { "function" };
        let names =
            || self.known.keys().chain(own.keys()).map(String::as_str).filter(|n| n.chars().all(|c| c.is_alphanumeric() || c == '_'));
        let e = if fits.is_empty() {
            let e = Error::new(Code::UNKNOWN_FUNCTION, format!("there is no {what} \"{name}\""));
            match closest(name, names()) {
                Some(c) => e.hint(format!("did you mean \"{c}\"?")),
                None => e,
            }
        } else {
            let usage = self.registry.specs().filter(|s| s.name == name).map(runbook_core::Spec::signature).collect::<Vec<_>>().join("; ");
            let e = Error::new(Code::UNKNOWN_FUNCTION, format!("{what} \"{name}\" does not take {args} arguments"));
            if usage.is_empty() { e } else { e.hint(format!("it is called as {usage}")) }
        };
        self.found(file, pos, e);
    }

    fn qualified(&mut self, file: &str, target: String, name: &str, args: usize, pos: Position) {
        let Some(functions) = self.modules.get(&target) else { return };
        // A module that could not be parsed has its own finding.
        if functions.is_empty() || functions.get(name).is_some_and(|n| n.contains(&args)) {
            return;
        }
        let e = match functions.get(name) {
            Some(_) => Error::new(Code::UNKNOWN_FUNCTION, format!("function \"{name}\" of \"{target}\" does not take {args} arguments")),
            None => {
                let e = Error::new(Code::UNKNOWN_FUNCTION, format!("module \"{target}\" has no function \"{name}\""));
                match closest(name, functions.keys().map(String::as_str)) {
                    Some(c) => e.hint(format!("did you mean \"{c}\"?")),
                    None => e.hint(format!("it has: {}", functions.keys().cloned().collect::<Vec<_>>().join(", "))),
                }
            }
        };
        self.found(file, pos, e);
    }

    /// Literal names must be in the inventory.
    fn inventory(&mut self, file: &str, function: &str, args: &[Expr], pos: Position) {
        let Some(env) = self.env else { return };
        // What needs nothing but the inventory and is written out can be evaluated: `hosts("web")`.
        if Section::ALL.into_iter().all(|s| s.word() != function)
            && let Some((spec, f)) = self.registry.pure.get(&(None, function_name(self.registry, function)))
            && let Some(values) = args.iter().map(constant).collect::<Option<Vec<Value>>>()
            && let Err(e) = spec.bind(None, values).and_then(|call| f(env, &call))
            && e.code == Code::UNKNOWN_NAME
        {
            return self.found(file, pos, e);
        }
        let Some(name) = args.first().and_then(literal) else { return };
        if let Some(section) = Section::ALL.into_iter().find(|s| s.word() == function) {
            if let Err(e) = env.resource(section, name) {
                self.found(file, pos, e);
            }
        } else if function == "secret" && !env.secrets.contains_key(name) {
            let e = Error::new(Code::MISSING_SECRET, format!("environment \"{}\" has no secret \"{name}\"", env.name));
            let hint = closest(name, env.secrets.keys().map(String::as_str)).map_or_else(
                || format!("add {name} = {{ env = \"…\" }} to [secrets] of runbook.toml"),
                |c| format!("did you mean \"{c}\"?"),
            );
            self.found(file, pos, e.hint(hint));
        }
    }

    /// A block must be left at its end: `return` and `break` would end what is around the step, unseen by the journal.
    fn escape(&mut self, file: &str, nodes: &[ASTNode<'_>], what: &str, is_loop: bool, pos: Position) {
        for node in nodes.iter().rev().skip(1) {
            match node {
                ASTNode::Stmt(Stmt::While(..) | Stmt::Do(..) | Stmt::For(..)) if is_loop => return,
                ASTNode::Expr(Expr::Custom(x, _)) => {
                    let word = x.tokens.first().map_or("step", |t| t.as_str()).to_string();
                    let e = Error::new(Code::STEP_ESCAPE, format!("{what} would leave the block of a {word}"))
                        .hint("let the block end by itself: put what follows into an if or else");
                    return self.found(file, pos, e);
                }
                _ => {}
            }
        }
    }

    /// A branch runs on a thread of its own with copies of the variables: an assignment would be lost.
    fn assignment(&mut self, file: &str, nodes: &[ASTNode<'_>], target: &Expr) {
        let Some((name, pos)) = root_variable(target) else { return };
        let Some(at) = nodes.iter().position(|n| matches!(n, ASTNode::Expr(Expr::Custom(x, _)) if word(x) == "parallel")) else { return };
        // Declared inside the branch: it is the branch's own.
        let declared = declared(nodes.get(at + 1..).unwrap_or_default(), name);
        if !declared {
            let e = Error::new(Code::BAD_WORD, format!("a parallel branch cannot assign to the outer variable \"{name}\""))
                .hint("let the branch's block have the value: parallel gives a map from branch to value");
            self.found(file, pos, e);
        }
    }

    /// The closure of an `each` runs as branches do; `receiver` is the variable that holds the list.
    fn closure(&mut self, file: &str, ast: &AST, closure: &Expr, receiver: Option<&str>, window: bool, pos: Position) {
        let Some((name, captured)) = anonymous(closure) else { return };
        if receiver.is_some_and(|r| captured.iter().any(|c| c == r)) {
            let e = Error::new(Code::BAD_WORD, "the closure of each uses the list that it goes through")
                .hint("use a copy in the closure: let copy = list; before it");
            self.found(file, pos, e);
        }
        self.captures(file, ast, &name, &captured, window);
    }

    /// What a closure of a branch assigns must be its own; so must what the closures in it assign, which may capture the same variables.
    fn captures(&mut self, file: &str, ast: &AST, closure: &str, captured: &[String], window: bool) {
        // Not `clone_functions_only_filtered`, which keeps every function (Rhai 1.27: a filter is not applied on the way into an empty module).
        let mut body = ast.clone_functions_only();
        body.retain_functions(|_, _, n, _| n == closure);
        // What the closure declares at its top is not among the nodes around an assignment.
        let mut own: HashSet<String> = HashSet::new();
        body.walk(&mut |nodes| {
            match nodes {
                [ASTNode::Stmt(Stmt::Var(x, ..))] => {
                    own.insert(x.0.as_str().to_string());
                }
                _ => match nodes.last() {
                    Some(ASTNode::Stmt(Stmt::Assignment(x))) => {
                        if let Some((name, pos)) = root_variable(&x.1.lhs)
                            && captured.iter().any(|c| c == name)
                            && !own.contains(name)
                            && !declared(nodes, name)
                        {
                            let e = Error::new(Code::BAD_WORD, format!("a branch of each cannot assign to the outer variable \"{name}\""))
                                .hint("let the closure have the value: each gives the values by name");
                            self.found(file, pos, e);
                        }
                    }
                    Some(ASTNode::Expr(e @ Expr::FnCall(..))) => {
                        if let Some((name, inner)) = anonymous(e) {
                            let outer: Vec<String> = inner.into_iter().filter(|n| captured.contains(n) && !own.contains(n)).collect();
                            self.captures(file, ast, &name, &outer, window);
                        }
                    }
                    Some(ASTNode::Expr(Expr::Custom(x, pos))) if window => self.reversible(file, true, nodes, x, *pos),
                    _ => {}
                },
            }
            true
        });
    }

    /// Inside a window a step that changes something must say how it is taken back.
    fn reversible(&mut self, file: &str, window: bool, nodes: &[ASTNode<'_>], x: &CustomExpr, pos: Position) {
        if word(x) != "step" || x.tokens.iter().any(|t| t == "undo" || t == "irreversible") {
            return;
        }
        let outer = &nodes[..nodes.len().saturating_sub(1)];
        if !window && !outer.iter().any(|n| matches!(n, ASTNode::Expr(Expr::Custom(c, _)) if word(c) == "downtime")) {
            return;
        }
        let mut changes: Option<String> = None;
        let mut see = |nodes: &[ASTNode<'_>]| -> bool {
            if let Some(ASTNode::Expr(Expr::MethodCall(c, _) | Expr::FnCall(c, _)) | ASTNode::Stmt(Stmt::FnCall(c, _))) = nodes.last() {
                let mut effects = self.registry.specs().filter(|s| s.name == c.name.as_str()).map(|s| s.effect).peekable();
                if effects.peek().is_some() && effects.all(|e| matches!(e, Effect::Once | Effect::Converge)) {
                    changes.get_or_insert_with(|| c.name.to_string());
                }
            }
            true
        };
        for input in &x.inputs {
            input.walk(&mut Vec::new(), &mut see);
        }
        if let Some(method) = changes {
            let e = Error::new(
                Code::BAD_WORD,
                format!("this step of a downtime changes something (\"{method}\") and does not say how it is taken back"),
            )
            .hint("add undo { … }, or irreversible \"why\"");
            self.found(file, pos, e);
        }
    }

    /// Literal names must be unique within their parent.
    fn names(&mut self, file: &str, statements: &[Stmt], seen: &mut HashSet<String>) {
        for s in statements {
            s.walk(&mut Vec::new(), &mut |nodes: &[ASTNode<'_>]| {
                let Some(ASTNode::Expr(Expr::Custom(x, pos))) = nodes.last() else { return true };
                let inside = nodes[..nodes.len() - 1].iter().any(|n| {
                    matches!(n, ASTNode::Expr(Expr::Custom(..)))
                        || matches!(n, ASTNode::Stmt(Stmt::If(..) | Stmt::Switch(..) | Stmt::TryCatch(..)))
                });
                if inside || !matches!(word(x), "step" | "phase" | "downtime" | "gate" | "point_of_no_return") {
                    return true;
                }
                if let Some(name) = x.inputs.first().and_then(literal)
                    && !seen.insert(name.to_string())
                {
                    let e = Error::new(Code::STEP_DUPLICATE, format!("there are two steps named \"{name}\" here"))
                        .hint("names must be unique within their parent");
                    self.found(file, *pos, e);
                }
                if let Some(Expr::Stmt(block)) = x.inputs.iter().find(|i| matches!(i, Expr::Stmt(_))) {
                    self.names(file, block.statements(), &mut HashSet::new());
                }
                true
            });
        }
    }
}

fn location(file: &str, pos: Position) -> Location {
    Location { file: file.into(), line: pos.line().unwrap_or(1), column: pos.position().unwrap_or(0) }
}

/// The text of a string literal.
fn literal(e: &Expr) -> Option<&str> {
    if let Expr::StringConstant(s, _) = e { Some(s.as_str()) } else { None }
}

/// A value that is written out: text, or a list of texts.
fn constant(e: &Expr) -> Option<Value> {
    match e {
        Expr::StringConstant(s, _) => Some(Value::from(s.as_str())),
        Expr::Array(items, _) => items.iter().map(constant).collect::<Option<Vec<Value>>>().map(Value::List),
        Expr::DynamicConstant(d, _) => to_value((**d).clone()).ok(),
        _ => None,
    }
}

/// The registry's own text for a function's name.
fn function_name(registry: &Registry, name: &str) -> &'static str {
    registry.pure.keys().find(|(on, n)| on.is_none() && *n == name).map_or("", |(_, n)| *n)
}

fn word(x: &CustomExpr) -> &str {
    x.tokens.first().map_or("", |t| t.as_str())
}

fn declares(statements: &[Stmt], name: &str) -> bool {
    statements.iter().any(|s| matches!(s, Stmt::Var(x, ..) if x.0.as_str() == name))
}

/// Whether one of these nodes declares a variable.
fn declared(inside: &[ASTNode<'_>], name: &str) -> bool {
    inside.iter().any(|n| match n {
        ASTNode::Expr(Expr::Stmt(b)) => declares(b.statements(), name),
        ASTNode::Stmt(Stmt::Block(b)) => declares(b.statements(), name),
        ASTNode::Stmt(Stmt::For(x, _)) => {
            x.0.as_str() == name || x.1.as_ref().is_some_and(|c| c.as_str() == name) || declares(x.2.body.statements(), name)
        }
        ASTNode::Stmt(Stmt::If(x, _) | Stmt::While(x, _) | Stmt::Do(x, ..) | Stmt::TryCatch(x, _)) => {
            declares(x.body.statements(), name) || declares(x.branch.statements(), name)
        }
        _ => false,
    })
}

/// The variable that a method is called on: `list` in `list.each(…)`.
fn receiver<'a>(node: &ASTNode<'a>) -> Option<&'a str> {
    let ASTNode::Expr(Expr::Dot(x, ..)) = node else { return None };
    if let Expr::Variable(v, ..) = &x.lhs { Some(v.1.as_str()) } else { None }
}

/// A closure as an argument: the name of its function and the variables that it captures.
fn anonymous(e: &Expr) -> Option<(String, Vec<String>)> {
    let name = |e: &Expr| match e {
        Expr::DynamicConstant(d, _) => d.read_lock::<rhai::FnPtr>().map(|f| f.fn_name().to_string()),
        _ => None,
    };
    match e {
        Expr::FnCall(x, _) if x.name == "curry" => {
            let (f, captured) = x.args.split_first()?;
            Some((name(f)?, captured.iter().filter_map(root_variable).map(|(n, _)| n.to_string()).collect()))
        }
        Expr::Stmt(b) => b.statements().iter().find_map(|s| if let Stmt::Expr(e) = s { anonymous(e) } else { None }),
        e => Some((name(e)?, vec![])),
    }
}

fn root_variable(e: &Expr) -> Option<(&str, Position)> {
    match e {
        Expr::Variable(x, _, pos) => Some((x.1.as_str(), *pos)),
        Expr::Dot(b, ..) | Expr::Index(b, ..) => root_variable(&b.lhs),
        _ => None,
    }
}
