//! TLS on the client's side: whom to trust, and the certificate to show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::error::{Error, Result};

/// The system's authorities on Debian and most others; `$SSL_CERT_FILE` outranks it, as for OpenSSL.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Which files a TLS connection needs.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// PEM files of authorities; empty: the system's.
    pub authorities: Vec<PathBuf>,
    /// The client's certificate chain and its key, in PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Trust {
    /// TLS 1.2 and 1.3 with ring, the server's certificate checked.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        if self.authorities.is_empty() {
            let bundle = std::env::var_os("SSL_CERT_FILE").map_or(SYSTEM_BUNDLE.into(), PathBuf::from);
            // A machine without a bundle has nothing to trust: the handshake says so, and names --ca.
            if bundle.exists() {
                roots.add_parsable_certificates(certificates(&bundle)?);
            }
        }
        for path in &self.authorities {
            let found = certificates(path)?;
            for certificate in found {
                roots.add(certificate).map_err(|problem| unusable(path, &problem))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Internal(error.to_string()))?
            .with_root_certificates(roots);
        Ok(Arc::new(match &self.client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let private = PrivateKeyDer::from_pem_file(key).map_err(|problem| unusable(key, &problem))?;
                let chain_pem = certificates(chain)?;
                builder
                    .with_client_auth_cert(chain_pem, private)
                    .map_err(|problem| unusable(chain, &problem))?
            }
        }))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect());
    let found = found.map_err(|problem| unusable(path, &problem))?;
    if found.is_empty() {
        return Err(unusable(path, &"no certificate in it"));
    }
    Ok(found)
}

fn unusable(path: &Path, problem: &dyn std::fmt::Display) -> Error {
    Error::Unusable { path: path.to_owned(), problem: problem.to_string() }
}
