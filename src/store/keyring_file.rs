//! The keyring's two copies on disk, and the data keys' coming and going.
//!
//! A key is durable in both copies before the first record is sealed under it. Each write makes both copies
//! anew, so a copy that was lost or damaged is mended by the next start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{SlotRefusal, StoreError};
use super::files;
use crate::broker::id::QueueId;
use crate::seal::Credential;
use crate::seal::key::Dek;
use crate::seal::keyring::{KeyEntry, Keyring, KeyringError, SLOTS_MAX, SealedKeyring, Slot, hex};
use crate::seal::record::Key;
use crate::seal::slot_key::{Cost, SlotKey};

pub(super) const COPIES: [&str; 2] = ["keyring", "keyring.mirror"];
const CLASS_EPOCH: u8 = 1;
const CLASS_QUEUE: u8 = 2;
const CLASS_RESEAL: u8 = 3;
const STATE_SEALS: u8 = 1;
const STATE_OPENS: u8 = 2;

/// The queue whose own key this is; `None` for a key of all other queues.
pub(super) fn queue_of(entry: &KeyEntry) -> Option<QueueId> {
    (entry.class == CLASS_QUEUE).then_some(QueueId(entry.scope))
}

/// What it sealed had been sealed before: only records that were written once more are under it, and all of those.
pub(super) fn resealed(entry: &KeyEntry) -> bool {
    entry.class == CLASS_RESEAL
}

/// New records are sealed under it.
pub(super) fn seals(entry: &KeyEntry) -> bool {
    entry.state == STATE_SEALS
}

/// The open keyring together with the place of its copies.
pub(super) struct KeyringFile {
    dir: PathBuf,
    ring: Keyring,
    /// The highest generation that a copy on the disk may have: a write that failed may have reached one of them.
    tried: u64,
}

impl KeyringFile {
    /// Whether any copy is there.
    pub(super) fn exists(dir: &Path) -> bool {
        COPIES.iter().any(|name| dir.join(name).exists())
    }

    /// Makes a new store's keyring, generation 1.
    pub(super) fn create(
        dir: &Path,
        credential: Credential,
        store: [u8; 16],
    ) -> Result<KeyringFile, StoreError> {
        let key = SlotKey::new(credential, Cost::DEFAULT).map_err(|e| StoreError::slot_key(dir, e))?;
        let ring = Keyring::create(&key, store).map_err(|e| StoreError::system(dir, e))?;
        let file = KeyringFile { dir: dir.to_path_buf(), tried: ring.generation, ring };
        file.write(Some(&key))?;
        Ok(file)
    }

    /// Opens the copy of the highest generation that holds together.
    pub(super) fn open(dir: &Path, credential: &Credential) -> Result<KeyringFile, StoreError> {
        let (mut best, mut faults): (Option<SealedKeyring>, Vec<String>) = (None, Vec::new());
        let (mut found, mut unread) = (false, None);
        for name in COPIES {
            let fault = match files::read(&dir.join(name)) {
                Ok(None) => "it is missing".to_string(),
                Err(e) => {
                    let fault = e.to_string();
                    unread = Some(e);
                    fault
                }
                Ok(Some(bytes)) => {
                    found = true;
                    match SealedKeyring::parse(bytes) {
                        Err(e) => e.to_string(),
                        Ok(ring) => {
                            if best.as_ref().is_none_or(|best| best.generation < ring.generation) {
                                best = Some(ring);
                            }
                            continue;
                        }
                    }
                }
            };
            faults.push(format!("{name}: {fault}"));
        }
        let Some(best) = best else {
            let dir = dir.to_path_buf();
            return Err(match unread {
                // The copy that cannot be read may be the sound one.
                Some(error) => error,
                None if found => StoreError::KeyringCorrupt { dir, detail: faults.join("; ") },
                None => StoreError::KeyringMissing { dir },
            });
        };
        for fault in faults {
            tracing::warn!("a copy of the keyring is unusable and will be written anew: {fault}");
        }
        let ring = best.unlock(credential).map_err(|e| match e {
            KeyringError::WrongKek { .. } => {
                StoreError::KekWrong { dir: dir.to_path_buf(), detail: e.to_string() }
            }
            KeyringError::Argon2(_) | KeyringError::Service(_) => StoreError::slot_key(dir, e),
            e => StoreError::KeyringCorrupt { dir: dir.to_path_buf(), detail: e.to_string() },
        })?;
        Ok(KeyringFile { dir: dir.to_path_buf(), tried: ring.generation, ring })
    }

