//! Dead letters that stay with their queue until they are taken (`x-dead-letter-strategy` at-least-once): to
//! forward them, to try again, and the store's knowledge that they are dead. What a queue keeps of them is in
//! `broker::letters`.

use crate::broker::letters::{Died, Letter, Letters, Which};
use crate::broker::queue::Dead;
use crate::limits::{DEAD_BURIED_MAX, LETTERS_RETRIED_MAX, LETTERS_RETRY_MS, LETTERS_STEP_MAX};
use crate::store::Position;

use super::burial::{Addressed, Pending};
use super::engine_core::{Engine, now_ms};
use super::operations::Takes;
use super::queue_cell::{QueueRef, Stored};

/// What has died stays with its queue.
pub(super) fn keep(letters: &mut Letters<Stored>, dead: Dead<Stored>, at_ms: u64) {
    dead.into_iter().for_each(|(entry, death)| letters.keep(entry, Died { death, at_ms }));
}

/// What came of a round.
#[derive(Default)]
struct Round {
    tried: usize,
    taken: usize,
}

impl Engine {
    /// Forwards what has died in a queue and was never tried, or leaves it to who is at it.
    pub(super) fn forward_untried(&self, queue: &QueueRef, pending: &mut Pending) {
        let round = self.forward(queue, Which::Untried, DEAD_BURIED_MAX, pending);
        let left = round.tried - round.taken;
        if left > 0 && queue.counts().letters <= left {
            tracing::warn!(queue = queue.id.0, "dead letters that no queue takes are kept, and tried again");
        }
        if left > 0 || round.tried >= DEAD_BURIED_MAX {
            let wait_ms = if round.tried >= DEAD_BURIED_MAX { 0 } else { LETTERS_RETRY_MS };
            self.timers.arm(queue, now_ms().saturating_add(wait_ms));
        }
    }

    /// Tries again what was not taken. The clock's task does this for as long as there is anything.
    pub(super) fn retry_letters(&self, queue: &QueueRef) {
        if !queue.arguments.keeps_letters() || queue.counts().letters == 0 {
            return;
        }
        let mut round = Round::default();
        // As publishers do then, they wait for the disk.
        if !self.is_congested() {
            let mut pending = Pending::new();
            round = self.forward(queue, Which::Tried, LETTERS_RETRIED_MAX, &mut pending);
            // Whoever had something new meanwhile has left it to this round.
            self.forward_untried(queue, &mut pending);
            self.bury_all(pending);
        }
        if queue.counts().letters > 0 {
            // What was in their way is gone, so the others need not wait.
            let wait_ms = if round.taken > 0 { 0 } else { LETTERS_RETRY_MS };
            self.timers.arm(queue, now_ms().saturating_add(wait_ms));
        }
    }

    fn forward(&self, queue: &QueueRef, which: Which, max: usize, pending: &mut Pending) -> Round {
        let mut round = Round::default();
        if !queue.lock().letters().is_some_and(|letters| letters.begin(which)) {
            return round;
        }
        let mut settled: Vec<(u64, Letter<Stored>, bool)> = Vec::new();
        loop {
            let mut contents = queue.lock();
            // A queue that is gone has taken its letters along.
            let Some(letters) = contents.letters() else { return round };
            let mut gone = Vec::new();
            for (number, letter, is_taken) in settled.drain(..) {
                if is_taken {
                    letters.settle(number, None).then(|| gone.push(letter.entry));
                } else {
                    letters.settle(number, Some(letter));
                }
            }
            let step = if round.tried < max { letters.step(LETTERS_STEP_MAX) } else { Vec::new() };
            if step.is_empty() {
                letters.end();
            }
            drop(contents);
            // Only now: a crash in between leaves a message twice, never not at all.
            queue.delete_stored(&gone, &self.store);
            if step.is_empty() {
                return round;
            }
            round.tried += step.len();
            for (number, mut letter) in step {
                let is_taken = self.forward_one(queue, &mut letter, pending);
                round.taken += usize::from(is_taken);
                if !is_taken && !letter.was_tried {
                    self.mark_dead(queue, &letter);
                }
                letter.was_tried = true;
                settled.push((number, letter, is_taken));
            }
        }
    }

    /// For the next start: it is not to be delivered to consumers again.
    fn mark_dead(&self, queue: &QueueRef, letter: &Letter<Stored>) {
        if let Stored::Yes { .. } = letter.entry.durable {
            let entry = &letter.entry;
            self.store.appender().mark_dead(queue.id, entry.seq, entry.delivery_count, letter.died);
        }
    }

    /// Whether all who should have a letter have it now, and there is anybody.
    fn forward_one(&self, queue: &QueueRef, letter: &mut Letter<Stored>, pending: &mut Pending) -> bool {
        let topology = self.topology.load_full();
        // What leads nowhere does so until the topology changes.
        if letter.unrouted_at == Some(topology.version()) {
            return false;
        }
        let exchange = queue.arguments.dead_letter_exchange.as_deref().unwrap_or_default();
        let is_taken = topology.exchange(exchange).and_then(|source| {
            let addressed =
                self.address(&topology, source, queue, &letter.entry, letter.died, letter.was_tried);
            match addressed.is_duplicate && addressed.targets.is_empty() {
                true => Some(true),
                false => self.hand_over(addressed, letter, pending),
            }
        });
        letter.unrouted_at = is_taken.is_none().then(|| topology.version());
        is_taken.unwrap_or(false)
    }

    /// Whether all targets have it now; `None` when there is none and never was one.
    fn hand_over(
        &self,
        addressed: Addressed,
        letter: &mut Letter<Stored>,
        pending: &mut Pending,
    ) -> Option<bool> {
        let Addressed { mut incoming, mut targets, .. } = addressed;
        if targets.is_empty() && letter.taken_by.is_empty() {
            return None;
        }
        targets.retain(|target| !letter.taken_by.contains(&target.id));
        let wanted = targets.len();
        if letter.was_tried {
            // Nothing is sealed for those who will not have it, nor is it dead-lettered by them each time.
            let body_bytes = incoming.message.as_ref().map_or(0, |message| message.body().len());
            targets.retain(|target| !target.lock().is_refusing(body_bytes));
        }
        self.prepare(&targets, &mut incoming);
        let mut item = [incoming];
        let now_ms = now_ms();
        let mut taken = 0;
        for target in &targets {
            let (is_taken, has_dead) = self.operate(target, now_ms, |contents, effects| {
                let is_there = !contents.is_deleted();
                item.iter_mut().for_each(|item| item.refused = false);
                self.add(target, contents, effects, &mut item, Takes::Copy, now_ms);
                is_there && item.iter().all(|item| !item.refused)
            });
            if is_taken {
                taken += 1;
                letter.taken_by.push(target.id);
            }
            if has_dead {
                pending.push_back(target.clone());
            }
        }
        // Its publisher is told at its own place, and its letter may be a batch behind that.
        if item.iter().any(|item| item.barrier > Position(0)) {
            letter.entry.durable.keep_put();
        }
        Some(taken == wanted)
    }
}
