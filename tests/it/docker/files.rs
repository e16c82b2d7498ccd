//! Files into and out of containers, and images built from folders.

use super::*;

/// A folder with what folders have.
fn folder(at: &Path) {
    sh(
        "mkdir -p app/sub && cd app && echo one >a && head -c 300000 /dev/urandom >sub/large && : >empty && ln -s sub/large link && ln a hard && \
         printf x >\"it's \\\\ & | odd\" && chmod 640 a && chmod 2755 sub && chown 7:8 a && chown -h 9 link && mkdir -p 'sub/none' && \
         mkdir -p \"$(printf 'l%.0s' $(seq 120))/$(printf 'm%.0s' $(seq 120))\" && echo deep >\"$(printf 'l%.0s' $(seq 120))/$(printf 'm%.0s' $(seq 120))/file\"",
        at,
    );
}

fn listing(at: &Path) -> String {
    sh("find . -mindepth 1 -printf '%P %y %m %U:%G %l\\n' | sort; find . -type f -exec sha256sum {} + | sort", at)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_into_a_container_and_out_again_as_they_are() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    // One that never ran, and one that runs.
    p.a.docker(&["create", "--name", "still", "base:1"]);
    p.a.docker(&["run", "-d", "--init", "--name", "runs", "base:1"]);
    let srv = p.srv[0].path();
    folder(srv);
    let host = |name: &str| Value::from(Record::handle("Host", name, BTreeMap::new()));
    for container in ["still", "runs"] {
        let on = format!("container {container}");
        let into = |path: &str, to: &str| vec![host("old"), path.into(), to.into()];
        let done = p.does("old", &on, "copy_in", into("/srv/app", "/tmp/app")).await;
        assert_eq!(done.get("files"), &Value::Int(5), "{done:?}");
        assert!(!p.changes("old", &on, "copy_in", into("/srv/app", "/tmp/app")).await, "it is there");
        // One file, by another name.
        assert!(p.changes("old", &on, "copy_in", into("/srv/app/it's \\ & | odd", "/tmp/app/o|dd & \\1")).await);
        assert!(!p.changes("old", &on, "copy_in", into("/srv/app/it's \\ & | odd", "/tmp/app/o|dd & \\1")).await);

        let out = |path: &str, to: &str| vec![path.into(), host("new"), to.into()];
        let to = format!("/srv/{container}");
        assert!(p.changes("old", &on, "copy_out", out("/tmp/app", &to)).await);
        assert!(!p.changes("old", &on, "copy_out", out("/tmp/app", &to)).await, "it is there");
        let there = p.srv[1].path().join(container);
        assert_eq!(std::fs::read(there.join("o|dd & \\1")).unwrap(), b"x");
        assert!(p.changes("old", &on, "copy_out", out("/tmp/app/o|dd & \\1", "/srv/single")).await);
        assert!(!p.changes("old", &on, "copy_out", out("/tmp/app/o|dd & \\1", "/srv/single")).await);
        assert_eq!(std::fs::read(p.srv[1].path().join("single")).unwrap(), b"x");
        std::fs::remove_file(there.join("o|dd & \\1")).unwrap();
        std::fs::remove_file(p.srv[1].path().join("single")).unwrap();
        assert_eq!(listing(&there), listing(&srv.join("app")));

        // What was changed there comes back; what is there besides stays.
        std::fs::write(there.join("a"), "two\n").unwrap();
        std::fs::write(there.join("besides"), "mine").unwrap();
        assert!(p.changes("old", &on, "copy_out", out("/tmp/app", &to)).await);
        assert_eq!(std::fs::read(there.join("a")).unwrap(), b"one\n");
        assert_eq!(std::fs::read(there.join("besides")).unwrap(), b"mine");
    }
    assert_eq!(p.a.docker(&["exec", "runs", "cat", "/tmp/app/a"]), "one");
    assert_eq!(sh("ls -A", p.srv[1].path()), "runs\nstill\n", "no temporary file is left");

    // A permission alone is a difference.
    sh("chmod 600 app/a", srv);
    assert!(p.changes("old", "container runs", "copy_in", vec![host("old"), "/srv/app".into(), "/tmp/app".into()]).await);
    assert_eq!(p.a.docker(&["exec", "runs", "busybox", "stat", "-c", "%a %u:%g", "/tmp/app/a"]), "600 7:8");

    for (method, args, code, words) in [
        ("copy_in", vec![host("old"), "/srv/none".into(), "/tmp/x".into()], Code::FILE_MISSING, "/srv/none"),
        ("copy_in", vec![host("old"), "/srv/app".into(), "/tmp/app/a".into()], Code::DOCKER_COPY, "is a file"),
        ("copy_in", vec![host("old"), "/srv/app".into(), "/none/app".into()], Code::DOCKER_MISSING, "/none"),
        ("copy_in", vec![host("old"), "/srv/app".into(), "app".into()], Code::COMMAND_BAD, "not an absolute path"),
        ("copy_out", vec!["/tmp/none".into(), host("new"), "/srv/x".into()], Code::FILE_MISSING, "/tmp/none"),
        ("copy_out", vec!["/tmp/app".into(), host("new"), "/srv/runs/a".into()], Code::DOCKER_COPY, "is a file"),
        ("copy_out", vec!["/tmp/app/a".into(), host("new"), "/none/x".into()], Code::FILE_WRITE, "/none"),
        ("copy_out", vec!["/tmp/app/../a".into(), host("new"), "/srv/x".into()], Code::COMMAND_BAD, "not an absolute path"),
    ] {
        let e = p.fails("old", "container runs", method, args).await;
        assert!(e.code == code && e.message.contains(words), "{method}: {e}");
    }
    let e = p.fails("old", "container nobody", "copy_out", vec!["/tmp/x".into(), host("new"), "/srv/x".into()]).await;
    assert!(e.code == Code::DOCKER_MISSING && e.message.contains("nobody"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_is_full_is_said_and_nothing_half_stands_under_the_name() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    p.a.docker(&["run", "-d", "--init", "--name", "web", "--tmpfs", "/small:size=1m", "base:1"]);
    p.a.docker(&["exec", "web", "sh", "-c", "head -c 900000 /dev/zero >/tmp/large"]);
    // The host's folder is small: a file of 900 kB does not fit. Its mounts are its own.
    let host = Record::handle("Host", "new", BTreeMap::new());
    let on_host = async |command: &str, action: &str| {
        let run = runbook_primitives::registry().primitives[&(Some("Host"), "run")].clone();
        let call = run.spec().bind(Some(host.clone()), vec![command.into()]).unwrap();
        run.act(&p.cx(action), &call).await.unwrap().value.as_record().unwrap().str("stdout").to_string()
    };
    on_host("mkdir /srv/small && mount -t tmpfs -o size=500k none /srv/small", "r1-m").await;
    let e = p.fails("old", "container web", "copy_out", vec!["/tmp/large".into(), host.clone().into(), "/srv/small/large".into()]).await;
    let left = on_host("ls -A /srv/small; umount /srv/small", "r1-u").await;
    let words = ["No space left", "Wrote only"];
    assert!(e.code == Code::FILE_WRITE && words.iter().any(|w| e.message.contains(w)), "{e}");
    assert_eq!(left, "", "nothing is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_built_from_a_folder_and_only_when_that_changes_it() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    let at = p.srv[0].path().join("src");
    std::fs::create_dir(&at).unwrap();
    let dockerfile = "FROM base:1 AS one\nARG WORD=none\nCOPY . /app/\nRUN echo \"$WORD\" >/said\nFROM one AS two\nRUN echo two >/two\n";
    for (name, text) in [("Dockerfile", dockerfile), ("a", "one"), ("left-out", "x"), (".dockerignore", "left-*\n")] {
        std::fs::write(at.join(name), text).unwrap();
    }
    let args = |word: &str| {
        let args = Value::Map(BTreeMap::from([("WORD".to_string(), Value::from(word))]));
        let labels = Value::Map(BTreeMap::from([("of".to_string(), Value::from("it's a test"))]));
        vec!["/srv/src".into(), options(&[("args", args), ("labels", labels), ("network", "none".into()), ("target", "one".into())])]
    };
    let on = "image shop:8";
    let made = p.does("old", on, "build", args("it's $WORD")).await;
    assert_eq!(made.get("labels").as_map().unwrap()["of"], Value::from("it's a test"));
    assert_eq!(p.a.docker(&["run", "--rm", "shop:8", "cat", "/said"]), "it's $WORD");
    assert_eq!(p.a.docker(&["run", "--rm", "shop:8", "ls", "/app"]), "Dockerfile\na", "what .dockerignore names is left out");
    assert!(!p.a.try_docker(&["run", "--rm", "shop:8", "cat", "/two"]).0, "only the stage that was asked for");
    assert!(!p.changes("old", on, "build", args("it's $WORD")).await);
    std::fs::write(at.join("a"), "two").unwrap();
    assert!(p.changes("old", on, "build", args("it's $WORD")).await);

    std::fs::write(at.join("Broken"), "FROM base:1\nRUN echo begun; exit 7\n").unwrap();
    let before = p.a.docker(&["image", "inspect", "-f", "{{.Id}}", "shop:8"]);
    let file = |f: &str| vec!["/srv/src".into(), options(&[("file", f.into()), ("network", "none".into())])];
    let e = p.fails("old", on, "build", file("Broken")).await;
    assert!(e.code == Code::DOCKER_BUILD && e.message.contains("code: 7") && e.host.as_deref() == Some("old"), "{e}");
    let e = p.fails("old", on, "build", file("None")).await;
    assert!(e.code == Code::DOCKER_BUILD && e.message.contains("None"), "{e}");
    let e = p.fails("old", on, "build", vec!["/srv/nothing".into()]).await;
    assert!(e.code == Code::DOCKER_BUILD && e.message.contains("/srv/nothing"), "{e}");
    assert_eq!(p.a.docker(&["image", "inspect", "-f", "{{.Id}}", "shop:8"]), before, "the image stays as it was");
}
