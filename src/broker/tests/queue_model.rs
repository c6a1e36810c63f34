//! A queue against lists of plain entries. The model keeps everything in one place: an entry is ready, with a
//! consumer, with basic.get, or gone; it looks for what comes next by looking at all of it. It knows nothing of
//! paging: a queue of which parts are in the store only does the same as soon as they are read back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::broker::arguments::Overflow;
use crate::broker::id::Seq;
use crate::broker::letters::{Died, Letter, Which};
use crate::broker::message::Message;
use crate::broker::queue::{
    Block, ConsumeRefused, ConsumerId, ConsumerOptions, Counts, Dead, Death, Entry, PageRead, Queue, Rest,
    Rules, Run, Sink, Spilling, Window,
};
use crate::broker::queue_type::QueueType;

/// More than any sequence of steps can fill.
const ROOM_ENOUGH: usize = 1 << 20;

/// A consumer's end: takes while it has room.
#[derive(Clone)]
struct Inbox(Rc<RefCell<(Vec<Entry<()>>, usize)>>);

impl Sink<()> for Inbox {
    fn take(&self, max: usize, mut next: impl FnMut() -> Option<Entry<()>>) -> usize {
        let (got, room) = &mut *self.0.borrow_mut();
        let mut taken = 0;
        while taken < max && *room > 0 {
            let Some(entry) = next() else { break };
            got.push(entry);
            *room -= 1;
            taken += 1;
        }
        taken
    }

    fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

/// What the model knows of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    seq: u64,
    priority: u8,
    expires_ms: u64,
    bytes: u64,
    redelivered: bool,
    delivery_count: u32,
}

impl Known {
    fn of(entry: &Entry<()>) -> Known {
        Known {
            seq: entry.seq.0,
            priority: entry.priority,
            expires_ms: entry.expires_ms,
            bytes: entry.message.body().len() as u64,
            redelivered: entry.redelivered,
            delivery_count: entry.delivery_count,
        }
    }

    fn entry(self) -> Entry<()> {
        let message = Message::new(b"", b"q", &[0, 0], &[&vec![1; self.bytes as usize]]);
        Entry {
            seq: Seq(self.seq),
            redelivered: self.redelivered,
            delivery_count: self.delivery_count,
            priority: self.priority,
            expires_ms: self.expires_ms,
            message,
            durable: (),
        }
    }
}

/// A consumer as the model sees it; it stays in the list when it has left, for what it still holds.
struct Client {
    id: ConsumerId,
    options: ConsumerOptions,
    room: usize,
    has_left: bool,
    /// it may be offered something
    waits: bool,
    /// where it stands among those who wait
    place: u64,
    held: Vec<Known>,
    /// since when it waits to be the single active consumer
    since: u64,
}

impl Client {
    fn is_full(&self) -> bool {
        let limited = self.options.prefetch > 0 && !self.options.no_ack;
        limited && self.held.len() >= usize::from(self.options.prefetch)
    }
}

#[derive(Default)]
struct Model {
    rules: Rules,
    now_ms: u64,
    next_seq: u64,
    ready: Vec<Known>,
    clients: Vec<Client>,
    gotten: Vec<Known>,
    /// dead letters that nobody has taken
    letters: Vec<Known>,
    /// places that were given out and are not taken yet
    reserved: Vec<Known>,
    gone: Vec<Known>,
    taken_up_to: u64,
    turns: u64,
    had_consumer: bool,
    deleted: bool,
    /// the single active consumer
    active: Option<usize>,
    /// it gets nothing more, for a better one has come
    gives_way: bool,
    /// how many a quorum queue has handed out since it last looked at the older of its two priorities
    favours: u8,
}

impl Model {
    fn is_quorum(&self) -> bool {
        self.rules.queue_type == QueueType::Quorum
    }

    fn level(&self, known: &Known) -> u8 {
        match self.is_quorum() {
            true => u8::from(known.priority > 4),
            false => known.priority.min(self.rules.priority_max),
        }
    }

    /// What is next: the highest priority, then the oldest.
    fn first(&self) -> Option<usize> {
        let order = |at: &usize| (u8::MAX - self.level(&self.ready[*at]), self.ready[*at].seq);
        (0..self.ready.len()).min_by_key(order)
    }

    /// A quorum queue gives two of high priority, then the older of what is next of either.
    fn pop(&mut self) -> Option<Known> {
        let first = self.first()?;
        let oldest = (0..self.ready.len()).min_by_key(|at| self.ready[*at].seq)?;
        let at = if self.is_quorum() && self.favours == 2 { oldest } else { first };
        self.favours = (self.favours + 1) % 3;
        Some(self.ready.remove(at))
    }

