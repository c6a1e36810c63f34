//! What opens a slot of the keyring: a key, a passphrase and the cost of turning it into one, or a service that keeps a
//! key ([`super::key_service`]).
//! Turning a passphrase takes a second and 256 MiB on purpose; do it where blocking is permitted.

use argon2::{Algorithm, Params, Version};
use zeroize::Zeroizing;

use super::key::Kek;
use super::key_service::{self, KeyService, Service};
use super::keyring::KeyringError;
use super::locked::on_clean_stack;
use super::nonce::random;
use super::password;
use crate::limits::{PASSPHRASE_BYTES_MAX, PASSPHRASE_BYTES_MIN};

/// Argon2id's cost (RFC 9106); stored in the slot, so that it can be raised for new slots only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// Of new slots: 256 MiB, three passes, one lane.
    pub const DEFAULT: Cost = Cost { memory_kib: 256 * 1024, passes: 3, lanes: 1 };
    /// A slot that asks for more is not tried: whoever writes to the disk must not choose what a start costs.
    const MAX: Cost = Cost { memory_kib: 1024 * 1024, passes: 16, lanes: 16 };

    fn is_bearable(self) -> bool {
        self.memory_kib <= Cost::MAX.memory_kib
            && self.passes <= Cost::MAX.passes
            && self.lanes <= Cost::MAX.lanes
    }
}

/// Words that people remember. Cleared on drop, never shown:
/// ```compile_fail
/// fn needs_debug<T: std::fmt::Debug>() {}
/// needs_debug::<sealmq::seal::Passphrase>();
/// ```
/// ```compile_fail
/// fn needs_clone<T: Clone>() {}
/// needs_clone::<sealmq::seal::Passphrase>();
/// ```
pub struct Passphrase(Zeroizing<Vec<u8>>);

/// A passphrase of a length that is not permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a passphrase has {PASSPHRASE_BYTES_MIN} to {PASSPHRASE_BYTES_MAX} bytes")]
pub struct BadLength;

impl Passphrase {
    /// Takes the bytes over.
    ///
    /// # Errors
    /// When there are too few or too many of them.
    pub fn take(bytes: Zeroizing<Vec<u8>>) -> Result<Passphrase, BadLength> {
        let fits = (PASSPHRASE_BYTES_MIN..=PASSPHRASE_BYTES_MAX).contains(&bytes.len());
        if fits { Ok(Passphrase(bytes)) } else { Err(BadLength) }
    }

    /// The key that it stands for under a slot's salt and cost.
    pub(super) fn to_key(&self, salt: &[u8], cost: Cost) -> Result<Kek, KeyringError> {
        if !cost.is_bearable() {
            return Err(KeyringError::Argon2("the slot asks for more than this program grants".into()));
        }
        let failed = |e: argon2::Error| KeyringError::Argon2(e.to_string());
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(failed)?;
        let made = on_clean_stack(|| {
            let mut key = Zeroizing::new([0; 32]);
            let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
            password::derive(algorithm, version, &params, &self.0, salt, key.as_mut_slice())?;
            Ok(Kek::take(&mut key))
        });
        made.map_err(failed)
    }
}

/// What somebody has who may open a keyring.
pub enum Credential {
    /// A key of 32 random bytes.
    Key(Kek),
    /// A passphrase; tried on each slot that was made with one.
    Passphrase(Passphrase),
    /// A service that keeps a key; tried on each slot of its kind.
    Service(Box<dyn KeyService>),
}

impl From<Kek> for Credential {
    fn from(kek: Kek) -> Credential {
        Credential::Key(kek)
    }
}

/// How a slot's key is got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// It is the key.
    Key,
    /// From a passphrase.
    Passphrase,
    /// From a key service; `None`: one that this program does not know, kept as it is.
    External(Option<Service>),
    /// A number that this program does not know; kept as it is.
    Unknown(u8),
}

impl SlotKind {
    pub(super) fn parse(byte: u8) -> SlotKind {
        match byte {
            1 => SlotKind::Key,
            2 => SlotKind::Passphrase,
            3 => SlotKind::External(None),
            other => SlotKind::Unknown(other),
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            SlotKind::Key => 1,
            SlotKind::Passphrase => 2,
            SlotKind::External(_) => 3,
            SlotKind::Unknown(number) => number,
        }
    }

