//! What a session asks of the broker, and the answers. The engine implements [`Broker`] once for each
//! connection; tests implement it over plain data. Every call returns at once: what must become
//! durable before it may be promised is named by a [`Barrier`] that the session waits for.

use std::hash::Hash;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::amqp::field_table::Table;
use crate::broker::credit::ChannelCredit;
use crate::broker::fault::Fault;
use crate::broker::message::Message;
use crate::broker::queue::{ConsumerId, Entry};

/// SASL mechanisms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616
    Plain,
    /// AMQP's own: a field table with LOGIN and PASSWORD
    AmqPlain,
    /// RFC 4422 appendix A: the client certificate says who it is
    External,
}

impl Mechanism {
    /// Its SASL name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::AmqPlain => "AMQPLAIN",
            Mechanism::External => "EXTERNAL",
        }
    }
}

/// A login to check. No `Debug`: it holds a password.
pub struct Login {
    /// how it was asked for
    pub mechanism: Mechanism,
    /// the user's name
    pub user: Vec<u8>,
    /// absent for EXTERNAL
    pub password: Option<Vec<u8>>,
    /// whether the peer is on this machine
    pub is_loopback: bool,
}

/// The login was wrong; why is for the log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRefused;

/// A place in the store's commit order; an answer that promises something leaves when
/// [`Broker::kept`] has reached it. `Barrier(0)` promises nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Barrier(pub u64);

/// Stands for one exchange and one routing key within a connection, so that who routes need not compare names. A
/// connection never uses a number for others; the same names may have several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteNumber(pub u64);

/// One basic.publish with its content.
#[derive(Debug)]
pub struct Publish {
    /// the channel it came on
    pub channel: u16,
    /// the message's exchange and routing key
    pub route: RouteNumber,
    /// the message has further routing keys (CC, BCC)
    pub has_copies: bool,
    /// give it back when no queue takes it
    pub mandatory: bool,
    /// delivery_mode 2
    pub persistent: bool,
    /// the property `priority`, 0 when absent
    pub priority: u8,
    /// the property `expiration` in milliseconds
    pub expiration_ms: Option<u64>,
    /// the message
    pub message: Message,
}

/// A publish of a transaction, with the queues that it led to when it came.
#[derive(Debug)]
pub struct Planned<Q> {
    /// the publish
    pub publish: Publish,
    /// where its commit takes it, whatever the bindings are by then; `None` is looked up at the commit
    pub queues: Option<SmallVec<[Q; 4]>>,
}

/// What became of one [`Publish`].
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// queues took it (or none, and it was not mandatory); confirm it at the barrier
    Routed(Barrier),
    /// mandatory, and no queue took it: return it, then confirm it
    Unroutable,
    /// a queue refused it: nack it
    Refused,
    /// its channel or connection must close
    Fault(Fault),
    /// not looked at, because an earlier one of its channel was a fault
    Skipped,
}

/// exchange.declare
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the specification's own field names")]
pub struct ExchangeSpec<'a> {
    pub name: &'a [u8],
    pub kind: &'a [u8],
    pub passive: bool,
    pub durable: bool,
    pub auto_delete: bool,
    pub internal: bool,
    pub arguments: Table<'a>,
}

/// queue.declare
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the specification's own field names")]
pub struct QueueSpec<'a> {
    pub name: &'a [u8],
    /// the name is the broker's own choice, so it may begin with `amq.`
    pub server_named: bool,
    pub passive: bool,
    pub durable: bool,
    pub exclusive: bool,
    pub auto_delete: bool,
    pub arguments: Table<'a>,
}

/// What queue.declare-ok says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the specification's own field names")]
pub struct Declared {
    pub name: Vec<u8>,
    pub message_count: u32,
    pub consumer_count: u32,
    pub barrier: Barrier,
}

/// Whether a binding's destination is a queue or an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationKind {
    /// queue.bind, queue.unbind
    Queue,
    /// exchange.bind, exchange.unbind
    Exchange,
}

