//! Stacks, and services with a task on each node.

use super::*;

const STACK: &str = r#"
version: "3.8"
services:
  web:
    image: base:1
    init: true
    command: ["sleep", "${SECONDS_TO_SLEEP}"]
    stop_grace_period: 1s
    configs: [conf]
    deploy:
      replicas: 2
      update_config: { parallelism: 2, monitor: 3s, failure_action: rollback }
      rollback_config: { parallelism: 0, monitor: 500ms }
  agent:
    image: base:1
    init: true
    stop_grace_period: 1s
    deploy: { mode: global, update_config: { monitor: 500ms } }
configs: { conf: { file: ./conf } }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_has_nothing_to_do_the_second_time_and_what_is_wrong_is_said() {
    let Some(t) = Three::joined(["manager", "worker", "worker"]) else { return };
    std::fs::write(t.srv(1).join("stack.yaml"), STACK).unwrap();
    std::fs::write(t.srv(1).join("conf"), "one\n").unwrap();
    let deploy = |seconds: &str, more: &[(&str, Value)]| {
        let env = Value::Map(BTreeMap::from([("SECONDS_TO_SLEEP".to_string(), Value::from(seconds))]));
        vec!["/srv/stack.yaml".into(), soon(&[&[("env", env), ("resolve_image", "never".into())], more].concat())]
    };
    let on = "stack shop";
    let names = |v: &Value| -> Vec<String> {
        v.as_list()
            .unwrap()
            .iter()
            .map(|r| format!("{} {}", r.as_record().unwrap().str("name"), r.as_record().unwrap().str("mode")))
            .collect()
    };
    let made = t.call("n1", on, "deploy", deploy("100000", &[])).await.unwrap();
    assert_eq!((made.changed, names(&made.value)), (Some(true), vec!["shop_agent global".to_string(), "shop_web replicated".into()]));
    assert_eq!(t.runs_on("shop_agent"), ["n1", "n2", "n3"]);
    assert!(!t.changes("n1", on, "deploy", deploy("100000", &[])).await, "all of it is so");
    let stacks = t.does("n1", "swarm", "stacks", vec![]).await;
    assert_eq!(stacks.as_list().unwrap()[0].as_record().unwrap().get("services"), &Value::Int(2));
    assert_eq!(t.does("n1", on, "tasks", vec![]).await.as_list().unwrap().len(), 5);
    assert_eq!(names(&t.does("n1", on, "services", vec![]).await).len(), 2);

    // A node that is drained has no task, not even of a global service; when it is back, that service has one there again.
    assert!(t.changes("n1", "node n3", "drain", vec![]).await);
    assert!(!t.changes("n1", "node n3", "drain", vec![]).await);
    assert_eq!(t.does("n1", "node n3", "tasks", vec![]).await, Value::List(vec![]));
    t.does("n1", "service shop_web", "wait_converged", vec![soon(&[])]).await;
    t.does("n1", "service shop_agent", "wait_converged", vec![soon(&[])]).await;
    assert_eq!(t.runs_on("shop_agent"), ["n1", "n2"]);
    assert!(t.changes("n1", "node n3", "activate", vec![]).await);
    assert!(!t.changes("n1", "node n3", "activate", vec![]).await);
    until("the global service is there again", || t.runs_on("shop_agent").len() == 3);
    let tasks = t.does("n1", "node n3", "tasks", vec![]).await;
    assert_eq!(tasks.as_list().unwrap()[0].as_record().unwrap().str("name"), "shop_agent.n3");
    let e = t.fails("n1", "service shop_agent", "scale", vec![Value::Int(2)]).await;
    assert!(e.code == Code::COMMAND_BAD && e.message.contains("is not replicated"), "{e}");
    assert!(t.changes("n1", "node n2", "pause", vec![]).await);
    assert_eq!(t.runs_on("shop_agent").len(), 3, "it keeps what it has");
    assert!(t.changes("n1", "node n2", "activate", vec![]).await);

    // A new version that runs, one that does not, files that are none.
    assert!(t.changes("n1", on, "deploy", deploy("200000", &[])).await);
    let e = t.fails("n1", on, "deploy", deploy("not-a-number", &[])).await;
    assert!(e.code == Code::SERVICE_UPDATE && e.message.contains("the service shop_web") && e.message.contains("rolled back"), "{e}");
    assert_eq!(t.docker("service inspect shop_web --format {{.Spec.TaskTemplate.ContainerSpec.Args}}"), "[sleep 200000]");
    let wrong = |file: &str| vec![file.into(), soon(&[])];
    let e = t.fails("n1", on, "deploy", wrong("stack.yaml")).await;
    assert_eq!(e.code, Code::COMMAND_BAD, "{e}");
    let e = t.fails("n1", on, "deploy", wrong("/nowhere/stack.yaml")).await;
    assert!(e.code == Code::SWARM_STACK && e.message.contains("/nowhere"), "{e}");
    std::fs::write(t.srv(1).join("stack.yaml"), "version: \"3.8\"\nservices: { web: { imagee: x } }\n").unwrap();
    let e = t.fails("n1", on, "deploy", wrong("/srv/stack.yaml")).await;
    assert!(e.code == Code::SWARM_STACK && e.message.contains("imagee"), "{e}");

    assert!(t.changes("n1", on, "remove", vec![]).await);
    assert!(!t.changes("n1", on, "remove", vec![]).await);
    for what in ["service ls -q", "config ls -q", "network ls -q --filter label=com.docker.stack.namespace=shop", "ps -q"] {
        assert_eq!(t.docker(what), "", "{what}");
    }
}
