//! What the store holds of each queue, as plain data: which entries are live, their count, bytes and keyed
//! sum, and up to where dead ones remain without a tombstone (remains.rs). The committer keeps it and writes it
//! out as manifests; it also guards the rule that an entry's key is written once and removed once at most, on
//! which RocksDB's SingleDelete relies.

use std::collections::{HashMap, HashSet};

use super::key_use::{KeyRuns, KeyUse};
use super::live::LiveSet;
use super::record::Manifest;
use super::remains::{Leaving, Remains, ranges};
use super::rocks::Puts;
use crate::broker::id::{QueueId, Seq};
use crate::limits::{EXTRA_ENTRIES_MAX, LONG_QUEUE_BYTES_MIN};
use crate::seal::multiset::{Change, Multiset, entry_name};

/// All queues.
pub(super) struct Ledger {
    queues: HashMap<QueueId, QueueLedger, foldhash::fast::RandomState>,
    multiset: Multiset,
    /// What that queue's sum is still to be changed by.
    change: (QueueId, Change),
    /// The sums are under a key; not so in a plain store.
    is_keyed: bool,
    touched: Vec<QueueId>,
    /// Live entries that have a record of their deliveries beside them.
    counted: HashSet<(QueueId, Seq), foldhash::fast::RandomState>,
    /// How many memory tables of entries were begun.
    memory_table: u64,
    /// The next batch may go to another one.
    memory_table_ends: bool,
    /// Queues of so many bytes are spared tombstones.
    pub(super) long_queue_bytes_min: u64,
    /// How many records each data key has, bodies included.
    pub(super) key_use: KeyUse,
}

#[derive(Default)]
struct QueueLedger {
    live: LiveSet,
    live_bytes: u64,
    multiset: u128,
    next_seq: u64,
    delivered_up_to: u64,
    keys: KeyRuns,
    touched: bool,
    has_manifest: bool,
    /// Entries that stand in the database and are no part of the queue: never delivered, cleared away with it.
    extra: Vec<u64>,
    /// Some entry's body is or was stored apart.
    has_bodies: bool,
    remains: Remains,
}

/// The engine gave an entry a place that is taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("queue {} was given entry {} twice", .0.0, .1.0)]
pub(super) struct Duplicate(QueueId, Seq);

/// What is to be cleared away with a queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) seqs: LiveSet,
    /// Entries that are no part of it and stand in the database all the same.
    pub(super) extra: Vec<Seq>,
    /// What is dead and has no tombstone: from the first to before the second place of each.
    pub(super) remains: Vec<(Seq, Seq)>,
    /// Those of them that have a delivery count.
    pub(super) counted: Vec<Seq>,
    pub(super) has_manifest: bool,
    /// Some of them may have bodies apart.
    pub(super) has_bodies: bool,
    /// How often some of them may have been written.
    pub(super) puts: Puts,
}

impl Ledger {
    pub(super) fn new(multiset: Multiset, is_keyed: bool) -> Ledger {
        let (queues, counted) = (HashMap::default(), HashSet::default());
        let (touched, change, memory_table, memory_table_ends, key_use) = Default::default();
        // The store's tests have few messages.
        let long_queue_bytes_min = if cfg!(test) { 0 } else { LONG_QUEUE_BYTES_MIN };
        Ledger {
            queues,
            multiset,
            change,
            is_keyed,
            touched,
            counted,
            memory_table,
            memory_table_ends,
            long_queue_bytes_min,
            key_use,
        }
    }

    pub(super) fn is_keyed(&self) -> bool {
        self.is_keyed
    }

    /// What an entry that is sealed under `key` adds to its queue's sum.
    pub(super) fn term(&self, queue: QueueId, seq: Seq, key: u32) -> u128 {
        self.multiset.term(queue.0, seq.0, key)
    }

    /// Under which data key a live entry is sealed.
    pub(super) fn key_of(&self, queue: QueueId, seq: Seq) -> u32 {
        self.queues.get(&queue).map_or(0, |ledger| ledger.keys.key(seq.0))
    }

