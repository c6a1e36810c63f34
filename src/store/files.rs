//! Small files of the data directory, replaced whole: temporary file, sync, read back, rename, sync the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::error::StoreError;

/// None of the small files comes near this; a larger one is not ours and is not read into memory.
const SMALL_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Creates a folder that only its owner may enter, for good; one that exists stays as it is.
pub(super) fn create_dir(path: &Path) -> Result<(), StoreError> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| *folder != Path::new("") && !folder.exists()).collect();
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|e| StoreError::io("create", path, e))?;
    missing.into_iter().try_for_each(|made| sync_dir(folder_of(made)))
}

/// The folder that a file or a folder stands in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Opens a file for reading. What is no regular file is refused, not waited for: a pipe could keep the start for ever.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(never_wait()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

fn never_wait() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

/// A small file's bytes; `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |e| StoreError::io("read", path, e);
    let file = match open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// As [`replace`], and writes zeros over the file that was there, if nobody else has a link to it: on a disk that
/// writes in place, nothing is left of what the new file does not have any more.
pub(super) fn replace_secret(
    dir: &Path,
    name: &str,
    bytes: &[u8],
    check: impl FnOnce(Vec<u8>) -> Result<(), String>,
) -> Result<(), StoreError> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.tmp")));
    // A crash may have left one behind.
    overwrite(open_to_overwrite(&temporary), 1);
    let old = open_to_overwrite(&path);
    replace(dir, name, bytes, check)?;
    overwrite(old, 0);
    Ok(())
}

fn open_to_overwrite(path: &Path) -> Option<File> {
    OpenOptions::new().write(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path).ok()
}

/// Zeros over all of a file that has `links` names left. It is better gone than whole, and not worth an error.
fn overwrite(file: Option<File>, links: u64) {
    let Some(mut file) = file else { return };
    let cleared = file.metadata().and_then(|facts| match facts.nlink() <= links && facts.is_file() {
        true => {
            std::io::copy(&mut std::io::repeat(0).take(facts.len()), &mut file).and_then(|_| file.sync_all())
        }
        false => Ok(()),
    });
    if let Err(error) = cleared {
        tracing::warn!("a former keyring cannot be overwritten: {error}");
    }
}

/// Replaces `dir/name` by `bytes`; afterwards either the old or the new file is there, whatever happens.
/// `check` sees what was really written, before it takes the old file's place.
pub(super) fn replace(
    dir: &Path,
    name: &str,
    bytes: &[u8],
    check: impl FnOnce(Vec<u8>) -> Result<(), String>,
) -> Result<(), StoreError> {
    let temporary = dir.join(format!("{name}.tmp"));
    let failed = |e| StoreError::io("write", &temporary, e);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    drop(file);
    let written = read(&temporary)?.unwrap_or_default();
    if written != bytes {
        return Err(failed(std::io::Error::other("it reads back as something else")));
    }
    check(written).map_err(|reason| failed(std::io::Error::other(reason)))?;
    let target = dir.join(name);
    fs::rename(&temporary, &target).map_err(|e| StoreError::io("replace", &target, e))?;
    sync_dir(dir)
}

/// Makes renames and creations in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(|e| StoreError::io("sync", dir, e))
}

/// A lock on a folder, given back when it is dropped.
pub(super) struct FolderLock(Option<File>);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a process that was forked meanwhile. If this fails, so be it.
        let _ = self.0.take().map(|file| file.unlock());
    }
}

/// Holds `dir/name` exclusively until the lock is dropped; `None` when another process (or another store
/// of this one) has it.
pub(super) fn lock(dir: &Path, name: &str) -> Result<Option<FolderLock>, StoreError> {
    let path = dir.join(name);
    let failed = |e| StoreError::io("lock", &path, e);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(never_wait())
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(FolderLock(Some(file)))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Holds `dir/name` against whoever would lock it, without changing anything; `None` when somebody has it, and a
/// lock on nothing when there is no such file, since nobody can have it then.
pub(super) fn lock_shared(dir: &Path, name: &str) -> Result<Option<FolderLock>, StoreError> {
    let path = dir.join(name);
    let failed = |e| StoreError::io("lock", &path, e);
    let file = match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Some(FolderLock(None))),
        file => file.map_err(failed)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(FolderLock(Some(file)))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_replaced_file_is_private_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f.tmp"), "left behind by a crash").unwrap();
        for text in ["one", "two"] {
            replace(dir.path(), "f", text.as_bytes(), |_| Ok(())).unwrap();
            assert_eq!(read(&dir.path().join("f")).unwrap().unwrap(), text.as_bytes());
        }
        let mode = fs::metadata(dir.path().join("f")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!dir.path().join("f.tmp").exists());
    }

    #[test]
    fn a_replaced_secret_leaves_zeros_unless_somebody_has_a_link_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "the first").unwrap();
        let mut held = File::open(&path).unwrap();
        replace_secret(dir.path(), "f", b"the second", |_| Ok(())).unwrap();
        let mut left = Vec::new();
        held.read_to_end(&mut left).unwrap();
        assert_eq!(left, [0; 9]);
        fs::hard_link(&path, dir.path().join("copy")).unwrap();
        replace_secret(dir.path(), "f", b"the third", |_| Ok(())).unwrap();
        assert_eq!(fs::read(dir.path().join("copy")).unwrap(), b"the second");
        assert_eq!(fs::read(&path).unwrap(), b"the third");
        // One that a crash left under its temporary name.
        let temporary = dir.path().join("f.tmp");
        fs::write(&temporary, "the fourth").unwrap();
        let mut held = File::open(&temporary).unwrap();
        replace_secret(dir.path(), "f", b"the fifth", |_| Ok(())).unwrap();
        left.clear();
        held.read_to_end(&mut left).unwrap();
        assert_eq!(left, [0; 10]);
    }

    #[test]
    fn a_file_that_fails_its_check_does_not_replace_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        replace(dir.path(), "f", b"old", |_| Ok(())).unwrap();
        let error = replace(dir.path(), "f", b"new", |_| Err("no".into())).unwrap_err();
        assert_eq!(error.code(), "E_STORE_IO");
        assert_eq!(read(&dir.path().join("f")).unwrap().unwrap(), b"old");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), dir.path()] {
            assert_eq!(read(path).unwrap_err().code(), "E_STORE_IO");
        }
        assert_eq!(lock(dir.path(), "pipe").map(|_| ()).unwrap_err().code(), "E_STORE_IO");
    }

    #[test]
    fn folders_are_made_with_their_parents_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir(&deep).unwrap();
        create_dir(&deep).unwrap();
        assert_eq!(fs::metadata(deep).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_lock_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), "l").unwrap();
        assert!(held.is_some() && lock(dir.path(), "l").unwrap().is_none());
        drop(held);
        assert!(lock(dir.path(), "l").unwrap().is_some());
    }
}
