//! The keyring's byte format: bytes to struct and back. Reading and writing files is the store's.
//!
//! ```text
//! 0 "SMQKRNG1" | 8 format u16 | 10 suite u16 | 12 store uuid 16 | 28 generation u64 | 36 slots u16 | 38 slot size u16
//! slots, 256 each | u32 length, extension | commitment 32 | nonce 24 | u32 length, ciphertext, tag 16 | SHA-256 32
//! ```
//!
//! The trailing SHA-256 tells rot from a wrong key without any key. The commitment ties the ciphertext to
//! one root key, which GCM alone does not.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::key::{Dek, Kek, RootKey};
use super::key_service::{self, Service, ServiceError};
use super::locked::on_clean_stack;
use super::nonce::{NoRandomness, random};
use super::slot_key::{Cost, Credential, Origin, SlotKey, SlotKind};
use super::xaes::{TAG_BYTES, TooLong, Xaes};

/// Most slots that a keyring may have.
pub const SLOTS_MAX: usize = 8;

const MAGIC: &[u8; 8] = b"SMQKRNG1";
const FORMAT: u16 = 1;
const SUITE: u16 = 1;
const SLOT_BYTES: usize = 256;
const ENTRY_BYTES: usize = 64;
const BODY_STEP_BYTES: usize = 4096;
/// Where a slot names its part of the extension: offset and length, u16 each.
const EXTENSION_PLACE: usize = 152;
const SLOT_LABEL: &[u8] = b"sealmq/v1/slot";

/// State of a slot that is in use; others are reserved.
const SLOT_ACTIVE: u8 = 1;

/// One wrapping of the root key. Kept as its bytes, so that slots of a type that this program does not know yet
/// pass through unchanged.
#[derive(Clone, PartialEq, Eq)]
pub struct Slot {
    /// Without the place of its part of the extension, which is decided when the keyring is written.
    bytes: [u8; SLOT_BYTES],
    /// Its part of the extension: what a key service needs to give its key.
    blob: Vec<u8>,
}

/// A data key with its facts.
pub struct KeyEntry {
    /// How records name it; never 0, never used twice.
    pub key_id: u32,
    /// 1: an epoch's data key. 2: a queue's own key. 3: one for records that were sealed once more.
    pub class: u8,
    /// 1: in use, 2: only opens.
    pub state: u8,
    /// When it was made, Unix milliseconds.
    pub created_ms: u64,
    /// When it stopped sealing, Unix milliseconds; 0 while it seals.
    pub retired_ms: u64,
    /// The queue it belongs to, or 0.
    pub scope: u64,
    /// The key.
    pub key: Dek,
}

/// All keys of a store, open.
pub struct Keyring {
    /// The store they belong to.
    pub store: [u8; 16],
    /// Rises by one with each write.
    pub generation: u64,
    /// Who can open it.
    pub slots: Vec<Slot>,
    /// The root key.
    pub root: RootKey,
    /// The data keys.
    pub keys: Vec<KeyEntry>,
    /// The slot by which it was opened, or with which it was made.
    pub opened_by: [u8; 16],
}

/// A keyring whose bytes hold together, not opened yet.
pub struct SealedKeyring {
    bytes: Vec<u8>,
    /// The store it belongs to.
    pub store: [u8; 16],
    /// Rises by one with each write.
    pub generation: u64,
    /// Who can open it, as its header says.
    pub slots: Vec<Slot>,
    commitment: [u8; 32],
    nonce: [u8; 24],
    aad_len: usize,
    body_len: usize,
}

