//! What a request to AWS needs: credentials as its own tools find them, and the signature (Signature Version 4).
//!
//! The SDK would be 750 MB of build for one service; the signature is tested against AWS's own client.

use std::path::PathBuf;

use reqwest::Url;
use ring::hmac;
use runbook_core::digest::hex;
use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::secret::Secret;
use runbook_core::{Code, Error, Result};
use sha2::{Digest, Sha256};

use super::api::credential;

/// A key with where it came from.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The key's id.
    pub id: String,
    /// The key.
    pub key: Secret,
    /// Of temporary keys.
    pub session: Option<Secret>,
    /// For messages: `the profile "shop" of /home/u/.aws/credentials`.
    pub from: String,
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Credentials {
    /// Finds the key: the zone's settings, its profile, AWS's environment variables, the profile that they name, the default profile.
    ///
    /// # Errors
    /// `RB0109` when there is none, or a profile gets its key in a way that is not read here.
    pub fn find(cx: &Cx, zone: &Resource, env: Env<'_>) -> Result<Credentials> {
        if let Some(id) = zone.str("access_key") {
            let (key, from) = credential(cx, Some(zone.need("secret_key")?), &[], env)?;
            let session = zone.str("session_token").map(|s| cx.secret(s)).transpose()?;
            return Ok(Credentials { id: id.into(), key, session, from });
        }
        let set = |name: &str| env(name).filter(|v| !v.trim().is_empty());
        if zone.str("profile").is_none()
            && let Some(id) = set("AWS_ACCESS_KEY_ID")
        {
            let (key, _) = credential(cx, None, &["AWS_SECRET_ACCESS_KEY"], env)?;
            let session = credential(cx, None, &["AWS_SESSION_TOKEN"], env).ok().map(|(s, _)| s);
            return Ok(Credentials { id: id.trim().into(), key, session, from: "the environment variable AWS_ACCESS_KEY_ID".into() });
        }
        let profile = zone.str("profile").map(str::to_string).or_else(|| set("AWS_PROFILE")).unwrap_or_else(|| "default".into());
        from_files(cx, &profile, env)
    }
}

fn from_files(cx: &Cx, profile: &str, env: Env<'_>) -> Result<Credentials> {
    let home = env("HOME").map(PathBuf::from);
    let file = |variable: &str, name: &str| env(variable).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".aws").join(name)));
    let none = |why: String| Error::new(Code::MISSING_SECRET, why);
    let mut other_way = None;
    for (path, head) in [
        (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), profile.to_string()),
        (file("AWS_CONFIG_FILE", "config"), if profile == "default" { profile.to_string() } else { format!("profile {profile}") }),
    ] {
        let Some(path) = path else { continue };
        let text = match std::fs::read_to_string(&path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(none(format!("{} cannot be read: {e}", path.display()))),
        };
        let Some(settings) = section(&text, &head) else { continue };
        let get = |key: &str| settings.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        if let (Some(id), Some(key)) = (get("aws_access_key_id"), get("aws_secret_access_key")) {
            cx.redactor.add(&key);
            let session = get("aws_session_token").map(|t| {
                cx.redactor.add(&t);
                Secret::new("aws_session_token", t)
            });
            let from = format!("the profile \"{profile}\" of {}", path.display());
            return Ok(Credentials { id, key: Secret::new("aws_secret_access_key", key), session, from });
        }
        const OTHER: [&str; 5] = ["sso_session", "sso_start_url", "role_arn", "credential_process", "login_session"];
        other_way = other_way.or_else(|| settings.iter().find(|(k, _)| OTHER.contains(&k.as_str())).map(|(k, _)| k.clone()));
    }
    if let Some(way) = other_way {
        return Err(none(format!("the profile \"{profile}\" of AWS gets its key by {way}, which is not read here"))
            .hint(format!("run: eval \"$(aws configure export-credentials --profile {profile} --format env)\"")));
    }
    Err(none(format!(
        "there is no key for AWS: neither the zone nor AWS_ACCESS_KEY_ID names one, and there is no profile \"{profile}\" with one"
    ))
    .hint("give the zone access_key and secret_key, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"))
}

/// The settings of one section of AWS's files.
fn section(text: &str, head: &str) -> Option<Vec<(String, String)>> {
    let mut found: Option<Vec<(String, String)>> = None;
    let mut inside = false;
    for line in text.lines() {
        let whole = line.trim_end();
        let line = whole.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            inside = name.split_whitespace().collect::<Vec<_>>().join(" ") == head;
            if inside {
                found.get_or_insert_with(Vec::new);
            }
            continue;
        }
        // What is indented belongs to the nested setting above it.
        if let (true, false, Some((k, v)), Some(out)) = (inside, whole.starts_with([' ', '\t']), line.split_once('='), found.as_mut()) {
            out.push((k.trim().to_ascii_lowercase(), v.trim().to_string()));
        }
    }
    found
}

