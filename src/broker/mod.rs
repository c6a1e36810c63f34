//! The rules of AMQP 0-9-1 as plain data. No sockets, disk, clock, locks or cryptography: time and
//! randomness come in as arguments, what must happen goes out as return values.
//!
//! Vocabulary: an *entry* is one message's place in one queue; it is *ready* in the queue, or *taken*
//! (handed to a consumer's outbox or session, which owns it until it is settled or given back).

pub mod arguments;
pub mod credit;
pub mod dead_letter;
pub mod dedup;
pub mod delay;
pub mod equivalence;
pub mod exchange;
pub mod exchange_arguments;
pub mod fault;
pub mod hash;
pub mod headers;
pub mod id;
pub mod letters;
mod level;
pub mod message;
pub mod name;
pub mod queue;
mod queue_rules;
pub mod queue_type;
mod ready;
mod round;
pub mod route;
pub mod routing_keys;
pub mod small_map;
mod spilled;
pub mod term;
#[cfg(test)]
mod tests;
pub mod topic;
pub mod topology;