    /// Holds each copy against the open keyring: what is wrong with it, or which generation it is of.
    pub(super) fn copies(&self) -> [(PathBuf, Result<u64, String>); 2] {
        COPIES.map(|name| {
            let path = self.dir.join(name);
            let copy = match files::read(&path) {
                Ok(None) => Err("it is missing".to_owned()),
                Err(e) => Err(e.to_string()),
                Ok(Some(bytes)) => SealedKeyring::parse(bytes)
                    .and_then(|ring| ring.check(&self.ring.root, None).map(|()| ring.generation))
                    .map_err(|e| e.to_string()),
            };
            (path, copy)
        })
    }

    pub(super) fn ring(&self) -> &Keyring {
        &self.ring
    }

    /// All keys, ready for opening records: K_meta and the data keys.
    pub(super) fn keys(&self) -> Vec<Arc<Key>> {
        let data = self.ring.keys.iter().map(|entry| Arc::new(Key::data(entry.key_id, &entry.key)));
        std::iter::once(Arc::new(Key::meta(&self.ring.root))).chain(data).collect()
    }

    /// Drops the data keys that `is_used` disowns, makes a new one that seals from now on, and writes both
    /// copies. Until this returns, the new key is not to be used.
    pub(super) fn next_data_key(
        &mut self,
        now_ms: u64,
        is_used: impl Fn(&KeyEntry) -> bool,
    ) -> Result<Arc<Key>, StoreError> {
        self.next_key(CLASS_EPOCH, 0, now_ms, is_used)
    }

    /// As [`KeyringFile::next_data_key`], for one queue alone.
    pub(super) fn next_queue_key(&mut self, queue: QueueId, now_ms: u64) -> Result<Arc<Key>, StoreError> {
        self.next_key(CLASS_QUEUE, queue.0, now_ms, |_| true)
    }

    /// As [`KeyringFile::next_data_key`], for records that are sealed once more.
    pub(super) fn next_reseal_key(&mut self, now_ms: u64) -> Result<Arc<Key>, StoreError> {
        self.next_key(CLASS_RESEAL, 0, now_ms, |_| true)
    }

    fn next_key(
        &mut self,
        class: u8,
        scope: u64,
        now_ms: u64,
        is_used: impl Fn(&KeyEntry) -> bool,
    ) -> Result<Arc<Key>, StoreError> {
        let dek = Dek::generate().map_err(|e| StoreError::system(&self.dir, e))?;
        // One key per generation, so an id is never used twice, even after its key was dropped.
        let key_id = u32::try_from(self.tried + 1)
            .map_err(|_| StoreError::system(&self.dir, "data key ids are used up"))?;
        let key = Arc::new(Key::data(key_id, &dek));
        // What it seals was never new, and it is not to be waited for when that is done.
        let (state, retired_ms) =
            if class == CLASS_RESEAL { (STATE_OPENS, now_ms) } else { (STATE_SEALS, 0) };
        let sealing = |entry: &KeyEntry| seals(entry) && entry.class == class && entry.scope == scope;
        let before: Vec<u32> = self.ring.keys.iter().filter(|e| sealing(e)).map(|e| e.key_id).collect();
        for entry in self.ring.keys.iter_mut().filter(|entry| sealing(entry)) {
            (entry.state, entry.retired_ms) = (STATE_OPENS, now_ms);
        }
        self.ring.keys.push(KeyEntry {
            key_id,
            class,
            state,
            created_ms: now_ms,
            retired_ms,
            scope,
            key: dek,
        });
        let dropped = self.take_out(|entry| is_used(entry) || entry.key_id == key_id);
        let written = self.advance(None);
        if written.is_err() {
            // What is on the disk is unknown; what is in use must stay what it was.
            self.ring.keys.extend(dropped);
            self.ring.keys.retain(|entry| entry.key_id != key_id);
            for entry in self.ring.keys.iter_mut().filter(|entry| before.contains(&entry.key_id)) {
                (entry.state, entry.retired_ms) = (STATE_SEALS, 0);
            }
        }
        written.map(|()| key)
    }

