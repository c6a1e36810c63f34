//! The authority on disk: loaded, made at the first run, and replaced only when the operator says so.

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;

use super::certificate::{self, Certificate};
use super::error::Error;
use super::folder::Folder;
use super::issue::{self, KeyType};
use super::manifest::rfc3339;
use super::{Change, Report};

/// An authority that can be verified against, and that can sign if its key is in the folder.
pub(super) struct Authority {
    pub(super) certificate: Certificate,
    /// `None` where the operator keeps the authority's key elsewhere.
    pub(super) issuer: Option<Issuer<'static, KeyPair>>,
}

impl Authority {
    /// The folder's authority; a new one if there is none, or if `replace` says so.
    pub(super) fn ensure(
        folder: &Folder<'_>,
        replace: bool,
        report: &mut Report,
    ) -> Result<Authority, Error> {
        let (certificate_path, key_path) = (folder.certificate("ca"), folder.key("ca"));
        if replace {
            let existed = certificate_path.exists() || key_path.exists();
            let made = Authority::create(folder, None)?;
            report.changes.push(if existed { Change::CaReplaced } else { Change::CaCreated });
            return Ok(made);
        }
        let certificate = Certificate::read(&certificate_path).map_err(never_delete)?;
        let key = certificate::read_key(&key_path).map_err(never_delete)?;
        match (certificate, key) {
            (Some(certificate), key) => Authority::check(folder, certificate, key, report),
            (None, _) if folder.has_leaves()? => Err(Error::authority(
                &certificate_path,
                "the authority's certificate is missing, but certificates are there that it may have signed",
            )),
            // A key alone is what a run leaves that was killed at the very first step.
            (None, key) => {
                let made = Authority::create(folder, key)?;
                report.changes.push(Change::CaCreated);
                Ok(made)
            }
        }
    }

    fn create(folder: &Folder<'_>, key: Option<KeyPair>) -> Result<Authority, Error> {
        let key = match key {
            Some(key) => key,
            None => {
                let algorithm = folder.options.key.unwrap_or(KeyType::P256).algorithm();
                let key = KeyPair::generate_for(algorithm)
                    .map_err(|source| Error::Issue { name: "ca".into(), source })?;
                folder.write_ca_key(&key)?;
                key
            }
        };
        let der = issue::authority(&key, folder.options.now)?;
        folder.write_certificate("ca", &der)?;
        Authority::assemble(folder, der, Some(key))
    }

    fn assemble(
        folder: &Folder<'_>,
        der: CertificateDer<'static>,
        key: Option<KeyPair>,
    ) -> Result<Authority, Error> {
        let path = folder.certificate("ca");
        let issuer = key
            .map(|key| Issuer::from_ca_cert_der(&der, key))
            .transpose()
            .map_err(|error| Error::authority(&path, format!("the authority cannot be used: {error}")))?;
        let certificate = Certificate::parse(der).map_err(|reason| Error::authority(&path, reason))?;
        Ok(Authority { certificate, issuer })
    }

    fn check(
        folder: &Folder<'_>,
        certificate: Certificate,
        key: Option<KeyPair>,
        report: &mut Report,
    ) -> Result<Authority, Error> {
        let path = folder.certificate("ca");
        if !certificate.is_ca {
            return Err(Error::authority(
                &path,
                "the certificate is no authority (basicConstraints CA:TRUE is missing)",
            ));
        }
        if certificate.not_after <= folder.options.now {
            let expired = rfc3339(certificate.not_after);
            return Err(Error::authority(&path, format!("the authority expired at {expired}")));
        }
        if key.as_ref().is_some_and(|key| !certificate.belongs_to(key)) {
            return Err(Error::authority(
                &folder.key("ca"),
                "the authority's private key does not belong to its certificate",
            ));
        }
        let usage = certificate.usage;
        if !(usage.key_cert_sign && usage.constraints_critical && usage.has_subject_key_id) {
            report.warnings.push(format!(
                "{}: strict clients (Python 3.13 and later) refuse an authority without critical basicConstraints, keyUsage keyCertSign and a subject key identifier; --force-ca makes one that has them",
                path.display()
            ));
        }
        Authority::assemble(folder, certificate.der, key)
    }
}

/// For a leaf, deleting a damaged file is a remedy; for the authority it would strand every client.
fn never_delete(error: Error) -> Error {
    match error {
        Error::Damaged { path, reason, .. } => Error::Authority { path, reason },
        other => other,
    }
}
