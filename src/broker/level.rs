//! The ready entries of one queue and one priority, in the order of their places. A long level is *paged*: it keeps
//! a window at its head, and of what lies behind only [`Run`]s, ranges of places whose entries are in the store
//! alone and are read back ([`Level::page_in`]) before their turn comes.
//!
//! ```text
//! window (resident) | run, run ... (in the store) | fresh (resident until the store has them)
//! ```
//!
//! What the store does not keep goes to blocks of its own (`spilled`), beside the runs; what came back from a consumer
//! and is in the store is resident wherever it stands. Window, runs and blocks are merged by place. While there is
//! nothing but a list there is no tail, and a level is the plain list that it is in a short queue.

use std::collections::VecDeque;

use super::id::Seq;
use super::queue::Entry;
use super::spilled::{Block, Spilled};

/// Entries of one queue that are in the store only: all that it has of that queue between two places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// the first entry's place
    pub first: Seq,
    /// the last entry's place
    pub last: Seq,
    /// how many entries
    pub count: u64,
    /// bytes of their bodies
    pub body_bytes: u64,
    /// bytes of their messages
    pub size_bytes: u64,
    /// the first entry's priority; the others' are of the same level
    pub priority: u8,
}

impl Run {
    /// A run of one entry.
    pub fn of<D>(entry: &Entry<D>) -> Run {
        Run {
            first: entry.seq,
            last: entry.seq,
            count: 1,
            body_bytes: entry.message.body().len() as u64,
            size_bytes: entry.message.size_bytes() as u64,
            priority: entry.priority,
        }
    }

    /// Adds a run that stands behind, with nothing of the queue between them.
    pub fn append(&mut self, next: &Run) {
        self.last = next.last;
        self.count += next.count;
        self.body_bytes += next.body_bytes;
        self.size_bytes += next.size_bytes;
    }
}

/// Where an entry's copy in the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// nowhere, and it stays in memory
    Never,
    /// nowhere, and it may be made part of a block
    Nowhere,
    /// on its way
    NotYet,
    /// there
    There,
}

/// What was read of a run.
#[derive(Debug)]
pub struct PageRead<D> {
    /// in order
    pub entries: Vec<Entry<D>>,
    /// entries that are there and cannot be read; they are not ready any more
    pub lost: u64,
    /// everything of the run up to here was read
    pub upto: Seq,
}

/// One priority's ready entries.
pub(super) struct Level<D> {
    /// resident entries before and between the runs
    list: VecDeque<Entry<D>>,
    tail: Option<Box<Tail<D>>>,
    /// a list that is not longer was found to hold nothing that can be paged out
    looked_at: usize,
}

struct Tail<D> {
    /// in order
    runs: VecDeque<Run>,
    /// what is not in the store; of this and the runs one is not empty
    spilled: Spilled<D>,
    /// behind all of those and behind all of the level's list
    fresh: VecDeque<Entry<D>>,
    /// of the bodies in the level's list
    list_bytes: usize,
    /// behind the first place, up to the other one, the store has nothing and never will
    bare: (Seq, Seq),
}

impl<D> Tail<D> {
    fn new(runs: VecDeque<Run>, fresh: VecDeque<Entry<D>>, list_bytes: usize) -> Tail<D> {
        Tail { runs, spilled: Spilled::default(), fresh, list_bytes, bare: (Seq(0), Seq(0)) }
    }

    /// Makes an entry that the store has a run behind all others, or part of the last one.
    fn add_stored(&mut self, run: Run) {
        match self.runs.back_mut().filter(|last| last.last == self.bare.0) {
            Some(last) if run.first.0 == self.bare.1.0 + 1 => last.append(&run),
            _ => add_run(&mut self.runs, run),
        }
        self.bare = (run.last, run.last);
    }

    /// Stages an entry behind all others.
    fn stage(&mut self, entry: Entry<D>) {
        if entry.seq.0 == self.bare.1.0 + 1 {
            self.bare.1 = entry.seq;
        }
        self.spilled.stage(entry);
    }

