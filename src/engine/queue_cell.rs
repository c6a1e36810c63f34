//! One queue under its lock, and the operations done under it: enqueue, settle, requeue, get, consume.
//! Wake-ups happen after the unlock; the store's inbox is told before an entry becomes visible.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::broker::equivalence::QueueProperties;
use crate::broker::id::{QueueId, Seq};
use crate::broker::message::Message;
use crate::broker::name::Name;
use crate::broker::queue::{ConsumerId, Counts, Entry, Queue};
use crate::limits::PURGE_KEYS_MAX;
use crate::session::port::Share;
use crate::store::{Position, SharedBody, Store};

use super::outbox::ConsumerSink;

/// What an entry remembers of the store.
#[derive(Clone, Debug, Default)]
pub enum Stored {
    /// transient, or in a queue that is not durable: never on disk
    #[default]
    No,
    /// in the store, or on its way there
    Yes {
        /// where its put stands in the commit order; 0 for what was recovered
        put_at: Position,
        /// its body, when that is stored apart
        shared: Option<Arc<SharedBody>>,
    },
}

/// How a queue was declared, and its contents under a lock.
pub struct QueueCell {
    /// its number in the store's keys
    pub id: QueueId,
    /// its name
    pub name: Name,
    /// what it was declared to be
    pub properties: QueueProperties,
    /// the connection that has it for itself
    pub owner: Option<u64>,
    contents: Mutex<Contents>,
}

pub(super) type Contents = Queue<Stored, ConsumerSink>;

/// A shared queue; two are equal when they are the same one.
#[derive(Clone)]
pub struct QueueRef(Arc<QueueCell>);

impl QueueRef {
    pub(super) fn new(cell: QueueCell) -> QueueRef {
        QueueRef(Arc::new(cell))
    }
}

impl std::ops::Deref for QueueRef {
    type Target = QueueCell;

    fn deref(&self) -> &QueueCell {
        &self.0
    }
}

impl PartialEq for QueueRef {
    fn eq(&self, other: &QueueRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for QueueRef {}

impl Hash for QueueRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// A message on its way into queues.
pub(super) struct Incoming {
    pub message: Message,
    pub persistent: bool,
    pub priority: u8,
    /// set when its body is stored apart from its entries
    pub shared: Option<Arc<SharedBody>>,
    /// the last place in the commit order that its confirm waits for
    pub barrier: Position,
}

impl QueueCell {
    pub(super) fn new(
        id: QueueId,
        name: Name,
        properties: QueueProperties,
        owner: Option<u64>,
        contents: Contents,
    ) -> QueueCell {
        QueueCell { id, name, properties, owner, contents: Mutex::new(contents) }
    }

    /// Whether its definition and its persistent messages are in the store. An exclusive queue dies
    /// with its connection, so there is nothing to keep.
    pub fn is_stored(&self) -> bool {
        self.properties.durable && self.owner.is_none()
    }

    /// The present counts.
    pub fn counts(&self) -> Counts {
        self.lock().counts()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        // The queue's methods keep their invariants even where a caller panics between them.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the messages in order. Raises each one's barrier to its own record's place.
    pub(super) fn enqueue(&self, incoming: &mut [Incoming], store: &Store, now_ms: u64) {
        let mut touched = Vec::new();
        let mut contents = self.lock();
        if contents.is_deleted() {
            drop(contents);
            self.release_shared(incoming, store);
            return;
        }
        let stored = self.is_stored() && incoming.iter().any(|i| i.persistent);
        let mut appender = stored.then(|| store.appender());
        for item in incoming {
            let seq = contents.next_seq();
            let durable = match &mut appender {
                Some(appender) if item.persistent => {
                    let meta = crate::store::EntryMeta {
                        enqueued_ms: now_ms,
                        expires_ms: 0,
                        priority: item.priority,
                        delivery_count: 0,
                    };
                    let put_at = appender.put(self.id, seq, &item.message, item.shared.as_ref(), meta);
                    item.barrier = item.barrier.max(put_at);
                    Stored::Yes { put_at, shared: item.shared.clone() }
                }
                Some(_) | None => Stored::No,
            };
            let message = item.message.clone();
            contents.push(Entry { seq, redelivered: false, delivery_count: 0, message, durable });
        }
        drop(appender);
        contents.assign(&mut touched);
        drop(contents);
        wake(&touched);
    }

    /// The queue is gone: what was promised to the shared bodies will not come.
    fn release_shared(&self, incoming: &[Incoming], store: &Store) {
        if !self.is_stored() {
            return;
        }
        let mut appender = store.appender();
        for shared in incoming.iter().filter_map(|i| i.shared.as_ref()) {
            appender.release(shared);
        }
    }

    /// Entries are acknowledged or dropped for good.
    pub(super) fn settle(
        &self,
        consumer: Option<ConsumerId>,
        entries: &mut Vec<Entry<Stored>>,
        store: &Store,
    ) {
        self.delete_stored(&*entries, store);
        self.credit(consumer, entries.len());
        entries.clear();
    }

    /// Entries come back to their old places, or nowhere if the queue is gone.
    pub(super) fn requeue(&self, shares: &[Share], mut entries: Vec<Entry<Stored>>, store: &Store) {
        let mut touched = Vec::new();
        let mut contents = self.lock();
        shares.iter().for_each(|share| contents.settle(share.consumer, share.count));
        if !contents.is_deleted() {
            contents.requeue(std::mem::take(&mut entries));
            contents.assign(&mut touched);
        }
        drop(contents);
        self.delete_stored(&entries, store);
        wake(&touched);
    }

    fn credit(&self, consumer: Option<ConsumerId>, count: usize) {
        let mut touched = Vec::new();
        let mut contents = self.lock();
        contents.settle(consumer, count);
        contents.assign(&mut touched);
        drop(contents);
        wake(&touched);
    }

    pub(super) fn resume(&self, consumer: ConsumerId) {
        let mut touched = Vec::new();
        let mut contents = self.lock();
        contents.resume(consumer);
        contents.assign(&mut touched);
        drop(contents);
        wake(&touched);
    }

    /// Strikes entries from the store, or from the inbox if they have not got further.
    pub(super) fn delete_stored<'e>(
        &self,
        entries: impl IntoIterator<Item = &'e Entry<Stored>>,
        store: &Store,
    ) {
        let mut stored = entries.into_iter().filter_map(|entry| match &entry.durable {
            Stored::Yes { put_at, shared } => Some((entry.seq, shared.as_ref(), *put_at)),
            Stored::No => None,
        });
        let mut next = stored.next();
        // What one appender appends is one batch, so a million of them are several.
        while let Some(first) = next {
            let mut appender = store.appender();
            let mut furthest = Seq(0);
            let step = std::iter::once(first).chain(stored.by_ref().take(PURGE_KEYS_MAX - 1));
            for (seq, shared, put_at) in step {
                appender.delete(self.id, seq, shared, put_at);
                furthest = seq.max(furthest);
            }
            // For the redelivered flags after a restart: what was taken may have been delivered.
            appender.delivered_up_to(self.id, furthest);
            drop(appender);
            next = stored.next();
        }
    }
}

/// Wakes the connections that got something; after the queue's unlock.
pub(super) fn wake(touched: &[ConsumerSink]) {
    touched.iter().for_each(|sink| sink.outbox.wake_task());
}
