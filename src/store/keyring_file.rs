//! The keyring's two copies on disk, and the data keys' coming and going (store.md 6.2, 6.4).
//!
//! A key is durable in both copies before the first record is sealed under it. Each write makes both copies
//! anew, so a copy that was lost or damaged is mended by the next start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::StoreError;
use super::files;
use crate::seal::Kek;
use crate::seal::key::Dek;
use crate::seal::keyring::{KeyEntry, Keyring, KeyringError, SealedKeyring};
use crate::seal::record::Key;

const COPIES: [&str; 2] = ["keyring", "keyring.mirror"];
const CLASS_EPOCH: u8 = 1;
const STATE_SEALS: u8 = 1;
const STATE_OPENS: u8 = 2;

/// The open keyring together with the place of its copies.
pub(super) struct KeyringFile {
    dir: PathBuf,
    ring: Keyring,
}

impl KeyringFile {
    /// Whether any copy is there.
    pub(super) fn exists(dir: &Path) -> bool {
        COPIES.iter().any(|name| dir.join(name).exists())
    }

    /// Makes a new store's keyring, generation 1.
    pub(super) fn create(dir: &Path, kek: &Kek, store: [u8; 16]) -> Result<KeyringFile, StoreError> {
        let ring = Keyring::create(kek, store).map_err(|e| StoreError::system(dir, e))?;
        let file = KeyringFile { dir: dir.to_path_buf(), ring };
        file.write()?;
        Ok(file)
    }

    /// Opens the copy of the highest generation that holds together.
    pub(super) fn open(dir: &Path, kek: &Kek) -> Result<KeyringFile, StoreError> {
        let (mut best, mut faults): (Option<SealedKeyring>, Vec<String>) = (None, Vec::new());
        let mut found = false;
        for name in COPIES {
            let fault = match files::read(&dir.join(name)) {
                Ok(None) => "it is missing".to_string(),
                Err(e) => e.to_string(),
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
            return Err(if found {
                StoreError::KeyringCorrupt { dir, detail: faults.join("; ") }
            } else {
                StoreError::KeyringMissing { dir }
            });
        };
        for fault in faults {
            tracing::warn!("a copy of the keyring is unusable and will be written anew: {fault}");
        }
        let ring = best.unlock(kek).map_err(|e| match e {
            KeyringError::WrongKek { .. } => {
                StoreError::KekWrong { dir: dir.to_path_buf(), detail: e.to_string() }
            }
            e => StoreError::KeyringCorrupt { dir: dir.to_path_buf(), detail: e.to_string() },
        })?;
        Ok(KeyringFile { dir: dir.to_path_buf(), ring })
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
        is_used: impl Fn(u32) -> bool,
    ) -> Result<Arc<Key>, StoreError> {
        let dir = self.dir.clone();
        let dek = Dek::generate().map_err(|e| StoreError::system(&dir, e))?;
        self.ring.generation += 1;
        // One key per generation, so an id is never used twice, even after its key was dropped.
        let key_id = u32::try_from(self.ring.generation)
            .map_err(|_| StoreError::system(&dir, "data key ids are used up"))?;
        self.ring.keys.retain(|entry| is_used(entry.key_id));
        for entry in self.ring.keys.iter_mut().filter(|entry| entry.state == STATE_SEALS) {
            (entry.state, entry.retired_ms) = (STATE_OPENS, now_ms);
        }
        let key = Arc::new(Key::data(key_id, &dek));
        self.ring.keys.push(KeyEntry {
            key_id,
            class: CLASS_EPOCH,
            state: STATE_SEALS,
            created_ms: now_ms,
            retired_ms: 0,
            scope: 0,
            key: dek,
        });
        self.write()?;
        Ok(key)
    }

    fn write(&self) -> Result<(), StoreError> {
        let bytes = self.ring.encode().map_err(|e| StoreError::system(&self.dir, e))?;
        for name in COPIES {
            files::replace(&self.dir, name, &bytes, |written| {
                let read_back = SealedKeyring::parse(written).and_then(|ring| ring.check(&self.ring.root));
                read_back.map_err(|e| e.to_string())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn kek() -> Kek {
        Kek::take(&mut std::array::from_fn(|i| i as u8))
    }

    fn generation(dir: &Path) -> Result<u64, StoreError> {
        KeyringFile::open(dir, &kek()).map(|file| file.ring().generation)
    }

    #[test]
    fn data_keys_come_go_and_never_share_an_id() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = KeyringFile::create(dir.path(), &kek(), [1; 16]).unwrap();
        let first = file.next_data_key(10, |_| true).unwrap().id;
        let second = file.next_data_key(20, |id| id != first).unwrap().id;
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
        let mut file = KeyringFile::create(dir.path(), &kek(), [1; 16]).unwrap();
        let old = fs::read(dir.path().join(COPIES[1])).unwrap();
        file.next_data_key(1, |_| true).unwrap();
        fs::write(dir.path().join(COPIES[1]), old).unwrap();
        fs::write(dir.path().join("keyring.tmp"), "half writ").unwrap();
        assert_eq!(generation(dir.path()).unwrap(), 2, "a crash between the copies");
        for (broken, content) in [(0, &b"rot"[..]), (0, b""), (1, b"rot")] {
            let dir = tempfile::tempdir().unwrap();
            KeyringFile::create(dir.path(), &kek(), [1; 16]).unwrap();
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
        KeyringFile::create(dir.path(), &Kek::take(&mut std::array::from_fn(|i| 99 - i as u8)), [1; 16])
            .unwrap();
        assert_eq!(generation(dir.path()).unwrap_err().code(), "E_KEK_WRONG");
        COPIES.iter().for_each(|name| fs::write(dir.path().join(name), "rot").unwrap());
        assert_eq!(generation(dir.path()).unwrap_err().code(), "E_KEYRING_CORRUPT");
    }
}
