//! Places of a queue that are in use, one bit each: ten million entries in a row take three megabytes, and
//! one entry far from all others sixteen bytes.

use std::collections::VecDeque;

use crate::broker::id::Seq;

/// Empty blocks that may stay in the middle before the list is packed.
const EMPTY_MIN: usize = 1024;
/// Places in one block.
const BLOCK: u64 = u64::BITS as u64;

/// A set of places.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LiveSet {
    /// In ascending order; the first is not empty.
    blocks: VecDeque<Block>,
    len: u64,
}

/// Places `BLOCK * index` and the 63 after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    index: u64,
    bits: u64,
}

impl Block {
    fn first(self) -> Seq {
        Seq(self.index * BLOCK + u64::from(self.bits.trailing_zeros()))
    }
}

fn place(seq: Seq) -> (u64, u64) {
    (seq.0 / BLOCK, 1 << (seq.0 % BLOCK))
}

impl LiveSet {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn first(&self) -> Option<Seq> {
        self.blocks.front().map(|block| block.first())
    }

    /// Where the block of that index is, or would be. A queue is mostly written at its end and read at its head.
    fn find(&self, index: u64) -> Result<usize, usize> {
        match (self.blocks.front(), self.blocks.back()) {
            (Some(front), _) if front.index == index => Ok(0),
            (_, Some(back)) if back.index == index => Ok(self.blocks.len() - 1),
            (_, Some(back)) if back.index < index => Err(self.blocks.len()),
            _ => self.blocks.binary_search_by_key(&index, |block| block.index),
        }
    }

    /// False when it is in already.
    pub(super) fn insert(&mut self, seq: Seq) -> bool {
        let (index, bit) = place(seq);
        match self.find(index) {
            Ok(at) => {
                let Some(block) = self.blocks.get_mut(at).filter(|block| block.bits & bit == 0) else {
                    return false;
                };
                block.bits |= bit;
            }
            Err(at) => self.blocks.insert(at, Block { index, bits: bit }),
        }
        self.len += 1;
        true
    }

    pub(super) fn contains(&self, seq: Seq) -> bool {
        let (index, bit) = place(seq);
        self.find(index).ok().and_then(|at| self.blocks.get(at)).is_some_and(|block| block.bits & bit != 0)
    }

    /// False when it is not in.
    pub(super) fn remove(&mut self, seq: Seq) -> bool {
        let (index, bit) = place(seq);
        let block = self.find(index).ok().and_then(|at| self.blocks.get_mut(at));
        let Some(block) = block.filter(|block| block.bits & bit != 0) else { return false };
        block.bits &= !bit;
        self.len -= 1;
        self.tidy();
        true
    }

    /// Takes the lowest out.
    pub(super) fn pop_first(&mut self) -> Option<Seq> {
        let first = self.first()?;
        self.remove(first);
        Some(first)
    }

    /// The first at or behind `from`.
    pub(super) fn at_or_after(&self, from: Seq) -> Option<Seq> {
        let at = self.blocks.partition_point(|block| block.index < from.0 / BLOCK);
        self.blocks.range(at..).find_map(|block| {
            let mask = if block.index == from.0 / BLOCK { u64::MAX << (from.0 % BLOCK) } else { u64::MAX };
            let rest = Block { bits: block.bits & mask, ..*block };
            (rest.bits != 0).then(|| rest.first())
        })
    }

    /// The last before `upto`.
    pub(super) fn before(&self, upto: Seq) -> Option<Seq> {
        let at = self.blocks.partition_point(|block| block.index <= upto.0 / BLOCK);
        self.blocks.range(..at).rev().find_map(|block| {
            let bits = match block.index == upto.0 / BLOCK {
                true => block.bits & !(u64::MAX << (upto.0 % BLOCK)),
                false => block.bits,
            };
            let last = u64::from(u64::BITS - 1).checked_sub(bits.leading_zeros().into())?;
            Some(Seq(block.index * BLOCK + last))
        })
    }