    /// Queues that hold entries.
    pub(super) fn queues(&self) -> impl Iterator<Item = QueueId> {
        self.queues.iter().filter(|(_, ledger)| !ledger.live.is_empty()).map(|(queue, _)| *queue)
    }

    /// A queue's entries, in order.
    pub(super) fn live(&self, queue: QueueId) -> impl Iterator<Item = Seq> {
        self.queues.get(&queue).into_iter().flat_map(|ledger| ledger.live.iter())
    }

    /// An entry that was found, of `bytes` message bytes, turns out to be no part of its queue.
    pub(super) fn exclude(&mut self, queue: QueueId, seq: Seq, bytes: u32) {
        if self.delete(queue, seq, bytes).is_some()
            && let Some(ledger) = self.queues.get_mut(&queue)
        {
            ledger.extra.push(seq.0);
        }
    }

    /// Whether it has anything stored.
    pub(super) fn knows(&self, queue: QueueId) -> bool {
        self.queues.contains_key(&queue)
    }

    /// Writes the queue's manifest anew with the next commit.
    pub(super) fn rewrite(&mut self, queue: QueueId) {
        if let Some(ledger) = self.queues.get_mut(&queue) {
            ledger.touch(queue, &mut self.touched);
        }
    }

    /// An entry of `bytes` message bytes, sealed under data key `key`, is in the batch.
    pub(super) fn put(&mut self, queue: QueueId, seq: Seq, bytes: u32, key: u32) -> Result<(), Duplicate> {
        let ledger = self.queues.entry(queue).or_default();
        if !ledger.live.insert(seq) {
            return Err(Duplicate(queue, seq));
        }
        ledger.live_bytes += u64::from(bytes);
        ledger.next_seq = ledger.next_seq.max(seq.0 + 1);
        let head = ledger.live.first().map_or(seq.0, |first| first.0);
        ledger.keys.put(seq.0, key, head);
        if ledger.remains.recent.0 != self.memory_table {
            ledger.remains.recent = (self.memory_table, seq.0);
        }
        self.key_use.add(key);
        ledger.touch(queue, &mut self.touched);
        self.change(queue, seq, key, false);
        Ok(())
    }

    /// How often the entry, of `bytes` message bytes, was written if it was live; it is not any more, and its key is
    /// to be removed.
    pub(super) fn delete(&mut self, queue: QueueId, seq: Seq, bytes: u32) -> Option<Puts> {
        let ledger = self.queues.get_mut(&queue).filter(|ledger| ledger.live.contains(seq))?;
        ledger.live.remove(seq);
        ledger.live_bytes = ledger.live_bytes.saturating_sub(bytes.into());
        let key = ledger.keys.key(seq.0);
        self.key_use.release(key);
        ledger.touch(queue, &mut self.touched);
        self.change(queue, seq, key, true);
        Some(self.key_use.puts(key))
    }

    /// An entry comes to its queue's sum, or goes, when as many are known as are reckoned together.
    fn change(&mut self, queue: QueueId, seq: Seq, key: u32, goes: bool) {
        if self.change.0 != queue || self.change.1.is_full() {
            self.settle_change();
            self.change.0 = queue;
        }
        self.change.1.add(entry_name(queue.0, seq.0, key), goes);
    }

    fn settle_change(&mut self) {
        let (queue, change) = &mut self.change;
        if let Some(ledger) = self.queues.get_mut(queue).filter(|_| !change.is_empty()) {
            ledger.multiset = ledger.multiset.wrapping_add(self.multiset.change(change));
        }
        change.clear();
    }

    pub(super) fn is_live(&self, queue: QueueId, seq: Seq) -> bool {
        self.queues.get(&queue).is_some_and(|ledger| ledger.live.contains(seq))
    }

    /// The queue's first live entry at or behind `from`, and its key.
    pub(super) fn next_live(&self, queue: QueueId, from: Seq) -> Option<(Seq, u32)> {
        let ledger = self.queues.get(&queue)?;
        ledger.live.at_or_after(from).map(|seq| (seq, ledger.keys.key(seq.0)))
    }

