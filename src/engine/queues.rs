//! Declaring and deleting queues: the rules around the topology, and their rows in the store.

use crate::amqp::field_table::Table;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::arguments::{QueueArguments, QueueShape, queue_type};
use crate::broker::equivalence::{QueueProperties, check_queue};
use crate::broker::fault::{Fault, lossy};
use crate::broker::id::{QueueId, RowId};
use crate::broker::name::{Name, Resource, is_reserved};
use crate::broker::queue_type::QueueType;
use crate::session::port::QueueSpec;
use crate::store::{Position, RowKind};

use super::client::Client;
use super::engine_core::later;
use super::exchanges::delete_rows;
use super::outbox::ConsumerSink;
use super::queue_cell::{Contents, QueueCell, QueueRef, Stored};
use super::rows::QueueRow;

impl QueueCell {
    /// Its type, from the arguments it was declared with.
    pub(super) fn kind(&self) -> QueueType {
        queue_type(Table::from_raw(&self.properties.arguments)).unwrap_or_default()
    }
}

impl Client {
    pub(super) fn declare(&mut self, spec: &QueueSpec<'_>) -> Result<(QueueRef, Position), Fault> {
        if spec.passive {
            let queue = self.queue(spec.name)?;
            let position = self.engine.as_found(queue.is_stored());
            return Ok((queue, position));
        }
        let properties = QueueProperties {
            durable: spec.durable,
            auto_delete: spec.auto_delete,
            arguments: spec.arguments.raw().into(),
        };
        let engine = self.engine.clone();
        let (queue, position, is_new) = engine.change(|topology| {
            if let Some(existing) = topology.queue(spec.name) {
                self.check_same(existing, spec, &properties)?;
                return Ok((existing.clone(), engine.as_found(existing.is_stored()), false));
            }
            self.check_new(spec)?;
            let owner = spec.exclusive.then_some(self.id);
            let RowId(id) = engine.store.next_row_id();
            let cell =
                QueueCell::new(QueueId(id), Name::from(spec.name), properties, owner, Contents::default());
            let mut position = Position(0);
            if cell.is_stored() {
                let plaintext = QueueRow::of(&cell).encode();
                position = engine.store.appender().put_row(RowKind::Queue, RowId(id), plaintext);
            }
            let queue = QueueRef::new(cell);
            // Its name is free: that was looked up under the same write lock.
            let _ = topology.insert_queue(queue.name.clone(), queue.clone());
            Ok((queue, position, true))
        })?;
        if is_new && spec.exclusive {
            self.exclusive.push(queue.clone());
        }
        Ok((queue, position))
    }

    fn check_same(
        &self,
        existing: &QueueRef,
        spec: &QueueSpec<'_>,
        received: &QueueProperties,
    ) -> Result<(), Fault> {
        self.check_owner(existing)?;
        // An exclusive declaration of a shared queue, or the other way round, is a lock conflict too.
        if spec.exclusive != existing.owner.is_some() {
            return Err(Fault::locked(spec.name, &self.engine.vhost));
        }
        check_queue(&existing.properties, received)
            .map_err(|e| e.fault(Resource::queue(spec.name, &self.engine.vhost)))
    }

    fn check_new(&self, spec: &QueueSpec<'_>) -> Result<(), Fault> {
        let server_named = spec.name.starts_with(b"amq.gen-");
        if is_reserved(spec.name) && !server_named {
            let text = format!("queue name '{}' contains reserved prefix 'amq.*'", lossy(spec.name));
            return Err(Fault::new(ReplyCode::AccessRefused, text));
        }
        let resource = Resource::queue(spec.name, &self.engine.vhost);
        let arguments = QueueArguments::parse(spec.arguments).map_err(|e| e.fault(resource))?;
        let shape = QueueShape {
            server_named,
            durable: spec.durable,
            exclusive: spec.exclusive,
            auto_delete: spec.auto_delete,
        };
        shape.check(arguments.queue_type).map_err(|e| e.fault(resource))?;
        if arguments.queue_type == QueueType::Stream {
            return Err(Fault::new(ReplyCode::NotImplemented, "streams are not implemented"));
        }
        warn_of_unheeded(&arguments);
        Ok(())
    }

