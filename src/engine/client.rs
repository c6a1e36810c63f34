//! The broker as one connection sees it: the session's port, implemented over the shared engine.

use std::sync::Arc;
use std::task::Waker;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::amqp::field_table::Table;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::arguments::ConsumerArguments;
use crate::broker::fault::{Fault, lossy};
use crate::broker::name::{REPLY_TO, Resource};
use crate::broker::queue::{ConsumeRefused, ConsumerId, ConsumerOptions, Entry};
use crate::broker::queue_type::QueueType;
use crate::session::port::{
    Barrier, BindingSpec, Broker, ConsumeSpec, Declared, DestinationKind, ExchangeSpec, Got, Outcome,
    Planned, Publish, QueueSpec, ReplyTo, Settled, Share,
};
use crate::store::Position;

use super::engine_core::{Engine, now_ms};
use super::exchanges::check_not_default;
use super::outbox::{ConsumerSink, Outbox};
use super::publish::{RouteCache, published_to};
use super::queue_cell::{QueueRef, Stored};
use super::rights::{Permit, Right, Rights};

/// One connection's view of the engine. Dropping it takes its exclusive queues along.
pub struct Client {
    pub(super) engine: Arc<Engine>,
    pub(super) outbox: Arc<Outbox>,
    slot: usize,
    /// unique for each connection of this process
    pub(super) id: u64,
    /// wakes this connection's task; the committer gets clones of it
    pub(super) waker: Waker,
    pub(super) exclusive: Vec<QueueRef>,
    pub(super) routes: RouteCache,
    /// what its user may do
    pub(super) permit: Permit,
    /// it has acknowledged, rejected or given back something since its last persistent publish
    pub(super) has_settled: bool,
}

impl Client {
    pub(super) fn new(engine: Arc<Engine>, outbox: Arc<Outbox>, slot: usize, id: u64) -> Client {
        let waker = Waker::from(outbox.clone());
        let (exclusive, routes) = (Vec::new(), RouteCache::new(engine.draw()));
        let (permit, has_settled) = (Permit::nobody(), false);
        Client { engine, outbox, slot, id, waker, exclusive, routes, permit, has_settled }
    }

    /// Looks at the user's rights again if any user has changed: one comparison when none has.
    pub(super) fn refresh_permit(&mut self) {
        let users = &self.engine.users;
        if self.permit.version == users.version() {
            return;
        }
        let user = std::mem::take(&mut self.permit.user);
        let lost = |version| Permit::new(user.clone(), Arc::new(Rights::none()), version);
        let version = users.version();
        self.permit = users.permit(&user, &self.engine.vhost).unwrap_or_else(|| lost(version));
        self.routes.forget();
    }

    fn check_queue(&mut self, right: Right, name: &[u8]) -> Result<(), Fault> {
        self.refresh_permit();
        self.permit.check(right, Resource::queue(name, &self.engine.vhost))
    }

    fn check_exchange_right(&mut self, right: Right, name: &[u8]) -> Result<(), Fault> {
        self.refresh_permit();
        self.permit.check(right, Resource::exchange(name, &self.engine.vhost))
    }

    /// A binding writes to its destination and reads from its source, whichever way it goes.
    fn check_binding(&mut self, spec: &BindingSpec<'_>) -> Result<(), Fault> {
        match spec.kind {
            DestinationKind::Queue => self.check_queue(Right::Write, spec.destination)?,
            DestinationKind::Exchange => {
                self.check_exchange_right(Right::Write, spec.destination)?;
                check_not_default(spec.destination)?;
            }
        }
        check_not_default(spec.source)?;
        self.check_exchange_right(Right::Read, spec.source)
    }

    /// The queue, if this connection may use it.
    pub(super) fn queue(&self, name: &[u8]) -> Result<QueueRef, Fault> {
        let topology = self.engine.topology.load();
        let queue = topology.queue(name).ok_or_else(|| Fault::no_queue(name, &self.engine.vhost))?;
        self.check_owner(queue)?;
        Ok(queue.clone())
    }