    /// Whether an entry of the queue, or its body, may be under one of the keys.
    pub(super) fn may_be_under(&self, queue: QueueId, keys: &[u32]) -> bool {
        let is_one =
            |ledger: &QueueLedger| ledger.has_bodies || ledger.keys.keys().any(|key| keys.contains(&key));
        self.queues.get(&queue).is_some_and(is_one)
    }

    /// Whether the queue's entries may have bodies apart.
    pub(super) fn has_bodies(&self, queue: QueueId) -> bool {
        self.queues.get(&queue).is_some_and(|ledger| ledger.has_bodies)
    }

    /// A live entry is under another key with the batch that is being made.
    pub(super) fn rekey(&mut self, queue: QueueId, seq: Seq, key: u32) {
        if let Some(ledger) = self.queues.get_mut(&queue).filter(|ledger| ledger.live.contains(seq)) {
            let (former, from) =
                (ledger.keys.key(seq.0), ledger.live.before(seq).map_or(0, |before| before.0 + 1));
            ledger.keys.rekey(from, seq.0, key);
            let [less, more] = [former, key].map(|key| self.multiset.term(queue.0, seq.0, key));
            ledger.multiset = ledger.multiset.wrapping_sub(less).wrapping_add(more);
            self.key_use.release(former);
            self.key_use.add(key);
            ledger.touch(queue, &mut self.touched);
        }
    }

    /// Whether the entry is live; if so it has a delivery count from now on.
    pub(super) fn count(&mut self, queue: QueueId, seq: Seq) -> bool {
        let is_live = self.queues.get(&queue).is_some_and(|ledger| ledger.live.contains(seq));
        if is_live {
            self.counted.insert((queue, seq));
        }
        is_live
    }

    /// Whether an entry that was deleted had a delivery count, which is to be removed as well.
    pub(super) fn uncount(&mut self, queue: QueueId, seq: Seq) -> bool {
        !self.counted.is_empty() && self.counted.remove(&(queue, seq))
    }

    /// Remembers how far a queue was delivered; written when something else touches the queue. One that is
    /// not known has nothing stored, or is gone: it is not remembered, or each would leave a place behind.
    pub(super) fn delivered_up_to(&mut self, queue: QueueId, seq: Seq) {
        if let Some(ledger) = self.queues.get_mut(&queue) {
            ledger.delivered_up_to = ledger.delivered_up_to.max(seq.0);
        }
    }

    /// Forgets a queue.
    pub(super) fn drop_queue(&mut self, queue: QueueId) -> Dropped {
        self.settle_change();
        let Some(mut ledger) = self.queues.remove(&queue) else { return Dropped::default() };
        let seqs = std::mem::take(&mut ledger.live);
        seqs.iter().for_each(|seq| self.key_use.release(ledger.keys.key(seq.0)));
        let counted = match self.counted.is_empty() {
            true => Vec::new(),
            false => seqs.iter().filter(|seq| self.uncount(queue, *seq)).collect(),
        };
        let puts = ledger.puts(&self.key_use);
        let remains = ledger.remains();
        let extra = ledger.extra.into_iter().map(Seq).collect();
        let (has_manifest, has_bodies) = (ledger.has_manifest, ledger.has_bodies);
        Dropped { seqs, extra, remains, counted, has_manifest, has_bodies, puts }
    }

    /// The entries between two places, of `bytes` message bytes, are to be cleared away.
    pub(super) fn take_range(&mut self, queue: QueueId, first: Seq, last: Seq, bytes: u64) -> Dropped {
        let Some(ledger) = self.queues.get_mut(&queue) else { return Dropped::default() };
        let seqs = ledger.live.take_range(first, last);
        for seq in seqs.iter() {
            let key = ledger.keys.key(seq.0);
            ledger.multiset = ledger.multiset.wrapping_sub(self.multiset.term(queue.0, seq.0, key));
            self.key_use.release(key);
        }
        ledger.live_bytes = ledger.live_bytes.saturating_sub(bytes);
        ledger.touch(queue, &mut self.touched);
        let (has_manifest, has_bodies) = (ledger.has_manifest, ledger.has_bodies);
        let puts = ledger.puts(&self.key_use);
        let counted = match self.counted.is_empty() {
            true => Vec::new(),
            false => seqs.iter().filter(|seq| self.uncount(queue, *seq)).collect(),
        };
        Dropped { seqs, extra: Vec::new(), remains: Vec::new(), counted, has_manifest, has_bodies, puts }
    }

