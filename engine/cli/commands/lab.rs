//! `runbook lab`: the embedded environment, a process of its own that outlives the controller.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use runbook_core::inventory::{Inventory, Section};
use runbook_core::{Code, Error, Result};
use runbook_lab::Plan;
use serde_json::json;

use crate::app::{App, Done};
use crate::command_error::Failure;
use crate::project::Project;
use crate::terminal::Terminal;

/// Starts, shows, resets and ends the embedded environment on this machine
#[derive(Debug, Subcommand)]
pub enum Lab {
    /// Starts it: hosts with SSH, a name server, a shop and its customer, on loopback
    Up(Which),
    /// Shows what is up, and the customer's orders
    Status(Which),
    /// Brings back the state before the migration
    Reset(Which),
    /// Ends it; its files stay
    Down(Which),
}

/// Which lab.
#[derive(Debug, Args)]
pub struct Which {
    /// The embedded environment; needed when there are several
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
}

impl Lab {
    pub fn run(self, app: &App) -> Result<Done, Failure> {
        let project = app.project()?;
        let inventory = project.inventory()?;
        let (Lab::Up(which) | Lab::Status(which) | Lab::Reset(which) | Lab::Down(which)) = &self;
        let name = embedded(&inventory, which.env.as_deref())?;
        let dir = project.lab(&name);
        let runtime = app.runtime()?;
        Ok(match &self {
            Lab::Up(_) => {
                let info = runtime.block_on(runbook_lab::up(&dir, &plan(&inventory, &name)?))?;
                let mut text = format!("the lab of \"{name}\" is up; customers reach {} at {}\n", info.name, info.entry);
                for (host, h) in &info.hosts {
                    text.push_str(&format!("  {host:8}  {}  {}\n", h.ssh, h.folder.display()));
                }
                Done::new(text, json!({ "up": true, "environment": name, "lab": info }))
            }
            Lab::Status(_) => {
                let s = runtime.block_on(runbook_lab::status(&dir))?;
                let state = if s.up { "up" } else { "not up" };
                let lost = s.orders_lost.map_or("not looked up".to_string(), |n| n.to_string());
                let text = format!(
                    "the lab of \"{name}\" is {state}\n  orders placed   {}\n  orders refused  {}\n  orders lost     {lost}\n  downtime        {:.1}s\n",
                    s.orders_placed, s.orders_refused, s.downtime_s
                );
                Done::new(text, json!(s))
            }
            Lab::Reset(_) => {
                // One that is not up has its addresses and files still: it is started, then brought back.
                ready(&project, &inventory, &name, &runtime, &app.term)?;
                runtime.block_on(runbook_lab::reset(&dir))?;
                Done::new(format!("the lab of \"{name}\" is as before the migration\n"), json!({ "reset": true, "environment": name }))
            }
            Lab::Down(_) => {
                runtime.block_on(runbook_lab::down(&dir))?;
                Done::new(format!("the lab of \"{name}\" is down\n"), json!({ "up": false, "environment": name }))
            }
        })
    }
}

/// The embedded environment that is meant.
fn embedded(inventory: &Inventory, given: Option<&str>) -> Result<String> {
    if let Some(name) = given {
        if inventory.declared(name)?.embedded {
            return Ok(name.to_string());
        }
        return Err(Error::new(Code::USAGE, format!("environment \"{name}\" is not embedded"))
            .hint("a lab belongs to an environment with embedded = true"));
    }
    let all: Vec<&String> = inventory.environments.iter().filter(|(_, e)| e.embedded).map(|(n, _)| n).collect();
    match all.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Error::new(Code::USAGE, "no environment of runbook.toml is embedded")
            .hint("set embedded = true in one, as `runbook init` does")),
        several => {
            let list = several.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", ");
            Err(Error::new(Code::USAGE, format!("several environments are embedded: {list}")).hint("add --env NAME"))
        }
    }
}

/// What the lab of an environment is to be, from the inventory.
///
/// # Errors
/// `RB0114` when a setting that it needs is missing.
pub fn plan(inventory: &Inventory, name: &str) -> Result<Plan> {
    let env = inventory.declared(name)?;
    let missing =
        |what: &str| Error::new(Code::INVENTORY_MISSING, format!("environment \"{name}\" has no {what}")).at(env.location.clone());
    let lab = env.lab.as_ref().ok_or_else(|| missing("\"lab\""))?;
    let names = |s: Section| env.resources.get(&s).into_iter().flat_map(|m| m.keys().cloned());
    let zone =
        names(Section::Zones).filter(|z| lab.name == *z || lab.name.ends_with(&format!(".{z}"))).max_by_key(String::len).ok_or_else(
            || missing(&format!("zone that \"{}\" lies in", lab.name)).hint("add [environments.….zones.\"…\"] with kind = \"rfc2136\""),
        )?;
    let proxies = env.resources.get(&Section::Proxies).into_iter().flat_map(|m| m.values());
    let mut edge_hosts: Vec<String> = proxies.filter_map(|p| p.str("host").map(str::to_string)).collect();
    edge_hosts.push(lab.app_host.clone());
    edge_hosts.sort();
    edge_hosts.dedup();
    Ok(Plan {
        hosts: names(Section::Hosts).collect(),
        edge_hosts,
        zone,
        name: lab.name.clone(),
        ttl: lab.ttl,
        order_every: lab.order_every,
        app_host: lab.app_host.clone(),
        exe: executable()?,
        env_name: name.to_string(),
    })
}

/// Starts the lab of an environment unless it is up, and says what the inventory lacks.
///
/// # Errors
/// `RB0900`, `RB0114`.
pub fn ready(
    project: &Project,
    inventory: &Inventory,
    name: &str,
    runtime: &tokio::runtime::Runtime,
    term: &Terminal,
) -> Result<serde_json::Value> {
    let dir = project.lab(name);
    let plan = plan(inventory, name)?;
    runtime.block_on(async {
        if !runbook_lab::peek(&dir).await.is_ok_and(|s| s.up) && !term.json {
            term.err(&format!("starting the lab of \"{name}\"\n"));
        }
        runbook_lab::up(&dir, &plan).await?;
        runbook_lab::overlay(&dir).await
    })
}

/// This executable; also when it was replaced since it started.
fn executable() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::internal(format!("this executable cannot be found: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_plan_comes_from_its_inventory() {
        let inventory = runbook_core::inventory::parse(include_str!("../../../runbooks/cutover/runbook.toml"), "runbook.toml").unwrap();
        let p = plan(&inventory, "demo").unwrap();
        assert_eq!(p.hosts, ["new", "old", "vault"]);
        assert_eq!(
            (p.edge_hosts.as_slice(), p.zone.as_str(), p.app_host.as_str()),
            (&["new".to_string(), "old".into()][..], "example.test", "old")
        );
        p.check().unwrap();
        assert_eq!(embedded(&inventory, None).unwrap(), "demo");
    }

    #[test]
    fn the_first_projects_plan_holds() {
        let inventory = runbook_core::inventory::parse(include_str!("../templates/runbook.toml"), "runbook.toml").unwrap();
        plan(&inventory, "lab").unwrap().check().unwrap();
        assert_eq!(embedded(&inventory, Some("production")).unwrap_err().code, Code::USAGE);
    }
}