    /// Drops the keys that `stays` disowns; gives their ids. All that freed them must be on the disk.
    pub(super) fn drop_keys(&mut self, stays: impl Fn(&KeyEntry) -> bool) -> Result<Vec<u32>, StoreError> {
        let dropped = self.take_out(stays);
        let ids = dropped.iter().map(|entry| entry.key_id).collect();
        if dropped.is_empty() {
            return Ok(ids);
        }
        let written = self.advance(None);
        if written.is_err() {
            self.ring.keys.extend(dropped);
        }
        written.map(|()| ids)
    }

    fn take_out(&mut self, stays: impl Fn(&KeyEntry) -> bool) -> Vec<KeyEntry> {
        let (stay, go) = std::mem::take(&mut self.ring.keys).into_iter().partition(stays);
        self.ring.keys = stay;
        go
    }

    /// Adds a slot for `key`, after reading both copies back and opening the slot in them.
    pub(super) fn add_slot(&mut self, key: &SlotKey) -> Result<(), StoreError> {
        let slots = &mut self.ring.slots;
        if slots.iter().any(|slot| slot.id() == key.slot_id()) {
            return Err(SlotRefusal::Exists(hex(&key.slot_id())).into());
        }
        if slots.len() >= SLOTS_MAX {
            return Err(SlotRefusal::Full.into());
        }
        let slot = Slot::wrap(key, &self.ring.store, &self.ring.root);
        slots.push(slot.map_err(|e| StoreError::system(&self.dir, e))?);
        let written = self.advance(Some(key));
        if written.is_err() {
            self.ring.slots.pop();
        }
        written
    }

    /// Removes the slot whose id, in hex, begins with `id`. The one that opened the keyring goes only when
    /// `in_use_too` says so; the last one never. Gives its whole id.
    pub(super) fn remove_slot(&mut self, id: &str, in_use_too: bool) -> Result<String, StoreError> {
        let slots = &self.ring.slots;
        let wanted = id.to_ascii_lowercase();
        let named = |slot: &Slot| !wanted.is_empty() && hex(&slot.id()).starts_with(&wanted);
        let mut places = (0..).zip(slots).filter(|(_, slot)| named(slot)).map(|(at, _)| at);
        let (Some(at), None) = (places.next(), places.next()) else {
            return Err(SlotRefusal::Unknown(id.escape_default().take(40).collect()).into());
        };
        // One of a kind that this program cannot open does not count.
        if !(0..).zip(slots).any(|(other, slot)| other != at && slot.kind().is_usable()) {
            return Err(SlotRefusal::Last.into());
        }
        let removed = self.ring.slots.remove(at);
        if removed.id() == self.ring.opened_by && !in_use_too {
            self.ring.slots.insert(at, removed);
            return Err(SlotRefusal::InUse.into());
        }
        let id = hex(&removed.id());
        let written = self.advance(None);
        if written.is_err() {
            self.ring.slots.insert(at, removed);
        }
        written.map(|()| id)
    }

    /// A fault of the system, in this store.
    pub(super) fn system(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::system(&self.dir, reason)
    }

    /// The next generation, in both copies. No number stands for two contents, or one of them could be put in the
    /// place of the other.
    fn advance(&mut self, new: Option<&SlotKey>) -> Result<(), StoreError> {
        let before = self.ring.generation;
        self.tried += 1;
        self.ring.generation = self.tried;
        let written = self.write(new);
        if written.is_err() {
            // The commit row must not name a generation that may not be on the disk.
            self.ring.generation = before;
        }
        written
    }

