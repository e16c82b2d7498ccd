//! Real connections by ways that a configuration names: through hosts, by commands, with its limits and choices.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use runbook_core::primitive::Cx;
use runbook_core::{Code, Error};
use runbook_primitives::ssh::{self, Exec};

use crate::support::have;
use crate::support::sshd::{Sshd, environment, processes, world};

/// A configuration file and an inventory with one host, `old`, that is reached by it.
struct Way {
    dir: tempfile::TempDir,
}

impl Way {
    fn new(config: &str) -> Way {
        let way = Way { dir: tempfile::tempdir().unwrap() };
        std::fs::write(way.file(), config).unwrap();
        way
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ssh_config")
    }

    fn cx(&self, alias: &str) -> Cx {
        let settings = [("ssh".to_string(), alias.into()), ("ssh_config".to_string(), self.file().display().to_string().into())];
        runbook_testkit::cx(&world(), environment(&[("old", settings.into())]), "a")
    }

    async fn run(&self, alias: &str, script: &str) -> Result<String, Error> {
        let cx = self.cx(alias);
        let done = ssh::connect(&cx, "old").await?.exec(&cx, Exec::new(script)).await?;
        assert_eq!(done.status, 0, "{done:?}");
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    async fn failure(&self, alias: &str, code: Code) -> Error {
        let e = self.run(alias, "true").await.expect_err("it fails");
        assert_eq!(e.code, code, "{e:?}");
        assert!(e.hint.is_some(), "{e:?}");
        e
    }
}

/// A block of a configuration for a server.
fn host(name: &str, s: &Sshd, more: &str) -> String {
    let p = |f: &str| s.path(f).display().to_string();
    format!(
        "Host {name}\n  HostName 127.0.0.1\n  Port {}\n  User root\n  IdentitiesOnly yes\n  IdentityFile {}\n  UserKnownHostsFile {}\n  {more}\n",
        s.port,
        p("user_key"),
        p("known_hosts")
    )
}

fn logins(s: &Sshd) -> usize {
    s.log().matches("Accepted publickey").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn through_two_hosts_to_a_third() {
    let (Some(mut gate), Some(middle), Some(inner)) = (Sshd::start(""), Sshd::start(""), Sshd::start("")) else { return };
    // Once each host names the one before it, once the last names both.
    let nested = [host("gate", &gate, ""), host("middle", &middle, "ProxyJump gate"), host("inner", &inner, "ProxyJump middle")].concat();
    let chained =
        [host("gate", &gate, ""), host("middle", &middle, "ProxyJump none"), host("inner", &inner, "ProxyJump gate,root@middle")].concat();
    for (n, config) in [nested, chained].iter().enumerate() {
        let way = Way::new(config);
        assert_eq!(way.run("inner", "echo yes >through; pwd").await.unwrap().trim(), inner.home().display().to_string());
        assert!(inner.home().join("through").exists());
        assert_eq!([&gate, &middle, &inner].map(logins), [n + 1; 3], "each was logged in to");
    }
    gate.down();
    let e =
        Way::new(&[host("gate", &gate, ""), host("inner", &inner, "ProxyJump gate")].concat()).failure("inner", Code::SSH_CONNECT).await;
    assert!(e.message.contains(&format!("127.0.0.1]:{}", gate.port)) && e.retryable, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_on_the_way_that_does_not_reach_the_next() {
    let (Some(gate), Some(mut inner)) = (Sshd::start(""), Sshd::start("")) else { return };
    inner.down();
    let way = Way::new(&[host("gate", &gate, ""), host("inner", &inner, "ProxyJump gate")].concat());
    let e = way.failure("inner", Code::SSH_CONNECT).await;
    assert!(e.message.contains("the jump host 127.0.0.1 cannot reach it"), "{e}");
    // The key of the host on the way is checked as well.
    std::fs::write(gate.path("known_hosts"), "").unwrap();
    way.failure("inner", Code::SSH_HOST_KEY_UNKNOWN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_command() {
    let (Some(gate), Some(inner)) = (Sshd::start(""), Sshd::start("")) else { return };
    if !have("ssh") || !have("busybox") {
        return;
    }
    let way = Way::new("");
    let by_ssh = format!("ProxyCommand ssh -F {} -W [%h]:%p gate", way.file().display());
    for (command, before) in
        [(by_ssh.as_str(), 1), ("ProxyCommand busybox nc %h %p", 1), ("ProxyCommand=sh -c 'busybox nc \"$0\" \"$1\"' %h %p", 1)]
    {
        std::fs::write(way.file(), [host("gate", &gate, ""), host("inner", &inner, command)].concat()).unwrap();
        let cx = way.cx("inner");
        let session = ssh::connect(&cx, "old").await.unwrap_or_else(|e| panic!("{command}: {e:?}"));
        let done = session.exec(&cx, Exec::new("head -c 300000 /dev/zero | wc -c")).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "300000", "{command}");
        assert_eq!(logins(&gate), before, "{command}");
        let runs =
            || processes().into_iter().filter(|p| p.command.contains(&inner.port.to_string()) && !p.name.starts_with("sshd")).count();
        assert!(runs() > 0, "{command}");
        drop((session, cx));
        let until = Instant::now() + Duration::from_secs(10);
        while runs() > 0 {
            assert!(Instant::now() < until, "{command} outlives its connection");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_is_quoted() {
    let Some(inner) = Sshd::start("") else { return };
    let of = |command: &str| Way::new(&host("inner", &inner, &format!("ConnectTimeout 2\n  ProxyCommand {command}")));
    let e = of("sh -c 'echo the tunnel is broken >&2; exit 3'").failure("inner", Code::SSH_CONNECT).await;
    assert!(e.message.contains("and said: the tunnel is broken") && e.message.contains("exit status: 3"), "{e}");
    let e = of("/no/such/program %h").failure("inner", Code::SSH_CONNECT).await;
    assert!(e.message.contains("/no/such/program") && e.message.contains("exit status: 127"), "{e}");
    let began = Instant::now();
    let e = of("sh -c 'echo waiting >&2; exec sleep 1000.5'").failure("inner", Code::SSH_CONNECT).await;
    assert!(e.message.contains("runs on and said: waiting"), "{e}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let until = Instant::now() + Duration::from_secs(10);
    while processes().iter().any(|p| p.command.contains("sleep 1000.5")) {
        assert!(Instant::now() < until, "the command outlives the attempt");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_with_tokens_and_a_key_under_another_name() {
    let Some(s) = Sshd::start("") else { return };
    let key = std::fs::read_to_string(s.path("host_key.pub")).unwrap();
    std::fs::write(s.path("by_alias"), format!("the-shop {key}")).unwrap();
    let way = Way::new(&format!(
        "Match originalhost 27.0.0.1\n  HostName 1%h\nHost 27.*\n  Port {}\n  HostKeyAlias The-Shop\n  UserKnownHostsFile {}/by_alias\n  GlobalKnownHostsFile none\n  \
         IdentityFile {}/%r_key\nMatch host 127.0.0.1\n  User user\n",
        s.port,
        s.dir.path().display(),
        s.dir.path().display(),
    ));
    // `root` must log in, and the key file is named by `%r`: user@ comes before `User`.
    std::fs::copy(s.path("user_key"), s.path("root_key")).unwrap();
    assert_eq!(way.run("root@27.0.0.1", "echo in").await.unwrap(), "in\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_swallows_everything_is_given_up_in_time() {
    // A full queue of connections: the kernel drops what comes on top, as a firewall would.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(c)) = tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await {
        filling.push(c);
        assert!(filling.len() < 100, "the queue does not fill");
    }
    let way =
        Way::new(&format!("Host hole\n  HostName 127.0.0.1\n  Port {}\n  ConnectTimeout 1\n  ConnectionAttempts 9\n", address.port()));
    let began = Instant::now();
    let e = way.failure("hole", Code::SSH_CONNECT).await;
    assert!(e.message.contains("no answer within 1s") && e.retryable, "{e}");
    assert!((1..5).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // One that takes the connection and says nothing: the limit is for the handshake too.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = Way::new(&format!("Host mute\n  HostName 127.0.0.1\n  Port {}\n  ConnectTimeout 1\n", silent.local_addr().unwrap().port()));
    let began = Instant::now();
    way.failure("mute", Code::SSH_CONNECT).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_comes_up_late_is_reached_by_a_later_attempt() {
    let Some(mut s) = Sshd::start("") else { return };
    s.down();
    // Nobody else may take its port meanwhile; a socket that does not listen refuses, and does not keep the server from it.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind(([127, 0, 0, 1], s.port).into()).unwrap();
    let once = Way::new(&host("late", &s, ""));
    assert!(once.failure("late", Code::SSH_CONNECT).await.message.contains("refused"));
    // The limit is for all attempts, and on a busy machine the server takes long to start.
    let way = Way::new(&host("late", &s, "ConnectTimeout 120\n  ConnectionAttempts 100"));
    let up = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(1500));
        s.up();
        s
    });
    assert_eq!(way.run("late", "echo up").await.unwrap(), "up\n");
    drop(up.await.unwrap());
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_falls_silent_is_noticed_as_soon_as_the_configuration_says() {
    let Some(s) = Sshd::start("") else { return };
    let way = Way::new(&host("old", &s, "ServerAliveInterval 1\n  ServerAliveCountMax 2"));
    let cx = way.cx("old");
    let session = ssh::connect(&cx, "old").await.unwrap();
    let command = tokio::spawn({
        let (session, cx) = (session.clone(), cx.clone());
        async move { session.exec(&cx, Exec::new("echo on >begun; sleep 60.25")).await }
    });
    while !s.home().join("begun").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for pid in s.sessions() {
        std::process::Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap();
    }
    let began = Instant::now();
    let e = command.await.unwrap().unwrap_err();
    assert_eq!(e.code, Code::SSH_LOST, "{e:?}");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}: without the options it is more than 30 seconds", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_and_algorithms_are_chosen() {
    let Some(s) = Sshd::start("Ciphers aes128-ctr,aes256-gcm@openssh.com\nMACs hmac-sha2-256") else { return };
    let zeros = "head -c 3000000 /dev/zero";
    let way = Way::new(&host("old", &s, "BindAddress 127.0.0.7\n  Ciphers aes128-ctr\n  MACs hmac-sha2-256\n  Compression yes"));
    assert_eq!(way.run("old", zeros).await.unwrap().len(), 3_000_000);
    Way::new(&host("old", &s, "")).run("old", zeros).await.unwrap();
    // The server counts what it sends: compressed, next to nothing.
    let sent = |s: &Sshd| -> Vec<u64> {
        let of = |l: &str| l.split_once("Transferred: sent ").and_then(|(_, r)| r.split(',').next().and_then(|n| n.parse().ok()));
        s.log().lines().filter_map(of).collect()
    };
    let until = Instant::now() + Duration::from_secs(10);
    while sent(&s).len() < 2 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(matches!(sent(&s).as_slice(), [small, large] if *small < 100_000 && *large > 3_000_000), "{:?}", sent(&s));
    assert!(s.log().contains("Connection from 127.0.0.7 port"), "{}", s.log());
    let e = Way::new(&host("old", &s, "Ciphers aes192-ctr")).failure("old", Code::SSH_CONNECT).await;
    assert!(e.message.contains("cipher") || e.message.to_lowercase().contains("common"), "{e}");
    let e = Way::new(&host("old", &s, "AddressFamily inet6")).failure("old", Code::SSH_CONNECT).await;
    assert!(e.message.contains("no address that AddressFamily inet6 allows"), "{e}");
    let e = Way::new(&host("old", &s, "BindAddress 192.0.2.77")).failure("old", Code::SSH_CONNECT).await;
    assert!(e.message.contains("BindAddress 192.0.2.77"), "{e}");
    let e = Way::new(&host("old", &s, "Ciphers arcfour,blowfish-cbc")).failure("old", Code::SSH_CONFIG).await;
    assert!(e.message.contains("leaves nothing that runbook has") && e.location.is_some(), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_variables_are_set_on_the_host() {
    let Some(s) = Sshd::start("AcceptEnv GREETING OTHER") else { return };
    let way = Way::new(&host("old", &s, "SetEnv GREETING=\"good day\" REFUSED=x"));
    assert_eq!(way.run("old", "echo \"$GREETING/$REFUSED\"").await.unwrap(), "good day/\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_refused_before_anything_is_sent() {
    let Some(s) = Sshd::start("") else { return };
    let way = Way::new(&(host("old", &s, "ProxyUseFdpass yes\n  ProxyCommand false") + "Host other\n  KnownHostsCommand /bin/false\n"));
    let e = way.failure("old", Code::SSH_CONFIG).await;
    assert!(e.message.contains("ProxyUseFdpass") && !e.retryable, "{e}");
    assert_eq!(e.location.as_ref().map(|l| (l.file.clone(), l.line)), Some((way.file().display().to_string(), 8)));
    assert_eq!(e.host.as_deref(), Some("old"));
    assert!(!s.log().contains("Connection from 127.0.0.1 port") || logins(&s) == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_the_inventory_are_relative_to_the_project() {
    let Some(s) = Sshd::start("") else { return };
    let world = world();
    *world.folder.lock() = Some(s.dir.path().to_path_buf());
    std::fs::create_dir(s.path("keys")).unwrap();
    std::fs::rename(s.path("user_key"), s.path("keys/id")).unwrap();
    std::fs::write(s.path("keys/config"), format!("Host shop\n  HostName 127.0.0.1\n  Port {}\n  User root\n", s.port)).unwrap();
    let settings = [("ssh", "shop"), ("ssh_config", "keys/config"), ("identity_file", "keys/id"), ("known_hosts", "known_hosts")]
        .map(|(k, v)| (k.to_string(), v.into()));
    let cx = runbook_testkit::cx(&world, environment(&[("old", settings.into())]), "a");
    assert_eq!(ssh::connect(&cx, "old").await.unwrap().exec(&cx, Exec::new("true")).await.unwrap().status, 0);
}
