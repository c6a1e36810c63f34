//! The anchor: a small file, best kept on another disk, that says how far the store has come. It is written after
//! each commit's sync and before anybody is told of it, and it is never ahead of what is durable; so a database that
//! is behind its anchor has lost something that was promised, or was put back to an older state.
//!
//! Two slots of 512 bytes, a page apart, written in turns, so that a torn write leaves the other one:
//!
//! ```text
//! 0 8 "SMQANCH1" | 8 16 store uuid | 24 8 commit_seq | 32 8 keyring generation | 40 8 wall_ms | zeros
//! 480 32 HMAC-SHA256 of bytes 0 to 480 under K_anchor; under a public key, so a mere checksum, in a plain store
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::StoreError;
use super::files;
use super::record::CommitRow;
use crate::limits::{ACCEPTED_COMMITS_SKIPPED, ANCHOR_SYNC_SECONDS};
use crate::seal::key::AnchorKey;

/// Its name in the data directory, where no other place is configured.
pub(super) const ANCHOR_FILE: &str = "anchor";

const MAGIC: [u8; 8] = *b"SMQANCH1";
const SLOT_BYTES: usize = 512;
const TAGGED_BYTES: usize = 480;
const SLOT_PLACES: [u64; 2] = [0, 4096];

/// How far a store has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) commit_seq: u64,
    pub(super) generation: u64,
    pub(super) wall_ms: u64,
}

impl Mark {
    fn slot(&self, store: &[u8; 16], key: &AnchorKey) -> [u8; SLOT_BYTES] {
        let numbers = [self.commit_seq, self.generation, self.wall_ms].map(u64::to_be_bytes).concat();
        let facts = MAGIC.iter().chain(store).chain(&numbers);
        let mut tagged = [0; TAGGED_BYTES];
        tagged.iter_mut().zip(facts).for_each(|(byte, fact)| *byte = *fact);
        let mut slot = [0; SLOT_BYTES];
        let tag = key.tag(&tagged);
        slot.iter_mut().zip(tagged.iter().chain(&tag)).for_each(|(byte, fact)| *byte = *fact);
        slot
    }
}

/// What a slot's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Mark(Mark),
    OfAnotherStore,
    Damaged,
}

fn read_slot(slot: &[u8], store: &[u8; 16], key: &AnchorKey) -> Slot {
    let Some((tagged, tag)) = slot.split_first_chunk::<TAGGED_BYTES>() else { return Slot::Damaged };
    let Some((magic, rest)) = tagged.split_first_chunk::<8>() else { return Slot::Damaged };
    let Some((uuid, rest)) = rest.split_first_chunk::<16>() else { return Slot::Damaged };
    let fits = tag.try_into().is_ok_and(|tag| key.verifies(tagged, tag));
    let number = |at: usize| {
        let bytes = rest.get(8 * at..8 * at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_be_bytes(bytes.unwrap_or_default())
    };
    match (*magic == MAGIC, uuid == store, fits) {
        (true, true, true) => {
            Slot::Mark(Mark { commit_seq: number(0), generation: number(1), wall_ms: number(2) })
        }
        (true, false, _) => Slot::OfAnotherStore,
        _ => Slot::Damaged,
    }
}

/// What was found where the anchor should be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Missing,
    Damaged,
    Mark(Mark),
}

/// What the anchor demands of the database that is about to be opened.
pub(super) struct Demand {
    path: PathBuf,
    found: Found,
    /// The commit that the operator accepts as the newest.
    accept: Option<u64>,
    /// One slot is damaged, the other is used: a write that was cut short, or rot.
    pub(super) has_damaged_slot: bool,
}

