//! Volumes from engine to engine.

use std::time::Duration;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_goes_over_with_everything_and_then_only_what_differs() {
    let Some(p) = Pair::start() else { return };
    p.a.docker(&["volume", "create", "--label", "of=shop", "data"]);
    let (from, args) = (p.a.volume("data"), || vec![p.engine("old")]);
    sh(
        "mkdir -p up/deep; echo a >up/plain; ln up/plain up/hard; ln -s plain up/soft; head -c 2000000 /dev/urandom >big; chown 1234:2345 up/plain; chmod 2750 up; \
        setfattr -n user.note -v here big; touch -d '2001-02-03 04:05:06' up/deep",
        &from,
    );
    let out = p.call("new", "volume data", "copy_from", args()).await.unwrap();
    assert_eq!(out.changed, Some(true), "{:?}", out.note);
    let to = p.b.volume("data");
    let all =
        "find . -printf '%p %y %m %U:%G %s %T@ %n %l\\n' | sort; find . -type f -exec sha256sum {} + | sort; getfattr -R -d . 2>/dev/null";
    assert_eq!(sh(all, &to), sh(all, &from));
    assert_eq!(p.b.docker(&["volume", "inspect", "-f", "{{.Labels}}", "data"]), "map[of:shop]");
    assert!(!p.changes("new", "volume data", "copy_from", args()).await, "both are equal");

    sh("echo more >>up/plain; rm big; echo new >late", &from);
    let diff = p.does("new", "volume data", "diff_from", args()).await;
    assert_eq!((diff.get("new"), diff.get("extra")), (&Value::Int(1), &Value::Int(1)), "{diff:?}");
    let e = p.fails("new", "volume data", "copy_from", vec![p.engine("old"), options(&[("verify", "by eye".into())])]).await;
    assert!(e.message.contains("by eye"), "{e}");
    let delta = p.does("new", "volume data", "copy_from", vec![p.engine("old"), options(&[("verify", "size".into())])]).await;
    assert_eq!(delta.get("deleted"), &Value::Int(1), "{delta:?}");
    assert_eq!(sh(all, &to), sh(all, &from));

    // Under another name; and things that are in the way.
    assert!(p.changes("new", "volume other", "copy_from", vec![p.engine("old"), options(&[("name", "data".into())])]).await);
    assert_eq!(sh(all, &p.b.volume("other")), sh(all, &from));
    let e = p.fails("new", "volume none", "copy_from", args()).await;
    assert!(e.code == Code::DOCKER_MISSING && e.message.contains("none"), "{e}");
    assert!(!p.b.try_docker(&["volume", "inspect", "none"]).0, "nothing was made");
    let tmpfs = options(&[("options", Value::Map(BTreeMap::from([("type".into(), "tmpfs".into()), ("device".into(), "tmpfs".into())])))]);
    let e = p.fails("new", "volume other", "create", vec![tmpfs]).await;
    assert_eq!(e.code, Code::DOCKER_CONFLICT, "{e}");
    assert!(!p.changes("new", "volume other", "create", vec![]).await);
    assert!(p.changes("new", "volume other", "remove", vec![]).await);
    assert!(!p.changes("new", "volume other", "remove", vec![]).await);
    assert_eq!((p.old.sessions().is_empty(), p.new.sessions().is_empty()), (false, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_in_the_middle_leaves_nothing_that_the_next_one_does_not_mend() {
    let Some(p) = Pair::start() else { return };
    p.a.docker(&["volume", "create", "data"]);
    let from = p.a.volume("data");
    sh("for i in $(seq 300); do head -c 20000 /dev/urandom >f$i; done; head -c 30000000 /dev/urandom >big", &from);
    let mut cut = 0;
    for n in 0..6u64 {
        sh(
            &format!(
                "rm f{}; head -c 30000 /dev/urandom >g{n}; echo {n} >>f200; dd if=/dev/urandom of=big bs=1M seek={n} count=2 conv=notrunc status=none",
                n + 1
            ),
            &from,
        );
        if n % 3 == 0 {
            p.b.docker(&["volume", "rm", "-f", "data"]);
        }
        let (copy, call) = p.bind("new", "volume data", "copy_from", vec![p.engine("old")]);
        cut += usize::from(tokio::time::timeout(Duration::from_millis(60 + 90 * n), copy.act(&p.cx("r1-a"), &call)).await.is_err());
        copy.act(&p.cx("r1-a"), &call).await.unwrap();
        let all = "find . -printf '%p %y %m %U:%G %s %T@\\n' | sort; find . -type f -exec sha256sum {} + | sort";
        assert_eq!(sh(all, &p.b.volume("data")), sh(all, &from));
        assert!(!p.changes("new", "volume data", "copy_from", vec![p.engine("old")]).await);
    }
    println!("6 copies, {cut} cut off in the middle");
    assert!(cut > 0);
}
