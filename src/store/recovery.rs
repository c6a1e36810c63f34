//! From the database to what the engine starts with: rows, and of queues which places are in use. It changes nothing.
//! Every record is opened and none is kept: messages are read back when their turn comes (reader.rs). Threads open them
//! (look.rs, parts.rs); what they tell is taken here, in the order of the keys.
//!
//! What does not open is never passed over: a row, a manifest or the commit row refuses the start; an entry
//! or a body goes into quarantine, where it is neither delivered nor deleted. That all is there, and
//! nothing else, is verified at the end (verify.rs).

mod end;
mod look;
mod progress;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::anchor::Demand;
use super::body::BodyCounts;
use super::error::{QueueFault, StoreError};
use super::layout::{Family, Key, MetaKey, RowKind, parse_meta};
use super::ledger::Ledger;
use super::live::LiveSet;
use super::parts::{Division, scan_in_parts};
use super::presence::{Kept, Presence};
use super::purge::Purge;
use super::record::{
    BodyRef, CommitRow, Entry, Manifest, read_commit, read_delivery_count, read_manifest, read_row,
};
use super::recovered::{EXTRA, Quarantined, Recovered, RecoveredQueue, Row};
use super::remains::Heads;
use super::restored::Restored;
use super::rocks::Rocks;
use super::sealing::{Facts, Opening, Unreadable, name_of};
use super::sweep::Sweeper;
use super::verify::{Examined, examine};
use crate::broker::id::{BodyId, QueueId, Seq};
use crate::broker::letters::Died;
use crate::broker::queue::Run;
use crate::seal::envelope::{Kind, Malformed};
use crate::seal::record::NotOpened;
use look::{Bodies, Entries, Measure, Seen, SeenBody, SeenEntry};
use progress::Progress;
pub use progress::{OnProgress, ReadProgress};

/// What a database is held against.
pub(super) struct Terms<'a> {
    pub(super) dir: &'a Path,
    pub(super) demand: &'a Demand,
    /// The keyring's, `None` in a plain store.
    pub(super) generation: Option<u64>,
    /// Open even if queues do not hold what was committed.
    pub(super) quarantine: bool,
}

impl Terms<'_> {
    /// Nothing was ever committed, as far as can be seen from outside the database.
    pub(super) fn is_new(&self) -> bool {
        self.demand.is_missing() && self.generation.unwrap_or_default() <= 1
    }
}

/// What recovery counts, still empty.
pub(super) struct Counts {
    pub(super) ledger: Ledger,
    pub(super) presence: Presence,
}

struct Body {
    fault: Option<Unreadable>,
    reference: BodyRef,
    key_id: u32,
    /// Of the body proper, which the message is more than.
    body_bytes: u64,
    entries: u32,
    /// How many entries it was made for, as they say.
    promised: u32,
}

/// A queue's entries as they come.
#[derive(Default)]
struct Found {
    runs: Vec<Run>,
    /// Dead letters, which are in no run.
    letters: Vec<(Seq, Died)>,
    /// One that is no part of any run stands behind the last.
    has_gap: bool,
}

impl Found {
    fn push(&mut self, entry: Run) {
        let has_gap = std::mem::take(&mut self.has_gap);
        match self.runs.last_mut().filter(|_| !has_gap) {
            Some(last) if last.priority == entry.priority => last.append(&entry),
            Some(last) => {
                // There is nothing between them: whoever makes no difference can make them one.
                last.last = Seq(entry.first.0 - 1);
                self.runs.push(entry);
            }
            None => self.runs.push(entry),
        }
    }
}

struct Scan<'a> {
    terms: &'a Terms<'a>,
    opening: &'a mut Opening,
    text: Vec<u8>,
    rows: Vec<Row>,
    manifests: BTreeMap<QueueId, Manifest>,
    /// Entries that came back from consumers or died.
    delivered: HashMap<(QueueId, Seq), Option<Died>>,
    bodies: HashMap<BodyId, Body>,
    queues: BTreeMap<QueueId, Found>,
    dropping: BTreeMap<QueueId, Going>,
    /// Ranges that were purged and are not cleared away yet, by queue and last place, with the first place.
    purging: BTreeMap<(QueueId, Seq), (Seq, Going)>,
    quarantined: Vec<Quarantined>,
    used_keys: HashSet<u32>,
    /// One of these, or that of a plain store's records.
    last_key: u32,
    keep_all_keys: bool,
    missing_keys: u64,
    missing_key: u32,
    counts: Counts,
    body_counts: BodyCounts,
    sweeper: Sweeper,
    progress: Progress<'a>,
}

/// What is still to be cleared away.
#[derive(Default)]
struct Going {
    seqs: LiveSet,
    /// Of a dropped queue those that are no part of it.
    extra: Vec<Seq>,
    /// Some may name bodies that others hold as well.
    reads: bool,
}

