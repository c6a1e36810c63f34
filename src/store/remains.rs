//! Entries that are dead and have no tombstone. One that stands before its queue's head is dead because the manifest
//! says so, which is written with the batch that moves the head. With a tombstone for each, every table of a long queue
//! would reach from its head to its tail, and RocksDB would merge each with all that the queue holds.
//!
//! * That is for long queues. A short one's puts and tombstones mostly meet in memory.
//! * All that remains of a queue stands before its head, and before each range of it that is being purged: nothing is
//!   left while a purge is under way.
//! * A place may be given to a transaction and put when the head has passed it. What remains behind it gets its
//!   tombstone with that put, since the head comes back to it.

use std::collections::{BTreeMap, HashMap};

use super::record::Manifest;
use crate::broker::id::{QueueId, Seq};

/// What remains of a queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remains {
    /// All of it stands before this place; 0 when there is nothing.
    pub(super) upto: u64,
    /// About what it takes in the tables, since files were last dropped for it.
    pub(super) bytes: u64,
    /// The memory table that the last put went to, and the first place that was put there.
    pub(super) recent: (u64, u64),
}

/// Which of a queue's deleted entries get a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    /// Where the queue begins when the batch is written.
    pub(super) head: Seq,
    /// What was put here or behind it is probably in memory still, where tombstone and entry go together.
    pub(super) recent: Seq,
}

impl Leaving {
    /// Whether the entry is dead without a tombstone.
    pub(super) fn leaves(self, seq: Seq) -> bool {
        seq < self.head && seq < self.recent
    }
}

/// The places from `first` on and before `upto`, without some: from the first to before the second of each pair.
pub(super) fn ranges(first: u64, upto: u64, without: &[u64]) -> Vec<(Seq, Seq)> {
    let mut without: Vec<u64> = without.iter().copied().filter(|seq| (first..upto).contains(seq)).collect();
    without.sort_unstable();
    without.dedup();
    let froms = std::iter::once(first).chain(without.iter().map(|seq| seq + 1));
    let tos = without.iter().copied().chain([upto]);
    froms.zip(tos).filter(|(from, to)| from < to).map(|(from, to)| (Seq(from), Seq(to))).collect()
}

/// Where each queue begins: for those who find entries.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// With what is no part of the queue, which is nobody's to clear away.
    queues: HashMap<QueueId, (Seq, Vec<Seq>), foldhash::fast::RandomState>,
    /// Ranges that are being purged, by queue and last place, with the first one: what is there is not counted yet.
    purging: BTreeMap<(QueueId, Seq), Seq>,
}

impl Heads {
    /// `manifests` of queues that are not dropped.
    pub(super) fn of<'a>(
        manifests: impl Iterator<Item = &'a Manifest>,
        purging: BTreeMap<(QueueId, Seq), Seq>,
    ) -> Heads {
        let queues = manifests.map(|manifest| (manifest.queue, (manifest.head, manifest.extra.clone())));
        Heads { queues: queues.collect(), purging }
    }

    /// Whether an entry that was found is dead by its queue's head.
    pub(super) fn is_dead(&self, queue: QueueId, seq: Seq) -> bool {
        let Some((head, extra)) = self.queues.get(&queue) else { return false };
        seq < *head && !extra.contains(&seq) && !self.is_purged(queue, seq)
    }

    fn is_purged(&self, queue: QueueId, seq: Seq) -> bool {
        let range = self.purging.range((queue, seq)..).next();
        range.is_some_and(|((of, _), first)| *of == queue && *first <= seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_leave_out_what_is_not_theirs() {
        let pairs = |first, upto, without: &[u64]| -> Vec<(u64, u64)> {
            ranges(first, upto, without).into_iter().map(|(from, to)| (from.0, to.0)).collect()
        };
        assert_eq!(pairs(0, 0, &[]), []);
        assert_eq!(pairs(0, 0, &[3]), []);
        assert_eq!(pairs(0, 9, &[]), [(0, 9)]);
        assert_eq!(pairs(0, 9, &[9, 20]), [(0, 9)]);
        assert_eq!(pairs(0, 9, &[4, 0, 5, 4, 8]), [(1, 4), (6, 8)]);
        assert_eq!(pairs(4, 9, &[3, 4, 7]), [(5, 7), (8, 9)]);
    }

    #[test]
    fn dead_is_what_stands_before_the_head_and_is_neither_purged_nor_foreign() {
        let (one, two) = (QueueId(1), QueueId(2));
        let manifest = |queue, head, extra| Manifest { queue, head, extra, ..Manifest::default() };
        let manifests = [manifest(one, Seq(100), vec![Seq(7)]), manifest(two, Seq(3), vec![])];
        let heads = Heads::of(manifests.iter(), BTreeMap::from([((one, Seq(60)), Seq(50))]));
        let dead = |queue| (0..110).filter(|seq| heads.is_dead(queue, Seq(*seq))).collect::<Vec<u64>>();
        let expected: Vec<u64> = (0..100).filter(|seq| *seq != 7 && !(50..=60).contains(seq)).collect();
        assert_eq!((dead(one), dead(two), dead(QueueId(3))), (expected, vec![0, 1, 2], vec![]));
    }
}
