//! How what was deleted without a tombstone (remains.rs) goes: tables that hold nothing else are dropped as files; where
//! that does not do, and before deleted messages have to have left the disk, one range tombstone for each queue covers
//! all that remains of it. Both are right at any time, since a place is never used again.

use super::committer::Committer;
use super::layout::{Family, Key};
use super::rocks::{Batch, ENTRIES_MEMORY_BYTES, Puts};
use crate::broker::id::{QueueId, Seq};
use crate::limits::{REMAINS_BYTES_MAX, REMAINS_OF_A_QUEUE_BYTES_MAX};

/// What a record of an entry takes in a table beside the message, about.
const ENTRY_BYTES: u64 = 160;

/// A memory table that has room for no more than this may not take the next batch, whose tombstones then would meet no
/// put in memory.
const MEMORY_END_BYTES: u64 = 2 * 1024 * 1024;

/// An entry that the batch deletes.
pub(super) struct Removal {
    pub(super) queue: QueueId,
    pub(super) seq: Seq,
    /// How often it was written.
    pub(super) puts: Puts,
    /// Of the message in it.
    pub(super) bytes: u32,
}

/// What the committer knows of what remains.
#[derive(Default)]
pub(super) struct Sweeper {
    /// The entries that the batch deletes.
    removals: Vec<Removal>,
    /// What is in the memory table of entries, in bytes, as far as it is known.
    memory_bytes: u64,
    /// About what all that remains takes in the tables.
    bytes: u64,
    /// Queues of which so much remains that files may be dropped.
    due: Vec<QueueId>,
    /// A memory table was written out, or much remains: it may be time.
    looks: bool,
    /// The next batch has a range tombstone for each queue.
    sweeps: bool,
}

impl Sweeper {
    /// An entry is deleted with the batch that is being made.
    pub(super) fn remove(&mut self, removal: Removal) {
        self.removals.push(removal);
    }

    /// All that remains gets a tombstone with the batch that is being made.
    pub(super) fn sweep(&mut self) {
        self.sweeps = true;
    }

    /// More remains of a queue, `of_queue` in all.
    pub(super) fn left(&mut self, queue: QueueId, bytes: u64, of_queue: u64) {
        self.bytes += bytes;
        self.looks |= self.bytes > REMAINS_BYTES_MAX;
        if of_queue > REMAINS_OF_A_QUEUE_BYTES_MAX && !self.due.contains(&queue) {
            self.due.push(queue);
        }
    }
}

#[cfg(test)]
impl Sweeper {
    /// The next [`Committer::reclaim`] drops what files of these queues it can.
    pub(super) fn hurry(&mut self, queues: Vec<QueueId>) {
        (self.looks, self.due) = (true, queues);
    }
}

impl Committer {
    /// Removes what the batch deletes, now that it is known where the queues begin. The last batch also removes whatever
    /// remains, so that a store that was closed in order holds nothing that is deleted.
    pub(super) fn remove_entries(&mut self, batch: &mut Batch<'_>, is_last: bool) {
        let mut removals = std::mem::take(&mut self.sweeper.removals);
        removals.sort_by_key(|removal| removal.queue);
        for of_queue in removals.chunk_by(|a, b| a.queue == b.queue) {
            self.remove_of_queue(of_queue, batch);
        }
        removals.clear();
        self.sweeper.removals = removals;
        if is_last || self.sweeper.sweeps {
            self.ledger.take_remains(|queue, from, to| remove_range(batch, queue, from, to));
            self.sweeper = Sweeper {
                removals: std::mem::take(&mut self.sweeper.removals),
                memory_bytes: self.sweeper.memory_bytes,
                ..Sweeper::default()
            };
        }
    }

    fn remove_of_queue(&mut self, removals: &[Removal], batch: &mut Batch<'_>) {
        let Some(&Removal { queue, .. }) = removals.first() else { return };
        // What lies in the range of a purge would be taken for the purge's by a start.
        let is_purged = self.purges.iter().any(|purge| purge.queue == queue);
        let leaving = if is_purged { None } else { self.ledger.leaving(queue) };
        let (mut upto, mut bytes) = (0, 0);
        for removal in removals {
            if leaving.is_some_and(|leaving| leaving.leaves(removal.seq)) {
                batch.deletions += 1;
                upto = upto.max(removal.seq.0 + 1);
                bytes += ENTRY_BYTES + u64::from(removal.bytes);
            } else {
                batch.remove(Family::Entries, &Key::entry(queue, removal.seq), removal.puts);
            }
        }
        if upto > 0 {
            let of_queue = self.ledger.leave(queue, upto, bytes);
            self.sweeper.left(queue, bytes, of_queue);
        }
    }

    /// Removes what remains of a queue that is dropped.
    pub(super) fn remove_remains(&mut self, queue: QueueId, remains: &[(Seq, Seq)], batch: &mut Batch<'_>) {
        remains.iter().for_each(|(from, to)| remove_range(batch, queue, *from, *to));
    }

    /// An entry is about to be put to a place that the queue's head may have passed.
    pub(super) fn make_place(&mut self, queue: QueueId, seq: Seq, batch: &mut Batch<'_>) {
        for (from, to) in self.ledger.make_place(queue, seq) {
            remove_range(batch, queue, from, to);
        }
    }

    /// After a batch was written: notes whether what was put before it went to another memory table.
    pub(super) fn look_at_memory(&mut self) {
        let bytes = self.rocks.memory_bytes(Family::Entries);
        if bytes < self.sweeper.memory_bytes {
            self.ledger.begin_memory_table();
            self.sweeper.looks = true;
        }
        self.sweeper.memory_bytes = bytes;
        self.ledger.memory_table_ends(bytes >= ENTRIES_MEMORY_BYTES - MEMORY_END_BYTES);
    }

    /// Gives back what can be given back of what remains. Waits for the disk.
    pub(super) fn reclaim(&mut self) {
        if !std::mem::take(&mut self.sweeper.looks) && self.sweeper.due.is_empty() {
            return;
        }
        let mut tables = self.rocks.table_bytes(Family::Entries);
        for queue in std::mem::take(&mut self.sweeper.due) {
            let Some(last) = self.ledger.look_through(queue) else { continue };
            self.rocks.drop_tables(&Key::entry(queue, Seq(0)), &Key::entry(queue, last));
            let left = self.rocks.table_bytes(Family::Entries);
            self.sweeper.bytes = self.sweeper.bytes.saturating_sub(tables.saturating_sub(left));
            tables = left;
        }
        self.sweeper.sweeps |= self.sweeper.bytes > REMAINS_BYTES_MAX.max(tables / 2);
    }
}

fn remove_range(batch: &mut Batch<'_>, queue: QueueId, from: Seq, to: Seq) {
    batch.remove_range(Family::Entries, &Key::entry(queue, from), &Key::entry(queue, to));
}