/// Whether the database is as new as the keyring and the anchor say; gives its commit row.
pub(super) fn judge(
    terms: &Terms<'_>,
    rocks: &Rocks,
    opening: &mut Opening,
) -> Result<Option<CommitRow>, StoreError> {
    let row = commit_row(terms.dir, rocks, opening)?;
    judge_generation(terms.dir, terms.generation, row.as_ref())?;
    terms.demand.judge(terms.dir, row.as_ref(), terms.generation)?;
    Ok(row)
}

/// The commit row as it stands; `None` when nothing was ever committed, or somebody removed it.
pub(super) fn commit_row(
    dir: &Path,
    rocks: &Rocks,
    opening: &mut Opening,
) -> Result<Option<CommitRow>, StoreError> {
    let key = Key::commit();
    let Some(value) = rocks.value(Family::Meta, &key)? else { return Ok(None) };
    let mut text = Vec::new();
    let opened = opening.open(&[Kind::Commit], Family::Meta, key.as_bytes(), &value, &mut text);
    let row = opened.and_then(|_| Ok(read_commit(&text)?));
    row.map(Some).map_err(|e| e.refusal(dir, "the commit row"))
}

/// Whether the keyring is as new as the database; `None` in a plain store.
pub(super) fn judge_generation(
    dir: &Path,
    generation: Option<u64>,
    row: Option<&CommitRow>,
) -> Result<(), StoreError> {
    let expected = row.map_or(0, |row| row.keyring_generation);
    match generation.filter(|found| *found < expected) {
        Some(found) => Err(StoreError::KeyringRollback { dir: dir.to_path_buf(), found, expected }),
        None => Ok(()),
    }
}

/// Reads the whole store.
pub(super) fn restore(
    terms: &Terms<'_>,
    rocks: &Rocks,
    opening: &mut Opening,
    counts: Counts,
    progress: &mut dyn FnMut(ReadProgress),
) -> Result<Restored, StoreError> {
    let commit = judge(terms, rocks, opening)?;
    let mut scan = Scan {
        terms,
        opening,
        text: Vec::new(),
        rows: Vec::new(),
        manifests: BTreeMap::new(),
        delivered: HashMap::new(),
        bodies: HashMap::new(),
        queues: BTreeMap::new(),
        dropping: BTreeMap::new(),
        purging: BTreeMap::new(),
        quarantined: Vec::new(),
        used_keys: HashSet::new(),
        last_key: 0,
        keep_all_keys: false,
        missing_keys: 0,
        missing_key: 0,
        counts,
        body_counts: BodyCounts::default(),
        sweeper: Sweeper::default(),
        progress: Progress::new(progress),
    };
    rocks.scan(Family::Meta, |key, value| scan.meta(key, value))?;
    scan.bodies(rocks)?;
    scan.entries(rocks)?;
    scan.progress.end();
    if scan.missing_keys > 0 {
        let (dir, count, key_id) = (terms.dir.to_path_buf(), scan.missing_keys, scan.missing_key);
        let error = StoreError::DataKeyMissing { dir, count, key_id };
        if !terms.quarantine {
            return Err(error);
        }
        tracing::error!(code = error.code(), "accepted by --quarantine: {error}");
    }
    scan.finish(rocks, commit)
}

