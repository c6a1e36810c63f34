//! Fetches the key-encryption key from where the configuration says, or makes one where it may. The
//! key's own checks (mode, length, owner) are the store's; nothing here prints it.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::seal::{Kek, random};
use crate::store::{StoreError, kek_from_file, kek_from_text};

use super::at_rest::KekSource;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is there and unusable.
    #[error("{code}: {0} ({remedy})", code = .0.code(), remedy = .0.remedy())]
    Unusable(#[from] StoreError),
    /// A new one cannot be kept.
    #[error("cannot make a key for data at rest at {}: {reason}; set at_rest.kek.file or make the folder writable", path.display())]
    NotMade {
        /// where
        path: PathBuf,
        /// why
        reason: String,
    },
}

/// Reads the key, or makes a new one for a store that does not exist yet.
pub(super) fn load(source: &KekSource) -> Result<Kek, KeyError> {
    match source {
        KekSource::File(path) => Ok(kek_from_file(path)?),
        KekSource::Value(value) => Ok(kek_from_text("the environment", value.expose())?),
        KekSource::Generate { path } => {
            make(path).map_err(|reason| KeyError::NotMade { path: path.clone(), reason })?;
            tracing::warn!(
                path = %path.display(),
                "NO KEY WAS CONFIGURED: a new key-encryption key was made. Without this file the data cannot \
                 be read by anybody: keep a copy apart from the data, and set at_rest.kek.file"
            );
            Ok(kek_from_file(path)?)
        }
    }
}

fn make(path: &Path) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(text)?;
    }
    let key = Zeroizing::new(random::<32>().map_err(|e| e.to_string())?);
    let mut line = Zeroizing::new(String::with_capacity(65));
    for byte in key.iter() {
        line.push_str(&format!("{byte:02x}"));
    }
    line.push('\n');
    // Whole or not at all: half a key would be refused by every later start.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(text(error)),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&temporary)
        .map_err(text)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(text)?;
    // Never over an existing file, as a rename would: that could be the only copy of a key.
    let linked = std::fs::hard_link(&temporary, path);
    std::fs::remove_file(&temporary).and(linked).map_err(text)?;
    match path.parent().map(std::fs::File::open) {
        Some(Ok(folder)) => folder.sync_all().map_err(text),
        Some(Err(error)) => Err(text(error)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_a_key_once_and_never_over_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets/at_rest_kek");
        assert!(load(&KekSource::Generate { path: path.clone() }).is_ok());
        assert!(load(&KekSource::File(path.clone())).is_ok());
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(load(&KekSource::Generate { path: path.clone() }), Err(KeyError::NotMade { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let files: Vec<_> = std::fs::read_dir(dir.path().join("secrets")).unwrap().collect();
        assert_eq!(files.len(), 1, "the temporary file is gone");
    }

    #[test]
    fn what_a_crash_left_of_a_key_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("at_rest_kek");
        std::fs::write(dir.path().join("at_rest_kek.tmp"), "half a ke").unwrap();
        assert!(load(&KekSource::Generate { path }).is_ok());
    }
}
