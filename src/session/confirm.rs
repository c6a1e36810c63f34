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
    use super::*;

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
