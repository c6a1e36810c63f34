//! Why a store does not open or no longer accepts anything: stable codes, and what to do (store.md 3).

use std::path::{Path, PathBuf};

/// A store that cannot be opened or used. [`StoreError::code`] is stable; scripts may rely on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the directory.
    #[error("{dir} is in use by another process")]
    Locked {
        /// The data directory.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {doing} {path}: {error}")]
    Io {
        /// A verb: read, write, create ...
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// No KEK was given for a sealed store.
    #[error("the store in {dir} is sealed, and no key was given")]
    KekMissing {
        /// The data directory.
        dir: PathBuf,
    },
    /// The KEK's source cannot be used; nothing of its content is told.
    #[error("the key in {source_name} cannot be used: {reason}")]
    KekUnusable {
        /// The file, or the name of the variable.
        source_name: String,
        /// Why.
        reason: String,
    },
    /// The KEK is not this store's.
    #[error("the key does not open the store in {dir}: {detail}")]
    KekWrong {
        /// The data directory.
        dir: PathBuf,
        /// Slot ids, never key bytes.
        detail: String,
    },
    /// The store exists, both copies of its keyring do not.
    #[error("the store in {dir} has neither keyring nor keyring.mirror")]
    KeyringMissing {
        /// The data directory.
        dir: PathBuf,
    },
    /// No copy of the keyring is usable.
    #[error("no copy of the keyring in {dir} is usable: {detail}")]
    KeyringCorrupt {
        /// The data directory.
        dir: PathBuf,
        /// What is wrong with each copy.
        detail: String,
    },
    /// The keyring is older than the store.
    #[error("the keyring in {dir} has generation {found}, and the store was written under {expected}")]
    KeyringRollback {
        /// The data directory.
        dir: PathBuf,
        /// The keyring's generation.
        found: u64,
        /// The commit row's.
        expected: u64,
    },
    /// Files of a store without the file that says what they are.
    #[error("{dir} holds {what}, but no SEALMQ_STORE")]
    StoreMissing {
        /// The data directory.
        dir: PathBuf,
        /// What was found.
        what: &'static str,
    },
    /// The descriptor cannot be trusted.
    #[error("{path} is not this store's descriptor: {reason}")]
    Descriptor {
        /// The descriptor.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Sealed and plain do not mix.
    #[error("{what}: the store in {dir} is {found}, and {wanted} was asked for")]
    PlainInSealed {
        /// The data directory.
        dir: PathBuf,
        /// A record's place, or the mode as a whole.
        what: String,
        /// The mode that was found.
        found: &'static str,
        /// The mode that was expected.
        wanted: &'static str,
    },
    /// A database that was there is gone.
    #[error("the store in {dir} has a keyring of generation {generation}, but its database is gone")]
    DatabaseMissing {
        /// The data directory.
        dir: PathBuf,
        /// The keyring's generation.
        generation: u64,
    },
    /// RocksDB cannot open or read its files.
    #[error("the database in {path} cannot be read: {reason}")]
    Database {
        /// The database's folder.
        path: PathBuf,
        /// What RocksDB said.
        reason: String,
    },
    /// A row, a manifest or the commit row does not open.
    #[error("{record} in {dir} is damaged: {reason}")]
    MetadataDamaged {
        /// The data directory.
        dir: PathBuf,
        /// Which.
        record: String,
        /// Why it does not open.
        reason: String,
    },
    /// Records whose data key the keyring does not hold.
    #[error("{count} records in {dir} need data keys that the keyring does not hold (first: key {key_id})")]
    DataKeyMissing {
        /// The data directory.
        dir: PathBuf,
        /// How many records.
        count: u64,
        /// One of the keys.
        key_id: u32,
    },
    /// The system gave no randomness or no thread.
    #[error("the store in {dir} cannot start: {reason}")]
    System {
        /// The data directory.
        dir: PathBuf,
        /// What was refused.
        reason: String,
    },
    /// A commit has failed; nothing is accepted any more.
    #[error("the store in {dir} has stopped: {failure}")]
    Stopped {
        /// The data directory.
        dir: PathBuf,
        /// What happened.
        failure: CommitFailure,
    },
    /// The disk did not answer in time.
    #[error("the store in {dir} did not commit within {seconds} s")]
    Stuck {
        /// The data directory.
        dir: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

/// What became of the batch that failed. Set once; the store accepts nothing afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitFailure {
    /// Nothing of the batch was written.
    #[error("a commit was refused before anything was written: {0}")]
    Refused(String),
    /// The batch may or may not be found after a restart.
    #[error("a commit failed, and what was written of it is unknown: {0}")]
    Unknown(String),
}

impl StoreError {
    /// A stable name for scripts, logs and manuals.
    pub fn code(&self) -> &'static str {
        match self {
            StoreError::Locked { .. } => "E_STORE_LOCKED",
            StoreError::Io { .. } => "E_STORE_IO",
            StoreError::KekMissing { .. } => "E_KEK_UNAVAILABLE",
            StoreError::KekUnusable { .. } => "E_KEK_UNAVAILABLE",
            StoreError::KekWrong { .. } => "E_KEK_WRONG",
            StoreError::KeyringMissing { .. } => "E_KEYRING_MISSING",
            StoreError::KeyringCorrupt { .. } => "E_KEYRING_CORRUPT",
            StoreError::KeyringRollback { .. } => "E_KEYRING_ROLLBACK",
            StoreError::StoreMissing { .. } => "E_STORE_MISSING",
            StoreError::Descriptor { .. } => "E_DESCRIPTOR_CORRUPT",
            StoreError::PlainInSealed { .. } => "E_PLAIN_IN_SEALED",
            StoreError::DatabaseMissing { .. } => "E_DB_MISSING",
            StoreError::Database { .. } => "E_DB_CORRUPT",
            StoreError::MetadataDamaged { .. } => "E_METADATA_DAMAGED",
            StoreError::DataKeyMissing { .. } => "E_DEK_MISSING",
            StoreError::System { .. } => "E_SYSTEM",
            StoreError::Stopped { .. } => "E_COMMIT_FAILED",
            StoreError::Stuck { .. } => "E_COMMIT_STUCK",
        }
    }

    /// What to do about it, in one line.
    pub fn remedy(&self) -> &'static str {
        match self {
            StoreError::Locked { .. } => {
                "stop the other broker, or give this one a data directory of its own"
            }
            StoreError::Io { .. } => {
                "check that the folder exists, belongs to the broker's user and has space"
            }
            StoreError::KekMissing { .. } => "name the key: at_rest.kek.file or at_rest.kek.env",
            StoreError::KekUnusable { .. } => {
                "give 32 random bytes (raw, 64 hex digits or base64) in a regular file of mode 0400 that belongs to the broker's user"
            }
            StoreError::KekWrong { .. } => {
                "give the key that this store was created with, or restore it from its backup"
            }
            StoreError::KeyringMissing { .. } | StoreError::KeyringCorrupt { .. } => {
                "restore keyring or keyring.mirror from a backup; without one of them the messages cannot be read"
            }
            StoreError::KeyringRollback { .. } => {
                "restore the keyring that belongs to this state of the database"
            }
            StoreError::StoreMissing { .. } => {
                "restore SEALMQ_STORE from a backup, or use an empty data directory"
            }
            StoreError::Descriptor { .. } => "restore SEALMQ_STORE from a backup",
            StoreError::PlainInSealed { .. } => {
                "a store keeps the mode that it was created with: set at_rest.mode accordingly, or use another data directory"
            }
            StoreError::DatabaseMissing { .. } => {
                "restore the folder db from a backup, or use an empty data directory"
            }
            StoreError::Database { .. } | StoreError::MetadataDamaged { .. } => {
                "restore the data directory from a backup; keep the damaged one for examination"
            }
            StoreError::DataKeyMissing { .. } => "restore the newest keyring; it holds the missing keys",
            StoreError::System { .. } => "check the limits of the process and its system call filter",
            StoreError::Stopped { .. } => "check the disk, then restart; what was confirmed is kept",
            StoreError::Stuck { .. } => "check the disk: it does not complete a synced write",
        }
    }

    pub(super) fn io(doing: &'static str, path: &Path, error: impl Into<std::io::Error>) -> StoreError {
        StoreError::Io { doing, path: path.to_path_buf(), error: error.into() }
    }

    pub(super) fn system(dir: &Path, reason: impl std::fmt::Display) -> StoreError {
        StoreError::System { dir: dir.to_path_buf(), reason: reason.to_string() }
    }
}
