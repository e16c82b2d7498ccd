//! A whole server copied between hosts of the lab, where systemd runs Debian's own service: as a login that needs sudo, by the binary,
//! which is killed on the way.

use super::*;
use crate::support::containers::Lab;
use crate::support::desk::until;

/// An empty server of the package, with its data in a folder that is no file system of its own.
fn server(lab: &Lab, host: &str, id: u32) {
    lab.on(
        host,
        &format!(
            "{CLEAR}; printf '[mysqld]\\ndatadir=/var/lib/mysql/t\\nserver_id={id}\\nlog_bin\\nbind-address=0.0.0.0\\n' >/etc/mysql/mariadb.conf.d/90-t.cnf \
             && mariadb-install-db --user=mysql --skip-test-db --datadir=/var/lib/mysql/t >/dev/null && touch /var/lib/mysql/t/debian-10.11.flag && systemctl start mariadb"
        ),
    );
}

const CLEAR: &str = "systemctl stop mariadb; pkill -F /run/t.pid; rm -rf /var/lib/mysql/t /var/lib/mysql/t.* /etc/mysql/mariadb.conf.d/90-t.cnf /etc/mysql/mariadb.conf.d/zz-runbook.cnf /run/t.pid";

const RUNBOOK: &str = r#"
let from = database("shop_old");
let to = database("shop_new");
step "Replicate" { to.replicate_from(from, #{ mode: "physical" }); } undo { to.stop_replication(); }
let fence = step "Fence" { from.fence() } undo { from.unfence(); };
step "Everything" { to.wait_caught_up(fence, #{ within: "1m" }); }
step "Equal" { let c = to.compare(from); if !c.equal { throw `${c.differences}`; } }
step "Promote" { to.promote(fence) } undo { to.demote(from); }
"#;

#[test]
fn the_service_of_a_distribution_is_stopped_replaced_and_started() {
    let Some(lab) = Lab::take() else { return };
    server(&lab, "old", 1);
    server(&lab, "new", 2);
    lab.on(
        "old",
        "mariadb -e \"CREATE DATABASE shop; USE shop; CREATE TABLE parts (i INT PRIMARY KEY, t TEXT); INSERT INTO parts SELECT seq, REPEAT(MD5(seq), 40) FROM seq_1_to_150000; \
         CREATE TABLE notes (i INT PRIMARY KEY, t TEXT) ENGINE=MyISAM; INSERT INTO notes SELECT seq, REPEAT('isam', 50) FROM seq_1_to_5000; \
         CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, item VARCHAR(80)); CREATE USER shop@localhost IDENTIFIED BY 'shop-secret'; GRANT ALL ON shop.* TO shop@localhost\"",
    );
    // Orders all the while, each of which is on record when it was taken.
    lab.on(
        "old",
        "rm -f /root/taken; setsid sh -c 'echo $$ >/run/t.pid; n=0; while :; do n=$((n+1)); mariadb -ushop -pshop-secret shop -e \"INSERT INTO orders (item) VALUES ($n)\" && echo $n >>/root/taken; sleep .02; done' >/dev/null 2>&1 &",
    );
    let databases: String = ["old", "new"]
        .map(|h| format!("[environments.test.databases.shop_{h}]\nkind = \"mariadb\"\nhost = \"{h}\"\ndatabase = \"shop\"\nsudo = true\ndata_dir = \"/var/lib/mysql/t\"\n"))
        .concat();
    let inventory = format!("{}{databases}", lab.inventory().replace("ssh = \"root@", "ssh = \"admin@"));
    let p = crate::support::desk::Project::new(&inventory, RUNBOOK);
    let (mut words, mut killed) = (vec!["run", "a.rhai", "--env", "test"], 0);
    for sign in ["[ -e t.runbook-new/shop ]", "[ -e t.runbook-new/runbook-preparing ]", "[ -e t.runbook-replaced ]"] {
        let mut run = p.start(&words);
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !lab.try_on("new", &format!("cd /var/lib/mysql && {sign}")).0 {
            assert!(std::time::Instant::now() < end, "{sign} never came: {}", p.expect(&["show"], 0));
        }
        killed += usize::from(run.0.try_wait().unwrap().is_none());
        let _ = run.0.kill();
        run.wait();
        words = vec!["resume"];
    }
    assert!(killed >= 2, "the run was too fast to be killed: {killed}");
    p.expect(&["resume"], 0);
    let rows = |host: &str, sql: &str| lab.on(host, &format!("mariadb -N -B shop -e \"{sql}\""));
    assert_eq!(rows("new", "SELECT @@datadir, @@read_only"), "/var/lib/mysql/t/\t0\n");
    assert_eq!(rows("new", "SELECT COUNT(*) FROM orders WHERE item = 1"), "1\n");
    // Every order that was taken is there once.
    until("the writer is refused", || lab.try_on("old", "a=$(wc -l </root/taken); sleep 1; [ $a = $(wc -l </root/taken) ]").0);
    assert_eq!(rows("new", "SELECT item FROM orders ORDER BY id"), lab.on("old", "cat /root/taken"));
    // Nothing of the copy is left, and what the package has put there is there.
    let seen = lab
        .on("new", "cd /var/lib/mysql; echo t.*; ls t | grep -E 'runbook-|xtrabackup|flag'; stat -c %U:%a t; systemctl is-active mariadb");
    assert_eq!(seen, "t.*\ndebian-10.11.flag\nmysql:700\nactive\n");
    for host in ["old", "new"] {
        lab.on(host, &format!("{CLEAR}; systemctl reset-failed"));
    }
}
