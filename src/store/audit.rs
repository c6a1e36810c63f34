//! The whole store examined while nobody uses it, without a byte of it being changed: every file that can be checked
//! by itself, every record opened, every sum made anew. Where opening refuses at the first fault, this goes on and
//! names them all; it judges by the same functions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::anchor::{ANCHOR_FILE, Demand};
use super::audit_records::Records;
use super::descriptor::{Descriptor, Mode, uuid_text};
use super::error::StoreError;
use super::fault::{Fault, Faults};
use super::files::{self, FolderLock};
use super::inspect::mode_as_found;
use super::key_admin::SlotFacts;
use super::keyring_file::KeyringFile;
use super::open::{DATABASE_DIR, LOCK_FILE, counts};
use super::preflight::{self, Findings};
use super::record::CommitRow;
use super::recovered::Row;
use super::recovery::{commit_row, judge_generation};
use super::rocks::{Rocks, Tail};
use super::sealing::Opening;
use super::watchdog::{self, watched};
use crate::broker::id::QueueId;
use crate::seal::Credential;
use crate::seal::key::{AnchorKey, RootKey};
use crate::seal::keyring::{Slot, hex};
use crate::seal::record::Opener;

/// What to examine.
pub struct AuditOptions {
    /// The data directory, a copy of it, or a backup. No broker may have it open.
    pub dir: PathBuf,
    /// Needed for a sealed store.
    pub credential: Option<Credential>,
    /// Where the anchor lies; `anchor` in the directory by default.
    pub anchor: Option<PathBuf>,
    /// Whether a missing anchor is a fault. It need not be one in a copy that was made without it.
    pub demands_anchor: bool,
}

/// How far an audit has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being read.
    pub step: &'static str,
    /// Records opened so far, in all steps.
    pub records: u64,
    /// Their bytes as they stand in the database.
    pub bytes: u64,
}

/// What was found.
#[derive(Debug)]
pub struct Audit {
    /// What the store is.
    pub mode: Mode,
    /// Its uuid; empty when nothing says it.
    pub store: String,
    /// When it was made, as its descriptor says.
    pub created: String,
    /// The keyring, `None` in a plain store or when it does not open.
    pub keyring: Option<AuditedKeyring>,
    /// The last commit; `None` when nothing was committed or it cannot be read.
    pub commit: Option<CommitFacts>,
    /// The anchor that was looked at, and the commit that it tells of; 0 when it tells of none.
    pub anchor: (PathBuf, u64),
    /// What was opened.
    pub counts: AuditCounts,
    /// Queues that hold entries or have a manifest, by id.
    pub queues: Vec<QueueFacts>,
    /// The rows that opened; the engine's to read.
    pub rows: Vec<Row>,
    /// What is wrong, at most [`crate::limits::AUDIT_FAULTS_MAX`] of it.
    pub faults: Vec<Fault>,
    /// How many faults there are.
    pub fault_count: u64,
    /// What is worth knowing and no fault: the traces of a crash, for example.
    pub notes: Vec<String>,
    /// Everything was read; if not, a fault says why.
    pub is_complete: bool,
}

/// A keyring that opened. It holds no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedKeyring {
    /// Rises with each write.
    pub generation: u64,
    /// Who can open it.
    pub slots: Vec<SlotFacts>,
    /// How many data keys there are.
    pub data_keys: usize,
}

/// The last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitFacts {
    /// Its number.
    pub commit_seq: u64,
    /// When, Unix milliseconds.
    pub wall_ms: u64,
    /// The broker was stopped in order; `false` after a crash.
    pub clean: bool,
}

/// How many records opened or should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Messages in queues, each of them in each queue.
    pub entries: u64,
    /// Bodies that stand apart from their entries.
    pub bodies: u64,
    /// Rows of the topology and users.
    pub rows: u64,
    /// Manifests of queues.
    pub manifests: u64,
    /// All records, with delivery counts, pieces of bodies and the commit row.
    pub records: u64,
    /// Their bytes as they stand in the database.
    pub bytes: u64,
}

