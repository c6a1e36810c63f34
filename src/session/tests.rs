//! The session as a state machine, over a broker of plain data: what a client writes, what it reads back,
//! and what the broker was asked meanwhile.

mod access;
mod desk;
mod handshake;
mod publishing;
mod receiving;
mod replies;
mod scopes;
mod timeouts;
