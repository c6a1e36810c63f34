//! What waits for one connection: entries that queues assigned to its consumers, and the reasons to
//! wake its task. A leaf lock, held for pointer moves only; bounded, so that a slow client leaves
//! messages in their queues.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use atomic_waker::AtomicWaker;

use crate::broker::credit::ChannelCredit;
use crate::broker::message::Message;
use crate::broker::queue::{Entry, Sink};
use crate::limits::{OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX, REPLIES_BYTES_MAX};
use crate::session::port::{ReplyTo, Waiting};

use super::queue_cell::Stored;

/// One connection's outbox.
#[derive(Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
    waker: AtomicWaker,
    /// something is in `inner`; spares the lock when there is nothing
    filled: AtomicBool,
    /// a queue found it full and waits for a resume
    starved: AtomicBool,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Waiting<Stored>>,
    bytes: usize,
    /// of replies, which no queue keeps
    reply_bytes: usize,
}

impl Inner {
    /// Takes out all that is for consumers of those keys, which are in ascending order.
    fn take_out(&mut self, keys: &[u32], mut entry_of: impl FnMut(u32, Entry<Stored>)) {
        for item in std::mem::take(&mut self.waiting) {
            let is_wanted = match &item {
                Waiting::Delivery(key, _) | Waiting::Cancelled(key) => keys.binary_search(key).is_ok(),
                Waiting::Reply(..) => false,
            };
            match item {
                Waiting::Delivery(key, entry) if is_wanted => {
                    self.bytes = self.bytes.saturating_sub(entry.message.size_bytes());
                    entry_of(key, entry);
                }
                Waiting::Cancelled(_) if is_wanted => {}
                other => self.waiting.push_back(other),
            }
        }
    }
}

impl Outbox {
    /// Has the connection's task run soon.
    pub fn wake_task(&self) {
        self.waker.wake();
    }

    /// The task to wake; to be called before looking at what there is to do.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Moves everything into `into`, which is empty. True when a queue waits for room since.
    pub fn drain_into(&self, into: &mut VecDeque<Waiting<Stored>>) -> bool {
        if self.filled.swap(false, Ordering::AcqRel) {
            let mut inner = self.lock();
            std::mem::swap(&mut inner.waiting, into);
            (inner.bytes, inner.reply_bytes) = (0, 0);
        }
        self.starved.swap(false, Ordering::AcqRel)
    }

    #[cfg(test)]
    pub(super) fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    /// Takes a reply and wakes the task; false when too many wait that the client does not read.
    pub(super) fn reply(&self, to: ReplyTo, message: Message) -> bool {
        let mut inner = self.lock();
        if inner.reply_bytes >= REPLIES_BYTES_MAX {
            return false;
        }
        inner.reply_bytes += message.size_bytes() + size_of::<Waiting<Stored>>();
        inner.waiting.push_back(Waiting::Reply(to, message));
        drop(inner);
        self.filled.store(true, Ordering::Release);
        self.waker.wake();
        true
    }

    /// Takes out what waits for one consumer, and appends its entries to `removed`.
    pub(super) fn remove(&self, key: u32, removed: &mut Vec<Entry<Stored>>) {
        self.lock().take_out(&[key], |_, entry| removed.push(entry));
    }

