//! The unacknowledged messages that one channel may have in all its consumers together
//! (basic.qos with global=true, as RabbitMQ reads it). Per-consumer prefetch lives in the queue.

use std::sync::atomic::{AtomicU32, Ordering};

/// Shared by a channel and its consumers; queues of different locks take from it at once.
#[derive(Debug, Default)]
pub struct ChannelCredit {
    /// 0 is unlimited
    limit: AtomicU32,
    used: AtomicU32,
}

impl ChannelCredit {
    /// Sets the limit; 0 lifts it.
    pub fn set_limit(&self, limit: u16) {
        self.limit.store(u32::from(limit), Ordering::Release);
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Acquire) > 0
    }

    /// Takes room for one message, if there is any. Without a limit there always is; it is counted all
    /// the same, for the limit may come while the message is under way.
    pub fn take(&self) -> bool {
        let limit = self.limit.load(Ordering::Acquire);
        let grow = |used: u32| (limit == 0 || used < limit).then_some(used + 1);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).is_ok()
    }

    /// Gives back room for `count` messages.
    pub fn give_back(&self, count: u32) {
        let shrink = |used: u32| Some(used.saturating_sub(count));
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, shrink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_more_than_its_limit_and_takes_back() {
        let credit = ChannelCredit::default();
        assert!(credit.take() && !credit.is_limited());
        credit.set_limit(2);
        assert!(credit.take() && !credit.take());
        credit.give_back(1);
        assert!(credit.take() && !credit.take());
    }

    #[test]
    fn counts_what_was_taken_before_the_limit_was_set() {
        let credit = ChannelCredit::default();
        assert!((0..3).all(|_| credit.take()));
        credit.set_limit(2);
        credit.give_back(1);
        assert!(!credit.take(), "two are out still");
        credit.give_back(1);
        assert!(credit.take() && !credit.take());
    }
}
