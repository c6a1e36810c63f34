//! L5: the only disk. Everything that outlives the process goes through one inbox ([`Appender`]) to one
//! thread, which seals it and writes it in batches; nothing else changes the store.
//!
//! * One commit is one self-contained, bounded write batch of sealed records: the unit of durability.
//! * A [`Position`] is durable when [`Store::durable`] has reached it. Who waits learns one of three things:
//!   committed, refused, or unknown ([`CommitFailure`]). After a failure nothing is accepted any more.
//! * What is deleted before its batch was made is never written at all.
//! * A copy can be made while it serves ([`Store::backup`]).
//! * All that the engine holds in RAM can be rebuilt from [`Recovered`].
//!
//! | File | What |
//! |---|---|
//! | `SEALMQ_STORE` | what the directory is ([`Mode`]), authenticated |
//! | `keyring`, `keyring.mirror` | the sealed keys, twice |
//! | `anchor` | how far the store has come; may lie elsewhere |
//! | `store.lock` | held while the store is open |
//! | `erased` | until when deleted messages have left the disk |
//! | `db/` | RocksDB: column families `default`, `q`, `b` |
//! | `spill/` | transient messages for which there was no room in memory, under a key that is nowhere; empty at each start |

mod anchor;
mod appender;
mod audit;
mod audit_records;
mod backup;
mod blob_files;
mod body;
mod commit;
mod committer;
mod descriptor;
mod due;
mod erase;
mod error;
mod fault;
mod files;
mod inspect;
mod kek;
mod key_admin;
mod key_duty;
mod key_use;
mod keyring_file;
mod layout;
mod ledger;
mod live;
mod op;
mod open;
mod parts;
mod pieces;
mod preflight;
mod presence;
mod purge;
mod reader;
mod record;
mod recovered;
mod recovery;
mod remains;
mod reseal;
mod restored;
mod rocks;
mod sealing;
mod shred;
mod spill;
mod sweep;
mod verify;
mod watchdog;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

pub use crate::seal::padding::Padding;
pub use appender::Appender;
pub use audit::{Audit, AuditCounts, AuditOptions, AuditedKeyring, CommitFacts, Progress, QueueFacts, audit};
pub use backup::{BACKUP_FILE, Backup};
pub use body::SharedBody;
pub use commit::Position;
pub use descriptor::{DESCRIPTOR_FILE, Mode};
pub use error::{CommitFailure, QueueFault, SlotRefusal, StoreError};
pub use fault::Fault;
pub use inspect::{OpenedEntry, Overview, RawRecord, RecordFacts, Viewer, mode_as_found};
pub use kek::{
    kek_from_bytes, kek_from_credential, kek_from_file, kek_from_text, line_from_file, passphrase_from_bytes,
    passphrase_from_file,
};
pub use key_admin::{DataKeyFacts, KeyringFacts, ResealFacts, SlotFacts};
pub use layout::RowKind;
#[doc(hidden)]
pub use preflight::{LogState, check_log};
pub use reader::{PageRequest, StoredPage};
pub use record::EntryMeta;
pub use recovered::{Quarantined, Recovered, RecoveredEntry, RecoveredQueue, Row};
pub use recovery::{OnProgress, ReadProgress};
pub use spill::{NotSpilled, SPILL_DIR, Spill, SpillLost};

use crate::broker::id::{BodyId, RowId};
use crate::broker::message::Message;
use crate::limits::{COMMITTER_SEAL_BYTES_MAX, ERASE_HOURS_DEFAULT, PROBE_SECONDS_MAX, RESEAL_DAYS_DEFAULT};
use crate::seal::Credential;

/// Whoever reads when a store is closed is waited for, no longer than this.
const CLOSE_READERS_MAX: Duration = Duration::from_secs(5);

/// How to open a store.
pub struct OpenOptions {
    /// The data directory; made, with mode 0700, when it does not exist.
    pub dir: PathBuf,
    /// Must be the mode that the store was made with.
    pub mode: Mode,
    /// Needed by a sealed store.
    pub kek: Option<Credential>,
    /// How lengths are hidden from now on, in a sealed store. What was written under another choice stays readable.
    pub padding: Padding,
    /// Where the anchor lies; `anchor` in the data directory by default. On another disk it also tells of a data
    /// directory that was put back to an older state as a whole.
    pub anchor: Option<PathBuf>,
    /// Opens a store that is behind its anchor, or lost it, if its last commit is this one.
    pub accept_rollback: Option<u64>,
    /// Opens a store whose queues do not hold what was committed, and serves what is there.
    pub quarantine: bool,
    /// When a deleted message has left the disk: log, tables and blob files.
    pub erase_within: Duration,
    /// What is under a data key that was made so long ago is sealed again by itself; `None` for never.
    pub reseal_after: Option<Duration>,
    /// Is told how far the reading of messages has come, many times a second.
    pub progress: OnProgress,
}

