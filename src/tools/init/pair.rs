//! One leaf with its key: kept while it is good, else reissued under the same authority, and why.

use std::fmt;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use time::OffsetDateTime;

use super::authority::Authority;
use super::certificate::{self, Certificate};
use super::error::Error;
use super::files;
use super::folder::Folder;
use super::issue::{self, KeyType, Leaf, Role};
use super::manifest::rfc3339;
use super::names::San;
use super::{Change, Report};

/// Why a certificate was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There was none.
    NotThere,
    /// Its private key is missing or belongs to another certificate.
    KeyDoesNotFit,
    /// It was not signed by the authority of this folder.
    OtherAuthority,
    /// It lacks these names.
    SansMissing(Vec<San>),
    /// Less than a third of its life is left; it ends at this time.
    Ageing(OffsetDateTime),
    /// Another kind of key was asked for.
    OtherKeyType,
    /// It lacks the purpose (serverAuth, clientAuth) or the identifiers that strict verifiers demand.
    NotStrict,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NotThere => f.write_str("there was none"),
            Reason::KeyDoesNotFit => {
                f.write_str("its private key was missing or belonged to another certificate")
            }
            Reason::OtherAuthority => f.write_str("it was not signed by this folder's authority"),
            Reason::SansMissing(sans) => {
                let names: Vec<_> = sans.iter().map(San::to_string).collect();
                write!(f, "it lacked {}", names.join(", "))
            }
            Reason::Ageing(end) => {
                write!(f, "less than a third of its life was left (until {})", rfc3339(*end))
            }
            Reason::OtherKeyType => f.write_str("another kind of key was asked for"),
            Reason::NotStrict => f.write_str("it lacked extensions that strict clients demand"),
        }
    }
}

/// A certificate and key that belong together.
pub(super) struct Pair {
    pub(super) certificate: Certificate,
    pub(super) key: KeyPair,
}

/// Who a pair is for.
pub(super) struct Holder<'a> {
    pub(super) role: Role,
    pub(super) name: &'a str,
    /// Names that the certificate must carry.
    pub(super) sans: &'a [San],
}

/// Keeps or issues the pair of `holder`.
pub(super) fn ensure(
    folder: &Folder<'_>,
    authority: &Authority,
    holder: &Holder<'_>,
    report: &mut Report,
) -> Result<Pair, Error> {
    let certificate = Certificate::read(&folder.certificate(holder.name))?;
    let key_path = folder.key(holder.name);
    let key = certificate::read_key(&key_path)?;
    let reason = judge(folder, authority, holder, certificate.as_ref(), key.as_ref());
    match (reason, certificate, key) {
        (None, Some(certificate), Some(key)) => {
            if let Some(mode) = folder.options.key_mode
                && files::set_mode(&key_path, mode)?
            {
                report.changes.push(Change::ModeChanged(key_path, mode));
            }
            Ok(Pair { certificate, key })
        }
        // An authority whose key is kept elsewhere cannot renew here; what still works goes on working.
        (Some(Reason::Ageing(end)), Some(certificate), Some(key))
            if authority.issuer.is_none() && end > folder.options.now =>
        {
            report.warnings.push(format!(
                "{} expires at {} and cannot be reissued here: {} is missing",
                folder.certificate(holder.name).display(),
                rfc3339(end),
                folder.key("ca").display()
            ));
            Ok(Pair { certificate, key })
        }
        (reason, old, _) => {
            let pair = issue(folder, authority, holder, old.as_ref())?;
            let reason = reason.unwrap_or(Reason::NotThere);
            report.changes.push(Change::Issued { name: holder.name.to_owned(), reason });
            Ok(pair)
        }
    }
}

/// Why the pair on disk cannot stay; `None` if it can.
fn judge(
    folder: &Folder<'_>,
    authority: &Authority,
    holder: &Holder<'_>,
    certificate: Option<&Certificate>,
    key: Option<&KeyPair>,
) -> Option<Reason> {
    let Some(certificate) = certificate else { return Some(Reason::NotThere) };
    let Some(key) = key.filter(|key| certificate.belongs_to(key)) else { return Some(Reason::KeyDoesNotFit) };
    if !certificate.is_issued_by(&authority.certificate) {
        return Some(Reason::OtherAuthority);
    }
    let asked = folder.options.key.map(KeyType::algorithm);
    if asked.is_some_and(|algorithm| !key.is_compatible(algorithm)) {
        return Some(Reason::OtherKeyType);
    }
    let usage = certificate.usage;
    let purpose = match holder.role {
        Role::Server => usage.server_auth,
        Role::Client => usage.client_auth,
    };
    if !purpose || !usage.has_authority_key_id || certificate.is_ca {
        return Some(Reason::NotStrict);
    }
    let missing: Vec<San> =
        holder.sans.iter().filter(|san| !certificate.sans.contains(san)).cloned().collect();
    if !missing.is_empty() {
        return Some(Reason::SansMissing(missing));
    }
    let life = certificate.not_after - certificate.not_before;
    let left = certificate.not_after - folder.options.now;
    (left * 3 < life).then_some(Reason::Ageing(certificate.not_after))
}

fn issue(
    folder: &Folder<'_>,
    authority: &Authority,
    holder: &Holder<'_>,
    old: Option<&Certificate>,
) -> Result<Pair, Error> {
    let Some(issuer) = &authority.issuer else {
        let reason = format!(
            "the authority's private key is missing, and the certificate {:?} has to be issued",
            holder.name
        );
        return Err(Error::authority(&folder.key("ca"), reason));
    };
    let mut sans = holder.sans.to_vec();
    // A renewal must not take away a name that somebody connects to.
    for san in old.iter().flat_map(|old| &old.sans) {
        if !sans.contains(san) {
            sans.push(san.clone());
        }
    }
    let options = folder.options;
    let (not_before, not_after) =
        issue::leaf_validity(options.now, options.days, authority.certificate.not_after);
    let leaf = Leaf { role: holder.role, common_name: holder.name, sans: &sans, not_before, not_after };
    let key = KeyPair::generate_for(key_type(folder, old))
        .map_err(|source| Error::Issue { name: holder.name.to_owned(), source })?;
    let der = issue::leaf(&leaf, &key, issuer)?;
    // The key first: a run that is killed in between leaves a pair that does not fit, which the next run sees.
    folder.write_key(holder.name, &key)?;
    folder.write_certificate(holder.name, &der)?;
    let path = folder.certificate(holder.name);
    let certificate = Certificate::parse(der).map_err(|reason| Error::damaged(&path, reason))?;
    Ok(Pair { certificate, key })
}

/// The kind that was asked for, else the kind of the certificate that is replaced, else P-256.
fn key_type(folder: &Folder<'_>, old: Option<&Certificate>) -> &'static rcgen::SignatureAlgorithm {
    /// Length of an uncompressed P-384 point: 0x04 and two coordinates of 48 bytes (SEC 1 section 2.3.3).
    const P384_POINT_BYTES: usize = 97;
    match (folder.options.key, old) {
        (Some(key), _) => key.algorithm(),
        (None, Some(old)) if old.public_key.len() == P384_POINT_BYTES => &PKCS_ECDSA_P384_SHA384,
        (None, _) => &PKCS_ECDSA_P256_SHA256,
    }
}
