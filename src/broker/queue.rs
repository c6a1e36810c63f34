//! One queue as plain data: what is ready, who consumes, who gets the next message, what goes when
//! time or room runs out. The engine puts it under a lock and does what the outcomes say; nothing here
//! blocks, writes or knows a clock.
//!
//! A *taken* entry belongs to the consumer it was handed to (its outbox, then its session) until it is
//! settled or given back; the queue keeps only the count. Order is by [`Seq`]: what comes back goes to
//! its old place. Order of calls after anything became ready: [`Queue::assign`], [`Queue::expire`],
//! [`Queue::trim`], as RabbitMQ delivers before it drops.
//!
//! Of a long queue only a window is in memory (see `level`). [`Queue::page_out`] makes it so, with [`Queue::spill`] for
//! what no store has; [`Queue::next_page`] says what is to be read back and [`Queue::page_in`] takes that. Until then
//! whatever needs the entry whose turn it is does nothing, and is to be done again after.

mod paging;

use super::arguments::Overflow;
use super::dedup::Present;
use super::delay::Delayed;
use super::id::Seq;
use super::letters::Letters;
use super::message::Message;
use super::ready::Ready;
use super::round::Round;

pub use super::queue_rules::Rules;

pub use super::level::{PageRead, Rest, Run};
pub use super::ready::{Page, Spilling, Window};
pub use super::spilled::Block;
pub use paging::Left;
use paging::Transfer;

/// One message's place in one queue. `D` is what the engine remembers of it in the store.
#[derive(Clone, Debug)]
pub struct Entry<D> {
    /// its place; ready entries of one priority are in ascending order
    pub seq: Seq,
    /// whether it may have been delivered before
    pub redelivered: bool,
    /// how many times it came back, where the queue's type counts it
    pub delivery_count: u32,
    /// the property `priority`, 0 when absent
    pub priority: u8,
    /// milliseconds since 1970; 0 is never. In an exchange's delay queue: when it is released
    pub expires_ms: u64,
    /// the message, shared with other queues
    pub message: Message,
    /// the store's handle; a default for what is not stored
    pub durable: D,
}

impl<D> Entry<D> {
    /// An entry that was never delivered, of priority 0, without expiry.
    pub fn new(seq: Seq, message: Message, durable: D) -> Entry<D> {
        Entry { seq, redelivered: false, delivery_count: 0, priority: 0, expires_ms: 0, message, durable }
    }
}

/// A consumer as the queue sees it: somewhere that takes entries while it has room.
pub trait Sink<D>: Clone {
    /// Takes at most `max` entries from `next`; returns how many it took. Fewer than `max` although
    /// `next` had more means that it is full; [`Queue::resume`] tells when it is not any more.
    fn take(&self, max: usize, next: impl FnMut() -> Option<Entry<D>>) -> usize;

    /// Whether two handles are the same consumer.
    fn same(&self, other: &Self) -> bool;
}

/// A consumer of one queue; valid until it is removed, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerId {
    pub(super) slot: usize,
    pub(super) serial: u64,
}

/// What a consumer may do, from basic.consume and basic.qos.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsumerOptions {
    /// unacknowledged messages at once; 0 is unlimited
    pub prefetch: u16,
    /// deliveries count as acknowledged when they leave
    pub no_ack: bool,
    /// no other consumer beside this one
    pub exclusive: bool,
    /// `x-priority`: higher ones are served first
    pub priority: i64,
}

/// Why a consumer cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumeRefused {
    /// another consumer has it exclusively, or exclusiveness is asked for beside others
    InExclusiveUse,
    /// the queue is gone
    Deleted,
}

/// Why an entry leaves a queue other than by acknowledgement: the reasons of `x-death`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Death {
    /// basic.reject or basic.nack without requeue
    Rejected,
    /// its time to live is over
    Expired,
    /// the queue is full
    MaxLen,
    /// it came back too often
    DeliveryLimit,
}

impl Death {
    /// RabbitMQ's word in `x-death`.
    pub fn as_str(self) -> &'static str {
        match self {
            Death::Rejected => "rejected",
            Death::Expired => "expired",
            Death::MaxLen => "maxlen",
            Death::DeliveryLimit => "delivery_limit",
        }
    }
}

/// Entries that are to be dead-lettered, or dropped where nobody takes them.
pub type Dead<D> = Vec<(Entry<D>, Death)>;

