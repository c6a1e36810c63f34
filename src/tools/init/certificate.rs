//! Reading certificates and private keys that are already on disk, down to the facts that decide whether
//! they are kept. Nothing is issued or written here.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::error::Error;
use super::files;
use super::names::San;

/// What a certificate says, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// The whole certificate.
    pub(super) der: CertificateDer<'static>,
    pub(super) subject: String,
    pub(super) sans: Vec<San>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// The subject's public key as it stands in the certificate's bit string.
    pub(super) public_key: Vec<u8>,
    pub(super) is_ca: bool,
    pub(super) usage: Usage,
    /// Lower-case hex.
    pub(super) serial: String,
}

/// The extensions that strict verifiers look for (RFC 5280 section 4.2.1).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) server_auth: bool,
    pub(super) client_auth: bool,
    pub(super) key_cert_sign: bool,
    pub(super) constraints_critical: bool,
    pub(super) has_subject_key_id: bool,
    pub(super) has_authority_key_id: bool,
}

impl Certificate {
    /// The first certificate of a PEM file, or `None` where there is no such file.
    pub(super) fn read(path: &Path) -> Result<Option<Certificate>, Error> {
        let Some(text) = files::read(path)? else { return Ok(None) };
        let der = CertificateDer::from_pem_slice(&text)
            .map_err(|error| Error::damaged(path, describe(error, "certificate")))?;
        Certificate::parse(der).map(Some).map_err(|reason| Error::damaged(path, reason))
    }

    /// Takes a certificate apart; the error says in words what is wrong with it.
    pub(super) fn parse(der: CertificateDer<'_>) -> Result<Certificate, String> {
        let x509 = parse(&der)?;
        let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| error.to_string());
        let mut usage = Usage::default();
        let mut sans = Vec::new();
        for extension in x509.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    sans.extend(names.general_names.iter().filter_map(san));
                }
                ParsedExtension::ExtendedKeyUsage(found) => {
                    usage.server_auth = found.server_auth;
                    usage.client_auth = found.client_auth;
                }
                ParsedExtension::KeyUsage(found) => usage.key_cert_sign = found.key_cert_sign(),
                ParsedExtension::BasicConstraints(_) => usage.constraints_critical = extension.critical,
                ParsedExtension::SubjectKeyIdentifier(_) => usage.has_subject_key_id = true,
                ParsedExtension::AuthorityKeyIdentifier(_) => usage.has_authority_key_id = true,
                ParsedExtension::ParseError { error } => return Err(format!("an extension: {error}")),
                _ => {}
            }
        }
        Ok(Certificate {
            subject: x509.subject().to_string(),
            sans,
            not_before: time(x509.validity().not_before.timestamp())?,
            not_after: time(x509.validity().not_after.timestamp())?,
            public_key: x509.public_key().subject_public_key.data.to_vec(),
            is_ca: x509.is_ca(),
            usage,
            serial: hex(x509.raw_serial()),
            der: der.clone().into_owned(),
        })
    }

    /// Whether `issuer` signed this certificate and is named in it.
    pub(super) fn is_issued_by(&self, issuer: &Certificate) -> bool {
        let (Ok(leaf), Ok(issuer)) = (parse(&self.der), parse(&issuer.der)) else { return false };
        leaf.issuer().as_raw() == issuer.subject().as_raw()
            && leaf.verify_signature(Some(issuer.public_key())).is_ok()
    }

    /// Whether `key` is the private half of this certificate's public key.
    pub(super) fn belongs_to(&self, key: &KeyPair) -> bool {
        self.public_key == key.der_bytes()
    }

    /// Lower-case hex of SHA-256 over the DER form, as `openssl x509 -fingerprint -sha256` shows it with colons.
    pub(super) fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.der))
    }
}

/// A private key from a PEM file, or `None` where there is no such file.
pub(super) fn read_key(path: &Path) -> Result<Option<KeyPair>, Error> {
    let Some(text) = files::read(path)? else { return Ok(None) };
    let der = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| Error::damaged(path, describe(error, "private key")))?;
    match &der {
        PrivateKeyDer::Pkcs8(pkcs8) => KeyPair::try_from(pkcs8)
            .map(Some)
            .map_err(|error| Error::damaged(path, format!("the private key cannot be loaded: {error}"))),
        _ => Err(Error::Damaged {
            path: path.to_path_buf(),
            reason: "the private key is not in PKCS#8 form (\"BEGIN PRIVATE KEY\")".into(),
            remedy: "convert it with: openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW",
        }),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("there are bytes after the certificate's end".into()),
        Err(error) => Err(format!("it is no X.509 certificate: {error}")),
    }
}

fn san(name: &GeneralName<'_>) -> Option<San> {
    match name {
        GeneralName::DNSName(name) => San::parse(name).ok(),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from)).map(San::Ip).ok()
        }
        _ => None,
    }
}

fn describe(error: pem::Error, what: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("there is no {what} in it"),
        error => format!("the {what} cannot be read: {error}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
