//! The only AMQP sockets: listening, TLS, and one task for each connection, which owns its session
//! outright. No queue, no rule and no cryptography of data at rest lives here.

mod connection;
mod listener;
mod private_key;
mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
mod unread;

pub use listener::{Listening, Settings, Stop, bind, serve};
