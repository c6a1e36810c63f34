//! One queue as plain data: what is ready, who consumes, who gets the next message. The engine puts it
//! under a lock and does what the outcomes say; nothing here blocks, writes or knows a clock.
//!
//! A *taken* entry belongs to the consumer it was handed to (its outbox, then its session) until it is
//! settled or given back; the queue keeps only the count. Order is by [`Seq`]: what comes back goes to
//! its old place.

use std::collections::VecDeque;

use slab::Slab;

use super::id::Seq;
use super::message::Message;

/// One message's place in one queue. `D` is what the engine remembers of it in the store.
#[derive(Clone, Debug)]
pub struct Entry<D> {
    /// its place; ready entries are in ascending order
    pub seq: Seq,
    /// whether it may have been delivered before
    pub redelivered: bool,
    /// how many times it came back, for delivery limits
    pub delivery_count: u16,
    /// the message, shared with other queues
    pub message: Message,
    /// the store's handle; a default for what is not stored
    pub durable: D,
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
    slot: usize,
    serial: u64,
}

struct Consumer<S> {
    serial: u64,
    sink: S,
    /// unacknowledged entries allowed at once; `None` is unlimited
    prefetch: Option<u32>,
    in_flight: u32,
    state: Turn,
}

/// Where a consumer stands in the round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// in `round`, may be offered the next message
    Waiting,
    /// out of credit or out of room; a settle or a resume brings it back
    Blocked,
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
}

/// Why a consumer cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumeRefused {
    /// another consumer has it exclusively, or exclusiveness is asked for beside others
    InExclusiveUse,
    /// the queue is gone
    Deleted,
}

/// Counts that queue.declare-ok, management and metrics show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// entries nobody has taken
    pub ready: usize,
    /// entries taken and not settled
    pub unacked: usize,
    /// consumers
    pub consumers: usize,
    /// bytes of the ready messages
    pub ready_bytes: usize,
}

/// A queue: ready entries in order and the consumers' round.
pub struct Queue<D, S> {
    ready: VecDeque<Entry<D>>,
    ready_bytes: usize,
    unacked: usize,
    next_seq: Seq,
    /// the furthest place that was ever handed out
    taken_up_to: Seq,
    consumers: Slab<Consumer<S>>,
    round: VecDeque<ConsumerId>,
    exclusive: bool,
    serial: u64,
    had_consumer: bool,
    deleted: bool,
}

impl<D, S: Sink<D>> Default for Queue<D, S> {
    fn default() -> Self {
        Queue::recovered(Vec::new(), Seq(1))
    }
}

impl<D, S: Sink<D>> Queue<D, S> {
    /// A queue with what the store gave back; entries in ascending order.
    pub fn recovered(entries: Vec<Entry<D>>, next_seq: Seq) -> Self {
        Queue {
            ready_bytes: entries.iter().map(|e| e.message.size_bytes()).sum(),
            // What may have been delivered in an earlier life stays so, also for the one after this.
            taken_up_to: entries.iter().rev().find(|e| e.redelivered).map_or(Seq(0), |e| e.seq),
            ready: entries.into(),
            unacked: 0,
            next_seq,
            consumers: Slab::new(),
            round: VecDeque::new(),
            exclusive: false,
            serial: 0,
            had_consumer: false,
            deleted: false,
        }
    }

    /// The place of the next entry; each call gives a new one. The engine tells the store about it
    /// before [`Queue::push`] makes it visible.
    pub fn next_seq(&mut self) -> Seq {
        let seq = self.next_seq;
        self.next_seq = Seq(seq.0 + 1);
        seq
    }

    /// Adds an entry at the end; [`Queue::assign`] then finds it a consumer.
    pub fn push(&mut self, entry: Entry<D>) {
        self.ready_bytes += entry.message.size_bytes();
        self.ready.push_back(entry);
    }

