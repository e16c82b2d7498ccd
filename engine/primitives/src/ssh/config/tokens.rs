//! `%h` and its like, and `${NAME}`.

use std::collections::BTreeMap;

use ring::digest;

/// The values of tokens, by letter.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    values: BTreeMap<char, String>,
}

/// The tokens that most options take.
pub const USUAL: &str = "CdhijkLlnpru";
/// Those of `ProxyCommand` and `ProxyJump`.
pub const PROXY: &str = "hknpr";

/// What the tokens stand for.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The machine's name.
    pub machine: &'a str,
    /// The name that was asked for.
    pub original: &'a str,
    /// The host's name.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The login name.
    pub user: &'a str,
    /// The name of the host's key.
    pub key_alias: &'a str,
    /// `ProxyJump`, as it was written.
    pub jump: &'a str,
    /// The person's name, number and home.
    pub local: (&'a str, u32, &'a str),
}

impl Tokens {
    /// Fills in every token.
    #[must_use]
    pub fn new(f: &Facts<'_>) -> Self {
        let port = f.port.to_string();
        let mut whole = String::new();
        for part in [f.machine, f.host, &port, f.user, f.jump] {
            whole.push_str(part);
        }
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, whole.as_bytes());
        let hash: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let short = f.machine.split('.').next().unwrap_or_default();
        let values = [
            ('C', hash.as_str()),
            ('d', f.local.2),
            ('h', f.host),
            ('i', &f.local.1.to_string()),
            ('j', f.jump),
            ('k', f.key_alias),
            ('L', short),
            ('l', f.machine),
            ('n', f.original),
            ('p', &port),
            ('r', f.user),
            ('u', f.local.0),
        ];
        Tokens { values: values.into_iter().map(|(c, v)| (c, v.to_string())).collect() }
    }

    /// The token `%h` alone, as `HostName` takes it.
    #[must_use]
    pub fn host(host: &str) -> Self {
        Tokens { values: BTreeMap::from([('h', host.to_string())]) }
    }

    /// Replaces tokens; only those in `allowed` may be there. With `env`, `${NAME}` is replaced as well.
    ///
    /// # Errors
    /// What is wrong: a token that is not allowed, a variable that is not set, a brace that is not closed.
    pub fn expand(&self, text: &str, allowed: &str, env: Option<&BTreeMap<String, String>>) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let (Some(env), Some(after)) = (env, rest.strip_prefix("${")) {
                let (name, tail) = after.split_once('}').ok_or_else(|| format!("has a ${{ without }} in \"{text}\""))?;
                if name.is_empty() {
                    return Err(format!("has an empty ${{}} in \"{text}\""));
                }
                out.push_str(env.get(name).ok_or_else(|| format!("needs the environment variable {name}, which is not set"))?);
                rest = tail;
                continue;
            }
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
            if c != '%' {
                out.push(c);
                continue;
            }
            let Some(token) = rest.chars().next() else { return Err(format!("ends with a lone % in \"{text}\"")) };
            rest = rest.get(token.len_utf8()..).unwrap_or_default();
            match self.values.get(&token).filter(|_| allowed.contains(token)) {
                _ if token == '%' => out.push('%'),
                Some(v) => out.push_str(v),
                None => return Err(format!("does not take the token %{token} in \"{text}\"")),
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens() -> Tokens {
        Tokens::new(&Facts {
            machine: "desk.example.com",
            original: "web",
            host: "web.example.com",
            port: 2222,
            user: "deploy",
            key_alias: "web-key",
            jump: "",
            local: ("me", 1000, "/home/me"),
        })
    }

    #[test]
    fn every_token() {
        let t = tokens();
        let all = t.expand("%d %h %i %k %L %l %n %p %r %u %%", USUAL, None).unwrap();
        assert_eq!(all, "/home/me web.example.com 1000 web-key desk desk.example.com web 2222 deploy me %");
        // The same as: printf %s desk.example.comweb.example.com2222deploy | sha1sum
        assert_eq!(t.expand("%C", USUAL, None).unwrap(), "a20797d889c62fcf7cd903a1c970979a733680ef");
    }

    #[test]
    fn environment_variables() {
        let env = BTreeMap::from([("A".to_string(), "%h".to_string()), ("B".to_string(), String::new())]);
        assert_eq!(tokens().expand("${A}${B}$C{", USUAL, Some(&env)).unwrap(), "%h$C{", "a value is not expanded again");
        for (text, why) in [("${NO}", "NO, which is not set"), ("${A", "without }"), ("${}", "empty")] {
            let e = tokens().expand(text, USUAL, Some(&env)).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
        assert_eq!(tokens().expand("${A}", USUAL, None).unwrap(), "${A}", "where variables are not taken");
    }

    #[test]
    fn what_is_no_token() {
        for (text, allowed) in [("%d", PROXY), ("%z", USUAL), ("a%", USUAL)] {
            assert!(tokens().expand(text, allowed, None).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_text_without_tokens_stays(text in "\\PC{0,20}") {
            let got = tokens().expand(&text, USUAL, Some(&BTreeMap::new()));
            if !text.contains(['%', '$']) {
                prop_assert_eq!(got.unwrap(), text);
            }
        }
    }
}
