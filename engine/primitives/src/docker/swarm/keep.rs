//! Secrets and configs of a swarm: `create`, `remove`, `label`, and what there is.
//!
//! Neither can be changed. A config can be read back and compared; a secret cannot, and so one that is there is never taken for the one that
//! is wanted, unless that is asked for.

use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};
use serde_json::{Value as Json, json};

use super::api::{all, delete, encoded, filters, get, int, post, text, texts};
use super::create::mark;
use super::node::set_labels;
use super::{MADE, by_this_run};
use crate::docker::ACTION;
use crate::docker::engine::Engine;
use crate::docker::info::in_order;
use crate::docker::things::{name, reveal};

const ERRORS: &[Code] = &[
    Code::DOCKER,
    Code::DOCKER_MISSING,
    Code::DOCKER_CONFLICT,
    Code::SWARM_STATE,
    Code::SWARM_QUORUM,
    Code::DOCKER_CONNECT,
    Code::SSH_CONNECT,
];

/// What of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Secret,
    Config,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Secret => "secret",
            Kind::Config => "config",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Kind::Secret => "/secrets",
            Kind::Config => "/configs",
        }
    }
}

pub(super) fn register(r: &mut Registry) {
    for (info, is) in [("SwarmSecretInfo", "A secret of a swarm, without its value."), ("SwarmConfigInfo", "A config of a swarm.")] {
        r.add_type(
            TypeSpec::new(info, is)
                .field("name", Ty::Str, "Its name.")
                .field("id", Ty::Str, "Its id.")
                .field("labels", Ty::Map(Box::new(Ty::Str)), "Its labels.")
                .field("created", Ty::OneOf(vec![Ty::Time, Ty::Unit]), "When it was made."),
        );
    }
    let labels = |s: Spec| s.option("labels", Ty::Map(Box::new(Ty::Str)), "Its labels.");
    r.add(Create(
        Kind::Secret,
        labels(
            Spec::method(
                "SwarmSecret",
                "create",
                Effect::Converge,
                "Makes the secret of the swarm. Its value goes to the manager alone; it is in no journal, no message and no command line.\n\n\
                 A secret can neither be changed nor read back. One of that name that is there is an error, unless this action has made it: \
                 give each value a name of its own (`db_password_2`), or `keep`.",
            )
            .arg("value", Ty::Secret, "Its value."),
        )
        .option("keep", Ty::Bool, "Take one of that name that is there, whatever its value; false by default.")
        .example(r#"docker("m1").swarm().secret("db_password_2").create(secret("db"));"#)
        .errors(ERRORS),
    ));
    r.add(Create(
        Kind::Config,
        labels(
            Spec::method(
                "SwarmConfig",
                "create",
                Effect::Converge,
                "Makes the config of the swarm, unless it is there. A config cannot be changed: one with another text is an error, so give each text a name of its own (`shop_conf_2`).",
            )
            .arg("text", Ty::OneOf(vec![Ty::Str, Ty::Blob, Ty::Secret]), "What is in it."),
        )
        .example(r#"docker("m1").swarm().config("shop_conf_2").create("workers = 4\n");"#)
        .errors(ERRORS),
    ));
    for (kind, on, remove, label) in [
        (
            Kind::Secret,
            "SwarmSecret",
            r#"docker("m1").swarm().secret("db_password_1").remove();"#,
            r#"docker("m1").swarm().secret("db_password_2").label(#{ rotated: "2026-11" });"#,
        ),
        (
            Kind::Config,
            "SwarmConfig",
            r#"docker("m1").swarm().config("shop_conf_1").remove();"#,
            r#"docker("m1").swarm().config("shop_conf_2").label(#{ used_by: "shop" });"#,
        ),
    ] {
        r.add(Remove(
            kind,
            Spec::method(
                on,
                "remove",
                Effect::Converge,
                "Removes it. There is nothing to do when there is none; one that a service uses is an error.",
            )
            .option("own", Ty::Bool, "Only when this run has made it, as an undo block wants; false by default.")
            .example(remove)
            .errors(ERRORS),
        ));
        r.add(Label(
            kind,
            Spec::method(
                on,
                "label",
                Effect::Converge,
                "Sets labels of it; `()` removes one. There is nothing to do when all of them are so.",
            )
            .arg("labels", Ty::Map(Box::new(Ty::OneOf(vec![Ty::Str, Ty::Unit]))), "The labels and their values.")
            .example(label)
            .errors(ERRORS),
        ));
    }
    for (kind, method, info, doc, example) in [
        (
            Kind::Secret,
            "secrets",
            "SwarmSecretInfo",
            "Lists the secrets of the swarm, without their values, in order of their names.",
            r#"for s in docker("m1").swarm().secrets() { log(s.name); }"#,
        ),
        (
            Kind::Config,
            "configs",
            "SwarmConfigInfo",
            "Lists the configs of the swarm, in order of their names.",
            r#"for c in docker("m1").swarm().configs(#{ label: "used_by=shop" }) { log(c.name); }"#,
        ),
    ] {
        r.add(List(
            kind,
            Spec::method("Swarm", method, Effect::Read, doc)
                .option("label", Ty::Str, "Only those with this label: `name` or `name=value`.")
                .returns(Ty::List(Box::new(Ty::Record(info))))
                .example(example)
                .errors(ERRORS),
        ));
    }
}

/// The secret or config of that name; the filter of the engine takes beginnings of names too.
async fn search(cx: &Cx, e: &Engine, path: &str, name: &str) -> Result<Option<Json>> {
    let what = format!("looking for {name} in the swarm of \"{}\"", e.name);
    let found = all(get(cx, e, &what, &format!("{path}{}", filters(&[("name", name)]))).await?);
    Ok(found.into_iter().find(|s| text(s, "/Spec/Name") == name))
}

/// The id of a secret or config that a service is to have.
pub(super) async fn id_of(cx: &Cx, e: &Engine, path: &str, name: &str) -> Result<String> {
    match search(cx, e, path, name).await? {
        Some(is) => Ok(text(&is, "/ID").to_string()),
        None => {
            let kind = path.trim_start_matches('/').trim_end_matches('s');
            Err(Error::new(Code::DOCKER_MISSING, format!("the swarm of \"{}\" has no {kind} {name}", e.name))
                .host(e.at())
                .hint(format!("make it first: docker(…).swarm().{kind}(\"{name}\").create(…)")))
        }
    }
}

fn info(kind: Kind, s: &Json) -> Record {
    let ty = if kind == Kind::Secret { "SwarmSecretInfo" } else { "SwarmConfigInfo" };
    let created = text(s, "/CreatedAt").parse().map_or(Value::Unit, Value::Time);
    Record::new(
        ty,
        [("name", text(s, "/Spec/Name").into()), ("id", text(s, "/ID").into()), ("labels", texts(s, "/Spec/Labels")), ("created", created)],
    )
}

struct List(Kind, Spec);

#[async_trait]
impl Primitive for List {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let e = Engine::on(cx, call).await?;
        let by = call.opt_str("label").map_or(String::new(), |l| filters(&[("label", l)]));
        let what = format!("listing the {}s of the swarm of \"{}\"", self.0.word(), e.name);
        let found = all(get(cx, &e, &what, &format!("{}{by}", self.0.path())).await?);
        Ok(in_order(found.iter().map(|s| info(self.0, s)).collect(), "name"))
    }
}

struct Create(Kind, Spec);

#[async_trait]
impl Primitive for Create {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name, word) = (Engine::on(cx, call).await?, name(call), self.0.word());
        let data = match call.arg(0) {
            Value::Blob(bytes) => STANDARD.encode(bytes),
            other => STANDARD.encode(reveal(cx, other)),
        };
        if let Some(is) = search(cx, &e, self.0.path(), name).await? {
            if text(&is, "/Spec/Labels/runbook.action") == cx.action_id.0 {
                return Ok(Outcome::changed(()));
            }
            let conflict = |why: &str, hint: &str| {
                Error::new(Code::DOCKER_CONFLICT, format!("the {word} {name} of the swarm of \"{}\" is there{why}", e.name))
                    .host(e.at())
                    .hint(hint)
            };
            return match self.0 {
                Kind::Secret if call.opt_bool("keep") => Ok(Outcome::unchanged((), "it is there; its value cannot be compared")),
                Kind::Secret => Err(conflict(
                    ", and its value cannot be compared",
                    "give the new value a name of its own and let the service use that; or take the one that is there by #{ keep: true }",
                )),
                Kind::Config if text(&is, "/Spec/Data") == data => Ok(Outcome::unchanged((), "it is there")),
                Kind::Config => Err(conflict(" with another text", "give the new text a name of its own, and let the service use that")),
            };
        }
        let mut spec = json!({"Name": name, "Data": data, "Labels": {}});
        set_labels(&mut spec, call.opt("labels").and_then(Value::as_map).unwrap_or(&BTreeMap::new()));
        mark(&mut spec, &[(ACTION, &cx.action_id.0), (MADE, &cx.run)]);
        let what = format!("making the {word} {name} of the swarm of \"{}\"", e.name);
        post(cx, &e, &what, &format!("{}/create", self.0.path()), &spec).await?;
        Ok(Outcome::changed(()))
    }
}

