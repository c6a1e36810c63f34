//! Issuing: the authority and the leaves, with the extensions that strict verifiers demand (Python 3.13,
//! `openssl verify -x509_strict`, Go, rustls). In memory only; nothing is read or written here.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType, SerialNumber,
    SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::error::Error;
use super::names::San;

/// How long an authority lasts, in days: ten years, so that clients need its certificate once.
pub(super) const CA_DAYS: i64 = 3650;

/// Certificates start this long before they are issued, for clients whose clock is behind.
const BACKDATE: Duration = Duration::hours(1);

/// 128 random bits: unguessable (CA/Browser Forum BR 7.1) and within the 20 octets of RFC 5280 section 4.1.2.2.
const SERIAL_BYTES: usize = 16;

/// Which key a new certificate gets. RSA cannot be generated with ring; Ed25519 keys that ring writes are
/// refused by OpenSSL 3.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on NIST P-256, which every client of the last ten years knows.
    P256,
    /// ECDSA on NIST P-384.
    P384,
}

impl KeyType {
    pub(super) fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            KeyType::P256 => &PKCS_ECDSA_P256_SHA256,
            KeyType::P384 => &PKCS_ECDSA_P384_SHA384,
        }
    }
}

/// What a leaf may be used for: one purpose per certificate, so that a stolen client key serves nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// What goes into a leaf, apart from its key.
pub(super) struct Leaf<'a> {
    pub(super) role: Role,
    pub(super) common_name: &'a str,
    pub(super) sans: &'a [San],
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

/// A self-signed authority for `key`, valid from `now` for [`CA_DAYS`]. Each has a name of its own:
/// with two authorities of one name in a trust store, OpenSSL may try the wrong one.
pub(super) fn authority(key: &KeyPair, now: OffsetDateTime) -> Result<CertificateDer<'static>, Error> {
    let serial = random_serial()?;
    let tag: String = serial.iter().skip(SERIAL_BYTES - 4).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("SealMQ CA {tag}");
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(&name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params.not_before, params.not_after) = (now - BACKDATE, now + Duration::days(CA_DAYS));
    // Leaves only: an authority below this one could not sign anything that is trusted.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(key).map_err(|source| Error::Issue { name, source })?;
    Ok(certificate.into())
}

/// A leaf for `key`, signed by `issuer`.
pub(super) fn leaf(
    leaf: &Leaf<'_>,
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<CertificateDer<'static>, Error> {
    let refused = |source| Error::Issue { name: leaf.common_name.to_owned(), source };
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(leaf.common_name);
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
    (params.not_before, params.not_after) = (leaf.not_before, leaf.not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    // Enough for ECDSA; keyEncipherment is for RSA key exchange, which no suite of ours has.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match leaf.role {
        Role::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Role::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    for san in leaf.sans {
        params.subject_alt_names.push(match san {
            San::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(refused)?),
            San::Ip(ip) => SanType::IpAddress(*ip),
        });
    }
    Ok(params.signed_by(key, issuer).map_err(refused)?.into())
}

/// When a leaf issued at `now` for `days` starts and ends. It never outlives its authority.
pub(super) fn leaf_validity(
    now: OffsetDateTime,
    days: u32,
    ca_not_after: OffsetDateTime,
) -> (OffsetDateTime, OffsetDateTime) {
    (now - BACKDATE, (now + Duration::days(i64::from(days))).min(ca_not_after))
}

fn distinguished(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "SealMQ");
    name.push(DnType::CommonName, common_name);
    name
}

/// Positive and of full length: the top bit is the sign in DER, and a leading zero would shorten it.
fn random_serial() -> Result<[u8; SERIAL_BYTES], Error> {
    let mut serial = [0; SERIAL_BYTES];
    getrandom::fill(&mut serial)?;
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(serial)
}
