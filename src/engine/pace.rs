//! How soon the consumers of a queue acknowledge what is put into it, which decides whether a commit waits for that.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::limits::{COMMIT_PATIENCE_MS_MIN, PUT_AGE_MS_MAX};
use crate::store::Position;

/// One queue's; no lock, and a lost update does no harm.
#[derive(Default)]
pub(super) struct Pace {
    /// In microseconds: about one of forty acknowledgements takes longer. 0 is not known.
    most_us: AtomicU32,
    /// Place of the last put that was left time, while nothing has been acknowledged since; 0 is none.
    unanswered: AtomicU64,
}

impl Pace {
    /// What was put so long ago has been acknowledged; `None` is long ago.
    pub(super) fn acknowledged(&self, age: Option<Duration>) {
        let longest = Duration::from_millis(PUT_AGE_MS_MAX);
        let age_us = age.unwrap_or(longest).min(longest).as_micros() as u32;
        let before = self.most_us.load(Relaxed);
        let after = match before {
            0 => age_us,
            most if age_us > most => most + (age_us - most).div_ceil(2),
            most => most - (most - age_us) / 64,
        };
        self.most_us.store(after.max(1), Relaxed);
        self.unanswered.store(0, Relaxed);
    }

    /// What was put up to there was left time for its acknowledgement.
    pub(super) fn waits(&self, last: Position) {
        self.unanswered.store(last.0, Relaxed);
    }

    /// All up to `durable` has been written. If nothing was acknowledged meanwhile, consumers that were quick may have
    /// stopped, and are left time only a few times more.
    pub(super) fn written(&self, durable: Position) {
        let unanswered = self.unanswered.load(Relaxed);
        if unanswered > 0 && unanswered <= durable.0 {
            let most = self.most_us.load(Relaxed);
            self.most_us.store(most.saturating_add(most / 2 + 1), Relaxed);
            self.unanswered.store(0, Relaxed);
        }
    }

    /// Whether acknowledgements come at all soon after what they are for, as far as is known.
    pub(super) fn is_brisk(&self) -> bool {
        let most_us = self.most_us.load(Relaxed);
        most_us > 0 && u64::from(most_us) < PUT_AGE_MS_MAX * 1000 / 2
    }

    /// How long a put may wait for its acknowledgement, if that is likely to come about as soon as a commit, which has
    /// taken `commit_delay` of late: half of the slowest is about what most take.
    pub(super) fn patience(&self, commit_delay: Duration) -> Option<Duration> {
        let most = Duration::from_micros(self.most_us.load(Relaxed).into());
        let worth = (2 * commit_delay).max(Duration::from_millis(COMMIT_PATIENCE_MS_MIN));
        (!most.is_zero() && most <= worth).then(|| most + most / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nobody_waits_for_consumers_that_are_slow_or_unknown() {
        let pace = Pace::default();
        assert_eq!(pace.patience(MS), None);
        pace.acknowledged(Some(MS / 2));
        assert_eq!(pace.patience(Duration::ZERO), Some(MS / 2 + MS / 8));
        assert!(pace.is_brisk());
        pace.acknowledged(None);
        pace.acknowledged(None);
        assert_eq!((pace.patience(MS), pace.is_brisk()), (None, false));
        assert!(pace.patience(40 * MS).is_some(), "a commit takes as long");
    }

    #[test]
    fn consumers_that_have_stopped_are_soon_left_no_time() {
        let pace = Pace::default();
        pace.acknowledged(Some(MS / 4));
        let mut place = 0;
        while pace.patience(MS / 2).is_some() {
            place += 1;
            pace.waits(Position(place));
            pace.written(Position(place - 1));
            assert!(pace.patience(MS / 2).is_some(), "it may still be acknowledged");
            pace.written(Position(place));
        }
        assert!((2..10).contains(&place), "{place}");
    }

    #[test]
    fn it_is_the_slowest_acknowledgements_that_count() {
        let pace = Pace::default();
        for round in 0..1000 {
            pace.acknowledged(Some(if round % 10 == 0 { 4 * MS } else { MS / 4 }));
        }
        assert!(pace.patience(MS).is_none() && pace.patience(2 * MS).is_some());
        (0..1000).for_each(|_| pace.acknowledged(Some(MS / 4)));
        assert!(pace.patience(MS).is_some_and(|patience| patience < MS));
    }
}
