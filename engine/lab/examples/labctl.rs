//! Tries the lab by hand: `labctl up|status|peek|overlay|reset|down DIR`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runbook_core::Result;
use runbook_lab::Plan;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = args.as_slice()
        && first == "__lab"
    {
        std::process::exit(runbook_lab::lab_main(rest));
    }
    let [verb, dir] = args.as_slice() else {
        eprintln!("usage: labctl up|status|peek|overlay|reset|down DIR");
        std::process::exit(2);
    };
    let done = tokio::runtime::Runtime::new().map_err(|e| runbook_core::Error::internal(e.to_string()));
    match done.and_then(|rt| rt.block_on(run(verb, Path::new(dir)))) {
        Ok(json) => println!("{json:#}"),
        Err(e) => {
            eprintln!("{e}\n{}", e.hint.as_deref().unwrap_or(""));
            std::process::exit(1);
        }
    }
}

async fn run(verb: &str, dir: &Path) -> Result<serde_json::Value> {
    let json = |v| serde_json::to_value(v).map_err(|e| runbook_core::Error::internal(e.to_string()));
    match verb {
        "up" => {
            let plan = Plan {
                hosts: ["old", "new", "vault"].map(String::from).to_vec(),
                edge_hosts: ["old", "new"].map(String::from).to_vec(),
                zone: "example.test".into(),
                name: "shop.example.test".into(),
                ttl: Duration::from_secs(12),
                order_every: Duration::from_millis(20),
                app_host: "old".into(),
                exe: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("labctl")),
                env_name: "demo".into(),
            };
            let info = runbook_lab::up(dir, &plan).await?;
            serde_json::to_value(info).map_err(|e| runbook_core::Error::internal(e.to_string()))
        }
        "peek" => json(runbook_lab::peek(dir).await?),
        "overlay" => runbook_lab::overlay(dir).await,
        "reset" => runbook_lab::reset(dir).await.map(|()| serde_json::Value::Null),
        "down" => runbook_lab::down(dir).await.map(|()| serde_json::Value::Null),
        _ => json(runbook_lab::status(dir).await?),
    }
}
