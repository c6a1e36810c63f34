//! tx.commit: publishes and acknowledgements of one channel become durable together or not at all. One
//! appender takes all of it, and what one appender takes is one write batch (see `store`).

use crate::broker::arguments::Overflow;
use crate::broker::fault::Fault;
use crate::broker::queue::{Death, Entry};
use crate::session::port::{Barrier, Outcome, Planned, Publish, Settled};
use crate::store::{EntryMeta, Position};

use super::client::Client;
use super::engine_core::now_ms;
use super::operations::{Targets, release_promise};
use super::publish::Ask;
use super::queue_cell::{Incoming, QueueRef, Stored};

/// A message's place in one queue, given out before the commit and taken after it.
struct Place {
    queue: QueueRef,
    message: usize,
    entry: Entry<Stored>,
}

/// What the queues have answered before anything is written.
#[derive(Default)]
struct Places {
    taken: Vec<Place>,
    /// refused by queues that dead-letter what they refuse
    dead: Vec<(QueueRef, Entry<Stored>)>,
    /// some message was a duplicate of another, which may still be on its way to the disk
    relies_on_others: bool,
}

impl Client {
    /// Where a publish leads now; a commit does not ask again (as in RabbitMQ).
    pub(super) fn plan_publish(&mut self, publish: Publish) -> Result<Planned<QueueRef>, Fault> {
        let topology = self.engine.topology.load_full();
        self.routes.find_asking(Ask::AtCommit, &self.engine, &topology, &publish, &mut self.permit)?;
        let queues = (!self.routes.is_duplicate).then(|| self.routes.targets.clone());
        Ok(Planned { queues, publish })
    }

    /// The same for a publish on whose way an exchange drops duplicates: only what is committed counts as
    /// seen. An exchange that went since takes nothing.
    fn route_at_commit(&mut self, publish: &Publish) -> Targets {
        let topology = self.engine.topology.load_full();
        match self.routes.find(&self.engine, &topology, publish, &mut self.permit) {
            Ok(_) => self.routes.targets.clone(),
            Err(_) => Targets::new(),
        }
    }

    /// Places are given out first (each queue's lock in turn), then everything is appended at once (the
    /// inbox's lock alone), then it becomes visible: so no two locks are held against their order.
    pub(super) fn commit_transaction(
        &mut self,
        publishes: Vec<Planned<QueueRef>>,
        acknowledged: Vec<Settled<Client>>,
    ) -> (Vec<Outcome>, Barrier) {
        let mut outcomes = Vec::with_capacity(publishes.len());
        let mut incoming = Vec::with_capacity(publishes.len());
        let mut places = Places::default();
        // Before anything is published: what is acknowledged and sent again in one transaction is no duplicate.
        for Settled { queue, entry, .. } in acknowledged.iter().filter(|s| s.queue.drops_duplicates()) {
            queue.lock().forget([entry]);
        }
        for Planned { publish, queues } in publishes {
            let queues = queues.unwrap_or_else(|| self.route_at_commit(&publish));
            let unrouted = queues.is_empty().then(|| self.unrouted(&publish));
            // Where nobody takes a duplicate, that promises the other one.
            places.relies_on_others |= matches!(unrouted, Some(Outcome::Routed(place)) if place > Barrier(0));
            if !queues.is_empty() && publish.has_copies {
                self.engine.replies.send(&publish.message);
            }
            let mut item = super::publish::incoming(publish);
            self.engine.prepare(&queues, &mut item);
            self.reserve(&queues, &mut item, incoming.len(), &mut places);
            outcomes.push(match unrouted {
                Some(outcome) => outcome,
                None if item.refused => Outcome::Refused,
                None => Outcome::Routed(Barrier(0)),
            });
            incoming.push(item);
        }
        let position = self.append(&incoming, &mut places, &acknowledged);
        for Place { queue, entry, .. } in places.taken {
            self.engine.take_place(&queue, entry);
        }
        for (queue, entry) in places.dead {
            self.engine.with_queue(&queue, |_, effects| effects.dead.push((entry, Death::MaxLen)));
        }
        for Settled { queue, consumer, .. } in &acknowledged {
            self.engine.with_queue(queue, |contents, _| contents.settle(*consumer, 1));
        }
        (outcomes, self.barrier(position))
    }

    fn reserve(&self, queues: &Targets, item: &mut Incoming, message: usize, places: &mut Places) {
        let Some(whole) = item.message.clone() else { return };
        let now_ms = now_ms();
        for queue in queues {
            let entry = |seq, expires_ms| {
                let entry = Entry::new(seq, whole.clone(), Stored::No);
                Entry { priority: item.priority, expires_ms, ..entry }
            };
            let mut contents = queue.lock();
            if !contents.is_deleted() && contents.is_duplicate(&whole) {
                drop(contents);
                release_promise(queue, item, Some(&mut self.engine.store.appender()));
                places.relies_on_others = true;
                continue;
            }
            let place = match contents.is_deleted() {
                true => None,
                false => contents.reserve(whole.body().len()),
            };
            if let Some(seq) = place {
                contents.remember(&whole, seq);
                let expires_ms = queue.deadline_ms(&contents, now_ms, item);
                drop(contents);
                places.taken.push(Place { queue: queue.clone(), message, entry: entry(seq, expires_ms) });
                continue;
            }
            if !contents.is_deleted() && contents.rules().overflow == Overflow::RejectPublishDlx {
                places.dead.push((queue.clone(), entry(contents.next_seq(), 0)));
            }
            drop(contents);
            release_promise(queue, item, Some(&mut self.engine.store.appender()));
            item.refused = true;
        }
    }

    /// All of it in one appender; the last record's place.
    fn append(
        &self,
        incoming: &[Incoming],
        places: &mut Places,
        acknowledged: &[Settled<Client>],
    ) -> Position {
        let enqueued_ms = now_ms();
        let mut appender = self.engine.store.appender();
        let mut last = Position(0);
        for Place { queue, message, entry } in &mut places.taken {
            let Some(item) = incoming.get(*message) else { continue };
            if !queue.keeps(item) {
                continue;
            }
            let meta = EntryMeta {
                enqueued_ms,
                expires_ms: entry.expires_ms,
                priority: entry.priority,
                delivery_count: 0,
            };
            let shared = queue.body_of(item, &entry.message, &self.engine.store);
            let put_at = appender.put(queue.id, entry.seq, &entry.message, shared.as_ref(), meta);
            entry.durable = Stored::Yes { put_at, shared };
            last = last.max(put_at);
        }
        for Settled { queue, entry, .. } in acknowledged {
            if let Stored::Yes { shared, .. } = &entry.durable {
                // A put that waits is not struck out: it may be written, and its publisher told, a batch
                // before this one.
                let bytes = entry.message.size_bytes();
                appender.delete(queue.id, entry.seq, bytes, shared.as_ref(), Position(0));
                last = appender.tail();
            }
        }
        // What is acknowledged in a transaction is as durable as what is published.
        if last > Position(0) || places.relies_on_others {
            last = appender.place_of_all();
        }
        last
    }
}
