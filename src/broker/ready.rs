//! The ready entries of one queue: in order of their places, by priority where the queue has
//! priorities (`x-max-priority`, or a quorum queue's two). What is in here and in which order; who gets it
//! is `round`'s business, and what of it is in memory is `level`'s.

use std::collections::VecDeque;

use super::id::Seq;
use super::level::{Amount, Level, PageRead, Rest, Run};
use super::queue::Entry;
use super::spilled::Block;
use crate::limits::{READ_AHEAD_BYTES_MAX, SPILL_BLOCK_BYTES_MAX, SPILL_BLOCK_MESSAGES_MAX};

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
    /// one for each priority, the lowest first; a queue without priorities has one
    levels: Vec<Level<D>>,
    /// of all entries
    total: Amount,
    /// of those that are not in memory
    paged: Amount,
    /// no level above it holds anything
    top: usize,
    priorities: Priorities,
    /// entries taken since a normal one had its chance; only with [`Priorities::TwoToOne`]
    favours: u8,
}

/// How much of a queue stays in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// entries
    pub len_max: usize,
    /// bytes of their bodies
    pub bytes_max: usize,
}

/// What is to be read back next: the beginning of a run, or blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub(super) level: usize,
    /// the first place
    pub first: Seq,
    /// no further than this place
    pub last: Seq,
    /// not more entries than these
    pub len_max: usize,
    /// no further entry when their bodies have come to so many bytes
    pub bytes_max: usize,
    /// these, whole, and nothing of the store
    pub blocks: Vec<Block>,
}

/// Entries that a queue has made a block and given away, to be written.
#[derive(Debug)]
pub struct Spilling<D> {
    level: usize,
    /// what takes their place in the queue
    pub block: Block,
    /// in order
    pub entries: Vec<Entry<D>>,
}

impl<D> Ready<D> {
    pub fn new(priorities: Priorities) -> Ready<D> {
        let highest = match priorities {
            Priorities::Strict(highest) => highest,
            Priorities::TwoToOne => 1,
        };
        let levels = (0..=highest).map(|_| Level::default()).collect();
        let (total, paged) = (Amount::default(), Amount::default());
        Ready { levels, total, paged, top: 0, priorities, favours: 0 }
    }

    /// What the store gave back, in order.
    pub fn restored(priorities: Priorities, runs: Vec<Run>) -> Ready<D> {
        let mut ready = Ready::new(priorities);
        let mut of_level: Vec<VecDeque<Run>> = ready.levels.iter().map(|_| VecDeque::new()).collect();
        for run in runs {
            let level = ready.level(run.priority);
            ready.count_in(level, run.count as usize, run.body_bytes as usize);
            let Some(list) = of_level.get_mut(level) else { continue };
            // A run is all that the store has between two places, so only neighbours can be made one.
            match list.back_mut().filter(|last| last.last.0 + 1 == run.first.0) {
                Some(last) => last.append(&run),
                None => list.push_back(run),
            }
        }
        ready.levels.iter_mut().zip(of_level).for_each(|(level, runs)| level.restore(runs));
        ready.paged = ready.total;
        ready
    }

    pub fn len(&self) -> usize {
        self.total.len
    }

    pub fn is_empty(&self) -> bool {
        self.total.len == 0
    }

    /// Bytes of the bodies in it, which is what `x-max-length-bytes` counts.
    pub fn bytes(&self) -> usize {
        self.total.bytes
    }

    /// How many entries are not in memory.
    pub fn paged_len(&self) -> usize {
        self.paged.len
    }

    /// A priority beyond the queue's highest counts as the highest (RabbitMQ, priority.md).
    fn level(&self, priority: u8) -> usize {
        match self.priorities {
            Priorities::Strict(_) => usize::from(priority).min(self.levels.len() - 1),
            Priorities::TwoToOne => usize::from(priority > NORMAL_MAX),
        }
    }

    fn count_in(&mut self, level: usize, len: usize, bytes: usize) {
        self.total.len += len;
        self.total.bytes += bytes;
        self.top = self.top.max(level);
    }

    fn count_out(&mut self, entry: &Entry<D>) {
        self.total.len -= 1;
        self.total.bytes -= entry.message.body().len();
    }

    /// Adds an entry behind all of its priority.
    pub fn push(&mut self, entry: Entry<D>) {
        let level = self.level(entry.priority);
        self.count_in(level, 1, entry.message.body().len());
        if let Some(level) = self.levels.get_mut(level) {
            level.push(entry);
        }
    }

