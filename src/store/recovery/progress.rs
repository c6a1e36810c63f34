//! Tells those who wait for a start how far the reading of messages has come.

use std::time::{Duration, Instant};

/// How often it is logged.
const LOGGED_EACH: Duration = Duration::from_secs(1);
/// Entries between two looks at the clock, which cost more than an entry does.
const LOOK_EACH: u64 = 4096;

/// How far the reading of messages has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadProgress {
    /// Messages that were read.
    pub messages: u64,
    /// How many there should be, as their queues' counts say.
    pub expected: u64,
    /// For how long it is going on.
    pub elapsed: Duration,
    /// That was all.
    pub is_over: bool,
}

/// Is told how far the reading of messages has come.
pub type OnProgress = Box<dyn FnMut(ReadProgress) + Send>;

pub(super) struct Progress<'a> {
    messages: u64,
    pub(super) expected: u64,
    logged: Instant,
    since: Instant,
    tell: &'a mut dyn FnMut(ReadProgress),
}

impl<'a> Progress<'a> {
    pub(super) fn new(tell: &'a mut dyn FnMut(ReadProgress)) -> Progress<'a> {
        let now = Instant::now();
        Progress { messages: 0, expected: 0, logged: now, since: now, tell }
    }

    pub(super) fn step(&mut self) {
        self.messages += 1;
        if self.messages.is_multiple_of(LOOK_EACH) {
            self.tell(false);
            if self.logged.elapsed() >= LOGGED_EACH {
                self.logged = Instant::now();
                let (messages, expected) = (self.messages, self.expected);
                tracing::info!(messages, expected, "reading the store");
            }
        }
    }

    pub(super) fn end(&mut self) {
        self.tell(true);
        let elapsed_ms = self.since.elapsed().as_millis() as u64;
        tracing::info!(messages = self.messages, elapsed_ms, "the store was read");
    }

    fn tell(&mut self, is_over: bool) {
        let (messages, expected, elapsed) = (self.messages, self.expected, self.since.elapsed());
        (self.tell)(ReadProgress { messages, expected, elapsed, is_over });
    }
}
