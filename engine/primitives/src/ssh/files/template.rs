//! `template`: a file of the project, filled in.

use std::collections::BTreeMap;

use async_trait::async_trait;
use base64::Engine as _;
use runbook_core::primitive::{Cx, Outcome, Primitive};
use runbook_core::spec::{Call, Effect, Spec, Ty};
use runbook_core::{Code, Error, Result, Value};
use serde_json::{Map as JsonMap, Value as Json};

use super::{file_options, put};
use crate::ssh::host;

/// `Host.template`.
pub(super) struct Template {
    spec: Spec,
}

impl Default for Template {
    fn default() -> Self {
        let spec = Spec::method(
            "Host",
            "template",
            Effect::Converge,
            "Brings a file to what a template of the project gives (the language of Tera: `{{ name }}`, `{% if %}`, `{% for %}`), \
             at one stroke; there is nothing to do when it is so already. Gives whether anything was changed.\n\nA variable that is not \
             defined is an error. Besides `vars` the template sees `host` (name, address, roles, vars, ssh). Nothing is escaped.",
        )
        .arg("template", Ty::Str, "The template's path in the project.")
        .arg("path", Ty::Str, "The file on the host; relative to the login's home folder.")
        .option("vars", Ty::Map(Box::new(Ty::Any)), "What the template can use; secrets are put in as they are.")
        .example(r#"host("new").template("templates/shop.conf.tera", "/etc/shop.conf", #{ vars: #{ port: 8080 }, mode: "0640" });"#);
        let mut spec = file_options(spec);
        spec.errors = &[Code::TEMPLATE, Code::MISSING_FILE, Code::OUTSIDE_PROJECT, Code::FILE_WRITE, Code::COMMAND_BAD, Code::SUDO];
        Template { spec }
    }
}

#[async_trait]
impl Primitive for Template {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn act(&self, cx: &Cx, call: &Call) -> Result<Outcome> {
        let name = call.str(0);
        let text = String::from_utf8(cx.files.read(name)?)
            .map_err(|_| Error::new(Code::TEMPLATE, format!("{name} is not UTF-8 text")).hint("use upload for files that are not text"))?;
        let mut vars = call.opt("vars").and_then(Value::as_map).cloned().unwrap_or_default();
        vars.entry("host".to_string()).or_insert(Value::Map(host::handle(&cx.env, call.target())?.fields));
        let content = render(cx, name, &text, &vars)?;
        put::put(cx, call, call.str(1), content.into_bytes()).await
    }
}

fn render(cx: &Cx, name: &str, text: &str, vars: &BTreeMap<String, Value>) -> Result<String> {
    let bad = |e: tera::Error| {
        Error::new(Code::TEMPLATE, format!("{name} cannot be rendered:\n{}", e.to_string().trim_end()))
            .hint("pass what it uses in vars: #{ vars: #{ name: value } }, or give a default: {{ name | default(value=\"\") }}")
    };
    let json: JsonMap<String, Json> = vars.iter().map(|(k, v)| (k.clone(), plain(cx, v))).collect();
    let mut tera = tera::Tera::new();
    // Configuration files are not HTML.
    tera.autoescape_on(Vec::<&'static str>::new());
    tera.add_raw_template(name, text).map_err(bad)?;
    let context = tera::Context::from_serialize(&Json::Object(json)).map_err(bad)?;
    tera.render(name, &context).map_err(bad)
}

/// A value as templates see it: plain data.
fn plain(cx: &Cx, v: &Value) -> Json {
    let map = |m: &BTreeMap<String, Value>| Json::Object(m.iter().map(|(k, v)| (k.clone(), plain(cx, v))).collect());
    match v {
        Value::Unit => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(i) => Json::from(*i),
        Value::Float(f) => Json::from(*f),
        Value::Str(s) => Json::String(s.clone()),
        Value::Blob(b) => Json::String(base64::engine::general_purpose::STANDARD.encode(b)),
        Value::List(l) => Json::Array(l.iter().map(|v| plain(cx, v)).collect()),
        Value::Map(m) => map(m),
        Value::Duration(d) => Json::String(runbook_core::units::show_duration(*d)),
        Value::Bytes(n) => Json::from(*n),
        Value::Time(t) => Json::String(t.to_string()),
        Value::Secret(s) => {
            cx.redactor.add(s.reveal());
            Json::String(s.reveal().to_string())
        }
        Value::Record(r) => map(&r.fields),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runbook_core::inventory::Environment;
    use runbook_core::secret::Secret;
    use std::sync::Arc;

    fn try_render(text: &str, vars: &[(&str, Value)]) -> Result<String> {
        let cx = runbook_testkit::cx(&Arc::default(), Environment::default(), "a");
        let vars = vars.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect();
        render(&cx, "shop.conf.tera", text, &vars)
    }

    #[test]
    fn values_go_in_as_they_are() {
        let vars = [
            ("port", Value::Int(80)),
            ("name", "a<b>\"c\"".into()),
            ("pw", Secret::new("pw", "p'w").into()),
            ("l", vec![1i64.into()].into()),
        ];
        let got = try_render("port={{ port }} name={{ name }} pw={{ pw }}{% for x in l %} {{ x }}{% endfor %}\n", &vars).unwrap();
        assert_eq!(got, "port=80 name=a<b>\"c\" pw=p'w 1\n");
    }

    #[test]
    fn an_undefined_variable_is_shown_where_it_stands() {
        let e = try_render("first\nport={{ prot }}\n", &[("port", Value::Int(80))]).unwrap_err();
        assert_eq!(e.code, Code::TEMPLATE);
        assert!(e.message.contains("shop.conf.tera") && e.message.contains("prot") && e.message.contains('2'), "{}", e.message);
        assert_eq!(try_render("{% if %}", &[]).unwrap_err().code, Code::TEMPLATE);
    }
}