/// A queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFacts {
    /// Which.
    pub queue: QueueId,
    /// Messages found.
    pub messages: u64,
    /// Bytes of those that opened.
    pub bytes: u64,
    /// The first place in use, or the next one when the queue is empty.
    pub head: u64,
    /// The next place to be given out.
    pub next_seq: u64,
    /// Faults that name this queue.
    pub faults: u64,
}

/// Examines a store. Only reads; the directory is held against a broker that would start on it meanwhile.
///
/// # Errors
/// When there can be no verdict: the store is in use, there is none, the key is missing or another one, or the
/// operating system refuses to read. Whatever is wrong with the store itself is in the [`Audit`].
pub fn audit(options: AuditOptions, progress: &mut dyn FnMut(Progress)) -> Result<Audit, StoreError> {
    let AuditOptions { dir, credential, anchor, demands_anchor } = options;
    let _lock = hold(&dir)?;
    let anchor = anchor.unwrap_or_else(|| dir.join(ANCHOR_FILE));
    let mut auditor = Auditor { faults: Faults::default(), notes: Vec::new(), dir, demands_anchor };
    let identity = auditor.identify(credential)?;
    let mut audit = Audit {
        mode: identity.mode,
        store: identity.store.as_ref().map(uuid_text).unwrap_or_default(),
        created: identity.created.clone(),
        keyring: identity.keyring.as_ref().map(facts),
        commit: None,
        anchor: (anchor, 0),
        counts: AuditCounts::default(),
        queues: Vec::new(),
        rows: Vec::new(),
        faults: Vec::new(),
        fault_count: 0,
        notes: Vec::new(),
        is_complete: false,
    };
    auditor.contents(&identity, &mut audit, progress)?;
    let Faults { list, count, by_queue } = auditor.faults;
    for queue in &mut audit.queues {
        queue.faults = by_queue.get(&queue.queue).copied().unwrap_or_default();
    }
    (audit.faults, audit.fault_count, audit.notes) = (list, count, auditor.notes);
    Ok(audit)
}

/// Holds a directory against a broker that would start on it, without changing anything.
///
/// # Errors
/// `E_STORE_LOCKED` when a broker has it.
pub(super) fn hold(dir: &Path) -> Result<FolderLock, StoreError> {
    files::lock_shared(dir, LOCK_FILE)?.ok_or_else(|| StoreError::Locked { dir: dir.to_path_buf() })
}

fn facts(file: &KeyringFile) -> AuditedKeyring {
    let ring = file.ring();
    let slots = ring.slots.iter().map(|slot| slot_facts(slot, slot.id() == ring.opened_by));
    AuditedKeyring { generation: ring.generation, slots: slots.collect(), data_keys: ring.keys.len() }
}

/// A slot without its secrets.
pub(super) fn slot_facts(slot: &Slot, is_in_use: bool) -> SlotFacts {
    let (id, kind) = (hex(&slot.id()), slot.kind().name());
    SlotFacts { id, kind, is_active: slot.is_active(), is_in_use, cost: slot.cost() }
}

/// What the directory says it is.
struct Identity {
    mode: Mode,
    store: Option<[u8; 16]>,
    created: String,
    keyring: Option<KeyringFile>,
}

struct Auditor {
    faults: Faults,
    notes: Vec<String>,
    dir: PathBuf,
    demands_anchor: bool,
}

impl Auditor {
    fn fault(&mut self, error: &StoreError) {
        self.faults.add(Fault::of(error));
    }