    /// The first place that must be read back.
    fn barrier(&self) -> Option<Seq> {
        let (run, block) = (self.runs.front().map(|run| run.first), self.spilled.block().map(|b| b.first));
        run.into_iter().chain(block).min()
    }

    /// Whether the first of what is staged comes before that entry.
    fn is_before(&self, front: Option<&Entry<D>>) -> bool {
        let staged = self.spilled.front();
        staged.is_some_and(|staged| front.is_none_or(|front| staged.seq < front.seq))
    }

    fn count_in(&mut self, entries: &[Entry<D>]) {
        self.list_bytes += entries.iter().map(|entry| entry.message.body().len()).sum::<usize>();
    }
}

/// How many entries, and bytes of bodies, of how many less or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub len: usize,
    pub bytes: usize,
}

impl Amount {
    fn of(run: &Run) -> Amount {
        Amount { len: run.count as usize, bytes: run.body_bytes as usize }
    }
}

impl<D> Default for Level<D> {
    fn default() -> Self {
        Level { list: VecDeque::new(), tail: None, looked_at: 0 }
    }
}

impl<D> Level<D> {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.tail.is_none()
    }

    /// The first place, resident or not.
    pub fn first(&self) -> Option<Seq> {
        let tail = self.tail.as_ref();
        let staged = tail.and_then(|tail| tail.spilled.front());
        let resident = self.list.front().into_iter().chain(staged).map(|entry| entry.seq);
        resident.chain(self.barrier()).min()
    }

    fn barrier(&self) -> Option<Seq> {
        self.tail.as_ref().and_then(|tail| tail.barrier())
    }

    /// Whether some of it must be read back.
    pub fn is_paged(&self) -> bool {
        self.barrier().is_some()
    }

    /// The first run.
    pub fn run(&self) -> Option<&Run> {
        self.tail.as_ref().and_then(|tail| tail.runs.front())
    }

    /// The first entry; `None` as well while it is in the store only.
    pub fn front(&self) -> Option<&Entry<D>> {
        let front = match &self.tail {
            Some(tail) if tail.is_before(self.list.front()) => tail.spilled.front(),
            _ => self.list.front(),
        }?;
        self.barrier().is_none_or(|barrier| front.seq < barrier).then_some(front)
    }

    /// How many entries can be taken before one that is in the store only.
    pub fn reachable(&self) -> usize {
        let Some(tail) = &self.tail else { return self.list.len() };
        let barrier = tail.barrier();
        let of_list =
            barrier.map_or(self.list.len(), |barrier| self.list.partition_point(|entry| entry.seq < barrier));
        of_list + tail.spilled.count_before(barrier)
    }

    /// Whether so little is left of the window that more is to be read back.
    pub fn is_wanting(&self, len_min: usize, bytes_min: usize) -> bool {
        let reachable = self.reachable();
        let small = self.tail.as_ref().is_none_or(|tail| tail.list_bytes < bytes_min);
        reachable == 0 || (reachable < len_min && small)
    }

    /// Takes the first entry; `None` as well while it is in the store only.
    pub fn pop(&mut self) -> Option<Entry<D>> {
        self.front()?;
        if let Some(tail) = &mut self.tail
            && tail.is_before(self.list.front())
        {
            let entry = tail.spilled.pop();
            self.collapse();
            return entry;
        }
        let entry = self.list.pop_front()?;
        if let Some(tail) = &mut self.tail {
            tail.list_bytes = tail.list_bytes.saturating_sub(entry.message.body().len());
        }
        Some(entry)
    }

    /// Adds an entry behind all others.
    pub fn push(&mut self, entry: Entry<D>) {
        match &mut self.tail {
            None => self.list.push_back(entry),
            Some(tail) => tail.fresh.push_back(entry),
        }
    }

    /// Adds runs of what the store gave back, in order, to a level that holds nothing yet.
    pub fn restore(&mut self, runs: VecDeque<Run>) {
        self.tail = (!runs.is_empty()).then(|| Box::new(Tail::new(runs, VecDeque::new(), 0)));
    }

    /// Puts entries, in order, to their old places.
    pub fn put_back(&mut self, mut entries: Vec<Entry<D>>) {
        if let Some(tail) = &mut self.tail {
            let last = tail.runs.back().map(|run| run.last).max(self.list.back().map(|entry| entry.seq));
            let behind = last.unwrap_or(Seq(0)).max(tail.spilled.last());
            let late = entries.split_off(entries.partition_point(|entry| entry.seq <= behind));
            merge(&mut tail.fresh, late);
        }
        self.tail.iter_mut().for_each(|tail| tail.count_in(&entries));
        merge(&mut self.list, entries);
    }

    /// Lets go of entries that the store has, and stages those that it will never have: of a level that is not paged
    /// yet those behind a window of so many, afterwards all that come. Gives how much is in the store only since.
    pub fn page_out(&mut self, len_max: usize, bytes_max: usize, rest: impl Fn(&Entry<D>) -> Rest) -> Amount {
        if self.tail.is_none() {
            if self.list.len() < self.looked_at / 2 {
                // Most of what could not go has left; what came since may.
                self.looked_at = 0;
            }
            if self.list.len() <= self.looked_at {
                return Amount::default();
            }
            // Most often nothing can go before the next commit; then this is all that it costs.
            let is_early = |entry: Option<&Entry<D>>| entry.is_some_and(|entry| rest(entry) == Rest::NotYet);
            if is_early(self.list.get(len_max)) {
                return Amount::default();
            }
            let keep = self.window(len_max, bytes_max);
            if keep >= self.list.len() || is_early(self.list.get(keep)) {
                return Amount::default();
            }
            let fresh = self.list.split_off(keep);
            let list_bytes = self.list.iter().map(|entry| entry.message.body().len()).sum();
            self.tail = Some(Box::new(Tail::new(VecDeque::new(), fresh, list_bytes)));
            self.looked_at = 0;
        }
        let mut out = self.shrink(len_max, bytes_max, &rest);
        let Some(tail) = &mut self.tail else { return out };
        while let Some(entry) = tail.fresh.pop_front() {
            match where_it_is(&entry, &rest) {
                Rest::There => {}
                Rest::NotYet => {
                    tail.fresh.push_front(entry);
                    break;
                }
                // It stays, and does not hold up all behind it.
                Rest::Never => {
                    tail.count_in(std::slice::from_ref(&entry));
                    self.list.push_back(entry);
                    continue;
                }
                Rest::Nowhere => {
                    tail.stage(entry);
                    continue;
                }
            }
            out = Amount { len: out.len + 1, bytes: out.bytes + entry.message.body().len() };
            tail.add_stored(Run::of(&entry));
        }
        self.collapse();
        if self.tail.is_none() {
            // Nothing went; going through the list again has to wait until there is much more of it.
            self.looked_at = self.list.len() + self.list.len() / 4;
        }
        out
    }

    /// Of a paged level whose window was larger once: lets go of what is behind the new one.
    fn shrink(&mut self, len_max: usize, bytes_max: usize, rest: &impl Fn(&Entry<D>) -> Rest) -> Amount {
        let mut out = Amount::default();
        let Some(tail) = &self.tail else { return out };
        let bytes_max = bytes_max.saturating_mul(2);
        if self.list.len() <= len_max.saturating_mul(2) && tail.list_bytes <= bytes_max {
            self.looked_at = 0;
            return out;
        }
        if self.list.len() <= self.looked_at {
            return out;
        }
        let keep = self.window(len_max, bytes_max / 2).max(1);
        let Some(tail) = &mut self.tail else { return out };
        let (mut runs, mut staged) = (VecDeque::new(), Vec::new());
        for entry in self.list.split_off(keep.min(self.list.len())) {
            let body_bytes = entry.message.body().len();
            match where_it_is(&entry, rest) {
                Rest::There => {
                    out = Amount { len: out.len + 1, bytes: out.bytes + body_bytes };
                    add_run(&mut runs, Run::of(&entry));
                }
                Rest::Nowhere => staged.push(entry),
                Rest::Never | Rest::NotYet => {
                    self.list.push_back(entry);
                    continue;
                }
            }
            tail.list_bytes -= body_bytes;
        }
        tail.spilled.stage_between(staged);
        for run in runs {
            insert_run(&mut tail.runs, run);
        }
        // Where little went, another look has to wait until there is more of it.
        self.looked_at = self.list.len() + self.list.len() / 4;
        out
    }

    /// How many entries at the head are within the bounds.
    fn window(&self, len_max: usize, bytes_max: usize) -> usize {
        let mut bytes = 0;
        let fits = |entry: &&Entry<D>| {
            bytes += entry.message.body().len();
            bytes <= bytes_max
        };
        self.list.iter().take(len_max).take_while(fits).count()
    }

    /// Takes in what was read of the run that began at `first`. Gives how much less is in the store only; `None`
    /// when that run is gone.
    pub fn page_in(&mut self, first: Seq, upto: Seq, read: Amount, size_bytes: u64) -> Option<Amount> {
        let tail = self.tail.as_mut()?;
        let run = tail.runs.front_mut().filter(|run| run.first == first)?;
        let gone = if upto >= run.last {
            let whole = Amount::of(run);
            tail.runs.pop_front();
            whole
        } else {
            // Those that cannot be read are not always counted.
            let Amount { len, bytes } = Amount::of(run);
            let gone = Amount { len: read.len.min(len), bytes: read.bytes.min(bytes) };
            run.first = Seq(upto.0 + 1);
            run.count -= gone.len as u64;
            run.body_bytes -= gone.bytes as u64;
            run.size_bytes = run.size_bytes.saturating_sub(size_bytes);
            gone
        };
        Some(gone)
    }

    /// A level without runs and blocks is not paged any more.
    pub fn collapse(&mut self) {
        if let Some(tail) = self.tail.take_if(|tail| tail.runs.is_empty() && tail.spilled.is_empty()) {
            self.list.extend(tail.fresh);
        }
    }

    /// Takes the runs and the blocks out.
    pub fn take_paged(&mut self) -> (VecDeque<Run>, VecDeque<Block>) {
        let Some(tail) = &mut self.tail else { return Default::default() };
        let paged = (std::mem::take(&mut tail.runs), tail.spilled.take_blocks());
        self.collapse();
        paged
    }

    /// What is staged and in blocks, if the level is paged.
    pub fn spilled(&mut self) -> Option<&mut Spilled<D>> {
        self.tail.as_mut().map(|tail| &mut tail.spilled)
    }

    /// The blocks that are to be read back, if one is next and no run.
    pub fn next_blocks(&self, len_max: usize, bytes_max: usize) -> Vec<Block> {
        let Some(tail) = &self.tail else { return Vec::new() };
        tail.spilled.next_blocks(self.run().map(|run| run.first), len_max, bytes_max)
    }
}

