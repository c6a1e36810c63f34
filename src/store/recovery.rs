//! From the database to what the engine starts with: rows, queues in order, messages. It changes nothing.
//!
//! What does not open is never passed over: a row, a manifest or the commit row refuses the start; an entry
//! or a body goes into quarantine, where it is neither delivered nor deleted. That all is there, and
//! nothing else, is verified at the end (verify.rs).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::anchor::Demand;
use super::body::SharedBody;
use super::committer::Purge;
use super::error::{QueueFault, StoreError};
use super::layout::{Family, Key, MetaKey, RowKind, parse_body, parse_entry, parse_meta};
use super::ledger::Ledger;
use super::pieces::Pieces;
use super::presence::{Kept, Presence};
use super::record::{
    BodyRef, CommitRow, EntryMeta, Manifest, read_commit, read_delivery_count, read_entry, read_manifest,
    read_row,
};
use super::recovered::{EXTRA, Quarantined, Recovered, RecoveredEntry, RecoveredQueue, Row};
use super::restored::Restored;
use super::rocks::Rocks;
use super::sealing::{Facts, Opening, Unreadable, name_of};
use super::verify::{Examined, examine};
use crate::broker::id::{BodyId, QueueId, Seq};
use crate::broker::letters::Died;
use crate::broker::message::Message;
use crate::seal::envelope::{Kind, Malformed, parse};
use crate::seal::record::NotOpened;

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
    content: Result<Message, Unreadable>,
    reference: BodyRef,
    key_id: u32,
    entries: u32,
}

struct FoundEntry {
    seq: Seq,
    meta: EntryMeta,
    content: Result<Message, BodyId>,
}

