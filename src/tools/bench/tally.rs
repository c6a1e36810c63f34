//! What all connections of one run count together, and its clock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

/// Shared by the tasks of a run; written once for each piece that is read or written, never for each message.
pub struct Tally {
    origin: Instant,
    published: AtomicU64,
    confirmed: AtomicU64,
    delivered: AtomicU64,
    /// How many deliveries there will have been; unknown until everything is published.
    expected: AtomicU64,
    blocked: AtomicBool,
    complete: Notify,
}

impl Tally {
    /// The run's time starts here.
    pub fn start() -> Tally {
        Tally {
            origin: Instant::now(),
            published: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            expected: AtomicU64::new(u64::MAX),
            blocked: AtomicBool::new(false),
            complete: Notify::new(),
        }
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    /// Counts publishes.
    pub fn add_published(&self, count: u64) {
        self.published.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts confirms.
    pub fn add_confirmed(&self, count: u64) {
        self.confirmed.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts deliveries; who counts the last one that is due ends the run.
    pub fn add_delivered(&self, count: u64) {
        let before = self.delivered.fetch_add(count, Ordering::SeqCst);
        if before + count >= self.expected.load(Ordering::SeqCst) {
            self.complete.notify_one();
        }
    }

    /// Says how many deliveries are due, now that everything is published.
    pub fn expect(&self, deliveries: u64) {
        self.expected.store(deliveries, Ordering::SeqCst);
        if self.delivered() >= deliveries {
            self.complete.notify_one();
        }
    }

    /// Waits until all deliveries that are due were counted.
    pub async fn completed(&self) {
        self.complete.notified().await;
    }

    /// The broker told a publisher to stop for a while.
    pub fn note_blocked(&self) {
        self.blocked.store(true, Ordering::Relaxed);
    }

    /// Whether it ever did.
    pub fn was_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Messages handed to connections.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Messages confirmed.
    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Messages delivered.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::SeqCst)
    }
}