    /// Consumers (keys in ascending order) have lost their queue: gives back what waited for them, and
    /// has their client told.
    pub(super) fn cancel(&self, keys: &[u32]) -> Vec<(u32, Entry<Stored>)> {
        let mut removed = Vec::new();
        let mut inner = self.lock();
        inner.take_out(keys, |key, entry| removed.push((key, entry)));
        inner.waiting.extend(keys.iter().map(|key| Waiting::Cancelled(*key)));
        drop(inner);
        self.filled.store(true, Ordering::Release);
        removed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here can panic half-way, so a poisoned lock still guards a whole state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Outbox {
    /// The committer's wake-up: something that the connection waits for is durable.
    fn wake(self: Arc<Self>) {
        self.waker.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.waker.wake();
    }
}

/// A consumer as its queue sees it: a key in one connection's outbox.
#[derive(Clone)]
pub struct ConsumerSink {
    pub(super) outbox: Arc<Outbox>,
    pub(super) key: u32,
    /// the channel's common limit; consumers without acknowledgements are outside of it
    pub(super) credit: Option<Arc<ChannelCredit>>,
}

impl ConsumerSink {
    /// Entries that it took will not be delivered: they take no room in the channel's limit.
    pub(super) fn give_back(&self, count: usize) {
        self.credit.iter().for_each(|credit| credit.give_back(count as u32));
    }
}

impl Sink<Stored> for ConsumerSink {
    fn take(&self, max: usize, mut next: impl FnMut() -> Option<Entry<Stored>>) -> usize {
        let mut inner = self.outbox.lock();
        let mut taken = 0;
        while taken < max {
            if inner.bytes >= OUTBOX_BYTES_MAX || inner.waiting.len() >= OUTBOX_MESSAGES_MAX {
                self.outbox.starved.store(true, Ordering::Release);
                break;
            }
            if self.credit.as_ref().is_some_and(|credit| !credit.take()) {
                break;
            }
            let Some(entry) = next() else {
                self.give_back(1);
                break;
            };
            inner.bytes += entry.message.size_bytes();
            inner.waiting.push_back(Waiting::Delivery(self.key, entry));
            taken += 1;
        }
        drop(inner);
        if taken > 0 {
            self.outbox.filled.store(true, Ordering::Release);
        }
        taken
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.outbox, &other.outbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::id::Seq;
    use crate::broker::message::Message;

    fn entry(seq: u64, size: usize) -> Entry<Stored> {
        let message = Message::new(b"", b"", &[], &[&vec![0; size]]);
        Entry::new(Seq(seq), message, Stored::default())
    }

    fn fill(sink: &ConsumerSink, count: usize, size: usize) -> usize {
        let mut seq = 0;
        sink.take(count, || {
            seq += 1;
            Some(entry(seq, size))
        })
    }

    #[test]
    fn a_full_outbox_takes_no_more_until_it_was_drained() {
        let outbox = Arc::new(Outbox::default());
        let sink = ConsumerSink { outbox: outbox.clone(), key: 0, credit: None };
        let taken = fill(&sink, 100, OUTBOX_BYTES_MAX / 10);
        assert!((10..=11).contains(&taken), "{taken}");
        assert_eq!(fill(&sink, 1, 1), 0);
        let mut waiting = VecDeque::new();
        assert!(outbox.drain_into(&mut waiting), "the queue waits for room");
        assert_eq!(waiting.len(), taken);
        assert_eq!(fill(&sink, 1, 1), 1);
    }

    #[test]
    fn removing_a_consumer_leaves_the_others_entries() {
        let outbox = Arc::new(Outbox::default());
        let [a, b] = [0, 1].map(|key| ConsumerSink { outbox: outbox.clone(), key, credit: None });
        assert_eq!((fill(&a, 2, 8), fill(&b, 3, 8)), (2, 3));
        let mut removed = Vec::new();
        outbox.remove(0, &mut removed);
        assert_eq!(removed.len(), 2);
        assert_eq!(outbox.cancel(&[1]).len(), 3);
        let mut waiting = VecDeque::new();
        outbox.drain_into(&mut waiting);
        assert!(matches!(waiting.pop_front(), Some(Waiting::Cancelled(1))) && waiting.is_empty());
    }

    #[test]
    fn the_channels_common_limit_holds_across_consumers() {
        let outbox = Arc::new(Outbox::default());
        let credit = Arc::new(ChannelCredit::default());
        credit.set_limit(3);
        let sinks =
            [0, 1].map(|key| ConsumerSink { outbox: outbox.clone(), key, credit: Some(credit.clone()) });
        assert_eq!((fill(&sinks[0], 2, 8), fill(&sinks[1], 5, 8)), (2, 1));
    }
}
