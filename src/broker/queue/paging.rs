//! The side of a queue that the pager sees: what it lets go of, what is to be read back, what the store gave back.

use super::*;

/// Whether a page is being read, or blocks are being written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    No,
    UnderWay,
    /// it could not be; whoever keeps the time says when to try again
    Failed,
}

/// What [`Queue::purge`] and [`Queue::delete`] give up.
#[derive(Debug)]
pub struct Left<D> {
    /// what was in memory, in order
    pub entries: Vec<Entry<D>>,
    /// what was in the store only
    pub runs: Vec<Run>,
    /// what was spilled
    pub blocks: Vec<Block>,
}

impl<D> Left<D> {
    /// How many entries these are.
    pub fn count(&self) -> usize {
        let paged = self.runs.iter().map(|run| run.count).chain(self.blocks.iter().map(|block| block.count));
        self.entries.len() + paged.sum::<u64>() as usize
    }
}

impl<D, S: Sink<D>> Queue<D, S> {
    /// Adds an entry that the store gave back whole, to its place.
    pub fn restore(&mut self, mut entry: Entry<D>) {
        entry.redelivered |= entry.seq <= self.redelivered_up_to;
        if entry.redelivered {
            self.taken_up_to = entry.seq.max(self.taken_up_to);
        }
        self.remember(&entry.message, entry.seq);
        self.has_expiry |= entry.expires_ms > 0;
        self.ready.put_back(vec![entry]);
    }

    /// Lets go of what is beyond the window and in the store. To be called after entries were added; costs next to
    /// nothing in a queue that is within its window. True when there is more than `in_all` for what no store has, and
    /// [`Queue::spill`] is to be called, soon and until it gives nothing.
    pub fn page_out(&mut self, window: Window, in_all: Window, rest: impl Fn(&Entry<D>) -> Rest) -> bool {
        let spills = !self.rules.is_resident && self.ready.page_out(window, in_all, rest);
        if !spills || self.spilling != Transfer::No {
            return false;
        }
        self.spilling = Transfer::UnderWay;
        true
    }

    /// Gives away what is beyond `in_all` and in no store, to be written: about so many bytes together, in blocks that
    /// a window has room for. Each must be readable, or have come back, before a page that names it is served.
    pub fn spill(
        &mut self,
        window: Window,
        in_all: Window,
        bytes_max: usize,
        next_id: impl FnMut() -> u64,
    ) -> Vec<Spilling<D>> {
        let made = self.ready.spill(window, in_all, bytes_max, next_id);
        self.spilling = if made.is_empty() { Transfer::No } else { Transfer::UnderWay };
        made
    }

    /// Takes back what could not be written. [`Queue::page_out`] asks for no more before [`Queue::retry`] was called.
    pub fn unspill(&mut self, spilling: impl IntoIterator<Item = Spilling<D>>) {
        self.spilling = Transfer::Failed;
        spilling.into_iter().for_each(|one| self.ready.unspill(one));
    }

    /// Whether something was given away by [`Queue::spill`] that is perhaps not written yet.
    #[cfg(test)]
    pub fn is_spilling(&self) -> bool {
        self.spilling == Transfer::UnderWay
    }

    /// Whether something is ready and the one whose turn it is must be read back first.
    pub fn is_starved(&mut self) -> bool {
        !self.ready.is_empty() && self.ready.reachable() == 0
    }

    /// What is to be read back now, if anything; [`Queue::page_in`] or [`Queue::page_failed`] must follow, and only
    /// one page is read at a time.
    pub fn next_page(&mut self, window: Window) -> Option<Page> {
        if self.ready.paged_len() == 0 || self.reading != Transfer::No {
            return None;
        }
        let page = self.ready.next_page(window);
        if page.is_some() {
            self.reading = Transfer::UnderWay;
        }
        page
    }