    /// Takes out what lies from `first` to `last`.
    pub(super) fn take_range(&mut self, first: Seq, last: Seq) -> LiveSet {
        let mut taken = LiveSet::default();
        let from = self.blocks.partition_point(|block| block.index < first.0 / BLOCK);
        for block in self.blocks.range_mut(from..).take_while(|block| block.index <= last.0 / BLOCK) {
            let mut mask = u64::MAX;
            if block.index == first.0 / BLOCK {
                mask &= u64::MAX << (first.0 % BLOCK);
            }
            if block.index == last.0 / BLOCK {
                mask &= u64::MAX >> (BLOCK - 1 - last.0 % BLOCK);
            }
            let bits = block.bits & mask;
            if bits != 0 {
                taken.blocks.push_back(Block { index: block.index, bits });
                taken.len += u64::from(bits.count_ones());
                block.bits &= !mask;
            }
        }
        self.len -= taken.len;
        self.tidy();
        taken
    }

    fn tidy(&mut self) {
        while self.blocks.front().is_some_and(|block| block.bits == 0) {
            self.blocks.pop_front();
        }
        if self.blocks.len() > EMPTY_MIN + 2 * self.len as usize {
            self.blocks.retain(|block| block.bits != 0);
        }
    }

    /// All of it, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Seq> + '_ {
        self.blocks.iter().flat_map(|block| {
            let mut rest = *block;
            std::iter::from_fn(move || {
                let first = (rest.bits != 0).then(|| rest.first());
                rest.bits &= rest.bits.wrapping_sub(1);
                first
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(u64),
        PopFirst,
        TakeRange(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = || prop_oneof![8 => 0u64..400, 1 => (u64::MAX - 100)..=u64::MAX];
        prop_oneof![
            6 => place().prop_map(Step::Insert),
            3 => place().prop_map(Step::Remove),
            1 => Just(Step::PopFirst),
            1 => (place(), place()).prop_map(|(a, b)| Step::TakeRange(a.min(b), a.max(b))),
        ]
    }

    proptest! {
        #[test]
        fn is_a_set(steps in proptest::collection::vec(step(), 0..200)) {
            let (mut set, mut model) = (LiveSet::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(seq) => prop_assert_eq!(set.insert(Seq(seq)), model.insert(seq)),
                    Step::Remove(seq) => prop_assert_eq!(set.remove(Seq(seq)), model.remove(&seq)),
                    Step::PopFirst => prop_assert_eq!(set.pop_first().map(|seq| seq.0), model.pop_first()),
                    Step::TakeRange(first, last) => {
                        let taken: Vec<u64> = model.range(first..=last).copied().collect();
                        model.retain(|seq| !(first..=last).contains(seq));
                        let out = set.take_range(Seq(first), Seq(last));
                        prop_assert_eq!(out.len(), taken.len() as u64);
                        prop_assert_eq!(out.iter().map(|seq| seq.0).collect::<Vec<_>>(), taken);
                    }
                }
                prop_assert_eq!((set.len(), set.is_empty()), (model.len() as u64, model.is_empty()));
                prop_assert_eq!(set.first().map(|seq| seq.0), model.first().copied());
                for place in (0..410).step_by(7).chain(model.iter().copied().take(40)) {
                    let next = model.range(place..).next().copied().map(Seq);
                    let last = model.range(..place).next_back().copied().map(Seq);
                    prop_assert_eq!((set.at_or_after(Seq(place)), set.before(Seq(place))), (next, last));
                }
                prop_assert!(model.iter().all(|seq| set.contains(Seq(*seq))) && !set.contains(Seq(500)));
            }
            prop_assert_eq!(set.iter().map(|seq| seq.0).collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_stuck_place_does_not_make_the_list_grow_for_ever() {
        let mut set = LiveSet::default();
        set.insert(Seq(1));
        for seq in 2..1_000_000 {
            assert!(set.insert(Seq(seq)) && set.remove(Seq(seq)));
        }
        assert!(set.blocks.len() <= EMPTY_MIN + 4 && set.first() == Some(Seq(1)));
    }

    #[test]
    fn ten_million_places_in_a_row_take_three_megabytes() {
        let mut set = LiveSet::default();
        (1..=10_000_000).for_each(|seq| assert!(set.insert(Seq(seq))));
        assert!(set.blocks.len() * size_of::<Block>() < 3_000_000);
    }
}
