//! Declaring and deleting exchanges: the rules around the topology, and their rows in the store.

use std::sync::Arc;

use crate::amqp::reply_code::ReplyCode;
use crate::broker::arguments::exchange_name;
use crate::broker::equivalence::check_exchange;
use crate::broker::exchange::{Exchange, ExchangeKind, ExchangeProperties};
use crate::broker::exchange_arguments;
use crate::broker::fault::{Fault, lossy};
use crate::broker::name::{Name, Resource, is_reserved};
use crate::broker::topology::Removed;
use crate::session::port::ExchangeSpec;
use crate::store::{Appender, Position, RowKind};

use super::delays::{StoredDelays, with_delay_queue};
use super::engine_core::{Engine, later};
use super::history::with_history;
use super::queue_cell::QueueRef;
use super::rights::{Permit, Right};
use super::rows::ExchangeRow;

impl Engine {
    pub(super) fn declare_exchange(
        &self,
        spec: &ExchangeSpec<'_>,
        permit: &Permit,
    ) -> Result<Position, Fault> {
        let resource = Resource::exchange(spec.name, &self.vhost);
        if spec.passive {
            let topology = self.topology.load();
            check_not_default(spec.name)?;
            permit.check_any(resource)?;
            return match topology.exchange(spec.name) {
                Some(existing) => Ok(self.as_found(existing.row.is_some())),
                None => Err(Fault::no_exchange(spec.name, &self.vhost)),
            };
        }
        let kind = ExchangeKind::parse(spec.kind).ok_or_else(|| {
            let text = format!("unknown exchange type '{}'", lossy(spec.kind));
            Fault::new(ReplyCode::PreconditionFailed, text)
        })?;
        check_not_default(spec.name)?;
        permit.check(Right::Configure, resource)?;
        let properties = ExchangeProperties {
            kind,
            durable: spec.durable,
            auto_delete: spec.auto_delete,
            internal: spec.internal,
            arguments: spec.arguments.raw().into(),
        };
        self.change(|topology| {
            if let Some(existing) = topology.exchange(spec.name) {
                check_exchange(&existing.properties, &properties).map_err(|e| e.fault(resource))?;
                return Ok(self.as_found(existing.row.is_some()));
            }
            if is_reserved(spec.name) {
                let text = format!("exchange name '{}' contains reserved prefix 'amq.*'", lossy(spec.name));
                return Err(Fault::new(ReplyCode::AccessRefused, text));
            }
            exchange_arguments::check(kind, spec.arguments, resource)?;
            if let Ok(Some(alternate)) = exchange_name(spec.arguments, "alternate-exchange") {
                permit.check(Right::Read, resource)?;
                permit.check(Right::Write, Resource::exchange(alternate, &self.vhost))?;
            }
            let id = self.store.next_row_id();
            let row = properties.durable.then_some(id);
            let exchange = Exchange::new(Name::from(spec.name), properties, row);
            let exchange = with_history(with_delay_queue(exchange, id, None));
            let mut position = Position(0);
            if let Some(row) = row {
                let plaintext = ExchangeRow::of(&exchange).encode();
                position = self.store.appender().put_row(RowKind::Exchange, row, plaintext);
            }
            // Its name is free: that was looked up under the same write lock.
            let _ = topology.insert_exchange(Arc::new(exchange));
            Ok(position)
        })
    }

    pub(super) fn delete_exchange(
        &self,
        name: &[u8],
        if_unused: bool,
        permit: &Permit,
    ) -> Result<Position, Fault> {
        check_not_default(name)?;
        let resource = Resource::exchange(name, &self.vhost);
        if is_reserved(name) {
            let text = format!("deletion of system {resource} not allowed");
            return Err(Fault::new(ReplyCode::AccessRefused, text));
        }
        permit.check(Right::Configure, resource)?;
        let deleted = self.change(|topology| {
            // Deleting what is not there succeeds, as in RabbitMQ since 3.2.
            let Some(exchange) = topology.exchange(name) else { return Ok(self.as_found(true)) };
            if if_unused && exchange.is_used() {
                let text = format!("{resource} in use");
                return Err(Fault::new(ReplyCode::PreconditionFailed, text));
            }
            let Some(removed) = topology.remove_exchange(name) else { return Ok(Position(0)) };
            let delayed = self.empty_delay_queues(&removed);
            Ok(delete_rows(&mut self.store.appender(), &removed, delayed))
        })?;
        self.duplicates.forget_deleted();
        Ok(deleted)
    }
}

/// Deletes the rows of everything that one deletion took away, and what its exchanges delayed.
pub(super) fn delete_rows(
    appender: &mut Appender<'_>,
    removed: &Removed<QueueRef>,
    delayed: Vec<StoredDelays>,
) -> Position {
    let mut position = Position(0);
    for StoredDelays { queue, entries } in delayed {
        position = later(position, appender.drop_queue(queue, entries));
    }
    for row in removed.bindings.iter().filter_map(|binding| binding.row) {
        position = later(position, appender.delete_row(RowKind::Binding, row));
    }
    for row in removed.exchanges.iter().filter_map(|exchange| exchange.row) {
        position = later(position, appender.delete_row(RowKind::Exchange, row));
    }
    position
}

pub(super) fn check_not_default(name: &[u8]) -> Result<(), Fault> {
    if name.is_empty() {
        let text = "operation not permitted on the default exchange";
        return Err(Fault::new(ReplyCode::AccessRefused, text));
    }
    Ok(())
}
