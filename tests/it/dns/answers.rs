//! What servers and resolvers answer, over UDP and TCP, with the state of DNSSEC.

use runbook_core::{Code, Value};

use super::desk::{Desk, texts};
use crate::support::bind::Bind;
use crate::support::{list, options};

#[tokio::test]
async fn every_server_is_asked_over_udp_and_tcp_and_the_state_of_dnssec_is_told() {
    let Some((primary, key)) = Bind::signed("shop 60 A 192.0.2.1") else { return };
    let Some(resolver) = Bind::resolver(&primary, &key) else { return };
    let Some((other, wrong)) = Bind::signed("shop 60 A 192.0.2.9") else { return };
    let Some(bogus) = Bind::resolver(&primary, &wrong) else { return };
    let desk = Desk::new().updates("example.test", &primary.address());
    let resolvers = |of: &[&str]| options(&[("resolvers", list(of)), ("type", "A".into())]);
    let args = vec!["shop".into(), resolvers(&[&resolver.address(), &bogus.address(), "127.0.0.1:1"])];
    let found = desk.act("example.test", "answers", args).await.value;
    let found = found.as_list().unwrap();
    let field = |i: usize, f: &str| found[i].as_record().unwrap().get(f).clone();
    let states: Vec<String> = (0..4).map(|i| found[i].as_record().unwrap().str("dnssec").to_string()).collect();
    assert_eq!(states, ["signed", "validated", "bogus", ""], "{found:?}");
    for (i, answer) in found.iter().take(2).enumerate() {
        assert_eq!((texts(answer, "udp"), texts(answer, "tcp")), (vec!["192.0.2.1".to_string()], vec!["192.0.2.1".to_string()]));
        assert_eq!((field(i, "same"), field(i, "resolver")), (Value::Bool(true), Value::Bool(i == 1)));
    }
    assert_eq!(field(2, "error"), "it refuses the answer, which does not validate (DNSSEC)".into());
    assert!(found[3].as_record().unwrap().str("error").contains("does not answer"), "{found:?}");

    let wait = |of: &[&str]| {
        let o = options(&[("within", "2s".into()), ("every", "100ms".into()), ("resolvers", list(of))]);
        vec!["shop".into(), "192.0.2.1".into(), o]
    };
    let out = desk.act("example.test", "wait_answer", wait(&[&resolver.address()])).await;
    assert_eq!(out.note.as_deref(), Some("2 name servers and resolvers answer it over UDP and TCP; DNSSEC: signed, validated"));
    let e = desk.fails("example.test", "wait_answer", wait(&[&bogus.address()])).await;
    assert!(e.code == Code::DNS_WAIT && e.message.contains("1 of 2 servers") && e.message.contains("answers"), "{e}");
    drop(other);
}

/// A server of the tests that passes UDP on and answers TCP itself with another address: as a load balancer that was forgotten.
#[tokio::test]
async fn an_answer_over_tcp_that_is_another_is_found() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Some(bind) = Bind::primary("shop 60 A 192.0.2.1") else { return };
    let Some(stale) = Bind::primary("shop 60 A 192.0.2.99") else { return };
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let udp = tokio::net::UdpSocket::bind(at).await.unwrap();
    let (good, old) = (bind.address(), stale.address());
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut buffer).await {
            let up = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            up.send_to(&buffer[..n], &good).await.unwrap();
            let mut answer = vec![0; 4096];
            let n = up.recv(&mut answer).await.unwrap();
            udp.send_to(&answer[..n], from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut client, _)) = tcp.accept().await {
            let mut server = tokio::net::TcpStream::connect(&old).await.unwrap();
            tokio::spawn(async move {
                let mut both = vec![0; 4096];
                let n = client.read(&mut both).await.unwrap();
                server.write_all(&both[..n]).await.unwrap();
                let n = server.read(&mut both).await.unwrap();
                client.write_all(&both[..n]).await.unwrap();
            });
        }
    });
    let desk = Desk::new().updates("example.test", &bind.address());
    let o = options(&[("within", "1s".into()), ("every", "100ms".into()), ("resolvers", list(&[&at.to_string()]))]);
    let e = desk.fails("example.test", "wait_answer", vec!["shop".into(), "192.0.2.1".into(), o]).await;
    assert_eq!(e.code, Code::DNS_WAIT);
    assert!(e.message.ends_with(&format!("1 of 2 servers do not answer 192.0.2.1 for shop.example.test A: {at} over UDP and TCP: it answers otherwise over TCP than over UDP")), "{e}");
}
