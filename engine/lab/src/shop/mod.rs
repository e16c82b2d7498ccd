//! The unit `shop`: a small web shop. Orders in SQLite, pictures and papers as files, an HTTP API.

mod db;

use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as Segment, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use runbook_core::Result;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::failed;
pub(crate) use db::{Order, SCHEMA};

/// `shop/shop.conf`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub port: u16,
    pub database: String,
    pub uploads: String,
}

impl Settings {
    /// Reads `key = value` lines; values may be in quotes, `#` begins a comment.
    pub fn parse(text: &str) -> Result<Settings> {
        let (mut port, mut database, mut uploads) = (None, None, None);
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |what: &str| failed(format!("shop.conf, line {}", n + 1), what);
            let (key, value) = line.split_once('=').ok_or_else(|| bad("not of the form key = value"))?;
            let value = value.trim().trim_matches('"').to_string();
            match key.trim() {
                "port" => port = Some(value.parse().map_err(|_| bad("the port is not a number"))?),
                "database" => database = Some(value),
                "uploads" => uploads = Some(value),
                other => return Err(bad(&format!("there is no setting \"{other}\""))),
            }
        }
        let missing = |key: &str| failed("shop.conf", format!("\"{key}\" is missing"));
        Ok(Settings {
            port: port.ok_or_else(|| missing("port"))?,
            database: database.ok_or_else(|| missing("database"))?,
            uploads: uploads.ok_or_else(|| missing("uploads"))?,
        })
    }
}

struct Shop {
    host: String,
    db: Arc<db::Db>,
    uploads: PathBuf,
}

type Shared = State<Arc<Shop>>;

/// A refusal with its reason, as the shop's clients get it.
fn refuse(status: StatusCode, why: impl std::fmt::Display) -> Response {
    (status, Json(json!({ "error": why.to_string() }))).into_response()
}

/// SQLite calls do not run on the event loop.
async fn with_db<T: Send + 'static>(
    shop: &Shop,
    f: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Response> {
    let db = shop.db.clone();
    match tokio::task::spawn_blocking(move || db.with(f)).await {
        Ok(Ok(x)) => Ok(x),
        Ok(Err(e)) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, e)),
        Err(e) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, e)),
    }
}

async fn health(State(shop): Shared) -> Response {
    match with_db(&shop, db::count).await {
        Ok(n) => Json(json!({ "ok": true, "host": shop.host, "orders": n })).into_response(),
        Err(refused) => refused,
    }
}

async fn place(State(shop): Shared, Json(order): Json<Order>) -> Response {
    if order.id.is_empty() || order.id.len() > 64 || order.quantity < 1 {
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, "an order needs an id of at most 64 characters and a quantity");
    }
    match with_db(&shop, move |c| db::place(c, &order)).await {
        Ok(order) => (StatusCode::CREATED, Json(order)).into_response(),
        Err(refused) => refused,
    }
}

async fn order(State(shop): Shared, Segment(id): Segment<String>) -> Response {
    match with_db(&shop, move |c| db::order(c, &id)).await {
        Ok(Some(order)) => Json(order).into_response(),
        Ok(None) => refuse(StatusCode::NOT_FOUND, "there is no such order"),
        Err(refused) => refused,
    }
}

#[derive(Deserialize)]
struct Listing {
    count: Option<String>,
    ids: Option<String>,
    limit: Option<u32>,
}

async fn orders(State(shop): Shared, Query(q): Query<Listing>) -> Response {
    if q.count.is_some() {
        return with_db(&shop, db::count).await.map_or_else(|r| r, |n| Json(json!({ "count": n })).into_response());
    }
    if q.ids.is_some() {
        // Every id in one answer, so that it is one moment of the database.
        return with_db(&shop, db::ids).await.map_or_else(|r| r, |text| ([(header::CONTENT_TYPE, "text/plain")], text).into_response());
    }
    let limit = q.limit.unwrap_or(50).min(1000);
    with_db(&shop, move |c| db::newest(c, limit)).await.map_or_else(|r| r, |l| Json(l).into_response())
}

async fn products(State(shop): Shared) -> Response {
    with_db(&shop, db::products).await.map_or_else(|r| r, |l| Json(l).into_response())
}

/// A path below the uploads, refusing whatever would leave them.
fn inside(root: &Path, name: &str) -> Option<PathBuf> {
    let rel = Path::new(name);
    let sane = !name.is_empty() && rel.components().all(|c| matches!(c, Component::Normal(_)));
    sane.then(|| root.join(rel))
}