/// Where an entry's copy in the store is, as far as it could be read back from there.
fn where_it_is<D>(entry: &Entry<D>, rest: impl Fn(&Entry<D>) -> Rest) -> Rest {
    // That it came back is known here only, or in its block.
    let is_fresh = !entry.redelivered && entry.delivery_count == 0;
    match rest(entry) {
        Rest::There | Rest::NotYet if !is_fresh => Rest::Never,
        rest => rest,
    }
}

/// Adds a run behind all others.
fn add_run(runs: &mut VecDeque<Run>, run: Run) {
    match runs.back_mut() {
        // Other places between them may be anybody's.
        Some(last) if last.last.0 + 1 == run.first.0 => last.append(&run),
        _ => runs.push_back(run),
    }
}

/// Adds a run at its place.
fn insert_run(runs: &mut VecDeque<Run>, mut run: Run) {
    let at = runs.partition_point(|other| other.first < run.first);
    match runs.get_mut(at) {
        Some(next) if run.last.0 + 1 == next.first.0 => {
            run.append(next);
            *next = run;
        }
        _ => runs.insert(at, run),
    }
}

/// Puts entries, in order, between others. A consumer may die with a million of them, so the cost is one pass over
/// them and over what stands between them.
pub(super) fn merge<D>(list: &mut VecDeque<Entry<D>>, mut entries: Vec<Entry<D>>) {
    let Some(last) = entries.last().map(|e| e.seq) else { return };
    let before_last = list.partition_point(|e| e.seq < last);
    if entries.len() == 1 {
        entries.pop().into_iter().for_each(|entry| list.insert(before_last, entry));
        return;
    }
    if before_last == list.len()
        && list.back().is_none_or(|back| entries.first().is_none_or(|e| back.seq < e.seq))
    {
        list.extend(entries);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::message::Message;

    fn entry(seq: u64) -> Entry<()> {
        Entry::new(Seq(seq), Message::new(b"", b"", &[0, 0], &[b"four"]), ())
    }

    fn level(len: u64) -> Level<()> {
        let mut level = Level::default();
        (1..=len).for_each(|seq| level.push(entry(seq)));
        level
    }

    fn page_out(level: &mut Level<()>, len_max: usize) -> usize {
        level.page_out(len_max, usize::MAX, |_| Rest::There).len
    }

    fn order(level: &mut Level<()>) -> Vec<u64> {
        std::iter::from_fn(|| level.pop()).map(|entry| entry.seq.0).collect()
    }

    #[test]
    fn ten_million_entries_in_a_row_are_one_run_behind_the_window() {
        let mut level = level(100);
        assert_eq!(page_out(&mut level, 100), 0, "it fits");
        for seq in 101..=10_000 {
            level.push(entry(seq));
            page_out(&mut level, 100);
        }
        let run =
            Run { first: Seq(101), last: Seq(10_000), count: 9900, body_bytes: 9900 * 4, ..Run::default() };
        let found = level.run().copied().map(|run| Run { size_bytes: 0, ..run });
        assert_eq!((found, level.reachable()), (Some(run), 100));
        assert_eq!(order(&mut level), (1..=100).collect::<Vec<_>>(), "the next one must be read back");
        assert!(!level.is_empty() && level.front().is_none() && level.first() == Some(Seq(101)));
    }

    #[test]
    fn a_window_is_bounded_in_bytes_too() {
        let mut level = level(10);
        assert_eq!(level.page_out(100, 12, |_| Rest::There).len, 7);
    }

    #[test]
    fn what_the_store_does_not_keep_or_what_came_back_stays() {
        let mut level = level(0);
        for seq in 1..=6 {
            level.push(Entry { redelivered: seq == 5, ..entry(seq) });
        }
        let rest = |entry: &Entry<()>| if entry.seq.0 == 3 { Rest::Never } else { Rest::There };
        assert_eq!(level.page_out(1, usize::MAX, rest).len, 3);
        assert_eq!(order(&mut level), [1]);
        let read = Amount { len: 1, bytes: 4 };
        assert_eq!(level.page_in(Seq(2), Seq(2), read, 0), Some(read));
        level.put_back(vec![entry(2)]);
        assert_eq!(order(&mut level), [2, 3], "in between them");
    }

    #[test]
    fn where_every_other_entry_is_transient_the_stored_ones_are_one_run_and_the_others_blocks() {
        let mut level = level(100);
        let rest = |entry: &Entry<()>| match entry.seq.0 {
            50 => Rest::Never,
            seq if seq % 2 == 1 => Rest::There,
            _ => Rest::Nowhere,
        };
        assert_eq!(level.page_out(4, usize::MAX, rest).len, 48);
        let runs: Vec<_> =
            level.tail.as_ref().unwrap().runs.iter().map(|run| (run.first.0, run.last.0)).collect();
        assert_eq!(runs, [(5, 49), (51, 99)], "of the one between them nobody knows whether it was stored");
        let spilled = level.spilled().unwrap();
        let (block, entries) = spilled.make_block(1, 8, usize::MAX).unwrap();
        assert_eq!((block.first, block.last, block.count, entries.len()), (Seq(6), Seq(20), 8, 8));
        assert_eq!(order(&mut level), [1, 2, 3, 4]);
        let read = Amount { len: 8, bytes: 32 };
        assert_eq!(level.page_in(Seq(5), Seq(19), read, 0), Some(read));
        level.put_back((5..=19).step_by(2).map(entry).collect());
        assert_eq!(order(&mut level), [5], "the block is next");
        assert_eq!(level.spilled().unwrap().forget_blocks(&[block]), Some(read));
        level.put_back(entries);
        assert_eq!(order(&mut level), (6..=19).collect::<Vec<_>>(), "the rest of the run is next");
    }

    #[test]
    fn what_is_not_yet_stored_holds_up_what_comes_after_it() {
        let mut level = level(5);
        let rest = |entry: &Entry<()>| if entry.seq.0 == 3 { Rest::NotYet } else { Rest::There };
        assert_eq!(level.page_out(1, usize::MAX, rest).len, 1);
        assert_eq!(page_out(&mut level, 1), 3);
    }

    #[test]
    fn a_window_that_became_smaller_lets_go_of_what_is_behind_it() {
        let mut level = level(0);
        (1..=100).for_each(|seq| level.push(Entry { redelivered: seq == 20, ..entry(seq) }));
        assert_eq!(page_out(&mut level, 50), 50);
        assert_eq!(page_out(&mut level, 25), 0, "not for so little");
        assert_eq!(page_out(&mut level, 10), 39, "what came back stays");
        assert_eq!(level.run().map(|run| (run.first.0, run.last.0, run.count)), Some((11, 19, 9)));
        assert_eq!(order(&mut level), (1..=10).collect::<Vec<_>>());
        let read = Amount { len: 9, bytes: 36 };
        assert_eq!(level.page_in(Seq(11), Seq(19), read, 0), Some(read));
        level.put_back((11..=19).map(entry).collect());
        assert_eq!(order(&mut level), (11..=20).collect::<Vec<_>>());
        assert_eq!(level.run().map(|run| (run.first.0, run.last.0, run.count)), Some((21, 100, 80)));
    }

    /// What could not go once kept all that came after it in memory, up to as many.
    #[test]
    fn a_level_that_once_was_long_and_could_not_be_paged_is_looked_at_again() {
        let mut level = level(0);
        (1..=1000).for_each(|seq| level.push(Entry { redelivered: true, ..entry(seq) }));
        assert_eq!(page_out(&mut level, 10), 0);
        assert_eq!(order(&mut level).len(), 1000);
        (1001..=1100).for_each(|seq| level.push(entry(seq)));
        assert_eq!(page_out(&mut level, 10), 90);
    }

    #[test]
    fn a_page_that_was_purged_while_it_was_read_is_not_wanted() {
        let mut level = level(5);
        page_out(&mut level, 1);
        assert_eq!(level.take_paged().0.len(), 1);
        assert_eq!(level.page_in(Seq(2), Seq(5), Amount { len: 4, bytes: 16 }, 0), None);
    }

    #[test]
    fn entries_that_cannot_be_read_are_gone_with_the_end_of_their_run() {
        let mut level = level(5);
        page_out(&mut level, 1);
        let (some, rest) = (Amount { len: 2, bytes: 4 }, Amount { len: 2, bytes: 12 });
        assert_eq!(level.page_in(Seq(2), Seq(3), some, 0), Some(some));
        assert_eq!(level.page_in(Seq(4), Seq(5), Amount { len: 1, bytes: 4 }, 0), Some(rest));
    }
}
