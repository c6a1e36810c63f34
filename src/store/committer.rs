//! The committer: one thread that owns all writes. It takes what the inbox holds, seals it into one write
//! batch, writes that synced, notes it in the anchor, and moves the watermark; meanwhile the next batch gathers.
//!
//! After a failed write it stops for good: a second try could repeat a SingleDelete, and the batch may be
//! on the disk after all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::{Instant, SystemTime};

use super::anchor::{Anchor, Mark};
use super::body::{Settled, SharedBody};
use super::commit::{Core, DeliveryMarks};
use super::error::CommitFailure;
use super::files::FolderLock;
use super::key_duty::KeyDuty;
use super::keyring_file::KeyringFile;
use super::layout::{Family, Key};
use super::ledger::Ledger;
use super::op::{Op, Put};
use super::presence::{Kept, Presence};
use super::record::{BodyRef, CommitRow, Content, DeliveryCount, EntryRecord, Manifest, Record, RowRecord};
use super::rocks::{Batch, Rocks};
use super::sealing::{Sealing, name_of};
use super::shred::{QueueKeys, Under};
use crate::broker::id::{BodyId, QueueId, Seq};
use crate::limits::PURGE_KEYS_MAX;
use crate::seal::record::Sealer;

/// What envelope, entry, key and RocksDB's framing add to a message, for sizing a batch beforehand.
const RECORD_OVERHEAD_BYTES: usize = 160;

/// Entries and bodies of a queue that is gone, cleared away a step per batch.
#[derive(Default)]
pub(super) struct Purge {
    /// Whose manifest goes with the last step.
    pub(super) queue: QueueId,
    pub(super) seqs: VecDeque<Seq>,
    /// Each stands for one entry less.
    pub(super) shared: VecDeque<Arc<SharedBody>>,
    /// Delivery counts of entries that are gone.
    pub(super) counts: VecDeque<(QueueId, Seq)>,
    /// Bodies that no entry names.
    pub(super) orphans: VecDeque<(BodyId, u32)>,
}

impl Purge {
    fn keys(&self) -> usize {
        self.seqs.len() + self.shared.len() + self.counts.len() + self.orphans.len()
    }
}

/// Everything that the thread owns.
pub(super) struct Committer {
    pub(super) core: Arc<Core>,
    pub(super) rocks: Arc<Rocks>,
    pub(super) sealing: Sealing,
    pub(super) ledger: Ledger,
    pub(super) presence: Presence,
    pub(super) anchor: Anchor,
    /// `None` in a plain store.
    pub(super) keyring: Option<KeyringFile>,
    pub(super) purges: VecDeque<Purge>,
    /// Marks that came with the batch.
    pub(super) delivered: DeliveryMarks,
    pub(super) commit_seq: u64,
    pub(super) key_duty: KeyDuty,
    pub(super) queue_keys: QueueKeys,
    /// The keyring's generation that the last commit names.
    pub(super) told_generation: u64,
    /// Reused by every record.
    pub(super) value: Vec<u8>,
    /// Frees the directory when the thread ends.
    pub(super) _lock: FolderLock,
}

/// What a batch cost and will give back.
#[derive(Default)]
struct Tally {
    records: u64,
    /// Backlog bytes to be given back when the batch is over.
    charge: usize,
}

/// Turns a panic of the thread into a failure, so that nobody waits for ever.
struct Guard(Arc<Core>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(CommitFailure::Unknown("the committer panicked".into()));
        }
    }
}

impl Committer {
    /// The thread: until the inbox is closed and empty, or a commit fails.
    pub(super) fn run(mut self) {
        let _guard = Guard(Arc::clone(&self.core));
        let (mut ops, mut woken): (Vec<Op>, Vec<Waker>) = (Vec::new(), Vec::new());
        loop {
            let more = !self.purges.is_empty() || self.told_generation != self.generation();
            let idle = self.anchor.due_in();
            let taken = self.core.take(&mut ops, &mut self.delivered, more, idle);
            let clean = taken.ended && self.purges.is_empty();
            let committed = self.commit(&mut ops, clean);
            let ended = committed.and_then(|()| if clean { self.sync_anchor() } else { Ok(()) });
            if let Err(failure) = ended {
                self.core.fail(failure);
                return;
            }
            self.destroy_queue_keys();
            self.core.advance(taken.upto, &mut woken);
            self.tend_keys();
            if clean {
                return;
            }
            if self.anchor.due_in().is_some_and(|due| due.is_zero())
                && let Err(failure) = self.sync_anchor()
            {
                self.core.fail(failure);
                return;
            }
        }
    }

