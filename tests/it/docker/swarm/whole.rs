//! A swarm from nothing to a stack that survives the loss of a node, and back to nothing, through a runbook.

use super::*;

const STACK: &str = r#"
version: "3.8"
services:
  web:
    image: base:1
    command: ["sh", "-c", "busybox mkdir -p /www; echo $$GREETING >/www/index.html; exec httpd -f -p 80 -h /www"]
    environment: { GREETING: "${GREETING}" }
    init: true
    secrets: [db_1]
    configs: [conf_1]
    ports: [{ target: 80, published: 8080, mode: host }]
    networks: [front]
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
      update_config: { order: stop-first, monitor: 1s, failure_action: rollback }
secrets: { db_1: { external: true } }
configs: { conf_1: { external: true } }
networks: { front: { driver: overlay } }
"#;

const RUNBOOK: &str = r#"
let m = docker("n1");
let swarm = m.swarm();
let web = swarm.service("shop_web");
let soon = #{ within: "60s", steady: "500ms" };

phase "The swarm" {
    step "The first manager" { swarm.init(#{ advertise: "10.97.0.1" }); } undo { swarm.leave(#{ force: true }); }
    for n in ["n2", "n3"] {
        step `${n} joins` { docker(n).swarm().join(m); } undo { docker(n).swarm().leave(); }
    }
}
phase "The shop" {
    step "Its secret" { swarm.secret("db_1").create(secret("db")); } undo { swarm.secret("db_1").remove(#{ own: true }); }
    step "Its config" { swarm.config("conf_1").create("workers = 4\n"); } undo { swarm.config("conf_1").remove(#{ own: true }); }
    step "Its stack" {
        swarm.stack("shop").deploy("/srv/shop/stack.yaml", #{ env: #{ GREETING: "good day" }, within: "60s", steady: "500ms" });
    } undo { swarm.stack("shop").remove(); }
    step "Three of it" { let before = web.scale(3, soon); log(before); } undo { web.scale(2, soon); }
    step "n3 is drained" {
        swarm.node("n3").drain();
        web.wait_converged(soon);
        log(swarm.node("n3").tasks());
    } undo { swarm.node("n3").activate(); }
}
gate "Go on?";
phase "Again" {
    step "n3 is back" { swarm.node("n3").activate(); web.wait_converged(soon); } undo { }
    step "A bad version" { web.update(#{ command: "echo no database >&2; exit 3", within: "60s" }); } undo { web.rollback(soon); }
}
"#;

#[test]
fn a_swarm_is_built_gets_a_stack_loses_a_node_and_all_of_it_is_taken_back() {
    let Some(t) = Three::start() else { return };
    std::fs::create_dir(t.srv(1).join("shop")).unwrap();
    std::fs::write(t.srv(1).join("shop/stack.yaml"), STACK).unwrap();
    // One task a node can publish the port: three fit on three nodes, and two when one is drained.
    let runbook = RUNBOOK.replace("web.scale(3, soon); log(before);", "web.scale(1, soon); web.scale(2, soon); log(before);");
    let desk = Project::new(&t.inventory(), &runbook);
    let password = "s3cr3t-of-the-database";
    let run = |args: &[&str], status: i32| {
        let out = desk.command(args).env("RUNBOOK_TEST_DB", password).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(status), "{args:?}: {text}");
        text
    };
    run(&["check", "a.rhai"], 0);
    let mut said = run(&["run", "a.rhai", "--env", "test", "--no-input"], 5);

    // What the stock client says of it.
    assert_eq!(t.docker("node ls --format {{.Hostname}}").lines().count(), 3);
    assert_eq!(t.docker("node inspect n3 --format {{.Spec.Availability}}"), "drain");
    assert_eq!(t.runs_on("shop_web"), ["n1", "n2"], "the service runs elsewhere");
    // It answers: from another node, at the port of the host; and by its name, over the network between the nodes.
    let body = |answer: String| answer.split("\r\n\r\n").nth(1).unwrap_or(&answer).to_string();
    for n in [1, 2] {
        let script = format!("exec 3<>/dev/tcp/{}/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3", address(n));
        let answer = t.engine(n % 2 + 1).inside().args(["timeout", "10", "bash", "-c", &script]).output().unwrap();
        assert_eq!(body(String::from_utf8_lossy(&answer.stdout).into_owned()), "good day\n", "n{n}: {answer:?}");
    }
    let id = t.docker("ps -q --filter name=shop_web");
    let named = t.engine(1).docker(&["exec", &id, "busybox", "nslookup", "tasks.web"]);
    let tasks: Vec<&str> = named.lines().filter_map(|l| l.strip_prefix("Address: ")).collect();
    assert_eq!(tasks.len(), 2, "{named}");
    for task in tasks {
        let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {task} 80");
        assert_eq!(body(t.engine(1).docker(&["exec", &id, "sh", "-c", &script])), "good day", "{task}");
    }
    assert_eq!(t.engine(1).docker(&["exec", &id, "cat", "/run/secrets/db_1", "/conf_1"]), format!("{password}workers = 4"));

    // The gate is answered; the bad version fails, is rolled back by the swarm, and that is told as the step's failure.
    let run_id = desk.newest();
    run(&["approve", &run_id], 0);
    let failed = run(&["resume", "--yes"], 1);
    assert!(failed.contains("RB1010") && failed.contains("was rolled back") && failed.contains("non-zero exit (3)"), "{failed}");
    assert_eq!(t.runs_on("shop_web").len(), 2);
    let args = t.docker("service inspect shop_web --format {{.Spec.TaskTemplate.ContainerSpec.Args}}");
    assert!(args.contains("httpd"), "the former version: {args}");
    said.push_str(&failed);

    // Nothing of what is secret is anywhere.
    let tokens = ["worker", "manager"].map(|r| t.docker(&format!("swarm join-token -q {r}")));
    said.push_str(&run(&["rollback"], 6));
    said.push_str(&run(&["audit", "export"], 0));
    said.push_str(&run(&["log"], 0));
    for secret in tokens.iter().map(String::as_str).chain([password]) {
        assert!(!said.contains(secret), "a secret is shown");
        let found = Command::new("grep").args(["-r", "-a", "-l", "-F", "--", secret]).arg(desk.dir()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "a secret is on disk");
    }

    // And it is as before.
    for n in 1..=3 {
        assert_eq!(t.engine(n).docker(&["info", "-f", "{{.Swarm.LocalNodeState}}"]), "inactive", "n{n}");
        assert_eq!(t.engine(n).docker(&["ps", "-aq"]), "", "n{n}");
    }
    run(&["audit", "verify"], 0);
}
