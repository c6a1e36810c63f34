//! The door into the store: what appends to the commit order. What becomes of it there is commit.rs's.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::body::SharedBody;
use super::commit::{Committer, Core, Inbox, Position, Slot};
use super::key_admin::KeyRequest;
use super::layout::RowKind;
use super::op::{Op, Put};
use super::record::{DeliveryCount, EntryMeta};
use crate::broker::id::{QueueId, RowId, Seq};
use crate::broker::letters::Died;
use crate::broker::message::Message;

/// Appends to the commit order while it holds the inbox. It is a leaf lock: take no other lock, wait for
/// nothing and keep it short. What it appended goes into one batch; dropping it wakes the committer.
pub struct Appender<'a> {
    // Dropped in this order: the lock is released before anybody is woken.
    inbox: MutexGuard<'a, Inbox>,
    core: &'a Core,
    /// How long its puts may wait for their acknowledgements.
    patience: Option<Duration>,
    /// The clock, once it was asked.
    now: Option<Instant>,
    /// When what it has put is due.
    due: Option<Instant>,
    /// Something was struck out, or appended that nobody waits for.
    may_keep: bool,
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
        if self.may_keep {
            inbox.keep_promises(self.core, |waker| self.after.wakers.push(waker));
        }
        self.after.notify = !inbox.slots.is_empty()
            && match inbox.committer {
                Committer::Writes | Committer::Comes => false,
                Committer::Idle => true,
                Committer::Dozes(until) => inbox.must_commit_now() || self.due.is_some_and(|due| due < until),
            };
    }
}