/// The binding that a bind or unbind names.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the specification's own field names")]
pub struct BindingSpec<'a> {
    pub source: &'a [u8],
    pub destination: &'a [u8],
    pub kind: DestinationKind,
    pub routing_key: &'a [u8],
    pub arguments: Table<'a>,
}

/// basic.consume
#[derive(Clone, Debug)]
pub struct ConsumeSpec<'a> {
    /// the queue
    pub queue: &'a [u8],
    /// the session's own number for the consumer; deliveries carry it
    pub key: u32,
    /// deliveries count as acknowledged
    pub no_ack: bool,
    /// no other consumer beside it
    pub exclusive: bool,
    /// unacknowledged messages at once, 0 unlimited
    pub prefetch: u16,
    /// the channel's common limit
    pub credit: &'a Arc<ChannelCredit>,
    /// x-priority and others
    pub arguments: Table<'a>,
}

/// Who takes replies in a session: a channel, and which of its reply consumers, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// the channel
    pub channel: u16,
    /// the session's own count
    pub serial: u32,
}

/// What waits for a session in its outbox.
#[derive(Debug)]
pub enum Waiting<D> {
    /// an entry for the consumer of that key
    Delivery(u32, Entry<D>),
    /// the consumer of that key has lost its queue
    Cancelled(u32),
    /// a reply, straight from its publisher
    Reply(ReplyTo, Message),
}

/// What basic.get found: the queue, the entry, and how many are left ready.
pub type Got<B> = Option<(<B as Broker>::Queue, Entry<<B as Broker>::Durable>, u32)>;

/// One acknowledged delivery of a transaction.
pub struct Settled<B: Broker> {
    /// the queue it came from
    pub queue: B::Queue,
    /// `None` for basic.get
    pub consumer: Option<ConsumerId>,
    /// the entry
    pub entry: Entry<B::Durable>,
}

/// How many of the entries that come back one consumer (or basic.get) had taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// `None` for basic.get
    pub consumer: Option<ConsumerId>,
    /// at least 1
    pub count: usize,
}

/// The broker as one connection sees it.
pub trait Broker {
    /// A handle to a queue.
    type Queue: Clone + Eq + Hash;
    /// What an entry remembers of the store.
    type Durable;

    /// The virtual host's name, for texts.
    fn vhost(&self) -> &str;
    /// connection.open: that user enters the virtual host, or is told why not. Nothing else may be asked before.
    fn open(&mut self, user: &[u8], vhost: &[u8]) -> Result<(), Fault>;
    /// Whether the user may name another one in the property `user_id`.
    fn may_impersonate(&self) -> bool;
    /// Up to which place promises may be made: nothing up to there waits to be written any more.
    fn kept(&self) -> Barrier;
    /// Whether the store has failed, so that no barrier will ever be reached.
    fn has_failed(&self) -> bool;

    /// Routes and enqueues in order; leaves `batch` empty and one outcome for each.
    fn publish(&mut self, batch: &mut Vec<Publish>, outcomes: &mut Vec<Outcome>);

    /// Whether that exchange can be published to; within a transaction a publish is only checked.
    fn check_exchange(&mut self, exchange: &[u8]) -> Result<(), Fault>;
    /// Routes a publish of a transaction, and does nothing else with it yet.
    fn plan(&mut self, publish: Publish) -> Result<Planned<Self::Queue>, Fault>;
    /// tx.commit: all that queues take becomes durable together, at the barrier, or none of it.
    fn commit(
        &mut self,
        publishes: Vec<Planned<Self::Queue>>,
        acknowledged: Vec<Settled<Self>>,
    ) -> Result<(Vec<Outcome>, Barrier), Fault>
    where
        Self: Sized;

