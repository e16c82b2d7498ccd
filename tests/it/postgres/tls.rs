//! TLS to the server, and between the servers: the certificate's authority and name are looked at.

use runbook_core::inventory::Section;
use runbook_core::{Code, Error, Value};

use super::switch::db;
use crate::support::postgres::Site;
use crate::support::tls::{Ca, Certificate};

/// A primary that lets nobody in over TCP without TLS; runbook comes by TCP with a password.
fn site(ca: &Ca) -> Option<Site> {
    let mut s = Site::start(false)?;
    let (certificate, key) = ca.certificate(&Certificate { names: "DNS:db.example.test,IP:127.0.0.1", ..Certificate::default() });
    for (file, text) in [("data/server.crt", certificate), ("data/server.key", key)] {
        s.old.own(file, &text);
    }
    s.old.hba(&[
        "local all postgres peer",
        "hostssl all all 127.0.0.1/32 scram-sha-256",
        "hostssl replication all 127.0.0.1/32 scram-sha-256",
    ]);
    s.old.sql("postgres", "ALTER SYSTEM SET ssl = on");
    s.old.sql("postgres", "ALTER ROLE postgres PASSWORD 'root s3cret'");
    s.old.sql("postgres", "SELECT pg_reload_conf()");
    s.world.secrets.lock().insert("root".into(), "root s3cret".into());
    s.world.files.lock().insert("ca.pem".into(), ca.pem().into_bytes());
    let old = s.env.resources.get_mut(&Section::Databases).unwrap().get_mut("shop_old").unwrap();
    old.settings.retain(|k, _| !["socket", "sudo"].contains(&k.as_str()));
    let words = [("address", "127.0.0.1"), ("user", "postgres"), ("password", "root"), ("tls", "verify-full"), ("tls_ca", "ca.pem")];
    old.settings.extend(words.map(|(k, v)| (k.to_string(), v.into())));
    Some(s)
}

fn set(s: &mut Site, key: &str, value: Option<&str>) {
    let old = s.env.resources.get_mut(&Section::Databases).unwrap().get_mut("shop_old").unwrap();
    match value {
        Some(v) => old.settings.insert(key.into(), v.into()),
        None => old.settings.remove(key),
    };
}

const ASK: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

async fn refused(s: &Site) -> Error {
    let e = s.run("shop_old", "query", vec![ASK.into()]).await.unwrap_err();
    assert!(e.code == Code::DB_CONNECT && !e.retryable, "{e:?}");
    e
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_certificate_is_looked_at() {
    let (Some(ca), Some(other)) = (Ca::new("an authority"), Ca::new("another")) else { return };
    let Some(mut s) = site(&ca) else { return };
    let row = |v: Value| v.as_list().unwrap()[0].as_map().unwrap()["ssl"].clone();
    assert_eq!(row(s.run("shop_old", "query", vec![ASK.into()]).await.unwrap()), Value::Bool(true));
    set(&mut s, "tls_name", Some("db.example.test"));
    assert_eq!(row(s.run("shop_old", "query", vec![ASK.into()]).await.unwrap()), Value::Bool(true));
    // The driver's own connection, which is kept, and those of the fence's proof.
    s.run("shop_old", "execute", vec!["INSERT INTO orders (item) VALUES ('over TLS')".into()]).await.unwrap();
    s.run("shop_old", "fence", vec![]).await.unwrap();
    s.run("shop_old", "unfence", vec![]).await.unwrap();
    assert_eq!(s.old.sql("shop", "SELECT item FROM orders"), "over TLS");

    set(&mut s, "tls_name", Some("another.example.test"));
    let e = refused(&s).await;
    assert!(e.message.starts_with("TLS to \"shop_old\": ") && e.message.contains("not valid for name"), "{e}");
    assert!(e.hint.as_ref().unwrap().contains("tls_name (now another.example.test)"), "{e:?}");
    let e = s.run("shop_old", "fence", vec![]).await.unwrap_err();
    assert!(e.code == Code::DB_CONNECT && e.message.contains("not valid for name"), "no connection of before is taken for it: {e}");
    set(&mut s, "tls_name", None);
    s.world.files.lock().insert("ca.pem".into(), other.pem().into_bytes());
    let e = refused(&s).await;
    assert!(e.message.contains("UnknownIssuer") && e.hint.as_ref().unwrap().contains("tls_ca (ca.pem)"), "{e:?}");
    s.world.files.lock().insert("ca.pem".into(), b"no certificate".to_vec());
    assert!(refused(&s).await.message.contains("there is no certificate in it"));
    s.world.files.lock().insert("ca.pem".into(), ca.pem().into_bytes());
    s.old.sql("postgres", "ALTER SYSTEM SET ssl = off");
    s.old.sql("postgres", "SELECT pg_reload_conf()");
    let e = refused(&s).await;
    assert!(e.message.contains("not support TLS") && e.hint.as_ref().unwrap().contains("ssl = on"), "{e:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_and_replicas_come_by_tls() {
    let Some(ca) = Ca::new("an authority") else { return };
    let Some(mut s) = site(&ca) else { return };
    s.new.own("root.pem", &ca.pem());
    let options = format!("sslmode=verify-full sslrootcert={}", s.new.path("root.pem").display());
    set(&mut s, "replication_options", Some(&options));
    let by_tls = "SELECT count(*) || ' ' || bool_and(ssl) FROM pg_stat_replication r JOIN pg_stat_ssl l ON l.pid = r.pid";
    s.run("shop_new", "replicate_from", vec![db("shop_old")]).await.unwrap();
    assert_eq!(s.old.sql("shop", by_tls), "1 true");
}