impl Demand {
    /// Reads the anchor.
    ///
    /// # Errors
    /// `E_ANCHOR_FOREIGN` when it is another store's.
    pub(super) fn read(
        path: PathBuf,
        store: &[u8; 16],
        key: &AnchorKey,
        accept: Option<u64>,
    ) -> Result<Demand, StoreError> {
        let Some(bytes) = files::read(&path)? else {
            return Ok(Demand { path, found: Found::Missing, accept, has_damaged_slot: false });
        };
        let slots = SLOT_PLACES.map(|at| {
            let at = at as usize;
            bytes.get(at..at + SLOT_BYTES).map_or(Slot::Damaged, |slot| read_slot(slot, store, key))
        });
        let marks = slots.iter().filter_map(|slot| match slot {
            Slot::Mark(mark) => Some(*mark),
            _ => None,
        });
        let newest = marks.max_by_key(|mark| mark.commit_seq);
        if newest.is_none() && slots.contains(&Slot::OfAnotherStore) {
            return Err(StoreError::AnchorForeign { path });
        }
        let has_damaged_slot = newest.is_some() && slots.iter().any(|slot| !matches!(slot, Slot::Mark(_)));
        if has_damaged_slot {
            tracing::warn!(
                "one of the two slots of the anchor {} is damaged; the other is used",
                path.display()
            );
        }
        Ok(Demand { found: newest.map_or(Found::Damaged, Found::Mark), path, accept, has_damaged_slot })
    }

    pub(super) fn is_missing(&self) -> bool {
        self.found == Found::Missing
    }

    /// The last commit that it knows of; 0 when it knows of none.
    pub(super) fn commit_seq(&self) -> u64 {
        match self.found {
            Found::Mark(mark) => mark.commit_seq,
            Found::Missing | Found::Damaged => 0,
        }
    }

    /// Whether the database is what the anchor says. `generation` is the keyring's, `None` in a plain store.
    ///
    /// # Errors
    /// `E_STORE_ROLLBACK`, `E_KEYRING_ROLLBACK`, `E_ANCHOR_MISSING`, `E_ANCHOR_CORRUPT`, unless the operator has
    /// accepted exactly this state.
    pub(super) fn judge(
        &self,
        dir: &Path,
        commit: Option<&CommitRow>,
        generation: Option<u64>,
    ) -> Result<(), StoreError> {
        let (dir, path) = (dir.to_path_buf(), self.path.clone());
        let commit_seq = commit.map_or(0, |row| row.commit_seq);
        let before = commit.and_then(|row| row.anchor.as_deref());
        let fault = match self.found {
            Found::Mark(mark) if commit_seq < mark.commit_seq => {
                StoreError::Rollback { dir, path, found: commit_seq, expected: mark.commit_seq }
            }
            Found::Mark(mark) if generation.is_some_and(|found| found < mark.generation) => {
                let found = generation.unwrap_or_default();
                StoreError::KeyringRollback { dir, found, expected: mark.generation }
            }
            Found::Mark(_) => return Ok(()),
            Found::Damaged => StoreError::AnchorCorrupt { path, commit_seq },
            // The keyring's second generation comes after the anchor.
            Found::Missing if commit.is_none() && generation.unwrap_or_default() <= 1 => return Ok(()),
            Found::Missing if commit.is_some() && before.is_none() => return Ok(()),
            Found::Missing => {
                let before = before.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
                StoreError::AnchorMissing { path, before: before.unwrap_or_default(), commit_seq }
            }
        };
        if self.accept != Some(commit_seq) {
            return Err(fault);
        }
        tracing::warn!(code = fault.code(), commit_seq, "accepted by --accept-rollback: {fault}");
        Ok(())
    }

    /// From which commit a database goes on whose last one is `commit_seq`. One that was accepted in the place of a
    /// newer one gets numbers that the other cannot have reached, so that the other does not pass for its future.
    pub(super) fn go_on_from(&self, commit_seq: u64) -> u64 {
        let newest = match self.found {
            Found::Mark(mark) if mark.commit_seq <= commit_seq => return commit_seq,
            Found::Missing | Found::Damaged if self.accept != Some(commit_seq) => return commit_seq,
            Found::Mark(mark) => mark.commit_seq,
            Found::Missing | Found::Damaged => commit_seq,
        };
        newest.saturating_add(ACCEPTED_COMMITS_SKIPPED)
    }

