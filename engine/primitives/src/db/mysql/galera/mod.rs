//! Galera: members that are begun, joined and stopped, and never a second cluster beside a living one.

mod node;

use std::time::Duration;

use async_trait::async_trait;
use runbook_core::inventory::Section;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use tokio::time::Instant;

use super::Mysql;
use super::connect::{down, get, session};
use super::state;
use crate::db::driver::Db;
use crate::db::galera::{Galera, Member};
use crate::ssh::Place;
use crate::ssh::tunnel;

fn refuse(db: &Db, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DB_CLUSTER, why.to_string()).host(&db.host)
}

/// The other databases of the inventory that are of the same cluster.
fn others(cx: &Cx, db: &Db) -> Result<Vec<Db>> {
    let cluster = db.settings.need("galera_cluster")?;
    let all = cx.env.resources.get(&Section::Databases);
    let names = all.into_iter().flatten().filter(|(n, r)| **n != db.name && r.str("galera_cluster") == Some(cluster)).map(|(n, _)| n);
    names.map(|n| Db::find(cx, n)).collect()
}

/// How long a server may take to say how it is: one that hangs takes connections and never answers.
const ANSWERS: Duration = Duration::from_secs(10);

/// How a server is; `stopped` when it does not run.
async fn look(cx: &Cx, db: &Db) -> Result<Member> {
    tokio::time::timeout(ANSWERS, asked(cx, db)).await.unwrap_or_else(|_| {
        Err(Error::new(Code::DB_CONNECT, format!("\"{}\" takes connections and does not answer within {} s", db.name, ANSWERS.as_secs()))
            .host(&db.host)
            .hint("its server hangs, or its host is overloaded: look at it there")
            .retryable(true))
    })
}

async fn asked(cx: &Cx, db: &Db) -> Result<Member> {
    let is = |status: &str| Member { status: status.into(), ..Member::default() };
    let mut s = match session(cx, db).await {
        Err(e) if down(&e) => return Ok(is("stopped")),
        other => other?,
    };
    // What a member without the majority still answers.
    let rows = match s.rows("SHOW GLOBAL STATUS LIKE 'wsrep\\_%'").await {
        Err(e) if e.code == Code::DB_CONNECT => return Ok(is("stopped")),
        other => other?,
    };
    let on = s.is_on("wsrep_on").await?;
    s.close().await;
    let field = |name: &str| rows.iter().find(|r| get(r, "variable_name") == name).map_or("", |r| get(r, "value"));
    if !on || field("wsrep_provider_name").is_empty() {
        return Ok(is("alone"));
    }
    Ok(Member {
        status: field("wsrep_cluster_status").into(),
        state: field("wsrep_local_state_comment").into(),
        ready: field("wsrep_ready") == "ON",
        size: field("wsrep_cluster_size").parse().unwrap_or(0),
        uuid: field("wsrep_cluster_state_uuid").into(),
        committed: field("wsrep_last_committed").parse().unwrap_or(-1),
        members: field("wsrep_incoming_addresses").into(),
        view: field("wsrep_cluster_conf_id").into(),
    })
}

/// Whether something listens there, seen from the host of a member.
async fn listens(cx: &Cx, from: &Db, address: &str, port: u16) -> bool {
    tunnel::stream(cx, &from.host, &Place::Tcp(address.to_string(), port), None).await.is_ok()
}

/// Refuses unless it is certain that no other member lives, or runs apart from this one.
async fn none_lives(cx: &Cx, db: &Db, me: &Member, lost: &[String]) -> Result<()> {
    for other in others(cx, db)? {
        let it = match look(cx, &other).await {
            Err(_) if lost.contains(&other.name) => continue,
            Err(e) => {
                return Err(refuse(
                    db,
                    format!(
                        "\"{}\" must not begin a cluster: whether \"{}\" is in a living one is not known: {}",
                        db.name, other.name, e.message
                    ),
                )
                .hint(format!("reach it, or say lost: [\"{}\"] when it is dead for certain", other.name)));
            }
            Ok(it) => it,
        };
        let beside = |why: String| Err(refuse(db, format!("\"{}\" must not begin a cluster: {why}", db.name)));
        match it.status.as_str() {
            "Primary" => {
                return beside(format!("\"{}\" is a member of a living one ({})", other.name, it.show()))
                    .map_err(|e: Error| e.hint("join it with galera_join"));
            }
            "alone" => {}
            "stopped" => {
                // A server that is starting, or that hangs, answers here and nowhere else.
                let (address, port) = node::address(cx, &other)?;
                if listens(cx, db, &address, port).await {
                    return beside(format!("\"{}\" does not answer, but something of it listens at {address}:{port}", other.name))
                        .map_err(|e: Error| e.hint("wait until it is up, or end that process"));
                }
            }
            // It sees what this one sees: the majority that both lack can be given to both.
            _ if !me.members.is_empty() && me.members == it.members && me.uuid == it.uuid => {}
            _ => {
                return beside(format!("\"{}\" runs apart from it ({})", other.name, it.show())).map_err(|e: Error| {
                    e.hint("stop that one, or bootstrap it instead: the one with the later transactions (galera_status: committed)")
                });
            }
        }
    }
    Ok(())
}

/// Refuses a server that has another part to play.
async fn unbound(cx: &Cx, db: &Db) -> Result<()> {
    let mut s = session(cx, db).await?;
    let marks = state::read(&mut s).await?;
    s.close().await;
    let part = match marks {
        m if m.fence.is_some() => "a fence stands on it",
        m if m.replica.is_some() => "it is a replica",
        _ => return Ok(()),
    };
    Err(refuse(db, format!("\"{}\" cannot become a member of a cluster: {part}", db.name))
        .hint("unfence it, promote it, or drop the copy first"))
}