    fn write(&self, new: Option<&SlotKey>) -> Result<(), StoreError> {
        let bytes = self.ring.encode().map_err(|e| StoreError::system(&self.dir, e))?;
        for name in COPIES {
            files::replace_secret(&self.dir, name, &bytes, |written| {
                let read_back =
                    SealedKeyring::parse(written).and_then(|ring| ring.check(&self.ring.root, new));
                read_back.map_err(|e| e.to_string())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Kek;
    use std::fs;

    fn key(first: u8) -> Credential {
        Kek::take(&mut std::array::from_fn(|i| first + i as u8)).into()
    }

    fn kek() -> Credential {
        key(0)
    }

    fn slot(first: u8) -> SlotKey {
        SlotKey::new(key(first), Cost::DEFAULT).unwrap()
    }

    fn opens(dir: &Path, first: u8) -> bool {
        KeyringFile::open(dir, &key(first)).is_ok()
    }

    fn generation(dir: &Path) -> Result<u64, StoreError> {
        KeyringFile::open(dir, &kek()).map(|file| file.ring().generation)
    }

    #[test]
    fn data_keys_come_go_and_never_share_an_id() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = KeyringFile::create(dir.path(), kek(), [1; 16]).unwrap();
        let first = file.next_data_key(10, |_| true).unwrap().id;
        let second = file.next_data_key(20, |entry| entry.key_id != first).unwrap().id;
        let third = file.next_data_key(30, |_| true).unwrap().id;
        assert!(0 < first && first < second && second < third);
        let file = KeyringFile::open(dir.path(), &kek()).unwrap();
        let facts: Vec<_> = file.ring().keys.iter().map(|k| (k.key_id, k.state, k.retired_ms)).collect();
        assert_eq!(facts, [(second, STATE_OPENS, 30), (third, STATE_SEALS, 0)]);
        assert_eq!(file.keys().len(), 3);
    }

    #[test]
    fn one_sound_copy_is_enough_and_the_newer_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = KeyringFile::create(dir.path(), kek(), [1; 16]).unwrap();
        let old = fs::read(dir.path().join(COPIES[1])).unwrap();
        file.next_data_key(1, |_| true).unwrap();
        fs::write(dir.path().join(COPIES[1]), old).unwrap();
        fs::write(dir.path().join("keyring.tmp"), "half writ").unwrap();
        assert_eq!(generation(dir.path()).unwrap(), 2, "a crash between the copies");
        for (broken, content) in [(0, &b"rot"[..]), (0, b""), (1, b"rot")] {
            let dir = tempfile::tempdir().unwrap();
            KeyringFile::create(dir.path(), kek(), [1; 16]).unwrap();
            fs::write(dir.path().join(COPIES[broken]), content).unwrap();
            assert_eq!(generation(dir.path()).unwrap(), 1);
            fs::remove_file(dir.path().join(COPIES[broken])).unwrap();
            assert_eq!(generation(dir.path()).unwrap(), 1);
        }
    }

    #[test]
    fn missing_damaged_and_foreign_keyrings_have_their_own_codes() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(generation(dir.path()).unwrap_err().code(), "E_KEYRING_MISSING");
        KeyringFile::create(dir.path(), key(99), [1; 16]).unwrap();
        assert_eq!(generation(dir.path()).unwrap_err().code(), "E_KEK_WRONG");
        COPIES.iter().for_each(|name| fs::write(dir.path().join(name), "rot").unwrap());
        assert_eq!(generation(dir.path()).unwrap_err().code(), "E_KEYRING_CORRUPT");
    }

    #[test]
    fn a_key_is_replaced_by_adding_its_successor_and_removing_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = KeyringFile::create(dir.path(), kek(), [1; 16]).unwrap();
        let data_key = file.next_data_key(1, |_| true).unwrap().id;
        file.add_slot(&slot(50)).unwrap();
        assert!(opens(dir.path(), 0) && opens(dir.path(), 50));
        let old = hex(&slot(0).slot_id());
        assert_eq!(file.remove_slot(&old, false).unwrap_err().code(), "E_SLOT_IN_USE");
        file.remove_slot(&old.to_uppercase(), true).unwrap();
        for copy in COPIES {
            let other = COPIES[usize::from(copy == COPIES[0])];
            fs::rename(dir.path().join(other), dir.path().join("aside")).unwrap();
            assert!(!opens(dir.path(), 0) && opens(dir.path(), 50), "{copy}");
            fs::rename(dir.path().join("aside"), dir.path().join(other)).unwrap();
        }
        let file = KeyringFile::open(dir.path(), &key(50)).unwrap();
        assert_eq!(file.ring().keys[0].key_id, data_key, "the data keys are the same");
        assert_eq!(file.ring().generation, 4);
    }