async fn download(State(shop): Shared, Segment(name): Segment<String>) -> Response {
    let Some(path) = inside(&shop.uploads, &name) else { return refuse(StatusCode::BAD_REQUEST, "not a file name") };
    match tokio::fs::read(path).await {
        Ok(data) => ([(header::CONTENT_TYPE, "application/octet-stream")], data).into_response(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => refuse(StatusCode::NOT_FOUND, "there is no such file"),
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

async fn upload(State(shop): Shared, Segment(name): Segment<String>, data: Bytes) -> Response {
    let Some(path) = inside(&shop.uploads, &name) else { return refuse(StatusCode::BAD_REQUEST, "not a file name") };
    let write = async {
        if let Some(dir) = path.parent() {
            tokio::fs::create_dir_all(dir).await?;
        }
        let part = path.with_file_name(format!(".upload-{:016x}", rand::random::<u64>()));
        tokio::fs::write(&part, &data).await?;
        tokio::fs::rename(&part, &path).await
    };
    match write.await {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(e) => refuse(StatusCode::SERVICE_UNAVAILABLE, e),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

async fn page(State(shop): Shared) -> Response {
    let read = |c: &rusqlite::Connection| Ok((db::products(c)?, db::count(c)?));
    match with_db(&shop, read).await {
        Ok((products, n)) => {
            let rows: String = products
                .iter()
                .map(|p| format!("<li>{} <small>{}.{:02} €</small></li>", escape(&p.name), p.price_cents / 100, p.price_cents % 100))
                .collect();
            Html(format!(
                "<!doctype html><title>The shop</title><h1>The shop</h1><ul>{rows}</ul><p>{n} orders so far. Served by {}.</p>\n",
                escape(&shop.host)
            ))
            .into_response()
        }
        Err(refused) => refused,
    }
}

/// Runs the shop of the host whose folder is `root` until SIGTERM; requests in hand are finished first.
pub(crate) async fn run(root: PathBuf, own: Ipv4Addr, host: String) -> Result<()> {
    let conf = root.join("shop/shop.conf");
    let text = std::fs::read_to_string(&conf).map_err(|e| failed(format!("{} cannot be read", conf.display()), e))?;
    let settings = Settings::parse(&text)?;
    let db = Arc::new(db::Db::new(root.join(&settings.database)));
    let shop = Arc::new(Shop { host, db: db.clone(), uploads: root.join(&settings.uploads) });
    let app = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/orders", get(orders).post(place))
        .route("/orders/{id}", get(order))
        .route("/products", get(products))
        .route("/uploads/{*name}", get(download).post(upload))
        .layer(DefaultBodyLimit::max(64 << 20))
        .with_state(shop);
    let addr = (own, settings.port);
    let listener = TcpListener::bind(addr).await.map_err(|e| failed(format!("the shop cannot listen on {own}:{}", settings.port), e))?;
    println!("the shop listens on {own}:{}, database {}", settings.port, settings.database);
    let server = axum::serve(listener, app).with_graceful_shutdown(crate::args::terminated());
    let patience = async {
        crate::args::terminated().await;
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    };
    tokio::select! {
        r = async { server.await } => r.map_err(|e| failed("the shop", e))?,
        () = patience => {}
    }
    db.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let text = "# written by runbook\nport = 8081\n\ndatabase = \"shop/shop.db\"\nuploads = shop/uploads\n";
        let s = Settings::parse(text).unwrap();
        assert_eq!(s, Settings { port: 8081, database: "shop/shop.db".into(), uploads: "shop/uploads".into() });
        for (text, why) in [
            ("port = x", "line 1: the port is not a number"),
            ("port = 1\ndatabase = a", "\"uploads\" is missing"),
            ("\ncolour = red", "line 2: there is no setting \"colour\""),
            ("port", "not of the form"),
        ] {
            let e = Settings::parse(text).unwrap_err();
            assert!(e.message.contains(why), "{e}");
        }
    }

    #[test]
    fn file_names_stay_inside() {
        let root = Path::new("/u");
        assert_eq!(inside(root, "a/b.txt"), Some("/u/a/b.txt".into()));
        for name in ["", "/etc/passwd", "../x", "a/../../x"] {
            assert_eq!(inside(root, name), None, "{name}");
        }
    }
}
