//! `Image.inspect`, `pull`, `tag`, `remove`; `copy_from` stands beside it.

mod build;
mod copy;
pub mod layers;

pub(super) use copy::{copy, pieces};

use async_trait::async_trait;
use bollard::auth::DockerCredentials;
use bollard::models::ImageInspect;
use bollard::query_parameters::{CreateImageOptions, RemoveImageOptions, TagImageOptions};
use futures::{FutureExt as _, StreamExt as _};
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

use super::acts::acting;
use super::engine::Engine;
use super::info::{map, texts};
use super::things::{name, named};

const ERRORS: &[Code] = &[Code::DOCKER, Code::DOCKER_MISSING, Code::DOCKER_CONFLICT, Code::DOCKER_CONNECT, Code::SSH_CONNECT];

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("ImageInfo", "An image.")
            .field("id", Ty::Str, "Its id: the hash of its configuration, which names all of its content.")
            .field("tags", Ty::List(Box::new(Ty::Str)), "Its names.")
            .field("bytes", Ty::Bytes, "Its size, with the layers that it shares.")
            .field("architecture", Ty::Str, "The processor that it is for, such as `amd64`.")
            .field("layers", Ty::List(Box::new(Ty::Str)), "The hashes of its layers, the lowest first.")
            .field("digests", Ty::List(Box::new(Ty::Str)), "Its names in registries, with the hash by which it was pulled.")
            .field("labels", Ty::Map(Box::new(Ty::Str)), "Its labels."),
    );
    r.add(acting(
        Spec::method("Image", "inspect", Effect::Read, "Tells what the image is.")
            .returns(Ty::Record("ImageInfo"))
            .example(r#"log(docker("old").image("shop:7").inspect().id);"#)
            .errors(ERRORS),
        |cx, e, call| inspect(cx, e, call).boxed(),
    ));
    r.add(acting(
        Spec::method(
            "Image",
            "pull",
            Effect::Converge,
            "Pulls the image from its registry. There is nothing to do when the registry has the one that is there.",
        )
        .option("user", Ty::Str, "The login at the registry; none when not given.")
        .option("password", Ty::Secret, "Its password or token.")
        .option("platform", Ty::Str, "Such as `linux/arm64`; the engine's own when not given.")
        .returns(Ty::Record("ImageInfo"))
        .example(r#"docker("new").image("registry.example/shop:7").pull(#{ user: "deploy", password: secret("registry") });"#)
        .errors(ERRORS),
        |cx, e, call| pull(cx, e, call).boxed(),
    ));
    r.add(Tag(Spec::method("Image", "tag", Effect::Converge, "Gives the image a further name, which may have been another's.")
        .arg("name", Ty::Str, "The name with its tag; `latest` when that is left out.")
        .example(r#"docker("new").image("shop:7").tag("shop:current");"#)
        .errors(ERRORS)));
    r.add(acting(
        Spec::method(
            "Image",
            "remove",
            Effect::Converge,
            "Takes the name off the image, and removes it with its last name. There is nothing to do when there is none; one that a container has is an error.",
        )
        .example(r#"docker("old").image("shop:6").remove();"#)
        .errors(ERRORS), |cx, e, call| remove(cx, e, call).boxed()));
    build::register(r);
    copy::register(r);
}

async fn find(engine: &Engine, name: &str) -> Result<Option<ImageInspect>> {
    engine.find(&format!("looking at the image {name} on \"{}\"", engine.name), engine.api.inspect_image(name)).await
}

async fn look(engine: &Engine, name: &str) -> Result<ImageInspect> {
    engine.ask(&format!("looking at the image {name} on \"{}\"", engine.name), engine.api.inspect_image(name)).await
}

/// The hashes of an image's layers, the lowest first.
fn layers_of(i: &ImageInspect) -> Vec<String> {
    i.root_fs.as_ref().and_then(|r| r.layers.clone()).unwrap_or_default()
}

fn info(i: ImageInspect) -> Record {
    let layers = layers_of(&i);
    let labels = i.config.and_then(|c| c.labels);
    Record::new(
        "ImageInfo",
        [
            ("id", i.id.unwrap_or_default().into()),
            ("tags", texts(i.repo_tags.unwrap_or_default())),
            ("bytes", Value::Bytes(i.size.and_then(|s| u64::try_from(s).ok()).unwrap_or_default())),
            ("architecture", i.architecture.unwrap_or_default().into()),
            ("layers", texts(layers)),
            ("digests", texts(i.repo_digests.unwrap_or_default())),
            ("labels", map(labels)),
        ],
    )
}

/// A name as repository and tag; `latest` when it has none.
fn split(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        // A colon before a slash is that of a registry's port.
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    }
}

async fn inspect(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    Ok(info(look(engine, name(call)).await?).into())
}

async fn pull(cx: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let before = find(engine, name).await?.and_then(|i| i.id);
    let credentials = call.opt_secret("password").map(|p| {
        cx.redactor.add(p.reveal());
        DockerCredentials {
            username: call.opt_str("user").map(str::to_string),
            password: Some(p.reveal().to_string()),
            serveraddress: registry(name).map(str::to_string),
            ..Default::default()
        }
    });
    let (from, tag) = if name.contains('@') { (name, "") } else { split(name) };
    let options = CreateImageOptions {
        from_image: Some(from.to_string()),
        tag: Some(tag.to_string()).filter(|t| !t.is_empty()),
        platform: call.opt_str("platform").unwrap_or_default().to_string(),
        ..Default::default()
    };
    let pulled = async {
        let mut all = engine.api.create_image(Some(options), None, credentials);
        let mut seen = std::collections::BTreeMap::new();
        while let Some(said) = all.next().await {
            let said = said?;
            let (Some(id), Some(p)) = (said.id, said.progress_detail) else { continue };
            if said.status.as_deref() == Some("Downloading") {
                seen.insert(id, (p.current.unwrap_or_default(), p.total.unwrap_or_default()));
                let sum = |f: fn(&(i64, i64)) -> i64| u64::try_from(seen.values().map(f).sum::<i64>()).unwrap_or_default();
                cx.progress(format!("pulling {name}"), sum(|x| x.0), Some(sum(|x| x.1)), "bytes");
            }
        }
        Ok(())
    };
    engine.ask(&format!("pulling {name} on \"{}\"", engine.name), pulled).await?;
    let now = look(engine, name).await?;
    let same = before.is_some() && before == now.id;
    let value = info(now);
    Ok(if same { Outcome::unchanged(value, "the registry has the one that is there") } else { Outcome::changed(value) })
}

/// The registry in a name, when one is named.
fn registry(name: &str) -> Option<&str> {
    name.split_once('/').map(|(first, _)| first).filter(|f| f.contains(['.', ':']) || *f == "localhost")
}

struct Tag(Spec);

#[async_trait]
impl Primitive for Tag {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (engine, own, other) = (Engine::on(cx, call).await?, name(call), call.str(0));
        if !named(other, true) || other.contains('@') {
            return Err(Error::new(Code::COMMAND_BAD, format!("\"{other}\" cannot be the name of an image")));
        }
        let id = look(&engine, own).await?.id;
        if find(&engine, other).await?.is_some_and(|i| i.id == id) {
            return Ok(Outcome::unchanged((), "it has that name"));
        }
        tag(&engine, own, other).await?;
        Ok(Outcome::changed(()))
    }
}

/// Gives an image a name.
async fn tag(engine: &Engine, image: &str, name: &str) -> Result<()> {
    let (repository, tag) = split(name);
    let options = TagImageOptions { repo: Some(repository.to_string()), tag: Some(tag.to_string()) };
    engine.ask(&format!("naming the image {image} on \"{}\"", engine.name), engine.api.tag_image(image, Some(options))).await
}

async fn remove(_: &Cx, engine: &Engine, call: &Call) -> Result<Outcome> {
    let name = name(call);
    let what = format!("removing the image {name} on \"{}\"", engine.name);
    let removed = engine.find(&what, engine.api.remove_image(name, None::<RemoveImageOptions>, None)).await?.is_some();
    Ok(Outcome::done(removed, "there is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_registry_and_a_tag() {
        assert_eq!(split("shop"), ("shop", "latest"));
        assert_eq!(split("a.example:5000/shop"), ("a.example:5000/shop", "latest"));
        assert_eq!(split("a.example:5000/shop:7"), ("a.example:5000/shop", "7"));
        assert_eq!(registry("a.example:5000/shop:7"), Some("a.example:5000"));
        assert_eq!(registry("localhost/shop"), Some("localhost"));
        assert_eq!(registry("library/shop"), None);
    }
}