    pub(super) fn check_owner(&self, queue: &QueueRef) -> Result<(), Fault> {
        match queue.owner {
            Some(owner) if owner != self.id => Err(Fault::locked(&queue.name, &self.engine.vhost)),
            Some(_) | None => Ok(()),
        }
    }

    /// What to wait for until everything appended so far is durable; the store wakes this connection then, and does
    /// not wait for anybody's acknowledgements.
    pub(super) fn barrier(&self, position: Position) -> Barrier {
        if position.0 > 0 {
            let mut appender = self.engine.store.appender();
            appender.hurry(position);
            appender.wake_when_kept(position, self.waker.clone());
        }
        Barrier(position.0)
    }
}

impl Broker for Client {
    type Queue = QueueRef;
    type Durable = Stored;

    fn vhost(&self) -> &str {
        &self.engine.vhost
    }

    fn open(&mut self, user: &[u8], vhost: &[u8]) -> Result<(), Fault> {
        let refuse = |text: String| Err(Fault::new(ReplyCode::NotAllowed, text));
        if vhost != self.engine.vhost.as_bytes() {
            return refuse(format!("vhost {} not found", lossy(vhost)));
        }
        let name = std::str::from_utf8(user).unwrap_or_default();
        match self.engine.users.permit(name, &self.engine.vhost) {
            Some(permit) => self.permit = permit,
            None => {
                let vhost = &self.engine.vhost;
                return refuse(format!("access to vhost '{vhost}' refused for user '{}'", lossy(user)));
            }
        }
        Ok(())
    }

    fn may_impersonate(&self) -> bool {
        self.engine.users.may_impersonate(&self.permit.user)
    }

    fn kept(&self) -> Barrier {
        Barrier(self.engine.store.kept().0)
    }

    fn has_failed(&self) -> bool {
        self.engine.store.failure().is_some()
    }

    fn publish(&mut self, batch: &mut Vec<Publish>, outcomes: &mut Vec<Outcome>) {
        self.publish_batch(batch, outcomes);
    }

    fn check_exchange(&mut self, exchange: &[u8]) -> Result<(), Fault> {
        self.refresh_permit();
        self.permit.check_publish(exchange, &self.engine.vhost)?;
        let topology = self.engine.topology.load();
        published_to(&topology, exchange, &self.engine.vhost).map(drop)
    }

    fn plan(&mut self, publish: Publish) -> Result<Planned<QueueRef>, Fault> {
        self.plan_publish(publish)
    }

    fn commit(
        &mut self,
        publishes: Vec<Planned<QueueRef>>,
        acknowledged: Vec<Settled<Self>>,
    ) -> Result<(Vec<Outcome>, Barrier), Fault> {
        if self.has_failed() {
            return Err(Fault::store_failed());
        }
        Ok(self.commit_transaction(publishes, acknowledged))
    }

    fn declare_exchange(&mut self, spec: &ExchangeSpec<'_>) -> Result<Barrier, Fault> {
        self.refresh_permit();
        let position = self.engine.declare_exchange(spec, &self.permit)?;
        Ok(self.barrier(position))
    }

    fn delete_exchange(&mut self, name: &[u8], if_unused: bool) -> Result<Barrier, Fault> {
        self.refresh_permit();
        let position = self.engine.delete_exchange(name, if_unused, &self.permit)?;
        Ok(self.barrier(position))
    }

    fn bind(&mut self, spec: &BindingSpec<'_>) -> Result<Barrier, Fault> {
        self.check_binding(spec)?;
        let position = self.bind_checked(spec)?;
        Ok(self.barrier(position))
    }

    fn unbind(&mut self, spec: &BindingSpec<'_>) -> Result<Barrier, Fault> {
        self.check_binding(spec)?;
        let position = self.unbind_checked(spec)?;
        Ok(self.barrier(position))
    }