    /// Hands ready entries to consumers in turn while both last. The sinks that got something are
    /// added to `touched`, for the engine to wake once the lock is gone.
    pub fn assign(&mut self, touched: &mut Vec<S>) {
        while !self.ready.is_empty() {
            let Some(id) = self.round.pop_front() else { return };
            let alone = self.round.is_empty();
            let Some(consumer) = self.consumers.get_mut(id.slot) else { continue };
            let credit = match consumer.prefetch {
                Some(limit) => limit.saturating_sub(consumer.in_flight) as usize,
                None => usize::MAX,
            };
            // Strict turns while several wait; a single one is served in one go.
            let wanted = if alone { credit.min(self.ready.len()) } else { credit.min(1) };
            let (ready, bytes, furthest) = (&mut self.ready, &mut self.ready_bytes, &mut self.taken_up_to);
            let taken = if wanted == 0 {
                0
            } else {
                consumer.sink.take(wanted, || {
                    let entry = ready.pop_front()?;
                    *bytes -= entry.message.size_bytes();
                    *furthest = entry.seq.max(*furthest);
                    Some(entry)
                })
            };
            self.unacked += taken;
            consumer.in_flight += taken as u32;
            if taken > 0 && !touched.iter().any(|s| s.same(&consumer.sink)) {
                touched.push(consumer.sink.clone());
            }
            if taken < wanted || wanted == credit {
                consumer.state = Turn::Blocked;
            } else {
                self.round.push_back(id);
            }
        }
    }

    /// `count` entries that `consumer` had taken are settled: acknowledged, dropped, or about to come
    /// back through [`Queue::requeue`]. Its credit grows; call [`Queue::assign`] afterwards.
    pub fn settle(&mut self, consumer: Option<ConsumerId>, count: usize) {
        self.unacked = self.unacked.saturating_sub(count);
        let Some(id) = consumer else { return };
        let Some(known) = self.consumers.get_mut(id.slot).filter(|c| c.serial == id.serial) else { return };
        known.in_flight = known.in_flight.saturating_sub(count as u32);
        self.resume(id);
    }

    /// `consumer` may have room again.
    pub fn resume(&mut self, id: ConsumerId) {
        let Some(known) = self.consumers.get_mut(id.slot).filter(|c| c.serial == id.serial) else { return };
        if known.state == Turn::Blocked {
            known.state = Turn::Waiting;
            self.round.push_back(id);
        }
    }

    /// Puts entries back where they were; [`Queue::settle`] has taken them off the count before.
    /// Whether they count as redelivered is the caller's knowledge.
    pub fn requeue(&mut self, entries: impl IntoIterator<Item = Entry<D>>) {
        for entry in entries {
            self.ready_bytes += entry.message.size_bytes();
            match self.ready.front() {
                Some(front) if front.seq < entry.seq => {
                    let at = self.ready.partition_point(|e| e.seq < entry.seq);
                    self.ready.insert(at, entry);
                }
                Some(_) | None => self.ready.push_front(entry),
            }
        }
    }

    /// Takes the first ready entry for basic.get; it counts as unacknowledged until it is settled.
    pub fn get(&mut self) -> Option<Entry<D>> {
        let entry = self.ready.pop_front()?;
        self.ready_bytes -= entry.message.size_bytes();
        self.taken_up_to = entry.seq.max(self.taken_up_to);
        self.unacked += 1;
        Some(entry)
    }

    /// Removes what is ready; taken entries stay with their consumers.
    pub fn purge(&mut self) -> VecDeque<Entry<D>> {
        self.ready_bytes = 0;
        std::mem::take(&mut self.ready)
    }

