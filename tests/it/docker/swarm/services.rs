//! Services: made, changed, scaled, rolled back; secrets and configs.

use std::time::Duration;

use super::*;

fn text(e: &Error) -> String {
    format!("{e} {:?} {:?}", e.hint, e.details)
}

/// Options whose update is watched for a short time.
fn quick(more: &[(&str, Value)]) -> Value {
    let mut all = vec![("update_monitor", Value::from("500ms")), ("restart_delay", "500ms".into()), ("stop_timeout", "1s".into())];
    all.extend(more.iter().cloned());
    soon(&all)
}

fn image(v: &Value) -> String {
    v.as_record().unwrap().str("image").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_made_changed_scaled_and_rolled_back() {
    let Some(t) = Three::joined(["manager", "worker", "worker"]) else { return };
    for n in 1..=3 {
        t.engine(n).docker(&["tag", "base:1", "base:2"]);
    }
    let secret = |value: &str| {
        t.world.secrets.lock().insert("db".into(), value.into());
        vec![Value::Secret(t.cx("r1-s").secret("db").unwrap())]
    };
    // What it needs, and what is not there.
    let with = |name: &str, v: Value| vec!["base:1".into(), quick(&[(name, v)])];
    for (option, given, says) in [
        ("networks", list(&["none"]), "has no network none"),
        ("secrets", list(&["none"]), "has no secret none"),
        ("configs", list(&["none"]), "has no config none"),
    ] {
        let e = t.fails("n1", "service web", "create", with(option, given)).await;
        assert!(e.code == Code::DOCKER_MISSING && e.message.contains(says), "{e}");
    }
    let e = t.fails("n1", "service web", "create", with("update_failure", "explode".into())).await;
    assert!(e.code == Code::COMMAND_BAD && e.message.contains("explode"), "{e}");

    assert!(t.changes("n1", "secret db_1", "create", secret("hush-hush")).await);
    let e = t.fails("n1", "secret db_1", "create", secret("hush-hush")).await;
    assert!(e.code == Code::DOCKER_CONFLICT && !text(&e).contains("hush"), "{e}");
    let keep = [secret("hush-hush"), vec![options(&[("keep", true.into())])]].concat();
    assert!(!t.changes("n1", "secret db_1", "create", keep).await);
    assert!(t.changes("n1", "config conf_1", "create", vec!["one\n".into()]).await);
    assert!(!t.changes("n1", "config conf_1", "create", vec!["one\n".into()]).await);
    let e = t.fails("n1", "config conf_1", "create", vec!["two\n".into()]).await;
    assert!(e.code == Code::DOCKER_CONFLICT && e.message.contains("with another text"), "{e}");
    assert!(t.changes("n1", "secret db_1", "label", vec![options(&[("by", "shop".into())])]).await);
    assert!(!t.changes("n1", "secret db_1", "label", vec![options(&[("by", "shop".into())])]).await);
    let listed = t.does("n1", "swarm", "secrets", vec![options(&[("label", "by=shop".into())])]).await;
    assert_eq!(listed.as_list().unwrap().len(), 1);

    // All that it can be given.
    t.docker("network create --driver overlay front");
    let env = Value::Map(BTreeMap::from([("A".to_string(), Value::from("1")), ("B".to_string(), secret("of-the-env").remove(0))]));
    let all = || {
        vec![
            "base:1".into(),
            quick(&[
                ("command", "echo begun; exec sleep 1000000".into()),
                ("replicas", Value::Int(2)),
                ("env", env.clone()),
                ("init", true.into()),
                ("volumes", list(&["data:/data", "/tmp:/host:ro"])),
                ("networks", list(&["front"])),
                ("host_ports", list(&["8081:80"])),
                ("endpoint", "dnsrr".into()),
                ("constraints", list(&["node.role==worker"])),
                ("secrets", list(&["db_1"])),
                ("configs", Value::Map(BTreeMap::from([("conf_1".to_string(), Value::from("/tmp/conf"))]))),
                ("labels", Value::Map(BTreeMap::from([("team".to_string(), Value::from("shop"))]))),
                ("memory", "64MiB".into()),
                ("cpus", Value::Float(0.5)),
                ("restart", "any".into()),
                ("health", "true".into()),
                ("health_interval", "300ms".into()),
                ("update_parallelism", Value::Int(2)),
                ("update_failure", "rollback".into()),
                ("update_order", "stop-first".into()),
                ("rollback_parallelism", Value::Int(0)),
                ("rollback_monitor", "500ms".into()),
            ]),
        ]
    };
    assert!(t.changes("n1", "service web", "create", all()).await);
    assert!(!t.changes("n1", "service web", "create", all()).await, "it is there");
    assert_eq!(t.runs_on("web"), ["n2", "n3"]);
    let inside = t.engine(2).docker(&["ps", "-q"]);
    assert_eq!(
        t.engine(2).docker(&["exec", &inside, "sh", "-c", "cat /run/secrets/db_1; echo; cat /tmp/conf; echo $A $B; ls -d /data /host"]),
        "hush-hush\none\n1 of-the-env\n/data\n/host"
    );
    let logs = t.does("n1", "service web", "logs", vec![]).await;
    assert_eq!(logs.as_str().unwrap().matches("begun").count(), 2);
    let e = t.fails("n1", "service web", "create", vec!["base:2".into(), quick(&[("replicas", Value::Int(5))])]).await;
    assert!(e.code == Code::DOCKER_CONFLICT && e.message.contains("Mode.Replicated.Replicas, TaskTemplate.ContainerSpec.Image"), "{e}");
    let e = t.fails("n1", "secret db_1", "remove", vec![]).await;
    assert!(e.code == Code::DOCKER_CONFLICT && e.message.contains("in use"), "{e}");

    // An update changes what is given, and nothing else.
    let spec = || -> serde_json::Value {
        serde_json::from_str(&t.engine(1).docker(&["service", "inspect", "web", "--format", "{{json .Spec}}"])).unwrap()
    };
    let before = spec();
    let was = t.does("n1", "service web", "inspect", vec![]).await;
    assert_eq!(image(&was), "base:1");
    let updated = t.does("n1", "service web", "update", vec![soon(&[("image", "base:2".into())])]).await;
    assert_eq!(image(&updated), "base:2");
    let mut expected = before.clone();
    expected["TaskTemplate"]["ContainerSpec"]["Image"] = "base:2".into();
    let mut after = spec();
    for s in [&mut expected, &mut after] {
        s["Labels"] = serde_json::json!({});
    }
    assert_eq!(after, expected, "nothing else has changed");
    assert!(!t.changes("n1", "service web", "update", vec![soon(&[("image", "base:2".into())])]).await);
    assert_eq!(t.docker("service inspect web --format {{.UpdateStatus.State}}"), "completed");

    // Back, by what the run has done; once only.
    assert!(t.changes("n1", "service web", "rollback", vec![soon(&[])]).await);
    assert_eq!(image(&t.does("n1", "service web", "inspect", vec![]).await), "base:1");
    assert!(!t.changes("n1", "service web", "rollback", vec![soon(&[])]).await, "the present version is of no update of this run");

    // Scaled, and back; a change in between is no version that rollback() means.
    assert_eq!(t.does("n1", "service web", "scale", vec![Value::Int(1), soon(&[])]).await, Value::Int(2));
    assert!(!t.changes("n1", "service web", "scale", vec![Value::Int(1), soon(&[])]).await);
    assert_eq!(t.runs_on("web").len(), 1);
    let labels = Value::Map(BTreeMap::from([("team".to_string(), Value::Unit), ("now".to_string(), "x".into())]));
    assert!(t.changes("n1", "service web", "update", vec![soon(&[("labels", labels)])]).await);
    assert_eq!(t.does("n1", "service web", "scale", vec![Value::Int(2), soon(&[])]).await, Value::Int(1));
    let e = t.fails("n1", "service web", "rollback", vec![soon(&[])]).await;
    assert!(e.code == Code::DOCKER_CONFLICT && e.message.contains("is not kept any more"), "{e}");

    // What cannot run is said: no node that fits, an image that is nowhere, a command that ends again and again.
    let short = |more: &[(&str, Value)]| {
        let mut all = vec![("within", Value::from("4s"))];
        all.extend(more.iter().cloned());
        quick(&all)
    };
    let e = t.fails("n1", "service lost", "create", vec!["base:1".into(), short(&[("constraints", list(&["node.labels.x==y"]))])]).await;
    assert!(
        e.code == Code::SERVICE_CONVERGE && e.message.contains("0 of 1 tasks running after 4s") && e.message.contains("no suitable node"),
        "{e}"
    );
    let e = t.fails("n1", "service none", "create", vec!["nowhere:9".into(), short(&[])]).await;
    assert!(e.code == Code::SERVICE_CONVERGE && e.message.contains("No such image: nowhere:9"), "{e}");
    let ends = [("command", Value::from("echo no database; exit 3")), ("within", "60s".into())];
    let e = t.fails("n1", "service ends", "create", vec!["base:1".into(), quick(&ends)]).await;
    assert!(e.message.contains("end again and again") && e.message.contains("non-zero exit (3)") && !e.retryable, "{e}");
    assert!(e.details["output"].contains("no database"), "{e:?}");
    for service in ["lost", "none", "ends", "web"] {
        assert!(t.changes("n1", &format!("service {service}"), "remove", vec![]).await);
        assert!(!t.changes("n1", &format!("service {service}"), "remove", vec![]).await);
    }
    for n in 1..=3 {
        assert_eq!(t.engine(n).docker(&["ps", "-q"]), "", "n{n}: its containers have ended");
    }
    assert!(t.changes("n1", "secret db_1", "remove", vec![]).await);
    assert!(!t.changes("n1", "secret db_1", "remove", vec![]).await);
    assert!(t.changes("n1", "config conf_1", "remove", vec![options(&[("own", true.into())])]).await, "it is of this run");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_update_is_told_with_what_its_tasks_said_also_by_the_next_controller() {
    let Some(t) = Three::joined(["manager", "worker", "worker"]) else { return };
    let made = |failure: &str| {
        vec!["base:1".into(), quick(&[("replicas", Value::Int(2)), ("update_failure", failure.into()), ("init", true.into())])]
    };
    let bad = |more: &[(&str, Value)]| {
        let mut all = vec![("command", Value::from("exit 7")), ("within", "60s".into())];
        all.extend(more.iter().cloned());
        vec![options(&all)]
    };
    // Rolled back.
    t.does("n1", "service web", "create", made("rollback")).await;
    let e = t.fails("n1", "service web", "update", bad(&[])).await;
    assert_eq!((e.code, e.retryable, e.details["state"].as_str()), (Code::SERVICE_UPDATE, false, "rollback_completed"), "{e}");
    assert!(e.message.contains("failed and was rolled back") && e.message.contains("non-zero exit (7)"), "{e}");
    assert_eq!(t.runs_on("web").len(), 2, "both tasks run again when it is told");
    assert!(!t.changes("n1", "service web", "rollback", vec![soon(&[])]).await, "the swarm has done that");
    let e = t.fails("n1", "service web", "wait_converged", vec![soon(&[])]).await;
    assert_eq!(e.code, Code::SERVICE_UPDATE, "{e}");

    // The controller dies at once; while nobody looks, the swarm rolls back. The next controller does not try it again.
    let (p, call) = t.bind("n1", "service web", "update", bad(&[]));
    let cx = t.cx("r1-dead");
    let version = t.docker("service inspect web --format {{.Version.Index}}");
    tokio::select! {
        r = p.act(&cx, &call) => panic!("{r:?}"),
        () = async { while t.docker("service inspect web --format {{.Version.Index}}") == version { tokio::time::sleep(Duration::from_millis(20)).await } } => {}
    }
    until("it is rolled back", || t.docker("service inspect web --format {{.UpdateStatus.State}}") == "rollback_completed");
    let found = p.reconcile(&cx, &call).await.unwrap();
    let Reconciled::Failed(e) = found else { panic!("{found:?}") };
    assert!(e.code == Code::SERVICE_UPDATE && e.message.contains("non-zero exit (7)"), "{e}");
    // One that never began is known to.
    let found = p.reconcile(&t.cx("r1-never"), &call).await.unwrap();
    assert!(matches!(found, Reconciled::NotStarted), "{found:?}");

    // Paused: told, and taken back.
    t.does("n1", "service half", "create", made("pause")).await;
    let e = t.fails("n1", "service half", "update", bad(&[])).await;
    assert!(e.code == Code::SERVICE_UPDATE && e.message.contains("is paused") && e.hint.as_deref().unwrap().contains("rollback()"), "{e}");
    assert!(t.changes("n1", "service half", "rollback", vec![soon(&[])]).await);
    assert_eq!(t.runs_on("half").len(), 2);

    // Two at once: nobody's change is lost.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let t = &t;
        let stop = &stop;
        let other = s.spawn(move || {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += usize::from(t.engine(1).try_docker(&["service", "update", "-d", "--label-add", &format!("l{n}=x"), "web"]).0);
            }
            n
        });
        let (mut mine, mut refused) = (0, 0);
        for i in 0..12 {
            let labels = Value::Map(BTreeMap::from([(format!("m{i}"), Value::from("x"))]));
            let args = vec![options(&[("labels", labels), ("detach", true.into())])];
            match tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(t.call("n1", "service web", "update", args))) {
                Ok(_) => mine += 1,
                Err(e) => {
                    assert!(e.code == Code::SERVICE_CHANGED && e.retryable && e.message.contains("Labels.l"), "{e}");
                    refused += 1;
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let theirs = other.join().unwrap();
        let labels = t.docker("service inspect web --format {{.Spec.Labels}}");
        let count =
            |c: char| labels.split([' ', '[']).filter(|l| l.starts_with(c) && l[1..].starts_with(|d: char| d.is_ascii_digit())).count();
        println!("changes of ours {mine}, refused {refused}; of the stock client {theirs}; all of them are there");
        assert_eq!((count('m'), count('l')), (mine, theirs), "{labels}");
        assert!(mine > 0 && theirs > 0);
    });
}
