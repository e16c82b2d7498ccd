//! A cluster of three: begun, joined, one killed and taken back, one that leaves; never a second one beside it.

use super::node::{Node, ports};
use super::*;

/// A member, and what the inventory says of it.
fn member(id: u32) -> Option<(Node, BTreeMap<String, Value>)> {
    let (node, mut settings) = Node::new(id, "")?;
    let [group, ist, sst] = ports();
    settings.extend([
        ("galera_cluster".to_string(), "shop".into()),
        ("galera_address".to_string(), format!("127.0.0.1:{group}").into()),
        ("galera_sst_address".to_string(), format!("127.0.0.1:{sst}").into()),
        (
            "galera_options".to_string(),
            format!("ist.recv_addr=127.0.0.1:{ist}; evs.keepalive_period=PT0.5S; evs.inactive_check_period=PT0.5S; evs.suspect_timeout=PT2S; evs.inactive_timeout=PT5S; evs.install_timeout=PT3S").into(),
        ),
    ]);
    Some((node, settings))
}

/// Three hosts with a server each, none of which runs.
fn cluster() -> Option<(Site, Vec<Node>)> {
    if !std::path::Path::new("/usr/lib/galera/libgalera_smm.so").exists() {
        assert!(std::env::var_os("CI").is_none(), "galera-4 is not installed, and CI is set: tests/run installs it");
        eprintln!("skipped: galera-4 is not installed (tests/run installs it)");
        return None;
    }
    let mut s = Site::new()?;
    let mut nodes = Vec::new();
    for (i, host) in ["old", "new", "new"].into_iter().enumerate() {
        let (node, mut settings) = member(u32::try_from(i).unwrap() + 11)?;
        settings.insert("host".into(), host.into());
        let name = format!("node{}", i + 1);
        let db = Resource { name: name.clone(), kind: "mariadb".into(), settings };
        s.env.resources.entry(Section::Databases).or_default().insert(name, db);
        nodes.push(node);
    }
    Some((s, nodes))
}

async fn status(s: &Site, node: &str) -> (String, i64, bool) {
    let v = s.run(node, "galera_status", vec![]).await.unwrap();
    (field(&v, "status").as_str().unwrap().into(), field(&v, "size").as_int().unwrap(), field(&v, "synced") == &Value::Bool(true))
}

/// How long a member may take here.
fn within() -> Vec<Value> {
    vec![options(&[("within", "60s".into())])]
}