    /// exchange.declare
    fn declare_exchange(&mut self, spec: &ExchangeSpec<'_>) -> Result<Barrier, Fault>;
    /// exchange.delete
    fn delete_exchange(&mut self, name: &[u8], if_unused: bool) -> Result<Barrier, Fault>;
    /// queue.bind, exchange.bind
    fn bind(&mut self, spec: &BindingSpec<'_>) -> Result<Barrier, Fault>;
    /// queue.unbind, exchange.unbind
    fn unbind(&mut self, spec: &BindingSpec<'_>) -> Result<Barrier, Fault>;
    /// queue.declare
    fn declare_queue(&mut self, spec: &QueueSpec<'_>) -> Result<Declared, Fault>;
    /// queue.purge: how many went
    fn purge_queue(&mut self, name: &[u8]) -> Result<(u32, Barrier), Fault>;
    /// queue.delete: how many went
    fn delete_queue(&mut self, name: &[u8], if_unused: bool, if_empty: bool)
    -> Result<(u32, Barrier), Fault>;

    /// basic.consume; entries may be in the outbox before this returns.
    fn consume(&mut self, spec: &ConsumeSpec<'_>) -> Result<(Self::Queue, ConsumerId), Fault>;
    /// Removes a consumer; what it had in the outbox is appended to `undelivered` and is still to be
    /// requeued.
    fn cancel(
        &mut self,
        queue: &Self::Queue,
        consumer: ConsumerId,
        key: u32,
        undelivered: &mut Vec<Entry<Self::Durable>>,
    );
    /// How long a delivery may wait for its acknowledgement, as the consumer's arguments or else the queue's say:
    /// milliseconds, 0 for ever. `None` where neither does. Without arguments for basic.get.
    fn delivery_timeout_ms(&self, queue: &Self::Queue, arguments: Table<'_>) -> Option<u64>;
    /// Direct reply-to: a fresh address that cannot be guessed. What is published to it comes as
    /// [`Waiting::Reply`].
    fn open_replies(&mut self, to: ReplyTo) -> Result<Vec<u8>, Fault>;
    /// The address leads nowhere from now on.
    fn close_replies(&mut self, address: &[u8]);
    /// basic.get
    fn get(&mut self, queue: &[u8]) -> Result<Got<Self>, Fault>
    where
        Self: Sized;
    /// After a basic.get that found nothing: whether there is something all the same, which is being read back. If so
    /// the connection is woken, and is to ask again.
    fn waits_for(&mut self, _queue: &[u8]) -> bool {
        false
    }
    /// Acknowledged: all of one consumer (or of basic.get); leaves `entries` empty.
    fn settle(
        &mut self,
        queue: &Self::Queue,
        consumer: Option<ConsumerId>,
        entries: &mut Vec<Entry<Self::Durable>>,
    );
    /// Rejected for good: dead letters, where the queue says so.
    fn reject(
        &mut self,
        queue: &Self::Queue,
        consumer: Option<ConsumerId>,
        entries: Vec<Entry<Self::Durable>>,
    );
    /// Back to the queue, to their old places; the counts of `shares` make up the entries.
    fn requeue(&mut self, queue: &Self::Queue, shares: &[Share], entries: Vec<Entry<Self::Durable>>);
    /// Whether a delivery that comes back counts, and the next one tells so (`x-delivery-count`).
    fn counts_deliveries(&self, queue: &Self::Queue) -> bool;
    /// Whether what is acknowledged decides on what is published next: a connection's acknowledgements and
    /// publishes keep their order then, instead of going in batches.
    fn settles_in_order(&self, queue: &Self::Queue) -> bool;
    /// The consumer may have room again.
    fn resume(&mut self, queue: &Self::Queue, consumer: ConsumerId);
    /// A fresh name with that prefix, unguessable: base64url of 16 random bytes, as RabbitMQ's.
    fn unique_name(&mut self, prefix: &str) -> Result<Vec<u8>, Fault>;
    /// The conversation is over: the connection's exclusive queues go. May be called again.
    fn leave(&mut self);
}
