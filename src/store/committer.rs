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
use super::body::{BodyCounts, Settled, SharedBody};
use super::commit::{Core, DeliveryMarks};
use super::error::CommitFailure;
use super::key_duty::KeyDuty;
use super::keyring_file::KeyringFile;
use super::layout::{Family, Key};
use super::ledger::Ledger;
use super::op::{Op, Put};
use super::presence::{Kept, Presence};
use super::purge::Purge;
use super::record::{BodyRef, CommitRow, Content, DeliveryCount, EntryRecord, Manifest, Record, RowRecord};
use super::reseal::Reseal;
use super::rocks::{Batch, Puts, Rocks};
use super::sealing::{Opening, Sealing, name_of};
use super::shred::{QueueKeys, Under};
use super::spill;
use super::sweep::{Removal, Sweeper};
use crate::broker::id::{QueueId, Seq};
use crate::limits::PURGE_KEYS_MAX;
use crate::seal::record::Sealer;

/// What envelope, entry, key and RocksDB's framing add to a message, for sizing a batch beforehand.
const RECORD_OVERHEAD_BYTES: usize = 160;

/// An entry that must be read first counts as so many keys more: a commit is not to wait long.
const PURGE_READ_COST: usize = 7;

/// Everything that the thread owns.
pub(super) struct Committer {
    pub(super) core: Arc<Core>,
    pub(super) rocks: Arc<Rocks>,
    pub(super) sealing: Sealing,
    pub(super) ledger: Ledger,
    pub(super) presence: Presence,
    pub(super) anchor: Anchor,
    pub(super) bodies: BodyCounts,
    /// Reads back what is to be cleared away.
    pub(super) opening: Opening,
    /// `None` in a plain store.
    pub(super) keyring: Option<KeyringFile>,
    pub(super) purges: VecDeque<Purge>,
    /// Marks that came with the batch.
    pub(super) delivered: DeliveryMarks,
    pub(super) commit_seq: u64,
    pub(super) key_duty: KeyDuty,
    pub(super) queue_keys: QueueKeys,
    pub(super) reseal: Reseal,
    pub(super) sweeper: Sweeper,
    /// The keyring's generation that the last commit names.
    pub(super) told_generation: u64,
    /// Reused by every record.
    pub(super) value: Vec<u8>,
    /// Frees the directory when the thread ends.
    pub(super) _folder: spill::Folder,
}