    fn present(&self) -> impl Iterator<Item = &Client> {
        self.clients.iter().filter(|client| !client.has_left)
    }

    /// Whose turn it is: the single active consumer's, or of all who wait, of the highest priority, the one who
    /// waits longest.
    fn turn(&self) -> Option<usize> {
        if self.rules.single_active {
            return self.active.filter(|at| self.clients[*at].waits && !self.gives_way);
        }
        let waiting =
            (0..self.clients.len()).filter(|at| self.clients[*at].waits && !self.clients[*at].has_left);
        waiting.min_by_key(|at| (-self.clients[*at].options.priority, self.clients[*at].place))
    }

    /// Sees who is to be the single active consumer, whenever somebody came, left or settled.
    fn succeed(&mut self) {
        if !self.rules.single_active {
            return;
        }
        self.active = self.active.filter(|at| !self.clients[*at].has_left);
        let others =
            (0..self.clients.len()).filter(|at| !self.clients[*at].has_left && self.active != Some(*at));
        let best = others.min_by_key(|at| (-self.clients[*at].options.priority, self.clients[*at].since));
        let Some(active) = self.active else {
            self.gives_way = false;
            return best.into_iter().for_each(|best| self.activate(best));
        };
        let priority = |at: usize| self.clients[at].options.priority;
        let outranked = self.is_quorum() && best.is_some_and(|best| priority(best) > priority(active));
        match best {
            Some(best) if outranked && self.clients[active].held.is_empty() => {
                self.gives_way = false;
                self.turns += 1;
                self.clients[active].since = self.turns;
                self.activate(best);
            }
            _ if outranked => self.gives_way = true,
            _ if self.gives_way => {
                self.gives_way = false;
                self.line_up(active);
            }
            _ => {}
        }
    }

    fn activate(&mut self, at: usize) {
        self.active = Some(at);
        self.line_up(at);
    }

    fn line_up(&mut self, at: usize) {
        self.turns += 1;
        (self.clients[at].waits, self.clients[at].place) = (true, self.turns);
    }

    /// Hands out what is ready; what has expired on the way there.
    fn assign(&mut self) -> Vec<(Known, Death)> {
        let mut expired = Vec::new();
        while !self.ready.is_empty() {
            let Some(at) = self.turn() else { break };
            self.clients[at].waits = false;
            if self.clients[at].room == 0 || self.clients[at].is_full() {
                continue;
            }
            let next = loop {
                match self.pop() {
                    Some(known) if known.expires_ms > 0 && known.expires_ms < self.now_ms => {
                        expired.push((known, Death::Expired));
                    }
                    next => break next,
                }
            };
            let Some(entry) = next else {
                // There was nothing for it, so it waits on.
                self.line_up(at);
                break;
            };
            self.taken_up_to = self.taken_up_to.max(entry.seq);
            let client = &mut self.clients[at];
            client.room -= 1;
            client.held.push(entry);
            if !client.is_full() {
                self.line_up(at);
            }
        }
        expired
    }

    /// Whether one more of so many bytes is too much for a queue that then refuses publishes.
    fn is_refusing(&self, body_bytes: u64) -> bool {
        let places = self.ready.len() + self.reserved.len() + self.letters.len();
        let staying = self.ready.iter().chain(&self.reserved).chain(&self.letters);
        let bytes: u64 = staying.map(|known| known.bytes).sum();
        self.rules.overflow != Overflow::DropHead
            && (self.rules.max_length.is_some_and(|max| places as u64 >= max)
                || self.rules.max_length_bytes.is_some_and(|max| bytes + body_bytes > max))
    }

    fn counts(&self) -> Counts {
        Counts {
            ready: self.ready.len(),
            unacked: self.clients.iter().map(|client| client.held.len()).sum::<usize>() + self.gotten.len(),
            letters: self.letters.len(),
            consumers: self.present().count(),
            ready_bytes: self.ready.iter().map(|known| known.bytes as usize).sum(),
            ..Counts::default()
        }
    }