/// Why a keyring does not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// Bytes were lost or changed.
    #[error("the keyring is damaged: {0}")]
    Damaged(&'static str),
    /// Written by another program or a later version of this one.
    #[error("the keyring has format {format} and suite {suite}; this program knows 1 and 1")]
    Unknown {
        /// The format number found.
        format: u16,
        /// The suite number found.
        suite: u16,
    },
    /// No slot fits the key or the passphrase.
    #[error("it fits no slot (tried: {tried}; the slots: {slots})")]
    WrongKek {
        /// The id of the key that was tried, hex; or how many slots a passphrase was tried on.
        tried: String,
        /// The ids of the slots, hex.
        slots: String,
    },
    /// A passphrase cannot be turned into a key.
    #[error("Argon2id: {0}")]
    Argon2(String),
    /// The service that keeps a slot's key does not give it.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Nothing can be sealed now.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// More data keys than one ciphertext may hold.
    #[error("the keyring is too long to be sealed")]
    TooLong(#[from] TooLong),
}

impl Slot {
    /// Wraps the root key.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn wrap(key: &SlotKey, store: &[u8; 16], root: &RootKey) -> Result<Slot, KeyringError> {
        let (kek, mut slot) = (&key.kek, Slot { bytes: [0; SLOT_BYTES], blob: Vec::new() });
        slot.put(0, &[key.kind().number(), SLOT_ACTIVE]);
        match &key.origin {
            Origin::Given => {}
            Origin::Passphrase(salt, cost) => {
                slot.put(52, &cost.memory_kib.to_be_bytes());
                slot.put(56, &cost.passes.to_be_bytes());
                slot.put(60, &cost.lanes.to_be_bytes());
                slot.put(64, salt);
            }
            Origin::Service(blob) => slot.blob = blob.clone(),
        }
        slot.put(4, &kek.slot_id());
        slot.put(20, &kek.check_value(store));
        let nonce = random::<24>()?;
        slot.put(80, &nonce);
        on_clean_stack(|| {
            let mut wrapped = Zeroizing::new(*root.secret().expose());
            let tag = Xaes::new(kek.secret()).seal(&nonce, &slot.aad(store), wrapped.as_mut_slice())?;
            slot.put(104, wrapped.as_slice());
            slot.put(136, &tag);
            Ok::<_, KeyringError>(())
        })?;
        Ok(slot)
    }

    /// Its public name.
    pub fn id(&self) -> [u8; 16] {
        self.take(4)
    }

    /// How its key is got.
    pub fn kind(&self) -> SlotKind {
        let [kind] = self.take(0);
        match SlotKind::parse(kind) {
            SlotKind::External(_) => SlotKind::External(Service::of_blob(&self.blob)),
            other => other,
        }
    }

    /// Whether it may be used for anything but opening.
    pub fn is_active(&self) -> bool {
        self.take(1) == [SLOT_ACTIVE]
    }

    /// What a passphrase costs here; `None` for other slots.
    pub fn cost(&self) -> Option<Cost> {
        let [memory_kib, passes, lanes] =
            [self.take(52), self.take(56), self.take(60)].map(u32::from_be_bytes);
        (self.kind() == SlotKind::Passphrase).then_some(Cost { memory_kib, passes, lanes })
    }

    /// The key that a credential gives for this slot; `None` when it cannot be this slot's.
    fn key_of(&self, credential: &Credential, store: &[u8; 16]) -> Option<Result<RootKey, KeyringError>> {
        match (credential, self.kind()) {
            (Credential::Key(kek), SlotKind::Key) => self.unwrap_root(kek, store),
            (Credential::Passphrase(passphrase), SlotKind::Passphrase) => {
                let made = passphrase.to_key(&self.take::<16>(64), self.cost()?);
                made.map_or_else(|e| Some(Err(e)), |kek| self.unwrap_root(&kek, store))
            }
            (Credential::Service(service), SlotKind::External(Some(kept_by)))
                if service.service() == kept_by =>
            {
                match key_service::open(service.as_ref(), &self.blob, &self.id()) {
                    Ok(kek) => self.unwrap_root(&kek?, store),
                    Err(e) => Some(Err(e.into())),
                }
            }
            _ => None,
        }
    }

    fn unwrap_root(&self, kek: &Kek, store: &[u8; 16]) -> Option<Result<RootKey, KeyringError>> {
        let fits = kek.matches(store, &self.take(20));
        let unwrap = || {
            let mut root = Zeroizing::new(self.take::<32>(104));
            Xaes::new(kek.secret())
                .open(&self.take(80), &self.aad(store), root.as_mut_slice(), &self.take(136))
                .map_err(|_| KeyringError::Damaged("the slot's key fits, yet its root key does not open"))?;
            Ok(RootKey::take(&mut root))
        };
        fits.then(|| on_clean_stack(unwrap))
    }

    /// Generation, slot count and slot state are left out, so that other slots stay valid when those change;
    /// the body's associated data covers them.
    fn aad(&self, store: &[u8; 16]) -> Vec<u8> {
        let mut aad = SLOT_LABEL.to_vec();
        aad.extend_from_slice(&identity(store));
        aad.extend_from_slice(&self.take::<1>(0));
        aad.extend_from_slice(&self.take::<76>(4));
        aad
    }

    /// With its part of the extension at `offset`.
    fn placed(&self, offset: usize) -> Result<Slot, TooLong> {
        let mut slot = self.clone();
        if !self.blob.is_empty() {
            let place = u16::try_from(offset).and_then(|at| Ok([at, u16::try_from(self.blob.len())?]));
            let [offset, len] = place.map_err(|_| TooLong)?;
            slot.put(EXTENSION_PLACE, &offset.to_be_bytes());
            slot.put(EXTENSION_PLACE + 2, &len.to_be_bytes());
        }
        Ok(slot)
    }

    /// Takes its part off the front of the extension. The parts lie there in the order of the slots, without gaps.
    fn fetch(&mut self, extension: &mut Cursor<'_>, offset: usize) -> Result<(), KeyringError> {
        let [at, len] = [self.take(EXTENSION_PLACE), self.take(EXTENSION_PLACE + 2)].map(u16::from_be_bytes);
        if usize::from(at) != if len == 0 { 0 } else { offset } {
            return Err(KeyringError::Damaged("its slots are not as the format says"));
        }
        self.blob = extension.take(len.into())?.to_vec();
        self.put(EXTENSION_PLACE, &[0; 4]);
        Ok(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.iter_mut().zip(self.bytes.iter().skip(at)).for_each(|(to, from)| *to = *from);
        bytes
    }
}

impl Keyring {
    /// A new store's keyring: one slot, no data keys, generation 1.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn create(key: &SlotKey, store: [u8; 16]) -> Result<Keyring, KeyringError> {
        let root = RootKey::generate()?;
        let slots = vec![Slot::wrap(key, &store, &root)?];
        let (keys, opened_by) = (Vec::new(), key.slot_id());
        Ok(Keyring { store, generation: 1, slots, root, keys, opened_by })
    }

    /// The bytes to be written. Each call seals under a fresh nonce.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn encode(&self) -> Result<Vec<u8>, KeyringError> {
        let mut bytes = identity(&self.store).to_vec();
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&(self.slots.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&(SLOT_BYTES as u16).to_be_bytes());
        let mut extension = Vec::new();
        for slot in &self.slots {
            bytes.extend_from_slice(&slot.placed(extension.len())?.bytes);
            extension.extend_from_slice(&slot.blob);
        }
        bytes.extend_from_slice(&(extension.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&extension);
        bytes.extend_from_slice(&self.root.commitment(&self.store));
        let nonce = random::<24>()?;
        bytes.extend_from_slice(&nonce);
        let mut body = on_clean_stack(|| self.body());
        bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
        let tag = Xaes::new(&self.root.ring()).seal(&nonce, &bytes, &mut body)?;
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&tag);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        Ok(bytes)
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        let len = (4 + self.keys.len() * ENTRY_BYTES).next_multiple_of(BODY_STEP_BYTES);
        let mut body = Zeroizing::new(Vec::with_capacity(len));
        body.extend_from_slice(&(self.keys.len() as u32).to_be_bytes());
        for entry in &self.keys {
            body.extend_from_slice(&entry.key_id.to_be_bytes());
            body.extend_from_slice(&[entry.class, entry.state, 0, 0]);
            for number in [entry.created_ms, entry.retired_ms, entry.scope] {
                body.extend_from_slice(&number.to_be_bytes());
            }
            body.extend_from_slice(entry.key.secret().expose());
        }
        body.resize(len, 0);
        body
    }
}