    #[test]
    fn slots_are_neither_doubled_nor_too_many_nor_guessed_nor_all_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = KeyringFile::create(dir.path(), kek(), [1; 16]).unwrap();
        let code = |error: StoreError| {
            assert!(!error.remedy().is_empty());
            error.code()
        };
        assert_eq!(code(file.remove_slot(&hex(&slot(0).slot_id()), true).unwrap_err()), "E_SLOT_LAST");
        assert_eq!(code(file.add_slot(&slot(0)).unwrap_err()), "E_SLOT_EXISTS");
        (1..8).for_each(|n| file.add_slot(&slot(20 * n)).unwrap());
        assert_eq!(code(file.add_slot(&slot(200)).unwrap_err()), "E_SLOTS_FULL");
        for unknown in ["", "zz", "\u{1b}[2J", &"0".repeat(33)] {
            assert_eq!(code(file.remove_slot(unknown, true).unwrap_err()), "E_SLOT_UNKNOWN", "{unknown:?}");
        }
        assert_eq!(file.ring().generation, 8, "a refusal writes nothing");
        assert!(opens(dir.path(), 0) && opens(dir.path(), 140) && !opens(dir.path(), 200));
    }

    #[test]
    fn a_write_that_fails_leaves_the_keyring_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = KeyringFile::create(dir.path(), kek(), [1; 16]).unwrap();
        file.next_data_key(1, |_| true).unwrap();
        file.next_data_key(2, |_| true).unwrap();
        let facts = |file: &KeyringFile| {
            let keys: Vec<_> = file.ring().keys.iter().map(|k| (k.key_id, k.state, k.retired_ms)).collect();
            (file.ring().generation, file.ring().slots.len(), keys)
        };
        let before = facts(&file);
        // A folder that is not empty cannot be removed as if it were a file that a crash left.
        fs::create_dir_all(dir.path().join("keyring.tmp/x")).unwrap();
        assert!(file.add_slot(&slot(50)).is_err());
        assert!(file.next_data_key(3, |_| false).is_err());
        assert!(file.drop_keys(seals).is_err());
        let mut after = facts(&file);
        after.2.sort();
        assert_eq!(after, before);
        fs::remove_dir_all(dir.path().join("keyring.tmp")).unwrap();
        file.add_slot(&slot(50)).unwrap();
        assert!(file.remove_slot(&hex(&slot(50).slot_id())[..6], false).is_ok());
        assert_eq!(file.drop_keys(seals).unwrap(), [2]);
        assert_eq!(facts(&KeyringFile::open(dir.path(), &kek()).unwrap()).0, 9);
    }

    /// The generation was taken back after a failed write, and the next write had the same one. The first copy of the
    /// failed one could then be put in the place of a keyring from which a slot had been removed, and nobody noticed.
    #[test]
    fn a_write_that_failed_half_way_shares_its_generation_with_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = KeyringFile::create(dir.path(), kek(), [1; 16]).unwrap();
        file.add_slot(&slot(50)).unwrap();
        fs::create_dir_all(dir.path().join("keyring.mirror.tmp/x")).unwrap();
        assert!(file.add_slot(&slot(100)).is_err());
        fs::remove_dir_all(dir.path().join("keyring.mirror.tmp")).unwrap();
        assert_eq!((generation(dir.path()).unwrap(), file.ring().generation), (3, 2), "one copy was written");
        file.remove_slot(&hex(&slot(50).slot_id()), false).unwrap();
        assert_eq!((generation(dir.path()).unwrap(), file.ring().generation), (4, 4));
        let key = file.next_data_key(1, |_| true).unwrap().id;
        assert_eq!((key, file.ring().generation), (5, 5));
    }
}