    fn identify(&mut self, credential: Option<Credential>) -> Result<Identity, StoreError> {
        let dir = self.dir.clone();
        let has_keyring = KeyringFile::exists(&dir);
        let descriptor = match Descriptor::read(&dir) {
            Ok(Some(descriptor)) => Some(descriptor),
            Ok(None) => {
                let what = match (has_keyring, dir.join(DATABASE_DIR).exists()) {
                    (true, _) => "a keyring",
                    (false, true) => "a database",
                    (false, false) => {
                        let nothing = std::io::Error::other("there is no store in it");
                        return Err(StoreError::io("examine", &dir, nothing));
                    }
                };
                self.fault(&StoreError::StoreMissing { dir: dir.clone(), what });
                None
            }
            Err(error @ StoreError::Descriptor { .. }) => {
                self.fault(&error);
                None
            }
            Err(error) => return Err(error),
        };
        let mode = descriptor.as_ref().map_or_else(|| mode_as_found(&dir), |descriptor| descriptor.mode);
        let created = descriptor.as_ref().map_or_else(String::new, |descriptor| descriptor.created.clone());
        let store = descriptor.as_ref().and_then(|descriptor| match descriptor.store(&dir) {
            Ok(store) => Some(store),
            Err(error) => {
                self.fault(&error);
                None
            }
        });
        if mode == Mode::PlainInsecure {
            return Ok(Identity { mode, store, created, keyring: None });
        }
        let Some(credential) = credential else { return Err(StoreError::KekMissing { dir }) };
        let keyring = self.keyring(&credential)?;
        if let (Some(file), Some(descriptor)) = (&keyring, &descriptor) {
            descriptor.verify(&dir, &file.ring().root).unwrap_or_else(|error| self.fault(&error));
        }
        if let (Some(file), Some(store)) = (&keyring, store)
            && file.ring().store != store
        {
            let detail = "it belongs to another store".into();
            self.fault(&StoreError::KeyringCorrupt { dir, detail });
        }
        let store = keyring.as_ref().map(|file| file.ring().store).or(store);
        Ok(Identity { mode, store, created, keyring })
    }

