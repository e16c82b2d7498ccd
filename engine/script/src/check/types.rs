//! What is known of the types of values before anything runs: a `Fence` is what only `fence` returns, a database is no host.
//!
//! Only what is certain counts. A variable has a type when everything that is ever put under its name in the file has that one; functions of
//! scripts, elements of lists and whatever comes out of a choice have none, and are looked at when they are there.

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTNode, CustomExpr, Expr, FnCallExpr, Position, Stmt};
use runbook_core::primitive::Registry;
use runbook_core::spec::{Spec, Ty};
use runbook_core::{Code, Error};

use super::{anonymous, root_variable, word};

/// The types of one file's values.
pub(super) struct Types<'a> {
    registry: &'a Registry,
    /// The file's own functions, which may have the name of a primitive.
    own: &'a dyn Fn(&str) -> bool,
    /// Functions of the language: a list, a map or a text may have them under the name of a primitive.
    language: &'a BTreeSet<String>,
    variables: BTreeMap<String, Ty>,
}

/// Whether a value of the type `is` may be taken where `wanted` is: `false` when it is refused for certain.
fn fits(is: &Ty, wanted: &Ty) -> bool {
    match (is, wanted) {
        (Ty::Any, _) | (_, Ty::Any) => true,
        (Ty::OneOf(all), wanted) => all.iter().any(|is| fits(is, wanted)),
        (is, Ty::OneOf(all)) => all.iter().any(|wanted| fits(is, wanted)),
        (Ty::Int, Ty::Float) | (Ty::Str, Ty::Blob | Ty::Duration | Ty::Bytes) => true,
        (Ty::Record(a), Ty::Record(b)) => a == b,
        (is, wanted) => std::mem::discriminant(is) == std::mem::discriminant(wanted),
    }
}

/// The names of the language's own functions.
pub(super) fn language() -> BTreeSet<String> {
    rhai::Engine::new().collect_fn_metadata(None, |f| Some(f.metadata.name.to_string()), true).into_iter().collect()
}

impl<'a> Types<'a> {
    /// Reads the types of the variables of a file.
    pub(super) fn of(registry: &'a Registry, own: &'a dyn Fn(&str) -> bool, language: &'a BTreeSet<String>, ast: &AST) -> Types<'a> {
        let mut unknown: BTreeSet<String> = BTreeSet::new();
        let mut captured: BTreeMap<String, Vec<String>> = BTreeMap::new();
        ast.walk(&mut |nodes| {
            match nodes.last() {
                Some(ASTNode::Stmt(Stmt::Assignment(x))) => unknown.extend(root_variable(&x.1.lhs).map(|(n, _)| n.to_string())),
                Some(ASTNode::Stmt(Stmt::For(x, _))) => {
                    unknown.insert(x.0.as_str().to_string());
                    unknown.extend(x.1.as_ref().map(|c| c.as_str().to_string()));
                }
                Some(ASTNode::Stmt(Stmt::TryCatch(x, _))) => unknown.extend(root_variable(&x.expr).map(|(n, _)| n.to_string())),
                Some(ASTNode::Expr(e @ Expr::FnCall(..))) => captured.extend(anonymous(e)),
                _ => {}
            }
            true
        });
        for f in ast.iter_functions() {
            // What a closure captures is a parameter of its function, and what it was outside.
            let outer = captured.get(f.name).map(Vec::as_slice).unwrap_or_default();
            unknown.extend(f.params.iter().filter(|p| !outer.iter().any(|c| c == *p)).map(|p| (*p).to_string()));
        }
        let mut types = Types { registry, own, language, variables: BTreeMap::new() };
        ast.walk(&mut |nodes| {
            if let Some(ASTNode::Stmt(Stmt::Var(x, ..))) = nodes.last() {
                let (name, is) = (x.0.as_str(), types.expression(&x.1));
                match types.variables.get(name) {
                    Some(before) if *before != is => drop(unknown.insert(name.to_string())),
                    Some(_) => {}
                    None => drop(types.variables.insert(name.to_string(), is)),
                }
            }
            true
        });
        types.variables.retain(|name, _| !unknown.contains(name));
        types
    }

    /// The type of an expression; `Any` where it is not known.
    fn expression(&self, e: &Expr) -> Ty {
        match e {
            Expr::BoolConstant(..) => Ty::Bool,
            Expr::IntegerConstant(..) => Ty::Int,
            Expr::FloatConstant(..) => Ty::Float,
            Expr::StringConstant(..) | Expr::InterpolatedString(..) => Ty::Str,
            Expr::Array(..) => Ty::List(Box::new(Ty::Any)),
            Expr::Map(..) => Ty::Map(Box::new(Ty::Any)),
            Expr::DynamicConstant(d, _) if d.is_map() => Ty::Map(Box::new(Ty::Any)),
            Expr::DynamicConstant(d, _) if d.is_array() => Ty::List(Box::new(Ty::Any)),
            Expr::Variable(x, ..) => self.variables.get(x.1.as_str()).cloned().unwrap_or(Ty::Any),
            Expr::FnCall(x, _) => self.function(x),
            Expr::Dot(x, ..) => self.chain(self.expression(&x.lhs), &x.rhs, &mut |_, _| {}),
            Expr::Custom(x, _) => self.word(x),
            Expr::Stmt(b) => self.block(b.statements()),
            _ => Ty::Any,
        }
    }

    fn function(&self, x: &FnCallExpr) -> Ty {
        if x.is_qualified() || x.is_operator_call() || (self.own)(&x.name) {
            return Ty::Any;
        }
        self.registry.specs().find(|s| s.on.is_none() && s.name == x.name.as_str()).map_or(Ty::Any, |s| result(&s.returns))
    }

    /// The value of a step is that of its block.
    fn word(&self, x: &CustomExpr) -> Ty {
        let block = x.inputs.iter().find_map(|i| if let Expr::Stmt(b) = i { Some(b.statements()) } else { None });
        block.filter(|_| word(x) == "step").map_or(Ty::Any, |b| self.block(b))
    }

    fn block(&self, statements: &[Stmt]) -> Ty {
        match statements.last() {
            Some(Stmt::Expr(e)) => self.expression(e),
            Some(Stmt::FnCall(x, _)) => self.function(x),
            _ => Ty::Any,
        }
    }

    /// What comes out at the end of `.a.b(…).c`, each method seen with what it is called on.
    fn chain(&self, on: Ty, rest: &Expr, see: &mut dyn FnMut(&Ty, (&FnCallExpr, Position))) -> Ty {
        match rest {
            Expr::Dot(x, ..) => {
                let next = self.chain(on, &x.lhs, see);
                self.chain(next, &x.rhs, see)
            }
            Expr::MethodCall(x, pos) => {
                see(&on, (x, *pos));
                match self.method(&on, x) {
                    Some(spec) => result(&spec.returns),
                    None => Ty::Any,
                }
            }
            Expr::Property(x, _) => match on {
                Ty::Record(name) => {
                    let field = self.registry.types.get(name).and_then(|t| t.fields.iter().find(|f| f.name == x.2.as_str()));
                    field.map_or(Ty::Any, |f| result(&f.ty))
                }
                _ => Ty::Any,
            },
            _ => Ty::Any,
        }
    }

    /// The declaration of a method of a value whose type is known.
    fn method(&self, on: &Ty, x: &FnCallExpr) -> Option<&'a Spec> {
        let Ty::Record(on) = on else { return None };
        self.registry.specs().find(|s| s.on == Some(on) && s.name == x.name.as_str()).filter(|_| !(self.own)(&x.name))
    }

