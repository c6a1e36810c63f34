//! Whose turn it is: a queue's consumers, in turn among those of the highest priority that have room
//! (`x-priority`), or the one active consumer (`x-single-active-consumer`).
//!
//! When the active consumer leaves, the one of the highest priority follows, of equals the one that came
//! first. In a quorum queue the active one also gives way to a newcomer of higher priority: it gets nothing
//! more, and hands over when all that it had is settled (RabbitMQ, consumers.md). In a classic one it stays.

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
    /// somebody else is the single active consumer, or will be soon
    StandBy,
}

/// Whether a queue has a single active consumer, and what that one does when a better one comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SingleActive {
    /// all consumers take turns
    No,
    /// it stays until it leaves
    Stays,
    /// it gives way to a higher priority
    Yields,
}

/// Who is the single active consumer, and who waits to be.
struct Succession {
    active: Option<ConsumerId>,
    /// in the order in which they came
    waiting: VecDeque<ConsumerId>,
    yields: bool,
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
    /// only with a single active consumer
    succession: Option<Succession>,
    exclusive: bool,
    serial: u64,
}

impl<S> Round<S> {
    /// Nobody yet.
    pub fn new(single_active: SingleActive) -> Round<S> {
        let succession = |yields| Some(Succession { active: None, waiting: VecDeque::new(), yields });
        Round {
            consumers: Slab::new(),
            lines: Vec::new(),
            succession: match single_active {
                SingleActive::No => None,
                SingleActive::Stays => succession(false),
                SingleActive::Yields => succession(true),
            },
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
        // With a single active consumer nobody can be the only one (RabbitMQ refuses it alike).
        let is_alone = self.consumers.is_empty() && self.succession.is_none();
        if self.exclusive || (options.exclusive && !is_alone) {
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
                succession.waiting.push_back(id);
                let active = succession.active;
                let outranked = active.and_then(|active| self.get_mut(active)).map(|c| c.priority);
                // Thousands may wait in line: most who come change nothing.
                if outranked.is_none_or(|priority| priority < options.priority) {
                    self.choose_active();
                }
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
            succession.waiting.retain(|other| *other != id);
            succession.active.take_if(|active| *active == id);
            self.choose_active();
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

    /// How many entries those in line would take now, as far as their prefetch says.
    pub fn room(&self) -> usize {
        let waiting = self.lines.iter().flat_map(|(_, line)| line);
        let present = waiting.filter_map(|id| self.consumers.get(id.slot).filter(|c| c.serial == id.serial));
        present.fold(0, |room, consumer| room.saturating_add(consumer.credit()))
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

    /// It was the first in line, and is so still: there is nothing for it yet.
    pub fn wait_on(&mut self, id: ConsumerId) {
        self.stand_in_line(id, VecDeque::push_front);
    }

    /// So many of its entries are settled.
    pub fn settled(&mut self, id: ConsumerId, count: usize) {
        if let Some(consumer) = self.get_mut(id) {
            consumer.in_flight = consumer.in_flight.saturating_sub(count as u32);
            // On stand-by and with entries: it is about to give way.
            match consumer.state {
                Turn::StandBy => self.choose_active(),
                Turn::Waiting | Turn::Blocked => self.resume(id),
            }
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
            (succession.active, succession.waiting) = (None, VecDeque::new());
        }
        self.consumers.drain().map(|consumer| consumer.sink).collect()
    }

    /// Sees to it that the right one is the active consumer, or is about to be.
    fn choose_active(&mut self) {
        let Some(succession) = &self.succession else { return };
        let (active, yields) = (succession.active, succession.yields);
        let consumer = |id: ConsumerId| self.consumers.get(id.slot).filter(|c| c.serial == id.serial);
        let current = active.and_then(consumer).map(|c| (c.priority, c.in_flight, c.state));
        if current.is_some() && !yields {
            return;
        }
        let priority_of = |id: ConsumerId| consumer(id).map_or(i64::MIN, |c| c.priority);
        // Of equals `max_by_key` would take the last, so they are asked from the back.
        let best = succession.waiting.iter().rev().copied().max_by_key(|id| priority_of(*id));
        match (active.zip(current), best) {
            (None, Some(best)) => self.activate(best),
            (Some((active, (priority, in_flight, state))), Some(best)) if priority < priority_of(best) => {
                if state != Turn::StandBy {
                    self.stand_by(active);
                }
                if in_flight == 0 {
                    if let Some(succession) = &mut self.succession {
                        succession.waiting.push_back(active);
                    }
                    self.activate(best);
                }
            }
            // Whoever it was to give way to has left.
            (Some((active, (_, _, Turn::StandBy))), _) => self.line_up(active),
            (Some(_) | None, _) => {}
        }
    }

    fn activate(&mut self, id: ConsumerId) {
        if let Some(succession) = &mut self.succession {
            succession.waiting.retain(|other| *other != id);
            succession.active = Some(id);
        }
        self.line_up(id);
    }

    fn stand_by(&mut self, id: ConsumerId) {
        self.lines.iter_mut().for_each(|(_, line)| line.retain(|other| *other != id));
        if let Some(consumer) = self.get_mut(id) {
            consumer.state = Turn::StandBy;
        }
    }

    fn line_up(&mut self, id: ConsumerId) {
        self.stand_in_line(id, VecDeque::push_back);
    }

    fn stand_in_line(&mut self, id: ConsumerId, push: fn(&mut VecDeque<ConsumerId>, ConsumerId)) {
        let Some(consumer) = self.get_mut(id) else { return };
        consumer.state = Turn::Waiting;
        let priority = consumer.priority;
        match self.lines.binary_search_by(|(other, _)| priority.cmp(other)) {
            Ok(at) => {
                if let Some((_, line)) = self.lines.get_mut(at) {
                    push(line, id);
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

    fn round(single_active: SingleActive, priorities: &[i64]) -> (Round<usize>, Vec<ConsumerId>) {
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
        let (mut round, _) = round(SingleActive::No, &[0, 0, 0]);
        assert_eq!(turns(&mut round, 5), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn the_highest_priority_with_room_goes_first() {
        let (mut round, ids) = round(SingleActive::No, &[0, 10, 10, -1]);
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
        let (mut round, ids) = round(SingleActive::Stays, &[0, 5, 0]);
        assert_eq!(turns(&mut round, 3), [0, 0, 0]);
        assert!(round.remove(ids[1]), "one on stand-by leaves");
        assert_eq!(turns(&mut round, 1), [0]);
        assert!(round.remove(ids[0]));
        assert_eq!(turns(&mut round, 2), [2, 2]);
    }

    #[test]
    fn a_blocked_active_consumer_stays_the_active_one() {
        let (mut round, ids) = round(SingleActive::Yields, &[0, 0]);
        let (id, _) = round.next().unwrap();
        round.took(id, 1, false);
        assert_eq!(round.next(), None);
        round.resume(ids[0]);
        assert_eq!(turns(&mut round, 1), [0]);
    }

    #[test]
    fn of_those_who_wait_the_highest_priority_follows_and_of_equals_the_first() {
        let (mut round, ids) = round(SingleActive::Stays, &[0, 1, 7, 7]);
        for next in [0, 2, 3, 1] {
            assert_eq!(turns(&mut round, 2), [next, next]);
            assert!(round.remove(ids[next]));
        }
    }

    #[test]
    fn in_a_quorum_queue_the_active_one_gives_way_when_it_has_settled_everything() {
        let (mut round, ids) = round(SingleActive::Yields, &[0]);
        assert_eq!(turns(&mut round, 2), [0, 0]);
        let better = ConsumerOptions { priority: 3, ..ConsumerOptions::default() };
        let new = round.add(1, better).unwrap();
        assert_eq!(round.next(), None, "it gets nothing more, and still has two");
        round.settled(ids[0], 1);
        assert_eq!(round.next(), None);
        round.settled(ids[0], 1);
        assert_eq!(turns(&mut round, 2), [1, 1]);
        round.settled(new, 2);
        assert!(round.remove(new));
        assert_eq!(turns(&mut round, 1), [0], "and back");
    }

    #[test]
    fn who_gave_way_in_vain_goes_on() {
        let (mut round, _) = round(SingleActive::Yields, &[0]);
        assert_eq!(turns(&mut round, 1), [0]);
        let better = ConsumerOptions { priority: 3, ..ConsumerOptions::default() };
        let new = round.add(1, better).unwrap();
        assert!(round.remove(new));
        assert_eq!(turns(&mut round, 1), [0]);
    }

    #[test]
    fn nobody_has_a_queue_exclusively_that_has_a_single_active_consumer() {
        let (mut round, _) = round(SingleActive::Stays, &[]);
        let exclusive = ConsumerOptions { exclusive: true, ..ConsumerOptions::default() };
        assert_eq!(round.add(0, exclusive), Err(ConsumeRefused::InExclusiveUse));
    }
}
