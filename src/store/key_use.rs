//! Which data keys the stored records need, counted while they come and go, so that a key nobody needs can be
//! dropped. Per record constant work: remembered is from which place of a queue, and from which body, on which key
//! was used, not each record's.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::rocks::Puts;
use crate::broker::id::BodyId;

/// The key of a plain store's records; not counted.
const NO_KEY: u32 = 0;

/// Records by data key: entries, and bodies that stand apart (their pieces together count as one).
#[derive(Default)]
pub(super) struct KeyUse {
    /// By key id; mostly the last one is asked for.
    counts: Vec<(u32, u64)>,
    /// The key of new records, which is needed whatever its count.
    sealing: u32,
    /// Under which key each body was sealed, by its number.
    bodies: KeyRuns,
    /// Another key's count has fallen to zero since [`KeyUse::take_idle`].
    idle: bool,
    /// Keys of single queues, and whether they are those of new records.
    own: HashMap<u32, bool, foldhash::fast::RandomState>,
    /// Keys under which only records are that were written once more.
    resealed: Vec<u32>,
    /// The bodies under the last two: they stand between the others, and would cut the runs to pieces.
    own_bodies: HashMap<BodyId, u32, foldhash::fast::RandomState>,
}

impl KeyUse {
    /// A record was sealed under the key.
    pub(super) fn add(&mut self, key: u32) {
        match self.counts.last_mut() {
            Some((last, count)) if *last == key => *count += 1,
            _ => self.add_slowly(key),
        }
    }

    fn add_slowly(&mut self, key: u32) {
        if key != NO_KEY {
            match self.counts.binary_search_by_key(&key, |(id, _)| *id) {
                Ok(at) => self.counts.get_mut(at).into_iter().for_each(|(_, count)| *count += 1),
                Err(at) => self.counts.insert(at, (key, 1)),
            }
        }
    }

    /// A record under the key is gone, or will be with the batch that is being made.
    pub(super) fn release(&mut self, key: u32) {
        let at = match self.counts.last() {
            Some((last, _)) if *last == key => Ok(self.counts.len() - 1),
            _ => self.counts.binary_search_by_key(&key, |(id, _)| *id),
        };
        if let Some((_, count)) = at.ok().and_then(|at| self.counts.get_mut(at)) {
            debug_assert!(*count > 0, "key {key} was released more often than used");
            *count = count.saturating_sub(1);
            self.idle |= *count == 0 && key != self.sealing && self.own.get(&key) != Some(&true);
        }
    }

    /// A body was sealed under the key.
    pub(super) fn add_body(&mut self, id: BodyId, key: u32) {
        if self.is_own(key) || self.resealed.contains(&key) {
            self.own_bodies.insert(id, key);
        } else {
            self.bodies.put(id.0, key, 0);
        }
        self.add(key);
    }

    /// Whether a key is a queue's own.
    pub(super) fn is_own(&self, key: u32) -> bool {
        self.own.contains_key(&key)
    }

    /// A key is a queue's own; `seals` says whether its new records are under it.
    pub(super) fn own(&mut self, key: u32, seals: bool) {
        self.own.insert(key, seals);
        self.idle |= !seals;
    }

    /// All records under the key were under another one before.
    pub(super) fn reseals(&mut self, key: u32) {
        self.resealed.push(key);
    }

    /// How often a record under the key was written. One that does not tell its key may be any.
    pub(super) fn puts(&self, key: u32) -> Puts {
        match self.resealed.is_empty() || (key != NO_KEY && !self.resealed.contains(&key)) {
            true => Puts::One,
            false => Puts::Several,
        }
    }

    /// The key of a body that is there.
    pub(super) fn body_key(&self, id: BodyId) -> u32 {
        self.own_bodies.get(&id).copied().unwrap_or_else(|| self.bodies.key(id.0))
    }

    /// A body is under another key now.
    pub(super) fn rekey_body(&mut self, id: BodyId, key: u32) {
        self.release_body(id);
        self.add_body(id, key);
    }

    /// What recovery found, in any order: body and key.
    pub(super) fn add_bodies(&mut self, found: impl Iterator<Item = (BodyId, u32)>) {
        let mut found: Vec<_> = found.collect();
        found.sort_unstable();
        found.into_iter().for_each(|(id, key)| self.add_body(id, key));
    }

    /// A body is gone, or will be with the batch that is being made.
    pub(super) fn release_body(&mut self, id: BodyId) {
        let own = if self.own_bodies.is_empty() { None } else { self.own_bodies.remove(&id) };
        self.release(own.unwrap_or_else(|| self.bodies.key(id.0)));
    }