    /// Opens the keyring, and holds both copies against it.
    fn keyring(&mut self, credential: &Credential) -> Result<Option<KeyringFile>, StoreError> {
        let file = match KeyringFile::open(&self.dir, credential) {
            Ok(file) => file,
            Err(error @ (StoreError::KeyringMissing { .. } | StoreError::KeyringCorrupt { .. })) => {
                self.fault(&error);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let newest = file.ring().generation;
        for (path, copy) in file.copies() {
            match copy {
                Err(reason) => self.faults.add(Fault::of_keyring_copy(path, &reason)),
                Ok(generation) if generation < newest => self.notes.push(format!(
                    "{} has generation {generation}, the other copy {newest}: a write was interrupted, and the next start completes it",
                    path.display()
                )),
                Ok(_) => {}
            }
        }
        Ok(Some(file))
    }

    /// Anchor, logs, database.
    fn contents(
        &mut self,
        identity: &Identity,
        audit: &mut Audit,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), StoreError> {
        let root = identity.keyring.as_ref().map(|file| &file.ring().root);
        let generation = identity.keyring.as_ref().map(|file| file.ring().generation);
        let is_openable = identity.mode == Mode::PlainInsecure || identity.keyring.is_some();
        let demand = match identity.store.filter(|_| is_openable) {
            None => None,
            Some(store) => self.anchor(&audit.anchor.0, &store, root)?,
        };
        audit.anchor.1 = demand.as_ref().map_or(0, Demand::commit_seq);
        let Some((findings, is_whole)) = self.logs()? else {
            audit.is_complete = is_openable;
            return self.nothing_there(generation, audit);
        };
        if !is_openable || !is_whole {
            return Ok(());
        }
        let mut opening = match &identity.keyring {
            None => Opening::Plain,
            Some(file) => Opening::Sealed(Box::new(Opener::new(file.keys(), file.ring().store))),
        };
        let Some(rocks) = self.database(&findings)? else { return Ok(()) };
        let commit = match commit_row(&self.dir, &rocks, &mut opening) {
            Ok(row) => row,
            Err(error) => {
                self.fault(&error);
                None
            }
        };
        self.judge(demand.as_ref(), generation, commit.as_ref(), findings.is_torn());
        let mut records = Records::new(
            &mut opening,
            &mut self.faults,
            counts(identity.keyring.as_ref()),
            &self.dir,
            progress,
        );
        let is_read = records.read(&rocks);
        if is_read {
            records.compare(commit.as_ref());
        }
        audit.is_complete = is_read;
        audit.commit = commit.map(|row| CommitFacts {
            commit_seq: row.commit_seq,
            wall_ms: row.wall_ms,
            clean: row.clean,
        });
        (audit.counts, audit.queues, audit.rows) = records.into_facts(&mut self.notes);
        if audit.commit.is_some_and(|commit| !commit.clean) {
            self.notes.push("the broker was not stopped in order the last time: killed, or a crash".into());
        }
        Ok(())
    }

    fn anchor(
        &mut self,
        path: &Path,
        store: &[u8; 16],
        root: Option<&RootKey>,
    ) -> Result<Option<Demand>, StoreError> {
        let key = root.map_or_else(AnchorKey::public, RootKey::anchor);
        match Demand::read(path.to_path_buf(), store, &key, None) {
            Ok(demand) => {
                if demand.has_damaged_slot {
                    self.notes.push(format!(
                        "one of the two slots of the anchor {} is damaged: a write was cut short, or the disk lost it; the other one counts",
                        path.display()
                    ));
                }
                Ok(Some(demand))
            }
            Err(error @ StoreError::AnchorForeign { .. }) => {
                self.fault(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks at the logs; gives what they are like and whether RocksDB may read them. `None` when there is no database.
    fn logs(&mut self) -> Result<Option<(Findings, bool)>, StoreError> {
        let mut is_whole = true;
        let faults = &mut self.faults;
        let checked = preflight::check_each(&self.dir.join(DATABASE_DIR), |error| {
            is_whole = false;
            faults.add(Fault::of(&error));
            Ok(())
        });
        let findings = match checked {
            Ok(findings) => findings,
            Err(error @ (StoreError::LogCorrupt { .. } | StoreError::DatabaseMissing { .. })) => {
                self.fault(&error);
                return Ok(Some((Findings::default(), false)));
            }
            Err(error) => return Err(error),
        };
        if !is_whole {
            let why = "the records were not read: behind a damaged log RocksDB may leave records out without a word, or hang";
            self.notes.push(why.into());
        }
        Ok(findings.map(|findings| (findings, is_whole)))
    }

    /// A directory without a database: new, or robbed.
    fn nothing_there(&mut self, generation: Option<u64>, audit: &Audit) -> Result<(), StoreError> {
        let evidence = match (generation, audit.anchor.1) {
            (Some(generation), _) if generation > 1 => format!("its keyring has generation {generation}"),
            (_, commit_seq) if commit_seq > 0 => format!("its anchor tells of commit {commit_seq}"),
            _ => {
                self.notes.push("there is no database yet: nothing was ever committed".into());
                return Ok(());
            }
        };
        self.fault(&StoreError::DatabaseMissing { dir: self.dir.clone(), evidence });
        Ok(())
    }

    fn database(&mut self, findings: &Findings) -> Result<Option<Arc<Rocks>>, StoreError> {
        let path = self.dir.join(DATABASE_DIR);
        let tail = if findings.is_torn() { Tail::Torn } else { Tail::Whole };
        let (limit, said) = (watchdog::limit(findings.bytes), findings.to_string());
        let database = path.clone();
        match watched(&path, limit, &said, move || Rocks::look(&database, tail)) {
            Ok(rocks) => Ok(Some(Arc::new(rocks))),
            Err(error @ (StoreError::Database { .. } | StoreError::OpenTimeout { .. })) => {
                self.fault(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the database is as new as keyring and anchor say.
    fn judge(
        &mut self,
        demand: Option<&Demand>,
        generation: Option<u64>,
        row: Option<&CommitRow>,
        is_torn: bool,
    ) {
        judge_generation(&self.dir, generation, row).unwrap_or_else(|error| self.fault(&error));
        match demand.map_or(Ok(()), |demand| demand.judge(&self.dir, row, generation)) {
            Err(StoreError::AnchorMissing { path, .. }) if !self.demands_anchor => {
                self.notes.push(format!(
                    "without the anchor {} it cannot be said whether this is the newest state",
                    path.display()
                ));
            }
            Err(error) => self.fault(&error),
            Ok(()) if is_torn => self.notes.push(
                "a log is cut short, as a crash leaves it; by its anchor nothing that was confirmed is missing".into(),
            ),
            Ok(()) => {}
        }
    }
}
