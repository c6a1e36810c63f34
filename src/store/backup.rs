//! A copy of the store while it serves: the database at one moment, the keyring that opens all of it, the
//! descriptor last. Without its descriptor a folder is no store, so a copy that was cut short cannot be opened.
//!
//! Nobody waits for it: the database is copied beside the committer. The keyring is whole for that copy if it was
//! the same before and after, for a data key is in it before its first record and leaves it after its last.
//! Whoever opens the copy makes a new data key first, so no nonce repeats, however many open it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::anchor::ANCHOR_FILE;
use super::error::StoreError;
use super::keyring_file::COPIES;
use super::open::DATABASE_DIR;
use super::rocks::Rocks;
use super::{DESCRIPTOR_FILE, Mode, Store, files};
use crate::seal::keyring::SealedKeyring;

/// The note in a backup: what it is a copy of. Nothing reads it but people and scripts.
pub const BACKUP_FILE: &str = "SEALMQ_BACKUP";

/// Copies of the database that are made before giving up, because the keyring changed during each.
const ATTEMPTS_MAX: usize = 3;

/// A backup that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Where it is.
    pub dir: PathBuf,
    /// It holds everything up to this commit at least.
    pub commit_seq: u64,
    /// The keyring's; 0 in a plain store.
    pub keyring_generation: u64,
    /// All its files together, in bytes; what is linked to the store's own files takes no space of its own yet.
    pub bytes: u64,
}

/// A copy of the keyring: its generation and its bytes.
type Ring = (u64, Vec<u8>);

impl Store {
    /// Copies the store into `dir`, which must be empty or not exist, while it goes on serving. What was durable
    /// before the call is in the copy. Blocks for as long as copying takes.
    ///
    /// # Errors
    /// `E_BACKUP_TARGET` and `E_BACKUP_BUSY` before anything is made; whatever fails later leaves nothing behind.
    pub fn backup(&self, dir: &Path) -> Result<Backup, StoreError> {
        self.backup_and(dir, || {})
    }

    /// `between` is called after each copy of the database.
    pub(super) fn backup_and(&self, dir: &Path, between: impl FnMut()) -> Result<Backup, StoreError> {
        self.check()?;
        let busy = |reason| StoreError::BackupBusy { dir: self.dir.clone(), reason };
        let _one =
            OneAtATime::begin(&self.core.backing_up).ok_or_else(|| busy("another one is being made"))?;
        let rocks = self.rocks.upgrade().ok_or_else(|| busy("the store is closed"))?;
        let target = Target::prepare(dir, &self.dir)?;
        let made = self.copy(&rocks, &target.dir, between);
        if made.is_err() {
            target.clear();
        }
        made
    }

    fn copy(&self, rocks: &Arc<Rocks>, dir: &Path, mut between: impl FnMut()) -> Result<Backup, StoreError> {
        let commit_seq = self.core.counters.commit_seq.load(Ordering::Relaxed);
        // Before the database, so that the copy is never behind it; from wherever the store has it.
        copy_small(&self.anchor, dir, ANCHOR_FILE)?;
        let database = dir.join(DATABASE_DIR);
        let mut ring = self.ring()?;
        for attempt in 1.. {
            rocks.checkpoint(&database)?;
            between();
            let after = self.ring()?;
            // Not by the generation: what a failed write left may be there without being in use.
            if ring == after {
                break;
            }
            if attempt == ATTEMPTS_MAX {
                let reason = "the keyring changes all the time";
                return Err(StoreError::BackupBusy { dir: self.dir.clone(), reason });
            }
            fs::remove_dir_all(&database).map_err(|e| StoreError::io("remove", &database, e))?;
            ring = after;
        }
        if let Some((_, bytes)) = &ring {
            for name in COPIES {
                let holds = |written| SealedKeyring::parse(written).map(drop).map_err(|e| e.to_string());
                files::replace(dir, name, bytes, holds)?;
            }
        }
        let made = Backup {
            dir: dir.to_path_buf(),
            commit_seq,
            keyring_generation: generation(&ring),
            bytes: size(dir)?,
        };
        let note = json!({
            "format": 1,
            "at_rest_mode": self.mode.name(),
            "commit_seq": made.commit_seq,
            "keyring_generation": made.keyring_generation,
        });
        files::replace(dir, BACKUP_FILE, format!("{note:#}\n").as_bytes(), |_| Ok(()))?;
        files::sync_dir(&database)?;
        copy_small(&self.dir.join(DESCRIPTOR_FILE), dir, DESCRIPTOR_FILE)?;
        dir.parent().map_or(Ok(()), files::sync_dir)?;
        Ok(made)
    }