impl OpenOptions {
    /// Opens with the usual padding and the anchor in the data directory, and accepts no fault.
    pub fn new(dir: impl Into<PathBuf>, mode: Mode, kek: Option<Credential>) -> OpenOptions {
        let (dir, padding) = (dir.into(), Padding::default());
        let erase_within = Duration::from_secs(ERASE_HOURS_DEFAULT * 3600);
        let reseal_after = Some(Duration::from_secs(RESEAL_DAYS_DEFAULT * 86_400));
        let (anchor, accept_rollback, quarantine) = (None, None, false);
        let progress = Box::new(|_| {});
        OpenOptions {
            dir,
            mode,
            kek,
            padding,
            anchor,
            accept_rollback,
            quarantine,
            erase_within,
            reseal_after,
            progress,
        }
    }
}

/// An open store. Dropping the last reference closes it.
pub struct Store {
    core: Arc<commit::Core>,
    /// The committer's; gone when it has ended.
    rocks: Weak<rocks::Rocks>,
    /// As [`rocks::Rocks::is_open`].
    database: Weak<()>,
    dir: PathBuf,
    /// Where its anchor lies.
    anchor: PathBuf,
    mode: Mode,
    store: [u8; 16],
    padding: Padding,
    eraser: erase::Eraser,
}

/// Sums since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Synced write batches.
    pub commits: u64,
    /// Records sealed (or written plain): entries, bodies, rows, counters.
    pub records: u64,
    /// Entries that were acknowledged before they were written, and so never were.
    pub elided: u64,
    /// Bytes of all batches.
    pub bytes: u64,
    /// How long the last commit took, from the first record's sealing to the end of the sync, microseconds.
    pub last_commit_us: u64,
    /// As [`Store::backlog_bytes`].
    pub backlog_bytes: u64,
}

impl Store {
    /// Opens the store in a directory, or makes a new one in an empty directory; starts its thread. It sets
    /// the process's umask to 0077.
    ///
    /// # Errors
    /// Whatever does not fit is refused, with a code and a remedy; nothing is repaired by guessing.
    pub fn open(options: OpenOptions) -> Result<(Arc<Store>, Recovered), StoreError> {
        open::open(options)
    }