    /// What is wrong with the calls in a chain, and where.
    pub(super) fn faults(&self, chain: &Expr) -> Vec<(Position, Error)> {
        let Expr::Dot(x, ..) = chain else { return vec![] };
        let mut found = Vec::new();
        self.chain(self.expression(&x.lhs), &x.rhs, &mut |on, (call, pos)| found.extend(self.fault(on, call, pos)));
        found
    }

    fn fault(&self, on: &Ty, x: &FnCallExpr, pos: Position) -> Option<(Position, Error)> {
        if (self.own)(&x.name) {
            return None;
        }
        let candidates: Vec<&Spec> = match on {
            Ty::Record(_) => self.method(on, x).into_iter().collect(),
            _ if *on != Ty::Any || self.language.contains(x.name.as_str()) => vec![],
            _ => self.registry.specs().filter(|s| s.on.is_some() && s.name == x.name.as_str()).collect(),
        };
        let usage = || format!("it is called as {}", candidates.iter().map(|s| s.signature()).collect::<Vec<_>>().join("; "));
        let n = x.args.len();
        let takes: Vec<&&Spec> = candidates.iter().filter(|s| (s.arity().0..=s.arity().1).contains(&n)).collect();
        if let ([spec], []) = (candidates.as_slice(), takes.as_slice())
            && matches!(on, Ty::Record(_))
        {
            let e = Error::new(Code::UNKNOWN_FUNCTION, format!("{} does not take {n} arguments", spec.full_name()));
            return Some((pos, e.hint(usage())));
        }
        // Of several methods of that name one may be meant: each must refuse the argument.
        let mut refused = None;
        for spec in &takes {
            // A map of functions may have one of that name: of a value that may be such, only what wants a handle or a record is looked at.
            let looked_at = |i: usize| *on != Ty::Any || spec.params.get(i).is_none_or(|p| is_record(&p.ty));
            let mut args = x.args.iter().enumerate().filter(|(i, _)| looked_at(*i));
            let (i, wrong) = args.find_map(|(i, a)| Some((i, self.refused(spec, i, a)?)))?;
            refused.get_or_insert((i, wrong));
        }
        let (i, e) = refused?;
        let pos = x.args.get(i).map_or(pos, Expr::position);
        Some((pos, e.hint(usage())))
    }

    /// Why a method refuses an argument for certain.
    fn refused(&self, spec: &Spec, i: usize, arg: &Expr) -> Option<Error> {
        let is = self.expression(arg);
        let options = !spec.options.is_empty() && i >= spec.arity().0 && fits(&is, &Ty::Map(Box::new(Ty::Any)));
        match spec.params.get(i) {
            _ if options => None,
            Some(p) if p.optional && matches!(arg, Expr::Unit(_)) => None,
            Some(p) if fits(&is, &p.ty) => None,
            Some(p) => {
                let what = format!("{}, argument \"{}\": {} is wanted here, not {is}", spec.full_name(), p.name, p.ty);
                Some(Error::new(Code::WRONG_TYPE, what))
            }
            None => Some(Error::new(Code::WRONG_TYPE, format!("the last argument of {} is its options map, not {is}", spec.full_name()))),
        }
    }
}

/// Whether only handles or records are of this type.
fn is_record(ty: &Ty) -> bool {
    match ty {
        Ty::Record(_) => true,
        Ty::OneOf(all) => all.iter().all(is_record),
        _ => false,
    }
}

/// The type of a result as far as it says something.
fn result(ty: &Ty) -> Ty {
    if *ty == Ty::Unit { Ty::Any } else { ty.clone() }
}