fn sha(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Percent-encodes everything but what RFC 3986 leaves free.
pub fn encode(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// The headers that sign a request. `url` has its query encoded by [`encode`], so that it is sent as it is signed.
pub fn sign(
    c: &Credentials,
    region: &str,
    service: &str,
    method: &str,
    url: &Url,
    body: &str,
    now: jiff::Timestamp,
) -> Vec<(&'static str, String)> {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = time.get(..8).unwrap_or_default();
    let mut host = url.host_str().unwrap_or_default().to_string();
    if let Some(port) = url.port() {
        host = format!("{host}:{port}");
    }
    let mut query: Vec<&str> = url.query().unwrap_or("").split('&').filter(|q| !q.is_empty()).collect();
    query.sort_unstable();
    let mut headers = vec![("host", host), ("x-amz-date", time.clone())];
    if let Some(s) = &c.session {
        headers.push(("x-amz-security-token", s.reveal().to_string()));
    }
    let list = headers.iter().map(|(k, _)| *k).collect::<Vec<_>>().join(";");
    let lines: String = headers.iter().map(|(k, v)| format!("{k}:{v}\n")).collect();
    let canonical = format!("{method}\n{}\n{}\n{lines}\n{list}\n{}", url.path(), query.join("&"), sha(body.as_bytes()));
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha(canonical.as_bytes()));
    let mut key = format!("AWS4{}", c.key.reveal()).into_bytes();
    for part in [day, region, service, "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &to_sign));
    let mut out =
        vec![("authorization", format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={list}, Signature={signature}", c.id))];
    // The host is sent by the client itself.
    out.extend(headers.into_iter().filter(|(k, _)| *k != "host"));
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use runbook_core::Value;
    use runbook_core::inventory::Environment;
    use runbook_testkit::{World, cx};

    use super::*;

    /// The worked example of AWS's documentation of the signature (GET of ListUsers).
    #[test]
    fn the_signature_is_that_of_the_documentation() {
        let c = Credentials {
            id: "AKIDEXAMPLE".into(),
            key: Secret::new("k", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session: None,
            from: String::new(),
        };
        let now: jiff::Timestamp = "2015-08-30T12:36:00Z".parse().unwrap();
        let url = Url::parse("https://example.amazonaws.com/").unwrap();
        // "get-vanilla" of AWS's test suite.
        let headers = sign(&c, "us-east-1", "service", "GET", &url, "", now);
        assert_eq!(
            headers[0].1,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    #[test]
    fn a_key_is_found_where_awss_own_tools_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        write(
            ".aws/credentials",
            "[default]\naws_access_key_id = ID1\naws_secret_access_key = key-of-default\n# c\n[ shop ]\naws_access_key_id=ID2\naws_secret_access_key=key-of-shop==\naws_session_token=session-of-shop\n",
        );
        write(
            ".aws/config",
            "[profile inconfig]\naws_access_key_id = ID3\naws_secret_access_key = key-3333\ns3 =\n  aws_access_key_id = no\n[profile sso]\nsso_session = x\n",
        );
        let home = dir.path().display().to_string();
        let world = Arc::new(World::default());
        world.secrets.lock().insert("aws".into(), "key-of-inventory".into());
        let c = cx(&world, Environment::default(), "a-1");
        let find = |settings: &[(&str, &str)], vars: &[(&str, &str)]| {
            let settings = settings.iter().map(|(k, v)| ((*k).to_string(), Value::from(*v))).collect::<BTreeMap<_, _>>();
            let zone = Resource { name: "z".into(), kind: "route53".into(), settings };
            let env =
                |n: &str| if n == "HOME" { Some(home.clone()) } else { vars.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_string()) };
            Credentials::find(&c, &zone, &env)
        };
        let shown = |c: Credentials| format!("{} {} {}", c.id, c.key.reveal(), c.session.map_or(String::new(), |s| s.reveal().to_string()));
        let env = [("AWS_ACCESS_KEY_ID", "ID4"), ("AWS_SECRET_ACCESS_KEY", "key-4444"), ("AWS_SESSION_TOKEN", "session-4")];
        assert_eq!(shown(find(&[("access_key", "ID0"), ("secret_key", "aws")], &env).unwrap()), "ID0 key-of-inventory ");
        assert_eq!(shown(find(&[], &env).unwrap()), "ID4 key-4444 session-4");
        assert_eq!(shown(find(&[("profile", "shop")], &env).unwrap()), "ID2 key-of-shop== session-of-shop");
        assert_eq!(shown(find(&[], &[("AWS_PROFILE", "inconfig")]).unwrap()), "ID3 key-3333 ");
        assert_eq!(shown(find(&[], &[]).unwrap()), "ID1 key-of-default ");
        let e = find(&[("profile", "sso")], &[]).unwrap_err();
        assert!(
            e.message.contains("by sso_session, which is not read here") && e.hint.unwrap().contains("export-credentials --profile sso")
        );
        let e = find(&[("profile", "none")], &[]).unwrap_err();
        assert_eq!(e.code, Code::MISSING_SECRET);
        assert_eq!(c.redactor.text("key-of-shop== session-of-shop key-4444"), "[secret] [secret] [secret]");
    }
}
