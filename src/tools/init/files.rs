//! The only place of `sealmq-init` that touches a file system: locks, folders, whole-file replacement.
//! It knows nothing about what the files mean.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::Error;

/// More than any certificate chain, key or manifest; a larger file is not ours.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Who owns what is written (`--chown UID[:GID]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id; the writing process's own when `None`.
    pub gid: Option<u32>,
}

/// How a file is to stand on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// Permission bits.
    pub(super) mode: u32,
    /// Owner, or the process's own.
    pub(super) owner: Option<Owner>,
}

/// Holds an advisory lock on a folder until dropped, so that two runs at once do not interleave.
/// The kernel lets go of it when the process dies, so it is never stale.
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Waits until no other run works in `folder`. The lock file gets the owner of all the rest, so that
    /// this owner can run the program the next time.
    pub(super) fn acquire(folder: &Path, owner: Option<Owner>) -> Result<FolderLock, Error> {
        let path = folder.join(".sealmq-init.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("open the lock file", &path))?;
        if let Some(Owner { uid, gid }) = owner {
            fchown(&file, Some(uid), gid).map_err(Error::io("change the owner of", &path))?;
        }
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(FolderLock { _file: file })
    }
}

/// Creates `path` (and its parents) with `access` where it does not exist; an existing folder keeps its
/// mode, except that bits in `widen` are added to it. The owner, if one is asked for, is set in any case.
pub(super) fn ensure_folder(path: &Path, access: Access, widen: u32) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let mode = found.permissions().mode() & 0o7777;
            if mode & widen != widen {
                fs::set_permissions(path, Permissions::from_mode(mode | widen))
                    .map_err(Error::io("change the mode of", path))?;
            }
            set_owner(path, access)
        }
        Ok(_) => Err(Error::io("create the folder", path)(io::Error::from(io::ErrorKind::NotADirectory))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(access.mode)
                .create(path)
                .map_err(Error::io("create the folder", path))?;
            // The process's umask may have taken bits away.
            fs::set_permissions(path, Permissions::from_mode(access.mode))
                .map_err(Error::io("change the mode of", path))?;
            set_owner(path, access)
        }
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

/// An existing folder as well: a container's volume belongs to root at first, and its owner-to-be could
/// not renew anything in it.
fn set_owner(path: &Path, access: Access) -> Result<(), Error> {
    match access.owner {
        Some(Owner { uid, gid }) => {
            chown(path, Some(uid), gid).map_err(Error::io("change the owner of", path))
        }
        None => Ok(()),
    }
}

/// The file's bytes, or `None` where there is no such file. The buffer is wiped when dropped.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(8 * 1024));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::damaged(path, format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}

/// Permission bits of an existing file, `None` where there is none. Follows links.
pub(super) fn mode_of(path: &Path) -> Result<Option<u32>, Error> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found.permissions().mode() & 0o7777)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

/// Sets the permission bits of an existing file; says whether they were different.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<bool, Error> {
    if mode_of(path)? == Some(mode) {
        return Ok(false);
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("change the mode of", path))?;
    Ok(true)
}

/// Replaces `path` whole: a reader sees the old bytes or the new ones, also after a power cut. The
/// caller holds the folder's lock, so a leftover of a killed run may be removed.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], access: Access) -> Result<(), Error> {
    let temporary = temporary_beside(path);
    match fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove the leftover", &temporary)(error)),
    }
    let written = write_new(&temporary, bytes, access)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io("put in place", path)));
    if written.is_err() {
        // The first error is the one worth telling; a leftover is removed by the next run as well.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync the folder", folder))
}

fn write_new(path: &Path, bytes: &[u8], access: Access) -> Result<(), Error> {
    // Born private: the final mode is given only when the file is complete.
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    if let Some(Owner { uid, gid }) = access.owner {
        fchown(&file, Some(uid), gid).map_err(Error::io("change the owner of", path))?;
    }
    file.set_permissions(Permissions::from_mode(access.mode))
        .map_err(Error::io("change the mode of", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: Access = Access { mode: 0o400, owner: None };

    #[test]
    fn replaces_a_file_whole_with_its_mode_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(temporary_beside(&path), "left by a killed run").unwrap();
        write_atomically(&path, b"one", PRIVATE).unwrap();
        write_atomically(&path, b"two", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode_of(&path).unwrap(), Some(0o400));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_the_path_and_what_was_tried() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/key.pem");
        let error = write_atomically(&path, b"", PRIVATE).unwrap_err().to_string();
        assert!(error.contains("create") && error.contains("absent"), "{error}");
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = ensure_folder(&file, PRIVATE, 0).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
    }

    #[test]
    fn refuses_to_read_a_file_that_cannot_be_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.pem");
        File::create(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("larger"));
        assert!(read(&folder.path().join("absent")).unwrap().is_none());
    }

    #[test]
    fn an_existing_folder_keeps_its_mode_but_for_what_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private");
        let access = Access { mode: 0o750, owner: None };
        ensure_folder(&path, access, 0).unwrap();
        assert_eq!(mode_of(&path).unwrap(), Some(0o750));
        ensure_folder(&path, Access { mode: 0o700, owner: None }, 0).unwrap();
        assert_eq!(mode_of(&path).unwrap(), Some(0o750));
        ensure_folder(&path, access, 0o755).unwrap();
        assert_eq!(mode_of(&path).unwrap(), Some(0o755));
    }
}