    pub(super) fn delete(
        &mut self,
        name: &[u8],
        if_unused: bool,
        if_empty: bool,
    ) -> Result<(u32, Position), Fault> {
        let topology = self.engine.topology.load();
        // Deleting what is not there succeeds, as in RabbitMQ since 3.2.
        let Some(queue) = topology.queue(name).cloned() else {
            return Ok((0, self.engine.as_found(true)));
        };
        self.check_owner(&queue)?;
        self.exclusive.retain(|other| *other != queue);
        let check = |contents: &Contents| {
            let counts = contents.counts();
            let refuse = |what| {
                let text = format!("{} {what}", Resource::queue(name, &self.engine.vhost));
                Err(Fault::new(ReplyCode::PreconditionFailed, text))
            };
            if if_unused && counts.consumers > 0 {
                return refuse("in use");
            }
            if if_empty && counts.ready > 0 { refuse("not empty") } else { Ok(()) }
        };
        self.delete_checked(&queue, check)
    }

    pub(super) fn delete_now(&self, queue: &QueueRef) {
        // Nothing is checked, so nothing is refused.
        let _ = self.delete_checked(queue, |_| Ok::<(), Fault>(()));
    }

    pub(super) fn delete_if_abandoned(&self, queue: &QueueRef) {
        if queue.properties.auto_delete {
            // Whoever came to consume in the meantime keeps it alive.
            let _ = self.delete_checked(queue, |c| if c.is_abandoned() { Ok(()) } else { Err(()) });
        }
    }

    /// Takes the queue out of the topology and the store in one step, if `check` agrees under its lock.
    fn delete_checked<E>(
        &self,
        queue: &QueueRef,
        check: impl FnOnce(&Contents) -> Result<(), E>,
    ) -> Result<(u32, Position), E> {
        let store = &self.engine.store;
        let (sinks, count, position) = self.engine.change(|topology| {
            let mut contents = queue.lock();
            if contents.is_deleted() {
                return Ok((Vec::new(), 0, self.engine.as_found(queue.is_stored())));
            }
            check(&contents)?;
            let (ready, sinks) = contents.delete();
            drop(contents);
            let removed = topology.remove_queue(&queue.name);
            let mut appender = store.appender();
            let mut position = removed.map_or(Position(0), |removed| delete_rows(&mut appender, &removed));
            let count = ready.len();
            if queue.is_stored() {
                position = later(position, appender.delete_row(RowKind::Queue, RowId(queue.id.0)));
                let entries = ready.into_iter().filter_map(|entry| match entry.durable {
                    Stored::Yes { put_at, shared } => Some((entry.seq, shared, put_at)),
                    Stored::No => None,
                });
                position = later(position, appender.drop_queue(queue.id, entries.collect()));
            }
            Ok((sinks, count as u32, position))
        })?;
        self.cancel_consumers(queue, &sinks);
        Ok((count, position))
    }

    /// Consumers of a queue that is gone: their clients are told, and what was on its way is dropped.
    fn cancel_consumers(&self, queue: &QueueRef, sinks: &[ConsumerSink]) {
        for sink in sinks {
            let undelivered = sink.outbox.cancel(sink.key);
            queue.delete_stored(&undelivered, &self.engine.store);
            sink.outbox.wake_task();
        }
    }
}

/// Arguments that are kept and compared, but not acted on yet, are named in the log: an operator who
/// relies on them must not find out from a full disk.
fn warn_of_unheeded(arguments: &QueueArguments) {
    let heeded = QueueArguments { queue_type: arguments.queue_type, ..QueueArguments::default() };
    if *arguments != heeded {
        tracing::warn!(
            "a queue was declared with x-arguments that this version keeps but does not act on \
             (see the table in README.md)"
        );
    }
}