struct Remove(Kind, Spec);

#[async_trait]
impl Primitive for Remove {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name, word) = (Engine::on(cx, call).await?, name(call), self.0.word());
        let Some(is) = search(cx, &e, self.0.path(), name).await? else { return Ok(Outcome::unchanged((), "there is none")) };
        if call.opt_bool("own") && !is.pointer("/Spec").is_some_and(|spec| by_this_run(cx, spec, MADE)) {
            return Ok(Outcome::unchanged((), "this run has not made it"));
        }
        let what = format!("removing the {word} {name} of the swarm of \"{}\"", e.name);
        let removed = delete(cx, &e, &what, &format!("{}/{}", self.0.path(), encoded(text(&is, "/ID")))).await;
        let removed = removed.map_err(|mut fault| {
            if fault.message.contains("is in use by") {
                fault.code = Code::DOCKER_CONFLICT;
                return fault.hint("update() the services so that they do not use it, or remove() them");
            }
            fault
        })?;
        Ok(Outcome::done(removed, "there is none"))
    }
}

struct Label(Kind, Spec);

#[async_trait]
impl Primitive for Label {
    fn spec(&self) -> &Spec {
        &self.1
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (e, name, word) = (Engine::on(cx, call).await?, name(call), self.0.word());
        let Some(is) = search(cx, &e, self.0.path(), name).await? else {
            return Err(Error::new(Code::DOCKER_MISSING, format!("the swarm of \"{}\" has no {word} {name}", e.name)).host(e.at()));
        };
        let before = is.pointer("/Spec").cloned().unwrap_or(Json::Null);
        let mut spec = before.clone();
        set_labels(&mut spec, call.arg(0).as_map().unwrap_or(&BTreeMap::new()));
        if spec == before {
            return Ok(Outcome::unchanged((), "it has these labels"));
        }
        let what = format!("labelling the {word} {name} of the swarm of \"{}\"", e.name);
        let path = format!("{}/{}/update?version={}", self.0.path(), encoded(text(&is, "/ID")), int(&is, "/Version/Index"));
        post(cx, &e, &what, &path, &spec).await?;
        Ok(Outcome::changed(()))
    }
}