    /// The keys that records were found or sealed under.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.counts.iter().map(|(id, _)| *id)
    }

    /// How many records need the key.
    pub(super) fn count(&self, key: u32) -> u64 {
        let at = self.counts.binary_search_by_key(&key, |(id, _)| *id);
        at.ok().and_then(|at| self.counts.get(at)).map_or(0, |(_, count)| *count)
    }

    /// New records are sealed under another key from now on; the former one may be free.
    pub(super) fn seals_with(&mut self, key: u32) {
        (self.sealing, self.idle) = (key, true);
    }

    /// A key may be free that could not be dropped.
    pub(super) fn look_again(&mut self) {
        self.idle = true;
    }

    /// Whether a key may have become free.
    pub(super) fn is_idle(&self) -> bool {
        self.idle
    }

    /// Whether a key may have become free since the last call.
    pub(super) fn take_idle(&mut self) -> bool {
        std::mem::take(&mut self.idle)
    }

    /// Forgets keys that are gone.
    pub(super) fn forget(&mut self, keys: &[u32]) {
        self.counts.retain(|(id, _)| !keys.contains(id));
        self.bodies.forget(keys);
        self.own.retain(|id, _| !keys.contains(id));
        self.resealed.retain(|id| !keys.contains(id));
    }
}

/// Under which key each of a queue's entries was sealed: runs of places, each with its key.
#[derive(Default)]
pub(super) struct KeyRuns {
    /// First place and key, by place; a run goes on to the next one, and the first run begins at 0.
    runs: SmallVec<[(u64, u32); 1]>,
    /// The highest place so far.
    last: u64,
}

impl KeyRuns {
    /// The entry at `seq` is sealed under `key`. `head` is the queue's first place in use: runs before it go.
    pub(super) fn put(&mut self, seq: u64, key: u32, head: u64) {
        if self.runs.is_empty() || seq > self.last {
            self.last = seq;
            if self.runs.last().is_none_or(|(_, known)| *known != key) {
                let passed = self.runs.partition_point(|(first, _)| *first <= head).saturating_sub(1);
                self.runs.drain(..passed);
                self.runs.push((seq, key));
                self.runs.first_mut().into_iter().for_each(|(first, _)| *first = 0);
            }
        } else if self.key(seq) != key {
            self.put_between(seq, key);
        }
    }

    /// Out of order, and across a change of keys: the run is cut in three.
    fn put_between(&mut self, seq: u64, key: u32) {
        let after = self.runs.partition_point(|(first, _)| *first <= seq);
        let next = self.runs.get(after).map_or(u64::MAX, |(first, _)| *first);
        let around = after.checked_sub(1).and_then(|at| self.runs.get(at)).map(|(_, key)| *key);
        self.runs.insert(after, (seq, key));
        if let Some(around) = around.filter(|_| seq + 1 < next) {
            self.runs.insert(after + 1, (seq + 1, around));
        }
    }

    /// The entry at `seq` is under another key now; between it and `from`, which is not behind it, is no other entry.
    pub(super) fn rekey(&mut self, from: u64, seq: u64, key: u32) {
        let Some(at) = self.runs.partition_point(|(first, _)| *first <= seq).checked_sub(1) else { return };
        let Some((start, former)) = self.runs.get(at).copied().filter(|(_, former)| *former != key) else {
            return;
        };
        let end = self.runs.get(at + 1).map_or(u64::MAX, |(first, _)| *first);
        let from = from.max(start);
        // Before it, itself, and behind it; what is empty falls out.
        let pieces = [(start, former, from), (from, key, seq + 1), (seq + 1, former, end)];
        let pieces =
            pieces.into_iter().filter(|(first, _, end)| first < end).map(|(first, key, _)| (first, key));
        let pieces: SmallVec<[(u64, u32); 3]> = pieces.collect();
        self.runs.remove(at);
        self.runs.insert_many(at, pieces);
        // Only neighbours of the new pieces can have their key.
        let mut next = (at + 4).min(self.runs.len());
        while next > at.max(1) {
            next -= 1;
            if next > 0 && self.runs.get(next).map(|run| run.1) == self.runs.get(next - 1).map(|run| run.1) {
                self.runs.remove(next);
            }
        }
    }

    /// The keys that some entry may be under.
    pub(super) fn keys(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().map(|(_, key)| *key)
    }

    /// Keys of which no entry is left.
    fn forget(&mut self, keys: &[u32]) {
        self.runs.retain(|(_, key)| !keys.contains(key));
        self.runs.dedup_by_key(|(_, key)| *key);
        self.runs.first_mut().into_iter().for_each(|(first, _)| *first = 0);
    }

