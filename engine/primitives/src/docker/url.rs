//! Engines that this machine reaches without a host of the inventory: a unix socket, or a port with TLS.

use std::sync::Arc;

use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::transport::{At, Tls};

/// Reads `unix:///path` or `tcp://name:port`.
pub(super) fn parse(cx: &Cx, r: &Resource, url: &str) -> Result<At> {
    let bad = |why: &str| {
        Error::new(Code::INVENTORY_TYPE, format!("the url \"{url}\" of the Docker Engine \"{}\" {why}", r.name))
            .hint("it is unix:///path or tcp://name:port; an engine on a host of the inventory has host = \"…\" instead")
    };
    if let Some(path) = url.strip_prefix("unix://") {
        return if path.starts_with('/') { Ok(At::Socket(path.into())) } else { Err(bad("has no absolute path")) };
    }
    let Some(rest) = url.strip_prefix("tcp://") else { return Err(bad("is of no kind that can be used")) };
    let (name, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(|| bad("has no port"))?;
    let port = port.parse::<u16>().map_err(|_| bad("has no port"))?;
    let name = name.trim_start_matches('[').trim_end_matches(']').to_string();
    if r.str("tls_ca").is_some() || r.str("tls_cert").is_some() {
        return Ok(At::Tcp(name, port, Some(tls(cx, r)?)));
    }
    // Whoever can write to the port is root on that machine: not over a network.
    if matches!(name.as_str(), "127.0.0.1" | "::1" | "localhost") {
        return Ok(At::Tcp(name, port, None));
    }
    Err(bad("leads over a network without TLS").hint("give tls_ca, tls_cert and tls_key, or reach the engine over SSH by host = \"…\""))
}

fn tls(cx: &Cx, r: &Resource) -> Result<Tls> {
    let read = |key: &'static str| -> Result<Vec<u8>> {
        let path = r.need(key)?;
        cx.files.read(path)
    };
    let unusable = |key: &str, why: String| {
        Error::new(Code::INVENTORY_TYPE, format!("{key} of the Docker Engine \"{}\" cannot be used: {why}", r.name))
            .hint("give files in PEM, relative to the project, as `docker` has them in ~/.docker: ca.pem, cert.pem, key.pem")
    };
    let certificates = |key: &'static str| -> Result<Vec<CertificateDer<'static>>> {
        let pem = read(key)?;
        let all: Vec<_> =
            CertificateDer::pem_slice_iter(&pem).collect::<std::result::Result<_, _>>().map_err(|e| unusable(key, e.to_string()))?;
        if all.is_empty() { Err(unusable(key, "there is no certificate in it".into())) } else { Ok(all) }
    };
    let mut roots = rustls::RootCertStore::empty();
    for ca in certificates("tls_ca")? {
        roots.add(ca).map_err(|e| unusable("tls_ca", e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(e.to_string()))?
        .with_root_certificates(roots);
    let config = match r.str("tls_cert") {
        None => builder.with_no_client_auth(),
        Some(_) => {
            let key = read("tls_key")?;
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| unusable("tls_key", e.to_string()))?;
            builder.with_client_auth_cert(certificates("tls_cert")?, key).map_err(|e| unusable("tls_cert", e.to_string()))?
        }
    };
    Ok(Tls(Arc::new(config)))
}
