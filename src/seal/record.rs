//! Sealing and opening of single records: [`Sealer`] and [`Opener`] join envelope, context, nonce and cipher.
//!
//! A record is built in one reused buffer: 28 bytes are left free, the plaintext follows, and sealing turns
//! it into ciphertext where it stands.

use std::sync::Arc;

use super::context::{Aad, Place};
use super::envelope::{HEADER_BYTES, Header, Kind, Malformed, parse};
use super::key::{Dek, RootKey};
use super::nonce::{Counters, NoRandomness, gcm_nonce, random};
use super::xaes::{Forged, PREFIX_BYTES, SubKey, Tag, TooLong, Xaes};

/// A data key (or K_meta) ready for use, with the id by which records name it.
pub struct Key {
    /// 0 is K_meta.
    pub id: u32,
    /// The key, set up.
    pub xaes: Xaes,
}

impl Key {
    /// K_meta, which records name as key 0.
    pub fn meta(root: &RootKey) -> Key {
        Key { id: 0, xaes: Xaes::new(&root.meta()) }
    }

    /// A data key under its id.
    pub fn data(id: u32, dek: &Dek) -> Key {
        Key { id, xaes: Xaes::new(dek.secret()) }
    }
}

/// Seals records under one key; [`Sealer::renew`] gives it a new sub-key for the next commit.
pub struct Sealer {
    key: Arc<Key>,
    store: [u8; 16],
    prefix: [u8; PREFIX_BYTES],
    counters: Counters,
    sub_key: SubKey,
}

impl Sealer {
    /// A sealer with its first prefix.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn new(key: Arc<Key>, store: [u8; 16]) -> Result<Sealer, NoRandomness> {
        let prefix = random()?;
        let sub_key = key.xaes.derive(&prefix);
        Ok(Sealer { key, store, prefix, counters: Counters::new(), sub_key })
    }

    /// Draws a fresh prefix; to be called before each commit.
    ///
    /// # Errors
    /// When the kernel gives no random bytes; the sealer must not be used then.
    pub fn renew(&mut self) -> Result<(), NoRandomness> {
        self.prefix = random()?;
        self.counters = Counters::new();
        self.sub_key = self.key.xaes.derive(&self.prefix);
        Ok(())
    }

    /// Which key it seals under.
    pub fn key_id(&self) -> u32 {
        self.key.id
    }

    /// Seals `record[28..]` in place, fills the header in front of it and appends the tag, which it returns.
    ///
    /// # Errors
    /// When the plaintext is longer than AES-GCM allows.
    pub fn seal(
        &self,
        kind: Kind,
        flags: u8,
        place: Place<'_>,
        record: &mut Vec<u8>,
    ) -> Result<Tag, TooLong> {
        let counter = self.counters.next();
        let header = Header { kind, flags, key_id: self.key.id, prefix: self.prefix, counter };
        let aad = Aad::new(&self.store, &header.fixed(), place);
        let (head, text) = record.split_first_chunk_mut::<HEADER_BYTES>().ok_or(TooLong)?;
        *head = header.to_bytes();
        let tag = self.sub_key.seal(&gcm_nonce(counter), aad.as_bytes(), text)?;
        record.extend_from_slice(&tag);
        Ok(tag)
    }
}

/// Why a record did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// Its bytes are no sealed record.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It names a key that the keyring does not hold.
    #[error("it was sealed under data key {0}, which the keyring does not hold")]
    UnknownKey(u32),
    /// It opens to something else than what belongs at its place.
    #[error("a record of kind {0:?} where another kind belongs")]
    Kind(Kind),
    /// Its tag does not fit.
    #[error("authentication failed: altered, moved, or sealed under another key")]
    Forged,
}

impl From<Forged> for NotOpened {
    fn from(_: Forged) -> NotOpened {
        NotOpened::Forged
    }
}

/// The facts of a record that opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its header.
    pub header: Header,
    /// Its tag, by which another record may name it.
    pub tag: Tag,
}

