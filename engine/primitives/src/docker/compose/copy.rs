//! `Compose.copy_from`: a whole project from one engine to another.
//!
//! What belongs to it is asked of the other engine: what its containers were made from and have mounted is what counts. The files add what has
//! no container now.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bollard::models::{ContainerInspectResponse, ContainerSummary, NetworkCreateRequest};
use bollard::query_parameters::ListVolumesOptions;
use runbook_core::primitive::{Cx, Outcome, Primitive, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::units::show_bytes;
use runbook_core::{Code, Error, Record, Result, Value};

use super::{PROJECT, Project, act, config, containers, is_live};
use crate::docker::container::look;
use crate::docker::engine::Engine;
use crate::docker::{image, volume};
use crate::ssh::{CopyKind, copy_folder};

/// What every host has of its own.
const OF_THE_HOST: &[&str] = &[
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/dev",
    "/proc",
    "/sys",
    "/run",
];

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("ComposeCopy", "What a copy of a Compose project did.")
            .field("images", Ty::List(Box::new(Ty::Str)), "Its images.")
            .field("volumes", Ty::List(Box::new(Ty::Str)), "Its volumes.")
            .field("folders", Ty::List(Box::new(Ty::Str)), "The folders of the host that were copied.")
            .field("files", Ty::Int, "Files, folders and links that were copied in volumes and folders.")
            .field("sent", Ty::Bytes, "What went over the network.")
            .field("changing", Ty::Int, "How many files changed meanwhile and are to be copied again; 0 once it is stopped there."),
    );
    r.add(CopyFrom(
        act::env(Spec::method(
            "Compose",
            "copy_from",
            Effect::Converge,
            "Copies the project of that name from another engine: its folder with its files, its images, its volumes, and networks of others that it is on. \
             There is nothing to do when all of it is there.\n\nNothing is started or stopped. So copy it ahead, while it runs, which leaves what changes meanwhile to the next copy; in the window stop it there, \
             copy once more what has changed, and bring it up here. A project that runs here is not copied over: that is an error.\n\n\
             What its containers on the other engine have mounted says what belongs to it; besides, volumes that Compose made for it, and those images of its files that are there. A folder of the host outside the project's own must be named in \
             `folders` or in `leave`: nothing is copied over a folder of this host unasked. Sockets and files that every host has (`/etc/localtime` and the like) are left alone. \
             Volumes without a name hold what Compose throws away with a container; they are named in a message and not copied. Of volumes that are mounted from \
             elsewhere (NFS, for example) only the definition is copied.",
        )
        .arg("engine", Ty::Record("Docker"), "The engine to copy from."))
        .option("folders", Ty::List(Box::new(Ty::Str)), "Folders outside the project's own to be copied, too.")
        .option("leave", Ty::List(Box::new(Ty::Str)), "Folders and files outside the project's own that are not copied.")
        .option("exclude", Ty::List(Box::new(Ty::Str)), "What to leave alone in folders, as for `Host.copy_from`.")
        .option("checksum", Ty::Bool, "Compare the SHA-256 sums of files that look equal too.")
        .option("max_delete", Ty::Int, "How many files may be deleted in one volume or folder; a quarter of them, and 100 in any case, when not given.")
        .option("bandwidth", Ty::Bytes, "At most so much a second: `\"10MiB\"`.")
        .returns(Ty::Record("ComposeCopy"))
        .example(
            r#"let shop = docker("new").compose("/srv/shop");
shop.copy_from(docker("old"), #{ folders: ["/srv/uploads"] });"#,
        )
        .errors(&[
            Code::DOCKER_COMPOSE,
            Code::DOCKER_MISSING,
            Code::DOCKER_CONFLICT,
            Code::DOCKER_COPY,
            Code::DOCKER_CONNECT,
            Code::FILE_CHECKSUM,
            Code::COPY_DELETES,
            Code::DISK_SPACE,
        ]),
    ));
}

/// What belongs to a project, as its containers say.
#[derive(Debug, Default, PartialEq)]
struct Parts {
    images: BTreeSet<String>,
    volumes: BTreeSet<String>,
    /// Volumes without a name: where they are mounted.
    nameless: BTreeSet<String>,
    /// Folders and files of the host.
    binds: BTreeSet<String>,
    networks: BTreeSet<String>,
}

