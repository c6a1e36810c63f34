//! Acknowledgement timeouts (RabbitMQ, consumers.md): a delivery that stays unacknowledged for too long closes
//! its channel, and goes back to its queue with all that the channel held. One deadline for the whole session:
//! it is the earliest that can come true, and what was acknowledged in the meantime is found out when it does.

use crate::amqp::reply_code::ReplyCode;
use crate::broker::fault::Fault;

use super::connection::Session;
use super::port::Broker;
use super::unacked::UnackedList;

/// Resolution of timeouts in milliseconds. 32 bits of it wrap after 497 days.
const TICK_MS: u64 = 10;

/// Ticks between two looks at what waits: a long list of long timeouts in front of short ones is walked each time.
const LOOK_TICKS_MIN: u64 = 5;

/// How long the deliveries of one source may wait for their acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeout {
    ms: u64,
    ticks: u32,
}

impl Timeout {
    /// `None` for 0, and for what is longer than half of what ticks can tell apart (248 days).
    pub fn of(ms: u64) -> Option<Timeout> {
        let ticks = u32::try_from(ms.div_ceil(TICK_MS)).ok().filter(|ticks| *ticks <= u32::MAX / 2)?;
        (ms > 0).then_some(Timeout { ms, ticks })
    }
}

/// The session's clock, and when it is to look at what waits.
pub(super) struct Deadlines {
    /// ticks since the connection began
    now: u64,
    /// the earliest tick at which a delivery can be late
    next: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines { now: 0, next: u64::MAX }
    }
}

impl Deadlines {
    /// A delivery leaves now; what its entry in the list of the unacknowledged is to remember.
    pub fn delivered(&mut self, timeout: Option<Timeout>) -> u32 {
        if let Some(timeout) = timeout {
            // It began somewhere in this tick.
            self.next = self.next.min(self.now + u64::from(timeout.ticks) + 1);
        }
        self.now as u32
    }

    /// Deliveries came back to the list: look soon.
    pub fn look_again(&mut self) {
        self.next = self.next.min(self.now);
    }
}

impl<B: Broker> Session<B> {
    /// What the time is, in milliseconds since the connection began; once in each turn. Closes the channels
    /// whose deliveries are late.
    pub fn handle_clock(&mut self, now_ms: u64) {
        self.deadlines.now = now_ms / TICK_MS;
        if self.deadlines.now >= self.deadlines.next && !self.is_holding_a_reply() {
            self.close_late_channels();
        }
    }

    /// When [`Session::handle_clock`] is due at the latest, in milliseconds since the connection began. `None`
    /// while nothing can be late, or while a reply waits for a commit: it goes before the close.
    pub fn deadline_ms(&self) -> Option<u64> {
        let is_set = self.deadlines.next != u64::MAX && !self.is_holding_a_reply();
        is_set.then(|| self.deadlines.next * TICK_MS)
    }

    fn close_late_channels(&mut self) {
        let (mut late, mut next) = (Vec::new(), u64::MAX);
        if let Some(shortest) =
            self.sources.iter().filter_map(|(_, source)| source.timeout?.ticks.into()).min()
        {
            for (number, channel) in self.channels.iter().enumerate() {
                let Some(channel) = channel else { continue };
                match self.look_at(&channel.unacked, shortest) {
                    Ok(at) => next = at.min(next),
                    Err(timeout) => late.push((number as u16, timeout)),
                }
            }
        }
        self.deadlines.next = next.max(self.deadlines.now + LOOK_TICKS_MIN);
        for (number, Timeout { ms, .. }) in late {
            let text = format!(
                "delivery acknowledgement on channel {number} timed out. Timeout value used: {ms} ms. \
                 This timeout value can be configured, see consumers doc guide to learn more"
            );
            self.handle_fault(number, &Fault::new(ReplyCode::PreconditionFailed, text), (0, 0));
        }
    }

    /// The earliest tick at which a delivery of this list can be late, or the timeout of one that is.
    fn look_at(&self, unacked: &UnackedList<B::Durable>, shortest: u32) -> Result<u64, Timeout> {
        let now = self.deadlines.now;
        let mut next = u64::MAX;
        for delivery in unacked.iter() {
            let age = (now as u32).wrapping_sub(delivery.delivered_at);
            if age <= shortest {
                // So are all behind it.
                return Ok(next.min(now + u64::from(shortest - age) + 1));
            }
            let timeout = self.sources.get(delivery.source as usize).and_then(|source| source.timeout);
            match timeout {
                Some(timeout) if age > timeout.ticks => return Err(timeout),
                Some(timeout) => next = next.min(now + u64::from(timeout.ticks - age) + 1),
                None => {}
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_timeout_is_none_and_neither_is_one_beyond_the_clock() {
        assert_eq!(Timeout::of(0), None);
        assert_eq!(Timeout::of(u64::MAX), None);
        assert_eq!(Timeout::of(TICK_MS * (u64::from(u32::MAX / 2) + 1)), None);
        assert_eq!(Timeout::of(1), Some(Timeout { ms: 1, ticks: 1 }));
        assert_eq!(Timeout::of(1_800_000), Some(Timeout { ms: 1_800_000, ticks: 180_000 }));
    }

    #[test]
    fn the_deadline_is_the_earliest_of_all_deliveries() {
        let mut deadlines = Deadlines { now: 7, ..Deadlines::default() };
        assert_eq!(deadlines.delivered(None), 7);
        assert_eq!(deadlines.next, u64::MAX);
        deadlines.delivered(Timeout::of(1000));
        assert_eq!(deadlines.next, 108);
        deadlines.delivered(Timeout::of(5000));
        assert_eq!(deadlines.next, 108);
        deadlines.delivered(Timeout::of(10));
        assert_eq!(deadlines.next, 9);
    }
}