    fn sync_anchor(&mut self) -> Result<(), CommitFailure> {
        self.anchor.sync().map_err(|e| CommitFailure::Unknown(format!("the anchor cannot be synced: {e}")))
    }

    /// Makes one batch of `ops`, writes it, and leaves `ops` empty. Without anything to write it only gives
    /// the backlog back. `clean` marks the last commit.
    pub(super) fn commit(&mut self, ops: &mut Vec<Op>, clean: bool) -> Result<(), CommitFailure> {
        let started = Instant::now();
        self.renew_keys()?;
        let rocks = Arc::clone(&self.rocks);
        let payload: usize = ops.iter().map(Op::batch_bytes).sum();
        let capacity = payload + payload / 8 + ops.len() * RECORD_OVERHEAD_BYTES + 4096;
        let mut batch = rocks.batch(capacity).map_err(refused)?;
        // An older keyring is refused only once a commit names the newer one.
        let (mut tally, mut force) = (Tally::default(), clean || self.told_generation != self.generation());
        for op in ops.iter() {
            force |= matches!(op, Op::Touch);
            tally.charge += op.charge();
            self.apply(op, &mut batch, &mut tally)?;
        }
        // After the entries that made their queues known, or took them away.
        for (queue, seq) in self.delivered.drain() {
            self.ledger.delivered_up_to(queue, seq);
        }
        self.purge_step(&mut batch, &mut tally)?;
        if clean {
            self.ledger.touch_all();
        }
        if force || !batch.is_empty() || self.ledger.is_touched() {
            self.write_counters(&mut batch, &mut tally, clean)?;
            let (bytes, deletions) = (batch.size_bytes() as u64, batch.deletions);
            rocks.write(batch).map_err(|e| CommitFailure::Unknown(e.to_string()))?;
            // After the sync, before anybody is told.
            let mark = Mark { commit_seq: self.commit_seq, generation: self.generation(), wall_ms: now_ms() };
            self.anchor
                .write(mark)
                .map_err(|e| CommitFailure::Unknown(format!("the anchor cannot be written: {e}")))?;
            self.key_duty.sealed += tally.records;
            let counters = &self.core.counters;
            counters.commits.fetch_add(1, Relaxed);
            counters.records.fetch_add(tally.records, Relaxed);
            counters.bytes.fetch_add(bytes, Relaxed);
            counters.deletions.fetch_add(deletions, Relaxed);
            counters.commit_seq.store(self.commit_seq, Relaxed);
            counters.last_commit_us.store(started.elapsed().as_micros() as u64, Relaxed);
        }
        self.core.discharge(tally.charge);
        ops.clear();
        Ok(())
    }

    fn apply(&mut self, op: &Op, batch: &mut Batch<'_>, tally: &mut Tally) -> Result<(), CommitFailure> {
        match op {
            Op::Put(put) => self.put(put, batch, tally),
            Op::Delete { queue, seq, shared } => {
                if self.ledger.delete(*queue, *seq) {
                    batch.delete_once(Family::Entries, &Key::entry(*queue, *seq));
                    if self.ledger.uncount(*queue, *seq) {
                        batch.delete(Family::Meta, &Key::delivery_count(*queue, *seq));
                    }
                    self.settle_all(shared, batch, tally);
                } else if !self.ledger.knows(*queue) {
                    // The queue was dropped, and the entry's key with it; a consumer held its body until now.
                    self.settle_all(shared, batch, tally);
                }
                Ok(())
            }
            Op::Count(record) => self.count(record, batch, tally),
            Op::Settle(body) => {
                settle(body, &mut self.ledger, batch, tally);
                Ok(())
            }
            Op::PutRow { kind, id, text } => {
                let (key, record) = (Key::row(*kind, *id), RowRecord { kind: *kind, id: *id, text });
                tally.records += 1;
                self.keep(Kept::Row, &record, &key, batch)
            }
            Op::DeleteRow { kind, id } => {
                let key = Key::row(*kind, *id);
                self.presence.remove(Kept::Row, &key);
                batch.delete(Family::Meta, &key);
                Ok(())
            }
            Op::DropQueue { queue, bodies } => self.drop_queue(*queue, bodies, batch),
            Op::Keys(request) => {
                self.key_duty.requests.push(Arc::clone(request));
                Ok(())
            }
            Op::OwnKey { queue, anew } => self.own_key(*queue, *anew),
            Op::Touch | Op::Nothing => Ok(()),
        }
    }

