//! SealMQ: an AMQPS-first broker whose data directory holds nothing readable.
//!
//! # The map
//!
//! A module imports only from modules above it in this table (`tests/tidy.rs` checks it), and each
//! outside power has exactly one owner.
//!
//! | Layer | Module | What lives there |
//! |---|---|---|
//! | L0 | [`limits`] | every bound, with its unit and its reason |
//! | L1 | [`amqp`] | bytes to frames to methods; knows the wire, nothing else |
//! | L2 | [`broker`] | the rules of AMQP as plain data: no sockets, disk, clock or locks |
//! | L3 | [`session`] | one client conversation as a state machine, sans-IO |
//! | L4 | [`seal`] | the only cryptography of data at rest |
//! | L5 | [`store`] | the only disk: one committer, RocksDB |
//! | L6 | [`engine`] | the only shared state: joins broker and store |
//! | L7 | [`net`] | the only AMQP sockets, TLS |
//! | L8 | [`server`], [`tools`] | composition root, configuration, control socket; the other programs |
//!
//! # The road of a message
//!
//! ```text
//! socket -> net::connection -> amqp::frame -> session::channel    bytes become one Publish
//!   -> engine::publish      route on a snapshot (no lock) -> queues
//!   -> engine::operations   short lock: the queue gives it a place; the store's inbox is told first,
//!                           then consumers' outboxes (pointer moves only); dead letters after the unlock
//!        |                                  |
//!   store::commit (one thread)         consumer's task: session::basic -> amqp -> socket
//!   gather, seal, one write, one sync       ... its acks -> engine::operations -> inbox (delete,
//!   watermark -> publisher confirms                or strike the put out if it was not written)
//! ```
//!
//! # Invariants
//!
//! * A persistent record is in the committer's inbox before any consumer can see its message, so a
//!   delete can never precede its put.
//! * Nothing is awaited, sealed or written under a lock. Lock order: topology, one queue, then a leaf
//!   (an outbox, the line of what a queue gave up, or the committer's inbox).
//! * A confirm, a declare-ok for something durable, and a tx commit-ok leave only after the watermark
//!   has passed the record that they promise.
//! * Transient messages and non-durable queues never enter the inbox, so nothing of them outlives the process. What a
//!   queue has beyond its window is on the disk meanwhile, under a key that is not.

pub mod amqp;
pub mod broker;
pub mod engine;
pub mod limits;
pub mod net;
pub mod seal;
pub mod server;
pub mod session;
pub mod store;
pub mod tools;
