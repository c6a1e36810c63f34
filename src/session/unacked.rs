//! Delivery tags of one channel: what was delivered and waits for its acknowledgement. Tags rise by one
//! with every delivery, so the list is sorted and the usual acknowledgement is at its front.

use std::collections::VecDeque;

use crate::broker::queue::Entry;

/// One delivery that waits for ack, nack or reject.
#[derive(Debug)]
pub(super) struct Unacked<D> {
    pub tag: u64,
    /// key of the session's source (consumer, or basic.get on a queue)
    pub source: u32,
    /// ticks of the session's clock; they wrap
    pub delivered_at: u32,
    pub entry: Entry<D>,
}

/// A channel's unacknowledged deliveries, oldest first.
pub(super) struct UnackedList<D> {
    list: VecDeque<Option<Unacked<D>>>,
    tags: VecDeque<u64>,
    last_tag: u64,
    /// places in `list` that are empty
    holes: usize,
}

/// Holes behind an old delivery before they are packed.
const HOLES_MIN: usize = 1024;

impl<D> Default for UnackedList<D> {
    fn default() -> Self {
        UnackedList { list: VecDeque::new(), tags: VecDeque::new(), last_tag: 0, holes: 0 }
    }
}

impl<D> UnackedList<D> {
    /// The next delivery's tag; the first is 1.
    pub fn next_tag(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    /// Remembers a delivery; its tag is the last one given out.
    pub fn push(&mut self, unacked: Unacked<D>) {
        self.tags.push_back(unacked.tag);
        self.list.push_back(Some(unacked));
    }

    /// Takes out the delivery of that tag.
    pub fn take(&mut self, tag: u64) -> Option<Unacked<D>> {
        let at = self.position(tag)?;
        let unacked = self.list.get_mut(at)?.take()?;
        self.holes += 1;
        self.trim();
        Some(unacked)
    }

    /// Takes out every delivery up to `tag`, oldest first; 0 means all. `None` when `tag` is not one
    /// that waits (AMQP 0-9-1 1.8.3.13: that is an error).
    pub fn take_up_to(&mut self, tag: u64) -> Option<Vec<Unacked<D>>> {
        let end = if tag == 0 {
            self.list.len()
        } else {
            let at = self.position(tag)?;
            self.list.get(at)?.as_ref()?;
            at + 1
        };
        self.tags.drain(..end);
        let taken: Vec<_> = self.list.drain(..end).flatten().collect();
        self.holes -= end - taken.len();
        self.trim();
        Some(taken)
    }

    /// Takes deliveries back that were taken out, oldest first.
    pub fn put_back(&mut self, returned: Vec<Unacked<D>>) {
        if returned.is_empty() {
            return;
        }
        let mut all: Vec<_> = self.list.drain(..).flatten().chain(returned).collect();
        all.sort_unstable_by_key(|unacked| unacked.tag);
        self.holes = 0;
        self.tags = all.iter().map(|unacked| unacked.tag).collect();
        self.list = all.into_iter().map(Some).collect();
    }

    /// All of them, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Unacked<D>> {
        self.list.iter().flatten()
    }

    fn position(&self, tag: u64) -> Option<usize> {
        if self.tags.front() == Some(&tag) {
            return Some(0);
        }
        self.tags.binary_search(&tag).ok()
    }