#[async_trait]
impl Galera for Mysql {
    async fn bootstrap(&self, cx: &Cx, db: &Db, force: bool, lost: &[String]) -> Result<bool> {
        let me = look(cx, db).await?;
        if me.primary() {
            return Ok(false);
        }
        none_lives(cx, db, &me, lost).await?;
        if !matches!(me.status.as_str(), "stopped" | "alone") {
            // It runs without the majority, and the others are gone: it becomes the majority as it is.
            let mut s = session(cx, db).await?;
            s.run("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'").await?;
            s.close().await;
            return Ok(true);
        }
        if me.status == "alone" {
            unbound(cx, db).await?;
        }
        let data = node::data(cx, db, &me).await?;
        let kept = node::kept(cx, db, &data).await?;
        if !kept.safe && !force {
            return Err(refuse(
                db,
                format!("\"{}\" was not the last to leave its cluster (it has {}): others may have later rows", db.name, kept.show()),
            )
            .hint("bootstrap the one that was, or the one with the highest position; force: true begins with this one even so"));
        }
        node::configure(cx, db).await?;
        if me.status == "alone" {
            node::control(cx, db, "stop").await?;
        }
        if !kept.safe {
            node::make_safe(cx, db, &data).await?;
        }
        node::control(cx, db, "bootstrap").await?;
        Ok(true)
    }

    async fn join(&self, cx: &Cx, db: &Db, replace: bool) -> Result<bool> {
        let me = look(cx, db).await?;
        if me.primary() {
            return Ok(false);
        }
        let mut living = None;
        let mut seen = Vec::new();
        for other in others(cx, db)? {
            match look(cx, &other).await {
                Ok(it) if it.primary() => living = Some((other, it)),
                Ok(it) => seen.push(format!("\"{}\": {}", other.name, it.show())),
                Err(e) => seen.push(format!("\"{}\": {}", other.name, e.message)),
            }
        }
        let Some((_, it)) = living else {
            let seen = if seen.is_empty() { "the inventory has no other member".to_string() } else { seen.join("; ") };
            return Err(refuse(db, format!("\"{}\" has no living cluster to join: {seen}", db.name))
                .hint("begin it with galera_bootstrap on one member"));
        };
        if !matches!(me.status.as_str(), "stopped" | "alone") {
            // It is on its way by itself.
            return Ok(true);
        }
        if me.status == "alone" {
            unbound(cx, db).await?;
        }
        let data = node::data(cx, db, &me).await?;
        let kept = node::kept(cx, db, &data).await?;
        if kept.uuid != it.uuid && !kept.schemas.is_empty() && !replace {
            return Err(refuse(
                db,
                format!("\"{}\" has schemas that did not come from this cluster: {}", db.name, kept.schemas.join(", ")),
            )
            .hint("move them away, or use replace: true, which throws them away"));
        }
        node::configure(cx, db).await?;
        if me.status == "alone" {
            node::control(cx, db, "stop").await?;
        }
        node::control(cx, db, "start").await?;
        Ok(true)
    }

    async fn member(&self, cx: &Cx, db: &Db) -> Result<Member> {
        look(cx, db).await
    }

    async fn apart(&self, cx: &Cx, db: &Db, me: &Member) -> Result<Option<String>> {
        let others = others(cx, db)?;
        let seen = futures::future::join_all(others.iter().map(|other| look(cx, other))).await;
        let apart = others.iter().zip(seen).find_map(|(other, it)| {
            let it = it.ok().filter(|it| it.primary() && (it.uuid != me.uuid || it.view != me.view))?;
            Some(format!("\"{}\" sees other members ({})", other.name, it.show()))
        });
        Ok(apart)
    }

    async fn listens(&self, cx: &Cx, db: &Db) -> Result<bool> {
        let (address, port) = node::address(cx, db)?;
        Ok(listens(cx, db, &address, port).await)
    }

    async fn leave(&self, cx: &Cx, db: &Db, last: bool) -> Result<bool> {
        let me = look(cx, db).await?;
        if matches!(me.status.as_str(), "stopped" | "alone") {
            return Ok(false);
        }
        if me.state.starts_with("Donor") {
            return Err(refuse(db, format!("\"{}\" gives its rows to another member now ({})", db.name, me.state))
                .hint("wait until that one is synced")
                .retryable(true));
        }
        let mut stays = None;
        for other in others(cx, db)? {
            if look(cx, &other).await.is_ok_and(|it| it.synced() && it.uuid == me.uuid) {
                stays = Some(other);
            }
        }
        if stays.is_none() && !last {
            return Err(refuse(db, format!("\"{}\" is the last member that is synced: the cluster would end", db.name))
                .hint("use last: true to end it"));
        }
        node::control(cx, db, "stop").await?;
        let begun = Instant::now();
        loop {
            let gone = look(cx, db).await?.status == "stopped";
            let rest = match &stays {
                Some(other) => Some(look(cx, other).await?),
                None => None,
            };
            if gone && rest.as_ref().is_none_or(|r| r.synced() && r.size < me.size) {
                return Ok(true);
            }
            if begun.elapsed() > Duration::from_secs(60) {
                let rest = rest.map_or(String::new(), |r| format!("; the others: {}", r.show()));
                return Err(refuse(db, format!("\"{}\" was told to stop{rest}, and is not gone in order", db.name)).retryable(true));
            }
            cx.sleep(Duration::from_millis(200)).await?;
        }
    }
}