impl Scan<'_> {
    fn meta(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let Some(parsed) = parse_meta(key) else {
            return Err(self.refuse("the default column family", Unreadable::ForeignKey));
        };
        match parsed {
            MetaKey::Commit => Ok(()),
            MetaKey::Manifest(queue) => {
                let opened = self.opening.open(&[Kind::Manifest], Family::Meta, key, value, &mut self.text);
                let read = opened.and_then(|facts| Ok((facts, read_manifest(&self.text)?)));
                let (facts, manifest) =
                    read.map_err(|e| self.refuse(&format!("the manifest of queue {}", queue.0), e))?;
                self.keep(Kept::Manifest, &Key::manifest(queue), facts, value);
                self.manifest(queue, manifest);
                Ok(())
            }
            MetaKey::Purging(queue, first) => {
                let opened = self.opening.open(&[Kind::Manifest], Family::Meta, key, value, &mut self.text);
                let read = opened.and_then(|facts| Ok((facts, read_manifest(&self.text)?)));
                let (facts, range) =
                    read.map_err(|e| self.refuse(&format!("a purge of queue {}", queue.0), e))?;
                self.keep(Kept::Manifest, &Key::purging(queue, first), facts, value);
                let last = Seq(range.next_seq.0.saturating_sub(1));
                self.purging.insert((queue, last), (first, Going::default()));
                Ok(())
            }
            MetaKey::DeliveryCount(queue, seq) => {
                let kinds = &[Kind::DeliveryCount];
                let opened = self.opening.open(kinds, Family::Meta, key, value, &mut self.text);
                let read = opened.and_then(|facts| Ok((facts, read_delivery_count(&self.text)?)));
                let (facts, (_, died)) =
                    read.map_err(|e| self.refuse(&format!("a count of queue {}", queue.0), e))?;
                self.keep(Kept::Count, &Key::delivery_count(queue, seq), facts, value);
                self.delivered.insert((queue, seq), died);
                Ok(())
            }
            MetaKey::Row(kind, id) => {
                let opened = self.opening.open(&[kind.sealed_as()], Family::Meta, key, value, &mut self.text);
                let read = opened.and_then(|facts| Ok((facts, read_row(&self.text)?.to_vec())));
                let (facts, plaintext) =
                    read.map_err(|e| self.refuse(&format!("{} {}", kind.name(), id.0), e))?;
                self.keep(Kept::Row, &Key::row(kind, id), facts, value);
                self.rows.push(Row { kind, id, plaintext });
                Ok(())
            }
        }
    }

    fn keep(&mut self, kept: Kept, key: &Key, facts: Facts, value: &[u8]) {
        let name = name_of(facts.tag, self.opening.is_plain(), key, value);
        self.counts.presence.put(kept, key, name);
    }

    fn manifest(&mut self, queue: QueueId, manifest: Manifest) {
        if manifest.dropping {
            self.dropping.insert(queue, Going { extra: manifest.extra, ..Going::default() });
        } else {
            self.counts.ledger.recovered(&manifest);
            self.progress.expected += manifest.live_count;
            self.manifests.insert(queue, manifest);
        }
    }

    /// Notes which data key a record names, `None` when it is no record, whether it opened or not. An error that
    /// concerns the whole store (a plain record) is told apart from one that concerns the record alone. A missing key is
    /// no error by itself: what is left of a queue that is being dropped, or a body that no entry names, may have been
    /// sealed under a key that was destroyed.
    fn note_key(&mut self, key: Option<u32>, error: Option<Unreadable>) -> Result<(), StoreError> {
        if let Some(
            e @ (Unreadable::SealedInPlain | Unreadable::NotOpened(NotOpened::Malformed(Malformed::Plain))),
        ) = error
        {
            return Err(self.refuse("a message record", e));
        }
        match key {
            Some(key) if key == self.last_key => {}
            Some(key) => {
                self.used_keys.insert(key);
                self.last_key = key;
            }
            None => self.keep_all_keys = true,
        }
        Ok(())
    }

    /// A live entry needs a key that is not there.
    fn note_missing(&mut self, error: Option<Unreadable>) {
        if let Some(Unreadable::NotOpened(NotOpened::UnknownKey(key_id))) = error {
            self.missing_keys += 1;
            self.missing_key = key_id;
        }
    }

    fn bodies(&mut self, rocks: &Rocks) -> Result<(), StoreError> {
        let opening = self.opening.another();
        let look = || Bodies::new(opening.another());
        scan_in_parts(rocks, Family::Bodies, &Division::of(rocks, Family::Bodies)?, look, |seen| {
            match seen {
                SeenBody::Foreign => {
                    return Err(self.refuse("the column family of bodies", Unreadable::ForeignKey));
                }
                SeenBody::Piece(key, error) => self.note_key(key, error)?,
                SeenBody::Body { fault, reference, key_id, body_bytes } => {
                    let body = Body { fault, reference, key_id, body_bytes, entries: 0, promised: 0 };
                    self.bodies.insert(reference.id, body);
                }
            }
            Ok(())
        })
    }

    fn entries(&mut self, rocks: &Rocks) -> Result<(), StoreError> {
        let (opening, heads) = (self.opening.another(), self.heads());
        let look = || Entries::new(opening.another(), &heads);
        scan_in_parts(rocks, Family::Entries, &Division::of(rocks, Family::Entries)?, look, |seen| match seen
        {
            Seen::Entry(seen) => self.entry(seen),
            // Its body was removed with it or is another's, and its key may be gone.
            Seen::Dead { queue, seq, bytes } => {
                let of_queue = self.counts.ledger.leave(queue, seq.0 + 1, bytes);
                self.sweeper.left(queue, bytes, of_queue);
                Ok(())
            }
            Seen::Foreign => Err(self.refuse("the column family of entries", Unreadable::ForeignKey)),
        })
    }

    /// Where the queues begin that are there.
    fn heads(&self) -> Heads {
        let purging = self.purging.iter().map(|(last, (first, _))| (*last, *first)).collect();
        Heads::of(self.manifests.values(), purging)
    }

    fn entry(&mut self, seen: SeenEntry) -> Result<(), StoreError> {
        let SeenEntry { queue, seq, key, entry } = seen;
        self.progress.step();
        self.note_key(key, entry.as_ref().err().copied())?;
        let key_id = key.unwrap_or_default();
        let is_shredded = self.counts.ledger.key_use.is_own(key_id);
        if let Some(going) = self.going(queue, seq) {
            // What an entry names that is no part of the queue is not its own.
            let is_extra = going.extra.contains(&seq);
            if !is_extra {
                going.seqs.insert(seq);
                going.reads |= !is_shredded;
            }
            // A body under a queue's own key is nobody else's: cleared away as one that no entry names, and unread,
            // for its key goes now.
            if !is_extra && !is_shredded {
                self.hold_body(&entry);
            }
            // It may still be there when the run is read.
            self.queues.get_mut(&queue).into_iter().for_each(|found| found.has_gap = true);
            return Ok(());
        }
        if self.manifests.get(&queue).is_some_and(|manifest| manifest.extra.contains(&seq)) {
            self.quarantined.push(Quarantined { queue, seq, code: EXTRA });
            self.queues.entry(queue).or_default().has_gap = true;
            return Ok(());
        }
        let is_inline = matches!(entry, Ok(Entry { content: Ok(_), .. }));
        let run = entry.and_then(|entry| {
            self.claim(&entry)?;
            self.run(seq, &entry)
        });
        self.note_missing(run.as_ref().err().copied());
        let bytes = run.as_ref().map_or(0, |run| run.size_bytes as u32);
        let put = self.counts.ledger.put(queue, seq, bytes, key_id);
        put.map_err(|e| self.damaged(format!("queue {}", queue.0), e.to_string()))?;
        if !is_inline {
            self.counts.ledger.has_body(queue);
        }
        if let Err(e) = run {
            self.quarantined.push(Quarantined { queue, seq, code: e.code() });
        }
        self.found(queue, seq, run.ok());
        Ok(())
    }

    /// Adds an entry to its queue; `None` is one that is there and no part of what is ready.
    fn found(&mut self, queue: QueueId, seq: Seq, run: Option<Run>) {
        let died = self.delivered.get(&(queue, seq)).copied().flatten();
        let found = self.queues.entry(queue).or_default();
        match run {
            Some(run) if died.is_none() => return found.push(run),
            Some(_) => found.letters.extend(died.map(|died| (seq, died))),
            None => {}
        }
        found.has_gap = true;
    }

    fn run(&self, seq: Seq, entry: &Entry<Measure>) -> Result<Run, Unreadable> {
        let (body_bytes, size_bytes) = match &entry.content {
            Ok(Measure { body_bytes, size_bytes }) => ((*body_bytes).into(), (*size_bytes).into()),
            Err(reference) => {
                let body = self.bodies.get(&reference.id).ok_or(Unreadable::BodyMissing)?;
                (body.body_bytes, reference.bytes.into())
            }
        };
        let priority = entry.meta.priority;
        Ok(Run { first: seq, last: seq, count: 1, body_bytes, size_bytes, priority })
    }

    /// Where an entry belongs that is about to be cleared away.
    fn going(&mut self, queue: QueueId, seq: Seq) -> Option<&mut Going> {
        if let Some(going) = self.dropping.get_mut(&queue) {
            return Some(going);
        }
        let range = self.purging.range_mut((queue, seq)..).next();
        let range = range.filter(|((of, _), (first, _))| *of == queue && *first <= seq);
        range.map(|(_, (_, going))| going)
    }

    /// An entry that is about to be cleared away has its body until then.
    fn hold_body(&mut self, entry: &Result<Entry<Measure>, Unreadable>) {
        if let Ok(entry) = entry {
            // One that is not there, or not the one that was meant, is nothing to be cleared away.
            let _ = self.claim(entry);
        }
    }

    /// Counts an entry for the body that it names, if it names one and that is there, sound and the one that was
    /// meant.
    fn claim(&mut self, entry: &Entry<Measure>) -> Result<(), Unreadable> {
        let Err(wanted) = &entry.content else { return Ok(()) };
        let body = self.bodies.get_mut(&wanted.id).ok_or(Unreadable::BodyMissing)?;
        if let Some(fault) = body.fault {
            return Err(fault);
        }
        if body.reference != *wanted {
            return Err(Unreadable::BodySwapped);
        }
        body.entries += 1;
        body.promised = entry.promised;
        Ok(())
    }

    fn damaged(&self, record: String, reason: String) -> StoreError {
        StoreError::MetadataDamaged { dir: self.terms.dir.to_path_buf(), record, reason }
    }

    fn refuse(&self, record: &str, error: Unreadable) -> StoreError {
        error.refusal(self.terms.dir, record)
    }
}
