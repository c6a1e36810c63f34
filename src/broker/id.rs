//! Opaque numbers for queues, entries, bodies and rows. Only these ever become part of a RocksDB key,
//! so that keys tell nothing but counts and order.

/// A queue, an exchange, a binding or a user in the store; never reused within one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub u64);

/// A queue. The same number space as [`RowId`]: a durable queue's row carries its queue id, and a delayed
/// exchange's row that of the queue in which its messages wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub u64);

/// An entry's place in its queue: rises with each publish, never reused; the first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub u64);

/// A body that is stored apart from its entries (large, or routed to several queues).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyId(pub u64);
