//! AMQP 0-9-1 on the wire: bytes to frames to methods and back. It knows the wire and nothing else: no
//! sockets, no clock, no broker. Everything decoded borrows from the buffer it was read from.
//!
//! Implemented: AMQP 0-9-1 section 4.2 (framing, data types), section 1 (methods) with RabbitMQ's
//! extensions (exchange.bind, basic.nack, confirm.select, connection.blocked, connection.update-secret).

pub mod field_table;
pub mod frame;
pub mod method;
pub mod properties;
pub mod reader;
pub mod reply_code;
#[cfg(test)]
mod tests;
pub mod writer;