    /// Puts entries back to their old places.
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
        if !entries.is_sorted_by_key(|e| e.seq) {
            entries.sort_unstable_by_key(|e| e.seq);
        }
        let bytes = entries.iter().map(|e| e.message.body().len()).sum();
        self.count_in(level, entries.len(), bytes);
        if let Some(level) = self.levels.get_mut(level) {
            level.put_back(entries);
        }
    }

    /// Takes the entry whose turn is next; `None` as well while that is in the store only.
    pub fn pop(&mut self) -> Option<Entry<D>> {
        let level = self.next_level()?;
        let entry = self.levels.get_mut(level)?.pop()?;
        if self.priorities == Priorities::TwoToOne {
            self.favours = (self.favours + 1) % 3;
        }
        self.count_out(&entry);
        Some(entry)
    }

    fn next_level(&mut self) -> Option<usize> {
        match self.priorities {
            Priorities::Strict(_) => {
                self.settle_top();
                Some(self.top)
            }
            Priorities::TwoToOne => self.favoured(),
        }
    }

    /// How many entries [`Ready::pop`] gives at least; 0 is none.
    pub fn reachable(&mut self) -> usize {
        if self.paged.len == 0 {
            return self.total.len;
        }
        let level = self.next_level().and_then(|level| self.levels.get(level));
        let reachable = level.map_or(0, |level| level.reachable());
        match self.priorities {
            Priorities::Strict(_) => reachable,
            Priorities::TwoToOne => reachable.min(1),
        }
    }

    /// Takes everything, in order: what is in memory, and which places and blocks of the rest.
    pub fn take_all(&mut self) -> (Vec<Entry<D>>, Vec<Run>, Vec<Block>) {
        let (mut runs, mut blocks) = (Vec::new(), Vec::new());
        for level in &mut self.levels {
            let (of_store, spilled) = level.take_paged();
            runs.extend(of_store);
            blocks.extend(spilled);
        }
        runs.sort_unstable_by_key(|run| run.first);
        self.total.len -= self.paged.len;
        self.total.bytes -= self.paged.bytes;
        self.paged = Amount::default();
        let mut all = Vec::with_capacity(self.total.len);
        while let Some(entry) = self.pop() {
            all.push(entry);
        }
        self.favours = 0;
        (all, runs, blocks)
    }

    /// The head of each priority, where it is in memory: only heads expire (RabbitMQ, ttl.md).
    pub fn heads(&self) -> impl Iterator<Item = &Entry<D>> {
        self.levels.iter().filter_map(|level| level.front())
    }

    /// Takes the heads that `is_over` says are, priority by priority.
    pub fn take_heads(&mut self, is_over: impl Fn(&Entry<D>) -> bool, out: &mut Vec<Entry<D>>) {
        let taken = out.len();
        for level in &mut self.levels {
            while level.front().is_some_and(&is_over)
                && let Some(entry) = level.pop()
            {
                out.push(entry);
            }
        }
        for entry in out.iter().skip(taken) {
            self.total.len -= 1;
            self.total.bytes -= entry.message.body().len();
        }
    }

    /// The level whose turn it is, of a quorum queue's two.
    fn favoured(&self) -> Option<usize> {
        let head = |level: usize| self.levels.get(level)?.first();
        match (head(0), head(1)) {
            (None, None) => None,
            (Some(normal), Some(high)) if self.favours == 2 => Some(usize::from(high < normal)),
            (_, Some(_)) => Some(1),
            (Some(_), None) => Some(0),
        }
    }

    fn settle_top(&mut self) {
        while self.top > 0 && self.levels.get(self.top).is_none_or(|level| level.is_empty()) {
            self.top -= 1;
        }
    }

    // ---- what is not in memory

    /// Lets go of what is beyond the window and in the store. True when some of the rest is to be spilled, for there is
    /// more than `in_all`.
    pub fn page_out(&mut self, window: Window, in_all: Window, rest: impl Fn(&Entry<D>) -> Rest) -> bool {
        if self.paged.len == 0 && !self.is_beyond(window) {
            return false;
        }
        let of_level = self.share(window);
        for level in &mut self.levels {
            let out = level.page_out(of_level.len_max, of_level.bytes_max, &rest);
            self.paged.len += out.len;
            self.paged.bytes += out.bytes;
        }
        let block = self.block_of(window);
        self.is_beyond(in_all) && self.levels.iter_mut().any(|level| has_block(level, block))
    }

    /// Whether more is in memory than should be.
    fn is_beyond(&self, window: Window) -> bool {
        self.total.len - self.paged.len > window.len_max
            || self.total.bytes - self.paged.bytes > window.bytes_max
    }

    /// What each of the levels may keep.
    fn share(&self, window: Window) -> Window {
        let levels = self.levels.len();
        Window { len_max: (window.len_max / levels).max(1), bytes_max: (window.bytes_max / levels).max(1) }
    }

    /// How large a block is: small enough for half of a level's window, which then has room for it.
    fn block_of(&self, window: Window) -> Window {
        let Window { len_max, bytes_max } = self.share(window);
        Window {
            len_max: (len_max / 2).clamp(1, SPILL_BLOCK_MESSAGES_MAX),
            bytes_max: (bytes_max / 2).clamp(1, SPILL_BLOCK_BYTES_MAX),
        }
    }

    /// Makes blocks of what no store has, as long as more is in memory than should be, and until their messages have
    /// come to so many bytes. What is delivered last goes first.
    pub fn spill(
        &mut self,
        window: Window,
        in_all: Window,
        bytes_max: usize,
        mut next_id: impl FnMut() -> u64,
    ) -> Vec<Spilling<D>> {
        let size = self.block_of(window);
        let (mut made, mut bytes) = (Vec::new(), 0);
        for at in 0..self.levels.len() {
            while bytes < bytes_max
                && self.is_beyond(in_all)
                && let Some(spilled) = self.levels.get_mut(at).and_then(Level::spilled)
                && spilled.has_enough(size.len_max, size.bytes_max)
                && let Some((block, entries)) = spilled.make_block(next_id(), size.len_max, size.bytes_max)
            {
                self.paged.len += block.amount().len;
                self.paged.bytes += block.amount().bytes;
                bytes += entries.iter().map(|entry| entry.message.size_bytes()).sum::<usize>();
                made.push(Spilling { level: at, block, entries });
            }
        }
        made
    }

    /// Takes back what could not be written, unless it was given up meanwhile.
    pub fn unspill(&mut self, spilling: Spilling<D>) {
        let Spilling { level, block, entries } = spilling;
        let Some(spilled) = self.levels.get_mut(level).and_then(Level::spilled) else { return };
        if let Some(back) = spilled.forget_blocks(&[block]) {
            spilled.stage_between(entries);
            self.paged.len -= back.len;
            self.paged.bytes -= back.bytes;
        }
    }

    /// What is to be read back, where half of what a level reads ahead is gone; those come first whose turn does.
    pub fn next_page(&self, window: Window) -> Option<Page> {
        let window = self.share(window);
        let ahead_bytes = window.bytes_max.min(READ_AHEAD_BYTES_MAX);
        let (len_max, bytes_max) = ((window.len_max / 2).max(1), (ahead_bytes / 2).max(1));
        self.levels.iter().enumerate().rev().find_map(|(at, level)| {
            if !level.is_paged() || !level.is_wanting(len_max, bytes_max) {
                return None;
            }
            let blocks = level.next_blocks(len_max, bytes_max);
            let places = blocks.first().map(|block| (block.first, block.last));
            let (first, last) = places.or_else(|| level.run().map(|run| (run.first, run.last)))?;
            Some(Page { level: at, first, last, len_max, bytes_max, blocks })
        })
    }

    /// Takes in what was read; false when it is not wanted any more.
    pub fn page_in(&mut self, page: &Page, read: PageRead<D>) -> bool {
        let bytes: usize = read.entries.iter().map(|e| e.message.body().len()).sum();
        let amount = Amount { len: read.entries.len() + read.lost as usize, bytes };
        let size_bytes = read.entries.iter().map(|e| e.message.size_bytes() as u64).sum();
        let gone = self.levels.get_mut(page.level).and_then(|level| match page.blocks.as_slice() {
            [] => level.page_in(page.first, read.upto, amount, size_bytes),
            blocks => level.spilled()?.forget_blocks(blocks),
        });
        let Some(gone) = gone else {
            return false;
        };
        self.paged.len = self.paged.len.saturating_sub(gone.len);
        self.paged.bytes = self.paged.bytes.saturating_sub(gone.bytes);
        self.total.len = self.total.len.saturating_sub(gone.len);
        self.total.bytes = self.total.bytes.saturating_sub(gone.bytes);
        self.put_back_to(page.level, read.entries);
        self.levels.iter_mut().for_each(Level::collapse);
        true
    }
}

/// Whether there is enough for a block.
fn has_block<D>(level: &mut Level<D>, size: Window) -> bool {
    level.spilled().is_some_and(|spilled| spilled.has_enough(size.len_max, size.bytes_max))
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
        ready.take_all().0.iter().map(|e| e.seq.0).collect()
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
