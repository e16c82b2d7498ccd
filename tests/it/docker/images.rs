//! Images from engine to engine.

use std::time::Duration;

use super::*;

pub(super) fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 24) as u8
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_over_with_only_the_layers_that_are_missing() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    p.a.build(
        "shop:1",
        "FROM base:1\nCOPY big /big\nCOPY one /one\nCMD [\"cat\",\"/one\"]\n",
        &[("big", noise(8 << 20, 1)), ("one", b"first\n".to_vec())],
    );
    // The second differs in its last layer, and has one layer twice.
    p.a.build(
        "shop:2",
        "FROM base:1\nCOPY big /big\nCOPY one /one\nCOPY one /one\nCOPY two /two\n",
        &[("big", noise(8 << 20, 1)), ("one", b"first\n".to_vec()), ("two", noise(1 << 20, 2))],
    );
    let from = || vec![p.engine("old")];
    let out = p.call("new", "image shop:1", "copy_from", from()).await.unwrap();
    let first = out.value.as_record().unwrap().clone();
    assert_eq!((out.changed, first.get("there")), (Some(true), &Value::Int(0)), "{first:?}");
    assert_eq!(first.str("id"), p.a.docker(&["image", "inspect", "-f", "{{.Id}}", "shop:1"]));
    assert_eq!(p.b.docker(&["image", "inspect", "-f", "{{.Id}}", "shop:1"]), first.str("id"));
    assert_eq!(p.b.docker(&["run", "--rm", "shop:1"]), "first");
    assert!(!p.changes("new", "image shop:1", "copy_from", from()).await, "it is there");

    let out = p.call("new", "image shop:2", "copy_from", from()).await.unwrap();
    let second = out.value.as_record().unwrap().clone();
    let Value::Bytes(sent) = second.get("sent") else { panic!("{second:?}") };
    assert!(second.get("there") == &Value::Int(3) && *sent > 1 << 20 && *sent < 3 << 20, "{second:?}, {:?}", out.note);
    assert_eq!(
        p.b.docker(&["run", "--rm", "shop:2", "sh", "-c", "busybox sha256sum /big /two /one"]),
        p.a.docker(&["run", "--rm", "shop:2", "sh", "-c", "busybox sha256sum /big /two /one"])
    );

    // A name that is missing is given, and one that another image has is taken over.
    p.a.docker(&["tag", "shop:2", "shop:current"]);
    p.b.docker(&["tag", "shop:1", "shop:current"]);
    let out = p.call("new", "image shop:current", "copy_from", from()).await.unwrap();
    assert_eq!(out.note.as_deref(), Some("it was there without that name"));
    assert_eq!(p.b.docker(&["image", "inspect", "-f", "{{.Id}}", "shop:current"]), second.str("id"));
    let e = p.fails("new", "image shop:9", "copy_from", from()).await;
    assert!(e.code == Code::DOCKER_MISSING && e.message.contains("shop:9"), "{e}");

    assert!(p.changes("new", "image shop:2", "tag", vec!["shop:two".into()]).await);
    assert!(!p.changes("new", "image shop:2", "tag", vec!["shop:two".into()]).await);
    assert!(p.changes("new", "image shop:two", "remove", vec![]).await);
    assert!(!p.changes("new", "image shop:two", "remove", vec![]).await);
    let info = p.does("new", "image shop:2", "inspect", vec![]).await;
    assert_eq!(info.get("layers").as_list().unwrap().len(), 5);

    // Without the helper all layers go, and the image is as whole.
    p.b.docker(&["rmi", "-f", "shop:2", "shop:current"]);
    p.shared.get::<HelperExe>().disable();
    let fresh = Arc::<Shared>::default();
    fresh.get::<HelperExe>().disable();
    let (copy, call) = p.bind("new", "image shop:2", "copy_from", from());
    let mut cx = p.cx("r1-b");
    cx.shared = fresh;
    let out = copy.act(&cx, &call).await.unwrap();
    let Value::Bytes(sent) = out.value.as_record().unwrap().get("sent") else { panic!() };
    assert!(*sent > 9 << 20, "{sent}");
    assert_eq!(p.b.docker(&["image", "inspect", "-f", "{{.Id}}", "shop:2"]), second.str("id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_in_the_middle_leaves_nothing_half_and_the_next_one_finishes() {
    let Some(p) = Pair::start() else { return };
    p.a.base();
    let mut cut = 0;
    for n in 0..6u64 {
        let name = format!("shop:{n}");
        p.a.build(
            &name,
            "FROM base:1\nCOPY big /big\nCOPY more /more\n",
            &[("big", noise(20 << 20, n + 1)), ("more", noise(5 << 20, n + 90))],
        );
        let (copy, call) = p.bind("new", &format!("image {name}"), "copy_from", vec![p.engine("old")]);
        let died = tokio::time::timeout(Duration::from_millis(100 + 120 * n), copy.act(&p.cx("r1-a"), &call)).await.is_err();
        cut += usize::from(died);
        let (there, _) = p.b.try_docker(&["image", "inspect", &name]);
        assert!(
            !died
                || !there
                || p.b.docker(&["image", "inspect", "-f", "{{.Id}}", &name]) == p.a.docker(&["image", "inspect", "-f", "{{.Id}}", &name])
        );
        copy.act(&p.cx("r1-a"), &call).await.unwrap();
        assert_eq!(p.b.docker(&["image", "inspect", "-f", "{{.Id}}", &name]), p.a.docker(&["image", "inspect", "-f", "{{.Id}}", &name]));
        let sum = ["run", "--rm", &name, "sh", "-c", "busybox sha256sum /big /more"];
        assert_eq!(p.b.docker(&sum), p.a.docker(&sum));
    }
    println!("6 copies, {cut} cut off in the middle");
    assert!(cut > 0);
    assert_eq!(p.b.docker(&["images", "-q", "-f", "dangling=true"]), "");
}

/// A registry on loopback, with the engines' network for company.
struct Registry(std::process::Child, u16, tempfile::TempDir);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Registry {
    /// In the network namespace of an engine, which has no other; with a login.
    fn start(engine: &Engine) -> Option<Registry> {
        if !crate::support::have("docker-registry") || !crate::support::have("htpasswd") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        sh("htpasswd -Bbn deploy 'pass word' >users", dir.path());
        let at = dir.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {at}/data}}}}\nhttp: {{addr: '127.0.0.1:5000'}}\n\
             auth: {{htpasswd: {{realm: r, path: {at}/users}}}}\n"
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut inside = engine.inside();
        let child = inside
            .args(["docker-registry", "serve"])
            .arg(dir.path().join("config.yml"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Some(Registry(child, 5000, dir))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_with_a_login_and_only_when_the_registry_has_another() {
    let Some(p) = Pair::start() else { return };
    let Some(registry) = Registry::start(&p.a) else { return };
    p.a.base();
    let name = format!("127.0.0.1:{}/shop:1", registry.1);
    let on = format!("image {name}");
    let config = registry.2.path().join("client").display().to_string();
    let client = |words: &[&str]| p.a.try_docker(&[&["--config", &config], words].concat());
    crate::support::desk::until("the registry answers", || {
        client(&["login", "-u", "deploy", "-p", "pass word", &format!("127.0.0.1:{}", registry.1)]).0
    });
    let push = |content: &[u8]| {
        p.a.build(&name, "FROM base:1\nCOPY note /note\n", &[("note", content.to_vec())]);
        let (ok, said) = client(&["push", &name]);
        assert!(ok, "{said}");
        let id = p.a.docker(&["image", "inspect", "-f", "{{.Id}}", &name]);
        p.a.docker(&["rmi", "-f", &name]);
        id
    };
    let login = |password: &str| {
        p.world.secrets.lock().insert("registry".into(), password.into());
        let secret = p.cx("r1-s").secret("registry").unwrap();
        vec![options(&[("user", "deploy".into()), ("password", Value::Secret(secret))])]
    };
    let first = push(b"one");
    let e = p.fails("old", &on, "pull", vec![]).await;
    assert!(e.code == Code::DOCKER || e.code == Code::DOCKER_MISSING, "{e}");
    let e = p.fails("old", &on, "pull", login("wrong")).await;
    assert!(e.message.contains("nauthorized") && !e.message.contains("wrong"), "{e}");
    let pulled = p.does("old", &on, "pull", login("pass word")).await;
    assert_eq!(pulled.str("id"), first);
    assert!(!p.changes("old", &on, "pull", login("pass word")).await);
    let second = push(b"two");
    assert_eq!(p.does("old", &on, "pull", login("pass word")).await.str("id"), second);
    assert_ne!(first, second);
    let e = p.fails("old", &format!("image 127.0.0.1:{}/none:1", registry.1), "pull", login("pass word")).await;
    assert!(e.message.contains("none"), "{e}");
}
