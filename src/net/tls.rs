//! TLS for AMQPS: rustls on ring, TLS 1.3 and 1.2 with AEAD suites only (all that rustls has), client
//! certificates as `ssl_options.verify` and `fail_if_no_peer_cert` say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConfig, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, NoKeyLog};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::private_key;

/// What `ssl_options` asks for.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// CA certificates that client certificates must come from (PEM)
    pub ca_file: Option<PathBuf>,
    /// the server's certificate, then intermediates (PEM)
    pub certificate_file: PathBuf,
    /// its key (PEM: PKCS#8, SEC1 or PKCS#1)
    pub key_file: PathBuf,
    /// what is asked of clients
    pub client_certificates: ClientCertificates,
    /// whether TLS 1.2 is offered beside 1.3
    pub allows_tls12: bool,
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// `verify_none`: none is asked for
    NotAsked,
    /// `verify_peer`: one is verified if it is shown
    Verified,
    /// `verify_peer` and `fail_if_no_peer_cert`: one must be shown
    Required,
}

/// Which part of a client certificate is the user's name (`ssl_cert_login_from`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginFrom {
    /// the subject's common name
    CommonName,
    /// the subject in RFC 4514 order
    DistinguishedName,
    /// the first DNS name of the subject alternative names
    AlternativeName,
}

/// TLS cannot be set up; each says which file and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of that kind.
    #[error("{what} {path}: {reason}; expected PEM")]
    File {
        /// its configuration key
        what: &'static str,
        /// the file
        path: PathBuf,
        /// what is wrong
        reason: String,
    },
    /// Client certificates are to be verified, and there is no CA.
    #[error(
        "ssl_options.verify = verify_peer needs ssl_options.cacertfile, the CA that signed the clients' certificates"
    )]
    NoCa,
    /// rustls refuses the combination.
    #[error("the server certificate {path} cannot be used: {reason}")]
    Unusable {
        /// the certificate's file
        path: PathBuf,
        /// what is wrong
        reason: String,
    },
}

/// TLS as a listener needs it, ready to use.
pub type TlsConfig = ServerConfig;

/// Builds the server's TLS configuration.
///
/// # Errors
/// [`TlsError`], naming the file and what was expected of it.
pub fn server_config(options: &TlsOptions) -> Result<Arc<TlsConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let versions = if options.allows_tls12 { &[&TLS13, &TLS12][..] } else { &[&TLS13][..] };
    let unusable = |e: rustls::Error| TlsError::Unusable {
        path: options.certificate_file.clone(),
        reason: e.to_string(),
    };
    let certificates = certificates("ssl_options.certfile", &options.certificate_file)?;
    let key = private_key::load(&options.key_file)
        .map_err(|e| file_error("ssl_options.keyfile", &options.key_file, e))?;
    let certified = CertifiedKey::new(certificates, key);
    match certified.keys_match() {
        // Some keys cannot say which certificate they belong to.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(e) => return Err(unusable(e)),
    }
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(unusable)?;
    let builder = match client_verifier(options, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    // SSLKEYLOGFILE is for debugging; whoever sets it could read everything.
    config.key_log = Arc::new(NoKeyLog);
    // A restarted client resumes instead of a whole handshake; 0-RTT stays off, for it can be replayed.
    config.session_storage = ServerSessionMemoryCache::new(4096);
    Ok(Arc::new(config))
}

fn client_verifier(
    options: &TlsOptions,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    if options.client_certificates == ClientCertificates::NotAsked {
        return Ok(None);
    }
    let path = options.ca_file.as_ref().ok_or(TlsError::NoCa)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ssl_options.cacertfile", path)? {
        roots.add(certificate).map_err(|e| file_error("ssl_options.cacertfile", path, e))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match options.client_certificates {
        ClientCertificates::Required => builder,
        ClientCertificates::NotAsked | ClientCertificates::Verified => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|e| file_error("ssl_options.cacertfile", path, e))?;
    Ok(Some(verifier))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|e| file_error(what, path, e))?;
    let list = read.collect::<Result<Vec<_>, _>>().map_err(|e| file_error(what, path, e))?;
    if list.is_empty() {
        return Err(file_error(what, path, "it holds no certificate"));
    }
    Ok(list)
}

fn file_error(what: &'static str, path: &Path, reason: impl std::fmt::Display) -> TlsError {
    TlsError::File { what, path: path.to_owned(), reason: reason.to_string() }
}

/// The user's name that a verified certificate gives; `None` when it has no such part.
pub fn login_name(certificate: &CertificateDer<'_>, from: LoginFrom) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    match from {
        LoginFrom::CommonName => {
            let name = certificate.subject().iter_common_name().next()?;
            name.as_str().ok().map(str::to_owned)
        }
        LoginFrom::DistinguishedName => Some(certificate.subject().to_string()),
        LoginFrom::AlternativeName => {
            let names = certificate.subject_alternative_name().ok()??;
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
        }
    }
}
