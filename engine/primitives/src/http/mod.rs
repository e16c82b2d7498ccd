//! Checks over HTTP and TCP, made from the controller.
//!
//! `request.rs` makes and sends a request; `tls.rs` says why TLS is refused; `checks.rs` has the methods of `Http`; `tcp.rs` has `tcp(…)`.

use std::collections::BTreeMap;
use std::time::Duration;

use runbook_core::inventory::Environment;
use runbook_core::primitive::Registry;
use runbook_core::spec::{Call, Effect, Spec, Ty, TypeSpec};
use runbook_core::{Code, Record, Result, Value};

mod checks;
mod request;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;

/// Adds the primitives of this family.
pub fn register(r: &mut Registry) {
    r.add_type(TypeSpec::new("Http", "A request that can be sent: what to ask, and how.").field("url", Ty::Str, "The address.").field(
        "method",
        Ty::Str,
        "The method: `GET`, `POST`, …",
    ));
    r.add_type(
        TypeSpec::new("Response", "The answer to an HTTP request. Secrets are struck from it.")
            .field("status", Ty::Int, "The status: 200, 404, …")
            .field("body", Ty::Str, "The body as text.")
            .field("headers", Ty::Map(Box::new(Ty::Str)), "The headers, names in lower case; repeated ones joined by commas.")
            .field("url", Ty::Str, "The address that answered, after redirections.")
            .field("ms", Ty::Int, "How long it took, in milliseconds."),
    );
    r.add_type(TypeSpec::new("Tcp", "A TCP port that can be tried.").field("address", Ty::Str, "`host:port`."));
    r.add_pure(
        Spec::function(
            "http",
            Effect::Pure,
            "Describes an HTTP request; nothing is sent until a method of it is called. Requests go from the controller, directly: \
             proxies of the environment are not used.",
        )
        .arg("url", Ty::Str, "`http://…` or `https://…`, without a user or password.")
        .option("method", Ty::Str, "The method; GET by default.")
        .option("headers", Ty::Map(Box::new(Ty::OneOf(vec![Ty::Str, Ty::Secret]))), "Headers; values may be secrets.")
        .option("body", Ty::OneOf(vec![Ty::Str, Ty::Blob]), "The body.")
        .option("timeout", Ty::Duration, "How long the whole answer may take; 10s by default.")
        .option("follow", Ty::Bool, "Whether to follow redirections, at most 10; false by default.")
        .option(
            "host",
            Ty::Str,
            "Ask the server of the URL for this site: the name in the Host header and in TLS, as after the move of the name.",
        )
        .option("resolve", Ty::Str, "Connect to this `ip` or `ip:port` instead of looking up the name of the URL.")
        .option("ca_file", Ty::Str, "A file of the project with the only certificates (PEM) to trust; those of the system by default.")
        .option("insecure", Ty::Bool, "Whether to accept any certificate; false by default.")
        .returns(Ty::Record("Http"))
        .example(r#"http("https://192.0.2.20/health", #{ host: "shop.example.com" }).expect_status(200);"#)
        .errors(&[Code::HTTP]),
        http,
    );
    r.add_pure(
        Spec::function("tcp", Effect::Pure, "Names a TCP port; nothing is sent until a method of it is called.")
            .arg("address", Ty::Str, "`host:port`, or the host alone.")
            .opt_arg("port", Ty::Int, "The port, when the address has none.")
            .returns(Ty::Record("Tcp"))
            .example(r#"tcp(host("new").address, 3306).expect_closed();"#)
            .errors(&[Code::TCP]),
        tcp::tcp,
    );
    r.add(checks::ExpectStatus::default());
    r.add(checks::ExpectBody::default());
    r.add(checks::Get::default());
    r.add(checks::Send::default());
    r.add(tcp::ExpectOpen::default());
    r.add(tcp::ExpectClosed::default());
}

/// How long a request may take unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

fn http(_env: &Environment, call: &Call) -> Result<Value> {
    let url = request::parse_url(call.str(0))?;
    let mut fields: BTreeMap<String, Value> = call.options.clone();
    let method = call.opt_str("method").unwrap_or("GET").to_ascii_uppercase();
    request::parse_method(&method)?;
    if call.options.contains_key("ca_file") && call.opt_bool("insecure") {
        return Err(request::wrong("insecure accepts any certificate, so ca_file would not count").hint("leave out one of them"));
    }
    fields.insert("method".into(), method.into());
    fields.insert("url".into(), url.as_str().into());
    // The name stands for the request in the journal, so all that makes it another request is part of it.
    let mut name = url.to_string();
    if !call.options.is_empty() {
        name.push_str(&format!(" {}", Value::Map(call.options.clone())));
    }
    Ok(Record::handle("Http", name, fields).into())
}
