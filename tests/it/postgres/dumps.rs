//! `dump` and `load`: everything kept, nothing to do, what goes wrong, and controllers and servers that die in the middle.

use std::time::Duration;

use runbook_core::inventory::Environment;
use runbook_core::{Code, Result, Value};

use crate::support::actions::until_done;
use crate::support::dumps::{self, Carried, Folder, edit, many};
use crate::support::options;
use crate::support::postgres::Site;

/// What [`SHOP`] has of large objects.
pub const LARGE: &str = "SELECT lo_from_bytea(4711, '\\x00ff10'), lo_from_bytea(4712, decode(repeat('ab', 100000), 'hex'));";

/// Two clusters with the roles of the shop; the new one has an empty database.
pub fn site() -> Option<Site> {
    let s = Site::start(false)?;
    s.new.init(false);
    s.new.start();
    s.new.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app s3cret'''");
    s.new.sql("postgres", "CREATE DATABASE shop OWNER app");
    Some(s)
}

/// A shop with something of every kind.
pub const SHOP: &str = r#"
CREATE SCHEMA "odd; name"; CREATE EXTENSION pg_trgm; CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN posint AS int CHECK (value > 0);
CREATE TABLE parent (id int PRIMARY KEY, m mood, t text COLLATE "C"); CREATE INDEX ON parent USING gin (t gin_trgm_ops);
CREATE TABLE child (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int NOT NULL REFERENCES parent, net numeric, gross numeric GENERATED ALWAYS AS (net * 1.19) STORED,
  raw bytea, doc jsonb, at timestamptz, a int[], UNIQUE (parent, id));
ALTER TABLE parent ADD COLUMN best bigint REFERENCES child DEFERRABLE;
CREATE TABLE "odd; name"."it's ""x""" ("a b" posint, t text);
CREATE TABLE parts (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu'); CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us'); CREATE INDEX ON parts (region);
CREATE TABLE heap (a int, b text); CREATE TABLE empty_one (a int DEFAULT 7);
INSERT INTO parent SELECT n, CASE WHEN n % 2 = 0 THEN 'sad' ELSE 'glad' END::mood, 'Grüße ' || n FROM generate_series(1, 300) n;
INSERT INTO child (parent, net, raw, doc, at, a) SELECT 1 + n % 300, n / 7.0, decode(md5(n::text), 'hex'), jsonb_build_object('n', n), to_timestamp(1700000000 + n), ARRAY[n, NULL] FROM generate_series(1, 60000) n;
UPDATE parent SET best = id + 1 WHERE id < 200;
INSERT INTO "odd; name"."it's ""x""" VALUES (1, E'\\.\n\\N\t;\r\nCOPY'), (NULL, NULL), (2, ''), (3, repeat('long ', 300000));
INSERT INTO parts SELECT n, CASE WHEN n % 3 = 0 THEN 'eu' ELSE 'us' END FROM generate_series(1, 5000) n;
INSERT INTO heap SELECT n, CASE WHEN n % 3 > 0 THEN 'x' END FROM generate_series(1, 5000) n;
CREATE TABLE logged (n int); CREATE SEQUENCE numbers START 100 INCREMENT 10; SELECT nextval('numbers'), nextval('numbers');
CREATE FUNCTION twice(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT x * 2';
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO logged VALUES (NEW.a); RETURN NEW; END';
CREATE TRIGGER after_heap AFTER INSERT ON heap FOR EACH ROW EXECUTE FUNCTION note();
CREATE VIEW b_view AS SELECT id, twice(id) AS d FROM parent; CREATE MATERIALIZED VIEW m_view AS SELECT d FROM b_view WHERE d > 10; CREATE UNIQUE INDEX ON m_view (d);
CREATE RULE no_delete AS ON DELETE TO empty_one DO INSTEAD NOTHING; COMMENT ON TABLE heap IS 'it''s; a comment';
ALTER TABLE child OWNER TO app; GRANT SELECT ON heap TO app; ALTER TABLE heap ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON heap USING (a > 0);
SELECT lo_from_bytea(4711, '\x00ff10'), lo_from_bytea(4712, decode(repeat('ab', 100000), 'hex'));
"#;

fn field<'a>(v: &'a Value, name: &str) -> &'a Value {
    v.as_record().unwrap().get(name)
}

/// What `pg_dump` itself says of the definitions, and what `compare` may not look at.
pub fn others(c: &crate::support::postgres::Cluster) -> String {
    let (port, folder) = (c.port.to_string(), c.path("").display().to_string());
    c.as_postgres("pg_dump", &["-s", "-h", &folder, "-p", &port, "-d", "shop"])
        .lines()
        .filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
        + c.sql("shop", "SELECT md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid; SELECT last_value FROM numbers; SELECT count(*) FROM m_view").as_str()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_kept() {
    let Some(s) = site() else { return };
    s.old.sql("shop", SHOP);
    let f = Folder::new();
    let d = s.run("shop_old", "dump", vec![f.at("shop"), options(&[("jobs", Value::Int(3))])]).await.unwrap();
    assert_eq!((field(&d, "rows"), field(&d, "changed")), (&Value::Int(300 + 60_000 + 4 + 5000 + 5000), &Value::Bool(true)), "{d:?}");
    assert!(d.as_record().unwrap().str("position").starts_with("not before 0/"), "{d:?}");
    let l = s.run("shop_new", "load", vec![f.at("shop"), options(&[("jobs", Value::Int(3))])]).await.unwrap();
    assert_eq!(field(&l, "rows"), field(&d, "rows"));
    s.equal().await;
    assert_eq!(others(&s.old), others(&s.new));
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM logged"), "0");
    s.new.sql("shop", "INSERT INTO heap VALUES (1, 'y')");
    assert_eq!(s.new.sql("shop", "SELECT count(*) FROM logged"), "1");

    // Nothing to do; refused; done when told.
    let again = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap();
    assert_eq!(field(&again, "changed"), &Value::Bool(false));
    let e = s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.message.contains("has a dump of shop of 20"), "{}", e.message);
    s.run("shop_old", "dump", vec![f.at("shop"), options(&[("replace", true.into())])]).await.unwrap();
    let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.message.starts_with("\"shop_new\" is not empty: it has \"odd; name\"."), "{}", e.message);
    s.run("shop_new", "load", vec![f.at("shop"), options(&[("replace", true.into())])]).await.unwrap();
    s.equal().await;
    assert_eq!(others(&s.old), others(&s.new));
    let left: Vec<_> = std::fs::read_dir(f.0.path().join("shop")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said() {
    let Some(s) = site() else { return };
    s.old.sql("shop", "INSERT INTO orders (item) SELECT 'order ' || n FROM generate_series(1, 20000) n");
    let f = Folder::new();
    std::fs::create_dir(f.0.path().join("mine")).unwrap();
    std::fs::write(f.0.path().join("mine/letter"), "dear").unwrap();
    let e = s.run("shop_old", "dump", vec![f.at("mine")]).await.unwrap_err();
    assert!(e.message.ends_with("/mine has files that are of no dump"), "{}", e.message);
    s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap();
    // A role that is not there; then it is.
    s.new.sql("postgres", "ALTER DATABASE shop OWNER TO postgres; DROP ROLE app");
    let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.message.contains("role \"app\" does not exist") && e.hint.unwrap().contains("pg_dumpall"), "{}", e.message);
    s.new.sql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app s3cret'''");
    // A byte of a file is another.
    let rows =
        f.0.path()
            .join("shop/data")
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.display().to_string().ends_with(".dat.gz"))
            .unwrap();
    let good = std::fs::read(&rows).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&rows, bad).unwrap();
    let e = s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap_err();
    assert!(e.code == Code::DB_COPY && e.message.contains("is not as it was dumped"), "{}", e.message);
    std::fs::write(&rows, good).unwrap();
    s.run("shop_new", "load", vec![f.at("shop")]).await.unwrap();
    s.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_says_has_no_rows_and_no_statements_in_it() {
    let Some(s) = site() else { return };
    s.old.sql(
        "shop",
        "CREATE TABLE people (mail text PRIMARY KEY, age int); INSERT INTO people VALUES ('anna-SECRET', 30), ('bert-SECRET', 31)",
    );
    for (n, sed, want) in [
        (0, "s/bert-SECRET/anna-SECRET/", "ERROR: 23505: could not create unique index \"people_pkey\""),
        (1, "s/bert-SECRET.*/bert-SECRET\\tmany-SECRET/", "ERROR: 22P02: invalid input syntax for type integer: (not shown)"),
        (2, "s/bert-SECRET.*/bert-SECRET/", "ERROR: 22P04: missing data for column \"age\""),
    ] {
        let f = Folder::new();
        s.run("shop_old", "dump", vec![f.at("shop")]).await.unwrap();
        edit(&f.path("shop"), "anna-SECRET", sed);
        let e = s.run("shop_new", "load", vec![f.at("shop"), options(&[("replace", true.into())])]).await.unwrap_err();
        assert!(e.code == Code::DB_COPY && e.message.contains(want) && !e.retryable, "{n}: {}", e.message);
        let all = format!("{e:?}");
        assert!(!all.contains("SECRET") && !all.contains("COPY "), "{n}: {all}");
    }
}

