//! Engines by the contexts of this machine's docker client, made by that client.

use super::*;
use crate::support::desk::Project;
use crate::support::tls::{Ca, Certificate};

const RUNBOOK: &str = r#"
step "Ask" { let d = docker("by-context"); log(`it is ${d.info().version}, host "${d.host}"`); }
"#;

/// Makes a context with the stock client.
fn context(config: &Path, name: &str, docker: &str) {
    let out = Command::new("docker").env("DOCKER_CONFIG", config).args(["context", "create", name, "--docker", docker]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Runs a runbook that asks the engine of a context: the status, and what was said.
fn asked(p: &Pair, config: &Path, settings: &str) -> (i32, String) {
    let engine = format!("[environments.test.engines.by-context]\nkind = \"docker\"\n{settings}\n");
    let desk = Project::new(&format!("{}{engine}", p.inventory()), RUNBOOK);
    let out = desk.command(&["run", "a.rhai", "--env", "test"]).env("DOCKER_CONFIG", config).output().unwrap();
    (out.status.code().unwrap(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

#[test]
fn a_context_leads_to_a_socket_a_port_or_a_host_of_the_inventory() {
    let (Some(p), Some(ca)) = (Pair::start(), Ca::new("docker")) else { return };
    let config = tempfile::tempdir().unwrap();
    let at = config.path();
    let version = p.a.docker(&["version", "-f", "{{.Server.Version}}"]);

    context(at, "socket", &format!("host=unix://{}", p.a.socket().display()));
    let (status, said) = asked(&p, at, "context = \"socket\"");
    assert!(status == 0 && said.contains(&format!("it is {version}, host \"\"")), "{said}");

    let srv = tempfile::tempdir().unwrap();
    let port = crate::support::free_port();
    let Some(_engine) = Engine::start_with_tls(srv.path(), port, &ca) else { return };
    let (cert, key) = ca.certificate(&Certificate::default());
    std::fs::write(at.join("c.pem"), cert).unwrap();
    std::fs::write(at.join("k.pem"), key).unwrap();
    let files = format!("ca={},cert={1}/c.pem,key={1}/k.pem", ca.file().display(), at.display());
    context(at, "port", &format!("host=tcp://127.0.0.1:{port},{files}"));
    let (status, said) = asked(&p, at, "context = \"port\"");
    assert!(status == 0 && said.contains(&format!("it is {version}, host \"\"")), "{said}");
    context(at, "trusting", &format!("host=tcp://127.0.0.1:{port},skip-tls-verify=true,{files}"));
    let (status, said) = asked(&p, at, "context = \"trusting\"");
    assert!(status != 0 && said.contains("RB0104") && said.contains("does not verify who answers"), "{said}");

    // Over SSH: to the host of the inventory with that address and login, whose key is known. Its socket is not the usual one here.
    let login = p.old.settings()["ssh"].as_str().unwrap().to_string();
    context(at, "ssh", &format!("host=ssh://{login}"));
    let (status, said) = asked(&p, at, &format!("context = \"ssh\"\nsocket = {:?}", p.a.socket().display().to_string()));
    assert!(status == 0 && said.contains(&format!("it is {version}, host \"old\"")), "{said}");
    context(at, "stranger", "host=ssh://deploy@stranger.example");
    let (status, said) = asked(&p, at, "context = \"stranger\"");
    assert!(status != 0 && said.contains("deploy@stranger.example, which is no host of this environment"), "{said}");
    assert!(said.contains("with ssh = \"deploy@stranger.example\""), "{said}");

    let (status, said) = asked(&p, at, "context = \"none\"");
    assert!(status != 0 && said.contains("there is none of that name") && said.contains("docker context ls"), "{said}");
    let (status, said) = asked(&p, at, "context = \"ssh\"\nhost = \"old\"");
    assert!(status != 0 && said.contains("more than one of host, url and context"), "{said}");
}
