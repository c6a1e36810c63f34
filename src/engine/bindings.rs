//! Binding and unbinding, and the rows of durable bindings.

use std::sync::Arc;

use crate::amqp::reply_code::ReplyCode;
use crate::broker::exchange::{DestinationName, Exchange, ExchangeKind};
use crate::broker::fault::{Fault, lossy};
use crate::broker::name::Name;
use crate::broker::queue_type::QueueType;
use crate::broker::topology::{BindingRequest, Bound, Topology, Unbound};
use crate::session::port::{BindingSpec, DestinationKind};
use crate::store::{Position, RowKind};

use super::burial::Pending;
use super::client::Client;
use super::exchanges::delete_rows;
use super::history::history_of;
use super::queue_cell::QueueRef;
use super::rows::BindingRow;

impl Client {
    pub(super) fn bind_checked(&self, spec: &BindingSpec<'_>) -> Result<Position, Fault> {
        let engine = &self.engine;
        let request = request(spec);
        let keeper = engine.topology.load().exchange(spec.source).and_then(|source| source.keeper().cloned());
        let history = keeper.as_ref().and_then(history_of).map(|history| history.lock());
        let mut pending = Pending::new();
        let bound = engine.change(|topology| {
            self.check_destination(topology, spec)?;
            check_local(topology, spec)?;
            let row = is_durable(topology, spec).then(|| engine.store.next_row_id());
            match topology.bind(&request, row).map_err(|e| e.fault(&self.engine.vhost))? {
                Bound::AlreadyThere => Ok(engine.as_found(row.is_some())),
                Bound::Added(binding) => {
                    let position = row.map_or(Position(0), |row| {
                        let plaintext = BindingRow::of(&binding).encode();
                        engine.store.appender().put_row(RowKind::Binding, row, plaintext)
                    });
                    // An exchange that was declared anew in the meantime has no history yet.
                    let source = topology.exchange(spec.source);
                    let is_same = |source: &Exchange<QueueRef>| match (source.keeper(), &keeper) {
                        (Some(now), Some(locked)) => Arc::ptr_eq(now, locked),
                        (_, _) => false,
                    };
                    if let Some(history) = history.as_deref().filter(|_| source.is_some_and(|s| is_same(s))) {
                        engine.replay(topology, &binding, history, &mut pending);
                    }
                    Ok(position)
                }
            }
        });
        drop(history);
        engine.bury_all(pending);
        bound
    }

    pub(super) fn unbind_checked(&self, spec: &BindingSpec<'_>) -> Result<Position, Fault> {
        let engine = &self.engine;
        let request = request(spec);
        engine.change(|topology| match topology.unbind(&request).map_err(|e| e.fault(&engine.vhost))? {
            Unbound::NotFound => Ok(engine.as_found(true)),
            Unbound::Removed(removed) => {
                // Only who would take a binding away has to own the queue; a fault here drops the copy.
                self.check_destination(topology, spec)?;
                let delayed = engine.empty_delay_queues(&removed);
                Ok(delete_rows(&mut engine.store.appender(), &removed, delayed))
            }
        })
    }

    /// Another connection's exclusive queue can neither be bound nor unbound.
    fn check_destination(&self, topology: &Topology<QueueRef>, spec: &BindingSpec<'_>) -> Result<(), Fault> {
        match spec.kind {
            DestinationKind::Queue => {
                topology.queue(spec.destination).map_or(Ok(()), |queue| self.check_owner(queue))
            }
            DestinationKind::Exchange => Ok(()),
        }
    }
}

fn request<'a>(spec: &BindingSpec<'a>) -> BindingRequest<'a> {
    let name = Name::from(spec.destination);
    BindingRequest {
        source: spec.source,
        destination: match spec.kind {
            DestinationKind::Queue => DestinationName::Queue(name),
            DestinationKind::Exchange => DestinationName::Exchange(name),
        },
        routing_key: spec.routing_key,
        arguments: spec.arguments,
    }
}

/// What a local random exchange leads to: classic queues, by the empty key, in RabbitMQ's words. What
/// does not exist is answered as for every other exchange.
fn check_local(topology: &Topology<QueueRef>, spec: &BindingSpec<'_>) -> Result<(), Fault> {
    let source = topology.exchange(spec.source);
    if source.is_none_or(|source| source.routes_as() != ExchangeKind::LocalRandom) {
        return Ok(());
    }
    let refused = |text: String| Err(Fault::new(ReplyCode::PreconditionFailed, text));
    if !spec.routing_key.is_empty() {
        return refused(format!("Non empty binding '{}' key not permitted", lossy(spec.routing_key)));
    }
    let queue = topology.queue(spec.destination);
    match (spec.kind, queue.map(|queue| queue.kind())) {
        (DestinationKind::Queue, None | Some(QueueType::Classic)) => Ok(()),
        (DestinationKind::Queue, Some(other)) => {
            refused(format!("Queue type {} not valid for this exchange type", other))
        }
        (DestinationKind::Exchange, _) => refused("Destination not found".to_owned()),
    }
}

/// A binding survives a restart when both of its ends do.
fn is_durable(topology: &Topology<QueueRef>, spec: &BindingSpec<'_>) -> bool {
    let exchange = |name| topology.exchange(name).is_some_and(|e| e.properties.durable);
    let destination = match spec.kind {
        DestinationKind::Queue => topology.queue(spec.destination).is_some_and(|q| q.is_stored()),
        DestinationKind::Exchange => exchange(spec.destination),
    };
    destination && exchange(spec.source)
}
