//! `Image.copy_from`: an image from one engine to another, without a registry; only the layers that the other does not have.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bollard::models::ImageInspect;
use bollard::query_parameters::{ImportImageOptions, ListImagesOptions};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Record, Result, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{find, layers_of, look, tag};
use crate::docker::engine::Engine;
use crate::docker::things::name;
use crate::ssh::{Exec, connect, helper, quote};

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("ImageCopy", "What a copy of an image did.")
            .field("id", Ty::Str, "The image's id, the same on both engines.")
            .field("layers", Ty::Int, "How many layers it has.")
            .field("there", Ty::Int, "How many of them were there already.")
            .field("sent", Ty::Bytes, "How much went over the network."),
    );
    r.add(CopyFrom(
        Spec::method(
            "Image",
            "copy_from",
            Effect::Converge,
            "Copies the image of that name from another engine, without a registry. There is nothing to do when it is there with that name.\n\n\
             Only the layers that this engine does not have leave the other's host: this program finds them there, beside the engine. Where it cannot \
             run there, all layers are sent. Both engines check the hashes of what they read, and the image's id, which names all of its content, is compared afterwards.",
        )
        .arg("engine", Ty::Record("Docker"), "The engine to copy from.")
        .returns(Ty::Record("ImageCopy"))
        .example(r#"docker("new").image("shop:7").copy_from(docker("old"));"#)
        .errors(&[Code::DOCKER, Code::DOCKER_MISSING, Code::DOCKER_COPY, Code::DOCKER_CONNECT, Code::SSH_CONNECT]),
    ));
}

struct CopyFrom(Spec);

#[async_trait]
impl Primitive for CopyFrom {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (from, to) = futures::try_join!(Engine::given(cx, call), Engine::on(cx, call))?;
        copy(cx, &from, &to, name(call)).await
    }
}

/// Copies an image; nothing happens when it is there.
pub(in crate::docker) async fn copy(cx: &Cx, from: &Engine, to: &Engine, name: &str) -> Result<Outcome> {
    let image = look(from, name).await?;
    let layers = layers_of(&image);
    let id = image.id.clone().unwrap_or_default();
    let value = |there: usize, sent: u64| {
        let int = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        Record::new(
            "ImageCopy",
            [("id", id.as_str().into()), ("layers", int(layers.len())), ("there", int(there)), ("sent", Value::Bytes(sent))],
        )
    };
    if find(to, name).await?.is_some_and(|i| same(&i, &image)) {
        return Ok(Outcome::unchanged(value(layers.len(), 0), "it is there"));
    }
    if find(to, &id).await?.is_some_and(|i| same(&i, &image)) {
        tag(to, &id, name).await?;
        return Ok(Outcome::changed(value(layers.len(), 0)).note("it was there without that name"));
    }
    let there = layers_there(to, &layers).await?;
    let sending = send(cx, from, name, &image, there).await?;
    let sent = load(cx, from, to, name, sending).await?;
    let now = find(to, name).await?;
    if !now.is_some_and(|i| same(&i, &image)) {
        return Err(Error::new(
            Code::DOCKER_COPY,
            format!("the image {name} did not arrive on \"{}\" as it is on \"{}\"", to.name, from.name),
        )
        .host(to.at())
        .hint("look at its id and its layers on both: docker image inspect"));
    }
    let note = format!("{} of {} layers were there; {} sent", there, layers.len(), show_bytes(sent));
    Ok(Outcome::changed(value(there, sent)).note(note))
}

/// Whether two engines mean the same image. Its id is the hash of its configuration, which has the hashes of all layers in it; engines
/// that keep images in another store name them by another hash.
fn same(a: &ImageInspect, b: &ImageInspect) -> bool {
    a.id == b.id
        || (a.descriptor.is_some() != b.descriptor.is_some()
            && !layers_of(a).is_empty()
            && layers_of(a) == layers_of(b)
            && a.created == b.created)
}

/// How many of these layers, from the lowest on, an engine has, each upon the same ones.
async fn layers_there(engine: &Engine, layers: &[String]) -> Result<usize> {
    let what = format!("listing the images of \"{}\"", engine.name);
    let all = ListImagesOptions { all: true, ..Default::default() };
    let images = engine.ask(&what, engine.api.list_images(Some(all))).await?;
    let ids: BTreeSet<String> = images.into_iter().map(|i| i.id).collect();
    let found: Vec<Option<ImageInspect>> =
        stream::iter(ids).map(|id| async move { find(engine, &id).await }).buffer_unordered(4).try_collect().await?;
    let common = |i: ImageInspect| layers_of(&i).iter().zip(layers).take_while(|(a, b)| a == b).count();
    Ok(found.into_iter().flatten().map(common).max().unwrap_or_default())
}

