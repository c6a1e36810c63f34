//! Removing from the disk what was deleted. A deletion is one more record at first: what it deletes stays in the
//! write-ahead log, the tables and the blob files until RocksDB comes to rewrite them, which may be never. So a
//! thread has what was deleted without a tombstone (remains.rs) get one, the logs flushed and everything rewritten, once
//! in half of [`super::OpenOptions::erase_within`]; the other half is for the work itself.
//!
//! A small file says until when all deletions have been carried out, so that a restart neither begins anew nor
//! forgets. Files are unlinked: what the disk does with their blocks is not known here.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Unpark;
use super::commit::{Core, Position};
use super::committer::now_ms;
use super::error::StoreError;
use super::files;
use super::open::DATABASE_DIR;
use super::rocks::Rocks;
use crate::limits::ERASE_RETRY_PARTS;

/// The file: Unix milliseconds, as text.
pub(super) const ERASED_FILE: &str = "erased";

/// How often it is looked whether what must be written before a round is; it is told at once.
const SWEEP_STEP: Duration = Duration::from_secs(1);

/// A thread's end is looked for this often; it comes at once.
const END_STEP: Duration = Duration::from_millis(2);

/// The thread, and how to end it.
pub(super) struct Eraser {
    shared: Arc<Shared>,
    rocks: Weak<Rocks>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    /// Since the store was opened.
    rounds: AtomicU64,
}

impl Shared {
    fn ends(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// Whether the end has come; parks this thread, the eraser's, no longer than `rest`.
    fn ends_within(&self, rest: Duration) -> bool {
        let began = Instant::now();
        while !self.ends() {
            let left = rest.saturating_sub(began.elapsed());
            if left.is_zero() {
                return false;
            }
            std::thread::park_timeout(left);
        }
        true
    }
}

impl Eraser {
    /// Starts the thread.
    pub(super) fn start(
        dir: &Path,
        rocks: Weak<Rocks>,
        core: &Arc<Core>,
        within: Duration,
        is_new: bool,
    ) -> Result<Eraser, StoreError> {
        let shared = Arc::new(Shared::default());
        let duty = Duty {
            dir: dir.to_path_buf(),
            rocks: Weak::clone(&rocks),
            core: Arc::downgrade(core),
            shared: Arc::clone(&shared),
            within,
            carried_out: is_new.then_some(0),
        };
        let thread = std::thread::Builder::new().name("sealmq-erase".into()).spawn(|| duty.run());
        Ok(Eraser { shared, rocks, thread: thread.map_err(|e| StoreError::system(dir, e))? })
    }

    /// Ends it, in the middle of its work if need be. Returns when it holds nothing any more.
    pub(super) fn stop(&self) {
        self.shared.ends.store(true, Ordering::Release);
        self.thread.thread().unpark();
        if let Some(rocks) = self.rocks.upgrade() {
            rocks.give_up_compactions();
        }
        while !self.thread.is_finished() {
            std::thread::park_timeout(END_STEP);
        }
    }

    /// Waits until deletions that are on the disk now have been carried out.
    #[cfg(test)]
    pub(super) fn wait_for_a_round(&self, limit: Duration) -> bool {
        let rounds = || self.shared.rounds.load(Ordering::Acquire);
        // One that is under way may have begun too early.
        let (wanted, began) = (rounds() + 2, Instant::now());
        while rounds() < wanted && began.elapsed() < limit {
            std::thread::park_timeout(END_STEP);
        }
        rounds() >= wanted
    }
}

/// What the thread does.
struct Duty {
    dir: PathBuf,
    rocks: Weak<Rocks>,
    core: Weak<Core>,
    shared: Arc<Shared>,
    within: Duration,
    /// How many deletions there were at the beginning of the last round; `None` before the first.
    carried_out: Option<u64>,
}

impl Duty {
    fn run(mut self) {
        let mut rest = first_wait(read(&self.dir), now_ms(), self.within / 2);
        while !self.shared.ends_within(rest) {
            let began = Instant::now();
            rest = match self.round() {
                Outcome::Done => rest_after(began.elapsed(), self.within),
                Outcome::Postponed => self.within / ERASE_RETRY_PARTS,
                Outcome::Over => return,
            };
        }
    }

