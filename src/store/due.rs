//! When what waits in the inbox (commit.rs) is to be committed at the latest, and how long it has been there. One stamp
//! for each appender that put something; no lock and no clock of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::limits::{
    COMMIT_DELAY_HALF_LIFE_MS, COMMIT_PATIENCE_MS_MIN, COMMIT_QUIET_MS, PUT_AGE_MS_MAX, PUT_STAMPS_MAX,
};

/// What one appender put.
struct Stamp {
    /// The last place of it.
    place: u64,
    put: Instant,
    due: Instant,
}

/// The stamps of the last moments, in the commit order.
#[derive(Default)]
pub(super) struct Dues {
    stamps: VecDeque<Stamp>,
    /// Of what came up to here nobody knows when.
    forgotten: u64,
    /// How long what was due lately waited for its commit, and when that was seen.
    delay: Duration,
    measured: Option<Instant>,
    /// When something was put last that may wait.
    patient: Option<Instant>,
}

impl Dues {
    /// Something was put at `place`; gives when it is due. Stamps of what is `kept` may be forgotten.
    pub(super) fn add(&mut self, place: u64, now: Instant, patience: Option<Duration>, kept: u64) -> Instant {
        let patience = patience.map(|patience| patience.max(Duration::from_millis(COMMIT_PATIENCE_MS_MIN)));
        let due = now + patience.unwrap_or_default();
        if patience.is_some() {
            self.patient = Some(now);
        }
        if let Some(last) = self.stamps.back_mut().filter(|last| (last.put, last.due) == (now, due)) {
            last.place = place;
            return due;
        }
        self.stamps.push_back(Stamp { place, put: now, due });
        let is_old = |stamp: &Stamp| now - stamp.put > Duration::from_millis(PUT_AGE_MS_MAX);
        while self
            .stamps
            .front()
            .is_some_and(|first| first.place <= kept && (is_old(first) || self.stamps.len() > PUT_STAMPS_MAX))
        {
            self.forgotten = self.stamps.pop_front().map_or(0, |stamp| stamp.place);
        }
        due
    }

    /// When the first of what is not `kept` is due.
    pub(super) fn first_after(&self, kept: u64) -> Option<Instant> {
        self.after(kept).map(|stamp| stamp.due).min()
    }

    /// Until when the committer may sleep and miss nothing that is to come, while much of it may wait.
    pub(super) fn quiet_until(&self, now: Instant) -> Option<Instant> {
        let quiet = Duration::from_millis(COMMIT_QUIET_MS);
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < quiet;
        let patient = self.patient.filter(is_recent);
        patient.map(|_| now + Duration::from_millis(COMMIT_PATIENCE_MS_MIN))
    }

    /// How long ago something was put at that place; `None` when that is forgotten.
    pub(super) fn age(&self, place: u64, now: Instant) -> Option<Duration> {
        let at = self.stamps.partition_point(|stamp| stamp.place < place);
        let stamp = self.stamps.get(at).filter(|_| place > self.forgotten)?;
        Some(now.saturating_duration_since(stamp.put))
    }

    /// All up to `upto` is on the disk; until now that was so, or did not matter, up to `kept`.
    pub(super) fn committed(&mut self, kept: u64, upto: u64, now: Instant) {
        let taken = self.after(kept).take_while(|stamp| stamp.place <= upto);
        let Some(due) = taken.map(|stamp| stamp.due).min() else { return };
        let delay = now.saturating_duration_since(due);
        let fresh = 2 * Duration::from_millis(COMMIT_DELAY_HALF_LIFE_MS);
        self.delay = match self.measured.filter(|at| now.saturating_duration_since(*at) < fresh) {
            Some(_) => (self.commit_delay(now) * 7 + delay) / 8,
            None => delay,
        };
        self.measured = Some(now);
    }

    /// How long what is due waits for its commit, of late. What nobody has seen for a while counts less and less.
    pub(super) fn commit_delay(&self, now: Instant) -> Duration {
        let since = self.measured.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let halves = since.as_millis() / u128::from(COMMIT_DELAY_HALF_LIFE_MS);
        self.delay / 2u32.saturating_pow(u32::try_from(halves).unwrap_or(u32::MAX))
    }

    fn after(&self, kept: u64) -> impl Iterator<Item = &Stamp> {
        self.stamps.range(self.stamps.partition_point(|stamp| stamp.place <= kept)..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_due_of_what_is_not_kept_is_the_deadline() {
        let (mut dues, now) = (Dues::default(), Instant::now());
        dues.add(1, now, Some(50 * MS), 0);
        dues.add(2, now, Some(50 * MS), 0);
        dues.add(3, now + MS, Some(5 * MS), 0);
        assert_eq!(dues.add(4, now + 2 * MS, Some(20 * MS), 0), now + 22 * MS);
        assert_eq!(dues.stamps.len(), 3, "one for each appender");
        assert_eq!(dues.first_after(0), Some(now + 6 * MS));
        assert_eq!(dues.first_after(1), Some(now + 6 * MS), "half of the first");
        assert_eq!(dues.first_after(3), Some(now + 22 * MS));
        assert_eq!(dues.first_after(4), None);
    }

    #[test]
    fn what_is_old_and_kept_is_forgotten_and_has_no_age() {
        let (mut dues, now) = (Dues::default(), Instant::now());
        let late = now + Duration::from_millis(PUT_AGE_MS_MAX + 1);
        dues.add(1, now, None, 0);
        dues.add(2, now, Some(2 * MS), 0);
        assert_eq!((dues.age(1, now + MS), dues.age(2, now + MS)), (Some(MS), Some(MS)));
        dues.add(3, late, None, 1);
        assert_eq!((dues.age(1, late), dues.age(2, late).is_some()), (None, true), "the second is not kept");
        dues.add(4, late + MS, None, 3);
        assert_eq!((dues.age(2, late), dues.age(3, late + MS)), (None, Some(MS)));
        assert_eq!(dues.age(5, late), None);
    }

    #[test]
    fn a_commits_delay_counts_from_when_it_was_due_and_fades() {
        let (mut dues, now) = (Dues::default(), Instant::now());
        assert_eq!(dues.commit_delay(now), Duration::ZERO);
        dues.add(1, now, None, 0);
        dues.add(2, now, Some(10 * MS), 0);
        dues.add(3, now + MS, Some(10 * MS), 0);
        dues.committed(1, 3, now + 14 * MS);
        assert_eq!(dues.commit_delay(now + 14 * MS), 4 * MS);
        let half = Duration::from_millis(COMMIT_DELAY_HALF_LIFE_MS);
        assert_eq!(dues.commit_delay(now + 14 * MS + half), 2 * MS);
        assert_eq!(dues.commit_delay(now + 100 * half), Duration::ZERO);
        // A commit that nobody waited for says nothing.
        dues.committed(3, 9, now + 20 * MS);
        assert_eq!(dues.commit_delay(now + 14 * MS), 4 * MS);
    }

    #[test]
    fn the_committer_looks_often_only_while_puts_may_wait() {
        let (mut dues, now) = (Dues::default(), Instant::now());
        dues.add(1, now, None, 0);
        assert_eq!(dues.quiet_until(now), None);
        dues.add(2, now, Some(MS), 0);
        assert_eq!(dues.quiet_until(now), Some(now + Duration::from_millis(COMMIT_PATIENCE_MS_MIN)));
        assert_eq!(dues.quiet_until(now + Duration::from_millis(COMMIT_QUIET_MS)), None);
    }
}