    /// Adds a consumer at the end of the round; call [`Queue::assign`] afterwards.
    pub fn add_consumer(&mut self, sink: S, options: ConsumerOptions) -> Result<ConsumerId, ConsumeRefused> {
        if self.deleted {
            return Err(ConsumeRefused::Deleted);
        }
        if self.exclusive || (options.exclusive && !self.consumers.is_empty()) {
            return Err(ConsumeRefused::InExclusiveUse);
        }
        self.serial += 1;
        self.exclusive = options.exclusive;
        self.had_consumer = true;
        // Without acknowledgements nothing is ever unacknowledged, so a prefetch has no meaning.
        let limited = options.prefetch > 0 && !options.no_ack;
        let slot = self.consumers.insert(Consumer {
            serial: self.serial,
            sink,
            prefetch: limited.then_some(u32::from(options.prefetch)),
            in_flight: 0,
            state: Turn::Waiting,
        });
        let id = ConsumerId { slot, serial: self.serial };
        self.round.push_back(id);
        Ok(id)
    }

    /// Removes a consumer; what it has taken stays with it. False when it is not there.
    pub fn remove_consumer(&mut self, id: ConsumerId) -> bool {
        if self.consumers.get(id.slot).is_none_or(|c| c.serial != id.serial) {
            return false;
        }
        self.consumers.remove(id.slot);
        self.round.retain(|other| *other != id);
        self.exclusive = false;
        true
    }

    /// Whether an auto-delete queue's time has come: it had consumers, and the last one has left.
    pub fn is_abandoned(&self) -> bool {
        self.had_consumer && self.consumers.is_empty()
    }

    /// Marks it deleted and gives up what is ready and who consumed; later pushes and consumers are
    /// refused by whoever asks [`Queue::is_deleted`] first.
    pub fn delete(&mut self) -> (VecDeque<Entry<D>>, Vec<S>) {
        self.deleted = true;
        self.round.clear();
        let sinks = self.consumers.drain().map(|c| c.sink).collect();
        (self.purge(), sinks)
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
            unacked: self.unacked,
            consumers: self.consumers.len(),
            ready_bytes: self.ready_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

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
        let mut q = Queue::default();
        for _ in 0..n {
            publish(&mut q);
        }
        q
    }

    fn publish(q: &mut Queue<(), Inbox>) {
        let seq = q.next_seq();
        let message = Message::new(b"", b"q", &[0, 0], &[b"body"]);
        q.push(Entry { seq, redelivered: false, delivery_count: 0, message, durable: () });
    }

    fn consume(q: &mut Queue<(), Inbox>, prefetch: u16) -> (Inbox, ConsumerId) {
        let inbox = Inbox::with_room(usize::MAX);
        let options = ConsumerOptions { prefetch, ..ConsumerOptions::default() };
        let id = q.add_consumer(inbox.clone(), options).unwrap();
        (inbox, id)
    }

    fn assign(q: &mut Queue<(), Inbox>) -> usize {
        let mut touched = Vec::new();
        q.assign(&mut touched);
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
        assert_eq!(q.counts(), Counts { ready: 2, unacked: 2, consumers: 1, ready_bytes: 2 * 13 });
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
        q.requeue(taken.into_iter().map(|e| Entry { redelivered: true, ..e }));
        let (b, _) = consume(&mut q, 0);
        assign(&mut q);
        assert_eq!(b.seqs(), [1, 2, 3, 4, 5]);
        let flags: Vec<bool> = b.drain().iter().map(|e| e.redelivered).collect();
        assert_eq!(flags, [true, true, true, false, false]);
        assert_eq!(q.counts().unacked, 5);
    }

    #[test]
    fn what_was_delivered_in_an_earlier_life_still_counts_as_handed_out() {
        let entry = |seq, redelivered| {
            let message = Message::new(b"", b"", &[], &[]);
            Entry { seq: Seq(seq), redelivered, delivery_count: 0, message, durable: () }
        };
        let recovered = |entries| Queue::<(), Inbox>::recovered(entries, Seq(9)).taken_up_to();
        assert_eq!(recovered(vec![entry(3, true), entry(5, true), entry(7, false)]), Seq(5));
        assert_eq!(recovered(vec![entry(3, false)]), Seq(0));
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
}