    /// A body of the queue is stored apart from its entry.
    pub(super) fn has_body(&mut self, queue: QueueId) {
        self.queues.entry(queue).or_default().has_bodies = true;
    }

    /// Where the queue begins, and what else says which of its entries are deleted without a tombstone. `None` when all
    /// get one, in a short queue.
    pub(super) fn leaving(&self, queue: QueueId) -> Option<Leaving> {
        let ledger = self.queues.get(&queue)?;
        if ledger.live_bytes < self.long_queue_bytes_min {
            return None;
        }
        let (table, first) = ledger.remains.recent;
        let is_recent = table == self.memory_table && !self.memory_table_ends;
        let recent = if is_recent { first } else { u64::MAX };
        Some(Leaving { head: ledger.head(), recent: Seq(recent) })
    }

    /// Entries before `upto` are dead without tombstones, and take so many bytes; how many all that remains of the
    /// queue takes.
    pub(super) fn leave(&mut self, queue: QueueId, upto: u64, bytes: u64) -> u64 {
        let Some(ledger) = self.queues.get_mut(&queue) else { return 0 };
        ledger.remains.upto = ledger.remains.upto.max(upto);
        ledger.remains.bytes += bytes;
        ledger.remains.bytes
    }

    /// A memory table of entries was begun.
    pub(super) fn begin_memory_table(&mut self) {
        self.memory_table += 1;
    }

    /// Whether the next batch may go to another memory table than the last one did.
    pub(super) fn memory_table_ends(&mut self, ends: bool) {
        self.memory_table_ends = ends;
    }

    /// What remains where an entry is about to be put, and behind it: to be removed before it, from the first to before
    /// the second place of each.
    pub(super) fn make_place(&mut self, queue: QueueId, seq: Seq) -> Vec<(Seq, Seq)> {
        match self.queues.get_mut(&queue).filter(|ledger| seq.0 < ledger.remains.upto) {
            Some(ledger) => {
                let upto = std::mem::replace(&mut ledger.remains.upto, seq.0);
                ranges(seq.0, upto, &ledger.extra)
            }
            None => Vec::new(),
        }
    }

    /// What remains of each queue gets its tombstone.
    pub(super) fn take_remains(&mut self, mut remove: impl FnMut(QueueId, Seq, Seq)) {
        for (queue, ledger) in &mut self.queues {
            ledger.remains().into_iter().for_each(|(from, to)| remove(*queue, from, to));
            (ledger.remains.upto, ledger.remains.bytes) = (0, 0);
        }
    }

    /// The last place of what remains of the queue, when its files may go; it is counted anew from now on.
    pub(super) fn look_through(&mut self, queue: QueueId) -> Option<Seq> {
        let ledger = self.queues.get_mut(&queue)?;
        ledger.remains.bytes = 0;
        // What is no part of the queue is nobody's to clear away.
        ledger.remains.upto.checked_sub(1).filter(|_| ledger.extra.is_empty()).map(Seq)
    }

    /// Where the queue begins.
    pub(super) fn head(&self, queue: QueueId) -> Seq {
        self.queues.get(&queue).map_or(Seq(0), QueueLedger::head)
    }

    /// Takes over what recovery found in a queue's manifest.
    pub(super) fn recovered(&mut self, manifest: &Manifest) {
        let ledger = self.queues.entry(manifest.queue).or_default();
        ledger.next_seq = ledger.next_seq.max(manifest.next_seq.0);
        ledger.delivered_up_to = manifest.delivered_up_to.0;
        ledger.extra = manifest.extra.iter().map(|seq| seq.0).collect();
        ledger.has_manifest = true;
    }