/// What the clock and others have to do with a batch: settled before the nonce prefixes are drawn, so that a memory
/// image that runs twice from there seals the same text twice, not two texts under one nonce.
struct Moment {
    wall_ms: u64,
    body_id_next: u64,
    row_id_next: u64,
    /// A step of the reseal is due, which changes what the rest of the batch says.
    reseals: bool,
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
            let idle = self.anchor.due_in().into_iter().chain(self.reseal.due_in()).min();
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
            self.reclaim();
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
        let moment = self.moment(clean);
        self.renew_keys()?;
        let rocks = Arc::clone(&self.rocks);
        let payload: usize = ops.iter().map(Op::batch_bytes).sum();
        let capacity = payload + payload / 8 + ops.len() * RECORD_OVERHEAD_BYTES + 4096;
        let mut batch = rocks.batch(capacity).map_err(refused)?;
        // An older keyring is refused only once a commit names the newer one.
        let (mut tally, mut force) = (Tally::default(), clean || self.told_generation != self.generation());
        // What this batch drops is read after it was written.
        let purges = self.purges.len();
        for op in ops.iter() {
            force |= matches!(op, Op::Touch);
            tally.charge += op.charge();
            self.apply(op, &mut batch, &mut tally)?;
        }
        // After the entries that made their queues known, or took them away.
        for (queue, seq) in self.delivered.drain() {
            self.ledger.delivered_up_to(queue, seq);
        }
        self.purge_step(purges, &mut batch, &mut tally)?;
        if moment.reseals {
            self.reseal_step(&mut batch)?;
        }
        self.remove_entries(&mut batch, clean);
        if clean {
            self.ledger.touch_all();
        }
        if force || !batch.is_empty() || self.ledger.is_touched() {
            self.write_counters(&mut batch, &mut tally, &moment, clean)?;
            let (bytes, deletions) = (batch.size_bytes() as u64, batch.deletions);
            rocks.write(batch).map_err(|e| CommitFailure::Unknown(e.to_string()))?;
            self.look_at_memory();
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

    fn moment(&mut self, clean: bool) -> Moment {
        let (body_id_next, row_id_next) =
            (self.core.next_body.load(Relaxed), self.core.next_row.load(Relaxed));
        Moment { wall_ms: now_ms(), body_id_next, row_id_next, reseals: !clean && self.reseal_is_due() }
    }

    fn apply(&mut self, op: &Op, batch: &mut Batch<'_>, tally: &mut Tally) -> Result<(), CommitFailure> {
        match op {
            Op::Put(put) => self.put(put, batch, tally),
            Op::Delete { queue, seq, bytes, shared } => {
                if let Some(puts) = self.ledger.delete(*queue, *seq, *bytes) {
                    let in_it = if shared.is_some() { 0 } else { *bytes };
                    self.sweeper.remove(Removal { queue: *queue, seq: *seq, puts, bytes: in_it });
                    if self.ledger.uncount(*queue, *seq) {
                        let key = Key::delivery_count(*queue, *seq);
                        self.presence.remove(Kept::Count, &key);
                        batch.delete(Family::Meta, &key);
                    }
                    shared.iter().for_each(|body| self.settle(body, batch, tally));
                } else if self.queue_keys.is_gone(*queue) {
                    // Nobody could read any more that the body was this entry's; a consumer held it until now.
                    shared.iter().for_each(|body| self.settle(body, batch, tally));
                }
                Ok(())
            }
            Op::Count(record) => self.count(record, batch, tally),
            Op::Settle(body) => {
                self.settle(body, batch, tally);
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
            Op::DropQueue { queue, bodies } => self.drop_queue(*queue, bodies, batch, tally),
            Op::Keys(request) => {
                self.key_duty.requests.push(Arc::clone(request));
                Ok(())
            }
            Op::OwnKey { queue, anew } => self.own_key(*queue, *anew),
            Op::PurgeRange { queue, first, last, bytes } => {
                self.purge_range(*queue, (*first, *last), *bytes, batch)
            }
            Op::Sweep => {
                self.sweeper.sweep();
                Ok(())
            }
            Op::Touch | Op::Nothing => Ok(()),
        }
    }

    /// An entry of the body is gone; with the last one the body goes.
    fn settle(&mut self, body: &SharedBody, batch: &mut Batch<'_>, tally: &mut Tally) {
        match self.bodies.settle(body) {
            Settled::Needed => {}
            Settled::NeverWritten => tally.charge += body.take_charge(),
            settled => self.remove(settled, batch),
        }
    }

    pub(super) fn remove(&mut self, settled: Settled, batch: &mut Batch<'_>) {
        if let Settled::Remove(BodyRef { id, chunks, .. }) = settled {
            let key_use = &mut self.ledger.key_use;
            let puts = key_use.puts(key_use.body_key(id));
            key_use.release_body(id);
            (0..chunks).for_each(|chunk| batch.remove(Family::Bodies, &Key::body(id, chunk), puts));
        }
    }

    fn put(&mut self, put: &Put, batch: &mut Batch<'_>, tally: &mut Tally) -> Result<(), CommitFailure> {
        self.make_place(put.queue, put.seq, batch);
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
                self.ledger.has_body(put.queue);
                Content::Apart(body, shared.promised())
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
            self.keep(Kept::Count, record, &key, batch)?;
            tally.records += 1;
        }
        Ok(())
    }

    /// Marks the queue as gone and leaves its entries to [`Committer::purge_step`].
    fn drop_queue(
        &mut self,
        queue: QueueId,
        bodies: &[(Seq, Arc<SharedBody>)],
        batch: &mut Batch<'_>,
        tally: &mut Tally,
    ) -> Result<(), CommitFailure> {
        let dropped = self.ledger.drop_queue(queue);
        self.remove_remains(queue, &dropped.remains, batch);
        let was_shredded = self.queue_keys.drop_queue(queue);
        let mark = Key::manifest(queue);
        let mut shared: Vec<_> = bodies.to_vec();
        shared.sort_unstable_by_key(|(seq, _)| *seq);
        if self.queue_keys.is_gone(queue) {
            // What came after an earlier drop was not written.
            let never = shared.extract_if(.., |(seq, _)| !dropped.seqs.contains(*seq));
            never.for_each(|(_, body)| self.settle(&body, batch, tally));
        }
        let (had_manifest, extra) = (dropped.has_manifest, dropped.extra.clone());
        let mut purge = Purge { shared: shared.into(), ..Purge::of(queue, dropped, mark) };
        // What its own key sealed cannot be read any more; a body that a consumer holds goes with the consumer's word.
        purge.reads &= !was_shredded;
        if purge.keys() == 0 {
            if had_manifest && !self.is_marked(mark) {
                self.presence.remove(Kept::Manifest, &mark);
                batch.delete(Family::Meta, &mark);
            }
            return Ok(());
        }
        let commit_seq = self.commit_seq + 1;
        let manifest = Manifest { queue, dropping: true, commit_seq, extra, ..Manifest::default() };
        self.keep(Kept::Manifest, &manifest, &mark, batch)?;
        self.purges.push_back(purge);
        Ok(())
    }

    /// Marks the range as gone and leaves its entries to [`Committer::purge_step`].
    fn purge_range(
        &mut self,
        queue: QueueId,
        (first, last): (Seq, Seq),
        bytes: u64,
        batch: &mut Batch<'_>,
    ) -> Result<(), CommitFailure> {
        // What remains before the head is not the purge's.
        let first = first.max(self.ledger.head(queue));
        let dropped = self.ledger.take_range(queue, first, last, bytes);
        let mark = Key::purging(queue, first);
        let purge = Purge::of(queue, dropped, mark);
        if purge.keys() > 0 {
            let (next_seq, commit_seq) = (Seq(last.0 + 1), self.commit_seq + 1);
            let range =
                Manifest { queue, head: first, next_seq, commit_seq, dropping: true, ..Manifest::default() };
            self.keep(Kept::Manifest, &range, &mark, batch)?;
            self.purges.push_back(purge);
        }
        Ok(())
    }

    /// Clears away a bounded part of the first `due` purges.
    fn purge_step(
        &mut self,
        due: usize,
        batch: &mut Batch<'_>,
        tally: &mut Tally,
    ) -> Result<(), CommitFailure> {
        let mut left = PURGE_KEYS_MAX;
        for _ in 0..due {
            let Some(mut purge) = self.purges.pop_front() else { return Ok(()) };
            while left > 0 && purge.keys() > 0 {
                left -= 1;
                if let Some(seq) = purge.seqs.pop_first() {
                    let mut is_known = false;
                    while let Some((of, body)) = purge.shared.pop_front_if(|(of, _)| *of <= seq) {
                        self.settle(&body, batch, tally);
                        is_known = of == seq;
                    }
                    if purge.reads && !is_known {
                        left = left.saturating_sub(PURGE_READ_COST);
                        self.settle_unread(purge.queue, seq, batch)?;
                    }
                    batch.remove(Family::Entries, &Key::entry(purge.queue, seq), purge.puts);
                } else if let Some(seq) = purge.extra.pop() {
                    // Nobody knows how it came there.
                    batch.remove(Family::Entries, &Key::entry(purge.queue, seq), Puts::Several);
                } else if let Some((queue, seq)) = purge.counts.pop_front() {
                    let key = Key::delivery_count(queue, seq);
                    self.presence.remove(Kept::Count, &key);
                    batch.delete(Family::Meta, &key);
                } else if let Some((id, chunk)) = purge.orphans.pop_front() {
                    batch.remove(Family::Bodies, &Key::body(id, chunk), Puts::Several);
                }
            }
            if purge.keys() > 0 {
                self.purges.push_front(purge);
                return Ok(());
            }
            let Some(mark) = purge.mark else { continue };
            if mark == Key::manifest(purge.queue) && self.ledger.knows(purge.queue) {
                // A put came after the drop; the queue will be dropped once more.
                self.ledger.rewrite(purge.queue);
            } else if !self.is_marked(mark) {
                self.presence.remove(Kept::Manifest, &mark);
                batch.delete(Family::Meta, &mark);
            }
        }
        Ok(())
    }

    /// Whether what a mark names is still to be cleared away: a queue that was dropped twice has one for both.
    fn is_marked(&self, mark: Key) -> bool {
        self.purges.iter().any(|purge| purge.mark == Some(mark))
    }

    /// Writes a row, a manifest or a delivery count, and takes it into the sums.
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
        moment: &Moment,
        clean: bool,
    ) -> Result<(), CommitFailure> {
        self.commit_seq += 1;
        let mut manifests = Vec::new();
        self.ledger.take_touched(self.commit_seq, |manifest| manifests.push(manifest));
        for manifest in &mut manifests {
            let key = Key::manifest(manifest.queue);
            // What is not cleared away yet would look like entries too many.
            manifest.dropping |= self.purges.iter().any(|purge| purge.mark == Some(key));
            self.keep(Kept::Manifest, manifest, &key, batch)?;
        }
        let row = CommitRow {
            commit_seq: self.commit_seq,
            wall_ms: moment.wall_ms,
            body_id_next: moment.body_id_next,
            keyring_generation: self.generation(),
            row_id_next: moment.row_id_next,
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

pub(super) fn refused(error: impl std::fmt::Display) -> CommitFailure {
    CommitFailure::Refused(error.to_string())
}

/// Unix milliseconds; 0 before 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