    /// Drops the holes at the front, and those behind when one delivery that is never acknowledged would
    /// make them pile up: the list is not much longer than what waits.
    fn trim(&mut self) {
        while let Some(None) = self.list.front() {
            self.list.pop_front();
            self.tags.pop_front();
            self.holes -= 1;
        }
        if self.holes > HOLES_MIN + self.list.len() / 2 {
            self.list.retain(Option::is_some);
            self.tags = self.list.iter().flatten().map(|u| u.tag).collect();
            self.holes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::id::Seq;
    use crate::broker::message::Message;

    fn deliver(list: &mut UnackedList<()>) -> u64 {
        let tag = list.next_tag();
        let entry = Entry::new(Seq(tag), Message::new(b"", b"", &[], &[]), ());
        list.push(Unacked { tag, source: 0, delivered_at: 0, entry });
        tag
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver(u16),
        /// without acknowledgement: a tag is used up, and nothing waits
        Skip,
        Take(u64),
        TakeUpTo(u64),
        /// the oldest of what was taken last comes back, as after a rollback
        PutBack(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u16..5).prop_map(Step::Deliver),
            1 => Just(Step::Skip),
            6 => (0u64..60).prop_map(Step::Take),
            2 => (0u64..60).prop_map(Step::TakeUpTo),
            1 => (0usize..5).prop_map(Step::PutBack),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn what_waits_is_what_a_plain_set_holds(steps in vec(step(), 0..120)) {
            let mut list = UnackedList::default();
            let (mut model, mut last, mut taken) = (BTreeSet::new(), 0, Vec::new());
            for step in steps {
                match step {
                    Step::Deliver(count) => for _ in 0..count {
                        last += 1;
                        prop_assert_eq!(deliver(&mut list), last);
                        model.insert(last);
                    },
                    Step::Skip => {
                        last += 1;
                        prop_assert_eq!(list.next_tag(), last);
                    }
                    Step::Take(tag) => {
                        let got = list.take(tag);
                        prop_assert_eq!(got.as_ref().map(|u| u.tag), model.take(&tag));
                        taken.extend(got);
                    }
                    Step::TakeUpTo(tag) => {
                        let known = tag == 0 || model.contains(&tag);
                        let up_to = if tag == 0 { u64::MAX } else { tag };
                        let expected: Vec<u64> = model.range(..=up_to).copied().collect();
                        let got = list.take_up_to(tag);
                        prop_assert_eq!(got.is_some(), known);
                        let Some(got) = got else { continue };
                        prop_assert_eq!(got.iter().map(|u| u.tag).collect::<Vec<_>>(), &expected[..], "oldest first");
                        model.retain(|other| !expected.contains(other));
                        taken.extend(got);
                    }
                    Step::PutBack(count) => {
                        let back = taken.split_off(taken.len().saturating_sub(count));
                        model.extend(back.iter().map(|u| u.tag));
                        list.put_back(back);
                    }
                }
                prop_assert!(list.list.len() == list.tags.len() && list.tags.iter().is_sorted());
                prop_assert_eq!(list.list.iter().flatten().count(), model.len());
            }
            let left: Vec<u64> = list.take_up_to(0).unwrap().iter().map(|u| u.tag).collect();
            prop_assert_eq!(left, model.into_iter().collect::<Vec<_>>());
        }
    }

    fn list_of(n: u64) -> UnackedList<()> {
        let mut list = UnackedList::default();
        for _ in 0..n {
            let tag = list.next_tag();
            let message = Message::new(b"", b"", &[], &[]);
            let entry = Entry::new(Seq(tag), message, ());
            list.push(Unacked { tag, source: 0, delivered_at: 0, entry });
        }
        list
    }

    fn tags(taken: Option<Vec<Unacked<()>>>) -> Option<Vec<u64>> {
        taken.map(|list| list.iter().map(|u| u.tag).collect())
    }

    #[test]
    fn an_acknowledgement_takes_its_delivery_once() {
        let mut list = list_of(3);
        assert_eq!(list.take(2).map(|u| u.tag), Some(2));
        assert!(list.take(2).is_none(), "a second time");
        assert!(list.take(4).is_none(), "never given out");
        assert_eq!(tags(list.take_up_to(0)), Some(vec![1, 3]));
    }

    #[test]
    fn what_a_rollback_puts_back_can_be_acknowledged_again() {
        let mut list = list_of(4);
        let taken = [3, 1].map(|tag| list.take(tag).unwrap());
        list.put_back(taken.into());
        assert_eq!(list.take(3).map(|u| u.tag), Some(3));
        assert_eq!(tags(list.take_up_to(0)), Some(vec![1, 2, 4]));
    }

    #[test]
    fn multiple_takes_everything_up_to_its_tag() {
        let mut list = list_of(5);
        list.take(1);
        assert_eq!(tags(list.take_up_to(3)), Some(vec![2, 3]));
        assert_eq!(tags(list.take_up_to(3)), None, "gone already");
        assert_eq!(tags(list.take_up_to(0)), Some(vec![4, 5]));
        assert_eq!(tags(list.take_up_to(0)), Some(vec![]));
    }

    #[test]
    fn a_hole_in_the_middle_is_no_tag_for_multiple() {
        let mut list = list_of(3);
        list.take(2);
        assert_eq!(tags(list.take_up_to(2)), None);
        assert_eq!(tags(list.take_up_to(3)), Some(vec![1, 3]));
    }

    #[test]
    fn one_stuck_delivery_does_not_make_the_list_grow_for_ever() {
        let mut list = list_of(1);
        for _ in 0..10_000 {
            let tag = list.next_tag();
            let message = Message::new(b"", b"", &[], &[]);
            let entry = Entry::new(Seq(tag), message, ());
            list.push(Unacked { tag, source: 0, delivered_at: 0, entry });
            assert_eq!(list.take(tag).map(|u| u.tag), Some(tag));
        }
        assert!(list.list.len() <= 2 * HOLES_MIN + 2 && list.tags.len() == list.list.len());
        assert_eq!(tags(list.take_up_to(1)), Some(vec![1]));
        assert!(list.list.is_empty() && list.holes == 0);
    }
}