struct Scan<'a> {
    terms: &'a Terms<'a>,
    opening: &'a mut Opening,
    text: Vec<u8>,
    rows: Vec<Row>,
    manifests: BTreeMap<QueueId, Manifest>,
    delivered: HashMap<(QueueId, Seq), (u32, Option<Died>)>,
    bodies: HashMap<BodyId, Body>,
    queues: BTreeMap<QueueId, Vec<FoundEntry>>,
    dropping: BTreeMap<QueueId, Vec<Seq>>,
    quarantined: Vec<Quarantined>,
    used_keys: HashSet<u32>,
    keep_all_keys: bool,
    missing_keys: u64,
    missing_key: u32,
    counts: Counts,
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
        quarantined: Vec::new(),
        used_keys: HashSet::new(),
        keep_all_keys: false,
        missing_keys: 0,
        missing_key: 0,
        counts,
    };
    rocks.scan(Family::Meta, |key, value| scan.meta(key, value))?;
    scan.bodies(rocks)?;
    rocks.scan(Family::Entries, |key, value| scan.entry(key, value))?;
    if scan.missing_keys > 0 {
        let (dir, count, key_id) = (terms.dir.to_path_buf(), scan.missing_keys, scan.missing_key);
        return Err(StoreError::DataKeyMissing { dir, count, key_id });
    }
    scan.finish(commit)
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
            MetaKey::DeliveryCount(queue, seq) => {
                let kinds = &[Kind::DeliveryCount];
                let opened = self.opening.open(kinds, Family::Meta, key, value, &mut self.text);
                let read = opened.and_then(|_| Ok(read_delivery_count(&self.text)?));
                let count = read.map_err(|e| self.refuse(&format!("a count of queue {}", queue.0), e))?;
                self.delivered.insert((queue, seq), count);
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
            self.dropping.insert(queue, Vec::new());
        } else {
            self.counts.ledger.recovered(&manifest);
            self.manifests.insert(queue, manifest);
        }
    }

    /// Notes which data key a record needs, whether it opened or not. An error that concerns the whole
    /// store (a plain record) is told apart from one that concerns the record alone. A missing key is no
    /// error by itself: what is left of a queue that is being dropped, or a body that no entry names, may have been
    /// sealed under a key that was destroyed. Gives the key's id, 0 when none is known.
    fn note_key(&mut self, value: &[u8], error: Option<Unreadable>) -> Result<u32, StoreError> {
        if let Some(
            e @ (Unreadable::SealedInPlain | Unreadable::NotOpened(NotOpened::Malformed(Malformed::Plain))),
        ) = error
        {
            return Err(self.refuse("a message record", e));
        }
        if self.opening.is_plain() {
            return Ok(0);
        }
        match parse(value) {
            Ok((header, ..)) => {
                self.used_keys.insert(header.key_id);
                Ok(header.key_id)
            }
            Err(_) => {
                self.keep_all_keys = true;
                Ok(0)
            }
        }
    }

    /// A live entry needs a key that is not there.
    fn note_missing(&mut self, error: Option<Unreadable>) {
        if let Some(Unreadable::NotOpened(NotOpened::UnknownKey(key_id))) = error {
            self.missing_keys += 1;
            self.missing_key = key_id;
        }
    }

    fn bodies(&mut self, rocks: &Rocks) -> Result<(), StoreError> {
        let mut current: Option<Pieces> = None;
        rocks.scan(Family::Bodies, |key, value| {
            let Some((id, chunk)) = parse_body(key) else {
                return Err(self.refuse("the column family of bodies", Unreadable::ForeignKey));
            };
            if let Some(done) = current.take_if(|pieces| pieces.id != id) {
                self.finish_body(done);
            }
            let pieces = current.get_or_insert_with(|| Pieces::new(id));
            let kinds = &[Kind::Body, Kind::BodyChunk];
            let opened = self.opening.open(kinds, Family::Bodies, key, value, &mut self.text);
            self.note_key(value, opened.err())?;
            pieces.add(chunk, opened, &self.text);
            Ok(())
        })?;
        if let Some(done) = current {
            self.finish_body(done);
        }
        Ok(())
    }

    fn finish_body(&mut self, pieces: Pieces) {
        let key_id = pieces.key_id;
        let (content, reference) = pieces.finish(self.opening.is_plain());
        self.bodies.insert(reference.id, Body { content, reference, key_id, entries: 0 });
    }

    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let Some((queue, seq)) = parse_entry(key) else {
            return Err(self.refuse("the column family of entries", Unreadable::ForeignKey));
        };
        let opened = self.opening.open(&[Kind::Entry], Family::Entries, key, value, &mut self.text);
        let key_id = self.note_key(value, opened.err())?;
        if let Some(seqs) = self.dropping.get_mut(&queue) {
            seqs.push(seq);
            return Ok(());
        }
        if self.manifests.get(&queue).is_some_and(|manifest| manifest.extra.contains(&seq)) {
            self.quarantined.push(Quarantined { queue, seq, code: EXTRA });
            return Ok(());
        }
        let entry = opened.and_then(|_| Ok(read_entry(&self.text)?));
        let found = entry.and_then(|entry| {
            let content = match entry.content {
                Ok(message) => Ok(message),
                Err(reference) => Err(self.claim(reference)?),
            };
            Ok(FoundEntry { seq, meta: entry.meta, content })
        });
        let bytes = match &found {
            Ok(FoundEntry { content: Ok(message), .. }) => message.size_bytes() as u32,
            Ok(FoundEntry { content: Err(body), .. }) => {
                self.bodies.get(body).map_or(0, |body| body.reference.bytes)
            }
            Err(_) => 0,
        };
        self.note_missing(found.as_ref().err().copied());
        let put = self.counts.ledger.put(queue, seq, bytes, key_id);
        put.map_err(|e| self.damaged(format!("queue {}", queue.0), e.to_string()))?;
        match found {
            Ok(entry) => self.queues.entry(queue).or_default().push(entry),
            Err(e) => self.quarantined.push(Quarantined { queue, seq, code: e.code() }),
        }
        Ok(())
    }

    /// Counts an entry for the body that it names, if that is there, sound and the one that was meant.
    fn claim(&mut self, wanted: BodyRef) -> Result<BodyId, Unreadable> {
        let body = self.bodies.get_mut(&wanted.id).ok_or(Unreadable::BodyMissing)?;
        if let Err(fault) = &body.content {
            return Err(*fault);
        }
        if body.reference != wanted {
            return Err(Unreadable::BodySwapped);
        }
        body.entries += 1;
        Ok(wanted.id)
    }

    fn finish(mut self, commit: Option<CommitRow>) -> Result<Restored, StoreError> {
        let is_empty = self.rows.is_empty()
            && self.manifests.is_empty()
            && self.dropping.is_empty()
            && self.bodies.is_empty()
            && self.queues.is_empty()
            && self.quarantined.is_empty();
        if commit.is_none() && !is_empty {
            let reason = "it is missing, and the store is not empty";
            return Err(self.damaged("the commit row".into(), reason.into()));
        }
        let created = commit.is_none();
        let commit = commit.unwrap_or_default();
        let faults = self.verify(&commit)?;
        let purges = self.purges();
        // A quarantined entry may name a body that now looks like nobody's.
        let next_body = self.bodies.keys().map(|id| id.0 + 1).fold(commit.body_id_next.max(1), u64::max);
        let ids = self.rows.iter().map(|row| row.id.0);
        let queue_ids =
            self.manifests.keys().chain(self.queues.keys()).chain(self.dropping.keys()).map(|id| id.0);
        let next_row = ids.chain(queue_ids).map(|id| id + 1).fold(commit.row_id_next.max(1), u64::max);
        // What recovery found is what the manifests say; they need no rewriting.
        self.counts.ledger.take_touched(commit.commit_seq, |_| {});
        faults.iter().for_each(|fault| self.counts.ledger.rewrite(fault.queue));
        if commit.sums.is_none() {
            self.counts.ledger.touch_all();
        }
        // What nobody can read is not deleted either, and pins its key.
        let kept = self.bodies.values().filter(|body| body.entries > 0 || !self.quarantined.is_empty());
        let kept = kept.map(|body| (body.reference.id, body.key_id));
        self.counts.ledger.key_use.add_bodies(kept);
        let (used_keys, keep_all_keys) = (std::mem::take(&mut self.used_keys), self.keep_all_keys);
        let rows = std::mem::take(&mut self.rows);
        let queue_rows = rows.iter().filter(|row| row.kind == RowKind::Queue).map(|row| row.id.0).collect();
        let quarantined = std::mem::take(&mut self.quarantined);
        let queues = self.take_queues(&quarantined);
        let recovered = Recovered { rows, queues, clean: commit.clean, quarantined, faults, created };
        let counts = self.counts;
        Ok(Restored {
            recovered,
            counts,
            purges,
            commit,
            next_body,
            next_row,
            used_keys,
            queue_rows,
            keep_all_keys,
        })
    }

    /// Whether everything that was committed is there, and nothing else; what is not, unless it is refused.
    fn verify(&mut self, commit: &CommitRow) -> Result<Vec<QueueFault>, StoreError> {
        let Counts { ledger, presence } = &self.counts;
        let examined = examine(commit, &self.manifests, ledger, presence.sums());
        let examined = examined.map_err(|(record, reason)| self.damaged(record, reason.into()))?;
        if let Err(error) = examined.refuse(self.terms.dir) {
            if !self.terms.quarantine {
                return Err(error);
            }
            tracing::error!(code = error.code(), "accepted by --quarantine: {error}");
        }
        let Examined { faults, extras, .. } = examined;
        for (queue, seq) in extras {
            self.counts.ledger.exclude(queue, seq);
            self.quarantined.retain(|entry| (entry.queue, entry.seq) != (queue, seq));
            self.quarantined.push(Quarantined { queue, seq, code: EXTRA });
            let Some(entries) = self.queues.get_mut(&queue) else { continue };
            let Ok(at) = entries.binary_search_by_key(&seq, |entry| entry.seq) else { continue };
            if let Err(body) = entries.remove(at).content
                && let Some(body) = self.bodies.get_mut(&body)
            {
                body.entries -= 1;
            }
        }
        Ok(faults)
    }

    fn damaged(&self, record: String, reason: String) -> StoreError {
        StoreError::MetadataDamaged { dir: self.terms.dir.to_path_buf(), record, reason }
    }

    /// What a crash left to be cleared away: the rest of dropped queues, and bodies without entries.
    fn purges(&mut self) -> Vec<Purge> {
        let mut purges: Vec<Purge> = self
            .dropping
            .iter()
            .map(|(queue, seqs)| Purge {
                queue: *queue,
                seqs: seqs.iter().copied().collect(),
                ..Purge::default()
            })
            .collect();
        let (delivered, ledger) = (&self.delivered, &mut self.counts.ledger);
        let gone = delivered.keys().copied().filter(|(queue, seq)| !ledger.count(*queue, *seq));
        let purge = Purge { counts: gone.collect(), ..Purge::default() };
        purges.extend((!purge.counts.is_empty()).then_some(purge));
        if self.quarantined.is_empty() {
            let orphans = self.bodies.values().filter(|body| body.entries == 0);
            let keys =
                orphans.flat_map(|body| (0..body.reference.chunks).map(|chunk| (body.reference.id, chunk)));
            let purge = Purge { orphans: keys.collect(), ..Purge::default() };
            purges.extend((!purge.orphans.is_empty()).then_some(purge));
        }
        purges
    }

    fn take_queues(&mut self, quarantined: &[Quarantined]) -> Vec<RecoveredQueue> {
        let mut found = std::mem::take(&mut self.queues);
        let known = self.manifests.keys().copied().chain(quarantined.iter().map(|entry| entry.queue));
        for queue in known {
            found.entry(queue).or_default();
        }
        let mut shared: HashMap<BodyId, Arc<SharedBody>> = HashMap::new();
        for (id, body) in self.bodies.drain().filter(|(_, body)| body.entries > 0) {
            if let Ok(message) = body.content {
                shared.insert(id, Arc::new(SharedBody::recovered(body.reference, message, body.entries)));
            }
        }
        let queue = |(id, entries): (QueueId, Vec<FoundEntry>)| {
            let entries = entries.into_iter().filter_map(|FoundEntry { seq, meta, content }| {
                let (message, shared) = match content {
                    Ok(message) => (message, None),
                    Err(body) => {
                        shared.get(&body).map(|body| (body.message().clone(), Some(Arc::clone(body))))?
                    }
                };
                let (counted, died) = self.delivered.get(&(id, seq)).copied().unwrap_or_default();
                let delivery_count = counted.max(u32::from(meta.delivery_count));
                Some(RecoveredEntry { seq, message, shared, meta, delivery_count, died })
            });
            let manifest = self.counts.ledger.manifest(id);
            let next_seq = manifest.next_seq.max(Seq(1));
            let entries = entries.collect();
            RecoveredQueue { id, next_seq, delivered_up_to: manifest.delivered_up_to, entries }
        };
        found.into_iter().map(queue).collect()
    }

    fn refuse(&self, record: &str, error: Unreadable) -> StoreError {
        error.refusal(self.terms.dir, record)
    }
}