    /// Also the queues of which only the delivery mark changed; for the last commit.
    pub(super) fn touch_all(&mut self) {
        for (queue, ledger) in &mut self.queues {
            if ledger.has_manifest || !ledger.live.is_empty() {
                ledger.touch(*queue, &mut self.touched);
            }
        }
    }

    pub(super) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// The manifests of the queues that were touched since the last call.
    pub(super) fn take_touched(&mut self, commit_seq: u64, mut write: impl FnMut(Manifest)) {
        self.settle_change();
        for queue in self.touched.drain(..) {
            let Some(ledger) = self.queues.get_mut(&queue).filter(|ledger| ledger.touched) else { continue };
            (ledger.touched, ledger.has_manifest) = (false, true);
            write(ledger.manifest(queue, commit_seq));
        }
    }

    /// A queue's counts as they are now.
    pub(super) fn manifest(&self, queue: QueueId) -> Manifest {
        let Some(ledger) = self.queues.get(&queue) else { return Manifest { queue, ..Manifest::default() } };
        let manifest = ledger.manifest(queue, 0);
        let change = if self.change.0 == queue { self.multiset.change(&self.change.1) } else { 0 };
        Manifest { multiset: manifest.multiset.wrapping_add(change), ..manifest }
    }
}

impl QueueLedger {
    /// How often some entry may have been written.
    fn puts(&self, key_use: &KeyUse) -> Puts {
        let several = self.keys.keys().any(|key| key_use.puts(key) == Puts::Several);
        if several { Puts::Several } else { Puts::One }
    }

    fn touch(&mut self, queue: QueueId, touched: &mut Vec<QueueId>) {
        if !self.touched {
            self.touched = true;
            touched.push(queue);
        }
    }

    fn head(&self) -> Seq {
        self.live.first().unwrap_or(Seq(self.next_seq))
    }

    fn remains(&self) -> Vec<(Seq, Seq)> {
        ranges(0, self.remains.upto, &self.extra)
    }

