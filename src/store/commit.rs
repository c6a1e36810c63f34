//! The inbox: the only door into the store. Appending takes a leaf lock, moves pointers, and never waits
//! for the disk; the committer (committer.rs) empties it in batches.
//!
//! A place in the commit order is `base + index + 1`, so that striking out what was put and is not yet taken
//! is one array access. What one [`Appender`] appends is committed in one batch, or not at all.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use smallvec::SmallVec;

use super::body::SharedBody;
use super::error::CommitFailure;
use super::key_admin::KeyRequest;
use super::key_duty::Epoch;
use super::layout::RowKind;
use super::op::{Op, Put};
use super::record::{DeliveryCount, EntryMeta};
use crate::broker::id::{QueueId, RowId, Seq};
use crate::broker::letters::Died;
use crate::broker::message::Message;
use crate::limits::{COMMIT_ACK_LINGER_MS, COMMIT_BYTES_MAX, COMMIT_MESSAGES_MAX, COMMIT_SLOTS_MAX};
use crate::seal::record::Key;

/// A place in the commit order. `Position(0)` is before everything: nothing to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

impl Position {
    /// What a store that has failed or is closed gives out: it never becomes durable.
    pub const NEVER: Position = Position(u64::MAX);
}

struct Slot {
    op: Op,
    /// The last of its appender's; a batch ends only here.
    ends: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Committer {
    Awake,
    /// Waits for anything.
    Idle,
    /// Has acknowledgements and waits for company.
    Lingers,
}

struct Inbox {
    /// Places given out before `slots[0]`.
    base: u64,
    slots: VecDeque<Slot>,
    wakers: VecDeque<(u64, Waker)>,
    delivered: DeliveryMarks,
    /// Something waits for a commit that is not to linger.
    urgent: bool,
    /// Nothing is accepted any more.
    closed: bool,
    committer: Committer,
}

/// How far each queue was delivered.
pub(super) type DeliveryMarks = HashMap<QueueId, Seq, foldhash::fast::RandomState>;

/// What the store's users and the committer share.
pub(super) struct Core {
    inbox: Mutex<Inbox>,
    work: Condvar,
    durable: AtomicU64,
    backlog_bytes: AtomicUsize,
    failure: OnceLock<CommitFailure>,
    thread: Mutex<Option<JoinHandle<()>>>,
    pub(super) next_body: AtomicU64,
    pub(super) next_row: AtomicU64,
    /// The current data key, for bodies that are sealed outside the committer; empty in a plain store.
    pub(super) data_key: ArcSwapOption<Epoch>,
    /// All keys that open records; empty in a plain store.
    pub(super) keys: ArcSwap<Vec<Arc<Key>>>,
    pub(super) counters: Counters,
    /// Set while a backup is being made.
    pub(super) backing_up: AtomicBool,
}

/// Sums for [`super::StoreStats`].
#[derive(Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) elided: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) last_commit_us: AtomicU64,
    /// Number of the last commit that is on the disk.
    pub(super) commit_seq: AtomicU64,
    /// Keys that were removed.
    pub(super) deletions: AtomicU64,
}

/// What [`Core::take`] gives the committer.
pub(super) struct Taken {
    /// The last place taken.
    pub(super) upto: u64,
    /// The inbox is closed and empty: this is the end.
    pub(super) ended: bool,
}

