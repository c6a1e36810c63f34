//! Dead letters that stay with their queue until every queue that should have them has taken them
//! (`x-dead-letter-strategy` at-least-once), as plain data. Nobody can consume them any more, but they
//! take room like the queue's other entries.
//!
//! One caller at a time forwards them, in the order in which they died: [`Letters::begin`], then as often as
//! there is something [`Letters::step`], and [`Letters::settle`] for each that it gave; the last step says that
//! there is nothing left, or [`Letters::end`] that the caller leaves the rest. They stay counted meanwhile.

use std::collections::BTreeMap;

use super::id::QueueId;
use super::queue::{Death, Entry};

/// Why and when an entry died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died {
    /// the reason in `x-death`
    pub death: Death,
    /// milliseconds since 1970
    pub at_ms: u64,
}

/// A dead letter on its way.
#[derive(Clone, Debug)]
pub struct Letter<D> {
    /// what died
    pub entry: Entry<D>,
    /// why and when
    pub died: Died,
    /// queues that have it already: they do not get it twice
    pub taken_by: Vec<QueueId>,
    /// it was forwarded before, and not taken by all
    pub was_tried: bool,
    /// the version of the topology in which nothing led anywhere
    pub unrouted_at: Option<u64>,
}

/// What is to be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// what was never tried
    Untried,
    /// what was; where the last round ended, the next begins
    Tried,
}

/// The dead letters of one queue.
#[derive(Debug)]
pub struct Letters<D> {
    /// by the order in which they died
    kept: BTreeMap<u64, Letter<D>>,
    bytes: usize,
    next: u64,
    untried_from: u64,
    retry_from: u64,
    /// what is being forwarded, and the number of the next
    out: Option<(Which, u64)>,
}

impl<D> Default for Letters<D> {
    fn default() -> Self {
        Letters { kept: BTreeMap::new(), bytes: 0, next: 0, untried_from: 0, retry_from: 0, out: None }
    }
}

impl<D: Clone> Letters<D> {
    /// The next at most `max` that are to be forwarded, each with its number; none means that the round is over.
    pub fn step(&mut self, max: usize) -> Vec<(u64, Letter<D>)> {
        let Some((which, from)) = self.out else { return Vec::new() };
        let until = match which {
            Which::Untried => self.next,
            Which::Tried => self.untried_from,
        };
        let found = self.kept.range(from..until.max(from)).take(max);
        let found: Vec<_> = found.map(|(number, letter)| (*number, letter.clone())).collect();
        let Some((last, _)) = found.last() else {
            if which == Which::Tried {
                self.retry_from = 0;
            }
            self.out = None;
            return found;
        };
        let behind = last + 1;
        self.out = Some((which, behind));
        match which {
            Which::Untried => self.untried_from = behind,
            Which::Tried => self.retry_from = behind,
        }
        found
    }
}