    fn settle_all(&mut self, shared: &Option<Arc<SharedBody>>, batch: &mut Batch<'_>, tally: &mut Tally) {
        shared.iter().for_each(|body| settle(body, &mut self.ledger, batch, tally));
    }

    fn put(&mut self, put: &Put, batch: &mut Batch<'_>, tally: &mut Tally) -> Result<(), CommitFailure> {
        let own = match self.queue_keys.under(put.queue, self.commit_seq).map_err(refused)? {
            Under::Common => None,
            Under::Own(own) => Some(own),
            // A transaction was under way when its queue was deleted.
            Under::Nothing => return Ok(()),
        };
        let bytes = put.message.size_bytes() as u32;
        let key_id = own.map_or_else(|| self.sealing.data_key_id(), Sealer::key_id);
        self.ledger.put(put.queue, put.seq, bytes, key_id).map_err(refused)?;
        let content = match &put.shared {
            None => Content::Inline(&put.message),
            Some(shared) => {
                let written = shared.write_once(&self.sealing, own, &mut self.value, |key, value| {
                    batch.put(Family::Bodies, key, value);
                    tally.records += 1;
                });
                tally.charge += shared.take_charge();
                let (body, key) = written.map_err(refused)?;
                key.into_iter().for_each(|key| self.ledger.key_use.add_body(body.id, key));
                Content::Apart(body)
            }
        };
        let (key, record) = (Key::entry(put.queue, put.seq), EntryRecord { meta: put.meta, content });
        let sealed = self.sealing.seal_under(own, &record, Family::Entries, &key, &mut self.value);
        sealed.map_err(refused)?;
        batch.put(Family::Entries, &key, &self.value);
        tally.records += 1;
        Ok(())
    }

    /// An entry that is gone by now needs no count.
    fn count(
        &mut self,
        record: &DeliveryCount,
        batch: &mut Batch<'_>,
        tally: &mut Tally,
    ) -> Result<(), CommitFailure> {
        if self.ledger.count(record.queue, record.seq) {
            let key = Key::delivery_count(record.queue, record.seq);
            self.sealing.seal(record, Family::Meta, &key, &mut self.value).map_err(refused)?;
            batch.put(Family::Meta, &key, &self.value);
            tally.records += 1;
        }
        Ok(())
    }

    /// Marks the queue as gone and leaves its entries to [`Committer::purge_step`].
    fn drop_queue(
        &mut self,
        queue: QueueId,
        bodies: &[Arc<SharedBody>],
        batch: &mut Batch<'_>,
    ) -> Result<(), CommitFailure> {
        let dropped = self.ledger.drop_queue(queue);
        self.queue_keys.drop_queue(queue);
        let shared: VecDeque<_> = bodies.iter().cloned().collect();
        let counts = dropped.counted.into_iter().map(|seq| (queue, seq)).collect();
        let purge = Purge { queue, seqs: dropped.seqs, shared, counts, orphans: VecDeque::new() };
        if purge.keys() == 0 {
            if dropped.has_manifest {
                self.presence.remove(Kept::Manifest, &Key::manifest(queue));
                batch.delete(Family::Meta, &Key::manifest(queue));
            }
            return Ok(());
        }
        let commit_seq = self.commit_seq + 1;
        let manifest = Manifest { queue, dropping: true, commit_seq, ..Manifest::default() };
        self.keep(Kept::Manifest, &manifest, &Key::manifest(queue), batch)?;
        self.purges.push_back(purge);
        Ok(())
    }