    /// The newest copy of the keyring that holds together; needs no key. `None` in a plain store.
    fn ring(&self) -> Result<Option<Ring>, StoreError> {
        if self.mode == Mode::PlainInsecure {
            return Ok(None);
        }
        let (mut newest, mut faults): (Option<Ring>, Vec<String>) = (None, Vec::new());
        for name in COPIES {
            let Some(bytes) = files::read(&self.dir.join(name))? else {
                faults.push(format!("{name}: it is missing"));
                continue;
            };
            match SealedKeyring::parse(bytes.clone()) {
                Err(e) => faults.push(format!("{name}: {e}")),
                Ok(ring) if newest.as_ref().is_none_or(|(newest, _)| *newest < ring.generation) => {
                    newest = Some((ring.generation, bytes));
                }
                Ok(_) => {}
            }
        }
        let corrupt = || StoreError::KeyringCorrupt { dir: self.dir.clone(), detail: faults.join("; ") };
        newest.ok_or_else(corrupt).map(Some)
    }
}

fn generation(ring: &Option<Ring>) -> u64 {
    ring.as_ref().map_or(0, |(generation, _)| *generation)
}

/// Copies a small file, if there is one, into a folder.
fn copy_small(from: &Path, to: &Path, name: &str) -> Result<(), StoreError> {
    match files::read(from)? {
        Some(bytes) => files::replace(to, name, &bytes, |_| Ok(())),
        None => Ok(()),
    }
}

/// Whether others than root, the broker's user and its groups may rename or remove entries of a folder; its path, and why.
fn others_may_rename_in(folder: &Path) -> Option<(String, String)> {
    const STICKY: u32 = 0o1000;
    let why = match fs::metadata(folder) {
        Err(e) => e.to_string(),
        Ok(facts) => {
            let (uid, gid, mode) = (facts.uid(), facts.gid(), facts.mode());
            let is_ours = uid == 0 || uid == rustix::process::geteuid().as_raw();
            // Who shares a group with the broker, as on the volumes of a pod, was put there by its operator.
            let own_groups = rustix::process::getgroups().unwrap_or_default();
            let shares = gid == rustix::process::getegid().as_raw()
                || own_groups.iter().any(|own| own.as_raw() == gid);
            let others = if shares { 0o002 } else { 0o022 };
            if is_ours && (mode & others == 0 || mode & STICKY != 0) {
                return None;
            }
            format!("user {uid}, group {gid}, mode {:04o}", mode & 0o7777)
        }
    };
    Some((folder.display().to_string(), why))
}

/// All files below a folder together, in bytes.
fn size(dir: &Path) -> Result<u64, StoreError> {
    let failed = |e| StoreError::io("read", dir, e);
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let facts = entry.metadata().map_err(failed)?;
        bytes += if facts.is_dir() { size(&entry.path())? } else { facts.len() };
    }
    Ok(bytes)
}

/// Held while a backup is being made.
struct OneAtATime<'a>(&'a AtomicBool);

impl<'a> OneAtATime<'a> {
    fn begin(flag: &'a AtomicBool) -> Option<OneAtATime<'a>> {
        (!flag.swap(true, Ordering::Acquire)).then_some(OneAtATime(flag))
    }
}

impl Drop for OneAtATime<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The folder of a backup, empty and the owner's alone.
struct Target {
    dir: PathBuf,
    /// Whether the folder itself is ours to remove.
    is_new: bool,
}

impl Target {
    fn prepare(dir: &Path, data: &Path) -> Result<Target, StoreError> {
        let refused = |reason: String| StoreError::BackupTarget { dir: dir.to_path_buf(), reason };
        let failed = |e: std::io::Error| refused(e.to_string());
        if !dir.is_absolute() {
            return Err(refused("the path is not absolute".into()));
        }
        let parent = dir.parent().ok_or_else(|| refused("it is the root of the file system".into()))?;
        let parent = fs::canonicalize(parent).map_err(|e| refused(format!("{}: {e}", parent.display())))?;
        if parent.starts_with(fs::canonicalize(data).map_err(failed)?) {
            return Err(refused("it lies in the data directory".into()));
        }
        // Who can put something else in the folder's place would choose where the broker writes, and what it removes
        // when it fails.
        if let Some((place, owner)) = parent.ancestors().find_map(others_may_rename_in) {
            return Err(refused(format!(
                "others than the broker's user may rename what is in {place} ({owner})"
            )));
        }
        let is_new = match fs::symlink_metadata(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => true,
            Err(e) => return Err(failed(e)),
            Ok(facts) if !facts.is_dir() => return Err(refused("it is no folder".into())),
            Ok(facts) if facts.uid() != rustix::process::geteuid().as_raw() => {
                return Err(refused(format!("it belongs to user {}", facts.uid())));
            }
            Ok(_) if fs::read_dir(dir).map_err(failed)?.next().is_some() => {
                return Err(refused("it is not empty".into()));
            }
            Ok(_) => false,
        };
        if is_new {
            fs::DirBuilder::new().mode(0o700).create(dir).map_err(failed)?;
        } else {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(Target { dir: dir.to_path_buf(), is_new })
    }

    /// Removes what a backup that failed has made; the folder was empty before.
    fn clear(&self) {
        let removed = fs::read_dir(&self.dir).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
            if self.is_new { fs::remove_dir(&self.dir) } else { Ok(()) }
        });
        if let Err(error) = removed {
            tracing::warn!(dir = %self.dir.display(), "what is left of a failed backup cannot be removed: {error}");
        }
    }
}