    /// Whether this program, as it was built, can open such a slot.
    pub fn is_usable(self) -> bool {
        match self {
            SlotKind::Key | SlotKind::Passphrase => true,
            SlotKind::External(service) => service.is_some_and(Service::is_built_in),
            SlotKind::Unknown(_) => false,
        }
    }

    /// A word for people.
    pub fn name(self) -> &'static str {
        match self {
            SlotKind::Key => "key",
            SlotKind::Passphrase => "passphrase",
            SlotKind::External(service) => service.map_or("external", Service::name),
            SlotKind::Unknown(_) => "unknown",
        }
    }
}

/// Where a slot's key comes from.
pub(super) enum Origin {
    /// It was given.
    Given,
    /// Made from a passphrase, with this salt and at this cost.
    Passphrase([u8; 16], Cost),
    /// Random, and kept as this blob by a service.
    Service(Vec<u8>),
}

/// The key that a slot is or will be wrapped under, ready.
pub struct SlotKey {
    pub(super) kek: Kek,
    pub(super) origin: Origin,
}

impl SlotKey {
    /// For a new slot; a passphrase gets a salt of its own, a service a random key to keep.
    ///
    /// # Errors
    /// When the kernel gives no random bytes, Argon2id has no memory, or the service does not keep the key.
    pub fn new(credential: Credential, cost: Cost) -> Result<SlotKey, KeyringError> {
        match credential {
            Credential::Key(kek) => Ok(SlotKey { kek, origin: Origin::Given }),
            Credential::Passphrase(passphrase) => {
                let salt = random::<16>()?;
                let kek = passphrase.to_key(&salt, cost)?;
                Ok(SlotKey { kek, origin: Origin::Passphrase(salt, cost) })
            }
            Credential::Service(service) => {
                let kek = Kek::generate()?;
                let blob = key_service::keep(service.as_ref(), &kek)?;
                Ok(SlotKey { kek, origin: Origin::Service(blob) })
            }
        }
    }

    /// The public name of the slot that it opens.
    pub fn slot_id(&self) -> [u8; 16] {
        self.kek.slot_id()
    }

    pub(super) fn kind(&self) -> SlotKind {
        match &self.origin {
            Origin::Given => SlotKind::Key,
            Origin::Passphrase(..) => SlotKind::Passphrase,
            Origin::Service(blob) => SlotKind::External(Service::of_blob(blob)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Result<Passphrase, BadLength> {
        Passphrase::take(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn turns_a_passphrase_into_the_key_of_the_reference_program() {
        // argon2 0~20190702 (Debian): echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1 -r
        let key = passphrase("password").unwrap();
        let cost = Cost { memory_kib: 64 * 1024, passes: 2, lanes: 1 };
        let made = key.to_key(b"somesalt", cost).unwrap();
        let hex: String = made.secret().expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7");
    }

    #[test]
    fn a_slot_cannot_ask_for_any_amount_of_work() {
        let key = passphrase("correct horse").unwrap();
        for cost in [
            Cost { memory_kib: 1024 * 1024 + 1, ..Cost::DEFAULT },
            Cost { passes: 17, ..Cost::DEFAULT },
            Cost { lanes: u32::MAX, ..Cost::DEFAULT },
            Cost { memory_kib: 0, ..Cost::DEFAULT },
            Cost { passes: 0, ..Cost::DEFAULT },
            Cost { lanes: 0, ..Cost::DEFAULT },
        ] {
            assert!(matches!(key.to_key(&[0; 16], cost), Err(KeyringError::Argon2(_))), "{cost:?}");
        }
    }

    #[test]
    fn a_passphrase_is_neither_short_nor_endless() {
        for text in ["", "1234567", &"x".repeat(PASSPHRASE_BYTES_MAX + 1)] {
            assert_eq!(passphrase(text).err(), Some(BadLength), "{} bytes", text.len());
        }
        assert!(passphrase("12345678").is_ok() && passphrase(&"x".repeat(PASSPHRASE_BYTES_MAX)).is_ok());
    }
}
