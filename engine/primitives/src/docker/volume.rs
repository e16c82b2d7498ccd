//! `Volume.inspect`, `create`, `copy_from`, `diff_from`, `remove`.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use bollard::models::{Volume, VolumeCreateRequest};
use bollard::query_parameters::RemoveVolumeOptions;
use futures::FutureExt as _;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};

use super::acts::acting;
use super::engine::Engine;
use super::info;
use super::network::labels;
use super::things::name;
use crate::ssh::{CopyKind, copy_folder};

const ERRORS: &[Code] = &[Code::DOCKER, Code::DOCKER_CONFLICT, Code::DOCKER_MISSING, Code::DOCKER_CONNECT, Code::SSH_CONNECT];
const COPY_ERRORS: &[Code] = &[
    Code::DOCKER_MISSING,
    Code::DOCKER_COPY,
    Code::DOCKER_CONNECT,
    Code::FILE_READ,
    Code::FILE_WRITE,
    Code::FILE_CHECKSUM,
    Code::COPY_DELETES,
    Code::DISK_SPACE,
];

pub(super) fn register(r: &mut Registry) {
    r.add(acting(
        Spec::method("Volume", "inspect", Effect::Read, "Tells what the volume is and where it lies.")
            .returns(Ty::Record("VolumeInfo"))
            .example(r#"log(docker("old").volume("shop_data").inspect().folder);"#)
            .errors(ERRORS),
        |cx, e, call| inspect(cx, e, call).boxed(),
    ));
    r.add(Create(
        Spec::method(
            "Volume",
            "create",
            Effect::Converge,
            "Makes the volume, unless it is there. One with another driver or other options is an error.",
        )
        .option("driver", Ty::Str, "`local` when not given.")
        .option("options", Ty::Map(Box::new(Ty::Str)), "The driver's options.")
        .option("labels", Ty::Map(Box::new(Ty::Str)), "Its labels.")
        .example(r#"docker("new").volume("shop_data").create();"#)
        .errors(ERRORS),
    ));
    r.add(acting(
        Spec::method(
            "Volume",
            "remove",
            Effect::Converge,
            "Removes the volume with all that is in it. There is nothing to do when there is none; one that a container has is an error.",
        )
        .example(r#"docker("old").volume("shop_data").remove();"#)
        .errors(ERRORS),
        |cx, e, call| remove(cx, e, call).boxed(),
    ));
    let common = |s: Spec| {
        s.arg("engine", Ty::Record("Docker"), "The engine to copy from.")
            .option("name", Ty::Str, "The volume's name there; the same when not given.")
            .option("checksum", Ty::Bool, "Compare the SHA-256 sums of files that look equal too.")
            .option(
                "xattrs",
                Ty::Bool,
                "Compare extended attributes and ACLs too, so that a change of them alone is seen; needs `getfattr` on both hosts.",
            )
    };
    let copy = Spec::method(
        "Volume",
        "copy_from",
        Effect::Converge,
        "Makes the volume equal to one on another engine, with owners (by number), permissions, times, links, holes, ACLs and extended attributes. \
         It is made when it is not there, with the other's driver options and labels. There is nothing to do when both are equal.\n\nThe files go as \
         those of `Host.copy_from` do: only what differs, from host to host, with SHA-256 sums compared afterwards unless told otherwise. So copy it ahead with `accept_changing` while it \
         is in use, and once more in the window, when its containers are stopped. Both engines must be those of hosts of the inventory, and the \
         volumes in folders of these (the driver `local`).",
    );
    r.add(Copy {
        kind: CopyKind::Copy,
        spec: common(copy)
            .option(
                "max_delete",
                Ty::Int,
                "How many files may be deleted that the source does not have; a quarter of them, and 100 in any case, when not given.",
            )
            .option(
                "accept_changing",
                Ty::Bool,
                "Whether files may change while they are copied, as in a first pass ahead of the window; see `Host.copy_from`.",
            )
            .option("verify", Ty::Str, "How what was copied is compared: `\"checksum\"` (usual), or `\"size\"`, which compares sizes and times and reads no file again.")
            .option("bandwidth", Ty::Bytes, "At most so much a second: `\"10MiB\"`.")
            .returns(Ty::Record("FileCopy"))
            .example(r#"docker("new").volume("shop_data").copy_from(docker("old"));"#)
            .errors(COPY_ERRORS),
    });
    r.add(Copy {
        kind: CopyKind::Diff,
        spec: common(Spec::method(
            "Volume",
            "diff_from",
            Effect::Read,
            "Tells what `copy_from` with the same arguments would do to a volume that is there. Nothing is written.",
        ))
        .returns(Ty::Record("FileDiff"))
        .example(r#"log(docker("new").volume("shop_data").diff_from(docker("old")).bytes);"#)
        .errors(COPY_ERRORS),
    });
}

async fn find(engine: &Engine, name: &str) -> Result<Option<Volume>> {
    engine.find(&format!("looking at the volume {name} on \"{}\"", engine.name), engine.api.inspect_volume(name)).await
}

async fn look(engine: &Engine, name: &str) -> Result<Volume> {
    engine.ask(&format!("looking at the volume {name} on \"{}\"", engine.name), engine.api.inspect_volume(name)).await
}

async fn inspect(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    Ok(info::volume(look(engine, name(call)).await?).into())
}

struct Create(Spec);

#[async_trait]
impl Primitive for Create {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (engine, name) = (Engine::on(cx, call).await?, name(call));
        let given = call.opt("options").and_then(Value::as_map).into_iter().flatten();
        let options: HashMap<String, String> = given.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_string()))).collect();
        let driver = call.opt_str("driver").unwrap_or("local");
        let (_, made) = create(&engine, name, driver, options, labels(cx, call)).await?;
        Ok(Outcome::done(made, "it is there"))
    }
}

/// Makes a volume unless it is there; whether it was made.
pub(super) async fn create(
    engine: &Engine,
    name: &str,
    driver: &str,
    options: HashMap<String, String>,
    labels: HashMap<String, String>,
) -> Result<(Volume, bool)> {
    if let Some(is) = find(engine, name).await? {
        if is.driver == driver && is.options == options {
            return Ok((is, false));
        }
        return Err(Error::new(
            Code::DOCKER_CONFLICT,
            format!("the volume {name} on \"{}\" is there with another driver or other options", engine.name),
        )
        .host(engine.at())
        .hint("remove it if nobody needs it, or use another name"));
    }
    let request = VolumeCreateRequest {
        name: Some(name.to_string()),
        driver: Some(driver.to_string()),
        driver_opts: Some(options),
        labels: Some(labels),
        ..Default::default()
    };
    let made = engine.ask(&format!("making the volume {name} on \"{}\"", engine.name), engine.api.create_volume(request)).await?;
    Ok((made, true))
}

async fn remove(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let what = format!("removing the volume {name} on \"{}\"", engine.name);
    let removed = engine.find(&what, engine.api.remove_volume(name, None::<RemoveVolumeOptions>)).await?.is_some();
    Ok(Outcome::done(removed, "there is none"))
}

struct Copy {
    kind: CopyKind,
    spec: Spec,
}

/// From where a volume is mounted, when it is not a plain folder of its host.
pub(super) async fn elsewhere(engine: &Engine, name: &str) -> Result<Option<String>> {
    let v = look(engine, name).await?;
    if v.driver != "local" {
        return Ok(Some(format!("the driver {}", v.driver)));
    }
    Ok(v.options.get("device").cloned().or_else(|| v.options.get("type").cloned()))
}

/// Makes a volume as it is on another engine, without what is in it; whether it was made.
pub(super) async fn define(from: &Engine, to: &Engine, name: &str) -> Result<bool> {
    let v = look(from, name).await?;
    Ok(create(to, name, &v.driver, v.options, v.labels).await?.1)
}

/// The host of an engine whose volumes are copied as files.
pub(super) fn host(engine: &Engine) -> Result<&str> {
    engine.host.as_deref().ok_or_else(|| {
        Error::new(
            Code::DOCKER_COPY,
            format!("the engine \"{}\" is reached without a host, so the files of its volumes are not", engine.name),
        )
        .hint("give the engine host = \"…\" in runbook.toml")
    })
}

/// Where the files of a volume lie on its host.
fn folder<'a>(engine: &Engine, v: &'a Volume) -> Result<&'a str> {
    if v.driver != "local" || v.mountpoint.is_empty() {
        return Err(Error::new(
            Code::DOCKER_COPY,
            format!("the volume {} on \"{}\" is kept by the driver {}", v.name, engine.name, v.driver),
        )
        .host(engine.at())
        .hint("only volumes of the driver local are folders that can be copied; move the others by their own means"));
    }
    if let Some(device) = v.options.get("device") {
        return Err(Error::new(Code::DOCKER_COPY, format!("the volume {} on \"{}\" is mounted from {device}", v.name, engine.name))
            .host(engine.at())
            .hint("what is there is no folder of this engine; copy it by its own means, or mount it on the other host too"));
    }
    Ok(&v.mountpoint)
}