/// Counts that queue.declare-ok, management and metrics show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// entries nobody has taken
    pub ready: usize,
    /// those of them that are not in memory
    pub paged: usize,
    /// entries that wait for their time
    pub delayed: usize,
    /// entries taken and not settled
    pub unacked: usize,
    /// dead letters that nobody has taken yet
    pub letters: usize,
    /// consumers
    pub consumers: usize,
    /// bytes of the ready and the delayed bodies
    pub ready_bytes: usize,
}

/// A queue: ready entries in order and the consumers' round.
pub struct Queue<D, S> {
    rules: Rules,
    ready: Ready<D>,
    /// what an exchange delays; of an exchange's delay queue, which has nothing ready and no consumers
    delayed: Delayed<D>,
    round: Round<S>,
    /// what has died and is to be taken by others first, where the queue keeps it so long
    letters: Option<Box<Letters<D>>>,
    unacked: usize,
    next_seq: Seq,
    /// what is in it, where it drops duplicates
    present: Option<Box<Present>>,
    /// the furthest place that was ever handed out
    taken_up_to: Seq,
    /// places given out by [`Queue::reserve`] whose entries are still to come, and the bytes of their bodies
    reserved: usize,
    reserved_bytes: usize,
    /// what is read back from up to here may have been delivered before
    redelivered_up_to: Seq,
    /// whether something is being read back
    reading: Transfer,
    /// whether something is being spilled
    spilling: Transfer,
    /// some entry has had an expiry, so heads are worth a look
    has_expiry: bool,
    had_consumer: bool,
    deleted: bool,
}

impl<D, S: Sink<D>> Queue<D, S> {
    /// An empty queue.
    pub fn new(rules: Rules) -> Self {
        Queue::recovered(rules, Vec::new(), Seq(0), Seq(1))
    }

    /// A queue with what the store has of it, in ascending order; up to `redelivered_up_to` it may have been
    /// delivered before.
    pub fn recovered(rules: Rules, runs: Vec<Run>, redelivered_up_to: Seq, next_seq: Seq) -> Self {
        let last = runs.last().map_or(Seq(0), |run| run.last);
        Queue {
            ready: Ready::restored(rules.priorities(), runs),
            delayed: Delayed::default(),
            round: Round::new(rules.single_active()),
            letters: rules.keeps_letters.then(Box::default),
            present: rules.deduplication_header.as_ref().map(|header| Box::new(Present::new(header))),
            rules,
            unacked: 0,
            next_seq,
            // What may have been delivered in an earlier life stays so, also for the one after this.
            taken_up_to: redelivered_up_to.min(last),
            reserved: 0,
            reserved_bytes: 0,
            redelivered_up_to,
            reading: Transfer::No,
            spilling: Transfer::No,
            has_expiry: false,
            had_consumer: false,
            deleted: false,
        }
    }

    /// Its dead letters, if they stay until somebody has taken them.
    pub fn letters(&mut self) -> Option<&mut Letters<D>> {
        self.letters.as_deref_mut()
    }

    /// What it does by itself.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The place of the next entry; each call gives a new one. The engine tells the store about it
    /// before [`Queue::push`] makes it visible.
    pub fn next_seq(&mut self) -> Seq {
        let seq = self.next_seq;
        self.next_seq = Seq(seq.0 + 1);
        seq
    }

    /// Whether a publish of so many bytes is to be refused because the queue has no room for it
    /// (`x-overflow` reject-publish).
    pub fn is_refusing(&self, body_bytes: usize) -> bool {
        self.refuses() && self.is_beyond_limits(0, body_bytes)
    }

    /// A place for an entry that comes later with [`Queue::push_in_place`], or `None` because there is no
    /// room for it. What consumers wait for takes no room: it will not stay.
    pub fn reserve(&mut self, body_bytes: usize) -> Option<Seq> {
        if self.refuses() {
            // While what stands before it is read back, consumers with room take nothing.
            let room = if self.is_starved() { 0 } else { self.round.room() };
            if self.is_beyond_limits(room, body_bytes) {
                return None;
            }
        }
        // Only a limit that refuses asks for it.
        if self.refuses() {
            self.reserved += 1;
            self.reserved_bytes += body_bytes;
        }
        Some(self.next_seq())
    }

    /// Whether a message is a duplicate of one that is in the queue, ready or unacknowledged
    /// (`x-message-deduplication`).
    pub fn is_duplicate(&self, message: &Message) -> bool {
        self.present.as_ref().is_some_and(|present| present.has(message.properties()))
    }