impl Core {
    pub(super) fn new(
        next_body: u64,
        next_row: u64,
        data_key: Option<Arc<Key>>,
        keys: Vec<Arc<Key>>,
    ) -> Core {
        let inbox = Inbox {
            base: 0,
            slots: VecDeque::new(),
            wakers: VecDeque::new(),
            delivered: DeliveryMarks::default(),
            urgent: false,
            closed: false,
            committer: Committer::Awake,
        };
        Core {
            inbox: Mutex::new(inbox),
            work: Condvar::new(),
            durable: AtomicU64::new(0),
            backlog_bytes: AtomicUsize::new(0),
            failure: OnceLock::new(),
            thread: Mutex::new(None),
            next_body: AtomicU64::new(next_body),
            next_row: AtomicU64::new(next_row),
            data_key: ArcSwapOption::new(data_key.map(|key| Arc::new(Epoch { key }))),
            keys: ArcSwap::from_pointee(keys),
            counters: Counters::default(),
            backing_up: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Nothing panics under this lock; if something did, the inbox would still be whole.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn appender(&self) -> Appender<'_> {
        let inbox = self.lock();
        Appender {
            inbox,
            core: self,
            after: AfterUnlock { core: self, notify: false, wakers: SmallVec::new() },
        }
    }

    pub(super) fn durable(&self) -> Position {
        Position(self.durable.load(Ordering::Acquire))
    }

    /// Keys that were removed since the store was opened, and are known to be on the disk.
    pub(super) fn deletions(&self) -> u64 {
        self.counters.deletions.load(Ordering::Relaxed)
    }

    pub(super) fn failure(&self) -> Option<&CommitFailure> {
        self.failure.get()
    }

    pub(super) fn backlog_bytes(&self) -> usize {
        self.backlog_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn charge(&self, bytes: usize) {
        self.backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn discharge(&self, bytes: usize) {
        self.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Waits for work and moves one batch of it to `ops`; not at all with `more`, and no longer than `idle`.
    pub(super) fn take(
        &self,
        ops: &mut Vec<Op>,
        delivered: &mut DeliveryMarks,
        more: bool,
        idle: Option<Duration>,
    ) -> Taken {
        let mut inbox = self.lock();
        let (mut linger_until, mut is_over) = (None, more);
        loop {
            if inbox.slots.is_empty() {
                if inbox.closed || is_over {
                    break;
                }
                inbox.committer = Committer::Idle;
                let woken = self.work.wait_timeout(inbox, idle.unwrap_or(Duration::MAX));
                let (held, waited) = woken.unwrap_or_else(PoisonError::into_inner);
                (inbox, is_over) = (held, waited.timed_out());
            } else {
                if inbox.must_commit_now() {
                    break;
                }
                let now = Instant::now();
                let until =
                    *linger_until.get_or_insert_with(|| now + Duration::from_millis(COMMIT_ACK_LINGER_MS));
                let Some(rest) = until.checked_duration_since(now).filter(|rest| !rest.is_zero()) else {
                    break;
                };
                inbox.committer = Committer::Lingers;
                let woken = self.work.wait_timeout(inbox, rest);
                inbox = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        inbox.committer = Committer::Awake;
        let ended = inbox.closed && inbox.slots.is_empty();
        inbox.take_batch(ops);
        std::mem::swap(&mut inbox.delivered, delivered);
        Taken { upto: inbox.base, ended }
    }

    /// Everything up to `upto` is on the disk: tells all who wait for it.
    pub(super) fn advance(&self, upto: u64, woken: &mut Vec<Waker>) {
        self.durable.store(upto, Ordering::Release);
        let mut inbox = self.lock();
        while inbox.wakers.front().is_some_and(|(place, _)| *place <= upto) {
            woken.extend(inbox.wakers.pop_front().map(|(_, waker)| waker));
        }
        drop(inbox);
        woken.drain(..).for_each(Waker::wake);
    }

    /// Fail-stop: nothing is accepted from now on, and everybody who waits is told.
    pub(super) fn fail(&self, failure: CommitFailure) {
        tracing::error!("the store has stopped: {failure}");
        // The first failure is the cause; a later one only follows from it.
        let _ = self.failure.set(failure);
        let mut inbox = self.lock();
        inbox.closed = true;
        inbox.base += inbox.slots.len() as u64;
        let (slots, wakers) = (std::mem::take(&mut inbox.slots), std::mem::take(&mut inbox.wakers));
        drop(inbox);
        drop(slots);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Accepts nothing more, and lets the committer finish.
    pub(super) fn close(&self) {
        let mut inbox = self.lock();
        inbox.closed = true;
        drop(inbox);
        self.work.notify_one();
    }

    pub(super) fn keep_thread(&self, thread: JoinHandle<()>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    /// Waits for the committer's end; later calls return at once.
    pub(super) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic of the committer has been turned into a failure by its guard.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Inbox {
    fn must_commit_now(&self) -> bool {
        self.urgent || self.closed || self.slots.len() >= COMMIT_MESSAGES_MAX
    }

    fn take_batch(&mut self, ops: &mut Vec<Op>) {
        let (mut bytes, mut passed, mut messages) = (0, 0, 0);
        while let Some(Slot { op, ends }) = self.slots.pop_front() {
            passed += 1;
            bytes += op.batch_bytes();
            messages += usize::from(matches!(op, Op::Put(_)));
            if !matches!(op, Op::Nothing) {
                ops.push(op);
            }
            let full =
                messages >= COMMIT_MESSAGES_MAX || bytes >= COMMIT_BYTES_MAX || passed >= COMMIT_SLOTS_MAX;
            if ends && full {
                break;
            }
        }
        self.base += passed as u64;
        // What is left was kept waiting by this batch already.
        self.urgent = !self.slots.is_empty();
    }
}

/// Appends to the commit order while it holds the inbox. It is a leaf lock: take no other lock, wait for
/// nothing and keep it short. What it appended goes into one batch; dropping it wakes the committer.
pub struct Appender<'a> {
    // Dropped in this order: the lock is released before anybody is woken.
    inbox: MutexGuard<'a, Inbox>,
    core: &'a Core,
    after: AfterUnlock<'a>,
}

struct AfterUnlock<'a> {
    core: &'a Core,
    notify: bool,
    wakers: SmallVec<[Waker; 1]>,
}

impl Drop for AfterUnlock<'_> {
    fn drop(&mut self) {
        if self.notify {
            self.core.work.notify_one();
        }
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl Drop for Appender<'_> {
    fn drop(&mut self) {
        let inbox = &mut *self.inbox;
        if let Some(last) = inbox.slots.back_mut() {
            last.ends = true;
        }
        self.after.notify = !inbox.slots.is_empty()
            && match inbox.committer {
                Committer::Awake => false,
                Committer::Idle => true,
                Committer::Lingers => inbox.must_commit_now(),
            };
    }
}

impl Appender<'_> {
    fn push(&mut self, op: Op, urgent: bool) -> Position {
        if self.inbox.closed {
            return Position::NEVER;
        }
        self.core.charge(op.charge());
        self.inbox.urgent |= urgent;
        self.inbox.slots.push_back(Slot { op, ends: false });
        self.tail()
    }

    /// Puts an entry into a durable queue. Without `shared` the message is stored in the entry itself.
    /// Within one queue `seq` must be new; it must not have been deleted before either.
    pub fn put(
        &mut self,
        queue: QueueId,
        seq: Seq,
        message: &Message,
        shared: Option<&Arc<SharedBody>>,
        meta: EntryMeta,
    ) -> Position {
        let (message, shared) = (message.clone(), shared.cloned());
        self.push(Op::Put(Put { queue, seq, message, shared, meta }), true)
    }

    /// Removes an entry: strikes its put out when that is not yet taken by the committer, else appends the
    /// removal. `put_at` is what [`Appender::put`] returned; `Position(0)` for an entry that was read back, and for
    /// one whose put is to be written all the same. `bytes` is the size of its message.
    pub fn delete(
        &mut self,
        queue: QueueId,
        seq: Seq,
        bytes: usize,
        shared: Option<&Arc<SharedBody>>,
        put_at: Position,
    ) {
        if !self.strike_out(queue, seq, put_at) {
            self.push(Op::Delete { queue, seq, bytes: bytes as u32, shared: shared.cloned() }, false);
        }
    }

    fn strike_out(&mut self, queue: QueueId, seq: Seq, put_at: Position) -> bool {
        let index = put_at.0.checked_sub(self.inbox.base + 1).and_then(|index| usize::try_from(index).ok());
        let Some(slot) = index.and_then(|index| self.inbox.slots.get_mut(index)) else { return false };
        let before = slot.op.charge();
        let left = match &mut slot.op {
            Op::Put(put) if (put.queue, put.seq) == (queue, seq) => {
                put.shared.take().map_or(Op::Nothing, Op::Settle)
            }
            _ => return false,
        };
        // Nothing is passed over by the committer, so its whole charge ends here.
        let after = if matches!(left, Op::Nothing) { 0 } else { left.charge() };
        slot.op = left;
        self.core.discharge(before - after);
        self.core.counters.elided.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// One of the entries promised to [`super::Store::shared_body`] will never be put.
    pub fn release(&mut self, shared: &Arc<SharedBody>) {
        self.push(Op::Settle(Arc::clone(shared)), false);
    }

    /// Remembers how often an entry came back, in the place of an earlier count; it goes with the entry.
    /// To be told before anybody can take the entry again. No confirm waits for it.
    pub fn count_deliveries(&mut self, queue: QueueId, seq: Seq, count: u32) {
        self.push(Op::Count(DeliveryCount { queue, seq, count, died: None }), false);
    }

    /// Remembers that an entry is a dead letter now, which its queue keeps; in the place of its count, and
    /// with it. No confirm waits for it.
    pub fn mark_dead(&mut self, queue: QueueId, seq: Seq, count: u32, died: Died) {
        self.push(Op::Count(DeliveryCount { queue, seq, count, died: Some(died) }), false);
    }

    /// Writes a row, new or in the place of an older one.
    pub fn put_row(&mut self, kind: RowKind, id: RowId, text: Vec<u8>) -> Position {
        self.push(Op::PutRow { kind, id, text }, true)
    }

    /// Removes a row.
    pub fn delete_row(&mut self, kind: RowKind, id: RowId) -> Position {
        self.push(Op::DeleteRow { kind, id }, true)
    }

    /// Remembers how far a queue was delivered. Costs no write; what is remembered is lost in a crash unless
    /// a later commit touched the queue.
    pub fn delivered_up_to(&mut self, queue: QueueId, seq: Seq) {
        if !self.inbox.closed {
            let mark = self.inbox.delivered.entry(queue).or_default();
            *mark = seq.max(*mark);
        }
    }

    /// Removes all entries of a queue between two places, `bytes` of messages, none of which anybody holds: what is
    /// in the store only is purged so. Durable, at the place returned, is that they will not come back; they are
    /// cleared away in the background.
    pub fn purge_range(&mut self, queue: QueueId, first: Seq, last: Seq, bytes: u64) -> Position {
        self.push(Op::PurgeRange { queue, first, last, bytes }, true)
    }

    /// Removes a queue's entries, those in quarantine too, and its counts. `entries` are all that the engine
    /// holds ready; the queue's row is deleted apart from this. Durable, at the place returned, is that the
    /// entries will not come back; they are cleared away in the background.
    pub fn drop_queue(
        &mut self,
        queue: QueueId,
        entries: Vec<(Seq, Option<Arc<SharedBody>>, Position)>,
    ) -> Position {
        let mut bodies = Vec::new();
        for (seq, shared, put_at) in entries {
            if !self.strike_out(queue, seq, put_at) {
                bodies.extend(shared.map(|shared| (seq, shared)));
            }
        }
        self.inbox.delivered.remove(&queue);
        self.push(Op::DropQueue { queue, bodies }, true)
    }

    /// Gives a queue a key of its own, under which all that is put later is sealed; with `anew` it replaces the one
    /// that the queue has. A body apart must be one of [`super::Store::own_body`].
    pub fn own_key(&mut self, queue: QueueId, anew: bool) -> Position {
        self.push(Op::OwnKey { queue, anew }, true)
    }

    /// Asks for something to be done with the keyring, after all that was appended before.
    pub(super) fn keys(&mut self, request: Arc<KeyRequest>) -> Position {
        self.push(Op::Keys(request), true)
    }

    /// Commits even though nothing has changed.
    pub(super) fn touch(&mut self) -> Position {
        self.push(Op::Touch, true)
    }

    /// The place of the last change that the store has accepted.
    pub fn tail(&self) -> Position {
        Position(self.inbox.base + self.inbox.slots.len() as u64)
    }

    /// Wakes `waker` once, when everything appended so far is durable, or when the store has failed.
    pub fn wake(&mut self, waker: Waker) {
        let tail = self.tail();
        if self.core.failure().is_some() || self.core.durable() >= tail {
            self.after.wakers.push(waker);
        } else {
            self.inbox.urgent |= !self.inbox.slots.is_empty();
            self.inbox.wakers.push_back((tail.0, waker));
        }
    }
}
