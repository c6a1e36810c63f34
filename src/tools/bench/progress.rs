//! A line on standard error that tells how far a run is, when that is a terminal; nothing else ever goes there from here.

use std::convert::Infallible;
use std::io::{IsTerminal, Write, stderr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::tally::Tally;

/// How often the line is written anew.
const STEP: Duration = Duration::from_millis(250);

/// The line, and what it counts.
pub struct Progress {
    is_shown: bool,
    label: Mutex<String>,
    tally: Mutex<Option<Arc<Tally>>>,
}

impl Progress {
    /// Shows itself on a terminal unless it is to be quiet.
    pub fn new(is_quiet: bool) -> Progress {
        Progress {
            is_shown: !is_quiet && stderr().is_terminal(),
            label: Mutex::default(),
            tally: Mutex::default(),
        }
    }

    /// What is going on.
    pub fn label(&self, text: String) {
        *self.label.lock().unwrap_or_else(PoisonError::into_inner) = text;
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Counts this run from now on.
    pub fn watch(&self, tally: &Arc<Tally>) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(tally));
    }

    /// Messages published in this run.
    pub fn published(&self) -> u64 {
        self.tally().map_or(0, |tally| tally.published())
    }

    /// Messages delivered in this run.
    pub fn delivered(&self) -> u64 {
        self.tally().map_or(0, |tally| tally.delivered())
    }

    fn tally(&self) -> Option<Arc<Tally>> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the line again and again.
    pub async fn show(&self) -> Infallible {
        if !self.is_shown {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(STEP).await;
            let label = self.label.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let line = match self.tally() {
                Some(tally) => line(&label, &tally),
                None => label,
            };
            let _ = write!(stderr().lock(), "\r\x1b[K{line}");
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if self.is_shown {
            let _ = write!(stderr().lock(), "\r\x1b[K");
        }
    }
}

fn line(label: &str, tally: &Tally) -> String {
    let (published, confirmed, delivered) = (tally.published(), tally.confirmed(), tally.delivered());
    let rate = |count: u64| count as f64 * 1e6 / tally.now_us().max(1) as f64;
    let blocked = if tally.was_blocked() { ", blocked by the broker" } else { "" };
    format!(
        "{label}: {published} published ({:.0}/s), {confirmed} confirmed, {delivered} delivered ({:.0}/s){blocked}",
        rate(published),
        rate(delivered)
    )
}
