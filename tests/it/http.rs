//! End-to-end tests of the checks over HTTP: TLS against a real server, with an authority of the test's own.

use runbook_core::inventory::Environment;
use runbook_core::primitive::Outcome;
use runbook_core::{Code, Error, Result, Value};
use runbook_testkit::cx;

use crate::support::project::Project;
use crate::support::sshd::world;
use crate::support::tls::{Ca, Certificate};

/// Asks for a page with the status 200; `files` are those of the project.
async fn ask(url: &str, options: &[(&str, Value)], files: &[(&str, &str)]) -> Result<Outcome> {
    let registry = runbook_primitives::registry();
    let (spec, make) = &registry.pure[&(None, "http")];
    let handle = make(&Environment::default(), &spec.bind(None, vec![url.into(), crate::support::options(options)])?)?;
    let p = &registry.primitives[&(Some("Http"), "expect_status")];
    let call = p.spec().bind(handle.as_record().cloned(), vec![Value::Int(200)])?;
    let world = world();
    *world.files.lock() = files.iter().map(|(k, v)| ((*k).to_string(), v.as_bytes().to_vec())).collect();
    p.act(&cx(&world, Environment::default(), "h-1"), &call).await
}

async fn refused(url: &str, options: &[(&str, Value)], files: &[(&str, &str)]) -> (Error, String) {
    let e = ask(url, options, files).await.expect_err("a refusal");
    assert_eq!(e.code, Code::TLS, "{e}");
    assert!(!e.retryable, "a certificate does not mend itself: {e}");
    assert!(e.message.starts_with(url), "{e}");
    let hint = e.hint.clone().expect("a hint");
    (e, hint)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_named_authority_is_trusted_by_name_by_address_and_with_a_chain() {
    let Some(ca) = Ca::new("own authority") else { return };
    let pem = ca.pem();
    let files = [("tls/ca.pem", pem.as_str())];
    let ca_file = ("ca_file", Value::from("tls/ca.pem"));
    for tls in ["-tls1_2", "-tls1_3"] {
        let s = ca.serve(&Certificate::default(), tls);
        ask(&format!("https://127.0.0.1:{}/", s.port), std::slice::from_ref(&ca_file), &files).await.unwrap();
        let to = Value::from(format!("127.0.0.1:{}", s.port));
        let out = ask("https://shop.example.test/", &[ca_file.clone(), ("resolve", to)], &files).await.unwrap();
        let body = out.value.as_record().unwrap().str("body").to_string();
        assert!(body.contains("s_server") && body.contains(&tls[1..].replace("tls1_", "TLSv1.")), "{body}");
        ask(&format!("https://127.0.0.1:{}/", s.port), &[ca_file.clone(), ("host", "shop.example.test".into())], &files).await.unwrap();
    }
    let s = ca.serve(&Certificate { intermediate: true, ..Certificate::default() }, "");
    ask(&format!("https://127.0.0.1:{}/", s.port), &[ca_file], &files).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_do_not_hold_are_refused_each_with_its_reason() {
    let (Some(ca), Some(other)) = (Ca::new("own authority"), Ca::new("another")) else { return };
    let (pem, others) = (ca.pem(), other.pem());
    let files = [("ca.pem", pem.as_str()), ("other.pem", others.as_str())];
    let trust = |file: &str| ("ca_file", Value::from(file));
    let insecure = ("insecure", Value::from(true));

    let s = ca.serve(&Certificate::default(), "");
    let url = format!("https://127.0.0.1:{}/", s.port);
    // Nobody told to trust this authority: neither the system nor the file of another one.
    for options in [&[][..], &[trust("other.pem")]] {
        let (e, hint) = refused(&url, options, &files).await;
        assert!(e.message.ends_with("its certificate is signed by an authority that is not trusted here"), "{e}");
        assert!(hint.contains("ca_file") && hint.contains("intermediate"), "{hint}");
    }
    ask(&url, std::slice::from_ref(&insecure), &files).await.unwrap();

    let to = ("resolve", Value::from(format!("127.0.0.1:{}", s.port)));
    let (e, hint) = refused("https://www.example.test/", &[trust("ca.pem"), to.clone()], &files).await;
    assert!(e.message.ends_with("its certificate is for shop.example.test, 127.0.0.1, not for www.example.test"), "{e}");
    assert!(hint.contains("host"), "{hint}");
    ask("https://www.example.test/", &[insecure.clone(), to], &files).await.unwrap();
    let (e, _) = refused(&url, &[trust("ca.pem"), ("host", "www.example.test".into())], &files).await;
    assert!(e.message.ends_with("not for www.example.test"), "{e}");

    let s = ca.serve(&Certificate { until: "210304050607Z", ..Certificate::default() }, "");
    let url = format!("https://127.0.0.1:{}/", s.port);
    let (e, hint) = refused(&url, &[trust("ca.pem")], &files).await;
    assert!(e.message.ends_with("its certificate expired at 2021-03-04T05:06:07Z"), "{e}");
    assert!(hint.contains("renew"), "{hint}");
    ask(&url, std::slice::from_ref(&insecure), &files).await.unwrap();

    let s = ca.serve(&Certificate { from: "480304050607Z", ..Certificate::default() }, "");
    let (e, hint) = refused(&format!("https://127.0.0.1:{}/", s.port), &[trust("ca.pem")], &files).await;
    assert!(e.message.ends_with("its certificate holds only from 2048-03-04T05:06:07Z"), "{e}");
    assert!(hint.contains("clock"), "{hint}");

    // What servers get wrong most often: the authority between is not sent along.
    let s = ca.serve(&Certificate { intermediate: true, send_chain: false, ..Certificate::default() }, "");
    let (_, hint) = refused(&format!("https://127.0.0.1:{}/", s.port), &[trust("ca.pem")], &files).await;
    assert!(hint.contains("intermediate"), "{hint}");

    let (s, own) = ca.serve_self_signed(true);
    let url = format!("https://127.0.0.1:{}/", s.port);
    for options in [&[][..], &[trust("self.pem")]] {
        let (e, hint) = refused(&url, options, &[("self.pem", &own)]).await;
        assert!(e.message.ends_with("its certificate is an authority's own, which may not serve as a server's"), "{e}");
        assert!(hint.contains("CA:FALSE") && hint.contains("ca_file"), "{hint}");
    }
    ask(&url, &[insecure], &files).await.unwrap();
    let (s, own) = ca.serve_self_signed(false);
    let url = format!("https://127.0.0.1:{}/", s.port);
    let (_, hint) = refused(&url, &[], &files).await;
    assert!(hint.contains("ca_file"), "{hint}");
    ask(&url, &[trust("self.pem")], &[("self.pem", &own)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_trust_and_what_is_no_tls_is_said() {
    let Some(ca) = Ca::new("own authority") else { return };
    let s = ca.serve(&Certificate::default(), "");
    let url = format!("https://127.0.0.1:{}/", s.port);
    for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let e = ask(&url, &[("ca_file", "ca.pem".into())], &[("ca.pem", text)]).await.unwrap_err();
        assert!(e.code == Code::HTTP && e.message.starts_with("ca.pem holds "), "{text:?}: {e}");
    }
    let e = ask(&url, &[("ca_file", "ca.pem".into())], &[]).await.unwrap_err();
    assert_eq!(e.code, Code::MISSING_FILE, "{e}");
    let both = [("ca_file", "ca.pem".into()), ("insecure", true.into())];
    let e = ask(&url, &both, &[("ca.pem", &ca.pem())]).await.unwrap_err();
    assert!(e.code == Code::HTTP && e.message.contains("insecure accepts any certificate"), "{e}");

    let pem = ca.pem();
    let files = [("ca.pem", pem.as_str())];
    // A server that insists on a certificate of the client.
    let s = ca.serve(&Certificate::default(), "-Verify 1 -verify_return_error -tls1_2");
    let (e, _) = refused(&format!("https://127.0.0.1:{}/", s.port), &[("ca_file", "ca.pem".into())], &files).await;
    assert!(e.message.contains("the server ends the handshake"), "{e}");
    // A port that speaks HTTP where HTTPS is asked for.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", plain.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let (mut s, _) = plain.accept().await.unwrap();
        s.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    });
    let (e, hint) = refused(&url, &[], &files).await;
    assert!(e.message.ends_with("what answers on this port does not speak TLS"), "{e}");
    assert!(hint.contains("http://"), "{hint}");
}

/// The authorities of the system, through the binary: `SSL_CERT_FILE` stands for what `ca-certificates` installs.
#[test]
fn the_authorities_of_the_system_are_trusted_and_their_absence_is_said() {
    let Some(ca) = Ca::new("own authority") else { return };
    let s = ca.serve(&Certificate::default(), "");
    let p = Project::new();
    std::fs::write(p.path().join("runbook.toml"), "[environments.here]\n").unwrap();
    std::fs::write(p.path().join("ca.pem"), ca.pem()).unwrap();
    let run = |options: &str, roots: Option<&std::path::Path>| {
        let script = format!("http(\"https://127.0.0.1:{}/\", #{{ {options} }}).expect_status(200);\n", s.port);
        std::fs::write(p.path().join("runbooks/tls.rhai"), script).unwrap();
        let mut c = p.command(&["run", "runbooks/tls.rhai", "--env", "here"]);
        c.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        if let Some(file) = roots {
            c.env("SSL_CERT_FILE", file);
        }
        let out = c.output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, text) = run("", Some(&ca.file()));
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run("", None);
    assert!(code == Some(1) && text.contains("RB0803"), "{code:?} {text}");
    let empty = p.path().join("none.pem");
    std::fs::write(&empty, "").unwrap();
    let (code, text) = run("", Some(&empty));
    assert!(code != Some(0) && text.contains("ca-certificates") && text.contains("ca_file"), "{code:?} {text}");
    // Neither of these needs the system's.
    for options in ["ca_file: \"ca.pem\"", "insecure: true"] {
        let (code, text) = run(options, Some(&empty));
        assert_eq!(code, Some(0), "{options}: {text}");
    }
}

const PAGES: &str = r#"
let at = "http://127.0.0.1:PORT";
step "Look" {
    tcp("127.0.0.1:PORT").expect_open();
    tcp("127.0.0.1", 9).expect_closed(#{ timeout: "1s" });
    let page = http(at + "/page.txt").get();
    log(`${page.status} ${page.headers["content-type"]} ${page.body}`);
    log(`${http(at + "/none").get().status}`);
    http(at + "/page.txt").expect_body("Welcome");
    // This server takes no POST, and says so.
    log(`${http(at + "/page.txt", #{ method: "POST" }).send().status}`);
}
"#;

/// Against the web server of Python's standard library, which knows nothing of us.
#[test]
fn pages_are_read_and_requests_sent_to_a_stock_web_server() {
    if !crate::support::have("python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("page.txt"), "Welcome to the shop").unwrap();
    let port = crate::support::free_port();
    let mut server = std::process::Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    crate::support::desk::until("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let desk = crate::support::desk::Project::new("[environments.test]\n", &PAGES.replace("PORT", &port.to_string()));
    desk.expect(&["run", "a.rhai", "--env", "test"], 0);
    let said = desk.expect(&["log"], 0);
    for line in ["200 text/plain Welcome to the shop", "log       404", "log       501"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // What is not there is named, and so is a port that is closed.
    for (call, words) in [
        ("http(\"http://127.0.0.1:PORT/page.txt\").expect_body(\"Goodbye\")", "Goodbye"),
        ("tcp(\"127.0.0.1:PORT\").expect_closed()", "RB0801"),
        ("tcp(\"127.0.0.1:9\").expect_open(#{ timeout: \"1s\" })", "RB0801"),
    ] {
        desk.write("b.rhai", &format!("step \"Look\" {{ {call}; }}\n").replace("PORT", &port.to_string()));
        let (status, _, said) = desk.text(&["run", "b.rhai", "--env", "test"]);
        assert!(status != 0 && said.contains(words), "{call}: {status} {said}");
    }
    let _ = server.kill();
    let _ = server.wait();
}
