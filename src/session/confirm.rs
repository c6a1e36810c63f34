//! Publisher confirms of one channel: which publishes wait for which barrier, and the cumulative
//! basic.ack once it is reached (RabbitMQ's extension, confirms.md).

use std::collections::VecDeque;

use super::port::Barrier;

/// Counts publishes after confirm.select; the first is 1.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    last_tag: u64,
    /// in the order of publishing; barriers of one connection never fall
    pending: VecDeque<(u64, Barrier)>,
}

impl Confirms {
    /// The tag of the next publish.
    pub fn next_tag(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    /// That publish is to be confirmed at `barrier`.
    pub fn expect(&mut self, tag: u64, barrier: Barrier) {
        self.pending.push_back((tag, barrier));
    }

    /// The publishes whose turn has come: the last tag, and whether it stands for several.
    pub fn take_due(&mut self, durable: Barrier) -> Option<(u64, bool)> {
        let (mut last, mut count) = (0, 0);
        while let Some((tag, barrier)) = self.pending.front() {
            if *barrier > durable {
                break;
            }
            (last, count) = (*tag, count + 1);
            self.pending.pop_front();
        }
        (count > 0).then_some((last, count > 1))
    }

    /// Whether any publish still waits.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Publishes (with the place in the commit order that they wait for), refusals, and commits that come
        /// later: who publishes hears about each publish once, and not before it is durable.
        #[test]
        fn each_publish_is_answered_once_and_not_too_soon(steps in vec((0u8..6, 0u64..4), 0..120)) {
            let mut confirms = Confirms::default();
            let (mut waits, mut answered): (BTreeMap<u64, u64>, Vec<u64>) = Default::default();
            let (mut tail, mut durable, mut published) = (0, 0, 0);
            let drain = [(5, u64::MAX / 2)];
            for (what, by) in steps.into_iter().chain(drain) {
                match what {
                    0..=3 => {
                        published += 1;
                        let tag = confirms.next_tag();
                        prop_assert_eq!(tag, published, "tags count publishes");
                        if what == 3 {
                            // A refusal is told at once and waits for nothing.
                            answered.push(tag);
                            continue;
                        }
                        // Transient publishes wait for nothing, stored ones for a place further on.
                        tail += by;
                        let barrier = if what == 0 { 0 } else { tail };
                        confirms.expect(tag, Barrier(barrier));
                        waits.insert(tag, barrier);
                    }
                    _ => durable += by,
                }
                if let Some((last, multiple)) = confirms.take_due(Barrier(durable)) {
                    let all: Vec<u64> = match multiple {
                        true => waits.range(..=last).map(|(tag, _)| *tag).collect(),
                        false => vec![last],
                    };
                    prop_assert!(!multiple || all.len() > 1, "one alone is not told as several");
                    for tag in all {
                        let barrier = waits.remove(&tag);
                        prop_assert!(barrier.is_some_and(|barrier| barrier <= durable), "{tag}: {barrier:?}");
                        answered.push(tag);
                    }
                }
                prop_assert_eq!(confirms.is_waiting(), !waits.is_empty());
                let first = waits.values().next();
                prop_assert!(first.is_none_or(|barrier| *barrier > durable), "what is due is not held back");
            }
            answered.sort();
            prop_assert_eq!(answered, (1..=published).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_ack_stands_for_all_that_are_due() {
        let mut c = Confirms::default();
        for barrier in [5, 5, 7] {
            let tag = c.next_tag();
            c.expect(tag, Barrier(barrier));
        }
        assert_eq!(c.take_due(Barrier(4)), None);
        assert_eq!(c.take_due(Barrier(6)), Some((2, true)));
        assert_eq!(c.take_due(Barrier(7)), Some((3, false)));
        assert!(!c.is_waiting());
    }

    #[test]
    fn a_transient_publish_does_not_overtake_a_persistent_one() {
        let mut c = Confirms::default();
        let (a, b) = (c.next_tag(), c.next_tag());
        c.expect(a, Barrier(9));
        c.expect(b, Barrier(0));
        assert_eq!(c.take_due(Barrier(0)), None);
        assert_eq!(c.take_due(Barrier(9)), Some((2, true)));
    }
}
