//! Fetches the key-encryption key or the passphrase from where the configuration says, or makes a key where it may.
//! Their own checks (mode, length, owner) are the store's; nothing here prints them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::limits::PASSPHRASE_BYTES_MAX;
use crate::seal::key_service::ServiceError;
use crate::seal::{self, Credential, random};
use crate::store::{
    StoreError, kek_from_bytes, kek_from_credential, kek_from_file, kek_from_text, passphrase_from_bytes,
    passphrase_from_file,
};

use super::at_rest::{KekSource, STORE_FILE};
use super::{descriptor, key_command, key_service, prompt};

/// How long a command may take to print the key.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is there and unusable.
    #[error("{code}: {0} ({remedy})", code = .0.code(), remedy = .0.remedy())]
    Unusable(#[from] StoreError),
    /// Whoever should give it does not.
    #[error("E_KEK_UNAVAILABLE: {name}: {reason} ({remedy})")]
    NotGiven {
        /// the configuration's key
        name: String,
        /// why
        reason: String,
        /// what to do
        remedy: &'static str,
    },
    /// The service that keeps it does not give it.
    #[error("{code}: {0} ({remedy})", code = .0.code, remedy = .0.remedy)]
    Service(#[from] ServiceError),
    /// A new one cannot be kept.
    #[error("cannot make a key for data at rest at {}: {reason}; set at_rest.kek.file or make the folder writable", path.display())]
    NotMade {
        /// where
        path: PathBuf,
        /// why
        reason: String,
    },
}

/// Reads the key or the passphrase, or makes a new key for a store that does not exist yet.
pub(super) fn load(source: &KekSource, data_dir: &Path) -> Result<Credential, KeyError> {
    let credential = match source {
        KekSource::File(path) => {
            warn_of_one_disk(path, data_dir);
            kek_from_file(path)?.into()
        }
        KekSource::Value(value) => kek_from_text("the environment", value.expose())?.into(),
        KekSource::Credential(path) => kek_from_credential(path)?.into(),
        KekSource::Descriptor(number) => {
            let bytes = inherited(*number, "at_rest.kek.fd", KEY_BYTES_MAX)?;
            kek_from_bytes(&format!("descriptor {number}"), &bytes)?.into()
        }
        KekSource::Command(words) => {
            kek_from_bytes("what at_rest.kek.command prints", &printed(words)?)?.into()
        }
        KekSource::PassphraseFile(path) => {
            warn_of_one_disk(path, data_dir);
            Credential::Passphrase(passphrase_from_file(path)?)
        }
        KekSource::PassphraseDescriptor(number) => {
            let bytes = inherited(*number, "at_rest.kek.passphrase_fd", PASSPHRASE_BYTES_MAX + 2)?;
            Credential::Passphrase(passphrase_from_bytes(&format!("descriptor {number}"), &bytes)?)
        }
        KekSource::PassphrasePrompt => Credential::Passphrase(typed(!data_dir.join(STORE_FILE).exists())?),
        KekSource::Service(place) => {
            if let Some(path) = place.secret_file() {
                warn_of_one_disk(path, data_dir);
            }
            let service = key_service::connect(place)?;
            if !data_dir.join(STORE_FILE).exists() {
                // Before anything is made that nobody could open.
                seal::key_service::probe(service.as_ref())?;
            }
            Credential::Service(service)
        }
        KekSource::Generate { path } => {
            make(path).map_err(|reason| KeyError::NotMade { path: path.clone(), reason })?;
            tracing::warn!(
                path = %path.display(),
                "NO KEY WAS CONFIGURED: a new key-encryption key was made. Without this file the data cannot \
                 be read by anybody: keep a copy apart from the data, and set at_rest.kek.file"
            );
            kek_from_file(path)?.into()
        }
    };
    Ok(credential)
}

/// A key in one of its forms with a line end, and room to see that there is more.
const KEY_BYTES_MAX: usize = 128;

/// Reads an inherited descriptor to its end. The descriptor itself stays open.
fn inherited(number: u32, name: &str, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    let file = descriptor::inherited(number);
    let read = file.and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes));
    match read {
        Ok(0) => Err(std::io::Error::other("it is empty")),
        Ok(_) => Ok(bytes),
        Err(e) => Err(e),
    }
    .map_err(|e| KeyError::NotGiven {
        name: name.into(),
        reason: format!("descriptor {number}: {e}"),
        remedy: "start the broker with a pipe or a file at this number, as in `sealmq 3< KEY_FILE`",
    })
}