    /// The key of the entry at `seq`.
    pub(super) fn key(&self, seq: u64) -> u32 {
        let after = match self.runs.len() {
            1 => 1,
            _ => self.runs.partition_point(|(first, _)| *first <= seq),
        };
        after.checked_sub(1).and_then(|at| self.runs.get(at)).map_or(NO_KEY, |(_, key)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn each_entry_has_the_key_it_was_given_in_whatever_order_they_come(
            puts in proptest::collection::vec((1u64..60, 0u32..3), 1..120),
            gone in 0u64..40,
        ) {
            // Keys only rise, places are given once; what is below `gone` is deleted half way.
            let (mut runs, mut model, mut key) = (KeyRuns::default(), BTreeMap::new(), 1);
            let half = puts.len() / 2;
            for (n, (seq, step)) in puts.into_iter().enumerate() {
                if n == half {
                    model.retain(|seq, _| *seq >= gone);
                }
                if step == 0 {
                    key += 1;
                }
                if model.contains_key(&seq) || (n >= half && seq < gone) {
                    continue;
                }
                model.insert(seq, key);
                let head = model.keys().next().copied().unwrap_or(seq);
                runs.put(seq, key, head);
                for (seq, key) in &model {
                    prop_assert_eq!(runs.key(*seq), *key, "place {}", seq);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_key_that_changes_is_that_of_its_entry_alone_and_neighbours_with_one_key_are_one_run(
            places in proptest::collection::btree_map(1u64..60, 1u32..4, 1..30),
            changed in proptest::collection::vec((any::<proptest::sample::Index>(), 5u32..7), 0..60),
        ) {
            let (mut runs, mut model) = (KeyRuns::default(), places);
            for (seq, key) in &model {
                runs.put(*seq, *key, 0);
            }
            for (index, key) in changed {
                let seq = *index.get(&model.keys().copied().collect::<Vec<_>>());
                let from = model.range(..seq).next_back().map_or(0, |(before, _)| before + 1);
                runs.rekey(from, seq, key);
                model.insert(seq, key);
                for (seq, key) in &model {
                    prop_assert_eq!(runs.key(*seq), *key, "place {}", seq);
                }
                prop_assert!(runs.runs.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1));
            }
        }
    }

    #[test]
    fn a_queue_that_is_rekeyed_from_its_head_has_two_runs() {
        let mut runs = KeyRuns::default();
        (1..1000u64).for_each(|n| runs.put(n * 7, 1, 0));
        (1..500u64).for_each(|n| runs.rekey(if n == 1 { 0 } else { n * 7 - 6 }, n * 7, 2));
        assert_eq!(runs.runs.as_slice(), [(0, 2), (499 * 7 + 1, 1)]);
    }

    #[test]
    fn a_queue_in_use_for_years_keeps_no_old_runs() {
        let mut runs = KeyRuns::default();
        for day in 1..2000u64 {
            (0..3).for_each(|n| runs.put(day * 10 + n, day as u32, day * 10 - 5));
        }
        assert!(runs.runs.len() <= 3, "{}", runs.runs.len());
    }

    #[test]
    fn bodies_of_a_queue_with_its_own_key_cut_no_runs() {
        let mut used = KeyUse::default();
        used.own(5, true);
        (1..1000).for_each(|id| used.add_body(BodyId(id), if id % 2 == 0 { 5 } else { 3 }));
        assert_eq!((used.bodies.runs.len(), used.count(3), used.count(5)), (1, 500, 499));
        (1..1000).for_each(|id| used.release_body(BodyId(id)));
        assert_eq!((used.count(3), used.count(5), used.own_bodies.len()), (0, 0, 0));
    }

    #[test]
    fn bodies_keep_their_keys_whatever_is_forgotten() {
        let mut used = KeyUse::default();
        // The fourth was sealed before a rotation and written after it.
        for (id, key) in [(1, 3), (2, 3), (5, 7), (4, 3), (6, 7), (9, 8)] {
            used.add_body(BodyId(id), key);
        }
        assert_eq!((used.count(3), used.count(7), used.count(8)), (3, 2, 1));
        [4, 1, 2].into_iter().for_each(|id| used.release_body(BodyId(id)));
        assert_eq!((used.count(3), used.count(7)), (0, 2));
        used.forget(&[3]);
        assert_eq!(used.bodies.runs.as_slice(), [(0, 7), (9, 8)]);
        [5, 6, 9].into_iter().for_each(|id| used.release_body(BodyId(id)));
        assert_eq!((used.count(7), used.count(8)), (0, 0));
    }

    #[test]
    fn counts_fall_to_zero_once_and_say_so() {
        let mut used = KeyUse::default();
        [3, 3, 5, 5, 3, 5].into_iter().for_each(|key| used.add(key));
        used.add(NO_KEY);
        assert_eq!((used.count(3), used.count(5), used.count(4), used.count(NO_KEY)), (3, 3, 0, 0));
        (0..2).for_each(|_| used.release(3));
        assert!(!used.take_idle());
        used.release(3);
        assert!(used.take_idle() && !used.take_idle());
        used.forget(&[3]);
        assert_eq!((used.count(3), used.count(5)), (0, 3));
        used.seals_with(5);
        assert!(used.take_idle(), "a key has stopped sealing");
        (0..3).for_each(|_| used.release(5));
        assert!(!used.take_idle(), "the key that seals is never idle");
    }
}