    fn declare_queue(&mut self, spec: &QueueSpec<'_>) -> Result<Declared, Fault> {
        if let Some(answer) = self.declare_replies(spec.name) {
            return answer;
        }
        self.refresh_permit();
        let (queue, position) = self.declare(spec)?;
        let counts = queue.counts();
        Ok(Declared {
            name: queue.name.to_vec(),
            message_count: counts.ready as u32,
            consumer_count: counts.consumers as u32,
            barrier: self.barrier(position),
        })
    }

    fn purge_queue(&mut self, name: &[u8]) -> Result<(u32, Barrier), Fault> {
        self.check_queue(Right::Read, name)?;
        let queue = self.queue(name)?;
        let purged = {
            let mut contents = queue.lock();
            if queue.has_own_key() {
                // Whatever comes after the purge comes after this.
                self.engine.store.appender().own_key(queue.id, true);
            }
            contents.purge()
        };
        queue.delete_stored(&purged.entries, &self.engine.store);
        queue.purge_stored(&purged.runs, &self.engine.store);
        self.engine.pager.give_up(&purged.blocks);
        let position = match queue.is_stored() && (purged.count() > 0 || queue.has_own_key()) {
            true => self.engine.store.appender().place_of_all(),
            false => Position(0),
        };
        Ok((purged.count() as u32, self.barrier(position)))
    }

    fn delete_queue(
        &mut self,
        name: &[u8],
        if_unused: bool,
        if_empty: bool,
    ) -> Result<(u32, Barrier), Fault> {
        self.check_queue(Right::Configure, name)?;
        let (count, position) = self.delete(name, if_unused, if_empty)?;
        Ok((count, self.barrier(position)))
    }

    fn consume(&mut self, spec: &ConsumeSpec<'_>) -> Result<(QueueRef, ConsumerId), Fault> {
        self.check_queue(Right::Read, spec.queue)?;
        let queue = self.queue(spec.queue)?;
        let resource = Resource::queue(&queue.name, &self.engine.vhost);
        let arguments =
            ConsumerArguments::parse(spec.arguments, queue.kind()).map_err(|e| e.fault(resource))?;
        let is_quorum = queue.kind() == QueueType::Quorum;
        if is_quorum && spec.credit.is_limited() {
            let text = format!("{resource} does not support global qos");
            return Err(Fault::new(ReplyCode::NotImplemented, text));
        }
        let sink = ConsumerSink {
            outbox: self.outbox.clone(),
            key: spec.key,
            credit: (!spec.no_ack).then(|| spec.credit.clone()),
        };
        let options = ConsumerOptions {
            prefetch: spec.prefetch,
            no_ack: spec.no_ack,
            // RabbitMQ does not look at it where the queue is a quorum queue.
            exclusive: spec.exclusive && !is_quorum,
            priority: arguments.priority,
        };
        let added = self.engine.with_queue(&queue, |contents, _| contents.add_consumer(sink, options));
        match added {
            Ok(id) => Ok((queue, id)),
            Err(ConsumeRefused::Deleted) => Err(Fault::no_queue(spec.queue, &self.engine.vhost)),
            Err(ConsumeRefused::InExclusiveUse) => {
                let text = format!("{} in exclusive use", Resource::queue(spec.queue, &self.engine.vhost));
                Err(Fault::new(ReplyCode::AccessRefused, text))
            }
        }
    }

    fn cancel(
        &mut self,
        queue: &QueueRef,
        consumer: ConsumerId,
        key: u32,
        undelivered: &mut Vec<Entry<Stored>>,
    ) {
        let was_there = self.engine.with_queue(queue, |contents, _| contents.remove_consumer(consumer));
        self.engine.touch(queue);
        self.outbox.remove(key, undelivered);
        if was_there {
            self.delete_if_abandoned(queue);
        }
    }

