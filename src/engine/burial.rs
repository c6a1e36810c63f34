//! What queues give up on its way to a dead letter exchange, or out. Connections and the clock may all make
//! one queue give something up at the same time, and its dead letters keep their order nevertheless: they
//! line up under the queue's lock, and one caller at a time takes them from there.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::amqp::properties::Properties;
use crate::broker::dead_letter::{Demise, dead_letter, is_circle};
use crate::broker::exchange::Exchange;
use crate::broker::letters::Died;
use crate::broker::queue::{Dead, Death, Entry};
use crate::broker::routing_keys::Routable;
use crate::broker::topology::Topology;
use crate::limits::{DEAD_BURIED_MAX, DEAD_WAITING_MAX};
use crate::store::Position;

use super::engine_core::{Engine, now_ms};
use super::history::Kept;
use super::operations::Targets;
use super::queue_cell::{Incoming, QueueRef, Stored};

/// Queues that have given something up.
pub(super) type Pending = VecDeque<QueueRef>;

/// What one queue has given up and nobody has buried yet, in order. A leaf lock, but for what is being
/// buried: that is marked, and not locked.
#[derive(Default)]
pub(super) struct Graves {
    line: Mutex<Line>,
    shorter: Condvar,
}

#[derive(Default)]
struct Line {
    dead: Dead<Stored>,
    is_taken: bool,
}

/// The head of the line; nobody else gets any of it until this is dropped.
struct Burial<'a> {
    graves: &'a Graves,
    dead: Dead<Stored>,
}

/// A dead letter, and the queues that are to take it.
pub(super) struct Addressed {
    pub incoming: Incoming,
    pub targets: Targets,
    /// an exchange on the way had seen it, and took it no further
    pub is_duplicate: bool,
}

impl Graves {
    /// Lines entries up; under the queue's lock, whose order is theirs.
    pub fn add(&self, dead: Dead<Stored>) {
        let mut line = self.lock();
        if line.dead.is_empty() { line.dead = dead } else { line.dead.extend(dead) }
    }

    /// All that has lined up, unless somebody is at it: who is looks again afterwards.
    fn take(&self) -> Option<Burial<'_>> {
        let mut line = self.lock();
        if line.is_taken || line.dead.is_empty() {
            return None;
        }
        line.is_taken = true;
        Some(Burial { graves: self, dead: std::mem::take(&mut line.dead) })
    }

    /// Whoever makes dead letters faster than one caller can bury them waits here, with nothing locked.
    fn wait_for_room(&self) {
        let is_long = |line: &mut Line| line.is_taken && line.dead.len() > DEAD_WAITING_MAX;
        drop(self.shorter.wait_while(self.lock(), is_long).unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // Nothing in here can panic half-way, so a poisoned lock still guards a whole state.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Burial<'_> {
    fn drop(&mut self) {
        self.graves.lock().is_taken = false;
        self.graves.shorter.notify_all();
    }
}

impl Engine {
    /// Dead-letters what a queue has given up, and all that follows from that; or leaves it to who is at it.
    pub(super) fn bury(&self, queue: &QueueRef) {
        self.bury_all(Pending::from([queue.clone()]));
    }

    /// A list of what is left to do instead of recursion: clients choose how long a chain of dead
    /// letter exchanges is.
    pub(super) fn bury_all(&self, mut pending: Pending) {
        let first = pending.front().cloned();
        while let Some(queue) = pending.pop_front() {
            if queue.arguments.keeps_letters() {
                self.forward_untried(&queue, &mut pending);
            }
            let mut buried = 0;
            while let Some(burial) = queue.graves.take() {
                buried += burial.dead.len();
                self.bury_these(&queue, burial, &mut pending);
                if buried > DEAD_BURIED_MAX {
                    // Most of it was others', who keep coming; the clock's task has the time.
                    self.timers.arm(&queue, now_ms());
                    break;
                }
            }
        }
        // At the end: while it buries nobody may wait for anybody, or a circle of queues would stand still.
        first.iter().for_each(|queue| queue.graves.wait_for_room());
    }

    fn bury_these(&self, queue: &QueueRef, mut burial: Burial<'_>, pending: &mut Pending) {
        if let Some(exchange) = queue.arguments.dead_letter_exchange.clone() {
            for (entry, death) in &mut burial.dead {
                let is_stored = self.dead_letter(queue, &exchange, entry, *death, pending);
                // Its publisher is told at its own place, and its letter may be a batch behind that.
                if is_stored {
                    entry.durable.keep_put();
                }
            }
        }
        // Only now: a crash in between leaves a message twice, never not at all.
        queue.delete_stored(burial.dead.iter().map(|(entry, _)| entry), &self.store);
    }

    /// Whether a queue that took it keeps it in the store.
    fn dead_letter(
        &self,
        queue: &QueueRef,
        exchange: &[u8],
        entry: &Entry<Stored>,
        death: Death,
        pending: &mut Pending,
    ) -> bool {
        let topology = self.topology.load();
        // An exchange that is not there (any more) takes nothing: the message is dropped, as in RabbitMQ.
        let Some(source) = topology.exchange(exchange) else { return false };
        let now_ms = now_ms();
        let died = Died { death, at_ms: now_ms };
        let Addressed { incoming, targets, .. } = self.address(&topology, source, queue, entry, died, false);
        let mut incoming = [incoming];
        self.enqueue_into(&targets, &mut incoming, now_ms, pending);
        incoming.iter().any(|item| item.barrier > Position(0))
    }

    /// Makes the dead letter of an entry, and finds out where it goes. Only the first time exchanges on its
    /// way keep it or ask themselves whether it is a duplicate: later it would be one of itself.
    pub(super) fn address(
        &self,
        topology: &Topology<QueueRef>,
        source: &Exchange<QueueRef>,
        queue: &QueueRef,
        entry: &Entry<Stored>,
        died: Died,
        was_tried: bool,
    ) -> Addressed {
        let demise = Demise {
            queue: &queue.name,
            death: died.death,
            at_seconds: died.at_ms / 1000,
            exchange: &source.name,
            routing_key: queue.arguments.dead_letter_routing_key.as_deref(),
        };
        let message = dead_letter(&entry.message, &demise);
        let properties = Properties::decode(message.properties()).unwrap_or_default();
        let mut targets = Targets::new();
        let routable = Routable {
            keys: message.routing_keys(&properties),
            properties: &properties,
            draw: self.draw(),
            is_duplicate: &|rules| !was_tried && self.duplicates.has_seen(rules, &properties, died.at_ms),
        };
        let persistent = matches!(entry.durable, Stored::Yes { .. }) || properties.is_persistent();
        let priority = entry.priority;
        let kept = || Kept { message: message.clone(), persistent, priority, ttl_ms: None };
        let is_duplicate = match was_tried {
            false => self.route(topology, source, &routable, kept, &mut targets).is_duplicate,
            true => topology.route(source, &routable, &mut targets).is_duplicate,
        };
        targets.retain(|target| {
            let circle = is_circle(&message, &target.name);
            if circle && !was_tried {
                tracing::warn!(
                    queue = target.id.0,
                    "a dead letter that went in a circle does not come back to this queue"
                );
            }
            !circle
        });
        let incoming = Incoming {
            persistent,
            priority,
            ttl_ms: None,
            delay_ms: 0,
            shared: None,
            barrier: Position(0),
            refused: false,
            message: Some(message),
        };
        Addressed { incoming, targets, is_duplicate }
    }
}
