//! What stands on an engine, as scripts name it: `docker("new").volume("shop_data")`. Nothing is contacted to make one.

use std::collections::BTreeMap;

use runbook_core::inventory::{Environment, Section};
use runbook_core::primitive::{Cx, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

use super::engine::host_of;

pub(super) fn register(r: &mut Registry) {
    r.add_type(TypeSpec::new("Docker", "A Docker Engine of the inventory.").field("name", Ty::Str, "Its name.").field(
        "host",
        Ty::Str,
        "The inventory name of its host; empty when it is reached without one.",
    ));
    r.add_pure(
        Spec::function("docker", Effect::Pure, "Gives the Docker Engine of that name in the inventory.")
            .arg("name", Ty::Str, "Its name in `[environments.….engines]` of runbook.toml.")
            .returns(Ty::Record("Docker"))
            .example(r#"let new = docker("new");"#)
            .errors(&[Code::UNKNOWN_NAME]),
        docker,
    );
    for t in [
        Thing {
            ty: "Container",
            method: "container",
            doc: "Gives the container of that name on the engine. Nothing is contacted.",
            is: "A container of a Docker Engine.",
            arg: "Its name or its id.",
            example: r#"docker("new").container("shop-web-1").restart();"#,
        },
        Thing {
            ty: "Image",
            method: "image",
            doc: "Gives the image of that name on the engine. Nothing is contacted.",
            is: "An image of a Docker Engine.",
            arg: "Its name with its tag (`latest` when that is left out), or its id.",
            example: r#"docker("new").image("shop:7").copy_from(docker("old"));"#,
        },
        Thing {
            ty: "Volume",
            method: "volume",
            doc: "Gives the volume of that name on the engine. Nothing is contacted.",
            is: "A volume of a Docker Engine.",
            arg: "Its name.",
            example: r#"docker("new").volume("shop_data").copy_from(docker("old"));"#,
        },
        Thing {
            ty: "Network",
            method: "network",
            doc: "Gives the network of that name on the engine. Nothing is contacted.",
            is: "A network of a Docker Engine.",
            arg: "Its name.",
            example: r#"docker("new").network("shop").create();"#,
        },
    ] {
        r.add_type(
            TypeSpec::new(t.ty, t.is)
                .field("engine", Ty::Str, "The name of the engine in the inventory.")
                .field("host", Ty::Str, "The inventory name of the engine's host.")
                .field("name", Ty::Str, "Its name."),
        );
        let spec = Spec::method("Docker", t.method, Effect::Pure, t.doc)
            .arg("name", Ty::Str, t.arg)
            .returns(Ty::Record(t.ty))
            .example(t.example)
            .errors(&[Code::COMMAND_BAD]);
        r.add_pure(
            spec,
            match t.ty {
                "Container" => |env, call| thing(env, call, "Container"),
                "Image" => |env, call| thing(env, call, "Image"),
                "Volume" => |env, call| thing(env, call, "Volume"),
                _ => |env, call| thing(env, call, "Network"),
            },
        );
    }
}

struct Thing {
    ty: &'static str,
    method: &'static str,
    doc: &'static str,
    is: &'static str,
    arg: &'static str,
    example: &'static str,
}

fn docker(env: &Environment, call: &Call) -> Result<Value> {
    let e = env.resource(Section::Engines, call.str(0))?;
    let fields =
        BTreeMap::from([("name".to_string(), Value::from(e.name.as_str())), ("host".to_string(), Value::from(host_of(env, &e.name)?))]);
    Ok(Record::handle("Docker", e.name.clone(), fields).into())
}

/// Whether the engine could take this as a name. Checked here, so that `check` finds it: it goes into the path of a request.
pub(super) fn named(name: &str, image: bool) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    starts && name.len() <= 255 && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c) || image && "/:@".contains(c))
}

fn thing(env: &Environment, call: &Call, ty: &'static str) -> Result<Value> {
    let (engine, name) = (call.target(), call.str(0));
    if !named(name, ty == "Image") {
        let what = ty.to_lowercase();
        return Err(Error::new(
            Code::COMMAND_BAD,
            format!("\"{name}\" cannot be the name of {} {what}", if ty == "Image" { "an" } else { "a" }),
        )
        .hint("such a name begins with a letter or a digit, and has these, `_`, `.` and `-` in it"));
    }
    let fields = BTreeMap::from([
        ("engine".to_string(), Value::from(engine)),
        ("host".to_string(), Value::from(host_of(env, engine)?)),
        ("name".to_string(), Value::from(name)),
    ]);
    Ok(Record::handle(ty, format!("{engine}/{name}"), fields).into())
}

/// The name of the thing that a method was called on.
pub(super) fn name(call: &Call) -> &str {
    call.receiver.as_ref().map_or("", |r| r.str("name"))
}

/// A text or a secret as it is, for the engine. A secret is struck from everything from now on.
pub(super) fn reveal(cx: &Cx, v: &Value) -> String {
    match v {
        Value::Secret(s) => {
            cx.redactor.add(s.reveal());
            s.reveal().to_string()
        }
        other => other.as_str().unwrap_or("").to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_change_a_request_are_refused() {
        for good in ["shop", "shop-web-1", "a.b_c"] {
            assert!(named(good, false), "{good}");
        }
        assert!(named("registry.example:5000/shop/web:7", true) && named("shop@sha256:00ff", true));
        for bad in ["", "-x", "a b", "a/b", "../x", "a?b=c", "a\n", "ä"] {
            assert!(!named(bad, false), "{bad}");
        }
        assert!(!named("shop?x", true) && !named("/shop", true));
    }
}