impl Carried for Site {
    const CLIENTS: &'static [&'static str] = &["psql", "pg_restore"];

    async fn act(&self, on: &str, name: &'static str, args: Vec<Value>, cut: Option<Duration>) -> Result<Value> {
        self.run_cut(on, name, args, cut).await
    }

    async fn until_done(&self, on: &str, name: &'static str, args: Vec<Value>) -> (Value, u32) {
        let (primitive, call) = self.bound(on, name, args).unwrap();
        until_done(primitive.as_ref(), &call, &self.cx()).await
    }

    fn fill(&self) {
        let n = many();
        let sql = format!(
            "CREATE TABLE bulk (id int PRIMARY KEY, u int NOT NULL UNIQUE, b text); CREATE INDEX ON bulk (b); \
             INSERT INTO bulk SELECT n, 1000000 - n, repeat(md5(n::text), 10) FROM generate_series(1, {}) n; \
             CREATE TABLE heap (a int, b text); INSERT INTO heap SELECT n, repeat(md5(n::text), 5) FROM generate_series(1, {}) n; \
             CREATE TABLE one (a int); CREATE TABLE two (a int); INSERT INTO one SELECT generate_series(1, 1000); INSERT INTO two SELECT generate_series(1, 1000); \
             CREATE TABLE child (a int PRIMARY KEY, up int REFERENCES bulk); INSERT INTO child SELECT n, n FROM generate_series(1, {}) n",
            n * 3,
            n * 2,
            n / 3
        );
        self.old.sql("shop", &sql);
    }

    fn write(&self, row: &str) {
        self.old.sql("shop", &format!("INSERT INTO orders (item) VALUES ('{row}')"));
    }

    fn clear(&self) {
        self.new.sql("postgres", "DROP DATABASE shop WITH (FORCE)");
        self.new.sql("postgres", "CREATE DATABASE shop OWNER app");
    }

    fn kill(&self) {
        self.new.quit();
    }

    async fn again(&mut self) {
        self.new.after_quit().await;
    }

    fn ways(&mut self) -> (&mut Environment, u16) {
        (&mut self.env, self.old.port)
    }

    fn hosts(&self) -> [&crate::support::sshd::Sshd; 2] {
        [&self.old_host, &self.new_host]
    }

    async fn level(&self) {
        let orders = "SELECT string_agg(item, ' ' ORDER BY id) FROM orders";
        for _ in 0..500 {
            if self.old.sql("shop", orders) == self.new.sql("shop", orders) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the standby does not get the last order");
    }

    fn kept(&self) -> usize {
        if self.new.sql("shop", "SELECT count(*) FROM pg_tables WHERE schemaname = '_runbook'") == "1" {
            return self.new.sql("shop", "SELECT count(*) FROM _runbook.loaded").parse().unwrap();
        }
        0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_anywhere_doubles_and_loses_nothing() {
    let Some(s) = site() else { return };
    dumps::a_controller_dies_anywhere(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_cleared_by_half_is_cleared_to_its_end() {
    let Some(s) = site() else { return };
    s.fill();
    let f = Folder::new();
    s.dump(&f.at("whole"), None).await.unwrap();
    s.load(&f.at("whole"), false, None).await.unwrap();
    // As a load leaves it whose controller died behind the last DROP: its mark is there, and no schema.
    s.new.sql("shop", "DO $$ DECLARE s text; BEGIN FOR s IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP EXECUTE format('DROP SCHEMA %I CASCADE', s); END LOOP; END $$");
    s.new.sql("postgres", r#"ALTER DATABASE shop SET runbook.load = '{"id":"another","ready":false,"whole":false}'"#);
    s.load(&f.at("whole"), true, None).await.unwrap();
    s.equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_goes_on_where_it_was_when_the_server_or_the_job_was_killed() {
    let Some(mut s) = site() else { return };
    dumps::a_load_goes_on_where_it_was(&mut s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_it_goes_on_once_there_is_room() {
    let Some(s) = site() else { return };
    dumps::a_full_disk_is_said(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_at_random_lose_and_double_nothing() {
    let Some(s) = site() else { return };
    s.allow_replication();
    dumps::connections_are_cut_at_random(&s).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_at_random_lose_and_double_nothing() {
    let Some(mut s) = site() else { return };
    s.allow_replication();
    dumps::connections_are_reset_at_random(&mut s).await;
}
