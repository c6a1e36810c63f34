//! Why a store does not open or no longer accepts anything: stable codes, and what to do.

use std::path::{Path, PathBuf};

use crate::broker::id::{QueueId, Seq};
use crate::seal::key_service::ServiceError;
use crate::seal::keyring::KeyringError;

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
    /// The service that keeps the KEK does not give it.
    #[error("{0}")]
    KeyService(#[from] ServiceError),
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
    #[error("the store in {dir} was in use, but its database is gone: {evidence}")]
    DatabaseMissing {
        /// The data directory.
        dir: PathBuf,
        /// By what it is known to have been there.
        evidence: String,
    },
    /// A log of the database, its MANIFEST or CURRENT is damaged.
    #[error("{path} is damaged at byte {offset}: {reason}")]
    LogCorrupt {
        /// `E_WAL_CORRUPT`, `E_MANIFEST_CORRUPT` or `E_CURRENT_CORRUPT`.
        code: &'static str,
        /// The file.
        path: PathBuf,
        /// Where the record begins that is damaged.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// RocksDB does not come back from opening its files.
    #[error("the database in {path} did not open within {seconds} s; the check before it said: {findings}")]
    OpenTimeout {
        /// The database's folder.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
        /// What the look at its logs has shown.
        findings: String,
    },
    /// The database is older than its anchor.
    #[error(
        "the database in {dir} ends with commit {found}, and its anchor {path} tells of commit {expected}: what came between was confirmed and is gone"
    )]
    Rollback {
        /// The data directory.
        dir: PathBuf,
        /// The anchor.
        path: PathBuf,
        /// The database's last commit.
        found: u64,
        /// The anchor's.
        expected: u64,
    },
    /// The anchor of a store that had one is gone.
    #[error("the anchor {path} is missing (at commit {commit_seq} the store had it at '{before}')")]
    AnchorMissing {
        /// Where it should be.
        path: PathBuf,
        /// Where it was; empty when that is not known.
        before: String,
        /// The database's last commit.
        commit_seq: u64,
    },
    /// Neither slot of the anchor can be read.
    #[error("the anchor {path} is damaged (the database ends with commit {commit_seq})")]
    AnchorCorrupt {
        /// The anchor.
        path: PathBuf,
        /// The database's last commit.
        commit_seq: u64,
    },
    /// The anchor is another store's.
    #[error("the anchor {path} belongs to another store, or to one that was here before")]
    AnchorForeign {
        /// The anchor.
        path: PathBuf,
    },
    /// Queues do not hold the entries that their manifests count.
    #[error("the queues in {dir} are not what was committed: {}", QueueFaults(.faults))]
    QueueIntegrity {
        /// The data directory.
        dir: PathBuf,
        /// Each queue; empty when manifests or counts are missing or old, and it cannot be said whose.
        faults: Vec<QueueFault>,
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
    /// Messages whose data key the keyring does not hold.
    #[error("{count} messages in {dir} need data keys that the keyring does not hold (first: key {key_id})")]
    DataKeyMissing {
        /// The data directory.
        dir: PathBuf,
        /// How many messages.
        count: u64,
        /// One of the keys.
        key_id: u32,
    },
    /// A change of the keyring's slots that must not be made.
    #[error("{0}")]
    Slot(#[from] SlotRefusal),
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
    /// A backup cannot be made in that folder.
    #[error("no backup can be made in {dir}: {reason}")]
    BackupTarget {
        /// The folder.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// A backup cannot be made at this moment.
    #[error("no backup of {dir} can be made now: {reason}")]
    BackupBusy {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        reason: &'static str,
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

/// Why the keyring's slots stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotRefusal {
    /// A plain store has none.
    #[error("the store is plain-insecure and has no keyring")]
    NoKeyring,
    /// There are eight.
    #[error("the keyring has eight slots already")]
    Full,
    /// This key has one.
    #[error("the key has a slot already: {0}")]
    Exists(String),
    /// No slot has this id, or several do.
    #[error("`{0}` is not the beginning of exactly one slot's id")]
    Unknown(String),
    /// Without it nobody could open the store again.
    #[error("it is the last slot")]
    Last,
    /// The broker was started with it.
    #[error("the broker was started with this slot's key")]
    InUse,
}

impl SlotRefusal {
    fn code(&self) -> &'static str {
        match self {
            SlotRefusal::NoKeyring => "E_NO_KEYRING",
            SlotRefusal::Full => "E_SLOTS_FULL",
            SlotRefusal::Exists(_) => "E_SLOT_EXISTS",
            SlotRefusal::Unknown(_) => "E_SLOT_UNKNOWN",
            SlotRefusal::Last => "E_SLOT_LAST",
            SlotRefusal::InUse => "E_SLOT_IN_USE",
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            SlotRefusal::NoKeyring => {
                "only a sealed store has keys; a store keeps the mode that it was created with"
            }
            SlotRefusal::Full => "remove a slot that is not needed any more",
            SlotRefusal::Exists(_) => "give another key; this one opens the store already",
            SlotRefusal::Unknown(_) => "sealmqctl keyring status shows the ids",
            SlotRefusal::Last => "add the new key's slot first",
            SlotRefusal::InUse => {
                "configure the new key first, then remove this one, or insist with --in-use"
            }
        }
    }
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

/// A queue that does not hold what its manifest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFault {
    /// Which queue.
    pub queue: QueueId,
    /// Entries that are gone, at least.
    pub missing: u64,
    /// Entries that do not belong there, at least: put back after they were removed, or foreign.
    pub extra: u64,
    /// The one that is gone, where it could be told.
    pub gone: Option<Seq>,
}

/// At most this many queues are named in one line.
const FAULTS_SHOWN_MAX: usize = 5;

struct QueueFaults<'a>(&'a [QueueFault]);

impl std::fmt::Display for QueueFaults<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f
                .write_str("manifests or delivery counts were removed, put back or replaced by older ones");
        }
        for (i, fault) in self.0.iter().take(FAULTS_SHOWN_MAX).enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}queue {}: {} missing", fault.queue.0, fault.missing)?;
            if let Some(seq) = fault.gone {
                write!(f, " (entry {})", seq.0)?;
            }
            write!(f, ", {} extra", fault.extra)?;
        }
        match self.0.len().checked_sub(FAULTS_SHOWN_MAX) {
            Some(more) if more > 0 => write!(f, "; and {more} more queues"),
            _ => Ok(()),
        }
    }
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
            StoreError::KeyService(error) => error.code,
            StoreError::KeyringMissing { .. } => "E_KEYRING_MISSING",
            StoreError::KeyringCorrupt { .. } => "E_KEYRING_CORRUPT",
            StoreError::KeyringRollback { .. } => "E_KEYRING_ROLLBACK",
            StoreError::StoreMissing { .. } => "E_STORE_MISSING",
            StoreError::Descriptor { .. } => "E_DESCRIPTOR_CORRUPT",
            StoreError::PlainInSealed { .. } => "E_PLAIN_IN_SEALED",
            StoreError::DatabaseMissing { .. } => "E_DB_MISSING",
            StoreError::LogCorrupt { code, .. } => code,
            StoreError::OpenTimeout { .. } => "E_OPEN_TIMEOUT",
            StoreError::Rollback { .. } => "E_STORE_ROLLBACK",
            StoreError::AnchorMissing { .. } => "E_ANCHOR_MISSING",
            StoreError::AnchorCorrupt { .. } => "E_ANCHOR_CORRUPT",
            StoreError::AnchorForeign { .. } => "E_ANCHOR_FOREIGN",
            StoreError::QueueIntegrity { .. } => "E_QUEUE_INTEGRITY",
            StoreError::Database { .. } => "E_DB_CORRUPT",
            StoreError::MetadataDamaged { .. } => "E_METADATA_DAMAGED",
            StoreError::DataKeyMissing { .. } => "E_DEK_MISSING",
            StoreError::Slot(refusal) => refusal.code(),
            StoreError::System { .. } => "E_SYSTEM",
            StoreError::Stopped { .. } => "E_COMMIT_FAILED",
            StoreError::Stuck { .. } => "E_COMMIT_STUCK",
            StoreError::BackupTarget { .. } => "E_BACKUP_TARGET",
            StoreError::BackupBusy { .. } => "E_BACKUP_BUSY",
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
            StoreError::KekMissing { .. } => "name the key: at_rest.kek.file, or another of at_rest.kek.*",
            StoreError::KekUnusable { .. } => {
                "give 32 random bytes (raw, 64 hex digits or base64) in a regular file of mode 0400 that belongs to the broker's user"
            }
            StoreError::KekWrong { .. } => {
                "give a key or passphrase that the store has a slot for, or restore one from its backup"
            }
            StoreError::KeyService(error) => error.remedy,
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
            StoreError::LogCorrupt { .. } => {
                "restore the data directory from a backup, or the file if you have a sound copy; keep the damaged one for examination"
            }
            StoreError::OpenTimeout { .. } => {
                "check the disk; if it is sound, restore the data directory from a backup and keep this one for examination"
            }
            StoreError::Rollback { .. } => {
                "restore the newer data directory; to go on with this older state, give its commit to --accept-rollback once"
            }
            StoreError::AnchorMissing { .. } => {
                "put the anchor back, or name its place (at_rest.anchor.path); if it is lost for good, give the commit to --accept-rollback once"
            }
            StoreError::AnchorCorrupt { .. } => {
                "restore the newest copy of the anchor; if there is none, give the commit to --accept-rollback once"
            }
            StoreError::AnchorForeign { .. } => {
                "name this store's anchor in at_rest.anchor.path; if a new store is meant, move the old anchor away"
            }
            StoreError::QueueIntegrity { .. } => {
                "restore the data directory from a backup, or start once with --quarantine to serve what is there"
            }
            StoreError::DataKeyMissing { .. } => {
                "restore the newest keyring, it holds the missing keys; or start with --quarantine to serve the rest"
            }
            StoreError::Slot(refusal) => refusal.remedy(),
            StoreError::System { .. } => "check the limits of the process and its system call filter",
            StoreError::Stopped { .. } => "check the disk, then restart; what was confirmed is kept",
            StoreError::BackupTarget { .. } => {
                "name a folder outside the data directory that is empty or does not exist, in one that the broker may write to and in which only its user and root may rename"
            }
            StoreError::BackupBusy { .. } => "try again when it is over",
            StoreError::Stuck { .. } => "check the disk: it does not complete a synced write",
        }
    }

    pub(super) fn io(doing: &'static str, path: &Path, error: impl Into<std::io::Error>) -> StoreError {
        StoreError::Io { doing, path: path.to_path_buf(), error: error.into() }
    }

    /// What keeps a keyring's slot from being made or opened, where the keyring itself is sound.
    pub(super) fn slot_key(dir: &Path, error: KeyringError) -> StoreError {
        match error {
            KeyringError::Service(error) => StoreError::KeyService(error),
            error => StoreError::system(dir, error),
        }
    }

    pub(super) fn system(dir: &Path, reason: impl std::fmt::Display) -> StoreError {
        StoreError::System { dir: dir.to_path_buf(), reason: reason.to_string() }
    }
}