impl<D> Letters<D> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Bytes of their bodies.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// An entry has died.
    pub fn keep(&mut self, entry: Entry<D>, died: Died) {
        self.add(entry, died, false);
    }

    /// The store gave back an entry that had died, and that nobody had taken.
    pub fn recovered(&mut self, entry: Entry<D>, died: Died) {
        self.add(entry, died, true);
    }

    fn add(&mut self, entry: Entry<D>, died: Died, was_tried: bool) {
        self.bytes += entry.message.body().len();
        let letter = Letter { entry, died, taken_by: Vec::new(), was_tried, unrouted_at: None };
        self.kept.insert(self.next, letter);
        self.next += 1;
    }

    /// Begins to forward. False when somebody is at it, who will come to what was never tried as well.
    pub fn begin(&mut self, which: Which) -> bool {
        if self.out.is_some() {
            return false;
        }
        let from = match which {
            Which::Untried => self.untried_from,
            Which::Tried => self.retry_from,
        };
        self.out = Some((which, from));
        true
    }

    /// Whoever forwarded stops before there is nothing left.
    pub fn end(&mut self) {
        self.out = None;
    }

    /// What became of a letter that a step gave: `None` is taken by all. False when the queue does not have it
    /// any more.
    pub fn settle(&mut self, number: u64, left: Option<Letter<D>>) -> bool {
        let Some(kept) = self.kept.get_mut(&number) else { return false };
        match left {
            Some(letter) => *kept = letter,
            None => {
                self.bytes -= kept.entry.message.body().len();
                self.kept.remove(&number);
            }
        }
        true
    }

    /// All that is left of a queue that is gone.
    pub fn into_entries(self) -> impl Iterator<Item = Entry<D>> {
        self.kept.into_values().map(|letter| letter.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::id::Seq;
    use crate::broker::message::Message;

    fn letters(count: u64) -> Letters<()> {
        let mut letters = Letters::default();
        (0..count).for_each(|seq| keep(&mut letters, seq));
        letters
    }

    fn keep(letters: &mut Letters<()>, seq: u64) {
        let message = Message::new(b"", b"q", &[0, 0], &[b"body"]);
        letters.keep(Entry::new(Seq(seq), message, ()), Died { death: Death::Rejected, at_ms: 1 });
    }

    /// Forwards a step; those of which `takes` says so are taken.
    fn forward(letters: &mut Letters<()>, max: usize, takes: impl Fn(u64) -> bool) -> Vec<u64> {
        let step = letters.step(max);
        let seqs = step.iter().map(|(_, letter)| letter.entry.seq.0).collect();
        for (number, letter) in step {
            let left = (!takes(letter.entry.seq.0)).then_some(letter);
            assert!(letters.settle(number, left));
        }
        seqs
    }

    #[test]
    fn each_is_tried_once_in_order_also_what_dies_meanwhile() {
        let mut letters = letters(3);
        assert!(letters.begin(Which::Untried));
        assert_eq!(forward(&mut letters, 2, |seq| seq == 0), [0, 1]);
        keep(&mut letters, 3);
        assert!(!letters.begin(Which::Untried), "somebody is at it");
        assert_eq!(forward(&mut letters, 9, |_| false), [2, 3]);
        assert_eq!(forward(&mut letters, 9, |_| false), [0u64; 0]);
        assert!(letters.begin(Which::Untried));
        assert_eq!(forward(&mut letters, 9, |_| false), [0u64; 0]);
        assert_eq!((letters.len(), letters.bytes()), (3, 3 * 4));
    }

    #[test]
    fn what_was_tried_is_tried_again_and_again_where_the_last_round_ended() {
        let mut letters = letters(5);
        assert!(letters.begin(Which::Untried));
        assert_eq!(forward(&mut letters, 4, |_| false), [0, 1, 2, 3]);
        letters.end();
        assert!(letters.begin(Which::Tried));
        assert_eq!(forward(&mut letters, 3, |seq| seq == 1), [0, 1, 2]);
        letters.end();
        assert!(letters.begin(Which::Tried));
        assert_eq!(forward(&mut letters, 3, |_| false), [3], "4 was never tried");
        assert_eq!(forward(&mut letters, 3, |_| false), [0u64; 0]);
        assert!(letters.begin(Which::Tried));
        assert_eq!(forward(&mut letters, 9, |_| true), [0, 2, 3]);
        assert_eq!((letters.len(), letters.bytes()), (1, 4));
    }

    #[test]
    fn what_is_out_is_still_there() {
        let mut letters = letters(2);
        assert!(letters.begin(Which::Untried));
        let step = letters.step(1);
        assert_eq!((letters.len(), letters.bytes()), (2, 8));
        assert!(letters.settle(step[0].0, None));
        assert!(!letters.settle(step[0].0, None), "once");
        assert_eq!(letters.into_entries().map(|entry| entry.seq.0).collect::<Vec<_>>(), [1]);
    }
}
