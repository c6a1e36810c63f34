//! L4: the only cryptography of data at rest. Pure: no files, no clock, no threads.
//!
//! Whoever copies the disk, any number of times, and lacks the key-encryption key learns counts, padded
//! sizes and order, and nothing else. Whoever can also write to the disk cannot make a record open that
//! was not sealed for exactly that place of that store. The holder of the key, root on the live host, and
//! whoever reads the process's memory are not kept out.
//!
//! | What | Under | Bound to |
//! |---|---|---|
//! | root key, in a slot of the keyring | the KEK, from outside ([`key::Kek`]) or from a passphrase ([`slot_key`]) | store, slot |
//! | list of data keys ([`keyring`]) | K_ring, from the root key | the keyring's whole header |
//! | topology, users, manifests, commit row | K_meta, from the root key (key id 0) | store, kind, column family, RocksDB key |
//! | entries and bodies | a data key of the keyring | the same |
//! | the store descriptor (authenticated only) | a key from the root key | its text |
//!
//! Keys and cipher states are in locked memory ([`unlocked_bytes`]), and nowhere else once they are set up.
//!
//! The cipher is XAES-256-GCM everywhere ([`xaes`]); nonces are made in [`nonce`] only. `ring` does the sealing,
//! almost three times as fast as `aes-gcm`. It never clears its keys, so they must stand in locked memory, which does.

pub mod context;
pub mod envelope;
pub mod key;
pub mod key_service;
pub mod keyring;
mod locked;
pub mod multiset;
pub mod nonce;
pub mod padding;
pub mod password;
pub mod record;
pub mod slot_key;
pub mod xaes;

#[cfg(test)]
pub(crate) mod tests;

pub use key::Kek;
pub use locked::unlocked_bytes;
pub use nonce::random;
pub use slot_key::{Credential, Passphrase};