    /// A message has got that place: what is like it is a duplicate from now on.
    pub fn remember(&mut self, message: &Message, seq: Seq) {
        if let Some(present) = &mut self.present {
            present.remember(message.properties(), seq);
        }
    }

    /// Entries that were taken are gone for good: what is like them may come again.
    pub fn forget<'e>(&mut self, entries: impl IntoIterator<Item = &'e Entry<D>>)
    where
        D: 'e,
    {
        if let Some(present) = &mut self.present {
            entries.into_iter().for_each(|e| present.forget(e.message.properties(), e.seq));
        }
    }

    fn forget_dead(&mut self, dead: &Dead<D>, from: usize) {
        if self.present.is_some() {
            self.forget(dead.iter().skip(from).map(|(entry, _)| entry));
        }
    }

    fn refuses(&self) -> bool {
        match self.rules.overflow {
            Overflow::DropHead => false,
            Overflow::RejectPublish | Overflow::RejectPublishDlx => true,
        }
    }

    /// Whether one more of so many bytes is too much, when `room` entries will go to consumers at once.
    fn is_beyond_limits(&self, room: usize, body_bytes: usize) -> bool {
        let (letters, letter_bytes) = self.letters.as_ref().map_or((0, 0), |l| (l.len(), l.bytes()));
        let staying = (self.ready.len() + self.reserved).saturating_sub(room) + letters;
        let bytes = if room > self.reserved { 0 } else { self.ready.bytes() + self.reserved_bytes };
        let bytes = bytes + letter_bytes;
        self.rules.max_length.is_some_and(|max| staying as u64 >= max)
            || self.rules.max_length_bytes.is_some_and(|max| (bytes + body_bytes) as u64 > max)
    }

    /// Adds an entry at the end; [`Queue::assign`] then finds it a consumer.
    pub fn push(&mut self, entry: Entry<D>) {
        self.has_expiry |= entry.expires_ms > 0;
        self.ready.push(entry);
    }

    /// Adds an entry that is not ready before its time has come.
    pub fn delay(&mut self, entry: Entry<D>) {
        self.delayed.insert(entry);
    }

    /// Takes delayed entries whose time has come, in order: at most so many, and none after their messages
    /// have made up so many bytes.
    pub fn take_due(&mut self, now_ms: u64, count_max: usize, bytes_max: usize) -> Vec<Entry<D>> {
        self.delayed.take_due(now_ms, count_max, bytes_max)
    }

    /// Adds an entry whose place [`Queue::reserve`] gave out; others may have been pushed behind it since.
    pub fn push_in_place(&mut self, entry: Entry<D>) {
        self.reserved = self.reserved.saturating_sub(1);
        self.reserved_bytes = self.reserved_bytes.saturating_sub(entry.message.body().len());
        self.has_expiry |= entry.expires_ms > 0;
        self.ready.put_back(vec![entry]);
    }

    /// Takes out heads whose time is over.
    pub fn expire(&mut self, now_ms: u64, dead: &mut Dead<D>) {
        if !self.has_expiry {
            return;
        }
        let mut over = Vec::new();
        self.ready.take_heads(|e| e.expires_ms > 0 && e.expires_ms <= now_ms, &mut over);
        self.forget(&over);
        dead.extend(over.into_iter().map(|entry| (entry, Death::Expired)));
    }

    /// When the first head expires or the first delayed entry is due, in milliseconds since 1970.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if !self.has_expiry {
            return self.delayed.next_due_ms();
        }
        self.ready.heads().map(|head| head.expires_ms).filter(|ms| *ms > 0).min()
    }

    /// Takes heads out until the queue is within its limits (`x-overflow` drop-head).
    pub fn trim(&mut self, dead: &mut Dead<D>) {
        if self.rules.overflow != Overflow::DropHead {
            return;
        }
        let (length, bytes, before) = (self.rules.max_length, self.rules.max_length_bytes, dead.len());
        while length.is_some_and(|max| self.ready.len() as u64 > max)
            || bytes.is_some_and(|max| self.ready.bytes() as u64 > max)
        {
            let Some(entry) = self.ready.pop() else { break };
            dead.push((entry, Death::MaxLen));
        }
        self.forget_dead(dead, before);
    }

    /// Hands ready entries to consumers in turn while both last. The sinks that got something are
    /// added to `touched`, for the engine to wake once the lock is gone. What expired behind the head is
    /// not delivered any more; what expires only now is, so that a time to live of 0 means "at once".
    pub fn assign(&mut self, now_ms: u64, dead: &mut Dead<D>, touched: &mut Vec<S>) {
        let before = dead.len();
        loop {
            let reachable = self.ready.reachable();
            if reachable == 0 {
                break;
            }
            let Some((id, alone)) = self.round.next() else { break };
            let Some(consumer) = self.round.get_mut(id) else { continue };
            let credit = consumer.credit();
            // Strict turns while several wait; a single one is served in one go.
            let wanted = if alone { credit.min(reachable) } else { credit.min(1) };
            let (ready, furthest) = (&mut self.ready, &mut self.taken_up_to);
            let (mut ran_dry, dead_before) = (false, dead.len());
            let taken = match wanted {
                0 => 0,
                _ => consumer.sink.take(wanted, || {
                    while let Some(entry) = ready.pop() {
                        if entry.expires_ms > 0 && entry.expires_ms < now_ms {
                            dead.push((entry, Death::Expired));
                            continue;
                        }
                        *furthest = entry.seq.max(*furthest);
                        return Some(entry);
                    }
                    ran_dry = true;
                    None
                }),
            };
            if taken > 0 && !touched.iter().any(|s| s.same(&consumer.sink)) {
                touched.push(consumer.sink.clone());
            }
            self.unacked += taken;
            if ran_dry && taken == 0 && !self.ready.is_empty() {
                // What it would get is still to be read back.
                self.round.wait_on(id);
                continue;
            }
            // A consumer for which nothing was left is not full; what has expired was not for it.
            let was_served = taken + (dead.len() - dead_before) >= wanted || ran_dry;
            self.round.took(id, taken, was_served && taken < credit);
        }
        self.forget_dead(dead, before);
    }

    /// `count` entries that `consumer` had taken are settled: acknowledged, dropped, or about to come
    /// back through [`Queue::requeue`]. Its credit grows; call [`Queue::assign`] afterwards.
    pub fn settle(&mut self, consumer: Option<ConsumerId>, count: usize) {
        self.unacked = self.unacked.saturating_sub(count);
        if let Some(id) = consumer {
            self.round.settled(id, count);
        }
    }

    /// `consumer` may have room again.
    pub fn resume(&mut self, id: ConsumerId) {
        self.round.resume(id);
    }

    /// Puts entries back where they were; [`Queue::settle`] has taken them off the count before.
    /// Whether they count as redelivered is the caller's knowledge; what came back too often is dead.
    pub fn requeue(&mut self, mut entries: Vec<Entry<D>>, dead: &mut Dead<D>) {
        if let Some(limit) = self.rules.delivery_limit {
            let before = dead.len();
            let over = entries.extract_if(.., |entry| entry.delivery_count > limit);
            dead.extend(over.map(|entry| (entry, Death::DeliveryLimit)));
            self.forget_dead(dead, before);
        }
        self.ready.put_back(entries);
    }

    /// Takes the first ready entry for basic.get; it counts as unacknowledged until it is settled. `None` as
    /// well while [`Queue::is_starved`].
    pub fn get(&mut self) -> Option<Entry<D>> {
        let entry = self.ready.pop()?;
        self.taken_up_to = entry.seq.max(self.taken_up_to);
        self.unacked += 1;
        Some(entry)
    }

    /// Removes what is ready; taken entries stay with their consumers, and dead letters where they are.
    pub fn purge(&mut self) -> Left<D> {
        let (entries, runs, blocks) = self.ready.take_all();
        self.forget(&entries);
        Left { entries, runs, blocks }
    }

    /// Adds a consumer at the end of the round; call [`Queue::assign`] afterwards.
    pub fn add_consumer(&mut self, sink: S, options: ConsumerOptions) -> Result<ConsumerId, ConsumeRefused> {
        if self.deleted {
            return Err(ConsumeRefused::Deleted);
        }
        let id = self.round.add(sink, options)?;
        self.had_consumer = true;
        Ok(id)
    }

    /// Removes a consumer; what it has taken stays with it. False when it is not there.
    pub fn remove_consumer(&mut self, id: ConsumerId) -> bool {
        self.round.remove(id)
    }

    /// Whether an auto-delete queue's time has come: it had consumers, and the last one has left.
    pub fn is_abandoned(&self) -> bool {
        self.had_consumer && self.round.is_empty()
    }

    /// Marks it deleted and gives up what is ready and who consumed; later pushes and consumers are
    /// refused by whoever asks [`Queue::is_deleted`] first.
    pub fn delete(&mut self) -> (Left<D>, Vec<S>) {
        self.deleted = true;
        let sinks = self.round.take_all();
        let mut left = self.purge();
        left.entries.extend(self.delayed.take_all());
        left.entries.extend(self.letters.take().into_iter().flat_map(|letters| letters.into_entries()));
        (left, sinks)
    }

    /// Whether [`Queue::delete`] was called.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// The furthest place that was ever handed out: what lies behind it was never delivered.
    pub fn taken_up_to(&self) -> Seq {
        self.taken_up_to
    }

    /// The present counts.
    pub fn counts(&self) -> Counts {
        Counts {
            ready: self.ready.len(),
            paged: self.ready.paged_len(),
            delayed: self.delayed.len(),
            unacked: self.unacked,
            letters: self.letters.as_ref().map_or(0, |letters| letters.len()),
            consumers: self.round.len(),
            ready_bytes: self.ready.bytes() + self.delayed.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::super::round::ROUND_SLACK;
    use super::*;

    /// A consumer with room for so many entries.
    #[derive(Clone)]
    struct Inbox(Rc<RefCell<(Vec<Entry<()>>, usize)>>);

    impl Inbox {
        fn with_room(room: usize) -> Inbox {
            Inbox(Rc::new(RefCell::new((Vec::new(), room))))
        }

        fn seqs(&self) -> Vec<u64> {
            self.0.borrow().0.iter().map(|e| e.seq.0).collect()
        }

        fn drain(&self) -> Vec<Entry<()>> {
            std::mem::take(&mut self.0.borrow_mut().0)
        }
    }

    impl Sink<()> for Inbox {
        fn take(&self, max: usize, mut next: impl FnMut() -> Option<Entry<()>>) -> usize {
            let mut inner = self.0.borrow_mut();
            let mut n = 0;
            while n < max && inner.0.len() < inner.1 {
                let Some(entry) = next() else { break };
                inner.0.push(entry);
                n += 1;
            }
            n
        }

        fn same(&self, other: &Self) -> bool {
            Rc::ptr_eq(&self.0, &other.0)
        }
    }

    fn queue_of(n: u64) -> Queue<(), Inbox> {
        queue_with(Rules::default(), n)
    }

    fn queue_with(rules: Rules, n: u64) -> Queue<(), Inbox> {
        let mut q = Queue::new(rules);
        for _ in 0..n {
            publish(&mut q);
        }
        q
    }

    fn died(dead: &Dead<()>) -> Vec<(u64, Death)> {
        dead.iter().map(|(entry, death)| (entry.seq.0, *death)).collect()
    }

    fn publish(q: &mut Queue<(), Inbox>) {
        let seq = q.next_seq();
        let message = Message::new(b"", b"q", &[0, 0], &[b"body"]);
        q.push(Entry::new(seq, message, ()));
    }

    fn consume(q: &mut Queue<(), Inbox>, prefetch: u16) -> (Inbox, ConsumerId) {
        let inbox = Inbox::with_room(usize::MAX);
        let options = ConsumerOptions { prefetch, ..ConsumerOptions::default() };
        let id = q.add_consumer(inbox.clone(), options).unwrap();
        (inbox, id)
    }

    fn assign(q: &mut Queue<(), Inbox>) -> usize {
        let mut touched = Vec::new();
        q.assign(0, &mut Vec::new(), &mut touched);
        touched.len()
    }

    #[test]
    fn six_messages_go_three_to_each_of_two_consumers() {
        let mut q = queue_of(0);
        let (a, _) = consume(&mut q, 0);
        let (b, _) = consume(&mut q, 0);
        for _ in 0..6 {
            publish(&mut q);
            assign(&mut q);
        }
        assert_eq!((a.seqs(), b.seqs()), (vec![1, 3, 5], vec![2, 4, 6]));
    }

    #[test]
    fn a_consumer_gets_no_more_than_its_prefetch() {
        let mut q = queue_of(5);
        let (a, id) = consume(&mut q, 2);
        assert_eq!(assign(&mut q), 1);
        assert_eq!(a.seqs(), [1, 2]);
        q.settle(Some(id), 1);
        assign(&mut q);
        assert_eq!(a.seqs(), [1, 2, 3]);
        let expected = Counts { ready: 2, unacked: 2, consumers: 1, ready_bytes: 2 * 4, ..Counts::default() };
        assert_eq!(q.counts(), expected);
    }

    #[test]
    fn a_busy_consumer_leaves_the_rest_to_the_idle_one() {
        let mut q = queue_of(6);
        let (a, _) = consume(&mut q, 1);
        let (b, id) = consume(&mut q, 1);
        assign(&mut q);
        for _ in 0..4 {
            q.settle(Some(id), 1);
            assign(&mut q);
        }
        assert_eq!((a.seqs(), b.seqs()), (vec![1], vec![2, 3, 4, 5, 6]));
    }

    #[test]
    fn what_comes_back_goes_to_its_old_place() {
        let mut q = queue_of(5);
        let (a, id) = consume(&mut q, 3);
        assign(&mut q);
        let mut taken = a.drain();
        q.remove_consumer(id);
        taken.swap(0, 2);
        q.settle(Some(id), 3);
        q.requeue(taken.into_iter().map(|e| Entry { redelivered: true, ..e }).collect(), &mut Vec::new());
        let (b, _) = consume(&mut q, 0);
        assign(&mut q);
        assert_eq!(b.seqs(), [1, 2, 3, 4, 5]);
        let flags: Vec<bool> = b.drain().iter().map(|e| e.redelivered).collect();
        assert_eq!(flags, [true, true, true, false, false]);
        assert_eq!(q.counts().unacked, 5);
    }

    #[test]
    fn what_was_delivered_in_an_earlier_life_still_counts_as_handed_out() {
        let run = |first, last, count| Run { first: Seq(first), last: Seq(last), count, ..Run::default() };
        let recovered = |runs, up_to| {
            Queue::<(), Inbox>::recovered(Rules::default(), runs, Seq(up_to), Seq(9)).taken_up_to()
        };
        assert_eq!(recovered(vec![run(3, 5, 2), run(7, 7, 1)], 5), Seq(5));
        assert_eq!(recovered(vec![run(3, 5, 2)], 8), Seq(5));
        assert_eq!(recovered(vec![run(3, 3, 1)], 0), Seq(0));
    }

    #[test]
    fn a_full_sink_is_passed_over_until_it_has_room() {
        let mut q = queue_of(4);
        let small = Inbox::with_room(1);
        let id = q.add_consumer(small.clone(), ConsumerOptions::default()).unwrap();
        assign(&mut q);
        assert_eq!(small.seqs(), [1]);
        small.drain();
        assert_eq!(assign(&mut q), 0);
        q.resume(id);
        assign(&mut q);
        assert_eq!(small.seqs(), [2]);
    }

    /// What had expired on the way counted as not taken: it was thought to be full, and lost its turn to a newcomer.
    #[test]
    fn a_consumer_that_took_all_that_was_alive_keeps_its_turn() {
        let mut q = queue_of(0);
        for expires_ms in [1, 0] {
            let entry = Entry::new(q.next_seq(), Message::new(b"", b"q", &[0, 0], &[b"body"]), ());
            q.push(Entry { expires_ms, ..entry });
        }
        let first = Inbox::with_room(1);
        let id = q.add_consumer(first.clone(), ConsumerOptions::default()).unwrap();
        let mut dead = Vec::new();
        q.assign(2, &mut dead, &mut Vec::new());
        assert_eq!((first.seqs(), dead.len()), (vec![2], 1));
        let (newcomer, _) = consume(&mut q, 0);
        first.drain();
        q.resume(id);
        publish(&mut q);
        assign(&mut q);
        assert_eq!((first.seqs(), newcomer.seqs()), (vec![3], vec![]));
    }

    #[test]
    fn exclusive_use_shuts_others_out_and_ends_with_the_consumer() {
        let mut q = queue_of(0);
        let sink = Inbox::with_room(1);
        let exclusive = ConsumerOptions { exclusive: true, ..ConsumerOptions::default() };
        let id = q.add_consumer(sink.clone(), exclusive).unwrap();
        let refused = q.add_consumer(sink.clone(), ConsumerOptions::default());
        assert_eq!(refused, Err(ConsumeRefused::InExclusiveUse));
        q.remove_consumer(id);
        let (_, _) = consume(&mut q, 0);
        assert_eq!(q.add_consumer(sink, exclusive), Err(ConsumeRefused::InExclusiveUse));
    }

    #[test]
    fn is_abandoned_only_after_its_first_consumer_has_left() {
        let mut q = queue_of(0);
        assert!(!q.is_abandoned());
        let (_, id) = consume(&mut q, 0);
        assert!(!q.is_abandoned());
        assert!(q.remove_consumer(id) && q.is_abandoned());
        assert!(!q.remove_consumer(id), "a second time");
    }

    #[test]
    fn a_late_settle_of_a_removed_consumer_does_not_credit_its_successor() {
        let mut q = queue_of(3);
        let (a, id) = consume(&mut q, 1);
        assign(&mut q);
        q.remove_consumer(id);
        let (b, _) = consume(&mut q, 1);
        assign(&mut q);
        q.settle(Some(id), 1);
        assign(&mut q);
        assert_eq!((a.seqs(), b.seqs()), (vec![1], vec![2]));
        assert_eq!(q.counts().unacked, 1);
    }

    #[test]
    fn a_full_queue_drops_its_head_but_first_delivers() {
        let rules = Rules { max_length: Some(2), ..Rules::default() };
        let mut q = queue_with(rules, 4);
        let (a, _) = consume(&mut q, 1);
        let mut dead = Vec::new();
        assign(&mut q);
        q.trim(&mut dead);
        assert_eq!(a.seqs(), [1]);
        assert_eq!(died(&dead), [(2, Death::MaxLen)]);
        assert_eq!(q.counts().ready, 2);
    }

    #[test]
    fn a_limit_in_bytes_counts_bodies_only() {
        let rules = Rules { max_length_bytes: Some(8), ..Rules::default() };
        let mut q = queue_with(rules, 3);
        let mut dead = Vec::new();
        q.trim(&mut dead);
        assert_eq!(died(&dead), [(1, Death::MaxLen)], "two bodies of four bytes fit");
    }

    /// A consumer used to be handed all that stood behind the head, expired or not, and a message with a
    /// time to live of 0 was gone before the consumer that waited for it could have it.
    #[test]
    fn a_consumer_gets_nothing_that_has_expired_and_all_that_expires_only_now() {
        let mut q = queue_of(0);
        for expires_ms in [0, 5, 9, 10, 11, 0] {
            let seq = q.next_seq();
            let message = Message::new(b"", b"q", &[0, 0], &[b"body"]);
            q.push(Entry { expires_ms, ..Entry::new(seq, message, ()) });
        }
        let (a, _) = consume(&mut q, 0);
        let (mut dead, mut touched) = (Vec::new(), Vec::new());
        q.assign(10, &mut dead, &mut touched);
        assert_eq!(a.seqs(), [1, 4, 5, 6]);
        assert_eq!(died(&dead), [(2, Death::Expired), (3, Death::Expired)]);
        assert_eq!(q.counts().unacked, 4);
        publish(&mut q);
        assign(&mut q);
        assert_eq!(a.seqs(), [1, 4, 5, 6, 7], "who was offered less than there seemed to be is not full");
    }

    #[test]
    fn places_that_are_given_out_count_towards_the_limit_until_they_are_taken() {
        let overflow = Overflow::RejectPublish;
        let mut q = queue_with(Rules { max_length: Some(2), overflow, ..Rules::default() }, 0);
        let first = q.reserve(4).unwrap();
        assert!(q.reserve(4).is_some() && q.reserve(4).is_none() && q.is_refusing(4));
        q.push_in_place(Entry::new(first, Message::new(b"", b"q", &[0, 0], &[b"body"]), ()));
        assert!(q.reserve(4).is_none(), "it stands in the queue now");
        let (_, _) = consume(&mut q, 3);
        assert!(q.reserve(4).is_some(), "three of them will not stay");
        assert_eq!(assign(&mut q), 1);
    }

    #[test]
    fn a_message_that_would_exceed_the_bytes_is_refused() {
        let overflow = Overflow::RejectPublish;
        let q = queue_with(Rules { max_length_bytes: Some(10), overflow, ..Rules::default() }, 1);
        assert!(!q.is_refusing(6) && q.is_refusing(7));
    }

    #[test]
    fn a_full_queue_that_rejects_publishes_keeps_what_it_has() {
        let overflow = Overflow::RejectPublish;
        let mut q = queue_with(Rules { max_length: Some(2), overflow, ..Rules::default() }, 1);
        assert!(!q.is_refusing(4));
        publish(&mut q);
        assert!(q.is_refusing(4));
        let mut dead = Vec::new();
        q.trim(&mut dead);
        assert!(dead.is_empty());
    }

    #[test]
    fn only_heads_expire_and_the_sooner_time_to_live_counts() {
        let rules = Rules { message_ttl_ms: Some(100), ..Rules::default() };
        assert_eq!(rules.expires_ms(1_000, Some(30)), 1_030);
        assert_eq!(rules.expires_ms(1_000, Some(300)), 1_100);
        assert_eq!(Rules::default().expires_ms(1_000, None), 0);
        let mut q = queue_of(0);
        for expires_ms in [0, 500, 400] {
            let seq = q.next_seq();
            let message = Message::new(b"", b"q", &[0, 0], &[b"body"]);
            q.push(Entry { expires_ms, ..Entry::new(seq, message, ()) });
        }
        let mut dead = Vec::new();
        q.expire(1_000, &mut dead);
        assert!(dead.is_empty(), "the head does not expire");
        assert_eq!(q.next_deadline_ms(), None);
        q.get();
        assert_eq!(q.next_deadline_ms(), Some(500));
        q.expire(450, &mut dead);
        assert!(dead.is_empty(), "behind a head that has time left");
        q.expire(500, &mut dead);
        assert_eq!(died(&dead), [(2, Death::Expired), (3, Death::Expired)]);
    }

    #[test]
    fn what_comes_back_too_often_is_dead() {
        let mut q = queue_with(Rules { delivery_limit: Some(2), ..Rules::default() }, 1);
        let mut dead = Vec::new();
        for returns in 1..=3 {
            let entry = q.get().unwrap();
            q.settle(None, 1);
            q.requeue(vec![Entry { delivery_count: returns, ..entry }], &mut dead);
        }
        assert_eq!(died(&dead), [(1, Death::DeliveryLimit)]);
        assert_eq!(q.counts(), Counts::default());
    }

    #[test]
    fn what_comes_back_is_put_between_what_stands_there() {
        let mut q = queue_of(9);
        let mut taken: Vec<_> = std::iter::from_fn(|| q.get()).collect();
        let odd: Vec<_> = taken.extract_if(.., |e| e.seq.0 % 2 == 1).collect();
        q.requeue(odd, &mut Vec::new());
        q.requeue(taken.split_off(2), &mut Vec::new());
        q.requeue(taken.split_off(1), &mut Vec::new());
        q.requeue(taken, &mut Vec::new());
        assert_eq!(
            q.purge().entries.iter().map(|e| e.seq.0).collect::<Vec<_>>(),
            (1..=9).collect::<Vec<_>>()
        );
    }

    /// Inserting one by one takes minutes here.
    #[test]
    fn a_consumer_that_dies_with_many_entries_is_quick_to_clean_up_after() {
        let mut q = queue_of(400_000);
        let taken: Vec<_> = (0..300_000).filter_map(|_| q.get()).collect();
        let start = std::time::Instant::now();
        q.requeue(taken, &mut Vec::new());
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
        assert!(q.counts().ready == 400_000 && q.purge().entries.is_sorted_by_key(|e| e.seq));
    }

    #[test]
    fn consumers_that_come_and_go_leave_nothing_behind() {
        let mut q = queue_of(0);
        let (a, _) = consume(&mut q, 0);
        for _ in 0..1000 {
            let (_, id) = consume(&mut q, 0);
            assert!(q.remove_consumer(id));
        }
        assert!(q.round.in_line() <= 2 + ROUND_SLACK, "{}", q.round.in_line());
        let (b, _) = consume(&mut q, 0);
        for _ in 0..4 {
            publish(&mut q);
            assign(&mut q);
        }
        assert_eq!((a.seqs(), b.seqs()), (vec![1, 3], vec![2, 4]));
    }

    /// Searching the round for each that leaves takes minutes here.
    #[test]
    fn a_hundred_thousand_consumers_leave_quickly() {
        let mut q = queue_of(0);
        let ids: Vec<_> = (0..100_000).map(|_| consume(&mut q, 1).1).collect();
        let start = std::time::Instant::now();
        assert!(ids.into_iter().rev().all(|id| q.remove_consumer(id)));
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}
