//! Binding and unbinding, and the rows of durable bindings.

use crate::broker::exchange::DestinationName;
use crate::broker::fault::Fault;
use crate::broker::name::Name;
use crate::broker::topology::{BindingRequest, Bound, Topology, Unbound};
use crate::session::port::{BindingSpec, DestinationKind};
use crate::store::{Position, RowKind};

use super::client::Client;
use super::exchanges::delete_rows;
use super::queue_cell::QueueRef;
use super::rows::BindingRow;

impl Client {
    pub(super) fn bind_checked(&self, spec: &BindingSpec<'_>) -> Result<Position, Fault> {
        let engine = &self.engine;
        let request = request(spec);
        engine.change(|topology| {
            self.check_destination(topology, spec)?;
            let row = is_durable(topology, spec).then(|| engine.store.next_row_id());
            match topology.bind(&request, row).map_err(|e| e.fault(&self.engine.vhost))? {
                Bound::AlreadyThere => Ok(engine.as_found(row.is_some())),
                Bound::Added(binding) => Ok(match row {
                    Some(row) => {
                        let plaintext = BindingRow::of(&binding).encode();
                        engine.store.appender().put_row(RowKind::Binding, row, plaintext)
                    }
                    None => Position(0),
                }),
            }
        })
    }

    pub(super) fn unbind_checked(&self, spec: &BindingSpec<'_>) -> Result<Position, Fault> {
        let engine = &self.engine;
        let request = request(spec);
        engine.change(|topology| match topology.unbind(&request).map_err(|e| e.fault(&engine.vhost))? {
            Unbound::NotFound => Ok(engine.as_found(true)),
            Unbound::Removed(removed) => {
                // Only who would take a binding away has to own the queue; a fault here drops the copy.
                self.check_destination(topology, spec)?;
                Ok(delete_rows(&mut engine.store.appender(), &removed))
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

/// A binding survives a restart when both of its ends do.
fn is_durable(topology: &Topology<QueueRef>, spec: &BindingSpec<'_>) -> bool {
    let exchange = |name| topology.exchange(name).is_some_and(|e| e.properties.durable);
    let destination = match spec.kind {
        DestinationKind::Queue => topology.queue(spec.destination).is_some_and(|q| q.is_stored()),
        DestinationKind::Exchange => exchange(spec.destination),
    };
    destination && exchange(spec.source)
}