/// An image on its way.
struct Sending {
    stream: BoxStream<'static, std::io::Result<Bytes>>,
    /// How much will come, about, when that is known.
    total: Option<u64>,
    /// How the sender ended: status and what it said.
    ended: Option<BoxFuture<'static, Result<(i32, String)>>>,
}

async fn send(cx: &Cx, from: &Engine, name: &str, image: &ImageInspect, there: usize) -> Result<Sending> {
    if there > 0
        && let Some(some) = send_without(cx, from, name, image, there).await?
    {
        return Ok(some);
    }
    let all = from.api.export_image(name).map_err(std::io::Error::other);
    Ok(Sending { stream: all.boxed(), total: image.size.and_then(|s| u64::try_from(s).ok()), ended: None })
}

/// Sends an image without the lowest `there` layers, by the helper on its host; `None` where it cannot run.
async fn send_without(cx: &Cx, from: &Engine, name: &str, image: &ImageInspect, there: usize) -> Result<Option<Sending>> {
    let Some(host) = from.host.as_deref() else { return Ok(None) };
    let session = connect(cx, host).await?;
    let at = match helper::put(cx, &session, host, from.sudo.then_some("root")).await {
        Ok(at) => at,
        Err(e) if e.code == Code::DB_HELPER => {
            cx.message(format!("all layers of {name} are sent: {}", e.message));
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let hashes: String = layers_of(image).iter().map(|h| format!(" {}", quote(h))).collect();
    let script = format!("exec {} __helper image send {} {} {there}{hashes}", quote(&at), quote(&from.socket), quote(name));
    let channel = session.open(cx, Exec { sudo: from.sudo, ..Exec::new(script) }).await?;
    Ok(Some(Sending { stream: pieces(channel.stdout).boxed(), total: None, ended: Some(channel.done) }))
}

fn unsent(from: &Engine, name: &str, status: i32, said: &str) -> Error {
    let last = said.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or("").to_string();
    Error::new(Code::DOCKER_COPY, format!("the image {name} could not be read on \"{}\": status {status}: {last}", from.name))
        .host(from.at())
}

/// What is read, in pieces.
pub(in crate::docker) fn pieces(from: Box<dyn AsyncRead + Send + Unpin>) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send {
    stream::try_unfold(from, |mut from| async move {
        let mut piece = bytes::BytesMut::with_capacity(128 << 10);
        Ok(if from.read_buf(&mut piece).await? == 0 { None } else { Some((piece.freeze(), from)) })
    })
}

/// Has an engine load what comes. Gives how many bytes came.
async fn load(cx: &Cx, from: &Engine, to: &Engine, name: &str, sending: Sending) -> Result<u64> {
    let came = Arc::new(AtomicU64::new(0));
    let (count, told, total, what) = (came.clone(), cx.clone(), sending.total, format!("copying {name}"));
    let stream = sending.stream.inspect_ok(move |piece| {
        let so_far = count.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
        told.progress(what.clone(), so_far, total, "bytes");
    });
    let options = ImportImageOptions { quiet: true, ..Default::default() };
    let loaded = async {
        let mut said = to.api.import_image_stream(options, stream, None);
        while let Some(line) = said.next().await {
            line?;
        }
        Ok(())
    };
    let loaded = to.ask(&format!("loading the image {name} on \"{}\"", to.name), loaded).await;
    if let Some(ended) = sending.ended {
        match (ended.await, &loaded) {
            (Ok((0, _)), _) => {}
            // When the target has given up, the sender has nobody to send to: that is not the cause.
            (Ok((status, said)), Ok(())) => return Err(unsent(from, name, status, &said)),
            (Ok((status, said)), Err(_)) if !said.contains("Broken pipe") && said.contains("docker save") => {
                return Err(unsent(from, name, status, &said));
            }
            (Err(e), _) if loaded.is_err() => return Err(e),
            _ => {}
        }
    }
    loaded?;
    Ok(came.load(Ordering::Relaxed))
}
