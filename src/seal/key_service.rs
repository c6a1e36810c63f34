//! Keys that stay with somebody else: a token, a key server. A slot's own key is random; the service seals it under a
//! key that never leaves it, and what it gives back lies in the keyring's extension as the slot's blob.
//!
//! ```text
//! 0 service u8 (1 PKCS#11, 2 Vault) | 1 version u8 (1) | 2.. what the service gave
//! ```
//!
//! The keyring's checks hold for such a slot as for any other: its check value tells a wrong key from damage, and its
//! wrapping is bound to the store. The service is asked at the start and for a new slot, and not in between.

use super::key::Kek;
use crate::limits::KEY_SERVICE_BLOB_BYTES_MAX;

const VERSION: u8 = 1;
const LABEL: &[u8] = b"sealmq/v1/kek";

/// Who keeps a slot's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A token with a PKCS#11 module.
    Pkcs11,
    /// The transit engine of Vault, or of OpenBao.
    Vault,
}

impl Service {
    /// The one that a slot's blob is for, if this program knows it.
    pub(super) fn of_blob(blob: &[u8]) -> Option<Service> {
        match blob {
            [1, VERSION, ..] => Some(Service::Pkcs11),
            [2, VERSION, ..] => Some(Service::Vault),
            _ => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Service::Pkcs11 => 1,
            Service::Vault => 2,
        }
    }

    /// A word for tables.
    pub fn name(self) -> &'static str {
        match self {
            Service::Pkcs11 => "pkcs11",
            Service::Vault => "vault",
        }
    }

    /// A name for sentences.
    pub fn title(self) -> &'static str {
        match self {
            Service::Pkcs11 => "the PKCS#11 token",
            Service::Vault => "Vault",
        }
    }

    /// Whether this program was built with it.
    pub fn is_built_in(self) -> bool {
        match self {
            Service::Pkcs11 => cfg!(feature = "pkcs11"),
            Service::Vault => cfg!(feature = "vault"),
        }
    }
}

/// Seals and opens slots' keys under a key of its own.
pub trait KeyService: Send + Sync {
    /// Which one it is.
    fn service(&self) -> Service;

    /// Seals a key; `context` is authenticated with it.
    ///
    /// # Errors
    /// When the service cannot be asked, or refuses.
    fn seal(&self, key: &[u8; 32], context: &[u8]) -> Result<Vec<u8>, ServiceError>;

    /// Opens what [`KeyService::seal`] gave; `None` when that was sealed under another key or for another context.
    ///
    /// # Errors
    /// When the service cannot be asked, or refuses.
    fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Option<Kek>, ServiceError>;
}

/// Why a service does not give a key. No secrets in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ServiceError {
    /// `E_...`
    pub code: &'static str,
    /// What is wrong, and where.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
    /// It may pass by itself: the service was not reached.
    pub is_passing: bool,
}

/// What binds a blob to its slot, and tells it from whatever else is sealed under the service's key.
fn context(slot_id: &[u8; 16]) -> Vec<u8> {
    [LABEL, slot_id].concat()
}

/// Gives a new slot's key to the service, and shows that it can be had back.
pub(super) fn keep(service: &dyn KeyService, kek: &Kek) -> Result<Vec<u8>, ServiceError> {
    let unfit = |reason: String| ServiceError {
        code: "E_KEY_SERVICE",
        reason: format!("{}: {reason}", service.service().title()),
        remedy: "look at the service and its key; nothing was changed",
        is_passing: false,
    };
    let context = context(&kek.slot_id());
    let sealed = service.seal(kek.secret().expose(), &context)?;
    if sealed.len() > KEY_SERVICE_BLOB_BYTES_MAX {
        return Err(unfit(format!("it gave {} bytes for a key of 32", sealed.len())));
    }
    match service.open(&sealed, &context)? {
        Some(back) if back.is_same_as(kek) => {
            Ok([&[service.service().number(), VERSION], &sealed[..]].concat())
        }
        _ => Err(unfit("a key that was just sealed did not come back".into())),
    }
}

/// Shows that the service keeps keys and gives them back.
///
/// # Errors
/// When the service cannot be asked, or refuses; `E_KEY_SERVICE` when another key comes back.
pub fn probe(service: &dyn KeyService) -> Result<(), ServiceError> {
    let kek = Kek::generate().map_err(|e| ServiceError {
        code: "E_SYSTEM",
        reason: e.to_string(),
        remedy: "check the limits of the process and its system call filter",
        is_passing: false,
    })?;
    keep(service, &kek).map(drop)
}

/// Has the service open a slot's blob.
pub(super) fn open(
    service: &dyn KeyService,
    blob: &[u8],
    slot_id: &[u8; 16],
) -> Result<Option<Kek>, ServiceError> {
    service.open(blob.get(2..).unwrap_or_default(), &context(slot_id))
}
