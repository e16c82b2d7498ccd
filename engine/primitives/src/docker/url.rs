//! Engines that this machine reaches without a host of the inventory: a unix socket, or a port with TLS.

use std::path::PathBuf;
use std::sync::Arc;

use runbook_core::inventory::Resource;
use runbook_core::primitive::Cx;
use runbook_core::{Code, Error, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::context::Files;
use super::transport::{At, Tls};

/// Reads `unix:///path` or `tcp://name:port`. The certificate's files are those of the context, or those that the inventory names.
pub(super) fn parse(cx: &Cx, r: &Resource, url: &str, context: Option<&Files>) -> Result<At> {
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
    let pem = match context {
        None => Pem::of_inventory(cx, r)?,
        Some(files) => Pem::of_context(r, files)?,
    };
    if pem.ca.is_some() || pem.cert.is_some() {
        return Ok(At::Tcp(name, port, Some(tls(r, pem)?)));
    }
    // Whoever can write to the port is root on that machine: not over a network.
    if matches!(name.as_str(), "127.0.0.1" | "::1" | "localhost") {
        return Ok(At::Tcp(name, port, None));
    }
    Err(bad("leads over a network without TLS").hint("give tls_ca, tls_cert and tls_key, or reach the engine over SSH by host = \"…\""))
}

/// The files of a certificate, as they are.
struct Pem {
    /// What authority, certificate and key are called where they were given.
    called: [&'static str; 3],
    ca: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

fn unusable(r: &Resource, what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::INVENTORY_TYPE, format!("{what} of the Docker Engine \"{}\" cannot be used: {why}", r.name))
        .hint("give files in PEM, relative to the project, as `docker` has them in ~/.docker: ca.pem, cert.pem, key.pem")
}

impl Pem {
    fn of_inventory(cx: &Cx, r: &Resource) -> Result<Pem> {
        let read = |key| r.str(key).map(|path| cx.files.read(path)).transpose();
        Ok(Pem { called: ["tls_ca", "tls_cert", "tls_key"], ca: read("tls_ca")?, cert: read("tls_cert")?, key: read("tls_key")? })
    }

    fn of_context(r: &Resource, files: &Files) -> Result<Pem> {
        let read = |path: &Option<PathBuf>| {
            let read = |p: &PathBuf| std::fs::read(p).map_err(|e| unusable(r, &p.display().to_string(), e));
            path.as_ref().map(read).transpose()
        };
        let called = ["ca.pem of the context", "cert.pem of the context", "key.pem of the context"];
        Ok(Pem { called, ca: read(&files.ca)?, cert: read(&files.cert)?, key: read(&files.key)? })
    }
}

fn tls(r: &Resource, pem: Pem) -> Result<Tls> {
    let [ca, cert, key] = pem.called;
    let certificates = |what: &'static str, pem: Option<Vec<u8>>| -> Result<Vec<CertificateDer<'static>>> {
        let pem = pem.ok_or_else(|| unusable(r, what, "there is none"))?;
        let all: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<std::result::Result<_, _>>().map_err(|e| unusable(r, what, e))?;
        if all.is_empty() { Err(unusable(r, what, "there is no certificate in it")) } else { Ok(all) }
    };
    let mut roots = rustls::RootCertStore::empty();
    for one in certificates(ca, pem.ca)? {
        roots.add(one).map_err(|e| unusable(r, ca, e))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(e.to_string()))?
        .with_root_certificates(roots);
    let config = match pem.cert {
        None => builder.with_no_client_auth(),
        Some(chain) => {
            let pem = pem.key.ok_or_else(|| unusable(r, key, "there is none"))?;
            let own = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| unusable(r, key, e))?;
            builder.with_client_auth_cert(certificates(cert, Some(chain))?, own).map_err(|e| unusable(r, cert, e))?
        }
    };
    Ok(Tls(Arc::new(config)))
}