    /// The first of each priority.
    fn heads(&self) -> BTreeMap<u8, Known> {
        let mut heads = BTreeMap::new();
        for known in &self.ready {
            let head = heads.entry(self.level(known)).or_insert(*known);
            *head = if known.seq < head.seq { *known } else { *head };
        }
        heads
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push {
        priority: u8,
        ttl_ms: Option<u64>,
        bytes: u64,
    },
    Reserve {
        priority: u8,
        ttl_ms: Option<u64>,
        bytes: u64,
    },
    PushInPlace(Index),
    AddConsumer {
        prefetch: u16,
        priority: i64,
        exclusive: bool,
        no_ack: bool,
        room: usize,
    },
    RemoveConsumer(Index),
    Settle(Index, usize),
    Requeue {
        from: Index,
        count: usize,
        reversed: bool,
        counted: bool,
    },
    RequeueGotten {
        count: usize,
    },
    SettleGotten,
    Reject(Index, usize),
    Forward {
        again: bool,
        taken: Vec<bool>,
    },
    Get,
    Resume(Index, usize),
    Expire(u64),
    Trim,
    Purge,
    Assign,
    Delete,
    /// so many more entries reach the store, and the queue lets go of what it may
    PageOut(u64),
    /// blocks are made, if the queue has asked for it, and begin to be written: all, or so many until it fails. Whoever
    /// reads a page waits for that to end, and others do not
    Spill {
        fails_after: Option<usize>,
    },
    /// memory becomes short, or is not any more
    Window(Window),
}

fn step() -> impl Strategy<Value = Step> {
    let facts = || (0u8..6, prop::option::weighted(0.3, 1u64..50), 0u64..6);
    let room = prop_oneof![Just(ROOM_ENOUGH), 0usize..4];
    prop_oneof![
        10 => facts().prop_map(|(priority, ttl_ms, bytes)| Step::Push { priority, ttl_ms, bytes }),
        2 => facts().prop_map(|(priority, ttl_ms, bytes)| Step::Reserve { priority, ttl_ms, bytes }),
        2 => any::<Index>().prop_map(Step::PushInPlace),
        3 => (0u16..4, -1i64..2, prop::bool::weighted(0.1), prop::bool::weighted(0.2), room).prop_map(
            |(prefetch, priority, exclusive, no_ack, room)| Step::AddConsumer { prefetch, priority, exclusive, no_ack, room }
        ),
        2 => any::<Index>().prop_map(Step::RemoveConsumer),
        6 => (any::<Index>(), 1usize..4).prop_map(|(at, count)| Step::Settle(at, count)),
        4 => (any::<Index>(), 1usize..5, any::<bool>(), any::<bool>())
            .prop_map(|(from, count, reversed, counted)| Step::Requeue { from, count, reversed, counted }),
        1 => (1usize..4).prop_map(|count| Step::RequeueGotten { count }),
        1 => Just(Step::SettleGotten),
        3 => (any::<Index>(), 1usize..4).prop_map(|(at, count)| Step::Reject(at, count)),
        3 => (any::<bool>(), vec(any::<bool>(), 0..4)).prop_map(|(again, taken)| Step::Forward { again, taken }),
        2 => Just(Step::Get),
        2 => (any::<Index>(), 1usize..4).prop_map(|(at, room)| Step::Resume(at, room)),
        3 => (0u64..30).prop_map(Step::Expire),
        3 => Just(Step::Trim),
        1 => Just(Step::Purge),
        12 => Just(Step::Assign),
        1 => Just(Step::Delete),
        8 => (0u64..8).prop_map(Step::PageOut),
        6 => prop::option::weighted(0.5, 0usize..3).prop_map(|fails_after| Step::Spill { fails_after }),
        2 => window().prop_map(Step::Window),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let overflow = prop_oneof![Just(Overflow::DropHead), Just(Overflow::RejectPublish)];
    let limit = |max| prop::option::weighted(0.4, 0u64..max);
    (
        overflow,
        limit(6),
        limit(20),
        0u8..4,
        any::<bool>(),
        prop::option::weighted(0.4, 0u32..3),
        any::<bool>(),
    )
        .prop_map(
            |(
                overflow,
                max_length,
                max_length_bytes,
                priority_max,
                single_active,
                delivery_limit,
                is_quorum,
            )| Rules {
                queue_type: if is_quorum { QueueType::Quorum } else { QueueType::Classic },
                message_ttl_ms: None,
                max_length,
                max_length_bytes,
                overflow,
                priority_max,
                single_active,
                delivery_limit,
                deduplication_header: None,
                is_resident: false,
                keeps_letters: is_quorum && overflow == Overflow::RejectPublish,
            },
        )
}

/// Both, step by step.
struct Pair {
    queue: Queue<(), Inbox>,
    model: Model,
    inboxes: Vec<Inbox>,
    window: Window,
    /// each entry as it was published
    published: BTreeMap<u64, Known>,
    /// the store has entries up to here
    durable: u64,
    /// blocks that are written or being written, by number, with the entries as they were then
    blocks: BTreeMap<u64, Vec<Known>>,
    /// those of them that are being written, and how many of these can be
    writing: Option<(Vec<Spilling<()>>, usize)>,
    /// how many blocks there were
    last_block: u64,
    /// the queue has asked for its transient entries to be spilled
    spills: bool,
}

/// Some entries are never in the store.
fn is_stored(seq: u64) -> bool {
    !seq.is_multiple_of(7) && !is_transient(seq)
}

/// Those that can be spilled. Long stretches of them, and others where they alternate.
fn is_transient(seq: u64) -> bool {
    seq % 3 == 1 || (seq / 16).is_multiple_of(2)
}

fn window() -> impl Strategy<Value = Window> {
    (1usize..7, 1usize..30).prop_map(|(len_max, bytes_max)| Window { len_max, bytes_max })
}

/// Entries that died, in no order, with why.
fn sorted(dead: Vec<(Known, Death)>) -> Vec<(u64, &'static str)> {
    let mut dead: Vec<_> = dead.into_iter().map(|(known, death)| (known.seq, death.as_str())).collect();
    dead.sort();
    dead
}

fn known(dead: &Dead<()>) -> Vec<(Known, Death)> {
    dead.iter().map(|(entry, death)| (Known::of(entry), *death)).collect()
}

impl Pair {
    fn new(rules: Rules, window: Window) -> Pair {
        let model = Model { rules: rules.clone(), next_seq: 1, ..Model::default() };
        let queue = Queue::new(rules);
        Pair {
            queue,
            model,
            inboxes: Vec::new(),
            window,
            published: BTreeMap::new(),
            durable: 0,
            blocks: BTreeMap::new(),
            writing: None,
            last_block: 0,
            spills: false,
        }
    }

    /// What the store has between two places: whatever was stored and is not gone, who ever holds it.
    fn stored(&self, first: Seq, last: Seq) -> impl Iterator<Item = Known> {
        let is_there = |known: &&Known| {
            is_stored(known.seq) && !self.model.gone.iter().any(|gone| gone.seq == known.seq)
        };
        self.published.range(first.0..=last.0).map(|(_, known)| known).filter(is_there).copied()
    }

    /// Reads back one page, if the queue asks for one.
    fn read_page(&mut self) -> bool {
        let Some(mut page) = self.queue.next_page(self.window) else { return false };
        assert!(self.queue.next_page(self.window).is_none(), "one at a time");
        if !page.blocks.is_empty() {
            // The thread that reads is the one that writes.
            self.end_writing();
            // Of some only the beginning can be read now.
            if page.first.0.is_multiple_of(2) {
                page.blocks.truncate(1);
            }
            let is_there = |block: &&Block| self.blocks.contains_key(&block.id);
            let there: Vec<Block> = page.blocks.iter().filter(is_there).copied().collect();
            let known: Vec<Known> = there.iter().flat_map(|block| self.take_block(block)).collect();
            let entries = known.into_iter().map(Known::entry).collect();
            let is_wanted = self.queue.page_in(&page, PageRead { entries, lost: 0, upto: page.last });
            assert_eq!(is_wanted, !there.is_empty());
            return true;
        }
        let (mut entries, mut bytes, mut upto) = (Vec::new(), 0, page.last);
        for known in self.stored(page.first, page.last) {
            if entries.len() == page.len_max || bytes >= page.bytes_max {
                upto = entries.last().map_or(page.first, |entry: &Entry<()>| entry.seq);
                break;
            }
            bytes += known.bytes as usize;
            entries.push(known.entry());
        }
        self.queue.page_in(&page, PageRead { entries, lost: 0, upto });
        true
    }

    /// Reads a block, which is done once.
    fn take_block(&mut self, block: &Block) -> Vec<Known> {
        let known = self.blocks.remove(&block.id).expect("a block that was written and not read");
        assert_eq!(known.len() as u64, block.count);
        assert_eq!(known.iter().map(|k| k.bytes).sum::<u64>(), block.body_bytes);
        assert_eq!(known.first().map(|k| k.seq), Some(block.first.0));
        assert_eq!(known.last().map(|k| k.seq), Some(block.last.0));
        known
    }

    fn spill(&mut self, fails_after: Option<usize>) {
        self.end_writing();
        if !std::mem::take(&mut self.spills) {
            return;
        }
        let last_block = &mut self.last_block;
        let next_id = || {
            *last_block += 1;
            *last_block
        };
        let made = self.queue.spill(self.window, self.window, 200, next_id);
        for one in &made {
            assert!(one.entries.iter().all(|entry| is_transient(entry.seq.0)));
            self.blocks.insert(one.block.id, one.entries.iter().map(Known::of).collect());
        }
        let written = fails_after.map_or(made.len(), |written| written.min(made.len()));
        self.writing = Some((made, written)).filter(|(made, _)| !made.is_empty());
    }

    /// What could not be written comes back, unless it was given up meanwhile.
    fn end_writing(&mut self) {
        let Some((mut made, written)) = self.writing.take() else { return };
        let back = made.split_off(written);
        if back.is_empty() {
            self.spills = true;
            return;
        }
        back.iter().for_each(|one| drop(self.blocks.remove(&one.block.id)));
        self.queue.unspill(back);
        self.queue.retry();
    }

    fn places(&self, runs: &[Run]) -> Vec<Known> {
        let known: Vec<Known> = runs.iter().flat_map(|run| self.stored(run.first, run.last)).collect();
        assert_eq!(
            known.len() as u64,
            runs.iter().map(|run| run.count).sum::<u64>(),
            "nobody else's is in a run"
        );
        assert_eq!(
            known.iter().map(|k| k.bytes).sum::<u64>(),
            runs.iter().map(|run| run.body_bytes).sum::<u64>()
        );
        known
    }

    fn fresh(&mut self, priority: u8, ttl_ms: Option<u64>, bytes: u64) -> Known {
        let Seq(seq) = self.queue.next_seq();
        self.known(seq, priority, ttl_ms, bytes)
    }

    fn known(&mut self, seq: u64, priority: u8, ttl_ms: Option<u64>, bytes: u64) -> Known {
        assert_eq!(seq, self.model.next_seq, "places are given out one by one");
        self.model.next_seq += 1;
        let expires_ms = self.queue.rules().expires_ms(self.model.now_ms, ttl_ms);
        let known = Known { seq, priority, expires_ms, bytes, redelivered: false, delivery_count: 0 };
        self.published.insert(seq, known);
        known
    }

    fn client(&self, at: Index) -> Option<usize> {
        (!self.model.clients.is_empty()).then(|| at.index(self.model.clients.len()))
    }

    fn check_dead(&mut self, dead: Dead<()>, expected: Vec<(Known, Death)>) {
        assert_eq!(sorted(known(&dead)), sorted(expected.clone()));
        self.model.gone.extend(expected.into_iter().map(|(known, _)| known));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push { priority, ttl_ms, bytes } => {
                let known = self.fresh(priority, ttl_ms, bytes);
                self.queue.push(known.entry());
                self.model.ready.push(known);
            }
            Step::Reserve { priority, ttl_ms, bytes } => {
                let is_full = self.model.is_refusing(bytes);
                let someone_waits = self.model.present().any(|client| client.waits);
                match self.queue.reserve(bytes as usize) {
                    None => assert!(is_full),
                    Some(Seq(seq)) => {
                        assert!(!is_full || someone_waits, "only what will not stay exceeds the limit");
                        let known = self.known(seq, priority, ttl_ms, bytes);
                        self.model.reserved.push(known);
                    }
                }
            }
            Step::PushInPlace(at) => {
                if !self.model.reserved.is_empty() {
                    let known = self.model.reserved.remove(at.index(self.model.reserved.len()));
                    self.queue.push_in_place(known.entry());
                    self.model.ready.push(known);
                }
            }
            Step::AddConsumer { prefetch, priority, exclusive, no_ack, room } => {
                self.add_consumer(ConsumerOptions { prefetch, no_ack, exclusive, priority }, room);
            }
            Step::RemoveConsumer(at) => {
                let Some(at) = self.client(at) else { return };
                let client = &mut self.model.clients[at];
                assert_eq!(self.queue.remove_consumer(client.id), !client.has_left);
                (client.has_left, client.waits) = (true, false);
                self.model.succeed();
            }
            Step::Settle(at, count) => {
                let Some(at) = self.client(at) else { return };
                let count = count.min(self.model.clients[at].held.len());
                self.settle(at, count, false);
            }
            Step::Requeue { from, count, reversed, counted } => {
                let Some(at) = self.client(from) else { return };
                let count = count.min(self.model.clients[at].held.len());
                let mut back = self.settle(at, count, true);
                if reversed {
                    back.reverse();
                }
                self.requeue(back, counted);
            }
            Step::RequeueGotten { count } => {
                let count = count.min(self.model.gotten.len());
                self.queue.settle(None, count);
                let back = self.model.gotten.drain(..count).collect();
                self.requeue(back, true);
            }
            Step::SettleGotten => {
                self.queue.settle(None, self.model.gotten.len());
                self.model.gone.append(&mut self.model.gotten);
            }
            other => self.step_of_the_queue(other),
        }
    }

    fn step_of_the_queue(&mut self, step: Step) {
        match step {
            Step::Get => {
                while self.queue.is_starved() {
                    assert!(self.read_page());
                }
                let got = self.queue.get().map(|entry| Known::of(&entry));
                assert_eq!(got, self.model.pop());
                self.model.gotten.extend(got);
                self.model.taken_up_to = got.map_or(0, |known| known.seq).max(self.model.taken_up_to);
            }
            Step::Reject(at, count) => {
                let Some(at) = self.client(at) else { return };
                let count = count.min(self.model.clients[at].held.len());
                let dead = self.settle(at, count, true);
                match self.queue.letters() {
                    None => self.model.gone.extend(dead),
                    Some(letters) => {
                        let died = Died { death: Death::Rejected, at_ms: self.model.now_ms };
                        dead.iter().for_each(|known| letters.keep(known.entry(), died));
                        self.model.letters.extend(dead);
                    }
                }
            }
            Step::Forward { again, taken } => self.forward(again, &taken),
            Step::Resume(at, room) => {
                let Some(at) = self.client(at) else { return };
                self.model.clients[at].room += room;
                self.inboxes[at].0.borrow_mut().1 += room;
                self.queue.resume(self.model.clients[at].id);
                self.resume(at);
            }
            Step::Expire(passed_ms) => self.expire(passed_ms),
            Step::Trim => self.trim(),
            Step::Purge => {
                let left = self.queue.purge();
                let mut paged = self.places(&left.runs);
                paged.extend(left.blocks.iter().flat_map(|block| self.take_block(block)));
                let expected: Vec<Known> = std::iter::from_fn(|| self.model.pop()).collect();
                assert_eq!(left.count(), expected.len());
                let purged: Vec<Known> = left.entries.iter().map(Known::of).collect();
                let (of_runs, resident): (Vec<Known>, Vec<Known>) =
                    expected.iter().partition(|known| paged.iter().any(|paged| paged.seq == known.seq));
                assert_eq!(of_runs.len(), paged.len());
                if paged.is_empty() {
                    assert_eq!(purged, resident, "in the order in which they would have been delivered");
                }
                let places = |list: &[Known]| list.iter().map(|known| known.seq).collect::<BTreeSet<_>>();
                assert_eq!(places(&purged), places(&resident));
                self.model.favours = 0;
                self.model.gone.extend(expected);
            }
            Step::Assign => {
                let mut dead = Dead::new();
                self.queue.assign(self.model.now_ms, &mut dead, &mut Vec::new());
                while self.read_page() {
                    self.queue.assign(self.model.now_ms, &mut dead, &mut Vec::new());
                }
                let expired = self.model.assign();
                self.check_dead(dead, expired);
            }
            Step::PageOut(more) => {
                self.durable = (self.durable + more).min(self.model.next_seq - 1);
                let durable = self.durable;
                self.spills |= self.queue.page_out(self.window, self.window, |entry| match entry.seq.0 {
                    seq if is_transient(seq) => Rest::Nowhere,
                    seq if !is_stored(seq) => Rest::Never,
                    seq if seq <= durable => Rest::There,
                    _ => Rest::NotYet,
                });
            }
            Step::Spill { fails_after } => self.spill(fails_after),
            Step::Window(window) => self.window = window,
            Step::Delete => {
                let (left, sinks) = self.queue.delete();
                self.places(&left.runs);
                left.blocks.iter().for_each(|block| drop(self.take_block(block)));
                assert_eq!(
                    (left.count(), sinks.len()),
                    (self.model.ready.len() + self.model.letters.len(), self.model.present().count())
                );
                let given_up: Vec<Known> = std::iter::from_fn(|| self.model.pop()).collect();
                self.model.gone.extend(given_up);
                self.model.gone.append(&mut self.model.letters);
                self.model
                    .clients
                    .iter_mut()
                    .for_each(|client| (client.has_left, client.waits) = (true, false));
                (self.model.deleted, self.model.active, self.model.favours) = (true, None, 0);
            }
            _ => unreachable!("handled by its caller"),
        }
    }

    fn add_consumer(&mut self, options: ConsumerOptions, room: usize) {
        let inbox = Inbox(Rc::new(RefCell::new((Vec::new(), room))));
        let excluded = self.model.present().any(|client| client.options.exclusive)
            || (options.exclusive
                && (self.model.rules.single_active || self.model.present().next().is_some()));
        match self.queue.add_consumer(inbox.clone(), options) {
            Err(ConsumeRefused::Deleted) => assert!(self.model.deleted),
            Err(ConsumeRefused::InExclusiveUse) => assert!(excluded && !self.model.deleted),
            Ok(id) => {
                assert!(!excluded && !self.model.deleted);
                assert!(self.model.clients.iter().all(|client| client.id != id), "an id is never used again");
                let (has_left, waits) = (false, true);
                self.model.clients.push(Client {
                    id,
                    options,
                    room,
                    has_left,
                    waits,
                    place: 0,
                    held: Vec::new(),
                    since: 0,
                });
                self.inboxes.push(inbox);
                let newest = self.model.clients.len() - 1;
                self.model.line_up(newest);
                self.model.clients[newest].since = self.model.turns;
                self.model.succeed();
                self.model.had_consumer = true;
            }
        }
    }

    /// Letters go out one by one, and some are taken.
    fn forward(&mut self, again: bool, taken: &[bool]) {
        let Some(letters) = self.queue.letters() else { return };
        let which = if again { Which::Tried } else { Which::Untried };
        assert!(letters.begin(which), "nobody else is at it");
        for taken in taken {
            let Some((number, letter)) = letters.step(1).pop() else { break };
            let known = Known::of(&letter.entry);
            let at = self.model.letters.iter().position(|other| *other == known);
            let at = at.expect("only what is there goes out");
            assert_eq!(letter.was_tried, again);
            let left = (!taken).then_some(Letter { was_tried: true, ..letter });
            assert!(letters.settle(number, left));
            if *taken {
                self.model.gone.push(self.model.letters.remove(at));
            }
        }
        letters.end();
    }

    /// The first entries that a consumer holds leave its hands, and it may have more.
    fn settle(&mut self, at: usize, count: usize, comes_back: bool) -> Vec<Known> {
        self.queue.settle(Some(self.model.clients[at].id), count);
        let taken = self.take_from(at, count, comes_back);
        self.resume(at);
        self.model.succeed();
        taken
    }

    /// It is in line again, unless it is there already.
    fn resume(&mut self, at: usize) {
        if !self.model.clients[at].has_left && !self.model.clients[at].waits {
            self.model.line_up(at);
        }
    }

    /// The first `count` entries that the consumer holds leave its hands.
    fn take_from(&mut self, at: usize, count: usize, comes_back: bool) -> Vec<Known> {
        let taken: Vec<Known> = self.model.clients[at].held.drain(..count).collect();
        let handed: Vec<Known> =
            self.inboxes[at].0.borrow_mut().0.drain(..count).map(|e| Known::of(&e)).collect();
        assert_eq!(handed, taken, "what a consumer was given, and in which order");
        if !comes_back {
            self.model.gone.extend(&taken);
        }
        taken
    }

    fn requeue(&mut self, back: Vec<Known>, counted: bool) {
        let count = |known: Known| Known {
            redelivered: true,
            delivery_count: known.delivery_count + u32::from(counted),
            ..known
        };
        let back: Vec<Known> = back.into_iter().map(count).collect();
        let mut dead = Dead::new();
        self.queue.requeue(back.iter().map(|known| known.entry()).collect(), &mut dead);
        let limit = self.model.rules.delivery_limit.unwrap_or(u32::MAX);
        let (over, ready): (Vec<Known>, Vec<Known>) =
            back.iter().partition(|known| known.delivery_count > limit);
        self.model.ready.extend(ready);
        self.check_dead(dead, over.into_iter().map(|known| (known, Death::DeliveryLimit)).collect());
    }

    fn expire(&mut self, passed_ms: u64) {
        self.model.now_ms += passed_ms;
        let mut dead = Dead::new();
        self.queue.expire(self.model.now_ms, &mut dead);
        while self.read_page() {
            self.queue.expire(self.model.now_ms, &mut dead);
        }
        let mut expected = Vec::new();
        loop {
            let now_ms = self.model.now_ms;
            let mut heads = self.model.heads().into_values();
            let Some(over) = heads.find(|head| head.expires_ms > 0 && head.expires_ms <= now_ms) else {
                break;
            };
            self.model.ready.retain(|known| *known != over);
            expected.push((over, Death::Expired));
        }
        self.check_dead(dead, expected);
    }

    fn trim(&mut self) {
        let mut dead = Dead::new();
        self.queue.trim(&mut dead);
        while self.read_page() {
            self.queue.trim(&mut dead);
        }
        let mut expected = Vec::new();
        let (length, bytes) = (self.model.rules.max_length, self.model.rules.max_length_bytes);
        while self.model.rules.overflow == Overflow::DropHead
            && (length.is_some_and(|max| self.model.ready.len() as u64 > max)
                || bytes.is_some_and(|max| self.model.counts().ready_bytes as u64 > max))
        {
            expected.extend(self.model.pop().map(|known| (known, Death::MaxLen)));
        }
        self.check_dead(dead, expected);
    }

    fn check(&mut self) {
        while self.read_page() {}
        let (queue, model) = (&self.queue, &self.model);
        let paged = queue.counts().paged;
        let counts = Counts { paged, ..model.counts() };
        assert_eq!(queue.counts(), counts);
        assert!(paged <= counts.ready);
        let blocks: usize = self.blocks.values().map(Vec::len).sum();
        assert!(blocks <= paged, "a block that nobody will read is kept");
        assert_eq!(queue.taken_up_to().0, model.taken_up_to);
        assert_eq!(queue.is_abandoned(), model.had_consumer && counts.consumers == 0);
        assert_eq!(queue.is_deleted(), model.deleted);
        let heads = model.heads().into_values();
        assert_eq!(queue.next_deadline_ms(), heads.map(|head| head.expires_ms).filter(|ms| *ms > 0).min());
        for body_bytes in [0, 3] {
            assert_eq!(queue.is_refusing(body_bytes as usize), model.is_refusing(body_bytes));
        }
        for (client, inbox) in model.clients.iter().zip(&self.inboxes) {
            let got: Vec<Known> = inbox.0.borrow().0.iter().map(Known::of).collect();
            assert_eq!(got, client.held, "what each consumer has, in order");
            let prefetch = usize::from(client.options.prefetch);
            assert!(
                prefetch == 0 || client.options.no_ack || got.len() <= prefetch,
                "prefetch is never exceeded"
            );
        }
    }

    /// Each place that was ever given out is somewhere, once.
    fn check_nothing_is_lost(&mut self) {
        self.end_writing();
        let mut ready = Vec::new();
        loop {
            while self.read_page() {}
            let Some(entry) = self.queue.get() else { break };
            ready.push(Known::of(&entry));
        }
        let expected: Vec<Known> = std::iter::from_fn(|| self.model.pop()).collect();
        assert_eq!(ready, expected, "what is left comes in order");
        assert!(self.blocks.is_empty(), "a block was forgotten");
        let mut all: Vec<u64> = ready
            .iter()
            .chain(&self.model.gotten)
            .chain(&self.model.reserved)
            .chain(&self.model.gone)
            .chain(&self.model.letters)
            .chain(self.model.clients.iter().flat_map(|client| &client.held))
            .map(|known| known.seq)
            .collect();
        all.sort();
        assert_eq!(all, (1..self.model.next_seq).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_queue_does_what_a_plain_list_would(
        rules in rules(),
        window in window(),
        steps in vec(step(), 1..120),
    ) {
        let mut pair = Pair::new(rules, window);
        for step in steps {
            pair.step(step);
            pair.check();
        }
        pair.check_nothing_is_lost();
    }

    /// Whoever waits is served before anybody of its priority is served twice.
    #[test]
    fn equals_are_served_alike_and_lower_ones_not_at_all(
        priorities in vec(-1i64..2, 1..8),
        messages in 1u64..60,
        burst in 1u64..7,
    ) {
        let mut queue: Queue<(), Inbox> = Queue::new(Rules::default());
        let inboxes: Vec<Inbox> = priorities
            .iter()
            .map(|priority| {
                let inbox = Inbox(Rc::new(RefCell::new((Vec::new(), ROOM_ENOUGH))));
                // A prefetch, for who has none and stands alone is served in one go.
                let options = ConsumerOptions { prefetch: 100, priority: *priority, ..ConsumerOptions::default() };
                queue.add_consumer(inbox.clone(), options).unwrap();
                inbox
            })
            .collect();
        for at in 0..messages {
            let seq = queue.next_seq();
            queue.push(Entry::new(seq, Message::new(b"", b"q", &[0, 0], &[]), ()));
            if at % burst == 0 {
                queue.assign(0, &mut Dead::new(), &mut Vec::new());
            }
        }
        queue.assign(0, &mut Dead::new(), &mut Vec::new());
        let highest = *priorities.iter().max().unwrap();
        let (mut served, mut others) = (Vec::new(), 0);
        for (inbox, priority) in inboxes.iter().zip(&priorities) {
            let got = inbox.0.borrow().0.len();
            if *priority == highest { served.push(got) } else { others += got }
        }
        prop_assert_eq!(served.iter().sum::<usize>() as u64, messages);
        prop_assert!(served.iter().max().unwrap() - served.iter().min().unwrap() <= 1, "{served:?}");
        prop_assert_eq!(others, 0);
    }
}