    fn manifest(&self, queue: QueueId, commit_seq: u64) -> Manifest {
        Manifest {
            queue,
            next_seq: Seq(self.next_seq),
            head: self.head(),
            live_count: self.live.len(),
            live_bytes: self.live_bytes,
            multiset: self.multiset,
            commit_seq,
            delivered_up_to: Seq(self.delivered_up_to),
            dropping: false,
            extra: self.extra.iter().take(EXTRA_ENTRIES_MAX).copied().map(Seq).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::key::Secret;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const QUEUE: QueueId = QueueId(5);

    fn ledger() -> Ledger {
        Ledger::new(Multiset::new(&Secret::take(&mut [4; 32])), true)
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_plain_set(
            ops in proptest::collection::vec(
                (any::<bool>(), 1u64..60, prop_oneof![9 => Just(0), 1 => 1u64..60], 0..2u32),
                0..200,
            ),
        ) {
            let (mut ledger, mut model, mut key) = (ledger(), BTreeMap::new(), 1);
            for (put, seq, seq_of_range, step) in ops {
                key += step;
                if put {
                    let fresh = !model.contains_key(&seq);
                    // A place that was given up is not used again by the engine; skip those.
                    if fresh && ledger.manifest(QUEUE).next_seq.0 > seq {
                        continue;
                    }
                    prop_assert_eq!(ledger.put(QUEUE, Seq(seq), seq as u32, key).is_ok(), fresh);
                    model.entry(seq).or_insert(key);
                } else {
                    prop_assert_eq!(ledger.delete(QUEUE, Seq(seq), seq as u32).is_some(), model.remove(&seq).is_some());
                }
                if seq_of_range > 0 {
                    let gone: Vec<u64> = model.range(..seq_of_range).map(|(seq, _)| *seq).collect();
                    let bytes = gone.iter().sum();
                    let dropped = ledger.take_range(QUEUE, Seq(0), Seq(seq_of_range - 1), bytes);
                    prop_assert_eq!(dropped.seqs.len(), gone.len() as u64);
                    model.retain(|seq, _| *seq >= seq_of_range);
                }
                let manifest = ledger.manifest(QUEUE);
                let sum = model.iter().fold(0u128, |sum, (seq, key)| {
                    sum.wrapping_add(ledger.term(QUEUE, Seq(*seq), *key))
                });
                prop_assert_eq!(manifest.live_count, model.len() as u64);
                prop_assert_eq!(manifest.live_bytes, model.keys().sum::<u64>());
                prop_assert_eq!(manifest.multiset, sum);
                if let Some(first) = model.keys().next() {
                    prop_assert_eq!(manifest.head.0, *first);
                }
            }
            let left: Vec<u64> = ledger.drop_queue(QUEUE).seqs.iter().map(|seq| seq.0).collect();
            prop_assert_eq!(left, model.into_keys().collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_entry_is_put_once_and_deleted_once() {
        let mut ledger = ledger();
        ledger.put(QUEUE, Seq(3), 1, 1).unwrap();
        assert_eq!(ledger.put(QUEUE, Seq(3), 1, 1), Err(Duplicate(QUEUE, Seq(3))));
        assert_eq!(ledger.delete(QUEUE, Seq(3), 1), Some(Puts::One));
        assert_eq!([QUEUE, QueueId(6)].map(|queue| ledger.delete(queue, Seq(3), 1)), [None, None]);
    }

    #[test]
    fn only_a_live_entry_has_a_delivery_count_and_it_goes_with_the_entry() {
        let mut ledger = ledger();
        (1..=3).for_each(|seq| ledger.put(QUEUE, Seq(seq), 1, 1).unwrap());
        assert!(ledger.count(QUEUE, Seq(2)) && ledger.count(QUEUE, Seq(2)) && ledger.count(QUEUE, Seq(3)));
        assert!(ledger.delete(QUEUE, Seq(2), 1).is_some() && ledger.uncount(QUEUE, Seq(2)));
        assert!(!ledger.uncount(QUEUE, Seq(2)), "once");
        assert!(!ledger.count(QUEUE, Seq(2)) && !ledger.count(QueueId(6), Seq(3)));
        assert_eq!(ledger.drop_queue(QUEUE).counted, [Seq(3)]);
    }

    #[test]
    fn an_excluded_entry_is_not_counted_and_goes_with_its_queue() {
        let mut ledger = ledger();
        (1..=3).for_each(|seq| ledger.put(QUEUE, Seq(seq), 1, 1).unwrap());
        ledger.exclude(QUEUE, Seq(2), 1);
        assert_eq!(ledger.live(QUEUE).collect::<Vec<_>>(), [Seq(1), Seq(3)]);
        let manifest = ledger.manifest(QUEUE);
        assert_eq!((manifest.live_count, &manifest.extra[..]), (2, &[Seq(2)][..]));
        let mut recovered = self::ledger();
        recovered.recovered(&manifest);
        assert_eq!(recovered.manifest(QUEUE).extra, [Seq(2)]);
        let dropped = ledger.drop_queue(QUEUE);
        assert_eq!(
            (dropped.seqs.iter().collect::<Vec<_>>(), dropped.extra),
            (vec![Seq(1), Seq(3)], vec![Seq(2)])
        );
    }

    #[test]
    fn a_touched_queue_is_written_once_per_commit() {
        let mut ledger = ledger();
        ledger.put(QUEUE, Seq(1), 1, 1).unwrap();
        ledger.put(QUEUE, Seq(2), 1, 1).unwrap();
        ledger.delivered_up_to(QUEUE, Seq(2));
        let mut seen = Vec::new();
        ledger.take_touched(9, |manifest| seen.push(manifest));
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].next_seq, seen[0].commit_seq, seen[0].delivered_up_to), (Seq(3), 9, Seq(2)));
        ledger.delivered_up_to(QUEUE, Seq(3));
        assert!(!ledger.is_touched());
        ledger.touch_all();
        assert!(ledger.is_touched());
    }
}