impl<'a> Appender<'a> {
    pub(super) fn new(core: &'a Core, inbox: MutexGuard<'a, Inbox>) -> Appender<'a> {
        let after = AfterUnlock { core, notify: false, wakers: SmallVec::new() };
        Appender { inbox, core, patience: None, now: None, due: None, may_keep: false, after }
    }

    /// `is_awaited`: promises wait for it, and with them a commit that is not to linger.
    fn push(&mut self, op: Op, is_awaited: bool) -> Position {
        if self.inbox.closed {
            return Position::NEVER;
        }
        self.core.charge(op.charge());
        self.inbox.urgent |= is_awaited;
        self.may_keep |= !is_awaited;
        let may_be_struck = matches!(op, Op::Put(_));
        self.inbox.slots.push_back(Slot { op, ends: false, is_awaited });
        let tail = self.tail();
        if !is_awaited {
            self.inbox.unawaited = tail.0;
        } else if !may_be_struck {
            self.inbox.walled = tail.0;
        }
        tail
    }

    /// What is put from now on may wait for so long for its acknowledgement, and is not written if that comes first.
    pub fn may_wait(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    /// Whether what it puts is likely to be acknowledged soon, though a commit is not to wait for that: it had better be
    /// a small one.
    pub fn expect_acknowledgements(&mut self, is_likely: bool) {
        self.inbox.is_brisk = is_likely;
    }

    /// Whether what it puts may wait.
    pub fn is_patient(&self) -> bool {
        self.patience.is_some()
    }

    /// How long ago something was put at that place; `None` when it was long ago.
    pub fn age(&mut self, put_at: Position) -> Option<Duration> {
        let now = self.now();
        self.inbox.dues.age(put_at.0, now)
    }

    /// How long what is to be committed waits for that, of late.
    pub fn commit_delay(&mut self) -> Duration {
        let now = self.now();
        self.inbox.dues.commit_delay(now)
    }

    fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    /// What is promised from now on waits for all that was appended before, acknowledgements too. True when there are
    /// any that are still to be taken by the committer.
    pub fn await_all(&mut self) -> bool {
        let has_any = self.inbox.unawaited > self.inbox.base;
        // What is awaited and cannot be struck out holds up whatever comes after it.
        if has_any && self.inbox.walled < self.inbox.unawaited {
            self.wall_off();
        }
        has_any
    }

    /// As [`Appender::await_all`], for a promise that nothing is appended for: its place, at which what is being written
    /// is waited for too.
    pub fn place_of_all(&mut self) -> Position {
        self.await_all();
        let tail = self.tail();
        // Only what nobody awaits can be kept before it is durable.
        if self.core.durable() < tail && self.inbox.kept >= tail.0 && self.core.failure().is_none() {
            self.wall_off();
        }
        self.tail()
    }

    fn wall_off(&mut self) {
        // It is passed over by the committer, so it is no part of the backlog.
        self.inbox.slots.push_back(Slot { op: Op::Nothing, ends: false, is_awaited: true });
        self.inbox.walled = self.tail().0;
    }

    /// What waits now, and whose promises are not kept up to `place`, is not to wait any longer than it takes.
    pub fn hurry(&mut self, place: Position) {
        self.inbox.urgent |= !self.inbox.slots.is_empty() && self.inbox.kept < place.0;
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
        let urgent = self.inbox.urgent;
        let place = self.push(Op::Put(Put { queue, seq, message, shared, meta }), true);
        if place != Position::NEVER {
            let (now, kept) = (self.now(), self.inbox.kept);
            self.due = Some(self.inbox.dues.add(place.0, now, self.patience, kept));
            if self.patience.is_some() {
                self.inbox.urgent = urgent;
            }
        }
        place
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
        match self.strike_out(queue, seq, put_at) {
            Some(_) => self.inbox.keep_together(put_at.0),
            None => {
                self.push(Op::Delete { queue, seq, bytes: bytes as u32, shared: shared.cloned() }, false);
            }
        }
    }

    /// As [`Appender::delete`], for an entry that its consumer has acknowledged: what was promised of it is kept. One
    /// that goes for another reason gives way to something (a newer message, the end of its queue), and its promise
    /// waits for the batch that holds that.
    pub fn acknowledge(
        &mut self,
        queue: QueueId,
        seq: Seq,
        bytes: usize,
        shared: Option<&Arc<SharedBody>>,
        put_at: Position,
    ) {
        match self.strike_out(queue, seq, put_at) {
            Some(slot) => {
                slot.is_awaited = false;
                self.may_keep = true;
            }
            None => {
                self.push(Op::Delete { queue, seq, bytes: bytes as u32, shared: shared.cloned() }, false);
            }
        }
    }

    fn strike_out(&mut self, queue: QueueId, seq: Seq, put_at: Position) -> Option<&mut Slot> {
        let index = put_at.0.checked_sub(self.inbox.base + 1).and_then(|index| usize::try_from(index).ok());
        let slot = index.and_then(|index| self.inbox.slots.get_mut(index))?;
        let mut discharged = slot.op.charge();
        let left = match &mut slot.op {
            Op::Put(put) if (put.queue, put.seq) == (queue, seq) => match put.shared.take() {
                Some(body) if body.promised() == 1 => {
                    // Its only entry: it will never be written.
                    body.drop_ready();
                    discharged += body.take_charge();
                    Op::Nothing
                }
                Some(body) => Op::Settle(body),
                None => Op::Nothing,
            },
            _ => return None,
        };
        // Nothing is passed over by the committer, so its whole charge ends here.
        discharged -= if matches!(left, Op::Nothing) { 0 } else { left.charge() };
        slot.op = left;
        self.core.discharge(discharged);
        self.core.counters.elided.fetch_add(1, Ordering::Relaxed);
        Some(slot)
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
    /// in the store only is purged so. No place between them may be put later: a start would take what is there for the
    /// purge's. Durable, at the place returned, is that they will not come back; they are cleared away in the background.
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
        let (mut bodies, mut first) = (Vec::new(), None);
        for (seq, shared, put_at) in entries {
            match self.strike_out(queue, seq, put_at) {
                Some(_) => first = Some(first.map_or(put_at, |first: Position| first.min(put_at))),
                None => bodies.extend(shared.map(|shared| (seq, shared))),
            }
        }
        self.inbox.delivered.remove(&queue);
        let place = self.push(Op::DropQueue { queue, bodies }, true);
        first.into_iter().for_each(|first| self.inbox.keep_together(first.0));
        place
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

    /// Gives what was deleted without a tombstone one.
    pub(super) fn sweep(&mut self) -> Position {
        self.push(Op::Sweep, true)
    }

    /// The place of the last change that the store has accepted.
    pub fn tail(&self) -> Position {
        Position(self.inbox.base + self.inbox.slots.len() as u64)
    }

    /// Wakes `waker` once, when what was promised at that place is kept, or when the store has failed.
    pub fn wake_when_kept(&mut self, place: Position, waker: Waker) {
        if self.core.failure().is_some() || self.core.kept() >= place {
            self.after.wakers.push(waker);
        } else {
            let promised = &mut self.inbox.promised;
            // Nearly always at the end.
            let later = promised.iter().rev().take_while(|(other, _)| *other > place.0).count();
            promised.insert(promised.len() - later, (place.0, waker));
        }
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
