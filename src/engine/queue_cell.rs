//! One queue behind its lock: how it was declared, what it holds, what its entries remember of the
//! store. The operations done under the lock are in `operations`.

use std::hash::{Hash, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::amqp::field_table::Table;
use crate::broker::arguments::QueueArguments;
use crate::broker::equivalence::QueueProperties;
use crate::broker::id::{QueueId, Seq};
use crate::broker::message::Message;
use crate::broker::name::Name;
use crate::broker::queue::{Counts, Entry, Queue};
use crate::broker::queue_type::QueueType;
use crate::limits::{INLINE_BODY_BYTES_MAX, PURGE_KEYS_MAX};
use crate::store::{Appender, Position, SharedBody, Store};

use super::burial::Graves;
use super::engine_core::now_ms;
use super::outbox::ConsumerSink;
use super::pace::Pace;

/// What an entry remembers of the store.
#[derive(Clone, Debug, Default)]
pub enum Stored {
    /// transient, or in a queue that is not durable: never in the store
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

/// An entry as [`crate::store::Appender::drop_queue`] wants it.
pub(super) type StoredEntry = (Seq, Option<Arc<SharedBody>>, Position);

impl Entry<Stored> {
    /// What the store is to forget with it; `None` when it never was there.
    pub(super) fn into_stored(self) -> Option<StoredEntry> {
        match self.durable {
            Stored::Yes { put_at, shared } => Some((self.seq, shared, put_at)),
            Stored::No => None,
        }
    }
}

impl Stored {
    /// Its put is not to be struck out before it is written: what takes its place comes later in the commit
    /// order, and a crash in between must leave one of the two.
    pub(super) fn keep_put(&mut self) {
        if let Stored::Yes { put_at, .. } = self {
            *put_at = Position(0);
        }
    }
}

/// How a queue was declared, and its contents under a lock.
pub struct QueueCell {
    /// its number in the store's keys
    pub id: QueueId,
    /// its name
    pub name: Name,
    /// what it was declared to be
    pub properties: QueueProperties,
    /// its arguments, typed
    pub arguments: QueueArguments,
    /// the connection that has it for itself
    pub owner: Option<u64>,
    /// the exchange whose delayed messages wait in it; such a queue has no name and is in no topology
    pub delays_for: Option<Name>,
    /// when it was last declared, asked for a message, or left by its last consumer (`x-expires`)
    pub(super) used_ms: AtomicU64,
    /// when the engine's clock looks at it next; 0 is not armed, `u64::MAX` is gone for good
    pub(super) due_ms: AtomicU64,
    /// what it has given up, until somebody has dead-lettered it
    pub(super) graves: Graves,
    /// how soon its consumers acknowledge
    pub(super) pace: Pace,
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
    /// `None` once the last of its queues has it
    pub message: Option<Message>,
    pub persistent: bool,
    pub priority: u8,
    /// the property `expiration`
    pub ttl_ms: Option<u64>,
    /// how long a delayed exchange keeps it; known when one is among its targets
    pub delay_ms: u64,
    /// set when its body is stored apart from its entries
    pub shared: Option<Arc<SharedBody>>,
    /// the last place in the commit order that its confirm waits for
    pub barrier: Position,
    /// a queue was full and takes no more (`x-overflow` reject-publish)
    pub refused: bool,
}

impl QueueCell {
    pub(super) fn new(
        id: QueueId,
        name: Name,
        properties: QueueProperties,
        owner: Option<u64>,
        contents: Contents,
    ) -> QueueCell {
        // What RabbitMQ accepts is accepted when it is declared; what a store gives back was.
        let arguments = QueueArguments::parse(Table::from_raw(&properties.arguments)).unwrap_or_default();
        QueueCell {
            id,
            name,
            properties,
            arguments,
            owner,
            delays_for: None,
            used_ms: AtomicU64::new(now_ms()),
            due_ms: AtomicU64::new(0),
            graves: Graves::default(),
            pace: Pace::default(),
            contents: Mutex::new(contents),
        }
    }

    /// The queue where messages wait that `exchange` delays. Its name is that of no queue in an `x-death`
    /// header, so it is never part of a circle.
    pub(super) fn delaying(id: QueueId, exchange: Name, durable: bool, contents: Contents) -> QueueCell {
        let properties = QueueProperties { durable, auto_delete: false, arguments: Arc::from([]) };
        let cell = QueueCell::new(id, Name::from(&b""[..]), properties, None, contents);
        QueueCell { delays_for: Some(exchange), ..cell }
    }

    /// When a message that comes now leaves by itself: expires, or is due; 0 is never.
    pub(super) fn deadline_ms(&self, contents: &Contents, now_ms: u64, message: &Incoming) -> u64 {
        match self.delays_for {
            None => contents.rules().expires_ms(now_ms, message.ttl_ms),
            Some(_) => now_ms.saturating_add(message.delay_ms),
        }
    }

    /// Whether its definition and its persistent messages are in the store. An exclusive queue dies
    /// with its connection, so there is nothing to keep.
    pub fn is_stored(&self) -> bool {
        self.properties.durable && self.owner.is_none()
    }

    /// Whether that message is to be in the store. A quorum queue keeps every message, whatever its
    /// delivery mode says (RabbitMQ, quorum-queues.md).
    pub(super) fn keeps(&self, message: &Incoming) -> bool {
        self.is_stored() && (message.persistent || self.arguments.queue_type == QueueType::Quorum)
    }

    /// Whether what it stores is sealed under a key of its own.
    pub(super) fn has_own_key(&self) -> bool {
        self.arguments.shreds && self.is_stored()
    }

    /// Whether its entry is one of those that share the message's body; a queue with a key of its own shares none.
    pub(super) fn shares(&self, message: &Incoming) -> bool {
        self.keeps(message) && !self.arguments.shreds
    }

    /// The body that its entry of that message has apart, if any.
    pub(super) fn body_of(
        &self,
        item: &Incoming,
        message: &Message,
        store: &Store,
    ) -> Option<Arc<SharedBody>> {
        if !self.arguments.shreds {
            return item.shared.clone();
        }
        (message.size_bytes() > INLINE_BODY_BYTES_MAX).then(|| store.own_body(message))
    }

    /// The present counts.
    pub fn counts(&self) -> Counts {
        self.lock().counts()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        // The queue's methods keep their invariants even where a caller panics between them.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the store how often entries came back; before anybody can take them again.
    pub(super) fn count_stored(&self, entries: &[Entry<Stored>], store: &Store) {
        if !self.arguments.queue_type.counts_deliveries() {
            return;
        }
        let is_counted =
            |entry: &&Entry<Stored>| entry.delivery_count > 0 && matches!(entry.durable, Stored::Yes { .. });
        let mut counted = entries.iter().filter(is_counted).peekable();
        // What one appender appends is one batch, so a million of them are several.
        while counted.peek().is_some() {
            let mut appender = store.appender();
            for entry in counted.by_ref().take(PURGE_KEYS_MAX) {
                appender.count_deliveries(self.id, entry.seq, entry.delivery_count);
            }
        }
    }

    /// Tells the store what it may expect of what is put next: its consumers may be so quick that a commit is not worth
    /// while.
    pub(super) fn leave_time(&self, appender: &mut Appender<'_>, has_consumers: bool, store: &Store) {
        appender.expect_acknowledgements(has_consumers && self.pace.is_brisk());
        if has_consumers {
            self.pace.written(store.durable());
            let patience = self.pace.patience(appender.commit_delay());
            patience.into_iter().for_each(|patience| appender.may_wait(patience));
        }
    }

    /// Strikes entries from the store, or from the inbox if they have not got further.
    pub(super) fn delete_stored<'e>(
        &self,
        entries: impl IntoIterator<Item = &'e Entry<Stored>>,
        store: &Store,
    ) {
        self.strike(entries, store, false);
    }

    /// The same for entries that a consumer has acknowledged: their promises are kept by that, and it is noted how soon
    /// it came.
    pub(super) fn acknowledge_stored(&self, entries: &[Entry<Stored>], store: &Store) {
        self.strike(entries, store, true);
    }

    fn strike<'e>(
        &self,
        entries: impl IntoIterator<Item = &'e Entry<Stored>>,
        store: &Store,
        is_acknowledged: bool,
    ) {
        let mut stored = entries.into_iter().filter_map(|entry| match &entry.durable {
            Stored::Yes { put_at, shared } => {
                Some((entry.seq, entry.message.size_bytes(), shared.as_ref(), *put_at))
            }
            Stored::No => None,
        });
        let mut next = stored.next();
        // What one appender appends is one batch, so a million of them are several.
        while let Some(first) = next {
            let mut appender = store.appender();
            let mut furthest = Seq(0);
            // What was read back, or never struck out, has no time.
            if is_acknowledged && first.3 > Position(0) {
                self.pace.acknowledged(appender.age(first.3));
            }
            let step = std::iter::once(first).chain(stored.by_ref().take(PURGE_KEYS_MAX - 1));
            for (seq, bytes, shared, put_at) in step {
                match is_acknowledged {
                    true => appender.acknowledge(self.id, seq, bytes, shared, put_at),
                    false => appender.delete(self.id, seq, bytes, shared, put_at),
                }
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
