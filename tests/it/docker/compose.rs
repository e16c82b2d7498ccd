//! A Compose project with two services, a named volume and a mounted folder, from engine to engine.

use std::time::{Duration, Instant};

use super::*;
use crate::support::desk::{Project, until};

const COMPOSE: &str = r#"
services:
  web:
    image: shop:1
    init: true
    command: ["httpd", "-f", "-p", "8080", "-h", "/data"]
    volumes: ["data:/data", "./conf:/conf:ro"]
    environment: { GREETING: "${GREETING}" }
    healthcheck: { test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/log"], interval: 1s, retries: 20 }
  writer:
    image: shop:1
    init: true
    command: ["sh", "-c", "i=0; while :; do i=$$((i+1)); echo \"$$HOSTNAME $$i\" >>/data/log; echo $$i >/data/file-$$((i % 200)); sleep 0.01; done"]
    volumes: ["data:/data"]
volumes:
  data:
"#;

const RUNBOOK: &str = r#"
let old = docker("old");
let new = docker("new");
let from = old.compose("/srv/shop");
let to = new.compose("/srv/shop");

phase "Ahead" { step "Copy while it runs" { to.copy_from(old); } }
downtime "Cutover" #{ budget: "5m" } {
    step "Stop the old one" { from.stop(#{ timeout: "2s" }); } undo { from.start(); }
    step "Copy what has changed" { log(to.copy_from(old).files); } undo { }
    step "Start the new one" { to.up(#{ within: "60s" }); } undo { to.down(); }
    step "Smoke test" {
        let web = to.ps().filter(|c| c.name.contains("web"))[0];
        new.container(web.name).exec(["sh", "-c", "wget -q -O - http://127.0.0.1:8080/log | head -n 1; cat /conf/which; echo $GREETING"]);
        if host("new").read("cat /srv/broken 2>/dev/null || true").stdout != "" { throw "it is broken"; }
    } undo { }
}
point_of_no_return "The new one takes orders";
"#;

impl Pair {
    /// The project on `old`, up.
    fn shop(&self) {
        self.a.base();
        self.a.build("shop:1", "FROM base:1\nCOPY note /note\n", &[("note", b"a shop\n".to_vec())]);
        let at = self.srv[0].path().join("shop");
        std::fs::create_dir_all(at.join("conf")).unwrap();
        std::fs::write(at.join("compose.yaml"), COMPOSE).unwrap();
        std::fs::write(at.join("conf/which"), "by hand\n").unwrap();
        std::fs::write(at.join(".env"), "GREETING=good day\n").unwrap();
        self.compose(0, "up -d");
        until("the log grows", || self.log(&self.a).is_some_and(|l| l.lines().count() > 20));
    }

    /// The stock Compose on a host, as anybody would use it.
    fn compose(&self, host: usize, words: &str) -> String {
        let engine = [&self.a, &self.b][host];
        let own = self.srv[host].path().display();
        let script = format!(
            "export DOCKER_HOST=unix://{}; unshare -m sh -c 'mount --bind {own} /srv && cd /srv/shop && docker-compose {words}'",
            engine.socket().display()
        );
        sh(&script, Path::new("/"))
    }

    fn log(&self, engine: &Engine) -> Option<String> {
        std::fs::read_to_string(engine.volume("shop_data").join("log")).ok()
    }
}

fn sums(of: &Path) -> String {
    sh("find . -printf '%p %y %m %U:%G %s\n' | sort; find . -type f -exec sha256sum {} + | sort", of)
}

#[test]
fn a_project_moves_while_it_writes_and_is_taken_back() {
    if !crate::support::have("docker-compose") {
        return;
    }
    let Some(p) = Pair::start() else { return };
    p.shop();
    let desk = Project::new(&p.inventory(), RUNBOOK);
    desk.expect(&["check", "a.rhai"], 0);

    // The last step fails: everything is taken back, and the old one goes on with what it had.
    std::fs::write(p.srv[1].path().join("broken"), "yes").unwrap();
    let said = desk.expect(&["run", "a.rhai", "--env", "test"], 1);
    assert!(said.contains("it is broken"), "{said}");
    let stopped = p.log(&p.a).unwrap();
    assert_eq!(p.log(&p.b).unwrap().lines().take(stopped.lines().count()).collect::<Vec<_>>(), stopped.lines().collect::<Vec<_>>());
    desk.expect(&["rollback"], 6);
    assert_eq!(p.b.docker(&["ps", "-aq"]), "", "nothing runs on the new one");
    assert_eq!(p.a.docker(&["ps", "-q"]).lines().count(), 2);
    until("the old one writes again", || p.log(&p.a).unwrap().len() > stopped.len());
    assert!(p.log(&p.a).unwrap().starts_with(&stopped), "nothing is lost");

    // And now it stays.
    std::fs::remove_file(p.srv[1].path().join("broken")).unwrap();
    let began = Instant::now();
    desk.expect(&["run", "a.rhai", "--env", "test"], 0);
    println!("the second move took {:.1} s", began.elapsed().as_secs_f64());
    let (log, last) = (p.log(&p.b).unwrap(), p.log(&p.a).unwrap());
    assert!(log.starts_with(&last) && last.starts_with(&stopped), "all that was written before the window is there");
    until("the new one writes", || p.log(&p.b).unwrap().len() > last.len());
    assert_eq!(p.a.docker(&["ps", "-q"]), "", "nothing runs on the old one");
    let output = desk.expect(&["log"], 0);
    assert!(output.contains("by hand") && output.contains("good day"), "{output}");
    assert!(p.compose(1, "ps").contains("shop_web_1"), "the stock Compose knows it");
    desk.expect(&["audit", "verify"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_has_nothing_to_do_the_second_time_and_what_is_wrong_is_said() {
    if !crate::support::have("docker-compose") {
        return;
    }
    let Some(mut p) = Pair::start() else { return };
    p.shop();
    let on = "compose /srv/shop";
    let old = || vec![p.engine("old")];
    assert!(!p.changes("old", on, "up", vec![]).await, "all of it runs");
    for (method, expected) in [("stop", [true, false]), ("start", [true, false]), ("stop", [true, false])] {
        for wanted in expected {
            assert_eq!(p.changes("old", on, method, vec![]).await, wanted, "{method}");
        }
    }
    let files = p.does("old", on, "config", vec![]).await;
    let services: Vec<Record> = files.get("services").as_list().unwrap().iter().map(|s| s.as_record().unwrap().clone()).collect();
    assert_eq!(services.iter().map(|s| s.str("name")).collect::<Vec<_>>(), ["web", "writer"]);
    assert_eq!(services[0].get("volumes"), &list(&["data:/data", "/srv/shop/conf:/conf:ro"]));
    assert_eq!(
        (services[0].get("env"), services[0].str("image"), files.get("images")),
        (&list(&["GREETING"]), "shop:1", &list(&["shop:1"]))
    );
    assert_eq!(files.get("volumes").as_map().unwrap()["data"], "shop_data".into());
    assert!(!format!("{files:?}").contains("good day"), "values of variables are not told");
    let all = p.call("old", "docker", "projects", vec![]).await.unwrap().value;
    let [project] = all.as_list().unwrap() else { panic!("{all:?}") };
    let project = project.as_record().unwrap();
    assert_eq!((project.str("name"), project.str("folder"), project.get("files")), ("shop", "/srv/shop", &list(&["compose.yaml"])));
    assert_eq!(
        (project.get("containers"), project.get("running"), project.get("services")),
        (&Value::Int(2), &Value::Int(0), &list(&["web", "writer"]))
    );
    let copy = p.does("new", on, "copy_from", old()).await;
    assert_eq!(copy.get("changing"), &Value::Int(0));
    assert_eq!(
        (copy.get("images"), copy.get("volumes"), copy.get("folders")),
        (&list(&["shop:1"]), &list(&["shop_data"]), &list(&["/srv/shop"]))
    );
    assert!(!p.changes("new", on, "copy_from", old()).await, "all of it is there");
    assert_eq!(sums(&p.a.volume("shop_data")), sums(&p.b.volume("shop_data")));
    assert_eq!(sums(p.srv[0].path()), sums(p.srv[1].path()));

    let e = p.fails("new", on, "start", vec![]).await;
    assert!(e.code == Code::DOCKER_COMPOSE && e.hint.as_deref() == Some("up() makes them"), "{e}");
    assert!(p.changes("new", on, "up", vec![]).await);
    let e = p.fails("new", on, "copy_from", old()).await;
    assert!(e.code == Code::DOCKER_CONFLICT && e.message.contains("runs (2 containers)"), "{e}");
    assert!(p.changes("new", on, "down", vec![]).await);
    assert!(!p.changes("new", on, "down", vec![]).await);
    assert!(p.b.try_docker(&["volume", "inspect", "shop_data"]).0, "its volume stays");

    // What has no container now belongs to it as well: a service that is brought up by hand, and a volume of one that is gone.
    let file = p.srv[0].path().join("shop/compose.yaml");
    let more = "  repair:\n    image: repair:1\n    profiles: [by-hand]\n    volumes: [\"spare:/spare\"]\nvolumes:\n  spare:\n";
    std::fs::write(&file, COMPOSE.replace("volumes:\n  data:", &format!("{more}  data:"))).unwrap();
    p.a.build("repair:1", "FROM base:1\nENV REPAIR=1\n", &[]);
    p.compose(0, "run --rm --no-deps repair touch /spare/part");
    let copy = p.does("new", on, "copy_from", old()).await;
    assert_eq!((copy.get("images"), copy.get("volumes")), (&list(&["repair:1", "shop:1"]), &list(&["shop_data", "shop_spare"])));
    assert!(p.b.volume("shop_spare").join("part").exists() && p.b.try_docker(&["image", "inspect", "repair:1"]).0);
    std::fs::write(&file, COMPOSE).unwrap();

    // A folder outside must be decided on; a file that Compose cannot read; a project that is not there.
    std::fs::create_dir(p.srv[0].path().join("other")).unwrap();
    std::fs::write(p.srv[0].path().join("other/file"), "x").unwrap();
    std::fs::write(&file, COMPOSE.replace("./conf:/conf:ro", "/srv/other:/conf:ro")).unwrap();
    p.compose(0, "up --no-start");
    let e = p.fails("new", on, "copy_from", old()).await;
    assert!(e.message.contains("have mounted /srv/other, outside of /srv/shop"), "{e}");
    let with = options(&[("folders", list(&["/srv/other"]))]);
    assert!(p.changes("new", on, "copy_from", vec![p.engine("old"), with]).await);
    assert_eq!(std::fs::read_to_string(p.srv[1].path().join("other/file")).unwrap(), "x");
    std::fs::write(&file, "services:\n  web:\n    image: shop:1\n    volumes: [\"nothing:/x\"]\n").unwrap();
    for method in ["up", "config"] {
        let e = p.fails("old", on, method, vec![]).await;
        assert!(e.code == Code::DOCKER_COMPOSE && e.details["stderr"].contains("nothing"), "{method}: {e}");
    }
    let e = p.fails("new", "compose /srv/else", "copy_from", old()).await;
    assert!(e.code == Code::DOCKER_MISSING && e.message.contains("no containers of a Compose project else"), "{e}");
    p.env.resources.get_mut(&Section::Hosts).unwrap().get_mut("old").unwrap().settings.insert("connect_timeout".into(), "2s".into());
    p.old.down();
    let began = Instant::now();
    let (stop, call) = p.bind("old", on, "stop", vec![]);
    let e = stop.act(&cx(&p.world, p.env.clone(), "r1-z"), &call).await.unwrap_err();
    assert!(e.code == Code::SSH_CONNECT && began.elapsed() < Duration::from_secs(20), "{e}");
}