/// Waits for a state of a member.
async fn until(s: &Site, node: &str, want: (&str, i64, bool)) {
    let mut now = (String::new(), 0, false);
    for _ in 0..300 {
        now = status(s, node).await;
        if (now.0.as_str(), now.1, now.2) == want {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{node} is {now:?} and not {want:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_is_built_loses_a_node_takes_it_back_and_one_leaves() {
    let Some((s, nodes)) = cluster() else { return };
    let e = s.run("node2", "galera_join", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_CLUSTER && e.message.contains("no living cluster to join"), "{e}");
    assert_eq!(status(&s, "node1").await, ("stopped".into(), 0, false));
    s.run("node1", "galera_bootstrap", vec![]).await.unwrap();
    nodes[0].sql("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, item VARCHAR(80)) ENGINE=InnoDB; INSERT INTO shop.orders (item) VALUES ('one')").unwrap();
    // Twice changes nothing, and nobody else may begin one beside it.
    s.run("node1", "galera_bootstrap", vec![]).await.unwrap();
    let e = s.run("node2", "galera_bootstrap", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_CLUSTER && e.message.contains("\"node1\" is a member of a living one"), "{e}");
    s.run("node2", "galera_join", within()).await.unwrap();
    s.run("node3", "galera_join", within()).await.unwrap();
    s.run("node3", "galera_join", within()).await.unwrap();
    for node in ["node1", "node2", "node3"] {
        until(&s, node, ("Primary", 3, true)).await;
    }
    nodes[2].sql("INSERT INTO shop.orders (item) VALUES ('two')").unwrap();

    // One is killed: the others are the majority and go on.
    nodes[1].kill();
    until(&s, "node1", ("Primary", 2, true)).await;
    assert_eq!(status(&s, "node2").await.0, "stopped");
    nodes[0].sql("INSERT INTO shop.orders (item) VALUES ('while one is gone')").unwrap();
    let e = s.run("node2", "galera_bootstrap", vec![options(&[("force", true.into())])]).await.unwrap_err();
    assert!(e.message.contains("is a member of a living one (Primary, Synced, 2 members)"), "{e}");
    s.run("node2", "galera_join", within()).await.unwrap();
    until(&s, "node1", ("Primary", 3, true)).await;
    let rows = |n: &Node| n.sql("SET wsrep_sync_wait = 1; SELECT COUNT(*) FROM shop.orders").unwrap();
    assert_eq!(nodes.iter().map(rows).collect::<Vec<_>>(), ["3", "3", "3"]);

    // One hangs: it is put out of the majority, and comes back by itself.
    nodes[2].signal("-STOP");
    until(&s, "node1", ("Primary", 2, true)).await;
    nodes[0].sql("INSERT INTO shop.orders (item) VALUES ('while one hangs')").unwrap();
    nodes[2].signal("-CONT");
    s.run("node3", "galera_wait_synced", vec![options(&[("within", "60s".into())])]).await.unwrap();
    until(&s, "node1", ("Primary", 3, true)).await;
    assert_eq!(nodes.iter().map(rows).collect::<Vec<_>>(), ["4", "4", "4"]);

    // One leaves in order, and again changes nothing.
    s.run("node3", "galera_leave", vec![]).await.unwrap();
    s.run("node3", "galera_leave", vec![]).await.unwrap();
    assert_eq!((status(&s, "node3").await.0.as_str(), status(&s, "node1").await), ("stopped", ("Primary".into(), 2, true)));

    // Both others but one are gone: no majority, no writes; what is left is the majority only when it is told so.
    nodes[1].signal("-STOP");
    until(&s, "node1", ("non-Primary", 1, false)).await;
    assert!(nodes[0].sql("INSERT INTO shop.orders (item) VALUES ('without a majority')").unwrap_err().contains("WSREP"));
    let hangs = tokio::time::timeout(Duration::from_secs(45), s.run("node1", "galera_bootstrap", vec![])).await;
    let e = hangs.expect("an answer").unwrap_err();
    assert!(e.message.contains("node2"), "{e}");
    nodes[1].kill();
    s.run("node1", "galera_bootstrap", vec![]).await.unwrap();
    nodes[0].sql("INSERT INTO shop.orders (item) VALUES ('five')").unwrap();
    let e = s.run("node1", "galera_leave", vec![]).await.unwrap_err();
    assert!(e.message.contains("the cluster would end"), "{e}");
    for node in ["node2", "node3"] {
        s.run(node, "galera_join", within()).await.unwrap();
    }
    until(&s, "node1", ("Primary", 3, true)).await;
    assert_eq!(nodes.iter().map(rows).collect::<Vec<_>>(), ["5", "5", "5"]);

    // All in order, one after another: the last one begins, and no other.
    for (node, last) in [("node1", false), ("node2", false), ("node3", true)] {
        s.run(node, "galera_leave", vec![options(&[("last", last.into())])]).await.unwrap();
    }
    let e = s.run("node1", "galera_bootstrap", vec![]).await.unwrap_err();
    assert!(e.message.contains("was not the last to leave"), "{e}");
    s.run("node3", "galera_bootstrap", vec![]).await.unwrap();
    s.run("node1", "galera_join", within()).await.unwrap();
    until(&s, "node3", ("Primary", 2, true)).await;
    assert_eq!(rows(&nodes[0]), "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_while_it_joins_is_said_and_not_waited_for() {
    let Some((s, nodes)) = cluster() else { return };
    s.run("node1", "galera_bootstrap", vec![]).await.unwrap();
    std::fs::write(nodes[1].dir.path().join("conf.d/own.cnf"), "[mysqld]\nno_such_option = 1\n").unwrap();
    let e = s.run("node2", "galera_join", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_CLUSTER && e.message.starts_with("the server of \"node2\" does not run any more"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_rows_of_its_own_does_not_lose_them_by_joining() {
    let Some((s, nodes)) = cluster() else { return };
    s.run("node1", "galera_bootstrap", vec![]).await.unwrap();
    std::fs::create_dir(nodes[1].dir.path().join("data/precious")).unwrap();
    let e = s.run("node2", "galera_join", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_CLUSTER && e.message.contains("precious"), "{e}");
    assert!(nodes[1].pid().is_none());
    let e = s.run("shop_old", "galera_status", vec![]).await.unwrap();
    assert_eq!(field(&e, "status"), &Value::from("alone"));
}