    fn purge_step(&mut self, batch: &mut Batch<'_>, tally: &mut Tally) -> Result<(), CommitFailure> {
        let mut left = PURGE_KEYS_MAX;
        while left > 0 {
            let Some(purge) = self.purges.front_mut() else { return Ok(()) };
            while left > 0 && purge.keys() > 0 {
                left -= 1;
                if let Some(seq) = purge.seqs.pop_front() {
                    batch.delete_once(Family::Entries, &Key::entry(purge.queue, seq));
                } else if let Some(body) = purge.shared.pop_front() {
                    settle(&body, &mut self.ledger, batch, tally);
                } else if let Some((queue, seq)) = purge.counts.pop_front() {
                    batch.delete(Family::Meta, &Key::delivery_count(queue, seq));
                } else if let Some((id, chunk)) = purge.orphans.pop_front() {
                    batch.delete_once(Family::Bodies, &Key::body(id, chunk));
                }
            }
            if purge.keys() == 0 {
                let key = Key::manifest(purge.queue);
                if self.ledger.knows(purge.queue) {
                    // A put came after the drop; the queue will be dropped once more.
                    self.ledger.rewrite(purge.queue);
                } else {
                    self.presence.remove(Kept::Manifest, &key);
                    batch.delete(Family::Meta, &key);
                }
                self.purges.pop_front();
            }
        }
        Ok(())
    }

    /// Writes a row or a manifest, and takes it into the sums.
    fn keep(
        &mut self,
        kept: Kept,
        record: &impl Record,
        key: &Key,
        batch: &mut Batch<'_>,
    ) -> Result<(), CommitFailure> {
        let tag = self.sealing.seal(record, Family::Meta, key, &mut self.value).map_err(refused)?;
        self.presence.put(kept, key, name_of(tag, self.sealing.is_plain(), key, &self.value));
        batch.put(Family::Meta, key, &self.value);
        Ok(())
    }

    /// The keyring's; 0 in a plain store.
    fn generation(&self) -> u64 {
        self.keyring.as_ref().map_or(0, |file| file.ring().generation)
    }

    /// The manifests of the queues that the batch touched, and the commit row.
    fn write_counters(
        &mut self,
        batch: &mut Batch<'_>,
        tally: &mut Tally,
        clean: bool,
    ) -> Result<(), CommitFailure> {
        self.commit_seq += 1;
        let mut manifests = Vec::new();
        self.ledger.take_touched(self.commit_seq, |manifest| manifests.push(manifest));
        for manifest in &mut manifests {
            // What is not cleared away yet would look like entries too many.
            manifest.dropping |= self.purges.iter().any(|purge| purge.queue == manifest.queue);
            self.keep(Kept::Manifest, manifest, &Key::manifest(manifest.queue), batch)?;
        }
        let row = CommitRow {
            commit_seq: self.commit_seq,
            wall_ms: now_ms(),
            body_id_next: self.core.next_body.load(Relaxed),
            keyring_generation: self.generation(),
            row_id_next: self.core.next_row.load(Relaxed),
            clean,
            sums: Some(self.presence.sums()),
            anchor: Some(self.anchor.place()),
        };
        let key = Key::commit();
        self.sealing.seal(&row, Family::Meta, &key, &mut self.value).map_err(refused)?;
        batch.put(Family::Meta, &key, &self.value);
        tally.records += manifests.len() as u64 + 1;
        self.told_generation = row.keyring_generation;
        Ok(())
    }
}

fn settle(body: &SharedBody, ledger: &mut Ledger, batch: &mut Batch<'_>, tally: &mut Tally) {
    match body.settle() {
        Settled::Needed => {}
        Settled::NeverWritten => tally.charge += body.take_charge(),
        Settled::Remove(BodyRef { id, chunks, .. }) => {
            ledger.key_use.release_body(id);
            (0..chunks).for_each(|chunk| batch.delete_once(Family::Bodies, &Key::body(id, chunk)));
        }
    }
}

pub(super) fn refused(error: impl std::fmt::Display) -> CommitFailure {
    CommitFailure::Refused(error.to_string())
}

/// Unix milliseconds; 0 before 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
