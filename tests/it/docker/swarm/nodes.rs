//! Engines that join, leave, change roles, and those that may not.

use std::time::{Duration, Instant};

use super::*;

fn field(v: &Value, name: &str) -> String {
    v.as_record().unwrap().get(name).as_str().unwrap_or_default().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_join_and_leave_and_what_cannot_be_is_said() {
    let Some(mut t) = Three::start() else { return };
    assert_eq!(field(&t.does("n1", "swarm", "status", vec![]).await, "state"), "inactive");
    let e = t.fails("n1", "swarm", "nodes", vec![]).await;
    assert!(e.code == Code::SWARM_STATE && e.message == "\"n1\" is not a manager of a swarm", "{e}");
    let join = |more: &[(&str, Value)]| vec![Value::from(t.handle("n1", "docker")), options(more)];
    let e = t.fails("n2", "swarm", "join", join(&[])).await;
    assert_eq!(e.code, Code::SWARM_STATE, "{e}");

    let init = || vec![options(&[("advertise", address(1).into())])];
    assert!(t.changes("n1", "swarm", "init", init()).await);
    assert!(!t.changes("n1", "swarm", "init", init()).await);
    let e = t.fails("n1", "swarm", "init", vec![options(&[("advertise", "192.0.2.1".into())])]).await;
    assert!(e.code == Code::SWARM_STATE && e.message.contains("10.97.0.1, not 192.0.2.1"), "{e}");

    // A token that is none, and one of another swarm; a manager that is not there.
    let secret = |text: &str| {
        t.world.secrets.lock().insert("token".into(), text.into());
        Value::Secret(t.cx("r1-s").secret("token").unwrap())
    };
    let own = t.docker("swarm join-token -q worker");
    let other = format!("{}abcd", &own[..own.len() - 4]);
    for token in ["SWMTKN-1-nonsense", &other] {
        let e = t.fails("n2", "swarm", "join", join(&[("token", secret(token))])).await;
        assert!(e.code == Code::SWARM_JOIN && e.message.contains("the join token is not accepted") && !e.retryable, "{e}");
        assert!(!format!("{e:?}").contains(token), "{e:?}");
        assert_eq!(field(&t.does("n2", "swarm", "status", vec![]).await, "state"), "inactive");
    }
    let began = Instant::now();
    let e = t.fails("n2", "swarm", "join", join(&[("address", "10.97.0.77:2377".into())])).await;
    assert!(e.code == Code::SWARM_JOIN && e.message.contains("10.97.0.77:2377 does not answer") && e.retryable, "{e}");
    println!("a manager that is not there was told after {:.1} s", began.elapsed().as_secs_f64());
    let is = t.does("n2", "swarm", "status", vec![]).await;
    assert_eq!(field(&is, "state"), "inactive", "it does not go on trying: {is:?}");

    // A controller that dies while the engine tries in vain: the next one ends that, and joins.
    let (p, call) = t.bind("n2", "swarm", "join", join(&[("address", "10.97.0.77:2377".into())]));
    assert!(tokio::time::timeout(Duration::from_secs(2), p.act(&t.cx("r1-d"), &call)).await.is_err());
    assert!(t.changes("n2", "swarm", "join", join(&[])).await);
    assert!(!t.changes("n2", "swarm", "join", join(&[])).await, "it is there");
    let e = t.fails("n2", "swarm", "join", join(&[("role", "manager".into())])).await;
    assert!(e.message.contains("is in that swarm as a worker") && e.hint.as_deref().unwrap().contains("promote()"), "{e}");
    let e = t.fails("n2", "swarm", "init", vec![]).await;
    assert!(e.message.contains("is a worker of a swarm"), "{e}");
    assert!(t.changes("n3", "swarm", "init", vec![options(&[("advertise", address(3).into())])]).await);
    let e = t.fails("n3", "swarm", "join", join(&[])).await;
    assert!(e.message.contains("\"n3\" is in another swarm than \"n1\""), "{e}");
    let e = t.fails("n3", "swarm", "leave", vec![]).await;
    assert!(e.code == Code::SWARM_QUORUM && e.message.contains("n3 is the last manager"), "{e}");
    assert!(t.changes("n3", "swarm", "leave", vec![options(&[("force", true.into())])]).await);
    assert!(t.changes("n3", "swarm", "join", join(&[("role", "manager".into())])).await);

    // Labels, and back; roles.
    let label = |pairs: &[(&str, Value)]| vec![options(pairs)];
    assert!(t.changes("n1", "node n2", "label", label(&[("disk", "hdd".into())])).await);
    let was = t.does("n1", "node n2", "label", label(&[("disk", "ssd".into()), ("zone", "a".into())])).await;
    assert_eq!(was, options(&[("disk", "hdd".into()), ("zone", Value::Unit)]));
    assert!(!t.changes("n1", "node n2", "label", label(&[("disk", "ssd".into())])).await);
    t.does("n1", "node n2", "label", vec![was]).await;
    assert_eq!(t.docker("node inspect n2 --format {{.Spec.Labels}}"), "map[disk:hdd]");
    let e = t.fails("n1", "node n9", "inspect", vec![]).await;
    assert!(e.code == Code::DOCKER_MISSING && e.message.contains("has no node n9"), "{e}");
    assert!(t.changes("n1", "node n2", "promote", vec![]).await);
    assert!(!t.changes("n1", "node n2", "promote", vec![]).await);
    let n = t.does("n1", "node n2", "inspect", vec![]).await;
    assert_eq!([field(&n, "role"), field(&n, "reachability"), field(&n, "address")], ["manager", "reachable", "10.97.0.2"]);

    // Three managers, one of which dies: of the two that are left neither may go.
    drop(t.engines[2].take());
    until("the third is missed", || t.docker("node inspect n3 --format {{.ManagerStatus.Reachability}}") == "unreachable");
    for (engine, on, method) in [("n2", "swarm", "leave"), ("n1", "node n2", "demote")] {
        let e = t.fails(engine, on, method, vec![]).await;
        assert!(e.code == Code::SWARM_QUORUM && e.message.contains("a quorum is 2 (n3 cannot be)"), "{e}");
    }
    assert!(t.changes("n1", "node n3", "demote", vec![]).await, "the dead one may");
    until("n3 is down", || t.docker("node inspect n3 --format {{.Status.State}}") == "down");
    assert!(t.changes("n1", "node n3", "remove", vec![]).await);
    assert!(!t.changes("n1", "node n3", "remove", vec![]).await);
    let e = t.fails("n1", "node n2", "remove", vec![]).await;
    assert!(e.hint.is_some(), "{e}");
    // Now one of two may; it is a worker first, and leaves a quorum.
    assert!(t.changes("n2", "swarm", "leave", vec![]).await);
    assert!(!t.changes("n2", "swarm", "leave", vec![]).await);
    until("n1 is the only manager", || t.docker("node ls --filter role=manager --format {{.Hostname}}") == "n1");
    until("n2 is down", || t.docker("node inspect n2 --format {{.Status.State}}") == "down");
    assert!(t.changes("n1", "node n2", "remove", vec![]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_without_a_quorum_is_said_and_goes_on_with_one_manager() {
    let Some(mut t) = Three::joined(["manager", "manager", "worker"]) else { return };
    t.docker("service create --detach --quiet --name web --replicas 1 --constraint node.hostname==n1 --no-resolve-image base:1");
    until("it runs", || t.runs_on("web") == ["n1"]);
    drop(t.engines[1].take());
    let scale = |n: i64| vec![Value::Int(n), soon(&[])];
    let end = Instant::now() + Duration::from_secs(60);
    let e = loop {
        let e = t.call("n1", "swarm", "services", vec![]).await;
        match e {
            Err(e) => break e,
            Ok(_) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(500)).await,
            Ok(_) => panic!("it still answers"),
        }
    };
    assert!(e.code == Code::SWARM_QUORUM && e.retryable && e.hint.as_deref().unwrap().contains("RB1009"), "{e}");
    let e = t.fails("n1", "swarm", "leave", vec![]).await;
    assert_eq!(e.code, Code::SWARM_QUORUM, "{e}");
    let anew = || vec![options(&[("force_new_cluster", true.into()), ("advertise", address(1).into())])];
    assert!(t.changes("n1", "swarm", "init", anew()).await);
    assert!(!t.changes("n1", "swarm", "init", anew()).await);
    until("it runs again", || t.runs_on("web") == ["n1"]);
    assert_eq!(t.does("n1", "service web", "scale", scale(2)).await, Value::Int(1));
    assert_eq!(t.runs_on("web"), ["n1", "n1"]);
}
