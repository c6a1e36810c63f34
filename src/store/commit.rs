//! The inbox behind the only door into the store (appender.rs). Appending takes a leaf lock, moves pointers, and never
//! waits for the disk; the committer (committer.rs) empties it in batches.
//!
//! A place in the commit order is `base + index + 1`, so that striking out what was put and is not yet taken
//! is one array access. What one [`Appender`] (appender.rs) appends is committed in one batch, or not at all.
//!
//! A promise made at a place (a confirm, a declare-ok) is kept once nothing up to there has to be written any more:
//! what is struck out is as good as written, and nobody waits for an acknowledgement. So messages whose consumers
//! are quick are confirmed without a commit, if the committer leaves them that little time ([`super::Appender::may_wait`]).

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::appender::Appender;
use super::due::Dues;
use super::error::CommitFailure;
use super::key_duty::Epoch;
use super::op::Op;
use crate::broker::id::{QueueId, Seq};
use crate::limits::{
    COMMIT_ACK_LINGER_MS, COMMIT_BYTES_MAX, COMMIT_LARGE_BYTES_MAX, COMMIT_MESSAGES_MAX, COMMIT_SLOTS_MAX,
    INLINE_BODY_BYTES_MAX,
};
use crate::seal::record::Key;

/// A place in the commit order. `Position(0)` is before everything: nothing to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

impl Position {
    /// What a store that has failed or is closed gives out: it never becomes durable.
    pub const NEVER: Position = Position(u64::MAX);
}

pub(super) struct Slot {
    pub(super) op: Op,
    /// The last of its appender's; a batch ends only here.
    pub(super) ends: bool,
    /// What is promised from here on waits for it.
    pub(super) is_awaited: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Committer {
    /// Has a batch.
    Writes,
    /// Is about to look.
    Comes,
    /// Waits for anything.
    Idle,
    /// Looks by itself then.
    Dozes(Instant),
}

/// What waits for the committer.
pub(super) struct Inbox {
    /// Places given out before `slots[0]`.
    pub(super) base: u64,
    pub(super) slots: VecDeque<Slot>,
    /// Promises up to this place are kept; never behind what is durable.
    pub(super) kept: u64,
    /// Place of the last thing that nobody waits for, and of the last one that is awaited and cannot be struck out.
    pub(super) unawaited: u64,
    pub(super) walled: u64,
    /// No batch ends at one of these places.
    pub(super) unbroken: Range<u64>,
    /// Who waits for what is durable.
    pub(super) wakers: VecDeque<(u64, Waker)>,
    /// Who waits for a promise.
    pub(super) promised: VecDeque<(u64, Waker)>,
    pub(super) dues: Dues,
    pub(super) delivered: DeliveryMarks,
    /// What was put last is likely to be acknowledged soon.
    pub(super) is_brisk: bool,
    /// Something waits for a commit that is not to linger.
    pub(super) urgent: bool,
    /// Nothing is accepted any more.
    pub(super) closed: bool,
    pub(super) committer: Committer,
}

/// How far each queue was delivered.
pub(super) type DeliveryMarks = HashMap<QueueId, Seq, foldhash::fast::RandomState>;

/// What the store's users and the committer share.
pub(super) struct Core {
    inbox: Mutex<Inbox>,
    pub(super) work: Condvar,
    durable: AtomicU64,
    /// The inbox's `kept`, to be read without its lock.
    kept: AtomicU64,
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
            kept: 0,
            unawaited: 0,
            walled: 0,
            unbroken: 0..0,
            wakers: VecDeque::new(),
            promised: VecDeque::new(),
            dues: Dues::default(),
            delivered: DeliveryMarks::default(),
            is_brisk: false,
            urgent: false,
            closed: false,
            committer: Committer::Comes,
        };
        Core {
            inbox: Mutex::new(inbox),
            work: Condvar::new(),
            durable: AtomicU64::new(0),
            kept: AtomicU64::new(0),
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
        Appender::new(self, self.lock())
    }

    pub(super) fn durable(&self) -> Position {
        Position(self.durable.load(Ordering::Acquire))
    }