    /// Takes the anchor into use: both slots say `mark`, and are on the disk. One that is made anew is there as a
    /// whole or not at all, since half of one looks damaged.
    pub(super) fn start(self, store: [u8; 16], key: AnchorKey, mark: Mark) -> Result<Anchor, StoreError> {
        let failed = |e| StoreError::io("write", &self.path, e);
        let slot = mark.slot(&store, &key);
        if self.found == Found::Missing {
            let name = self.path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| failed(io::Error::other("its name is not UTF-8")))?;
            let [first, second] = SLOT_PLACES.map(|at| at as usize);
            let mut bytes = vec![0; second];
            bytes.splice(first..first + SLOT_BYTES, slot);
            bytes.extend_from_slice(&slot);
            files::replace(files::folder_of(&self.path), name, &bytes, |_| Ok(()))?;
        }
        let file = OpenOptions::new().write(true).open(&self.path).map_err(failed)?;
        if self.found != Found::Missing {
            for place in SLOT_PLACES {
                file.write_all_at(&slot, place).and_then(|()| file.sync_data()).map_err(failed)?;
            }
        }
        let place: Arc<[u8]> = self.path.as_os_str().as_encoded_bytes().into();
        Ok(Anchor { file, store, key, place, dirty_since: None })
    }
}

/// Whether there is anything at the anchor's place, for a store that is about to be made.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The anchor of a running store.
pub(super) struct Anchor {
    file: File,
    store: [u8; 16],
    key: AnchorKey,
    place: Arc<[u8]>,
    /// When it was written first since its last sync.
    dirty_since: Option<Instant>,
}

impl Anchor {
    /// Where it lies, for the commit row.
    pub(super) fn place(&self) -> Arc<[u8]> {
        Arc::clone(&self.place)
    }

    /// Notes a commit that is on the disk. It survives the process at once, and the machine after the next sync.
    pub(super) fn write(&mut self, mark: Mark) -> io::Result<()> {
        let [even, odd] = SLOT_PLACES;
        let place = if mark.commit_seq.is_multiple_of(2) { even } else { odd };
        self.file.write_all_at(&mark.slot(&self.store, &self.key), place)?;
        self.dirty_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// How long it may stay unsynced; `None` when it is synced.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let rest = |since: Instant| Duration::from_secs(ANCHOR_SYNC_SECONDS).saturating_sub(since.elapsed());
        self.dirty_since.map(rest)
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.dirty_since.take().is_some() {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const STORE: [u8; 16] = [7; 16];

    fn key() -> AnchorKey {
        AnchorKey::public()
    }

    fn mark(commit_seq: u64) -> Mark {
        Mark { commit_seq, generation: 3, wall_ms: 1 }
    }

    fn demand(path: &Path, accept: Option<u64>) -> Result<Demand, StoreError> {
        Demand::read(path.to_path_buf(), &STORE, &key(), accept)
    }

    fn row(commit_seq: u64) -> CommitRow {
        CommitRow { commit_seq, anchor: Some(b"/elsewhere/anchor"[..].into()), ..CommitRow::default() }
    }

    fn code(demand: &Demand, commit: Option<&CommitRow>, generation: u64) -> &'static str {
        demand.judge(Path::new("/d"), commit, Some(generation)).map_or_else(|e| e.code(), |()| "")
    }

    /// An anchor that was written up to commit 9.
    fn written(path: &Path) {
        let mut anchor = demand(path, None).unwrap().start(STORE, key(), mark(7)).unwrap();
        anchor.write(mark(8)).unwrap();
        anchor.write(mark(9)).unwrap();
        assert!(anchor.due_in().is_some());
        anchor.sync().unwrap();
        assert!(anchor.due_in().is_none());
    }

    #[test]
    fn a_slot_is_laid_out_as_the_format_says() {
        let slot = Mark { commit_seq: 0x0102, generation: 3, wall_ms: 4 }.slot(&STORE, &key());
        assert_eq!(&slot[..8], b"SMQANCH1");
        assert_eq!(slot[8..24], STORE);
        assert_eq!(&slot[24..48], [0x0102, 3, 4].map(u64::to_be_bytes).concat());
        assert!(slot[48..480].iter().all(|byte| *byte == 0));
        assert_eq!(slot[480..], key().tag(&slot[..480]));
    }

    #[test]
    fn every_bit_of_a_slot_is_authenticated() {
        let slot = mark(5).slot(&STORE, &key());
        assert_eq!(read_slot(&slot, &STORE, &key()), Slot::Mark(mark(5)));
        for at in 0..SLOT_BYTES {
            for bit in 0..8 {
                let mut changed = slot;
                changed[at] ^= 1 << bit;
                assert!(
                    !matches!(read_slot(&changed, &STORE, &key()), Slot::Mark(_)),
                    "byte {at}, bit {bit}"
                );
            }
        }
    }

    #[test]
    fn a_database_behind_its_anchor_is_refused_and_one_ahead_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        written(&path);
        let demand = demand(&path, None).unwrap();
        assert_eq!(demand.commit_seq(), 9);
        assert_eq!(code(&demand, Some(&row(8)), 3), "E_STORE_ROLLBACK");
        assert_eq!(code(&demand, None, 3), "E_STORE_ROLLBACK");
        assert_eq!(code(&demand, Some(&row(9)), 2), "E_KEYRING_ROLLBACK");
        assert_eq!(code(&demand, Some(&row(9)), 3), "");
        assert_eq!(code(&demand, Some(&row(10)), 4), "");
    }