    fn delivery_timeout_ms(&self, queue: &QueueRef, arguments: Table<'_>) -> Option<u64> {
        let of_consumer = ConsumerArguments::parse(arguments, queue.kind()).ok().and_then(|a| a.timeout_ms);
        of_consumer.or(queue.arguments.consumer_timeout_ms)
    }

    fn open_replies(&mut self, to: ReplyTo) -> Result<Vec<u8>, Fault> {
        let address = self.unique_name(&format!("{}.", lossy(REPLY_TO)))?;
        self.open_address(&address, to);
        Ok(address)
    }

    fn close_replies(&mut self, address: &[u8]) {
        self.close_address(address);
    }

    fn get(&mut self, name: &[u8]) -> Result<Got<Self>, Fault> {
        self.check_queue(Right::Read, name)?;
        let queue = self.queue(name)?;
        if queue.kind() == QueueType::Quorum && queue.arguments.single_active_consumer {
            let text = format!(
                "cannot obtain access to locked {}. basic.get operations are not supported by quorum queues \
                 with single active consumer",
                Resource::queue(name, &self.engine.vhost)
            );
            return Err(Fault::new(ReplyCode::ResourceLocked, text));
        }
        self.engine.touch(&queue);
        let now_ms = now_ms();
        let (entry, left) = self.engine.with_queue(&queue, |contents, effects| {
            contents.expire(now_ms, &mut effects.dead);
            (contents.get(), contents.counts().ready as u32)
        });
        Ok(entry.map(|entry| (queue, entry, left)))
    }

    fn waits_for(&mut self, name: &[u8]) -> bool {
        let Ok(queue) = self.queue(name) else { return false };
        // First of all, or the page could come unnoticed.
        self.engine.pager.wait(queue.id, &self.outbox);
        let mut contents = queue.lock();
        let (is_starved, is_empty) = (contents.is_starved(), contents.counts().ready == 0);
        drop(contents);
        if !is_starved {
            // Perhaps no page will be read any more, which would leave this one in line.
            self.engine.pager.wake(queue.id);
        }
        !is_empty
    }

    fn settle(&mut self, queue: &QueueRef, consumer: Option<ConsumerId>, entries: &mut Vec<Entry<Stored>>) {
        self.has_settled |= is_stored(entries);
        self.engine.settle(queue, consumer, entries);
    }

    fn reject(&mut self, queue: &QueueRef, consumer: Option<ConsumerId>, entries: Vec<Entry<Stored>>) {
        self.has_settled |= is_stored(&entries);
        self.engine.reject(queue, consumer, entries);
    }

    fn requeue(&mut self, queue: &QueueRef, shares: &[Share], entries: Vec<Entry<Stored>>) {
        // How often they came back is stored, too.
        self.has_settled |= is_stored(&entries);
        self.engine.requeue(queue, shares, entries);
    }

    fn counts_deliveries(&self, queue: &QueueRef) -> bool {
        queue.kind().counts_deliveries()
    }

    fn settles_in_order(&self, queue: &QueueRef) -> bool {
        queue.drops_duplicates()
    }

    fn resume(&mut self, queue: &QueueRef, consumer: ConsumerId) {
        self.engine.with_queue(queue, |contents, _| contents.resume(consumer));
    }

    fn unique_name(&mut self, prefix: &str) -> Result<Vec<u8>, Fault> {
        let random = crate::seal::random::<16>()
            .map_err(|_| Fault::new(ReplyCode::InternalError, "no random bytes for a name"))?;
        Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random)).into_bytes())
    }

    fn leave(&mut self) {
        for queue in std::mem::take(&mut self.exclusive) {
            self.delete_now(&queue);
        }
    }
}

/// Whether the store knows of any.
fn is_stored(entries: &[Entry<Stored>]) -> bool {
    entries.iter().any(|entry| matches!(entry.durable, Stored::Yes { .. }))
}

impl Drop for Client {
    fn drop(&mut self) {
        self.leave();
        self.engine.disconnect(self.slot);
    }
}
