//! Declaring and deleting queues: the rules around the topology, and their rows in the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::amqp::reply_code::ReplyCode;
use crate::broker::arguments::{QueueArguments, QueueShape};
use crate::broker::equivalence::{QueueProperties, check_queue};
use crate::broker::fault::{Fault, lossy};
use crate::broker::id::{QueueId, RowId};
use crate::broker::name::{Name, Resource, is_reserved};
use crate::broker::queue::{Entry, Rules, Sink};
use crate::broker::queue_type::QueueType;
use crate::broker::topology::Topology;
use crate::limits::SHRED_QUEUES_MAX;
use crate::session::port::QueueSpec;
use crate::store::{Mode, Position, RowKind};

use super::client::Client;
use super::engine_core::{Engine, later, now_ms};
use super::exchanges::delete_rows;
use super::outbox::ConsumerSink;
use super::queue_cell::{Contents, QueueCell, QueueRef, Stored, wake};
use super::rights::Right;
use super::rows::QueueRow;

impl QueueCell {
    /// Its type, from the arguments it was declared with.
    pub(super) fn kind(&self) -> QueueType {
        self.arguments.queue_type
    }

    /// Whether it takes no message that is like one in it (`x-message-deduplication`).
    pub(super) fn drops_duplicates(&self) -> bool {
        self.arguments.deduplication_header.is_some()
    }

    /// When it is to go because nobody uses it (`x-expires`); `None` while it has consumers.
    pub(super) fn expires_at_ms(&self) -> Option<u64> {
        let after_ms = self.arguments.expires_ms?;
        let unused = self.counts().consumers == 0;
        unused.then(|| self.used_ms.load(Ordering::Acquire).saturating_add(after_ms))
    }
}

impl Engine {
    /// The queue is used now: its own time to live begins anew.
    pub(super) fn touch(&self, queue: &QueueRef) {
        queue.used_ms.store(now_ms(), Ordering::Release);
        if let Some(at_ms) = queue.expires_at_ms() {
            self.timers.arm(queue, at_ms);
        }
    }

    /// Deletes a queue whose time is over, unless somebody came to use it in the meantime.
    pub(super) fn delete_unused(self: &Arc<Self>, queue: &QueueRef) {
        let _ = self.delete_checked(queue, |contents| match contents.counts().consumers {
            0 => Ok(()),
            _ => Err(()),
        });
    }
}

