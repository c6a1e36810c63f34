//! Alarms: too little memory or disk, so publishers are blocked (RabbitMQ's memory and disk alarms).
//! Deciding is plain data; who measures and when is the server's business.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::limits::{ALARM_LOOK_MS_MAX, ALARM_LOOK_MS_MIN, ALARM_RATE_BYTES_PER_MS};

/// Which resources run short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarm {
    /// more resident memory than the watermark
    pub memory: bool,
    /// less free disk than the limit
    pub disk: bool,
}

/// Where the alarms are, from `vm_memory_high_watermark` and `disk_free_limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// resident bytes; 0 is no limit
    pub memory_bytes_max: u64,
    /// free bytes of the file system that holds the store; 0 is no limit
    pub disk_free_bytes_min: u64,
}

impl Thresholds {
    /// What is short, given what was measured; `None` where it could not be.
    pub fn judge(&self, memory_bytes: Option<u64>, disk_free_bytes: Option<u64>) -> Alarm {
        Alarm {
            memory: self.memory_bytes_max > 0
                && memory_bytes.is_some_and(|used| used > self.memory_bytes_max),
            disk: disk_free_bytes.is_some_and(|free| free < self.disk_free_bytes_min),
        }
    }

    /// When to look again: the less is left of a resource, the sooner, so that a fast publisher does not use it up
    /// between two looks.
    pub fn look_again_in(&self, memory_bytes: Option<u64>, disk_free_bytes: Option<u64>) -> Duration {
        let memory = memory_bytes
            .filter(|used| (1..self.memory_bytes_max).contains(used))
            .map(|used| self.memory_bytes_max - used);
        let disk = disk_free_bytes.and_then(|free| free.checked_sub(self.disk_free_bytes_min));
        let left = memory.into_iter().chain(disk).min();
        let ms = left.map_or(ALARM_LOOK_MS_MAX, |bytes| bytes / ALARM_RATE_BYTES_PER_MS);
        Duration::from_millis(ms.clamp(ALARM_LOOK_MS_MIN, ALARM_LOOK_MS_MAX))
    }
}

/// The present alarm, read by every connection at each turn.
#[derive(Default)]
pub(super) struct AlarmState(AtomicU8);

impl AlarmState {
    /// True when it changes anything.
    pub fn set(&self, alarm: Alarm) -> bool {
        let bits = u8::from(alarm.memory) | u8::from(alarm.disk) << 1;
        self.0.swap(bits, Ordering::AcqRel) != bits
    }

    /// The reason in connection.blocked, in RabbitMQ's words.
    pub fn reason(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some("low on memory"),
            2 => Some("low on disk"),
            _ => Some("low on memory & disk"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_raised_beyond_the_thresholds_and_named_as_rabbitmq_does() {
        let thresholds = Thresholds { memory_bytes_max: 100, disk_free_bytes_min: 50 };
        let state = AlarmState::default();
        for (memory, disk, reason) in [
            (100, 50, None),
            (101, 50, Some("low on memory")),
            (100, 49, Some("low on disk")),
            (101, 49, Some("low on memory & disk")),
        ] {
            state.set(thresholds.judge(Some(memory), Some(disk)));
            assert_eq!(state.reason(), reason);
        }
        assert_eq!(thresholds.judge(None, None), Alarm::default());
        assert!(state.set(Alarm::default()) && !state.set(Alarm::default()));
    }

    #[test]
    fn the_less_is_left_the_sooner_it_is_looked_again() {
        const GIB: u64 = 1 << 30;
        let thresholds = Thresholds { memory_bytes_max: 4 * GIB, disk_free_bytes_min: GIB };
        let ms = |memory, disk| thresholds.look_again_in(memory, disk).as_millis();
        assert_eq!(ms(Some(GIB), Some(9 * GIB)), 1000);
        assert_eq!(ms(Some(GIB), Some(GIB + GIB / 8)), 128);
        assert_eq!(ms(Some(4 * GIB - GIB / 16), Some(9 * GIB)), 64);
        assert_eq!(ms(Some(GIB), Some(GIB)), 10);
        // An alarm has been raised, or nothing was measured.
        assert_eq!(ms(Some(5 * GIB), Some(GIB - 1)), 1000);
        assert_eq!(ms(None, None), 1000);
    }
}
