//! Whose turn it is: a queue's consumers, in turn among those of the highest priority that have room
//! (`x-priority`), or the one active consumer (`x-single-active-consumer`).

use std::collections::VecDeque;

use slab::Slab;

use super::queue::{ConsumeRefused, ConsumerId, ConsumerOptions};

/// Places of consumers that have left may make up half of the lines and so many more.
pub(super) const ROUND_SLACK: usize = 16;

/// A consumer as its queue keeps it.
pub(super) struct Consumer<S> {
    serial: u64,
    pub sink: S,
    /// unacknowledged entries allowed at once; `None` is unlimited
    prefetch: Option<u32>,
    priority: i64,
    in_flight: u32,
    state: Turn,
}

/// Where a consumer stands in the round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// in line, may be offered the next message
    Waiting,
    /// out of credit or out of room; a settle or a resume brings it back
    Blocked,
    /// somebody else is the single active consumer
    StandBy,
}

impl<S> Consumer<S> {
    /// How many entries it may take now.
    pub fn credit(&self) -> usize {
        match self.prefetch {
            Some(limit) => limit.saturating_sub(self.in_flight) as usize,
            None => usize::MAX,
        }
    }
}

/// A queue's consumers.
pub(super) struct Round<S> {
    consumers: Slab<Consumer<S>>,
    /// those who wait, by priority, the highest first
    lines: Vec<(i64, VecDeque<ConsumerId>)>,
    /// in the order in which they came; only with a single active consumer
    succession: Option<VecDeque<ConsumerId>>,
    exclusive: bool,
    serial: u64,
}