impl Client {
    pub(super) fn declare(&mut self, spec: &QueueSpec<'_>) -> Result<(QueueRef, Position), Fault> {
        let resource = Resource::queue(spec.name, &self.engine.vhost);
        if spec.passive {
            self.permit.check_any(resource)?;
            let queue = self.queue(spec.name)?;
            self.engine.touch(&queue);
            let position = self.engine.as_found(queue.is_stored());
            return Ok((queue, position));
        }
        // Before anything is looked up: such a queue is not to be declared again either.
        if is_reserved(spec.name) && !spec.server_named {
            let text = format!("queue name '{}' contains reserved prefix 'amq.*'", lossy(spec.name));
            return Err(Fault::new(ReplyCode::AccessRefused, text));
        }
        self.permit.check(Right::Configure, resource)?;
        let properties = QueueProperties {
            // An exclusive queue cannot outlive its connection: RabbitMQ takes the flag for unset.
            durable: spec.durable && !spec.exclusive,
            auto_delete: spec.auto_delete,
            arguments: spec.arguments.raw().into(),
        };
        let engine = self.engine.clone();
        let (queue, position, is_new) = engine.change(|topology| {
            if let Some(existing) = topology.queue(spec.name) {
                self.check_same(existing, spec, &properties)?;
                return Ok((existing.clone(), engine.as_found(existing.is_stored()), false));
            }
            let arguments = self.check_new(spec)?;
            if arguments.shreds && properties.durable {
                self.check_own_key(spec, topology)?;
            }
            let rules = Rules::of(&arguments);
            let owner = spec.exclusive.then_some(self.id);
            let RowId(id) = engine.store.next_row_id();
            let cell =
                QueueCell::new(QueueId(id), Name::from(spec.name), properties, owner, Contents::new(rules));
            let mut position = Position(0);
            if cell.is_stored() {
                let plaintext = QueueRow::of(&cell).encode();
                let mut appender = engine.store.appender();
                if cell.has_own_key() {
                    appender.own_key(cell.id, false);
                }
                position = appender.put_row(RowKind::Queue, RowId(id), plaintext);
            }
            let queue = QueueRef::new(cell);
            // Its name is free: that was looked up under the same write lock.
            let _ = topology.insert_queue(queue.name.clone(), queue.clone());
            Ok((queue, position, true))
        })?;
        if is_new && spec.exclusive {
            self.exclusive.push(queue.clone());
        }
        engine.touch(&queue);
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

    fn check_new(&self, spec: &QueueSpec<'_>) -> Result<QueueArguments, Fault> {
        let resource = Resource::queue(spec.name, &self.engine.vhost);
        let arguments = QueueArguments::parse(spec.arguments).map_err(|e| e.fault(resource))?;
        let shape = QueueShape {
            server_named: spec.server_named,
            durable: spec.durable,
            exclusive: spec.exclusive,
            auto_delete: spec.auto_delete,
        };
        shape.check(arguments.queue_type).map_err(|e| e.fault(resource))?;
        if arguments.queue_type == QueueType::Stream {
            return Err(Fault::new(ReplyCode::NotImplemented, "streams are not implemented"));
        }
        if let Some(dead_letters) = &arguments.dead_letter_exchange {
            self.permit.check(Right::Read, resource)?;
            self.permit.check(Right::Write, Resource::exchange(dead_letters, &self.engine.vhost))?;
        }
        Ok(arguments)
    }

    /// Whether a queue can have a key of its own (`x-seal-shred`).
    fn check_own_key(&self, spec: &QueueSpec<'_>, topology: &Topology<QueueRef>) -> Result<(), Fault> {
        let taken = topology.queues().filter(|(_, queue)| queue.has_own_key()).count();
        let Some(reason) = no_own_key(self.engine.store.mode(), taken) else { return Ok(()) };
        let resource = Resource::queue(spec.name, &self.engine.vhost);
        let text = format!("invalid arg 'x-seal-shred' for {resource}: {reason}");
        Err(Fault::new(ReplyCode::PreconditionFailed, text))
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
        self.check_conditions(&queue, if_unused, if_empty)?;
        let check = |contents: &Contents| {
            let counts = contents.counts();
            let refuse = |what| {
                let text = format!("{} {what}", Resource::queue(name, &self.engine.vhost));
                Err(Fault::new(ReplyCode::PreconditionFailed, text))
            };
            if if_empty && counts.ready > 0 {
                return refuse("not empty");
            }
            if if_unused && counts.consumers > 0 { refuse("in use") } else { Ok(()) }
        };
        let deleted = self.engine.delete_checked(&queue, check)?;
        self.exclusive.retain(|other| *other != queue);
        Ok(deleted)
    }

    /// A quorum queue is deleted without conditions or not at all, in RabbitMQ's words.
    fn check_conditions(&self, queue: &QueueRef, if_unused: bool, if_empty: bool) -> Result<(), Fault> {
        let flag = match (queue.kind(), if_unused, if_empty) {
            (QueueType::Quorum, true, _) => "if-unused",
            (QueueType::Quorum, false, true) => "if-empty",
            (QueueType::Quorum | QueueType::Classic | QueueType::Stream, ..) => return Ok(()),
        };
        let resource = Resource::queue(&queue.name, &self.engine.vhost);
        let text = format!(
            "cannot delete {resource}. queue.delete operations with {flag} flag set are not supported by \
             quorum queues"
        );
        Err(Fault::new(ReplyCode::NotImplemented, text))
    }

    pub(super) fn delete_now(&self, queue: &QueueRef) {
        // Nothing is checked, so nothing is refused.
        let _ = self.engine.delete_checked(queue, |_| Ok::<(), Fault>(()));
    }

    pub(super) fn delete_if_abandoned(&mut self, queue: &QueueRef) {
        // Whoever came to consume in the meantime keeps it alive.
        let check = |c: &Contents| if c.is_abandoned() { Ok(()) } else { Err(()) };
        if queue.properties.auto_delete && self.engine.delete_checked(queue, check).is_ok() {
            self.exclusive.retain(|other| other != queue);
        }
    }
}

impl Engine {
    /// Takes the queue out of the topology and the store in one step, if `check` agrees under its lock.
    pub(super) fn delete_checked<E>(
        &self,
        queue: &QueueRef,
        check: impl FnOnce(&Contents) -> Result<(), E>,
    ) -> Result<(u32, Position), E> {
        let store = &self.store;
        let mut blocks = Vec::new();
        let (sinks, count, position) = self.change(|topology| {
            let mut contents = queue.lock();
            if contents.is_deleted() {
                return Ok((Vec::new(), 0, self.as_found(queue.is_stored())));
            }
            check(&contents)?;
            let count = contents.counts().ready;
            let (left, mut sinks) = contents.delete();
            blocks = left.blocks;
            // Under the queue's lock, so that whoever cancels one of them meanwhile finds it done, and
            // does not use its key again before.
            let undelivered = cancel_consumers(&mut sinks);
            drop(contents);
            let removed = topology.remove_queue(&queue.name);
            let delayed = removed.as_ref().map(|removed| self.empty_delay_queues(removed));
            let mut appender = store.appender();
            let mut position = removed.map_or(Position(0), |removed| {
                delete_rows(&mut appender, &removed, delayed.unwrap_or_default())
            });
            if queue.is_stored() {
                position = later(position, appender.delete_row(RowKind::Queue, RowId(queue.id.0)));
                let entries = left.entries.into_iter().chain(undelivered).filter_map(Entry::into_stored);
                position = later(position, appender.drop_queue(queue.id, entries.collect()));
            }
            Ok((sinks, count as u32, position))
        })?;
        self.pager.give_up(&blocks);
        wake(&sinks);
        self.timers.disarm(queue);
        self.pager.wake(queue.id);
        Ok((count, position))
    }
}

/// Why one more queue cannot have a key of its own when `taken` queues have one.
pub(super) fn no_own_key(mode: Mode, taken: usize) -> Option<String> {
    match mode {
        Mode::PlainInsecure => Some("the store is not sealed, so there is no key to destroy".into()),
        Mode::Sealed if taken < SHRED_QUEUES_MAX => None,
        Mode::Sealed => Some(format!("{taken} queues have keys of their own, which is the limit")),
    }
}

/// Consumers of a queue that is gone: their clients will be told. Gives what was on its way to them.
fn cancel_consumers(sinks: &mut [ConsumerSink]) -> Vec<Entry<Stored>> {
    sinks.sort_unstable_by_key(|sink| (Arc::as_ptr(&sink.outbox), sink.key));
    let mut undelivered = Vec::new();
    for of_one in sinks.chunk_by(|a, b| a.same(b)) {
        let Some(first) = of_one.first() else { continue };
        let keys: Vec<u32> = of_one.iter().map(|sink| sink.key).collect();
        for (key, entry) in first.outbox.cancel(&keys) {
            let sink = keys.binary_search(&key).ok().and_then(|at| of_one.get(at));
            sink.into_iter().for_each(|sink| sink.give_back(1));
            undelivered.push(entry);
        }
    }
    undelivered
}
