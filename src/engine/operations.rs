//! What is done to one queue under its lock, and what follows from it: expiry, delivery, dropping what
//! does not fit, dead-lettering. The store's inbox is told before an entry becomes visible; wake-ups and
//! dead letters come after the unlock, so that two queues are never locked at once.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::broker::arguments::Overflow;
use crate::broker::delay::delay_of;
use crate::broker::queue::{ConsumerId, Dead, Death, Entry};
use crate::limits::INLINE_BODY_BYTES_MAX;
use crate::session::port::Share;
use crate::store::{Appender, EntryMeta, Position};

use super::burial::Pending;
use super::engine_core::{Engine, now_ms};
use super::letters::keep;
use super::outbox::ConsumerSink;
use super::queue_cell::{Contents, Incoming, QueueRef, Stored, wake};

/// Where one message goes.
pub(super) type Targets = SmallVec<[QueueRef; 4]>;

/// What an operation under a queue's lock leaves to be done after the unlock.
#[derive(Default)]
pub(super) struct Effects {
    /// to be dead-lettered, or dropped where nobody takes them
    pub dead: Dead<Stored>,
    /// consumers that got something, to be woken
    pub touched: Vec<ConsumerSink>,
}

/// How a queue gets a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// others get it too
    Copy,
    /// it is the last one
    Message,
}

/// What was promised to a body that is stored apart will not come.
pub(super) fn release_promise(queue: &QueueRef, item: &Incoming, appender: Option<&mut Appender<'_>>) {
    if let (Some(appender), Some(shared), true) = (appender, &item.shared, queue.shares(item)) {
        appender.release(shared);
    }
}

impl Engine {
    /// One operation under the queue's lock, then whatever it makes due.
    pub(super) fn with_queue<T>(
        &self,
        queue: &QueueRef,
        operation: impl FnOnce(&mut Contents, &mut Effects) -> T,
    ) -> T {
        let (done, has_dead) = self.operate(queue, now_ms(), operation);
        if has_dead {
            self.bury(queue);
        }
        done
    }

    /// As [`Engine::with_queue`], but leaves the dead to the caller.
    pub(super) fn operate<T>(
        &self,
        queue: &QueueRef,
        now_ms: u64,
        operation: impl FnOnce(&mut Contents, &mut Effects) -> T,
    ) -> (T, bool) {
        let mut effects = Effects::default();
        let mut contents = queue.lock();
        let done = operation(&mut contents, &mut effects);
        contents.assign(now_ms, &mut effects.dead, &mut effects.touched);
        contents.expire(now_ms, &mut effects.dead);
        contents.trim(&mut effects.dead);
        let window = self.pager.window();
        let spills =
            contents.page_out(window, self.pager.window_in_all(), |entry| entry.durable.rest(&self.store));
        let page = contents.next_page(window);
        let next_deadline_ms = contents.next_deadline_ms();
        let has_dead = !effects.dead.is_empty();
        if has_dead {
            match contents.letters() {
                None => queue.graves.add(effects.dead),
                Some(letters) => keep(letters, effects.dead, now_ms),
            }
        }
        drop(contents);
        wake(&effects.touched);
        if let Some(page) = page {
            self.pager.read(queue, page);
        }
        if spills {
            self.pager.spill(queue);
        }
        if let Some(at_ms) = next_deadline_ms {
            self.timers.arm(queue, at_ms);
        }
        (done, has_dead)
    }

    /// Adds messages to each target, in order. Raises each one's barrier to the last of its records.
    pub(super) fn enqueue(&self, targets: &Targets, incoming: &mut [Incoming]) {
        let mut pending = Pending::new();
        self.enqueue_into(targets, incoming, now_ms(), &mut pending);
        self.bury_all(pending);
    }

    /// As [`Engine::enqueue`], but leaves the dead to the caller.
    pub(super) fn enqueue_into(
        &self,
        targets: &Targets,
        incoming: &mut [Incoming],
        now_ms: u64,
        pending: &mut Pending,
    ) {
        for item in incoming.iter_mut() {
            self.prepare(targets, item);
        }
        for (at, queue) in targets.iter().enumerate() {
            // The last one takes the message itself: who delivers it may be at it already, on another processor.
            let takes = if at + 1 == targets.len() { Takes::Message } else { Takes::Copy };
            let add = |contents: &mut Contents, effects: &mut Effects| {
                self.add(queue, contents, effects, incoming, takes, now_ms);
            };
            let ((), has_dead) = self.operate(queue, now_ms, add);
            if has_dead {
                pending.push_back(queue.clone());
            }
        }
    }

    /// What must be known of a message before the locks. A body that is large, or goes to several queues, is
    /// stored once, apart from its entries.
    pub(super) fn prepare(&self, targets: &Targets, item: &mut Incoming) {
        let Some(message) = &item.message else { return };
        let mut stored = 0;
        for queue in targets {
            stored += u32::from(queue.shares(item));
            if queue.delays_for.is_some() {
                item.delay_ms = delay_of(message).unwrap_or(0);
            }
        }
        if stored > 1 || (stored == 1 && message.size_bytes() > INLINE_BODY_BYTES_MAX) {
            item.shared = Some(self.store.shared_body(message, stored));
        }
    }

