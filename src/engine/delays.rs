//! Delayed exchanges: each has a queue of its own, which no client can name, where messages wait for their
//! time. It is an entry of the route like any other queue, so confirms, transactions and restarts treat it
//! as one; what differs is how entries leave it, and that is here.

use std::sync::Arc;

use crate::amqp::properties::Properties;
use crate::broker::dedup::ExchangeRules;
use crate::broker::delay::released;
use crate::broker::exchange::{Exchange, ExchangeKind};
use crate::broker::id::{QueueId, RowId, Seq};
use crate::broker::message::Message;
use crate::broker::name::Name;
use crate::broker::queue::{Entry, Queue, Rules};
use crate::broker::routing_keys::Routable;
use crate::broker::topology::Removed;
use crate::limits::{DELAYED_RELEASE_BYTES_MAX, DELAYED_RELEASE_MAX, DELAYED_RETRY_MS};
use crate::store::Position;

use super::burial::Pending;
use super::engine_core::{Engine, now_ms};
use super::history::Kept;
use super::operations::Targets;
use super::queue_cell::{Contents, Incoming, QueueCell, QueueRef, Stored, StoredEntry};

/// Gives a delayed exchange its queue, with what the store had of it. A durable exchange's queue bears the
/// number of the exchange's row, so it needs no row of its own.
pub(super) fn with_delay_queue(
    exchange: Exchange<QueueRef>,
    RowId(id): RowId,
    found: Option<(Seq, Vec<Entry<Stored>>)>,
) -> Exchange<QueueRef> {
    if exchange.properties.kind != ExchangeKind::Delayed {
        return exchange;
    }
    let contents = found.map_or_else(|| Queue::new(Rules::default()), recovered);
    let durable = exchange.properties.durable;
    let queue = QueueCell::delaying(QueueId(id), exchange.name.clone(), durable, contents);
    exchange.with_delay_queue(QueueRef::new(queue))
}

/// What the store has of a delay queue that is gone.
pub(super) struct StoredDelays {
    pub queue: QueueId,
    pub entries: Vec<StoredEntry>,
}

fn recovered((next_seq, entries): (Seq, Vec<Entry<Stored>>)) -> Contents {
    let mut contents = Queue::recovered(Rules::default(), Vec::new(), Seq(0), next_seq.max(Seq(1)));
    entries.into_iter().for_each(|entry| contents.delay(entry));
    contents
}

impl Engine {
    /// What exchanges delayed that are gone is gone with them; what of it is stored is returned, to be
    /// dropped with their rows.
    pub(super) fn empty_delay_queues(&self, removed: &Removed<QueueRef>) -> Vec<StoredDelays> {
        let queues = removed.exchanges.iter().filter_map(|exchange| exchange.delay_queue());
        let empty = |queue: &QueueRef| {
            let (left, _) = queue.lock().delete();
            self.timers.disarm(queue);
            let entries = left.entries.into_iter().filter_map(Entry::into_stored).collect();
            queue.is_stored().then_some(StoredDelays { queue: queue.id, entries })
        };
        queues.filter_map(empty).collect()
    }

    /// Routes a step of what has waited long enough in the queue of a delayed exchange. Only the clock's
    /// task does this: with a second one, the order of what is due could get lost.
    pub(super) fn release_due(&self, queue: &QueueRef, exchange: &Name) {
        let now_ms = now_ms();
        if self.is_congested() {
            // As publishers do then, it waits for the disk; its messages stay where they are.
            return self.timers.arm(queue, now_ms.saturating_add(DELAYED_RETRY_MS));
        }
        let mut contents = queue.lock();
        let mut due = contents.take_due(now_ms, DELAYED_RELEASE_MAX, DELAYED_RELEASE_BYTES_MAX);
        let next_ms = contents.next_deadline_ms();
        drop(contents);
        let topology = self.topology.load_full();
        // An exchange that has gone since took its messages along, one of the same name or not.
        let source = topology.exchange(exchange).filter(|source| source.delay_queue() == Some(queue));
        let mut pending = Pending::new();
        for entry in &mut due {
            let Some(source) = source else { break };
            let message = released(&entry.message);
            let properties = Properties::decode(message.properties()).unwrap_or_default();
            let keys = message.routing_keys(&properties);
            let incoming = incoming(entry, &message, &properties);
            // It was looked at when it came; here it would be a duplicate of itself.
            let is_own = |rules: &Arc<ExchangeRules>| {
                source.deduplication().is_some_and(|own| Arc::ptr_eq(own, rules))
            };
            let routable = Routable {
                keys,
                properties: &properties,
                draw: self.draw(),
                is_duplicate: &|rules| !is_own(rules) && self.duplicates.has_seen(rules, &properties, now_ms),
            };
            let mut targets = Targets::new();
            self.route(&topology, source, &routable, || kept(&incoming, &message), &mut targets);
            let mut incoming = [incoming];
            self.enqueue_into(&targets, &mut incoming, now_ms, &mut pending);
            // As with a dead letter: its publisher may be told a batch before what takes its place.
            if incoming.iter().any(|item| item.barrier > Position(0)) {
                entry.durable.keep_put();
            }
        }
        self.bury_all(pending);
        // Only now: a crash in between leaves a message twice, never not at all.
        queue.delete_stored(&due, &self.store);
        if let Some(at_ms) = next_ms {
            self.timers.arm(queue, at_ms);
        }
    }
}

fn kept(incoming: &Incoming, message: &Message) -> Kept {
    let Incoming { persistent, priority, ttl_ms, .. } = incoming;
    Kept { message: message.clone(), persistent: *persistent, priority: *priority, ttl_ms: *ttl_ms }
}

/// A delayed message on its way on: its time to live begins now.
fn incoming(entry: &Entry<Stored>, message: &Message, properties: &Properties<'_>) -> Incoming {
    Incoming {
        persistent: matches!(entry.durable, Stored::Yes { .. }) || properties.is_persistent(),
        priority: entry.priority,
        ttl_ms: properties.expiration_ms(),
        delay_ms: 0,
        shared: None,
        barrier: Position(0),
        refused: false,
        message: Some(message.clone()),
    }
}
