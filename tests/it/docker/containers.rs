//! What there is, and containers: started, stopped, waited for, looked into, commanded.

use super::*;
use crate::support::tls::{Ca, Certificate};

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_tells_what_it_is_and_has() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    p.a.docker(&["run", "-d", "--name", "web", "--label", "part=front", "-v", "data:/data", "base:1"]);
    let info = p.does("old", "docker", "info", vec![]).await;
    assert_eq!(info.str("version"), p.a.docker(&["version", "-f", "{{.Server.Version}}"]));
    assert_eq!((info.get("running"), info.get("images"), info.get("swarm")), (&Value::Int(1), &Value::Int(1), &Value::Bool(false)));
    let names = |v: Value, field: &str| -> Vec<String> {
        v.as_list().unwrap().iter().map(|r| r.as_record().unwrap().get(field).to_string()).collect()
    };
    let list = async |what, args| p.call("old", "docker", what, args).await.unwrap().value;
    assert_eq!(names(list("containers", vec![]).await, "name"), ["\"web\""]);
    let other = options(&[("label", "part=back".into())]);
    assert_eq!(names(list("containers", vec![other]).await, "name"), Vec::<String>::new());
    assert_eq!(names(list("images", vec![]).await, "tags"), [r#"["base:1"]"#]);
    assert_eq!(names(list("volumes", vec![]).await, "name"), ["\"data\""]);
    assert_eq!(names(list("networks", vec![]).await, "name"), ["\"bridge\"", "\"host\"", "\"none\""]);

    let c = p.does("old", "container web", "inspect", vec![]).await;
    assert_eq!((c.str("name"), c.str("image"), c.str("state")), ("web", "base:1", "running"));
    assert_eq!(c.get("volumes"), &super::list(&["data"]));
    assert!(matches!(c.get("started"), Value::Time(_)));
    let e = p.fails("old", "container shop", "inspect", vec![]).await;
    assert_eq!((e.code, e.host.as_deref()), (Code::DOCKER_MISSING, Some("old")), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_made_as_the_options_say_and_compared_afterwards() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    p.a.docker(&["network", "create", "front"]);
    p.a.docker(&["network", "create", "back"]);
    p.world.secrets.lock().insert("db".into(), "s3cret of the shop".into());
    let secret: Value = runbook_core::secret::Secret::new("db", "s3cret of the shop").into();
    let given = || -> Vec<(&'static str, Value)> {
        vec![
            ("command", "echo \"$DB is it\"; sleep 1000".into()),
            ("env", Value::Map(BTreeMap::from([("DB".into(), secret.clone()), ("LEVEL".into(), "info".into())]))),
            ("volumes", super::list(&["data:/data", "/srv:/host:ro"])),
            ("ports", super::list(&["127.0.0.1:28080:80", "28053:53/udp"])),
            ("networks", super::list(&["front", "back"])),
            ("restart", "on-failure:3".into()),
            ("user", "1000:1000".into()),
            ("cwd", "/tmp".into()),
            ("hostname", "web1".into()),
            ("labels", Value::Map(BTreeMap::from([("part".into(), "front".into())]))),
            ("init", true.into()),
            ("memory", Value::Bytes(64 << 20)),
            ("cpus", Value::Float(0.5)),
            ("cap_drop", super::list(&["ALL"])),
            ("stop_timeout", Value::Duration(std::time::Duration::from_secs(1))),
            ("health", "true".into()),
            ("health_interval", Value::Duration(std::time::Duration::from_millis(200))),
        ]
    };
    let args = |more: &[(&'static str, Value)]| {
        let mut all: BTreeMap<&str, Value> = given().into_iter().collect();
        all.extend(more.iter().cloned());
        vec!["base:1".into(), options(&all.into_iter().collect::<Vec<_>>())]
    };
    let out = p.call("old", "container web", "create", args(&[])).await.unwrap();
    assert_eq!((out.changed, out.value.as_record().unwrap().str("state")), (Some(true), "created"));
    let again = async |args: Vec<Value>| {
        let (create, call) = p.bind("old", "container web", "create", args);
        create.act(&p.cx("r1-z"), &call).await.unwrap().changed
    };
    assert_eq!(again(args(&[])).await, Some(false), "it is there");
    assert!(p.changes("old", "container web", "start", vec![]).await);
    p.call("old", "container web", "wait_healthy", vec![]).await.unwrap();
    assert_eq!(again(args(&[])).await, Some(false), "and is the same when it runs");
    let of = |what: &str| p.a.docker(&["inspect", "-f", &format!("{{{{{what}}}}}"), "web"]);
    assert_eq!(p.a.docker(&["logs", "web"]), "s3cret of the shop is it");
    assert_eq!(
        p.a.docker(&["exec", "web", "sh", "-c", "busybox id -u; pwd; busybox hostname; ls -d /data /host"]),
        "1000\n/tmp\nweb1\n/data\n/host"
    );
    assert!(!p.a.try_docker(&["exec", "-u", "0", "web", "touch", "/host/x"]).0, "read only");
    assert_eq!(
        of("json .HostConfig.PortBindings"),
        r#"{"53/udp":[{"HostIp":"","HostPort":"28053"}],"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"28080"}]}"#
    );
    assert_eq!(of("range $n, $_ := .NetworkSettings.Networks}}{{$n}} {{end"), "back front");
    assert_eq!(of(".HostConfig.RestartPolicy"), "{on-failure 3}");
    assert_eq!(
        (of(".HostConfig.Memory"), of(".HostConfig.NanoCpus"), of(".HostConfig.CapDrop")),
        ("67108864".into(), "500000000".into(), "[ALL]".into())
    );
    assert_eq!(of("index .Config.Labels \"part\""), "front");
    assert!(!of("index .Config.Labels \"runbook.container\"").contains("shop"), "the label has no value in it");

    // What differs is named; nothing is touched.
    let id = of(".Id");
    let other = args(&[("env", Value::Map(BTreeMap::new())), ("memory", Value::Bytes(65 << 20))]);
    let e = p.fails("old", "container web", "create", other.clone()).await;
    assert!(
        e.code == Code::DOCKER_CONFLICT && e.message.ends_with("differs in env, memory") && e.hint.unwrap().contains("replace"),
        "{}",
        e.message
    );
    assert_eq!(of(".Id"), id);
    // A network that it has lost is given back.
    p.a.docker(&["network", "disconnect", "back", "web"]);
    assert_eq!(again(args(&[])).await, Some(true));
    assert_eq!(of("range $n, $_ := .NetworkSettings.Networks}}{{$n}} {{end"), "back front");
    // The image's name means another one now.
    p.a.build("base:1", "FROM base:1\nENV X=1\n", &[]);
    let e = p.fails("old", "container web", "create", args(&[])).await;
    assert!(e.message.ends_with("differs in image"), "{e}");
    let out = p.call("old", "container web", "create", args(&[("replace", true.into())])).await.unwrap();
    assert_eq!(out.note.as_deref(), Some("in the place of one that differed in image"));
    assert!(of(".Id") != id && of(".State.Status") == "created");
    assert_eq!(again(args(&[("replace", true.into())])).await, Some(false));
    // One of somebody else is no container of ours, however alike.
    p.a.docker(&["create", "--name", "theirs", "base:1"]);
    let e = p.fails("old", "container theirs", "create", vec!["base:1".into()]).await;
    assert!(e.message.contains("something else has made it"), "{e}");
    // What is wrong is said, and nothing is made.
    for (more, code, said) in [
        (("volumes", super::list(&["/nowhere/at/all:/x"])), Code::DOCKER, "/nowhere/at/all"),
        (("networks", super::list(&["none-such"])), Code::DOCKER_MISSING, "none-such"),
        (("ports", super::list(&["80"])), Code::COMMAND_BAD, "is no port"),
        (("restart", "now and then".into()), Code::COMMAND_BAD, "now and then"),
        (("cpus", Value::Float(-1.0)), Code::COMMAND_BAD, "-1"),
    ] {
        let e = p.fails("old", "container other", "create", args(&[more])).await;
        assert!(e.code == code && e.message.contains(said), "{e}");
    }
    let e = p.fails("old", "container other", "create", vec!["none:1".into()]).await;
    assert!(e.code == Code::DOCKER_MISSING && e.hint.unwrap().contains("copy_from"), "{}", e.message);
    assert_eq!(p.a.docker(&["ps", "-aq", "-f", "name=other"]), "");
    // A controller that died after its request: the next one finds what it has made.
    let (create, call) = p.bind("old", "container late", "create", vec!["base:1".into()]);
    create.act(&p.cx("r1-b"), &call).await.unwrap();
    assert_eq!(create.act(&p.cx("r1-b"), &call).await.unwrap().changed, Some(true));
    assert_eq!(create.act(&p.cx("r1-c"), &call).await.unwrap().changed, Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_started_stopped_and_removed_only_when_there_is_something_to_do() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    p.a.docker(&["create", "--name", "web", "--init", "base:1"]);
    for (method, args, changes) in [
        ("start", vec![], [true, false]),
        ("stop", vec![options(&[("timeout", "1s".into())])], [true, false]),
        ("start", vec![], [true, false]),
        ("restart", vec![], [true, true]),
    ] {
        for wanted in changes {
            assert_eq!(p.changes("old", "container web", method, args.clone()).await, wanted, "{method}");
        }
    }
    let e = p.fails("old", "container web", "remove", vec![]).await;
    assert!(e.code == Code::DOCKER_CONFLICT && e.hint.as_deref().unwrap().contains("force"), "{e}");
    let force = || vec![options(&[("force", true.into())])];
    assert!(p.changes("old", "container web", "remove", force()).await);
    assert!(!p.changes("old", "container web", "remove", force()).await);
    assert_eq!(p.a.docker(&["ps", "-aq"]), "");

    for (network, made) in [(vec![options(&[("subnet", "172.30.9.0/24".into())])], [true, false])] {
        for wanted in made {
            assert_eq!(p.changes("old", "network shop", "create", network.clone()).await, wanted);
        }
    }
    let e = p.fails("old", "network shop", "create", vec![options(&[("subnet", "172.30.10.0/24".into())])]).await;
    assert!(e.code == Code::DOCKER_CONFLICT && e.message.contains("172.30.9.0/24"), "{e}");
    assert!(p.changes("old", "network shop", "remove", vec![]).await);
    assert!(!p.changes("old", "network shop", "remove", vec![]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_waited_for_and_one_that_is_not_well_is_said_with_its_last_words() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    let wait = |within: &str| vec![options(&[("within", within.into())])];
    p.a.docker(&["run", "-d", "--init", "--name", "plain", "base:1"]);
    assert_eq!(p.does("old", "container plain", "wait_healthy", wait("20s")).await.str("state"), "running");
    let run = |name: &str, health: &str, command: &str| {
        let retries = if matches!(name, "late" | "slow") { "--health-retries=100" } else { "--health-retries=3" };
        let health = format!("--health-cmd={health}");
        p.a.docker(&["run", "-d", "--init", "--name", name, "--health-interval=200ms", retries, &health, "base:1", "sh", "-c", command]);
    };
    run("late", "cat /tmp/ready", "sleep 1; touch /tmp/ready; sleep 1000");
    assert_eq!(p.does("old", "container late", "wait_healthy", wait("20s")).await.str("health"), "healthy");
    run("ill", "echo no database; false", "echo begun; sleep 1000");
    let e = p.fails("old", "container ill", "wait_healthy", wait("20s")).await;
    assert!(e.code == Code::DOCKER_HEALTH && e.message.contains("unhealthy: no database"), "{e}");
    assert_eq!(e.details["output"].trim(), "begun");
    p.a.docker(&["create", "--name", "new", "base:1"]);
    let e = p.fails("old", "container new", "wait_healthy", wait("20s")).await;
    assert!(e.message.ends_with("was never started"), "{e}");
    run("dead", "true", "echo cannot read the configuration; exit 3");
    let e = p.fails("old", "container dead", "wait_healthy", wait("20s")).await;
    assert!(e.message.contains("does not run: it ended with status 3"), "{e}");
    assert!(e.details["output"].contains("cannot read the configuration"));
    p.a.docker(&["run", "-d", "--name", "loop", "--restart=always", "base:1", "false"]);
    let e = p.fails("old", "container loop", "wait_healthy", wait("30s")).await;
    assert!(e.message.contains("ends again and again") || e.message.contains("does not run"), "{e}");
    run("slow", "false", "sleep 1000");
    let e = p.fails("old", "container slow", "wait_healthy", wait("300ms")).await;
    assert!(e.message.contains("is not healthy after 300ms: starting"), "{e}");
    let logs = p.call("old", "container dead", "logs", vec![]).await.unwrap().value;
    assert_eq!(logs.as_str(), Some("cannot read the configuration\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_a_container_runs_once_and_its_secrets_do_not_show() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    p.a.docker(&["run", "-d", "--init", "--name", "web", "base:1"]);
    let env = Value::Map(BTreeMap::from([("WORD".to_string(), Value::from("it's two words"))]));
    let args =
        vec!["echo \"$WORD\" >>/tmp/said; cat; id -u".into(), options(&[("env", env), ("stdin", "in\n".into()), ("user", "7".into())])];
    p.a.docker(&["exec", "web", "sh", "-c", "touch /tmp/said; busybox chmod 666 /tmp/said"]);
    let out = p.does("old", "container web", "exec", args.clone()).await;
    assert_eq!(out.str("stdout"), "in\n7\n");
    // Asked again for the same action: it is known to be done.
    let (exec, call) = p.bind("old", "container web", "exec", args);
    let Reconciled::Done(found) = exec.reconcile(&p.cx("r1-a"), &call).await.unwrap() else { panic!("it is known") };
    assert_eq!(found.value.as_record().unwrap().str("stdout"), "in\n7\n");
    assert_eq!(p.a.docker(&["exec", "web", "cat", "/tmp/said"]), "it's two words");
    let (exec, call) = p.bind("old", "container web", "exec", vec![list(&["false"])]);
    let e = exec.act(&p.cx("r1-b"), &call).await.unwrap_err();
    assert_eq!(e.code, Code::COMMAND_FAILED, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_there_or_may_not_be_asked_is_named() {
    let Some(mut p) = Pair::start() else { return };
    let at = |p: &mut Pair, key: &str, value: &str| {
        let r = p.env.resources.get_mut(&Section::Engines).unwrap().get_mut("old").unwrap();
        if key == "url" {
            r.settings.clear();
        }
        r.settings.insert(key.into(), value.into());
    };
    at(&mut p, "socket", "/nonexistent/docker.sock");
    let e = p.fails("old", "docker", "info", vec![]).await;
    assert!(e.code == Code::SSH_SOCKET && e.message.contains("/nonexistent/docker.sock is not there"), "{e}");
    at(&mut p, "url", "unix:///nonexistent.sock");
    let e = p.fails("old", "docker", "info", vec![]).await;
    assert!(e.code == Code::DOCKER_CONNECT && e.message.contains("/nonexistent.sock cannot be reached"), "{e}");
    let own = format!("unix://{}", p.a.socket().display());
    at(&mut p, "url", &own);
    assert_ne!(p.does("old", "docker", "info", vec![]).await.str("version"), "");
    for (url, why) in [("tcp://192.0.2.1:2375", "without TLS"), ("ssh://old", "no kind"), ("unix://x", "absolute"), ("tcp://x", "no port")]
    {
        at(&mut p, "url", url);
        let e = p.fails("old", "docker", "info", vec![]).await;
        assert!(e.message.contains(why), "{url}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_at_a_port_is_asked_with_certificates_and_by_nobody_without() {
    let (Some(mut p), Some(ca), Some(other)) = (Pair::start(), Ca::new("docker"), Ca::new("another")) else { return };
    let srv = tempfile::tempdir().unwrap();
    let port = crate::support::free_port();
    let Some(engine) = Engine::start_with_tls(srv.path(), port, &ca) else { return };
    let (cert, key) = ca.certificate(&Certificate::default());
    for (name, text) in [("ca.pem", ca.pem()), ("other.pem", other.pem()), ("cert.pem", cert), ("key.pem", key)] {
        p.world.files.lock().insert(name.into(), text.into_bytes());
    }
    let mut with = |settings: &[(&str, &str)]| {
        let r = p.env.resources.get_mut(&Section::Engines).unwrap().get_mut("old").unwrap();
        r.settings = settings.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect();
        cx(&p.world, p.env.clone(), "r1-a")
    };
    let url = format!("tcp://127.0.0.1:{port}");
    let all = [("url", url.as_str()), ("tls_ca", "ca.pem"), ("tls_cert", "cert.pem"), ("tls_key", "key.pem")];
    let info = runbook_primitives::registry().primitives[&(Some("Docker"), "info")].clone();
    let call = info.spec().bind(Some(Record::handle("Docker", "old", BTreeMap::new())), vec![]).unwrap();
    let said = info.act(&with(&all), &call).await.unwrap().value.as_record().unwrap().clone();
    assert_eq!(said.str("version"), engine.docker(&["version", "-f", "{{.Server.Version}}"]));
    let e = info.act(&with(&[all[0], ("tls_ca", "other.pem"), all[2], all[3]]), &call).await.unwrap_err();
    assert!(e.code == Code::DOCKER_CONNECT && e.message.contains("certificate"), "{e}");
    let e = info.act(&with(&all[..2]), &call).await.unwrap_err();
    assert!(e.code == Code::DOCKER_CONNECT && e.message.to_lowercase().contains("certificate"), "{e}");
    let e = info.act(&with(&[all[0], all[1], ("tls_cert", "key.pem"), all[3]]), &call).await.unwrap_err();
    assert!(e.code == Code::INVENTORY_TYPE && e.message.contains("tls_cert") && e.message.contains("no certificate"), "{e}");
}