    /// Under the queue's lock: gives each message a place, tells the store, makes it visible.
    pub(super) fn add(
        &self,
        queue: &QueueRef,
        contents: &mut Contents,
        effects: &mut Effects,
        incoming: &mut [Incoming],
        takes: Takes,
        now_ms: u64,
    ) {
        let stores = incoming.iter().any(|item| queue.keeps(item));
        let mut appender = stores.then(|| self.store.appender());
        let has_consumers = contents.counts().consumers > 0;
        appender.iter_mut().for_each(|appender| queue.leave_time(appender, has_consumers, &self.store));
        for item in incoming {
            let Some(message) = &item.message else { continue };
            let body_bytes = message.body().len();
            if contents.is_refusing(body_bytes) {
                // Consumers that wait make room: delivery comes before the limit, as in RabbitMQ.
                contents.assign(now_ms, &mut effects.dead, &mut effects.touched);
            }
            if contents.is_deleted() || contents.is_refusing(body_bytes) {
                release_promise(queue, item, appender.as_mut());
                item.refused |= !contents.is_deleted();
                if !contents.is_deleted() && contents.rules().overflow == Overflow::RejectPublishDlx {
                    let entry = Entry::new(contents.next_seq(), message.clone(), Stored::No);
                    effects.dead.push((Entry { priority: item.priority, ..entry }, Death::MaxLen));
                }
                continue;
            }
            if contents.is_duplicate(message) {
                release_promise(queue, item, appender.as_mut());
                // Its confirm promises the other one, which may still be on its way to the disk.
                let tail = appender.as_ref().map_or(Position(0), Appender::tail);
                item.barrier = item.barrier.max(tail);
                continue;
            }
            let seq = contents.next_seq();
            contents.remember(message, seq);
            let expires_ms = queue.deadline_ms(contents, now_ms, item);
            let durable = match &mut appender {
                Some(appender) if queue.keeps(item) => {
                    let meta = EntryMeta {
                        enqueued_ms: now_ms,
                        expires_ms,
                        priority: item.priority,
                        delivery_count: 0,
                    };
                    let shared = queue.body_of(item, message, &self.store);
                    let put_at = appender.put(queue.id, seq, message, shared.as_ref(), meta);
                    item.barrier = item.barrier.max(put_at);
                    Stored::Yes { put_at, shared }
                }
                Some(_) | None => Stored::No,
            };
            let taken = if takes == Takes::Message { item.message.take() } else { item.message.clone() };
            let Some(message) = taken else { continue };
            let entry = Entry::new(seq, message, durable);
            let entry = Entry { priority: item.priority, expires_ms, ..entry };
            match queue.delays_for {
                None => contents.push(entry),
                Some(_) => contents.delay(entry),
            }
        }
        appender.filter(Appender::is_patient).into_iter().for_each(|last| queue.pace.waits(last.tail()));
    }

    /// Entries are acknowledged: gone for good.
    pub(super) fn settle(
        &self,
        queue: &QueueRef,
        consumer: Option<ConsumerId>,
        entries: &mut Vec<Entry<Stored>>,
    ) {
        queue.acknowledge_stored(entries, &self.store);
        self.with_queue(queue, |contents, _| {
            contents.settle(consumer, entries.len());
            contents.forget(&*entries);
        });
        entries.clear();
    }

    /// Entries are rejected for good: dead letters, where the queue says so. A queue that is gone says
    /// nothing any more: what was in it went with it.
    pub(super) fn reject(&self, queue: &QueueRef, consumer: Option<ConsumerId>, entries: Vec<Entry<Stored>>) {
        let orphans = self.with_queue(queue, |contents, effects| {
            contents.settle(consumer, entries.len());
            if contents.is_deleted() {
                return entries;
            }
            contents.forget(&entries);
            effects.dead.extend(entries.into_iter().map(|entry| (entry, Death::Rejected)));
            Vec::new()
        });
        queue.delete_stored(&orphans, &self.store);
    }

    /// An entry whose place was given out earlier becomes visible, unless the queue has gone since.
    pub(super) fn take_place(&self, queue: &QueueRef, entry: Entry<Stored>) {
        let orphan = self.with_queue(queue, |contents, _| {
            if contents.is_deleted() {
                return Some(entry);
            }
            match queue.delays_for {
                None => contents.push_in_place(entry),
                Some(_) => contents.delay(entry),
            }
            None
        });
        // Its put may have come after the store dropped the queue, which made the queue known again.
        if let Some(stored) = orphan.and_then(Entry::into_stored) {
            self.store.appender().drop_queue(queue.id, vec![stored]);
        }
    }

    /// Entries come back to their old places, or nowhere if the queue is gone.
    pub(super) fn requeue(&self, queue: &QueueRef, shares: &[Share], entries: Vec<Entry<Stored>>) {
        queue.count_stored(&entries, &self.store);
        let orphans = self.with_queue(queue, |contents, effects| {
            shares.iter().for_each(|share| contents.settle(share.consumer, share.count));
            if contents.is_deleted() {
                return entries;
            }
            contents.requeue(entries, &mut effects.dead);
            Vec::new()
        });
        queue.delete_stored(&orphans, &self.store);
    }

    /// The clock has come to this queue: heads expire, and the queue itself if nobody uses it.
    pub(super) fn run_due(self: &Arc<Self>, queue: &QueueRef) {
        if let Some(exchange) = &queue.delays_for {
            return self.release_due(queue, exchange);
        }
        if self.with_queue(queue, |contents, _| contents.retry()) {
            // What somebody waits for may have been purged.
            self.pager.wake(queue.id);
        }
        self.bury(queue);
        self.retry_letters(queue);
        if let Some(at_ms) = queue.expires_at_ms() {
            match at_ms <= now_ms() {
                true => self.delete_unused(queue),
                false => self.timers.arm(queue, at_ms),
            }
        }
    }
}
