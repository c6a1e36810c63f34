//! One client's conversation as a state machine: bytes in, bytes out, and questions to the broker
//! through [`port::Broker`]. No sockets, no clock, no tasks: `net` owns those and drives this.
//!
//! ```text
//! header -> start / start-ok -> (login) -> tune / tune-ok -> open -> OPEN -> closing -> closed
//!              handshake.rs                                     connection.rs
//! ```
//!
//! In: [`Session::handle_bytes`], [`Session::handle_login`], [`Session::handle_deliveries`],
//! [`Session::handle_kept`], [`Session::handle_alarm`], [`Session::handle_clock`], [`Session::shut_down`].
//! Out: [`Session::output`], [`Session::take_login`]. After each call the output is to be flushed.

mod basic;
mod channel;
mod confirm;
mod connection;
mod content;
mod handshake;
mod output;
pub mod port;
mod publish;
mod replies;
mod settle;
#[cfg(test)]
mod tests;
mod timeouts;
mod topology;
mod transaction;
mod unacked;

pub use connection::Session;
pub use handshake::{Identity, Peer, Settings};
pub use output::Output;