/// Opens records; remembers the last sub-key, because neighbours were mostly sealed in one commit.
pub struct Opener {
    keys: Vec<Arc<Key>>,
    store: [u8; 16],
    last: Option<(u32, [u8; PREFIX_BYTES], SubKey)>,
}

impl Opener {
    /// An opener for the records of one store; `keys` in any order.
    pub fn new(mut keys: Vec<Arc<Key>>, store: [u8; 16]) -> Opener {
        keys.sort_by_key(|key| key.id);
        Opener { keys, store, last: None }
    }

    /// One more with the same keys.
    pub fn another(&self) -> Opener {
        Opener { keys: self.keys.clone(), store: self.store, last: None }
    }

    /// Opens `record` into `text`, whose former content is dropped.
    ///
    /// # Errors
    /// Each way not to be the record of this kind at this place has its own; `text` is empty then.
    pub fn open(
        &mut self,
        kind: &[Kind],
        place: Place<'_>,
        record: &[u8],
        text: &mut Vec<u8>,
    ) -> Result<Opened, NotOpened> {
        text.clear();
        let (header, sealed, tag) = parse(record)?;
        if !kind.contains(&header.kind) {
            return Err(NotOpened::Kind(header.kind));
        }
        let sub_key = match self.last.take() {
            Some((id, prefix, sub_key)) if id == header.key_id && prefix == header.prefix => sub_key,
            _ => self.key(header.key_id)?.xaes.derive(&header.prefix),
        };
        let (_, _, sub_key) = self.last.insert((header.key_id, header.prefix, sub_key));
        let aad = Aad::new(&self.store, &header.fixed(), place);
        text.extend_from_slice(sealed);
        let opened = sub_key.open(&gcm_nonce(header.counter), aad.as_bytes(), text, &tag);
        if opened.is_err() {
            text.clear();
        }
        opened?;
        Ok(Opened { header, tag })
    }

