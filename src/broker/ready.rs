//! The ready entries of one queue: in order of their places, by priority where the queue has
//! priorities (`x-max-priority`, or a quorum queue's two). What is in here and in which order; who gets it
//! is `round`'s business.

use std::collections::VecDeque;

use super::queue::Entry;

/// How many priorities there are, and what they mean for the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priorities {
    /// 0 to this one, the highest first
    Strict(u8),
    /// A quorum queue's, as RabbitMQ 4.0 has them: up to 4 is normal, above is high. Two of high priority
    /// go, then the older of the next two, so that neither waits for ever.
    TwoToOne,
}

/// The highest priority that is a normal one in a quorum queue.
const NORMAL_MAX: u8 = 4;

/// Ready entries; the highest priority first, within one priority the oldest first.
pub(super) struct Ready<D> {
    /// one list for each priority, the lowest first; a queue without priorities has one
    levels: Vec<VecDeque<Entry<D>>>,
    len: usize,
    bytes: usize,
    /// no level above it holds anything
    top: usize,
    priorities: Priorities,
    /// entries taken since a normal one had its chance; only with [`Priorities::TwoToOne`]
    favours: u8,
}

impl<D> Ready<D> {
    pub fn new(priorities: Priorities) -> Ready<D> {
        let highest = match priorities {
            Priorities::Strict(highest) => highest,
            Priorities::TwoToOne => 1,
        };
        let levels = (0..=highest).map(|_| VecDeque::new()).collect();
        Ready { levels, len: 0, bytes: 0, top: 0, priorities, favours: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the bodies in it, which is what `x-max-length-bytes` counts.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A priority beyond the queue's highest counts as the highest (RabbitMQ, priority.md).
    fn level(&self, priority: u8) -> usize {
        match self.priorities {
            Priorities::Strict(_) => usize::from(priority).min(self.levels.len() - 1),
            Priorities::TwoToOne => usize::from(priority > NORMAL_MAX),
        }
    }

    fn count_in(&mut self, level: usize, bytes: usize) {
        self.len += 1;
        self.bytes += bytes;
        self.top = self.top.max(level);
    }

    /// Adds an entry behind all of its priority.
    pub fn push(&mut self, entry: Entry<D>) {
        let level = self.level(entry.priority);
        self.count_in(level, entry.message.body().len());
        if let Some(list) = self.levels.get_mut(level) {
            list.push_back(entry);
        }
    }

    /// Puts entries back to their old places. A consumer may die with a million of them, so the cost is
    /// one pass over them and over what stands between them.
    pub fn put_back(&mut self, entries: Vec<Entry<D>>) {
        if let [entry] = entries.as_slice() {
            return self.put_back_to(self.level(entry.priority), entries);
        }
        if self.levels.len() == 1 {
            return self.put_back_to(0, entries);
        }
        let mut by_level: Vec<Vec<Entry<D>>> = self.levels.iter().map(|_| Vec::new()).collect();
        for entry in entries {
            let level = self.level(entry.priority);
            if let Some(list) = by_level.get_mut(level) {
                list.push(entry);
            }
        }
        for (level, same) in by_level.into_iter().enumerate() {
            self.put_back_to(level, same);
        }
    }

    fn put_back_to(&mut self, level: usize, mut entries: Vec<Entry<D>>) {
        entries.iter().for_each(|e| self.count_in(level, e.message.body().len()));
        let Some(list) = self.levels.get_mut(level) else { return };
        if !entries.is_sorted_by_key(|e| e.seq) {
            entries.sort_unstable_by_key(|e| e.seq);
        }
        let Some(last) = entries.last().map(|e| e.seq) else { return };
        let before_last = list.partition_point(|e| e.seq < last);
        if entries.len() == 1 {
            entries.pop().into_iter().for_each(|entry| list.insert(before_last, entry));
            return;
        }
        let mut between: Vec<Entry<D>> = list.drain(..before_last).collect();
        loop {
            let next = match (entries.last(), between.last()) {
                (Some(entry), Some(other)) if entry.seq < other.seq => between.pop(),
                (Some(_), _) => entries.pop(),
                (None, _) => between.pop(),
            };
            let Some(next) = next else { return };
            list.push_front(next);
        }
    }

    /// Takes the entry whose turn is next.
    pub fn pop(&mut self) -> Option<Entry<D>> {
        let level = match self.priorities {
            Priorities::Strict(_) => {
                self.settle_top();
                self.top
            }
            Priorities::TwoToOne => self.favoured()?,
        };
        let entry = self.levels.get_mut(level)?.pop_front()?;
        self.len -= 1;
        self.bytes -= entry.message.body().len();
        Some(entry)
    }

    /// Takes everything, in order.
    pub fn take_all(&mut self) -> Vec<Entry<D>> {
        let mut all = Vec::with_capacity(self.len);
        while let Some(entry) = self.pop() {
            all.push(entry);
        }
        all
    }

    /// The head of each priority: only heads expire (RabbitMQ, ttl.md).
    pub fn heads(&self) -> impl Iterator<Item = &Entry<D>> {
        self.levels.iter().filter_map(|list| list.front())
    }

    /// Takes the heads that `is_over` says are, priority by priority.
    pub fn take_heads(&mut self, is_over: impl Fn(&Entry<D>) -> bool, out: &mut Vec<Entry<D>>) {
        for list in &mut self.levels {
            while list.front().is_some_and(&is_over)
                && let Some(entry) = list.pop_front()
            {
                self.len -= 1;
                self.bytes -= entry.message.body().len();
                out.push(entry);
            }
        }
    }

    /// The level whose turn it is, of a quorum queue's two.
    fn favoured(&mut self) -> Option<usize> {
        let head = |level: usize| self.levels.get(level)?.front().map(|entry| entry.seq);
        let level = match (head(0), head(1)) {
            (None, None) => return None,
            (Some(normal), Some(high)) if self.favours == 2 => usize::from(high < normal),
            (_, Some(_)) => 1,
            (Some(_), None) => 0,
        };
        self.favours = (self.favours + 1) % 3;
        Some(level)
    }

    fn settle_top(&mut self) {
        while self.top > 0 && self.levels.get(self.top).is_none_or(|list| list.is_empty()) {
            self.top -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::id::Seq;
    use crate::broker::message::Message;

    fn entry(seq: u64, priority: u8) -> Entry<()> {
        let message = Message::new(b"", b"", &[0, 0], &[b"x"]);
        Entry { priority, ..Entry::new(Seq(seq), message, ()) }
    }

    fn order(ready: &mut Ready<()>) -> Vec<u64> {
        ready.take_all().iter().map(|e| e.seq.0).collect()
    }

    #[test]
    fn higher_priorities_come_first_and_keep_their_order() {
        let mut ready = Ready::new(Priorities::Strict(5));
        for (seq, priority) in [(1, 0), (2, 5), (3, 3), (4, 5), (5, 9), (6, 0)] {
            ready.push(entry(seq, priority));
        }
        assert_eq!(order(&mut ready), [2, 4, 5, 3, 1, 6]);
        assert_eq!((ready.len(), ready.bytes()), (0, 0));
    }

    #[test]
    fn without_priorities_the_property_is_ignored() {
        let mut ready = Ready::new(Priorities::Strict(0));
        ready.push(entry(1, 0));
        ready.push(entry(2, 200));
        assert_eq!(order(&mut ready), [1, 2]);
    }

    #[test]
    fn what_comes_back_stands_before_what_came_later_in_its_priority() {
        let mut ready = Ready::new(Priorities::Strict(1));
        for (seq, priority) in [(3, 1), (4, 0), (6, 1)] {
            ready.push(entry(seq, priority));
        }
        ready.put_back(vec![entry(5, 1), entry(2, 0), entry(1, 1)]);
        assert_eq!(order(&mut ready), [1, 3, 5, 6, 2, 4]);
    }

    /// RabbitMQ 4.0 gave both orders.
    #[test]
    fn a_quorum_queue_favours_high_priorities_two_to_one() {
        let mut ready = Ready::new(Priorities::TwoToOne);
        (1..=4).for_each(|seq| ready.push(entry(seq, seq as u8)));
        (5..=9).for_each(|seq| ready.push(entry(seq, seq as u8)));
        assert_eq!(order(&mut ready), [5, 6, 1, 7, 8, 2, 9, 3, 4]);
        let mut ready = Ready::new(Priorities::TwoToOne);
        (1..=4).for_each(|seq| ready.push(entry(seq, 255)));
        (5..=6).for_each(|seq| ready.push(entry(seq, 0)));
        assert_eq!(order(&mut ready), [1, 2, 3, 4, 5, 6], "what is older anyway needs no favour");
        assert_eq!((ready.len(), ready.bytes()), (0, 0));
    }

    #[test]
    fn only_heads_are_taken() {
        let mut ready = Ready::new(Priorities::Strict(1));
        for (seq, priority) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
            ready.push(entry(seq, priority));
        }
        let mut out = Vec::new();
        ready.take_heads(|e| e.seq.0 % 2 == 1, &mut out);
        assert_eq!(out.iter().map(|e| e.seq.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(order(&mut ready), [4, 2]);
    }
}