impl SealedKeyring {
    /// Checks that the bytes hold together; needs no key.
    ///
    /// # Errors
    /// [`KeyringError::Damaged`] or [`KeyringError::Unknown`].
    pub fn parse(bytes: Vec<u8>) -> Result<SealedKeyring, KeyringError> {
        let damaged = KeyringError::Damaged;
        let (content, digest) = bytes.split_last_chunk::<32>().ok_or(damaged("it is too short"))?;
        let mut cursor = Cursor(content);
        if cursor.array::<8>()? != *MAGIC {
            return Err(damaged("it does not begin as a keyring"));
        }
        let (format, suite) = (cursor.u16()?, cursor.u16()?);
        if Sha256::digest(content)[..] != digest[..] {
            return Err(damaged("its checksum does not fit"));
        }
        if (format, suite) != (FORMAT, SUITE) {
            return Err(KeyringError::Unknown { format, suite });
        }
        let (store, generation) = (cursor.array::<16>()?, u64::from_be_bytes(cursor.array()?));
        let (slot_count, slot_bytes) = (cursor.u16()? as usize, cursor.u16()? as usize);
        if !(1..=SLOTS_MAX).contains(&slot_count) || slot_bytes != SLOT_BYTES {
            return Err(damaged("its slots are not as the format says"));
        }
        let slot = |bytes| Slot { bytes, blob: Vec::new() };
        let slots: Result<Vec<Slot>, _> = (0..slot_count).map(|_| cursor.array().map(slot)).collect();
        let mut slots = slots?;
        let extension_len = cursor.u32()?;
        let mut extension = Cursor(cursor.take(extension_len)?);
        for slot in &mut slots {
            let offset = extension_len - extension.0.len();
            slot.fetch(&mut extension, offset)?;
        }
        if !extension.0.is_empty() {
            return Err(damaged("its slots are not as the format says"));
        }
        let (commitment, nonce, body_len) = (cursor.array()?, cursor.array()?, cursor.u32()?);
        let aad_len = content.len() - cursor.0.len();
        if cursor.0.len() != body_len.saturating_add(TAG_BYTES) {
            return Err(damaged("its list of keys has the wrong length"));
        }
        Ok(SealedKeyring { store, generation, slots, commitment, nonce, aad_len, body_len, bytes })
    }