    #[test]
    fn one_sound_slot_is_enough_and_two_bad_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        written(&path);
        let sound = fs::read(&path).unwrap();
        for (at, left) in [(30, 9), (4096 + 30, 8)] {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert_eq!(demand(&path, None).unwrap().commit_seq(), left);
        }
        for cut in [0, 1, 511] {
            fs::write(&path, &sound[..cut]).unwrap();
            assert_eq!(code(&demand(&path, None).unwrap(), Some(&row(9)), 3), "E_ANCHOR_CORRUPT");
        }
        fs::write(&path, &sound[..600]).unwrap();
        assert_eq!(demand(&path, None).unwrap().commit_seq(), 8);
    }

    #[test]
    fn a_missing_anchor_is_made_only_where_none_ever_was() {
        let dir = tempfile::tempdir().unwrap();
        let demand = demand(&dir.path().join("anchor"), None).unwrap();
        assert_eq!(code(&demand, None, 1), "", "a new store");
        assert_eq!(code(&demand, Some(&CommitRow { anchor: None, ..row(5) }), 4), "", "of an older version");
        assert_eq!(code(&demand, None, 2), "E_ANCHOR_MISSING", "an emptied database");
        assert_eq!(code(&demand, Some(&row(5)), 4), "E_ANCHOR_MISSING");
        let said = demand.judge(dir.path(), Some(&row(5)), Some(4)).unwrap_err().to_string();
        assert!(said.contains("/elsewhere/anchor"), "{said}");
    }

    #[test]
    fn what_the_operator_accepts_is_one_commit_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        for accept in [4, 5, 6] {
            let demand = demand(&path, Some(accept)).unwrap();
            assert_eq!(code(&demand, Some(&row(5)), 4).is_empty(), accept == 5);
        }
        written(&path);
        let demand = demand(&path, Some(5)).unwrap();
        assert_eq!(code(&demand, Some(&row(5)), 1), "");
        drop(demand.start(STORE, key(), mark(5)).unwrap());
        let demand = Demand::read(path, &STORE, &key(), None).unwrap();
        assert_eq!(demand.commit_seq(), 5, "no slot tells of the commits that were given up");
    }

    #[test]
    fn another_stores_anchor_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anchor");
        written(&path);
        let error = Demand::read(path.clone(), &[8; 16], &key(), Some(9)).map(drop).unwrap_err();
        assert_eq!(error.code(), "E_ANCHOR_FOREIGN");
        let error = demand(dir.path(), None).map(drop).unwrap_err();
        assert_eq!(error.code(), "E_STORE_IO", "a folder is no anchor");
    }
}
