//! One line on a terminal that is drawn over and over, for who waits; nothing where standard error is no terminal.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use crate::store::ReadProgress;

const DRAWN_EACH: Duration = Duration::from_millis(100);

/// The line; gone when it is dropped.
pub struct ProgressLine {
    is_terminal: bool,
    drawn: Option<Instant>,
}

impl ProgressLine {
    /// Nothing is drawn yet.
    #[expect(clippy::new_without_default, reason = "it asks what standard error is")]
    pub fn new() -> ProgressLine {
        ProgressLine { is_terminal: io::stderr().is_terminal(), drawn: None }
    }

    /// Draws the line anew, unless it was a moment ago.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        let is_due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAWN_EACH);
        if self.is_terminal && is_due {
            // A line of the log begins where this one does.
            eprint!("\r\x1b[K{}\r", text());
            self.drawn = Some(Instant::now());
        }
    }

    /// Takes it away.
    pub fn clear(&mut self) {
        if self.drawn.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How far the reading of messages has come, in words.
pub(super) fn reading(progress: ReadProgress) -> String {
    let ReadProgress { messages, expected, elapsed, .. } = progress;
    let per_second = (messages as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    // What is left of a purge is read as well, and expected by nobody.
    match messages <= expected {
        true => format!("reading the store: {messages} of {expected} messages, {per_second}/s"),
        false => format!("reading the store: {messages} messages, {per_second}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_of_how_many_and_how_fast() {
        let progress = ReadProgress {
            messages: 30,
            expected: 40,
            elapsed: Duration::from_secs(2),
            ..Default::default()
        };
        assert_eq!(reading(progress), "reading the store: 30 of 40 messages, 15/s");
        let more = ReadProgress { expected: 29, ..progress };
        assert_eq!(reading(more), "reading the store: 30 messages, 15/s");
        assert_eq!(reading(ReadProgress::default()), "reading the store: 0 of 0 messages, 0/s");
    }
}