    /// Locks the inbox for appending; never waits for the disk.
    pub fn appender(&self) -> Appender<'_> {
        self.core.appender()
    }

    /// Everything up to here is on the disk.
    pub fn durable(&self) -> Position {
        self.core.durable()
    }

    /// Nothing up to here waits to be written any more: it is on the disk, or it was acknowledged before, or it is an
    /// acknowledgement itself, which may be lost in a crash. Promises (confirms) go by this place.
    pub fn kept(&self) -> Position {
        self.core.kept()
    }

    /// Why the store has stopped, if it has.
    pub fn failure(&self) -> Option<CommitFailure> {
        self.core.failure().cloned()
    }

    /// Bytes that wait for the committer; to be held against [`crate::limits::INBOX_BYTES_MAX`].
    pub fn backlog_bytes(&self) -> usize {
        self.core.backlog_bytes()
    }

    /// Reads entries back. Blocks on the disk.
    ///
    /// # Errors
    /// `E_DATABASE` when RocksDB cannot read, `E_COMMIT_FAILED` when the store is closed. An entry that is damaged
    /// is no error: it is in the page's quarantine.
    pub fn page(&self, wanted: &PageRequest) -> Result<StoredPage, StoreError> {
        let is_plain = self.mode == Mode::PlainInsecure;
        let reader = reader::Reader::new(&self.core, &self.rocks, self.store, is_plain);
        let closed = || StoreError::Stopped {
            dir: self.dir.clone(),
            failure: CommitFailure::Refused("the store is closed".into()),
        };
        reader.ok_or_else(closed)?.page(wanted)
    }

    /// A place on the disk for what is not to outlive this process, under a key of its own.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn spill(&self) -> Result<Spill, StoreError> {
        Spill::new(&self.dir, self.store, self.padding).map_err(|e| StoreError::system(&self.dir, e))
    }

    /// A body that will be stored apart from its `entries` entries. Each of those must be put, or given up
    /// with [`Appender::release`]. A large body is sealed here, on the caller's thread.
    pub fn shared_body(&self, message: &Message, entries: u32) -> Arc<SharedBody> {
        let id = BodyId(self.core.next_body.fetch_add(1, Relaxed));
        let mut body = SharedBody::new(id, message.clone(), entries);
        if message.size_bytes() > COMMITTER_SEAL_BYTES_MAX
            && let Some(key) = self.core.data_key.load_full()
            && let Err(e) = body.seal_now(key, self.store, self.padding)
        {
            tracing::warn!(body = id.0, "sealing is left to the committer: {e}");
        }
        self.core.charge(body.charge());
        Arc::new(body)
    }

    /// A body that stands apart from the one entry of a queue with a key of its own.
    pub fn own_body(&self, message: &Message) -> Arc<SharedBody> {
        let body = SharedBody::new(BodyId(self.core.next_body.fetch_add(1, Relaxed)), message.clone(), 1);
        self.core.charge(body.charge());
        Arc::new(body)
    }

    /// A number for a new row or queue. A number that was ever used in the store is not given out again.
    pub fn next_row_id(&self) -> RowId {
        RowId(self.core.next_row.fetch_add(1, Relaxed))
    }

    /// Commits what was appended, marks the store as closed in order, and frees the directory. Blocks.
    ///
    /// # Errors
    /// `E_COMMIT_FAILED` when a commit has failed, now or before.
    pub fn close(&self) -> Result<(), StoreError> {
        self.core.close();
        self.core.join();
        self.eraser.stop();
        // A page that is being read has its own hold on the database; a backup may take too long to wait for.
        let until = Instant::now() + CLOSE_READERS_MAX;
        while self.database.strong_count() > 0 && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        self.check()
    }

    /// Whether the store can be written: makes a commit of its own and waits for it, at most
    /// [`PROBE_SECONDS_MAX`]. Blocks.
    ///
    /// # Errors
    /// `E_COMMIT_FAILED` when the store has stopped, `E_COMMIT_STUCK` when the disk does not answer.
    pub fn probe(&self) -> Result<(), StoreError> {
        let until = Instant::now() + Duration::from_secs(PROBE_SECONDS_MAX);
        let mut appender = self.appender();
        let place = appender.touch();
        appender.wake(Waker::from(Arc::new(Unpark(std::thread::current()))));
        drop(appender);
        loop {
            self.check()?;
            if self.durable() >= place {
                return Ok(());
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() || place == Position::NEVER {
                return Err(StoreError::Stuck { dir: self.dir.clone(), seconds: PROBE_SECONDS_MAX });
            }
            std::thread::park_timeout(rest);
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        self.failure().map_or(Ok(()), |failure| Err(StoreError::Stopped { dir: self.dir.clone(), failure }))
    }

    /// Bytes that are on the disk once, and will be there twice for a moment; 0 when it is closed.
    pub fn unflushed_bytes(&self) -> u64 {
        self.rocks.upgrade().map_or(0, |rocks| rocks.unflushed_bytes())
    }

    /// Has what [`Store::unflushed_bytes`] counts written to tables soon, so that its log gives room back. May wait for
    /// the disk.
    pub fn begin_flush(&self) {
        self.rocks.upgrade().into_iter().for_each(|rocks| rocks.begin_flush());
    }

    /// Where the store is.
    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// Whether its records are sealed.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What it has done so far.
    pub fn stats(&self) -> StoreStats {
        let counters = &self.core.counters;
        StoreStats {
            commits: counters.commits.load(Relaxed),
            records: counters.records.load(Relaxed),
            elided: counters.elided.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            last_commit_us: counters.last_commit_us.load(Relaxed),
            backlog_bytes: self.backlog_bytes() as u64,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A failure has been logged when it happened.
        let _ = self.close();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({}, {})", self.dir.display(), self.mode.name())
    }
}

/// Reads bytes as each plaintext that a store keeps (entry, body, manifest, commit row, row) and says which of
/// them they could be. For tests that come with any bytes: whoever opens a store reads the kind that it expects.
#[doc(hidden)]
pub fn read_as_each(plaintext: &[u8]) -> [bool; 5] {
    [
        record::read_entry(plaintext).is_ok(),
        record::read_body(plaintext).is_ok(),
        record::read_manifest(plaintext).is_ok(),
        record::read_commit(plaintext).is_ok(),
        record::read_row(plaintext).is_ok(),
    ]
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests;
