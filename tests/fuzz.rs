//! Fuzz targets: whatever a peer or a file says, nothing panics, hangs, or takes more memory than the length
//! of the input and src/limits.rs allow; and what is computed is what a plain model computes.
//!
//! Each target runs in a process of its own, so that a crash, an overflown stack or a refused allocation is
//! seen from outside and the input that did it is kept in a file, which the failure names:
//!
//!     SEALMQ_FUZZ_SECONDS=60 cargo test --release --test fuzz -- --test-threads=16
//!     SEALMQ_FUZZ_INPUT=target/tmp/fuzz-session.crash cargo test --test fuzz session
//!
//! | Target | Input |
//! |---|---|
//! | `frames` | a stream of frames, in pieces |
//! | `tables` | a field table, as arguments of all kinds and as headers |
//! | `properties` | a content header, as it is published and dead-lettered |
//! | `topics` | a key, and patterns that come and go |
//! | `handshake` | a connection from its first byte |
//! | `session` | a conversation after connection.open-ok, with the engine and a store behind it |
//! | `logs` | a log of the database, damaged |
//! | `records` | what a store keeps: messages, envelopes, keyrings, plaintexts, rows |

#[path = "fuzz/broker.rs"]
mod broker;
#[path = "fuzz/conversation.rs"]
mod conversation;
#[path = "fuzz/driver.rs"]
mod driver;
#[path = "fuzz/logs.rs"]
mod logs;
#[path = "fuzz/random.rs"]
mod random;
#[path = "fuzz/records.rs"]
mod records;
#[path = "fuzz/topics.rs"]
mod topics;
#[path = "fuzz/wire.rs"]
mod wire;

use std::alloc::System;

use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc};

#[global_allocator]
static MEMORY: &PeakMemAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn frames() {
    driver::campaign("frames", || wire::Frames);
}

#[test]
fn tables() {
    driver::campaign("tables", || wire::Tables);
}

#[test]
fn properties() {
    driver::campaign("properties", || wire::ContentHeaders);
}

#[test]
fn topics() {
    driver::campaign("topics", || topics::Topics);
}

#[test]
fn handshake() {
    driver::campaign("handshake", broker::Handshake::new);
}

#[test]
fn session() {
    driver::campaign("session", broker::Conversation::new);
}

#[test]
fn logs() {
    driver::campaign("logs", || logs::Logs);
}

#[test]
fn records() {
    driver::campaign("records", records::Records::new);
}
