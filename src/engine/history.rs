//! The latest messages of exchanges of type x-recent-history: each new binding gets them first. They are in
//! memory only and go with the exchange or the broker, as in RabbitMQ; a queue that they are delivered to
//! keeps them as it keeps every other message.
//!
//! A message reaches a new binding once, by the history or by its route. Who binds holds the history from
//! reading it to the swap of the topology. Who publishes keeps the message after routing it on a snapshot,
//! and routes again if there is a newer one by then. A history is locked before the topology and before
//! queues; nothing is locked while a message is put in.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::amqp::field_table::{Table, Value};
use crate::amqp::properties::Properties;
use crate::broker::exchange::{Binding, Destination, Exchange, ExchangeKind, Keeper};
use crate::broker::exchange_arguments::history_length;
use crate::broker::message::Message;
use crate::broker::routing_keys::Routable;
use crate::broker::topology::Topology;
use crate::store::Position;

use super::burial::Pending;
use super::engine_core::{Engine, now_ms};
use super::operations::Targets;
use super::queue_cell::{Incoming, QueueRef};

/// A message, and what its properties say that a queue asks for.
#[derive(Clone)]
pub(super) struct Kept {
    pub message: Message,
    pub persistent: bool,
    pub priority: u8,
    pub ttl_ms: Option<u64>,
}

/// The messages of one exchange, oldest first.
pub(super) struct History {
    messages_max: usize,
    kept: Mutex<VecDeque<Kept>>,
}

impl History {
    pub fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, message: Kept) {
        let mut kept = self.lock();
        if kept.len() >= self.messages_max {
            kept.pop_front();
        }
        kept.push_back(message);
    }
}

/// The exchange with a place to keep messages in, if it is of the type that does.
pub(super) fn with_history(exchange: Exchange<QueueRef>) -> Exchange<QueueRef> {
    if exchange.routes_as() != ExchangeKind::RecentHistory {
        return exchange;
    }
    let messages_max = history_length(Table::from_raw(&exchange.properties.arguments));
    exchange.with_keeper(Arc::new(History { messages_max, kept: Mutex::default() }))
}

/// What a route says besides its targets.
pub(super) struct Way {
    /// another message with the same key goes the same way
    pub is_repeatable: bool,
    /// an exchange on it has seen the message before
    pub is_duplicate: bool,
}

/// What an exchange was given by [`with_history`].
pub(super) fn history_of(keeper: &Keeper) -> Option<&History> {
    let keeper: &(dyn Any + Send + Sync) = keeper.as_ref();
    keeper.downcast_ref()
}

impl Engine {
    /// Routes a message on a snapshot, and has the exchanges on its way that keep messages keep it.
    pub(super) fn route(
        &self,
        topology: &Topology<QueueRef>,
        source: &Exchange<QueueRef>,
        routable: &Routable<'_>,
        kept: impl FnOnce() -> Kept,
        targets: &mut Targets,
    ) -> Way {
        let routed = topology.route(source, routable, targets);
        if !routed.keepers.is_empty() && !is_not_to_be_kept(routable.properties) {
            let kept = kept();
            let histories = routed.keepers.iter().filter_map(|keeper| history_of(keeper));
            histories.for_each(|history| history.keep(kept.clone()));
            let newer = self.topology.load();
            // Whoever was asked whether it is a duplicate would now say yes: it has seen the message just now.
            let again = Routable { is_duplicate: &|_| false, ..*routable };
            if newer.version() != topology.version()
                && !routed.is_duplicate
                && let Some(source) = newer.exchange(&source.name)
            {
                targets.clear();
                newer.route(source, &again, targets);
            }
        }
        Way { is_repeatable: routed.is_repeatable, is_duplicate: routed.is_duplicate }
    }

    /// Delivers what a history holds through a new binding, on its way into `topology`. Dead letters that
    /// follow are for the caller, when nothing is locked any more.
    pub(super) fn replay(
        &self,
        topology: &Topology<QueueRef>,
        binding: &Binding<QueueRef>,
        kept: &VecDeque<Kept>,
        pending: &mut Pending,
    ) {
        for kept in kept {
            let targets = match binding.destination() {
                Destination::Queue(queue) => Targets::from_iter([queue.clone()]),
                Destination::Exchange(name) => self.beyond(topology, name, &kept.message),
            };
            let incoming = Incoming {
                message: Some(kept.message.clone()),
                persistent: kept.persistent,
                priority: kept.priority,
                ttl_ms: kept.ttl_ms,
                delay_ms: 0,
                shared: None,
                barrier: Position(0),
                refused: false,
            };
            self.enqueue_into(&targets, &mut [incoming], now_ms(), pending);
        }
    }

    /// Where a message goes from an exchange on; histories on that way do not keep it once more.
    fn beyond(&self, topology: &Topology<QueueRef>, exchange: &[u8], message: &Message) -> Targets {
        let mut targets = Targets::new();
        let properties = Properties::decode(message.properties()).unwrap_or_default();
        let keys = message.routing_keys(&properties);
        let routable = Routable {
            keys,
            properties: &properties,
            draw: self.draw(),
            is_duplicate: &|rules| self.duplicates.has_seen(rules, &properties, now_ms()),
        };
        if let Some(exchange) = topology.exchange(exchange) {
            topology.route(exchange, &routable, &mut targets);
        }
        targets
    }
}

fn is_not_to_be_kept(properties: &Properties<'_>) -> bool {
    let headers = properties.headers.unwrap_or_default();
    headers.find(b"x-recent-history-no-store") == Some(Value::Bool(true))
}
