//! The only shared state: joins the broker's rules to the store and to the connections.
//!
//! Lock order: one exchange's history, the topology's write lock, then one queue, then a leaf (an outbox,
//! the line of what a queue gave up, or the committer's inbox). Never two queues at once; nothing is awaited, sealed or written under any of
//! them. Routing reads a snapshot and takes no lock at all, unless an exchange keeps a history.
//!
//! * [`Engine`] owns what there is once; [`Client`] is the broker as one connection sees it.
//! * A record is in the inbox before its entry can be taken, so a delete never precedes its put.

mod access;
mod alarm;
mod bindings;
mod burial;
mod client;
mod delays;
mod duplicates;
mod engine_core;
mod exchanges;
mod history;
mod letters;
mod operations;
mod outbox;
mod pace;
mod pager;
mod picture;
mod publish;
mod queue_cell;
mod queues;
mod recover;
mod replies;
mod rights;
mod rows;
mod spiller;
#[cfg(test)]
mod tests;
mod timers;
mod transaction;
pub mod view;

pub use access::{User, UserSpec, Users};
pub use alarm::{Alarm, Thresholds};
pub use client::Client;
pub use engine_core::{Engine, EngineError};
pub use outbox::Outbox;
pub use rights::Permissions;
pub use rows::row_name;