    fn round(&mut self) -> Outcome {
        let (Some(rocks), Some(core)) = (self.rocks.upgrade(), self.core.upgrade()) else {
            return Outcome::Over;
        };
        let (began, began_ms) = (Instant::now(), now_ms());
        let deletions = core.deletions();
        if self.carried_out != Some(deletions) {
            // First: RocksDB may drop some of it on its own where there is no room for the rest.
            if !self.sweep(&core) {
                return Outcome::Over;
            }
            let (free, bytes) = (free_bytes(&self.dir), rocks.file_bytes());
            if !has_room(free, bytes) {
                tracing::warn!(
                    free,
                    bytes,
                    "deleted messages stay on the disk: too little of it is free to rewrite the rest"
                );
                return Outcome::Postponed;
            }
            if let Err(e) = rocks.carry_out_deletions() {
                if self.shared.ends() {
                    return Outcome::Over;
                }
                tracing::warn!(code = e.code(), "deleted messages stay on the disk: {e}");
                return Outcome::Postponed;
            }
        }
        if self.shared.ends() {
            // It may have been given up half way.
            return Outcome::Over;
        }
        let (took, limit) = (began.elapsed(), self.within / 2);
        if took > limit {
            let (took, limit) = (took.as_secs(), limit.as_secs());
            tracing::warn!(took, limit, "removing deleted messages from the disk takes longer than it may");
        }
        self.carried_out = Some(deletions);
        if let Err(e) = files::replace(&self.dir, ERASED_FILE, format!("{began_ms}\n").as_bytes(), |_| Ok(()))
        {
            tracing::warn!(code = e.code(), "the next start will rewrite more than it must: {e}");
        }
        self.shared.rounds.fetch_add(1, Ordering::Release);
        Outcome::Done
    }
}

impl Duty {
    /// Has what was deleted without a tombstone get one, on the disk; false at the store's end.
    fn sweep(&self, core: &Core) -> bool {
        let mut appender = core.appender();
        let place = appender.sweep();
        appender.wake(Waker::from(Arc::new(Unpark(std::thread::current()))));
        drop(appender);
        while core.durable() < place {
            if place == Position::NEVER || core.failure().is_some() || self.shared.ends() {
                return false;
            }
            std::thread::park_timeout(SWEEP_STEP);
        }
        true
    }
}

enum Outcome {
    Done,
    Postponed,
    /// The store is being closed.
    Over,
}

fn read(dir: &Path) -> Option<u64> {
    let text = files::read(&dir.join(ERASED_FILE)).ok().flatten()?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

/// How long the next round can wait after one that took so long: what was deleted at its beginning is as old as that.
fn rest_after(took: Duration, within: Duration) -> Duration {
    let rest = (within / 2).saturating_sub(took);
    // Where the work takes longer than its half, that was said; clients are to be served all the same.
    if rest.is_zero() { within / ERASE_RETRY_PARTS } else { rest }
}

/// How long the first round can wait: not at all where nobody knows when the last one was.
fn first_wait(last_ms: Option<u64>, now_ms: u64, interval: Duration) -> Duration {
    // A clock that was set back says nothing either.
    let passed = last_ms.and_then(|last| now_ms.checked_sub(last)).map(Duration::from_millis);
    passed.map_or(Duration::ZERO, |passed| interval.saturating_sub(passed))
}

fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir.join(DATABASE_DIR))
        .map_or(0, |facts| facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// The new files are there before the old ones go; and the disk's alarm needs its share.
fn has_room(free: u64, bytes: u64) -> bool {
    free / 2 >= bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_goes_on_where_the_last_round_was() {
        let hour = Duration::from_secs(3600);
        let at = |last| first_wait(last, 10 * 3_600_000, hour);
        assert_eq!(at(None), Duration::ZERO, "a store of a version that did not say, or a backup");
        assert_eq!(at(Some(5 * 3_600_000)), Duration::ZERO);
        assert_eq!(at(Some(9 * 3_600_000 + 1)), Duration::from_millis(1));
        assert_eq!(at(Some(10 * 3_600_000)), hour);
        assert_eq!(at(Some(11 * 3_600_000)), Duration::ZERO, "from the future");
    }

    /// Rounds once began half of the time after the last one had ended: what was deleted while that was at work had
    /// to wait for that, for the pause and for the next round.
    #[test]
    fn from_one_round_to_the_next_passes_half_of_the_time_at_most() {
        let (hour, within) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        for hours in [0, 1, 7, 11] {
            let took = hours * hour;
            assert_eq!(took + rest_after(took, within), 12 * hour);
        }
        assert_eq!(
            rest_after(13 * hour, within),
            within / ERASE_RETRY_PARTS,
            "it has no time left, and rests"
        );
    }

    #[test]
    fn nothing_is_rewritten_where_it_could_fill_the_disk() {
        assert!(has_room(2000, 1000) && has_room(0, 0));
        assert!(!has_room(1999, 1000) && !has_room(0, 1));
    }

    #[test]
    fn a_file_that_says_nothing_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), None);
        for (text, expected) in [("17\n", Some(17)), ("x", None), ("\u{fffd}", None), ("-1", None)] {
            std::fs::write(dir.path().join(ERASED_FILE), text).unwrap();
            assert_eq!(read(dir.path()), expected);
        }
    }
}
