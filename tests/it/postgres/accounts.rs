//! Roles: listed without their passwords, and made alike on another cluster.

use std::process::Command;

use runbook_core::{Code, Value};

use super::dumps::site;
use super::switch::db;
use crate::support::options;
use crate::support::postgres::{Cluster, Site};

const ROLES: &str = "CREATE ROLE staff; CREATE ROLE \"Odd; one\" LOGIN PASSWORD 'odd''s' CONNECTION LIMIT 3 VALID UNTIL '2030-01-01 00:00+00' IN ROLE staff; \
    CREATE ROLE chief CREATEROLE NOINHERIT; GRANT staff TO chief WITH ADMIN OPTION; GRANT pg_read_all_stats TO staff; \
    ALTER ROLE app SET search_path = \"$user\", 'a,b', public; ALTER ROLE app IN DATABASE shop SET work_mem = '8MB'; ALTER ROLE staff SET my.note = 'it''s, so'; \
    GRANT CONNECT, TEMPORARY ON DATABASE shop TO staff; GRANT CREATE ON DATABASE shop TO chief WITH GRANT OPTION";

/// What `pg_dumpall` itself says of the roles.
fn roles(c: &Cluster) -> String {
    let (port, folder) = (c.port.to_string(), c.path("").display().to_string());
    let all = c.as_postgres("pg_dumpall", &["--roles-only", "-h", &folder, "-p", &port]);
    let lines = all.lines().filter(|l| !l.starts_with('\\') && !l.starts_with("--") && !l.contains("ROLE postgres"));
    lines.collect::<Vec<_>>().join("\n")
        + c.sql("postgres", "SELECT x FROM pg_database d, unnest(datacl::text[]) x WHERE datname = 'shop' ORDER BY 1").as_str()
}

/// Whether that password lets a role in.
fn logs_in(c: &Cluster, role: &str, password: &str) -> bool {
    let out = Command::new("psql")
        .args(["-X", "-w", "-h", "127.0.0.1", "-p", &c.port.to_string(), "-U", role, "-d", "shop", "-c", "SELECT 1"])
        .env("PGPASSWORD", password)
        .output();
    out.unwrap().status.success()
}

fn names(v: &Value, field: &str) -> Vec<String> {
    let list = v.as_record().unwrap().get(field).as_list().unwrap();
    list.iter().map(|n| n.as_str().unwrap().to_string()).collect()
}

async fn copy(s: &Site) -> Value {
    s.run("shop_new", "copy_accounts_from", vec![db("shop_old")]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_listed_and_made_alike() {
    let Some(s) = site() else { return };
    s.old.sql("shop", ROLES);
    let listed = s.run("shop_old", "accounts", vec![]).await.unwrap();
    let text = format!("{listed:?}");
    assert!(!text.contains("SCRAM") && !text.contains("odd's"), "{text}");
    for want in [
        "\"\\\"Odd; one\\\"\"",
        "CONNECTION LIMIT 3 VALID UNTIL '2030",
        "GRANT \\\"staff\\\" TO \\\"chief\\\" WITH ADMIN OPTION",
        "CREATE ON DATABASE",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    assert!(!text.contains("\"postgres\"") && !text.contains("name: \"pg_"), "{text}");

    // The other cluster has one that is alike, one that differs, and one of its own.
    s.new.sql(
        "postgres",
        "CREATE ROLE mine; CREATE ROLE chief LOGIN VALID UNTIL '2031-01-01'; GRANT mine TO chief; ALTER ROLE chief SET work_mem = '1MB'",
    );
    let first = copy(&s).await;
    assert_eq!(names(&first, "created"), ["\"Odd; one\"", "staff"]);
    assert_eq!(names(&first, "changed"), ["app", "chief"]);
    let (old, new) = (roles(&s.old), roles(&s.new));
    // A role that was limited once cannot become one that never was: for ever is written as infinity.
    let alike = |l: &str| l.replace(" VALID UNTIL 'infinity'", "");
    let without_mine: Vec<String> = new.lines().filter(|l| !l.contains("ROLE mine")).map(alike).collect();
    assert_eq!(old, without_mine.join("\n"));
    assert!(logs_in(&s.new, "Odd; one", "odd's") && !logs_in(&s.new, "Odd; one", "odd"));
    assert_eq!(
        s.new.sql("postgres", "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'app'::regrole AND setdatabase = 0"),
        s.old.sql("postgres", "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'app'::regrole AND setdatabase = 0")
    );

    let again = copy(&s).await;
    assert_eq!(names(&again, "equal"), ["\"Odd; one\"", "app", "chief", "staff"]);
    assert!(names(&again, "created").is_empty() && names(&again, "changed").is_empty());

    // A new password, by name; and a name that there is not.
    s.old.sql("postgres", "ALTER ROLE \"Odd; one\" PASSWORD 'another'; ALTER ROLE app CREATEDB");
    let only = |n: &str| vec![db("shop_old"), options(&[("only", Value::List(vec![n.into()]))])];
    let one = s.run("shop_new", "copy_accounts_from", only("\"Odd; one\"")).await.unwrap();
    assert_eq!(names(&one, "changed"), ["\"Odd; one\""]);
    assert!(logs_in(&s.new, "Odd; one", "another") && !logs_in(&s.new, "Odd; one", "odd's"));
    assert_eq!(s.new.sql("postgres", "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'app'"), "f");
    let e = s.run("shop_new", "copy_accounts_from", only("nobody")).await.unwrap_err();
    assert_eq!((e.code, e.message.as_str()), (Code::DB_QUERY, "\"shop_old\" has no account nobody"));

    // Without the database: roles alone, and the rest once it is there.
    s.new.sql("postgres", "DROP DATABASE shop");
    s.new.sql("postgres", "DROP ROLE \"Odd; one\"; DROP ROLE chief; DROP ROLE staff");
    assert_eq!(names(&copy(&s).await, "created"), ["\"Odd; one\"", "chief", "staff"]);
    s.new.sql("postgres", "CREATE DATABASE shop OWNER app");
    assert_eq!(names(&copy(&s).await, "changed"), ["app", "chief", "staff"]);
    assert_eq!(names(&copy(&s).await, "equal").len(), 4);
}