/// Makes a volume equal to one on another engine, or tells what that would do. Making it is a change too.
pub(super) async fn copy(
    cx: &Cx,
    kind: CopyKind,
    from: &Engine,
    source: &str,
    to: &Engine,
    target: &str,
    mut options: BTreeMap<String, Value>,
) -> Result<Outcome> {
    let (old_host, new_host) = (host(from)?, host(to)?);
    let v = look(from, source).await?;
    let there = folder(from, &v)?;
    let (own, made) = match kind {
        CopyKind::Copy => create(to, target, &v.driver, v.options.clone(), v.labels.clone()).await?,
        CopyKind::Diff => (look(to, target).await?, false),
    };
    for (key, value) in [("numeric_ids", true), ("delete", kind == CopyKind::Copy), ("sudo", from.sudo || to.sudo)] {
        if value {
            options.insert(key.into(), true.into());
        }
    }
    let mut outcome = copy_folder(cx, kind, (old_host, there), (new_host, folder(to, &own)?), options).await?;
    if made {
        outcome.changed = Some(true);
    }
    Ok(outcome)
}

#[async_trait]
impl Primitive for Copy {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (from, to) = futures::try_join!(Engine::given(cx, call), Engine::on(cx, call))?;
        let source = call.opt_str("name").unwrap_or(name(call));
        let options = call.options.iter().filter(|(k, _)| *k != "name").map(|(k, v)| (k.clone(), v.clone())).collect();
        copy(cx, self.kind, &from, source, &to, name(call), options).await
    }
}
