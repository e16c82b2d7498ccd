//! Questions of several kinds, asked by a server of this process.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use runbook_core::Value;
use runbook_core::inventory::{Environment, Resource, Section};
use russh::server::{self, Auth, Response};
use russh::{MethodKind, MethodSet};

/// Lets in who answers every round: `(question, echo, answer)`.
#[derive(Clone)]
struct Quiz {
    rounds: Vec<Vec<(&'static str, bool, &'static str)>>,
    at: usize,
}

impl Quiz {
    fn ask(&self) -> Auth {
        let round = self.rounds.get(self.at).cloned().unwrap_or_default();
        let prompts = round.into_iter().map(|(q, echo, _)| (Cow::Borrowed(q), echo)).collect::<Vec<_>>();
        Auth::Partial { name: "".into(), instructions: "Two factors".into(), prompts: prompts.into() }
    }

    fn no(&self) -> Auth {
        Auth::Reject { proceed_with_methods: Some(MethodSet::from(&[MethodKind::KeyboardInteractive][..])), partial_success: false }
    }
}

impl server::Handler for Quiz {
    type Error = russh::Error;

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _user: &str,
        _sub: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        let Some(response) = response else {
            self.at = 0;
            return Ok(self.ask());
        };
        let given: Vec<String> = response.map(|b| String::from_utf8_lossy(&b).into_owned()).collect();
        let want: Vec<&str> = self.rounds[self.at].iter().map(|(.., a)| *a).collect();
        if given != want {
            return Ok(self.no());
        }
        self.at += 1;
        Ok(if self.at == self.rounds.len() { Auth::Accept } else { self.ask() })
    }
}

/// Serves the quiz, and gives an environment whose host `old` it is.
async fn serve(rounds: Vec<Vec<(&'static str, bool, &'static str)>>, more: &[(&str, Value)]) -> (Environment, tempfile::TempDir) {
    let key = russh::keys::PrivateKey::random(&mut russh::keys::key::safe_rng(), russh::keys::Algorithm::Ed25519).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let known = dir.path().join("known_hosts");
    std::fs::write(&known, format!("[127.0.0.1]:{port} {}\n", key.public_key().to_openssh().unwrap())).unwrap();
    let config = Arc::new(server::Config {
        keys: vec![key],
        methods: MethodSet::from(&[MethodKind::KeyboardInteractive][..]),
        auth_rejection_time: std::time::Duration::ZERO,
        ..server::Config::default()
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let quiz = Quiz { rounds: rounds.clone(), at: 0 };
            let config = config.clone();
            tokio::spawn(async move {
                if let Ok(session) = server::run_stream(config, stream, quiz).await {
                    let _ = session.await;
                }
            });
        }
    });
    let mut settings: BTreeMap<String, Value> = BTreeMap::from([
        ("ssh".to_string(), format!("ann@127.0.0.1:{port}").into()),
        ("ssh_config".to_string(), "none".into()),
        ("known_hosts".to_string(), known.display().to_string().into()),
        ("identity_file".to_string(), dir.path().join("none").display().to_string().into()),
    ]);
    settings.extend(more.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
    let mut env = Environment { name: "test".into(), ..Environment::default() };
    let host = Resource { name: "old".into(), kind: "ssh".into(), settings };
    env.resources.entry(Section::Hosts).or_default().insert("old".into(), host);
    (env, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn several_questions_in_several_rounds() {
    let rounds = vec![
        vec![("Password: ", false, "s3cret pw"), ("Your badge: ", true, "4711")],
        vec![],
        vec![("Verification code: ", false, "123456")],
    ];
    let world = Arc::new(runbook_testkit::World::default());
    world.secrets.lock().insert("pw".into(), "s3cret pw".into());
    let (env, _dir) = serve(rounds.clone(), &[("password", "pw".into())]).await;
    world.typed.lock().extend(["4711".to_string(), "123456".to_string()]);
    let cx = runbook_testkit::cx(&world, env, "a");
    assert_eq!(crate::ssh::reach::try_login(&cx, "old").await.unwrap(), "answers to its questions");
    let asked = world.asked.lock().clone();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].starts_with("Two factors\n(ann@127.0.0.1) Your badge: ") && asked[1].ends_with("Verification code: "), "{asked:?}");
    // The code is struck from now on, what was shown while typed is not.
    assert_eq!(cx.redactor.text("4711 123456"), "4711 [secret]");

    // Named secrets answer without anybody there.
    let answers = Value::Map(BTreeMap::from([("badge".to_string(), "b".into()), ("verification code".to_string(), "totp".into())]));
    let (env, _dir) = serve(rounds, &[("password", "pw".into()), ("answers", answers)]).await;
    world.secrets.lock().extend([("b".to_string(), "4711".to_string()), ("totp".to_string(), "123456".to_string())]);
    let cx = runbook_testkit::cx(&world, env, "b");
    crate::ssh::reach::try_login(&cx, "old").await.unwrap();
    assert_eq!(world.asked.lock().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_an_answer_is_named_and_endless_ones_end() {
    let world = Arc::new(runbook_testkit::World::default());
    world.secrets.lock().insert("pw".into(), "s3cret pw".into());
    let (env, _dir) =
        serve(vec![vec![("Password: ", false, "s3cret pw")], vec![("One-time code: ", false, "1")]], &[("password", "pw".into())]).await;
    let e = crate::ssh::reach::try_login(&runbook_testkit::cx(&world, env, "a"), "old").await.unwrap_err();
    assert_eq!(e.message, "127.0.0.1 asks \"One-time code\" at the login of ann, and nobody can answer");
    assert!(e.hint.unwrap().contains("answers = { \"One-time code\" = \"SECRET\" }"));
    // Asked twice for the same password: it was not taken, and is not given again.
    let (env, _dir) =
        serve(vec![vec![("Password: ", false, "s3cret pw")], vec![("Password: ", false, "x")]], &[("password", "pw".into())]).await;
    let e = crate::ssh::reach::try_login(&runbook_testkit::cx(&world, env, "a"), "old").await.unwrap_err();
    assert!(e.message.contains("the password \"pw\": refused"), "{e}");
    let (env, _dir) = serve(vec![vec![]; 100], &[]).await;
    let e = crate::ssh::reach::try_login(&runbook_testkit::cx(&world, env, "a"), "old").await.unwrap_err();
    assert!(e.message.contains("do not end"), "{e}");
}