fn printed(words: &[String]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    key_command::output_of(words, COMMAND_TIMEOUT).map_err(|reason| KeyError::NotGiven {
        name: "at_rest.kek.command".into(),
        reason,
        remedy: "run it by hand as the broker's user: it must print the key, nothing else, and exit with 0 within 10 s",
    })
}

/// A new store's is asked for twice: nobody could open it with what was meant.
fn typed(is_new: bool) -> Result<crate::seal::Passphrase, KeyError> {
    let not_given = |reason: String| KeyError::NotGiven {
        name: "at_rest.kek.passphrase_prompt".into(),
        reason,
        remedy: "start the broker at a terminal, or use at_rest.kek.passphrase_fd",
    };
    let ask = |question| prompt::passphrase(question).map_err(|e| not_given(format!("the terminal: {e}")));
    let line = ask("Passphrase of the store")?;
    if is_new && *line != *ask("Once more, for a new store")? {
        return Err(not_given("the two passphrases differ".into()));
    }
    Ok(passphrase_from_bytes("what was typed", &line)?)
}

fn warn_of_one_disk(key: &Path, data_dir: &Path) {
    if share_a_file_system(key, data_dir) {
        tracing::warn!(
            key = %key.display(),
            data_dir = %data_dir.display(),
            "the key and the data are on one file system: whoever copies the disk has both"
        );
    }
}

/// Whether both are on one file system; what does not exist counts as its folder.
fn share_a_file_system(one: &Path, other: &Path) -> bool {
    let device =
        |path: &Path| path.ancestors().find_map(|p| std::fs::metadata(p).ok()).map(|facts| facts.dev());
    matches!((device(one), device(other)), (Some(one), Some(other)) if one == other)
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
    use std::fs::File;

    fn load(source: &KekSource) -> Result<Credential, KeyError> {
        super::load(source, Path::new("/nowhere"))
    }

    fn refusal(source: &KekSource) -> String {
        let text = load(source).err().expect("refused").to_string();
        assert!(text.starts_with("E_KEK_UNAVAILABLE: "), "{text}");
        text
    }

    fn id(source: &KekSource) -> [u8; 16] {
        match load(source) {
            Ok(Credential::Key(kek)) => kek.slot_id(),
            _ => panic!("no key from {source:?}"),
        }
    }

    #[test]
    fn a_command_and_a_descriptor_give_the_key_that_a_file_gives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        assert!(make(&path).is_ok());
        let wanted = id(&KekSource::File(path.clone()));
        let cat = |words: &[&str]| KekSource::Command(words.iter().map(|word| word.to_string()).collect());
        let path_text = path.display().to_string();
        assert_eq!(id(&cat(&["/bin/cat", &path_text])), wanted);
        let file = File::open(&path).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file) as u32;
        assert_eq!(id(&KekSource::Descriptor(number)), wanted);
        assert!(
            refusal(&cat(&["/bin/cat", &path_text, &path_text, &path_text])).contains("more than 128 bytes")
        );
        assert!(refusal(&cat(&["/bin/cat", &path_text, "/no/such/file"])).contains("run it by hand"));
        assert!(refusal(&cat(&["/bin/echo", "short"])).contains("neither 32 raw bytes"));
        assert!(refusal(&KekSource::Descriptor(60_000)).contains("descriptor 60000"));
        let empty = File::open("/dev/null").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&empty) as u32;
        assert!(refusal(&KekSource::Descriptor(number)).contains("it is empty"));
        assert!(refusal(&KekSource::PassphraseDescriptor(number)).contains("it is empty"));
    }

    #[test]
    fn one_disk_for_key_and_data_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(share_a_file_system(dir.path(), &dir.path().join("not/there/yet")));
        assert!(!share_a_file_system(Path::new("/proc/self/status"), dir.path()));
    }

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
