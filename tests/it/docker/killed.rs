//! Controllers killed at random while they copy images and volumes.

use std::cell::Cell;

use super::images::noise;
use super::*;
use crate::support::desk::Project;
use crate::support::killed;

const RUNBOOK: &str = r#"
let old = docker("old");
let new = docker("new");
step "Image" { new.image("shop:1").copy_from(old); }
step "Volume" { new.volume("data").copy_from(old); }
step "It runs there" { new.run("shop:1", ["ls", "/data"], #{ volumes: ["data:/data"] }); }
"#;

#[test]
fn images_and_volumes_are_whole_however_often_the_controller_is_killed() {
    let Some(p) = Pair::start() else { return };
    let rounds = if std::env::var_os("RUNBOOK_TEST_ALL").is_some() { 20 } else { 3 };
    p.a.base();
    p.a.docker(&["volume", "create", "data"]);
    let from = p.a.volume("data");
    sh(
        "mkdir -p up/deep; for i in $(seq 500); do head -c 20000 /dev/urandom >up/f$i; done; ln up/f1 up/deep/hard; head -c 60000000 /dev/urandom >big",
        &from,
    );
    let keys = [&p.old, &p.new].map(|h| h.home().join(".ssh/authorized_keys"));
    let desk = Project::new(&p.inventory(), RUNBOOK);
    desk.write("all.rhai", RUNBOOK);
    let anew = Cell::new(0);
    let before = |n: usize| {
        let seed = 2 * n as u64;
        // Now and then there is nothing of either; otherwise a layer and parts of the volume are new.
        if n % 3 == 1 {
            anew.set(anew.get() + 1);
            p.b.docker(&["image", "rm", "-f", "shop:1"]);
            p.b.docker(&["volume", "rm", "-f", "data"]);
        }
        p.a.build(
            "shop:1",
            "FROM base:1\nCOPY big /big\nCOPY more /more\n",
            &[("big", noise(30 << 20, 7)), ("more", noise(10 << 20, seed + 1))],
        );
        let change = format!("rm -f up/f{n}; head -c 30000 /dev/urandom >up/g{n}; echo {n} >>up/f200; chmod 64{} up/f300", n % 5);
        sh(&format!("{change}; dd if=/dev/urandom of=big bs=1M seek={} count=2 conv=notrunc status=none", n % 50), &from);
    };
    let after = |n: usize| {
        let id = ["image", "inspect", "-f", "{{.Id}}", "shop:1"];
        assert_eq!(p.b.docker(&id), p.a.docker(&id), "round {n}");
        let all = "find . -printf '%p %y %m %U:%G %s %T@ %n\\n' | sort; find . -type f -exec sha256sum {} + | sort";
        let [here, there] = [sh(all, &p.b.volume("data")), sh(all, &from)];
        let other: Vec<&str> =
            here.lines().filter(|l| !there.contains(l)).chain(there.lines().filter(|l| !here.contains(l))).take(20).collect();
        assert!(here == there, "round {n}: {other:#?}");
        assert_eq!(p.b.docker(&["ps", "-aq"]), "", "round {n}: no container is left");
        for k in &keys {
            assert!(!std::fs::read_to_string(k).unwrap_or_default().contains("runbook"), "round {n}: a key is left in {}", k.display());
        }
    };
    let k = killed::at_random(&desk, rounds, before, after);
    println!(
        "image and volume: {} runs of {:?}, {} of them from nothing, the controller killed {} times: equal each time, nothing left",
        k.runs,
        k.whole,
        anew.get(),
        k.kills
    );
}
