//! `service(name)`: systemd units of a host.

use std::collections::BTreeMap;

use async_trait::async_trait;
use runbook_core::inventory::Environment;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

use super::exec::tail;
use super::{Exec, connect, quote};

pub(super) fn register(r: &mut Registry) {
    r.add_type(TypeSpec::new("Service", "A systemd service of a host.").field("host", Ty::Str, "The host's name in the inventory.").field(
        "name",
        Ty::Str,
        "The unit's name.",
    ));
    r.add_type(
        TypeSpec::new("ServiceStatus", "The state of a service.")
            .field("active", Ty::Bool, "Whether it runs.")
            .field("enabled", Ty::Bool, "Whether it starts with the host.")
            .field("raw", Ty::Str, "systemd's own words: `active enabled`."),
    );
    r.add_pure(
        Spec::method("Host", "service", Effect::Pure, "Gives the systemd service of that name on the host. Nothing is contacted.")
            .arg("name", Ty::Str, "The unit's name, such as `nginx`.")
            .returns(Ty::Record("Service"))
            .example(r#"host("new").service("nginx").restart();"#)
            .errors(&[Code::COMMAND_BAD]),
        service,
    );
    for verb in Verb::ALL {
        r.add(Act::new(verb));
    }
}

fn service(_env: &Environment, call: &Call) -> Result<Value> {
    let name = call.str(0);
    if name.is_empty() || name.starts_with('-') || name.contains(|c: char| c.is_whitespace() || c == '/' || c.is_control()) {
        return Err(Error::new(Code::COMMAND_BAD, format!("\"{name}\" cannot be the name of a service"))
            .hint("give the unit's name, such as \"nginx\" or \"shop@1.service\""));
    }
    let host = call.target();
    let fields = BTreeMap::from([("host".to_string(), Value::from(host)), ("name".to_string(), Value::from(name))]);
    Ok(Value::from(Record::handle("Service", format!("{host}/{name}"), fields)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    Stop,
    Restart,
    Reload,
    Enable,
    Disable,
    Status,
}

impl Verb {
    const ALL: [Verb; 7] = [Verb::Start, Verb::Stop, Verb::Restart, Verb::Reload, Verb::Enable, Verb::Disable, Verb::Status];

    fn name(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Restart => "restart",
            Verb::Reload => "reload",
            Verb::Enable => "enable",
            Verb::Disable => "disable",
            Verb::Status => "status",
        }
    }

    fn doc(self) -> (&'static str, &'static str) {
        match self {
            Verb::Start => ("Starts the service, unless it runs, and checks that it runs then.", r#"host("new").service("shop").start();"#),
            Verb::Stop => ("Stops the service, unless it is stopped, and checks that it is.", r#"host("old").service("shop").stop();"#),
            Verb::Restart => ("Starts the service anew and checks that it runs then.", r#"host("new").service("nginx").restart();"#),
            Verb::Reload => ("Has the service read its configuration again.", r#"host("new").service("nginx").reload();"#),
            Verb::Enable => ("Has the service start with the host.", r#"host("new").service("shop").enable();"#),
            Verb::Disable => ("Has the service no longer start with the host.", r#"host("old").service("shop").disable();"#),
            Verb::Status => ("Gives the state of the service.", r#"if host("new").service("shop").status().active { log("it runs"); }"#),
        }
    }

    /// The question about the state, the answers with which there is nothing to do, and those that must come afterwards.
    fn wants(self) -> Option<(&'static str, &'static str)> {
        match self {
            Verb::Start | Verb::Restart => Some(("is-active", "active|reloading")),
            Verb::Stop => Some(("is-active", "inactive|failed|unknown|dead")),
            Verb::Enable => Some(("is-enabled", "enabled|enabled-runtime|static|alias")),
            Verb::Disable => Some(("is-enabled", "disabled|static|masked|not-found|indirect")),
            Verb::Reload | Verb::Status => None,
        }
    }
}

struct Act {
    verb: Verb,
    spec: Spec,
}

impl Act {
    fn new(verb: Verb) -> Self {
        let (doc, example) = verb.doc();
        let effect = if verb == Verb::Status { Effect::Read } else { Effect::Converge };
        let mut spec = Spec::method("Service", verb.name(), effect, doc)
            .option("sudo", super::privilege::ty(), "Ask systemd with raised privileges: `true` for root, or the name of a user.")
            .example(example)
            .errors(&[Code::SERVICE_FAILED, Code::HOST_TOOL_MISSING, Code::SUDO]);
        if verb == Verb::Status {
            spec = spec.returns(Ty::Record("ServiceStatus"));
        }
        Act { verb, spec }
    }
}

#[async_trait]
impl Primitive for Act {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (host, name) = call.receiver.as_ref().map_or(("", ""), |r| (r.str("host"), r.str("name")));
        let unit = quote(name);
        let verb = self.verb.name();
        let script = match self.verb.wants() {
            None if self.verb == Verb::Status => {
                format!(
                    "a=$(systemctl is-active {unit}); e=$(systemctl is-enabled {unit} 2>/dev/null); echo \"${{a:-unknown}} ${{e:-unknown}}\""
                )
            }
            None => format!("systemctl {verb} {unit} || exit 3; echo done"),
            Some((question, good)) => {
                let skip = if self.verb == Verb::Restart { "" } else { "echo same; exit 0;" };
                format!(
                    "case $(systemctl {question} {unit} 2>/dev/null) in {good}) {skip} ;; esac\n\
                     systemctl {verb} {unit} || {{ systemctl status {unit} 2>/dev/null | tail -n 20 >&2; exit 3; }}\n\
                     s=$(systemctl {question} {unit} 2>/dev/null)\n\
                     case $s in {good}) echo done ;; activating) echo done ;;\n\
                     *) systemctl status {unit} 2>/dev/null | tail -n 20 >&2; echo \"afterwards it is ${{s:-unknown}}\" >&2; exit 3 ;; esac"
                )
            }
        };
        let script = format!("command -v systemctl >/dev/null || exit 127\n{script}");
        let session = connect(cx, host).await?;
        let done = session.exec(cx, Exec::new(script).raised(call)).await?;
        let out = String::from_utf8_lossy(&done.stdout).trim().to_string();
        match (done.status, self.verb) {
            (127, _) => Err(Error::new(Code::HOST_TOOL_MISSING, "the host has no systemctl on the PATH of its non-interactive shell")
                .host(host)
                .hint("services need systemd; use run or converge for another service manager")),
            (0, Verb::Status) => {
                let (active, enabled) = out.split_once(' ').unwrap_or((&out, ""));
                let on = matches!(enabled, "enabled" | "enabled-runtime" | "static" | "alias");
                let fields =
                    [("active", Value::from(active == "active")), ("enabled", Value::from(on)), ("raw", Value::from(out.as_str()))];
                Ok(Outcome::from(Record::new("ServiceStatus", fields)))
            }
            (0, _) => Ok(Outcome::done(out != "same", format!("{name} is so already"))),
            (status, _) => {
                let said = tail(&done.stderr);
                let last = said.lines().next_back().unwrap_or("").trim();
                Err(Error::new(Code::SERVICE_FAILED, format!("{name} cannot be made to {verb}: {last}"))
                    .host(host)
                    .hint(format!("look at `journalctl -u {name}` on the host"))
                    .detail("status", status)
                    .detail("stderr", &said))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_its_host_and_unit() {
        let host = Record::handle("Host", "old", BTreeMap::new());
        let call = |name: &str| Call { receiver: Some(host.clone()), args: vec![name.into()], ..Call::default() };
        let v = service(&Environment::default(), &call("shop")).unwrap();
        let r = v.as_record().unwrap();
        assert_eq!((r.name.as_deref(), r.str("host"), r.str("name")), (Some("old/shop"), "old", "shop"));
        for bad in ["", "-x", "a b", "a/b", "a\n"] {
            assert_eq!(service(&Environment::default(), &call(bad)).unwrap_err().code, Code::COMMAND_BAD);
        }
    }
}