/// Whether a volume has only the name that the engine made for it.
fn nameless(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Parts {
    fn add(&mut self, c: ContainerInspectResponse) {
        let name = c.name.unwrap_or_default();
        self.images.extend(c.config.and_then(|c| c.image));
        for m in c.mounts.unwrap_or_default() {
            match m.typ.map(|t| t.to_string()).as_deref() {
                Some("volume") => match m.name {
                    Some(n) if !nameless(&n) => drop(self.volumes.insert(n)),
                    _ => drop(self.nameless.insert(format!("{} in {}", m.destination.unwrap_or_default(), name.trim_start_matches('/')))),
                },
                Some("bind") => self.binds.extend(m.source),
                _ => {}
            }
        }
        self.networks.extend(c.network_settings.and_then(|n| n.networks).into_iter().flatten().map(|(n, _)| n));
    }

    /// Adds what belongs to the project and no container has: volumes that Compose has made for it, and images of services without one.
    async fn declared(&mut self, cx: &Cx, call: &Call, old: &Project<'_>) -> Result<()> {
        let engine = &old.engine;
        let filters = [("label".to_string(), vec![format!("{PROJECT}={}", old.name)])].into();
        let options = ListVolumesOptions { filters: Some(filters) };
        let what = format!("listing the volumes of {}", old.shown());
        let all = engine.ask(&what, engine.api.list_volumes(Some(options))).await?;
        self.volumes.extend(all.volumes.into_iter().flatten().map(|v| v.name).filter(|n| !nameless(n)));
        let files = match config::read(cx, old, call).await {
            Ok(files) => files,
            Err(e) if matches!(e.code, Code::DOCKER_COMPOSE | Code::HOST_TOOL_MISSING) => {
                cx.message(format!("{}; only what has a container or a volume there is copied", e.message));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        for image in files.get("images").as_list().into_iter().flatten().filter_map(Value::as_str) {
            let what = format!("looking at the image {image} on \"{}\"", engine.name);
            // One that was never there is the new engine's own affair: it is pulled, or built.
            if !self.images.contains(image) && engine.find(&what, engine.api.inspect_image(image)).await?.is_some() {
                self.images.insert(image.to_string());
            }
        }
        Ok(())
    }

    /// The folders to copy, the project's own first; an error names those of which nothing is said.
    fn folders(&self, own: &str, folders: &[String], leave: &[String]) -> Result<Vec<String>> {
        let covered = |b: &str, by: &[String]| by.iter().any(|f| below(b, f.trim_end_matches('/')));
        let open: Vec<&str> = self
            .binds
            .iter()
            .map(String::as_str)
            .filter(|b| !below(b, own) && !OF_THE_HOST.iter().any(|h| below(b, h)) && !covered(b, folders) && !covered(b, leave))
            .collect();
        if !open.is_empty() {
            return Err(Error::new(Code::DOCKER_COMPOSE, format!("its containers have mounted {}, outside of {own}", open.join(", ")))
                .hint("name each in `folders` to have it copied, or in `leave` when this host has its own"));
        }
        let mut all = vec![own.to_string()];
        all.extend(folders.iter().map(|f| f.trim_end_matches('/').to_string()).filter(|f| !below(f, own)));
        Ok(all)
    }
}

/// What was done so far.
#[derive(Default)]
struct Sum {
    changed: bool,
    files: i64,
    sent: u64,
    changing: usize,
}

impl Sum {
    fn add(&mut self, o: &Outcome) {
        self.changed |= o.changed == Some(true);
        let Some(r) = o.value.as_record() else { return };
        self.files += r.get("files").as_int().unwrap_or_default();
        self.changing += r.get("changing").as_list().map_or(0, |l| l.len());
        if let Value::Bytes(n) = r.get("sent") {
            self.sent += n;
        }
    }
}

struct CopyFrom(Spec);

fn texts(call: &Call, name: &str) -> Vec<String> {
    call.opt(name).and_then(Value::as_list).into_iter().flatten().filter_map(|v| v.as_str().map(str::to_string)).collect()
}

#[async_trait]
impl Primitive for CopyFrom {
    fn spec(&self) -> &Spec {
        &self.0
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let (p, from) = futures::try_join!(Project::on(cx, call), Engine::given(cx, call))?;
        let old = Project { host: volume::host(&from)?.to_string(), engine: from, folder: p.folder, name: p.name, files: p.files.clone() };
        let from = &old.engine;
        let theirs = containers(from, p.name).await?;
        // While it runs there this is a pass ahead; once it is stopped, both must be equal in the end.
        let ahead = running(&theirs) > 0;
        let mut parts = parts(&p, from, theirs).await?;
        parts.declared(cx, call, &old).await?;
        let folders = parts.folders(p.folder, &texts(call, "folders"), &texts(call, "leave")).map_err(|e| e.host(from.at()))?;
        let runs = running(&containers(&p.engine, p.name).await?);
        if runs > 0 {
            return Err(Error::new(Code::DOCKER_CONFLICT, format!("{} runs ({runs} containers), and is not copied over", p.shown()))
                .host(&p.host)
                .hint("stop it first; what it has written since would be lost"));
        }
        if !parts.nameless.is_empty() {
            let all: Vec<&str> = parts.nameless.iter().map(String::as_str).collect();
            cx.message(format!("volumes without a name are not copied: {}", all.join(", ")));
        }

        let options = |keys: &[&str]| -> BTreeMap<String, Value> {
            let given = keys.iter().filter_map(|k| Some((k.to_string(), call.opt(k)?.clone())));
            given.chain([("accept_changing".to_string(), ahead.into())]).collect()
        };
        let mut sum = Sum::default();
        for name in &parts.images {
            sum.add(&image::copy(cx, from, &p.engine, name).await?);
        }
        for name in &parts.networks {
            sum.changed |= network(from, &p.engine, name).await?;
        }
        for name in &parts.volumes {
            let options = options(&["checksum", "max_delete", "bandwidth"]);
            if let Some(elsewhere) = volume::elsewhere(from, name).await? {
                cx.message(format!("the volume {name} is mounted from {elsewhere}: its definition is copied, and not what is in it"));
                sum.changed |= volume::define(from, &p.engine, name).await?;
                continue;
            }
            sum.add(&volume::copy(cx, CopyKind::Copy, from, name, &p.engine, name, options).await?);
        }
        for folder in &folders {
            let mut options = options(&["checksum", "max_delete", "bandwidth", "exclude"]);
            options.extend([("numeric_ids".to_string(), true.into()), ("delete".to_string(), true.into())]);
            options.insert("sudo".into(), (from.sudo || p.engine.sudo).into());
            sum.add(&copy_folder(cx, CopyKind::Copy, (&old.host, folder), (&p.host, folder), options).await?);
        }

        let list = |all: Vec<String>| Value::List(all.into_iter().map(Value::from).collect());
        let value = Record::new(
            "ComposeCopy",
            [
                ("images", list(parts.images.into_iter().collect())),
                ("volumes", list(parts.volumes.into_iter().collect())),
                ("folders", list(folders)),
                ("files", sum.files.into()),
                ("sent", Value::Bytes(sum.sent)),
                ("changing", i64::try_from(sum.changing).unwrap_or(i64::MAX).into()),
            ],
        );
        Ok(if sum.changed {
            let still = if sum.changing > 0 { format!(", {} changed meanwhile", sum.changing) } else { String::new() };
            Outcome::changed(value).note(format!("{} files copied, {} sent{still}", sum.files, show_bytes(sum.sent)))
        } else {
            Outcome::unchanged(value, "all of it is there")
        })
    }
}

fn running(all: &[ContainerSummary]) -> usize {
    all.iter().filter(|c| c.state.as_ref().is_some_and(|s| is_live(s.as_ref()))).count()
}

/// What belongs to the project on the other engine.
async fn parts(p: &Project<'_>, from: &Engine, all: Vec<ContainerSummary>) -> Result<Parts> {
    if all.is_empty() {
        return Err(Error::new(Code::DOCKER_MISSING, format!("\"{}\" has no containers of a Compose project {}", from.name, p.name))
            .host(from.at())
            .hint(
                "`docker ps -a --format '{{.Label \"com.docker.compose.project\"}}'` there shows their names; give #{ project: \"…\" }",
            ));
    }
    let mut parts = Parts::default();
    for id in all.into_iter().filter_map(|c| c.id) {
        parts.add(look(from, &id).await?);
    }
    Ok(parts)
}

/// Makes a network that belongs to nobody's project, as it is on the other engine; whether it was made.
async fn network(from: &Engine, to: &Engine, name: &str) -> Result<bool> {
    if matches!(name, "bridge" | "host" | "none") {
        return Ok(false);
    }
    let n = from.ask(&format!("looking at the network {name} on \"{}\"", from.name), from.api.inspect_network(name, None)).await?;
    // Compose makes the project's own.
    if n.labels.as_ref().is_some_and(|l| l.contains_key(PROJECT)) {
        return Ok(false);
    }
    let what = format!("looking at the network {name} on \"{}\"", to.name);
    if to.find(&what, to.api.inspect_network(name, None)).await?.is_some() {
        return Ok(false);
    }
    let request = NetworkCreateRequest {
        name: name.to_string(),
        driver: n.driver,
        internal: n.internal,
        attachable: n.attachable,
        ipam: n.ipam,
        enable_ipv6: n.enable_ipv6,
        options: n.options,
        labels: n.labels,
        ..Default::default()
    };
    to.ask(&format!("making the network {name} on \"{}\"", to.name), to.api.create_network(request)).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_outside_the_project_must_be_decided_on() {
        let binds = ["/srv/shop/conf", "/srv/shopping", "/etc/localtime", "/var/run/docker.sock", "/srv/data/up", "/proc"];
        let parts = Parts { binds: binds.map(String::from).into(), ..Parts::default() };
        let texts = |all: &[&str]| -> Vec<String> { all.iter().map(|s| (*s).to_string()).collect() };
        let e = parts.folders("/srv/shop", &[], &[]).unwrap_err();
        assert!(e.message.contains("mounted /srv/data/up, /srv/shopping, outside of /srv/shop"), "{e}");
        let all = parts.folders("/srv/shop", &texts(&["/srv/data/"]), &texts(&["/srv/shopping"])).unwrap();
        assert_eq!(all, ["/srv/shop", "/srv/data"]);
    }

    #[test]
    fn volumes_without_a_name_are_known() {
        assert!(nameless(&"0f".repeat(32)) && !nameless("shop_data") && !nameless(&"0g".repeat(32)));
    }
}
