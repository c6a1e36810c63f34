//! Which rows, manifests and delivery counts there are, as two keyed sums that the commit row carries. A record by itself proves only
//! that it once was at its place; with the sums, one that is gone, was put back, or is an older version of itself
//! does not pass for the state of the last commit.

use std::collections::HashMap;

use super::layout::Key;
use crate::seal::multiset::Multiset;
use crate::seal::xaes::Tag;

/// The sums of all rows, and of all manifests and delivery counts, modulo 2^128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) rows: u128,
    pub(super) manifests: u128,
}

/// Which of the two sums a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Row,
    Manifest,
    /// How often an entry came back, or that it is a dead letter: to forget that would deliver it once more.
    Count,
}

/// The records as they are now, each by its tag, which is another one each time that it is written.
pub(super) struct Presence {
    multiset: Multiset,
    tags: HashMap<Key, Tag, foldhash::fast::RandomState>,
    sums: Sums,
}

impl Presence {
    pub(super) fn new(multiset: Multiset) -> Presence {
        Presence { multiset, tags: HashMap::default(), sums: Sums::default() }
    }

    pub(super) fn sums(&self) -> Sums {
        self.sums
    }

    /// The record at `key` was written.
    pub(super) fn put(&mut self, kept: Kept, key: &Key, tag: Tag) {
        let before = self.tags.insert(*key, tag).map_or(0, |old| self.multiset.term_of(&old));
        let now = self.multiset.term_of(&tag);
        let sum = self.sum(kept);
        *sum = sum.wrapping_sub(before).wrapping_add(now);
    }

    /// The record at `key`, if there was one, was removed.
    pub(super) fn remove(&mut self, kept: Kept, key: &Key) {
        if let Some(tag) = self.tags.remove(key) {
            let term = self.multiset.term_of(&tag);
            let sum = self.sum(kept);
            *sum = sum.wrapping_sub(term);
        }
    }

    fn sum(&mut self, kept: Kept) -> &mut u128 {
        match kept {
            Kept::Row => &mut self.sums.rows,
            Kept::Manifest | Kept::Count => &mut self.sums.manifests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::id::{QueueId, RowId, Seq};
    use crate::store::layout::RowKind;
    use proptest::prelude::*;

    fn key(number: u64, kept: Kept) -> Key {
        match kept {
            Kept::Row => Key::row(RowKind::Queue, RowId(number)),
            Kept::Manifest => Key::manifest(QueueId(number)),
            Kept::Count => Key::delivery_count(QueueId(number), Seq(number)),
        }
    }

    proptest! {
        #[test]
        fn the_sums_depend_on_what_is_there_and_on_nothing_else(
            steps in proptest::collection::vec((any::<bool>(), 0..3usize, 0..6u64, 0..4u8), 0..60),
        ) {
            let mut presence = Presence::new(Multiset::public());
            let mut model = std::collections::BTreeMap::new();
            const KEPT: [Kept; 3] = [Kept::Row, Kept::Manifest, Kept::Count];
            for (put, kind, number, version) in steps {
                let kept = KEPT[kind];
                let tag = [version + 4 * number as u8 + 24 * kind as u8; 16];
                if put {
                    presence.put(kept, &key(number, kept), tag);
                    model.insert((kind, number), tag);
                } else {
                    presence.remove(kept, &key(number, kept));
                    model.remove(&(kind, number));
                }
                let mut anew = Presence::new(Multiset::public());
                for ((kind, number), tag) in &model {
                    anew.put(KEPT[*kind], &key(*number, KEPT[*kind]), *tag);
                }
                prop_assert_eq!(presence.sums(), anew.sums());
            }
        }
    }

    #[test]
    fn an_older_version_a_missing_record_and_one_more_change_the_sum() {
        let (first, second) = (key(1, Kept::Row), key(2, Kept::Row));
        let mut presence = Presence::new(Multiset::public());
        presence.put(Kept::Row, &first, [1; 16]);
        let sums = presence.sums();
        presence.put(Kept::Row, &first, [2; 16]);
        assert_ne!(presence.sums(), sums);
        presence.put(Kept::Row, &first, [1; 16]);
        assert_eq!(presence.sums(), sums);
        presence.put(Kept::Row, &second, [3; 16]);
        assert_ne!(presence.sums(), sums);
        presence.remove(Kept::Row, &second);
        presence.remove(Kept::Row, &second);
        assert_eq!(presence.sums(), sums);
        presence.remove(Kept::Row, &first);
        assert_eq!(presence.sums(), Sums::default());
    }
}