    /// Takes what was read of a page. False when it was purged meanwhile, and nobody wants it any more.
    pub fn page_in(&mut self, page: &Page, mut read: PageRead<D>) -> bool {
        self.reading = Transfer::No;
        for entry in &mut read.entries {
            // What was spilled has come in this life of the broker.
            entry.redelivered |= page.blocks.is_empty() && entry.seq <= self.redelivered_up_to;
            self.has_expiry |= entry.expires_ms > 0;
        }
        self.ready.page_in(page, read)
    }

    /// A page could not be read; [`Queue::next_page`] gives none before [`Queue::retry`] was called. Who uses
    /// the queue meanwhile does not have a disk tried again and again that fails.
    pub fn page_failed(&mut self) {
        self.reading = Transfer::Failed;
    }

    /// What could not be read or written may be tried again; false when no page waits for it.
    pub fn retry(&mut self) -> bool {
        if self.spilling == Transfer::Failed {
            self.spilling = Transfer::No;
        }
        let has_failed = self.reading == Transfer::Failed;
        if has_failed {
            self.reading = Transfer::No;
        }
        has_failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Nobody;

    impl Sink<()> for Nobody {
        fn take(&self, _: usize, _: impl FnMut() -> Option<Entry<()>>) -> usize {
            0
        }

        fn same(&self, _: &Self) -> bool {
            true
        }
    }

    const WINDOW: Window = Window { len_max: 2, bytes_max: 1 << 20 };

    fn entry(seq: Seq) -> Entry<()> {
        Entry::new(seq, Message::new(b"", b"q", &[0, 0], &[b"body"]), ())
    }

    /// Two entries are in memory, and nobody has taken them yet.
    fn long_queue(rules: Rules) -> Queue<(), Nobody> {
        let mut queue = Queue::new(rules);
        for _ in 0..10 {
            let seq = queue.next_seq();
            queue.push(entry(seq));
        }
        queue.page_out(WINDOW, WINDOW, |_| Rest::There);
        queue
    }

    /// Each operation on a queue whose page could not be read had it read again at once, and a basic.get that waited
    /// for it did so without end.
    #[test]
    fn a_page_that_could_not_be_read_is_not_asked_for_before_it_is_time() {
        let mut queue = long_queue(Rules::default());
        while queue.get().is_some() {}
        let page = queue.next_page(WINDOW).unwrap();
        assert!(queue.next_page(WINDOW).is_none() && !queue.retry(), "it is being read");
        queue.page_failed();
        assert!(queue.is_starved() && queue.next_page(WINDOW).is_none());
        assert!(queue.retry() && !queue.retry());
        assert_eq!(queue.next_page(WINDOW), Some(page));
    }

    /// A consumer that waited for a page made room in a full queue for any number of transactions.
    #[test]
    fn a_consumer_that_waits_for_a_page_makes_no_room() {
        let overflow = Overflow::RejectPublish;
        let mut queue = long_queue(Rules { max_length: Some(8), overflow, ..Rules::default() });
        while queue.get().is_some() {}
        queue.add_consumer(Nobody, ConsumerOptions::default()).unwrap();
        assert!(queue.is_starved() && queue.counts().ready == 8);
        assert_eq!(queue.reserve(4), None);
    }

    /// The store clears away all that it has between a run's first and last place. A transaction's message that gets to
    /// its place afterwards would go with it in a crash, though it was confirmed.
    #[test]
    fn what_is_purged_never_spans_a_place_that_was_given_out() {
        let mut queue = long_queue(Rules::default());
        let reserved: Vec<Seq> = [1, 0, 3]
            .map(|pushed| {
                let seq = queue.reserve(4).unwrap();
                (0..pushed).for_each(|_| {
                    let seq = queue.next_seq();
                    queue.push(entry(seq));
                });
                seq
            })
            .to_vec();
        queue.page_out(WINDOW, WINDOW, |_| Rest::There);
        let left = queue.purge();
        let spans = |seq: &Seq| left.runs.iter().any(|run| run.first <= *seq && *seq <= run.last);
        assert_eq!((left.count(), left.entries.len()), (14, 2));
        assert!(!reserved.iter().any(spans), "{:?} {reserved:?}", left.runs);
        reserved.into_iter().for_each(|seq| queue.push_in_place(entry(seq)));
        assert_eq!(queue.counts().ready, 3);
    }

    /// Twelve transient entries, and a window for eight.
    fn overfull() -> (Queue<(), Nobody>, Window) {
        let mut queue = Queue::new(Rules::default());
        let window = Window { len_max: 8, bytes_max: 1 << 20 };
        for _ in 0..12 {
            let seq = queue.next_seq();
            queue.push(entry(seq));
        }
        assert!(queue.page_out(window, window, |_| Rest::Nowhere));
        (queue, window)
    }

    /// The disk took one of two blocks while both were asked for: the first one's messages were dropped, though they
    /// had been read, nothing was said, and a basic.get waited for them for ever.
    #[test]
    fn of_a_page_that_was_written_in_part_nothing_is_lost() {
        let (mut queue, window) = overfull();
        let mut ids = 0..;
        // Blocks of one, for the smallest window.
        let smallest = Window { len_max: 1, ..window };
        let mut made = queue.spill(smallest, smallest, usize::MAX, || ids.next().unwrap());
        assert_eq!(made.iter().map(|one| one.block.count).collect::<Vec<_>>(), [1; 4]);
        let mut seen: Vec<u64> = std::iter::from_fn(|| queue.get()).map(|entry| entry.seq.0).collect();
        let page = queue.next_page(window).unwrap();
        assert_eq!(page.blocks.len(), 4);
        // The second and what is behind it.
        queue.unspill(made.split_off(1));
        assert_eq!((queue.counts().ready, queue.counts().paged), (4, 1));
        let entries = made.pop().unwrap().entries;
        assert!(queue.page_in(&page, PageRead { entries, lost: 0, upto: page.last }));
        assert_eq!((queue.counts().ready, queue.counts().paged), (4, 0));
        assert!(!queue.is_starved());
        seen.extend(std::iter::from_fn(|| queue.get()).map(|entry| entry.seq.0));
        assert_eq!(seen, (1..=12).collect::<Vec<_>>());
        assert_eq!((queue.counts().ready, queue.counts().ready_bytes), (0, 0));
    }

    /// A block of which nothing can be read is lost, and what came back is not.
    #[test]
    fn a_lost_block_and_one_that_came_back_leave_the_counts_right() {
        let (mut queue, window) = overfull();
        let mut ids = 0..;
        let mut made = queue.spill(WINDOW, WINDOW, usize::MAX, || ids.next().unwrap());
        while queue.get().is_some() {}
        let page = queue.next_page(window).unwrap();
        queue.unspill(made.split_off(made.len() - 1));
        let lost = made.iter().map(|one| one.block.count).sum();
        assert!(queue.page_in(&page, PageRead { entries: Vec::new(), lost, upto: page.last }));
        let counts = queue.counts();
        assert_eq!((counts.ready as u64, counts.paged), (4 - lost, 0));
        assert_eq!(std::iter::from_fn(|| queue.get()).count() as u64, 4 - lost);
        assert_eq!((queue.counts().ready, queue.counts().ready_bytes, queue.is_starved()), (0, 0, false));
    }

    /// Of a page that was purged while it was read, messages were said to be damaged.
    #[test]
    fn it_is_known_whether_a_page_was_wanted() {
        let mut queue = long_queue(Rules::default());
        while queue.get().is_some() {}
        let page = queue.next_page(WINDOW).unwrap();
        let read = || PageRead { entries: vec![entry(page.first)], lost: 0, upto: page.first };
        assert!(queue.page_in(&page, read()));
        let page = queue.next_page(WINDOW);
        assert!(page.is_none(), "one is there");
        assert!(queue.get().is_some());
        let page = queue.next_page(WINDOW).unwrap();
        queue.purge();
        let read = PageRead { entries: Vec::new(), lost: 1, upto: page.first };
        assert!(!queue.page_in(&page, read) && queue.counts().ready == 0);
    }
}