    pub(super) fn kept(&self) -> Position {
        Position(self.kept.load(Ordering::Acquire))
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
        let idle_until = idle.and_then(|idle| Instant::now().checked_add(idle));
        let mut lingers = None;
        while !inbox.must_commit_now() {
            let now = Instant::now();
            let is_over = idle_until.is_some_and(|until| until <= now);
            let until = if inbox.slots.is_empty() {
                if more || is_over {
                    break;
                }
                // While promises are kept without commits, being woken for each costs more than looking often.
                let quiet_until = inbox.dues.quiet_until(now);
                inbox.committer = quiet_until.map_or(Committer::Idle, Committer::Dozes);
                quiet_until.into_iter().chain(idle_until).min()
            } else {
                // Since the first was first; but purges and the keyring do not wait while others come and go.
                let (_, acks_until) = match lingers {
                    Some((base, until)) if more || base == inbox.base => (base, until),
                    _ => (inbox.base, now + Duration::from_millis(COMMIT_ACK_LINGER_MS)),
                };
                lingers = Some((inbox.base, acks_until));
                let until = inbox.dues.first_after(inbox.kept).map_or(acks_until, |due| due.min(acks_until));
                if until <= now || is_over {
                    break;
                }
                inbox.committer = Committer::Dozes(until);
                Some(until)
            };
            let rest = until.map_or(Duration::MAX, |until| until.saturating_duration_since(now));
            inbox = self.work.wait_timeout(inbox, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        inbox.committer = Committer::Writes;
        let ended = inbox.closed && inbox.slots.is_empty();
        inbox.take_batch(ops);
        std::mem::swap(&mut inbox.delivered, delivered);
        Taken { upto: inbox.base, ended }
    }

    /// Everything up to `upto` is on the disk: tells all who wait for it.
    pub(super) fn advance(&self, upto: u64, woken: &mut Vec<Waker>) {
        self.durable.store(upto, Ordering::Release);
        let mut inbox = self.lock();
        let now = Instant::now();
        let kept = inbox.kept;
        inbox.dues.committed(kept, upto, now);
        inbox.committer = Committer::Comes;
        inbox.keep_promises(self, |waker| woken.push(waker));
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
        // For good: no promise is kept any more.
        inbox.committer = Committer::Writes;
        inbox.base += inbox.slots.len() as u64;
        let (slots, wakers) = (std::mem::take(&mut inbox.slots), std::mem::take(&mut inbox.wakers));
        let promised = std::mem::take(&mut inbox.promised);
        drop(inbox);
        drop(slots);
        wakers.into_iter().chain(promised).for_each(|(_, waker)| waker.wake());
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
    pub(super) fn must_commit_now(&self) -> bool {
        self.urgent || self.closed || self.slots.len() >= COMMIT_SLOTS_MAX
    }

    /// What stands from `first` on, which was struck out for something that was appended since, is committed with that.
    pub(super) fn keep_together(&mut self, first: u64) {
        let tail = self.base + self.slots.len() as u64;
        let open = Some(self.unbroken.start).filter(|open| self.unbroken.end > self.base.max(*open));
        self.unbroken = open.map_or(first, |open| open.min(first))..tail;
    }

    fn take_batch(&mut self, ops: &mut Vec<Op>) {
        let (mut bytes, mut passed, mut messages) = (0, 0u64, 0);
        let (mut large, large_max) =
            (0, if self.is_brisk { COMMIT_LARGE_BYTES_MAX } else { COMMIT_BYTES_MAX });
        while let Some(Slot { op, ends, .. }) = self.slots.pop_front() {
            passed += 1;
            let op_bytes = op.batch_bytes();
            bytes += op_bytes;
            large += if op_bytes > INLINE_BODY_BYTES_MAX { op_bytes } else { 0 };
            messages += usize::from(matches!(op, Op::Put(_)));
            if !matches!(op, Op::Nothing) {
                ops.push(op);
            }
            let full = messages >= COMMIT_MESSAGES_MAX
                || bytes >= COMMIT_BYTES_MAX
                || large >= large_max
                || passed >= COMMIT_SLOTS_MAX as u64;
            if ends && full && !self.unbroken.contains(&(self.base + passed)) {
                break;
            }
        }
        self.base += passed;
        // What is left was kept waiting by this batch already.
        self.urgent = !self.slots.is_empty();
    }

    /// Passes over what nobody waits for, as far as the committer has not taken it, and gives the wakers of those whose
    /// promises are kept by that.
    pub(super) fn keep_promises(&mut self, core: &Core, mut woken: impl FnMut(Waker)) {
        // What it writes is not to be overtaken.
        if self.committer == Committer::Writes {
            return;
        }
        while let Some(Slot { op: Op::Nothing, is_awaited: false, .. }) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
        // An awaited one at the front was urgent; with nothing left, nothing is.
        self.urgent &= !self.slots.is_empty();
        self.kept = self.kept.max(self.base);
        let passed = (self.kept - self.base) as usize;
        self.kept += self.slots.iter().skip(passed).take_while(|slot| !slot.is_awaited).count() as u64;
        core.durable.store(self.base, Ordering::Release);
        core.kept.store(self.kept, Ordering::Release);
        while self.wakers.front().is_some_and(|(place, _)| *place <= self.base) {
            self.wakers.pop_front().map(|(_, waker)| waker).into_iter().for_each(&mut woken);
        }
        while self.promised.front().is_some_and(|(place, _)| *place <= self.kept) {
            self.promised.pop_front().map(|(_, waker)| waker).into_iter().for_each(&mut woken);
        }
    }
}

#[cfg(test)]
mod tests;