    fn key(&self, id: u32) -> Result<&Key, NotOpened> {
        let at = self.keys.binary_search_by_key(&id, |key| key.id);
        at.ok().and_then(|at| self.keys.get(at)).map(|key| &**key).ok_or(NotOpened::UnknownKey(id))
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Secret;
    use super::*;

    const STORE: [u8; 16] = [3; 16];
    const PLACE: Place<'_> = Place { family: b'q', key: &[1; 16] };

    fn key(id: u32, byte: u8) -> Arc<Key> {
        Arc::new(Key { id, xaes: Xaes::new(&Secret::take(&mut [byte; 32])) })
    }

    fn sealed(text: &[u8]) -> Vec<u8> {
        let mut record = vec![0; HEADER_BYTES];
        record.extend_from_slice(text);
        Sealer::new(key(7, 1), STORE).unwrap().seal(Kind::Entry, 1, PLACE, &mut record).unwrap();
        record
    }

    fn open(store: [u8; 16], place: Place<'_>, record: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let mut text = vec![1, 2, 3];
        let opened =
            Opener::new(vec![key(8, 2), key(7, 1)], store).open(&[Kind::Entry], place, record, &mut text);
        assert!(opened.is_ok() || text.is_empty());
        opened.map(|_| text)
    }

    #[test]
    fn opens_what_it_sealed_and_hides_it() {
        let record = sealed(b"a readable secret");
        assert!(!record.windows(8).any(|w| w == b"readable"));
        assert_eq!(open(STORE, PLACE, &record), Ok(b"a readable secret".to_vec()));
    }

    #[test]
    fn every_bit_of_the_record_is_authenticated() {
        let record = sealed(b"text");
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut changed = record.clone();
                changed[at] ^= 1 << bit;
                assert!(open(STORE, PLACE, &changed).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn opens_at_no_other_place_and_in_no_other_store() {
        let record = sealed(b"text");
        let moved = [
            (STORE, Place { family: b'b', ..PLACE }),
            (STORE, Place { key: &[2; 16], ..PLACE }),
            (STORE, Place { key: &[1; 15], ..PLACE }),
            (STORE, Place { key: &[1; 17], ..PLACE }),
            ([4; 16], PLACE),
        ];
        for (store, place) in moved {
            assert_eq!(open(store, place, &record), Err(NotOpened::Forged), "{place:?}");
        }
    }

    /// The opener takes any kind and has both keys, so that nothing but the associated data is left to tell.
    #[test]
    fn each_field_of_the_associated_data_is_bound_in_records_of_every_kind() {
        use Kind::*;
        const KINDS: [Kind; 9] =
            [Body, BodyChunk, Entry, Manifest, Commit, Topology, User, Refcount, DeliveryCount];
        let opens = |store: [u8; 16], place: Place<'_>, record: &[u8]| {
            let mut opener = Opener::new(vec![key(8, 2), key(7, 1)], store);
            opener.open(&KINDS, place, record, &mut Vec::new()).map(|opened| opened.header.kind)
        };
        for kind in KINDS {
            let mut record = vec![0; HEADER_BYTES + 20];
            Sealer::new(key(7, 1), STORE).unwrap().seal(kind, 1, PLACE, &mut record).unwrap();
            assert_eq!(opens(STORE, PLACE, &record), Ok(kind));
            let with = |at: usize, byte: u8| {
                let mut changed = record.clone();
                changed[at] = byte;
                opens(STORE, PLACE, &changed)
            };
            for other in KINDS.into_iter().filter(|other| *other != kind) {
                assert_eq!(with(1, other as u8), Err(NotOpened::Forged), "{kind:?} as {other:?}");
            }
            for flags in [0, 2, 3] {
                assert_eq!(with(2, flags), Err(NotOpened::Forged), "{kind:?}, flags {flags}");
            }
            assert_eq!(with(7, 8), Err(NotOpened::Forged), "{kind:?}, key");
            assert!(with(0, 2).is_err() && with(3, 2).is_err(), "{kind:?}, version and suite");
            assert!((8..28).all(|at| with(at, !record[at]) == Err(NotOpened::Forged)), "{kind:?}, nonce");
            let places: [&[u8]; 4] = [&[2; 16], &[1; 15], &[1; 17], &[]];
            for place in
                places.map(|key| Place { key, ..PLACE }).into_iter().chain([Place { family: b'd', ..PLACE }])
            {
                assert_eq!(opens(STORE, place, &record), Err(NotOpened::Forged), "{kind:?}, {place:?}");
            }
            for at in 0..16 {
                let mut store = STORE;
                store[at] ^= 1;
                assert_eq!(opens(store, PLACE, &record), Err(NotOpened::Forged), "{kind:?}, store");
            }
        }
    }

    #[test]
    fn names_a_missing_key_and_a_wrong_kind() {
        let record = sealed(b"text");
        let mut text = Vec::new();
        let mut without = Opener::new(vec![key(8, 2)], STORE);
        assert_eq!(without.open(&[Kind::Entry], PLACE, &record, &mut text), Err(NotOpened::UnknownKey(7)));
        let mut with = Opener::new(vec![key(7, 1)], STORE);
        assert_eq!(with.open(&[Kind::Body], PLACE, &record, &mut text), Err(NotOpened::Kind(Kind::Entry)));
    }

    #[test]
    fn no_two_records_share_a_nonce() {
        let mut sealer = Sealer::new(key(7, 1), STORE).unwrap();
        let mut seen = std::collections::HashSet::new();
        for round in 0..200 {
            if round % 10 == 0 {
                sealer.renew().unwrap();
            }
            let mut record = vec![0; HEADER_BYTES];
            sealer.seal(Kind::Entry, 0, PLACE, &mut record).unwrap();
            assert!(seen.insert(record[8..28].to_vec()));
        }
        assert_eq!(seen.iter().map(|n| &n[..12]).collect::<std::collections::HashSet<_>>().len(), 20);
    }
}
