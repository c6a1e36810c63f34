//! Publishes that wait for their confirms. A broker may confirm one by one or up to a tag, in any order; each publish
//! counts once.

use std::collections::VecDeque;

/// In place of a time: confirmed already, while an earlier one is not.
const CONFIRMED: u64 = u64::MAX;

/// When each publish that is not confirmed was sent.
pub struct Pending {
    /// The publish sequence number of the first place in `sent_us`; they count from 1.
    first: u64,
    sent_us: VecDeque<u64>,
    open: usize,
}

impl Default for Pending {
    fn default() -> Pending {
        Pending { first: 1, sent_us: VecDeque::new(), open: 0 }
    }
}

impl Pending {
    /// The next publish was sent.
    pub fn push(&mut self, sent_us: u64) {
        self.sent_us.push_back(sent_us);
        self.open += 1;
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// A confirm for `tag`, or for all up to it; `confirmed` gets the time at which each of them was sent.
    pub fn confirm(&mut self, tag: u64, multiple: bool, mut confirmed: impl FnMut(u64)) {
        let Some(last) = tag.checked_sub(self.first) else { return };
        let end = last.saturating_add(1).min(self.sent_us.len() as u64) as usize;
        let from = if multiple { 0 } else { end.min(last as usize) };
        for sent_us in self.sent_us.range_mut(from..end) {
            let sent_us = std::mem::replace(sent_us, CONFIRMED);
            if sent_us != CONFIRMED {
                self.open -= 1;
                confirmed(sent_us);
            }
        }
        while self.sent_us.front() == Some(&CONFIRMED) {
            self.sent_us.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_confirm_for_what_is_confirmed_or_was_never_sent_confirms_nothing_twice() {
        let mut pending = Pending::default();
        (10..13).for_each(|at| pending.push(at));
        let mut seen = Vec::new();
        pending.confirm(2, false, |at| seen.push(at));
        pending.confirm(2, false, |at| seen.push(at));
        pending.confirm(1, true, |at| seen.push(at));
        pending.confirm(1, true, |at| seen.push(at));
        assert_eq!((seen.as_slice(), pending.len()), (&[11, 10][..], 1));
        pending.confirm(9, false, |at| seen.push(at));
        assert_eq!(pending.len(), 1, "what was never sent");
        pending.confirm(9, true, |at| seen.push(at));
        assert!(pending.is_empty() && seen == [11, 10, 12]);
    }

    proptest! {
        /// Against the plain set of open tags; a publish's time is its tag here.
        #[test]
        fn each_publish_is_confirmed_once_in_whatever_order_confirms_come(
            count in 1u64..60,
            confirms in proptest::collection::vec((1u64..60, any::<bool>()), 0..80),
        ) {
            let mut pending = Pending::default();
            (1..=count).for_each(|tag| pending.push(tag));
            let mut open: BTreeSet<u64> = (1..=count).collect();
            for (tag, multiple) in confirms.into_iter().filter(|(tag, _)| *tag <= count) {
                let mut got = BTreeSet::new();
                pending.confirm(tag, multiple, |at| { got.insert(at); });
                let wanted: BTreeSet<u64> =
                    open.iter().copied().filter(|at| if multiple { *at <= tag } else { *at == tag }).collect();
                prop_assert_eq!(&got, &wanted);
                open.retain(|at| !wanted.contains(at));
                prop_assert_eq!(pending.len(), open.len());
            }
        }
    }
}