    /// Opens it. A passphrase is tried on each slot that was made with one, a second each.
    ///
    /// # Errors
    /// [`KeyringError::WrongKek`] when no slot fits, [`KeyringError::Argon2`] or [`KeyringError::Service`] when none
    /// fits and one could not be tried, [`KeyringError::Damaged`] when one fits and the rest does not.
    pub fn unlock(self, credential: &Credential) -> Result<Keyring, KeyringError> {
        let (mut not_tried, mut found) = (None, None);
        for slot in &self.slots {
            match slot.key_of(credential, &self.store) {
                None => {}
                Some(Err(e @ (KeyringError::Argon2(_) | KeyringError::Service(_)))) => not_tried = Some(e),
                Some(root) => {
                    found = Some((slot.id(), root?));
                    break;
                }
            }
        }
        let Some((opened_by, root)) = found else {
            return Err(not_tried.unwrap_or_else(|| self.wrong_kek(credential)));
        };
        let keys = self.open_body(&root)?;
        let SealedKeyring { store, generation, slots, .. } = self;
        Ok(Keyring { store, generation, slots, root, keys, opened_by })
    }

    fn wrong_kek(&self, credential: &Credential) -> KeyringError {
        let name = |slot: &Slot| format!("{} {}", slot.kind().name(), hex(&slot.id()));
        let slots: Vec<String> = self.slots.iter().map(name).collect();
        let count = |kind| self.slots.iter().filter(|slot| slot.kind() == kind).count();
        let tried = match credential {
            Credential::Key(kek) => format!("key {}", hex(&kek.slot_id())),
            Credential::Passphrase(_) => format!("a passphrase on {} slots", count(SlotKind::Passphrase)),
            Credential::Service(service) => {
                let service = service.service();
                let count = count(SlotKind::External(Some(service)));
                format!("the key in {} on {count} slots", service.title())
            }
        };
        KeyringError::WrongKek { tried, slots: slots.join(", ") }
    }

    /// Checks that what was just written can be opened again: its list by the root key, and, where the key of a new
    /// slot is given, that slot by that key.
    ///
    /// # Errors
    /// [`KeyringError::Damaged`].
    pub fn check(&self, root: &RootKey, new: Option<&SlotKey>) -> Result<(), KeyringError> {
        self.open_body(root)?;
        let Some(key) = new else { return Ok(()) };
        let slot = self.slots.iter().find(|slot| slot.id() == key.slot_id());
        match slot.and_then(|slot| slot.unwrap_root(&key.kek, &self.store)) {
            Some(Ok(found)) if root.is_same_as(&found) => Ok(()),
            _ => Err(KeyringError::Damaged("its new slot does not open")),
        }
    }

    fn open_body(&self, root: &RootKey) -> Result<Vec<KeyEntry>, KeyringError> {
        if !root.is_committed_by(&self.store, &self.commitment) {
            return Err(KeyringError::Damaged("its commitment is another root key's"));
        }
        let cut_off = || KeyringError::Damaged("it is cut off");
        let (aad, rest) = self.bytes.split_at_checked(self.aad_len).ok_or_else(cut_off)?;
        let (body, rest) = rest.split_at_checked(self.body_len).ok_or_else(cut_off)?;
        let tag = rest.first_chunk::<TAG_BYTES>().ok_or_else(cut_off)?;
        on_clean_stack(|| {
            let mut body = Zeroizing::new(body.to_vec());
            Xaes::new(&root.ring())
                .open(&self.nonce, aad, &mut body, tag)
                .map_err(|_| KeyringError::Damaged("its list of keys does not open"))?;
            parse_body(&body)
        })
    }
}

