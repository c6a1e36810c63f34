//! The rules of AMQP 0-9-1 as plain data. No sockets, disk, clock, locks or cryptography: time and
//! randomness come in as arguments, what must happen goes out as return values.
//!
//! Vocabulary: an *entry* is one message's place in one queue; it is *ready* in the queue, or *taken*
//! (handed to a consumer's outbox or session, which owns it until it is settled or given back).

pub mod credit;
pub mod fault;
pub mod id;
pub mod message;
pub mod queue;
