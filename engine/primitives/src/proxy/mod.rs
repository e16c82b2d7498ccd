//! Reverse proxies and load balancers: the maintenance page, and where requests go.
//!
//! A driver ([`Driver`]) knows one kind of proxy; the primitives above it are the same for all. `flag_file.rs` is the first driver.

use std::collections::BTreeMap;

use async_trait::async_trait;
use runbook_core::inventory::{Environment, Resource, Section};
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

mod flag_file;

/// What a proxy does at present.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Whether it shows the maintenance page.
    pub maintenance: bool,
    /// Where it sends requests; empty when nothing says so.
    pub upstream: String,
}

/// One kind of proxy. Both changes must be safe to repeat, and prove by reading that they took.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Reads its state.
    async fn status(&self, cx: &Cx) -> Result<Status>;
    /// Turns the maintenance page on or off; whether that changed anything.
    async fn maintenance(&self, cx: &Cx, on: bool) -> Result<bool>;
    /// Sends requests to another address; whether that changed anything.
    async fn forward_to(&self, cx: &Cx, address: &str) -> Result<bool>;
}

fn driver(resource: &Resource) -> Result<Box<dyn Driver>> {
    match resource.kind.as_str() {
        "flag-file" => Ok(Box::new(flag_file::FlagFile::new(resource)?)),
        other => Err(Error::new(Code::INVENTORY_TYPE, format!("the proxy \"{}\" has the unknown kind \"{other}\"", resource.name))
            .hint("there is: flag-file")),
    }
}

fn of(cx: &Cx, call: &Call) -> Result<Box<dyn Driver>> {
    driver(cx.env.resource(Section::Proxies, call.target())?)
}

/// Adds the primitives of this family.
pub fn register(r: &mut Registry) {
    r.add_type(TypeSpec::new("Proxy", "A reverse proxy of the inventory.").field("name", Ty::Str, "Its name.").field(
        "upstream",
        Ty::Str,
        "The upstream's address when nothing has been moved, from the inventory; empty when not given.",
    ));
    r.add_type(
        TypeSpec::new("ProxyStatus", "What a proxy does at present.")
            .field("maintenance", Ty::Bool, "Whether it shows the maintenance page.")
            .field("upstream", Ty::Str, "Where it sends requests; empty when nothing says so."),
    );
    r.add_pure(
        Spec::function("proxy", Effect::Pure, "Gives the reverse proxy of that name in the inventory.")
            .arg("name", Ty::Str, "Its name in `[environments.….proxies]` of runbook.toml.")
            .returns(Ty::Record("Proxy"))
            .example(r#"let edge = proxy("edge");"#)
            .errors(&[Code::UNKNOWN_NAME]),
        proxy,
    );
    r.add(Maintenance::default());
    r.add(ForwardTo::default());
    r.add(ReadStatus::default());
}

fn proxy(env: &Environment, call: &Call) -> Result<Value> {
    let p = env.resource(Section::Proxies, call.str(0))?;
    let fields = BTreeMap::from([
        ("name".to_string(), Value::from(p.name.as_str())),
        ("upstream".to_string(), p.str("upstream").unwrap_or_default().into()),
    ]);
    Ok(Record::handle("Proxy", p.name.clone(), fields).into())
}

/// Turns the maintenance page on or off.
pub struct Maintenance(Spec);

impl Default for Maintenance {
    fn default() -> Self {
        Maintenance(
            Spec::method(
                "Proxy",
                "maintenance",
                Effect::Converge,
                "Turns the maintenance page on or off, and proves by reading that it is so.",
            )
            .arg("on", Ty::Bool, "Whether users shall see the maintenance page.")
            .example(r#"step "Maintenance page" { proxy("edge").maintenance(true); } undo { proxy("edge").maintenance(false); }"#)
            .errors(&[Code::PROXY]),
        )
    }
}

#[async_trait]
impl Primitive for Maintenance {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let on = call.arg(0).as_bool().unwrap_or(false);
        let is = if on { "on" } else { "off" };
        Ok(if of(cx, call)?.maintenance(cx, on).await? {
            Outcome::changed(()).note(format!("the maintenance page is {is}"))
        } else {
            Outcome::unchanged((), format!("the maintenance page is {is} already"))
        })
    }
}

/// Sends requests elsewhere.
pub struct ForwardTo(Spec);

impl Default for ForwardTo {
    fn default() -> Self {
        ForwardTo(
            Spec::method(
                "Proxy",
                "forward_to",
                Effect::Converge,
                "Makes the proxy send requests to another address, and proves by reading that it is so.\n\nAfter a move the old entry \
                 forwards to the new server, so that users with a stale DNS answer are served as well.",
            )
            .arg("address", Ty::Str, "`host:port`, or the host alone where the proxy takes that.")
            .example(r#"proxy("old_edge").forward_to(host("new").address);"#)
            .errors(&[Code::PROXY]),
        )
    }
}

#[async_trait]
impl Primitive for ForwardTo {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let address = call.str(0).trim();
        // It ends up in a configuration: nothing that could be more than an address.
        if address.is_empty() || !address.chars().all(|c| c.is_ascii_alphanumeric() || "._-:[]/".contains(c)) {
            return Err(
                Error::new(Code::PROXY, format!("{address:?} is not an address to forward to")).hint("write it like \"192.0.2.20:8080\"")
            );
        }
        Ok(if of(cx, call)?.forward_to(cx, address).await? {
            Outcome::changed(()).note(format!("requests go to {address}"))
        } else {
            Outcome::unchanged((), format!("requests go to {address} already"))
        })
    }
}

/// Reads the state.
pub struct ReadStatus(Spec);

impl Default for ReadStatus {
    fn default() -> Self {
        ReadStatus(
            Spec::method("Proxy", "status", Effect::Read, "Reads whether the maintenance page is on, and where requests go.")
                .returns(Ty::Record("ProxyStatus"))
                .example(r#"if proxy("edge").status().maintenance { log("still in maintenance"); }"#)
                .errors(&[Code::PROXY]),
        )
    }
}

#[async_trait]
impl Primitive for ReadStatus {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let s = of(cx, call)?.status(cx).await?;
        Ok(Value::from(Record::new("ProxyStatus", [("maintenance", s.maintenance.into()), ("upstream", s.upstream.into())])).into())
    }
}