fn parse_body(body: &[u8]) -> Result<Vec<KeyEntry>, KeyringError> {
    let mut cursor = Cursor(body);
    let count = cursor.u32()?;
    let (mut keys, mut ids) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let key_id = cursor.u32()? as u32;
        let [class, state, _, _] = cursor.array()?;
        let [created_ms, retired_ms, scope] =
            [cursor.array()?, cursor.array()?, cursor.array()?].map(u64::from_be_bytes);
        let key = Dek::take(&mut cursor.array()?);
        if key_id == 0 || !ids.insert(key_id) {
            return Err(KeyringError::Damaged("two of its keys have one id"));
        }
        keys.push(KeyEntry { key_id, class, state, created_ms, retired_ms, scope, key });
    }
    Ok(keys)
}

/// Bytes 0..28 of a keyring: magic, format, suite, store.
fn identity(store: &[u8; 16]) -> [u8; 28] {
    let mut bytes = [0; 28];
    let fields = MAGIC.iter().copied().chain(FORMAT.to_be_bytes()).chain(SUITE.to_be_bytes()).chain(*store);
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

/// Bytes as lower-case hex digits, for ids.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes fields off the front of bytes; running short is damage.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], KeyringError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(KeyringError::Damaged("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], KeyringError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(KeyringError::Damaged("it is cut off"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, KeyringError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<usize, KeyringError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_service::KeyService;
    use super::super::slot_key::Passphrase;
    use super::*;

    const STORE: [u8; 16] = *b"0123456789abcdef";

    const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };

    fn kek(byte: u8) -> Kek {
        Kek::take(&mut [byte; 32])
    }

    fn slot_key(byte: u8) -> SlotKey {
        SlotKey::new(kek(byte).into(), CHEAP).unwrap()
    }

    fn passphrase(text: &str) -> Credential {
        Credential::Passphrase(Passphrase::take(Zeroizing::new(text.as_bytes().to_vec())).unwrap())
    }

    /// A token whose key has this byte; 99 is one that is not plugged in.
    struct Token(u8);

    impl KeyService for Token {
        fn service(&self) -> Service {
            Service::Pkcs11
        }

        fn seal(&self, key: &[u8; 32], context: &[u8]) -> Result<Vec<u8>, ServiceError> {
            let (nonce, mut sealed) = ([9; 24], key.to_vec());
            let tag = Xaes::new(kek(self.0).secret()).seal(&nonce, context, &mut sealed).unwrap();
            Ok([&[0; 12], &sealed[..], &tag].concat())
        }

        fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Option<Kek>, ServiceError> {
            if self.0 == 99 {
                let (reason, is_passing) = ("not plugged in".into(), true);
                return Err(ServiceError { code: "E_TEST", reason, remedy: "plug it in", is_passing });
            }
            let mut key: [u8; 32] = at(sealed, 12);
            let key_of_the_token = Xaes::new(kek(self.0).secret());
            let opened = key_of_the_token.open(&[9; 24], context, &mut key, &at(sealed, 44));
            Ok(opened.is_ok().then(|| Kek::take(&mut key)))
        }
    }

    fn kept_key(byte: u8) -> SlotKey {
        SlotKey::new(Credential::Service(Box::new(Token(byte))), CHEAP).unwrap()
    }

    fn keyring(keys: u32) -> Keyring {
        let mut ring = Keyring::create(&slot_key(1), STORE).unwrap();
        ring.generation = 42;
        ring.keys = (1..=keys)
            .map(|key_id| KeyEntry {
                key_id,
                class: 1,
                state: 2,
                created_ms: 1000 + u64::from(key_id),
                retired_ms: 9,
                scope: 0,
                key: Dek::generate().unwrap(),
            })
            .collect();
        ring
    }

    fn open(bytes: Vec<u8>, byte: u8) -> Result<Keyring, KeyringError> {
        SealedKeyring::parse(bytes)?.unlock(&kek(byte).into())
    }

    #[test]
    fn gives_back_what_it_was_built_from() {
        for count in [0, 1, 63, 64, 200] {
            let ring = keyring(count);
            let bytes = ring.encode().unwrap();
            let back = open(bytes, 1).unwrap();
            assert_eq!((back.store, back.generation, back.slots.len()), (STORE, 42, 1));
            assert_eq!(back.root.secret().expose(), ring.root.secret().expose());
            assert_eq!(back.keys.len(), count as usize);
            for (a, b) in back.keys.iter().zip(&ring.keys) {
                assert_eq!((a.key_id, a.class, a.state, a.created_ms), (b.key_id, 1, 2, b.created_ms));
                assert_eq!(a.key.secret().expose(), b.key.secret().expose());
            }
        }
    }

    /// Bytes of a length, so that a place and what stands there can be read off one table.
    fn at<const N: usize>(bytes: &[u8], place: usize) -> [u8; N] {
        bytes[place..place + N].try_into().unwrap()
    }

    #[test]
    fn has_its_fields_at_the_places_of_the_format() {
        let mut ring = keyring(1);
        ring.slots.push(Slot::wrap(&slot_key(2), &STORE, &ring.root).unwrap());
        ring.slots.push(Slot::wrap(&kept_key(7), &STORE, &ring.root).unwrap());
        let bytes = ring.encode().unwrap();
        assert_eq!(&bytes[..12], b"SMQKRNG1\0\x01\0\x01");
        assert_eq!(at(&bytes, 12), STORE);
        assert_eq!(at(&bytes, 28), 42u64.to_be_bytes());
        assert_eq!(at(&bytes, 36), [0, 3, 1, 0], "three slots of 256 bytes");
        assert_eq!(at(&bytes, 552), [3, 1, 0, 0]);
        assert_eq!(at(&bytes, 552 + 152), [0, 0, 0, 62], "its part of the extension: offset and length");
        assert_eq!(at(&bytes, 552 + 156), [0; 100]);
        for (slot, byte) in [(40, 1), (296, 2)] {
            assert_eq!(at(&bytes, slot), [1, 1, 0, 0]);
            assert_eq!(at(&bytes, slot + 4), kek(byte).slot_id());
            assert_eq!(at(&bytes, slot + 20), kek(byte).check_value(&STORE));
            assert_eq!(at(&bytes, slot + 52), [0; 28], "no cost and no salt");
            // Label, bytes 0..28 of the file, slot[0], slot[4..80].
            let aad = [b"sealmq/v1/slot", &bytes[..28], &[1], &bytes[slot + 4..slot + 80]].concat();
            let mut root: [u8; 32] = at(&bytes, slot + 104);
            Xaes::new(kek(byte).secret())
                .open(&at(&bytes, slot + 80), &aad, &mut root, &at(&bytes, slot + 136))
                .unwrap();
            assert_eq!(&root, ring.root.secret().expose());
            assert_eq!(at(&bytes, slot + 152), [0; 104]);
        }
        let extension = 40 + 3 * 256;
        assert_eq!(at(&bytes, extension), 62u32.to_be_bytes());
        assert_eq!(at(&bytes, extension + 4), [1, 1], "for a token, version 1");
        let commitment = extension + 4 + 62;
        assert_eq!(at(&bytes, commitment), ring.root.commitment(&STORE));
        assert_eq!(at(&bytes, commitment + 56), 4096u32.to_be_bytes());
        let body = commitment + 60;
        let mut list = bytes[body..body + 4096].to_vec();
        let tag = at(&bytes, body + 4096);
        let ring_key = Xaes::new(&ring.root.ring());
        ring_key.open(&at(&bytes, commitment + 32), &bytes[..body], &mut list, &tag).unwrap();
        assert_eq!(at(&list, 0), [0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 0, 0], "count, key id, class, state");
        assert_eq!(at(&list, 12), 1001u64.to_be_bytes(), "created");
        assert_eq!(list[20..36], [9u64.to_be_bytes(), [0; 8]].concat(), "retired, scope");
        assert_eq!(&at(&list, 36), ring.keys[0].key.secret().expose());
        assert_eq!(bytes.len(), body + 4096 + 16 + 32);
        assert_eq!(bytes[body + 4096 + 16..], Sha256::digest(&bytes[..body + 4096 + 16])[..]);
    }

    #[test]
    fn a_passphrase_opens_its_slot_and_the_slot_says_what_it_costs() {
        let mut ring = keyring(3);
        let cost = Cost { memory_kib: 96, passes: 2, lanes: 1 };
        let key = SlotKey::new(passphrase("correct horse"), cost).unwrap();
        ring.slots.push(Slot::wrap(&key, &STORE, &ring.root).unwrap());
        let bytes = ring.encode().unwrap();
        assert_eq!(at(&bytes, 296), [2, 1, 0, 0]);
        assert_eq!(at(&bytes, 296 + 52), [0, 0, 0, 96, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_ne!(at(&bytes, 296 + 64), [0; 16], "a salt");
        let unlock =
            |credential: Credential| SealedKeyring::parse(bytes.clone()).unwrap().unlock(&credential);
        let opened = unlock(passphrase("correct horse")).unwrap();
        assert_eq!((opened.opened_by, opened.keys.len()), (key.slot_id(), 3));
        assert_eq!(opened.slots[1].cost(), Some(cost));
        assert_eq!(unlock(kek(1).into()).unwrap().opened_by, kek(1).slot_id());
        let Err(KeyringError::WrongKek { tried, .. }) = unlock(passphrase("wrong horse")) else { panic!() };
        assert_eq!(tried, "a passphrase on 1 slots");
        // The slot's key is not a key that could be given as one: kinds do not mix.
        assert!(unlock(key.kek.into()).is_err());
    }

    #[test]
    fn a_token_opens_the_slot_whose_key_it_keeps_among_others() {
        let mut ring = keyring(3);
        let keys = [kept_key(7), kept_key(8), kept_key(8)];
        ring.slots.extend(keys.iter().map(|key| Slot::wrap(key, &STORE, &ring.root).unwrap()));
        let open = |ring: &Keyring, byte| {
            let sealed = SealedKeyring::parse(ring.encode().unwrap()).unwrap();
            assert_eq!(sealed.check(&ring.root, Some(&keys[1])).is_ok(), ring.slots.len() == 4);
            sealed.unlock(&Credential::Service(Box::new(Token(byte))))
        };
        let opened = open(&ring, 8).unwrap();
        assert_eq!((opened.opened_by, opened.keys.len()), (keys[1].slot_id(), 3));
        assert_eq!(opened.slots[1].kind(), SlotKind::External(Some(Service::Pkcs11)));
        assert!(opened.slots.iter().zip(&ring.slots).all(|(read, written)| read == written));
        let Err(KeyringError::WrongKek { tried, .. }) = open(&ring, 9) else { panic!() };
        assert_eq!(tried, "the key in the PKCS#11 token on 3 slots");
        let Err(KeyringError::Service(e)) = open(&ring, 99) else { panic!() };
        assert_eq!(e.code, "E_TEST");
        // What lies behind the slot that goes moves up.
        ring.slots.remove(2);
        assert_eq!(open(&ring, 8).unwrap().opened_by, keys[2].slot_id());
        assert_eq!(open(&ring, 7).unwrap().opened_by, keys[0].slot_id());
        assert_eq!(super::tests::open(ring.encode().unwrap(), 1).unwrap().slots.len(), 3);
    }

    #[test]
    fn one_that_keeps_what_it_cannot_give_back_gets_no_slot() {
        struct Forgetful;
        impl KeyService for Forgetful {
            fn service(&self) -> Service {
                Service::Vault
            }
            fn seal(&self, key: &[u8; 32], _: &[u8]) -> Result<Vec<u8>, ServiceError> {
                Ok(key.to_vec())
            }
            fn open(&self, _: &[u8], _: &[u8]) -> Result<Option<Kek>, ServiceError> {
                Ok(Some(kek(5)))
            }
        }
        let made = SlotKey::new(Credential::Service(Box::new(Forgetful)), CHEAP);
        let Err(KeyringError::Service(e)) = made else { panic!() };
        assert_eq!(e.code, "E_KEY_SERVICE");
    }

    #[test]
    fn parts_of_the_extension_that_overlap_leave_gaps_or_reach_too_far_are_damage() {
        let mut ring = keyring(1);
        ring.slots.extend([7, 8].map(|byte| Slot::wrap(&kept_key(byte), &STORE, &ring.root).unwrap()));
        let bytes = ring.encode().unwrap();
        let places = [296 + 152, 552 + 152];
        assert_eq!(places.map(|place| at(&bytes, place)), [[0, 0, 0, 62], [0, 62, 0, 62]]);
        for (place, wrong) in [
            (places[0], [0, 1, 0, 62]),
            (places[0], [0, 0, 0, 61]),
            (places[0], [255, 255, 255, 255]),
            (places[1], [0, 0, 0, 62]),
            (places[1], [0, 62, 0, 63]),
            (places[1], [0, 62, 0, 0]),
            (40 + 152, [0, 1, 0, 0]),
        ] {
            let mut changed = bytes.clone();
            changed[place..place + 4].copy_from_slice(&wrong);
            let content = changed.len() - 32;
            let digest = Sha256::digest(&changed[..content]);
            changed[content..].copy_from_slice(&digest);
            let parsed = SealedKeyring::parse(changed);
            assert!(matches!(parsed, Err(KeyringError::Damaged(_))), "{place} {wrong:?}");
        }
    }

    #[test]
    fn a_cost_that_was_raised_by_somebody_else_is_not_paid_and_named() {
        let mut ring = keyring(0);
        let key = SlotKey::new(passphrase("correct horse"), CHEAP).unwrap();
        ring.slots = vec![Slot::wrap(&key, &STORE, &ring.root).unwrap()];
        ring.slots[0].put(52, &u32::MAX.to_be_bytes());
        let opened =
            SealedKeyring::parse(ring.encode().unwrap()).unwrap().unlock(&passphrase("correct horse"));
        assert!(matches!(opened, Err(KeyringError::Argon2(_))));
    }

    #[test]
    fn a_new_slot_that_does_not_open_fails_the_check() {
        let mut ring = keyring(1);
        let new = slot_key(2);
        let check = |ring: &Keyring| {
            SealedKeyring::parse(ring.encode().unwrap()).unwrap().check(&ring.root, Some(&new))
        };
        assert!(check(&ring).is_err(), "it is not there");
        ring.slots.push(Slot::wrap(&new, &STORE, &ring.root).unwrap());
        assert_eq!(check(&ring), Ok(()));
        ring.slots[1].put(104, &[0; 32]);
        assert!(check(&ring).is_err(), "it holds something else");
    }

    #[test]
    fn a_wrong_key_is_told_from_damage_and_names_the_slots() {
        let bytes = keyring(1).encode().unwrap();
        let Err(KeyringError::WrongKek { tried, slots }) = open(bytes, 2) else { panic!() };
        let name = |byte| format!("key {}", hex(&kek(byte).slot_id()));
        assert_eq!((tried, slots), (name(2), name(1)));
    }

    #[test]
    fn every_changed_byte_and_every_truncation_is_damage() {
        let bytes = keyring(2).encode().unwrap();
        for at in (0..bytes.len()).filter(|at| *at < 500 || at % 97 == 0 || *at > bytes.len() - 60) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(matches!(SealedKeyring::parse(changed), Err(KeyringError::Damaged(_))), "byte {at}");
            assert!(matches!(SealedKeyring::parse(bytes[..at].to_vec()), Err(KeyringError::Damaged(_))));
        }
    }

    #[test]
    fn an_altered_field_under_a_mended_checksum_does_not_open() {
        // An attacker can compute SHA-256; only the tags and the commitment stand against that.
        let bytes = keyring(2).encode().unwrap();
        let content = bytes.len() - 32;
        let slot_state = 41;
        let unused_tail_of_the_slot = 40 + 152..40 + 256;
        for at in (12..content).filter(|at| *at < 500 || at % 97 == 0) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let digest = Sha256::digest(&changed[..content]);
            changed[content..].copy_from_slice(&digest);
            assert!(open(changed, 1).is_err(), "byte {at}");
        }
        assert!(slot_state < 500 && unused_tail_of_the_slot.end < 500, "the table above covers them");
    }

    #[test]
    fn one_of_eight_slots_is_enough() {
        let mut ring = keyring(1);
        for byte in 2..=8 {
            ring.slots.push(Slot::wrap(&slot_key(byte), &STORE, &ring.root).unwrap());
        }
        let bytes = ring.encode().unwrap();
        assert!((1..=8).all(|byte| open(bytes.clone(), byte).is_ok()));
        assert!(open(bytes, 9).is_err());
        ring.slots.push(Slot::wrap(&slot_key(9), &STORE, &ring.root).unwrap());
        let nine = SealedKeyring::parse(ring.encode().unwrap());
        assert!(matches!(nine, Err(KeyringError::Damaged(_))));
    }

    #[test]
    fn two_writes_of_one_keyring_share_no_ciphertext() {
        let ring = keyring(1);
        let (a, b) = (ring.encode().unwrap(), ring.encode().unwrap());
        let at = a.len() - 4096;
        assert_ne!(a[at..at + 64], b[at..at + 64]);
    }

    #[test]
    fn a_later_format_is_named() {
        let mut bytes = keyring(0).encode().unwrap();
        bytes[9] = 2;
        let content = bytes.len() - 32;
        let digest = Sha256::digest(&bytes[..content]);
        bytes[content..].copy_from_slice(&digest);
        let error = SealedKeyring::parse(bytes).err();
        assert_eq!(error, Some(KeyringError::Unknown { format: 2, suite: 1 }));
    }
}
