//! Compose projects: brought up and down by the host's own Compose, and moved from engine to engine.

mod act;
mod config;
mod copy;

use std::collections::{BTreeMap, HashMap};

use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptions;
use runbook_core::inventory::Environment;
use runbook_core::primitive::{Cx, Registry};
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Error, Record, Result, Value};

use super::engine::{Engine, host_of};

/// The label of everything that belongs to a project.
const PROJECT: &str = "com.docker.compose.project";

pub(super) fn register(r: &mut Registry) {
    r.add_type(
        TypeSpec::new("Compose", "A Compose project on a Docker Engine.")
            .field("engine", Ty::Str, "The name of the engine in the inventory.")
            .field("host", Ty::Str, "The inventory name of the engine's host.")
            .field("folder", Ty::Str, "The folder of its files on that host.")
            .field("project", Ty::Str, "Its name, by which everything of it is labelled.")
            .field("files", Ty::List(Box::new(Ty::Str)), "Its Compose files, when they were named."),
    );
    r.add_pure(
        Spec::method(
            "Docker",
            "compose",
            Effect::Pure,
            "Gives the Compose project in that folder of the engine's host. Nothing is contacted.\n\nThe host needs Compose: as `docker compose`, or as `docker-compose`.",
        )
        .arg("folder", Ty::Str, "The absolute path of the folder with `compose.yaml`.")
        .option("project", Ty::Str, "The project's name; made from the folder's name as Compose does when not given.")
        .option("files", Ty::List(Box::new(Ty::Str)), "The Compose files, relative to the folder; found by Compose when not given.")
        .returns(Ty::Record("Compose"))
        .example(r#"docker("old").compose("/srv/shop").stop();"#)
        .errors(&[Code::COMMAND_BAD]),
        compose,
    );
    act::register(r);
    copy::register(r);
    config::register(r);
}

fn compose(env: &Environment, call: &Call) -> Result<Value> {
    let (engine, folder) = (call.target(), call.str(0).trim_end_matches('/'));
    let bad = |why: String, hint: &str| Err(Error::new(Code::COMMAND_BAD, why).hint(hint));
    if !folder.starts_with('/') || folder.contains('\0') || folder.split('/').any(|p| p == "..") {
        return bad(
            format!("\"{}\" cannot be the folder of a Compose project", call.str(0)),
            "give an absolute path, such as \"/srv/shop\"",
        );
    }
    let project = match call.opt_str("project") {
        Some(p) => p.to_string(),
        None => project_of(folder),
    };
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    if !project.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) || !project.chars().all(fine) {
        return bad(
            format!("\"{project}\" cannot be the name of a Compose project"),
            "give #{ project: \"…\" } with small letters, digits, `_` and `-`",
        );
    }
    let fields = BTreeMap::from([
        ("engine".to_string(), Value::from(engine)),
        ("host".to_string(), Value::from(host_of(env, engine)?)),
        ("folder".to_string(), Value::from(folder)),
        ("project".to_string(), Value::from(project.as_str())),
        ("files".to_string(), call.opt("files").cloned().unwrap_or_else(|| Value::List(vec![]))),
    ]);
    Ok(Record::handle("Compose", format!("{engine}/{project}"), fields).into())
}

/// The name that Compose makes of a folder's: small letters, and of the rest only what may stand in a name.
fn project_of(folder: &str) -> String {
    let name = folder.rsplit('/').next().unwrap_or_default().to_lowercase();
    name.chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(*c))
        .collect::<String>()
        .trim_start_matches(['_', '-'])
        .to_string()
}

/// The project that a method was called on.
struct Project<'a> {
    engine: Engine,
    host: String,
    folder: &'a str,
    name: &'a str,
    files: Vec<&'a str>,
}

impl<'a> Project<'a> {
    async fn on(cx: &Cx, call: &'a Call) -> Result<Project<'a>> {
        let engine = Engine::on(cx, call).await?;
        let host = engine.host.clone().ok_or_else(|| {
            Error::new(Code::DOCKER_COMPOSE, format!("\"{}\" is reached without a host, and Compose runs on one", engine.name))
                .hint("give the engine host = \"…\" in runbook.toml")
        })?;
        let r = call.receiver.as_ref().ok_or_else(|| Error::internal("a project is called on itself"))?;
        let files = r.get("files").as_list().into_iter().flatten().filter_map(Value::as_str).collect();
        Ok(Project { engine, host, folder: r.str("folder"), name: r.str("project"), files })
    }

    /// What it is, for messages.
    fn shown(&self) -> String {
        format!("the Compose project {} on \"{}\"", self.name, self.engine.name)
    }
}

/// The containers of a project, those too that do not run.
async fn containers(engine: &Engine, project: &str) -> Result<Vec<ContainerSummary>> {
    let filters = HashMap::from([("label".to_string(), vec![format!("{PROJECT}={project}")])]);
    let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    engine.ask(&format!("listing the containers of the Compose project {project}"), engine.api.list_containers(Some(options))).await
}

/// Whether a container in this state has processes.
fn is_live(state: &str) -> bool {
    matches!(state, "running" | "restarting" | "paused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_named_after_its_folder_as_compose_does() {
        assert_eq!(project_of("/srv/Shop.example"), "shopexample");
        assert_eq!(project_of("/srv/_my-shop_2"), "my-shop_2");
        let env = Environment::default();
        let docker = Record::handle("Docker", "old", BTreeMap::new());
        let call = |folder: &str| Call { receiver: Some(docker.clone()), args: vec![folder.into()], ..Call::default() };
        for bad in ["", "srv/shop", "/srv/../etc", "/srv/…", "/"] {
            assert_eq!(compose(&env, &call(bad)).unwrap_err().code, Code::COMMAND_BAD, "{bad}");
        }
    }
}
