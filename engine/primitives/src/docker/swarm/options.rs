//! What a service may be given, by `create` and by `update` alike.

use runbook_core::spec::{Spec, Ty};

use crate::docker::given::{command_ty, health};

fn map(of: Vec<Ty>) -> Ty {
    Ty::Map(Box::new(Ty::OneOf(of)))
}

fn list() -> Ty {
    Ty::List(Box::new(Ty::Str))
}

/// Declares the options of a service.
pub(super) fn options(s: Spec) -> Spec {
    let files = || Ty::OneOf(vec![list(), Ty::Map(Box::new(Ty::Str))]);
    let s = s
        .option("command", command_ty(), "A text for the image's `sh`, or an array of words; the image's own when not given.")
        .option("replicas", Ty::Int, "How many tasks it has; 1 when not given.")
        .option("global", Ty::Bool, "One task on each node instead; false by default.")
        .option(
            "env",
            map(vec![Ty::Str, Ty::Secret, Ty::Unit]),
            "Environment variables; `()` removes one in an update. `docker service inspect` shows them to whoever may use a manager: a secret of the swarm does not show.",
        )
        .option("user", Ty::Str, "As whom; the image's own user when not given.")
        .option("cwd", Ty::Str, "The folder that it runs in.")
        .option("init", Ty::Bool, "Whether a small init is its first process, which ends what is left behind; false by default.")
        .option("volumes", list(), "What it has mounted: `VOLUME:/path` or `/folder:/path`, with `:ro` at its end to read only.")
        .option("networks", list(), "The networks of the swarm that it is on.")
        .option("ports", list(), "Ports that every node of the swarm publishes: `8080:80`, `5353:53/udp`.")
        .option("host_ports", list(), "Ports that only the nodes with a task publish, without the swarm's load balancer: `8080:80`.")
        .option("endpoint", Ty::Str, "How its name is answered on a network: `vip` (one address, balanced) or `dnsrr` (those of the tasks); `vip` when not given.")
        .option("constraints", list(), "Where its tasks may run: `node.role==worker`, `node.labels.disk==ssd`.")
        .option("max_per_node", Ty::Int, "How many of its tasks one node may have; no limit when not given.")
        .option("secrets", files(), "Secrets of the swarm that it can read as `/run/secrets/NAME`; a map gives each another file name there.")
        .option("configs", files(), "Configs of the swarm that it can read as `/NAME`; a map gives each another path.")
        .option("labels", map(vec![Ty::Str, Ty::Unit]), "Labels of the service; `()` removes one in an update.");
    let s = s
        .option("memory", Ty::Bytes, "The memory that a task may use at most.")
        .option("cpus", Ty::Float, "The processors that a task may use at most, such as `0.5`.")
        .option("reserve_memory", Ty::Bytes, "The memory that a node must have free for a task.")
        .option("reserve_cpus", Ty::Float, "The processors that a node must have free for a task.")
        .option("restart", Ty::Str, "When a task that ended is replaced: `any`, `on-failure` or `none`; `any` when not given.")
        .option("restart_delay", Ty::Duration, "How long after its end; `\"5s\"` when not given.")
        .option("stop_timeout", Ty::Duration, "How long a container may take to end before it is killed; `\"10s\"` when not given.");
    let s = health(s);
    let s = s
        .option("update_parallelism", Ty::Int, "How many tasks an update replaces at a time, 0 for all; 1 when not given.")
        .option("update_delay", Ty::Duration, "How long it waits after each of these.")
        .option("update_monitor", Ty::Duration, "How long a new task is watched for failure; `\"5s\"` when not given.")
        .option("update_failure", Ty::Str, "What a failed update does: `pause`, `continue` or `rollback`; `pause` when not given.")
        .option("update_max_failures", Ty::Float, "The share of tasks that may fail before the update has; 0 when not given.")
        .option("update_order", Ty::Str, "`stop-first` or `start-first`; `stop-first` when not given.")
        .option("rollback_parallelism", Ty::Int, "As `update_parallelism`, of a rollback.")
        .option("rollback_delay", Ty::Duration, "As `update_delay`, of a rollback.")
        .option("rollback_monitor", Ty::Duration, "As `update_monitor`, of a rollback.")
        .option("rollback_failure", Ty::Str, "What a failed rollback does: `pause` or `continue`; `pause` when not given.")
        .option("rollback_order", Ty::Str, "As `update_order`, of a rollback.");
    waiting(
        s.option("registry_user", Ty::Str, "The login with which the nodes pull the image; none when not given.")
            .option("registry_password", Ty::Secret, "Its password or token.")
            .option("detach", Ty::Bool, "Do not wait until it has converged; false by default."),
    )
}

/// Declares how long is waited.
pub(super) fn waiting(s: Spec) -> Spec {
    s.option("within", Ty::Duration, "How long it may take to converge; `\"5m\"` when not given.").option(
        "steady",
        Ty::Duration,
        "How long all of its tasks must have run; `update_monitor` when not given, and nothing after an update, which the swarm has watched.",
    )
}