impl<S> Round<S> {
    /// Nobody yet; with `single_active` only the first in succession gets anything.
    pub fn new(single_active: bool) -> Round<S> {
        Round {
            consumers: Slab::new(),
            lines: Vec::new(),
            succession: single_active.then(VecDeque::new),
            exclusive: false,
            serial: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.consumers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.consumers.is_empty()
    }

    pub fn add(&mut self, sink: S, options: ConsumerOptions) -> Result<ConsumerId, ConsumeRefused> {
        if self.exclusive || (options.exclusive && !self.consumers.is_empty()) {
            return Err(ConsumeRefused::InExclusiveUse);
        }
        self.serial += 1;
        self.exclusive = options.exclusive;
        // Without acknowledgements nothing is ever unacknowledged, so a prefetch has no meaning.
        let limited = options.prefetch > 0 && !options.no_ack;
        let slot = self.consumers.insert(Consumer {
            serial: self.serial,
            sink,
            prefetch: limited.then_some(u32::from(options.prefetch)),
            priority: options.priority,
            in_flight: 0,
            state: Turn::StandBy,
        });
        let id = ConsumerId { slot, serial: self.serial };
        match &mut self.succession {
            None => self.line_up(id),
            Some(succession) => {
                succession.push_back(id);
                self.activate_first();
            }
        }
        Ok(id)
    }

    /// Removes a consumer; with a single active one, the next in succession takes over.
    pub fn remove(&mut self, id: ConsumerId) -> bool {
        if self.get_mut(id).is_none() {
            return false;
        }
        self.consumers.remove(id.slot);
        self.tidy_lines();
        self.exclusive = false;
        if let Some(succession) = &mut self.succession {
            succession.retain(|other| *other != id);
            self.activate_first();
        }
        true
    }

    /// Takes the first in line, and says whether nobody else of its priority waits.
    pub fn next(&mut self) -> Option<(ConsumerId, bool)> {
        // Those of lower priority do not count: they get nothing while this one has room.
        for (_, line) in &mut self.lines {
            while let Some(id) = line.pop_front() {
                // Consumers that left may still stand in line.
                if self.consumers.get(id.slot).is_some_and(|c| c.serial == id.serial) {
                    return Some((id, line.is_empty()));
                }
            }
        }
        None
    }

    pub fn get_mut(&mut self, id: ConsumerId) -> Option<&mut Consumer<S>> {
        self.consumers.get_mut(id.slot).filter(|c| c.serial == id.serial)
    }

    /// After its turn: how much it took, and whether it can take more.
    pub fn took(&mut self, id: ConsumerId, taken: usize, has_room: bool) {
        let Some(consumer) = self.get_mut(id) else { return };
        consumer.in_flight = consumer.in_flight.saturating_add(taken as u32);
        if has_room {
            self.line_up(id);
        } else {
            consumer.state = Turn::Blocked;
        }
    }

    /// So many of its entries are settled.
    pub fn settled(&mut self, id: ConsumerId, count: usize) {
        if let Some(consumer) = self.get_mut(id) {
            consumer.in_flight = consumer.in_flight.saturating_sub(count as u32);
            self.resume(id);
        }
    }

    /// It may have room again.
    pub fn resume(&mut self, id: ConsumerId) {
        if self.get_mut(id).is_some_and(|c| c.state == Turn::Blocked) {
            self.line_up(id);
        }
    }

    /// Everybody goes.
    pub fn take_all(&mut self) -> Vec<S> {
        self.lines.clear();
        if let Some(succession) = &mut self.succession {
            succession.clear();
        }
        self.consumers.drain().map(|consumer| consumer.sink).collect()
    }

    fn activate_first(&mut self) {
        let first = self.succession.as_ref().and_then(|s| s.front().copied());
        if let Some(id) = first
            && self.get_mut(id).is_some_and(|c| c.state == Turn::StandBy)
        {
            self.line_up(id);
        }
    }

    fn line_up(&mut self, id: ConsumerId) {
        let Some(consumer) = self.get_mut(id) else { return };
        consumer.state = Turn::Waiting;
        let priority = consumer.priority;
        match self.lines.binary_search_by(|(other, _)| priority.cmp(other)) {
            Ok(at) => {
                if let Some((_, line)) = self.lines.get_mut(at) {
                    line.push_back(id);
                }
            }
            Err(at) => self.lines.insert(at, (priority, VecDeque::from([id]))),
        }
    }

    /// Looking for each that leaves would make thousands of consumers leave in minutes: now and then
    /// the lines are cleared of all that have left.
    fn tidy_lines(&mut self) {
        if self.in_line() > 2 * self.consumers.len() + ROUND_SLACK {
            let consumers = &self.consumers;
            for (_, line) in &mut self.lines {
                line.retain(|id| consumers.get(id.slot).is_some_and(|c| c.serial == id.serial));
            }
        }
    }

    /// Places in the lines, of consumers that have left as well.
    pub fn in_line(&self) -> usize {
        self.lines.iter().map(|(_, line)| line.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(single_active: bool, priorities: &[i64]) -> (Round<usize>, Vec<ConsumerId>) {
        let mut round = Round::new(single_active);
        let add = |(sink, priority): (usize, &i64)| {
            let options = ConsumerOptions { priority: *priority, ..ConsumerOptions::default() };
            round.add(sink, options).unwrap()
        };
        let ids = priorities.iter().enumerate().map(add).collect();
        (round, ids)
    }

    fn turns(round: &mut Round<usize>, n: usize) -> Vec<usize> {
        let turn = |_| {
            let (id, _) = round.next()?;
            round.took(id, 1, true);
            Some(round.get_mut(id)?.sink)
        };
        (0..n).map_while(turn).collect()
    }

    #[test]
    fn equals_take_turns() {
        let (mut round, _) = round(false, &[0, 0, 0]);
        assert_eq!(turns(&mut round, 5), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn the_highest_priority_with_room_goes_first() {
        let (mut round, ids) = round(false, &[0, 10, 10, -1]);
        assert_eq!(turns(&mut round, 3), [1, 2, 1]);
        for id in [ids[2], ids[1]] {
            assert_eq!(round.next().map(|(next, _)| next), Some(id));
            round.took(id, 1, false);
        }
        assert_eq!(turns(&mut round, 2), [0, 0]);
        round.settled(ids[1], 1);
        assert_eq!(turns(&mut round, 2), [1, 1]);
    }

    #[test]
    fn a_single_active_consumer_is_followed_by_the_next_who_came() {
        let (mut round, ids) = round(true, &[0, 5, 0]);
        assert_eq!(turns(&mut round, 3), [0, 0, 0]);
        assert!(round.remove(ids[1]), "one on stand-by leaves");
        assert_eq!(turns(&mut round, 1), [0]);
        assert!(round.remove(ids[0]));
        assert_eq!(turns(&mut round, 2), [2, 2]);
    }

    #[test]
    fn a_blocked_active_consumer_stays_the_active_one() {
        let (mut round, ids) = round(true, &[0, 0]);
        let (id, _) = round.next().unwrap();
        round.took(id, 1, false);
        assert_eq!(round.next(), None);
        round.resume(ids[0]);
        assert_eq!(turns(&mut round, 1), [0]);
    }
}
