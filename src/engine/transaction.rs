//! tx.commit: publishes and acknowledgements of one channel become durable together or not at all. One
//! appender takes all of it, and what one appender takes is one write batch (see `store`).

use crate::broker::queue::Entry;
use crate::session::port::{Barrier, Outcome, Publish, Settled};
use crate::store::{EntryMeta, Position};

use super::client::Client;
use super::engine_core::now_ms;
use super::operations::Targets;
use super::queue_cell::{Incoming, QueueRef, Stored};

/// A message's place in one queue, given out before the commit and taken after it.
struct Place {
    queue: QueueRef,
    message: usize,
    entry: Entry<Stored>,
}

impl Client {
    /// Places are given out first (each queue's lock in turn), then everything is appended at once (the
    /// inbox's lock alone), then it becomes visible: so no two locks are held against their order.
    pub(super) fn commit_transaction(
        &mut self,
        publishes: Vec<Publish>,
        acknowledged: Vec<Settled<Client>>,
    ) -> (Vec<Outcome>, Barrier) {
        let mut outcomes = Vec::with_capacity(publishes.len());
        let mut incoming = Vec::with_capacity(publishes.len());
        let mut places = Vec::new();
        let topology = self.engine.topology.load_full();
        for publish in publishes {
            let mandatory = publish.mandatory;
            let routed = self.routes.find(&self.engine, &topology, &publish, &mut self.permit);
            let targets = self.routes.targets.clone();
            let unrouted = (routed.is_ok() && targets.is_empty()).then(|| self.unrouted(&publish));
            let mut item = super::publish::incoming(publish);
            outcomes.push(unrouted.unwrap_or_else(|| match routed {
                // The session has checked the exchange; one that went since then leads nowhere.
                Err(_) if mandatory => Outcome::Unroutable,
                Err(_) => Outcome::Routed(Barrier(0)),
                Ok(_) => {
                    if item.message.has_copies() {
                        self.engine.replies.send(&item.message);
                    }
                    self.engine.prepare(&targets, &mut item);
                    self.reserve(&targets, &item, incoming.len(), &mut places);
                    Outcome::Routed(Barrier(0))
                }
            }));
            incoming.push(item);
        }
        let position = self.append(&incoming, &mut places, &acknowledged);
        for Place { queue, entry, .. } in places {
            self.engine.take_place(&queue, entry);
        }
        for Settled { queue, consumer, .. } in &acknowledged {
            self.engine.with_queue(queue, |contents, _| contents.settle(*consumer, 1));
        }
        (outcomes, self.barrier(position))
    }

    fn reserve(&self, targets: &Targets, item: &Incoming, message: usize, places: &mut Vec<Place>) {
        let now_ms = now_ms();
        for queue in targets {
            let mut contents = queue.lock();
            if contents.is_deleted() || contents.is_refusing() {
                drop(contents);
                if let (true, Some(shared)) = (queue.keeps(item), &item.shared) {
                    self.engine.store.appender().release(shared);
                }
                continue;
            }
            let seq = contents.next_seq();
            let expires_ms = queue.deadline_ms(&contents, now_ms, item);
            drop(contents);
            let entry = Entry::new(seq, item.message.clone(), Stored::No);
            let entry = Entry { priority: item.priority, expires_ms, ..entry };
            places.push(Place { queue: queue.clone(), message, entry });
        }
    }

    /// All of it in one appender; the last record's place.
    fn append(
        &self,
        incoming: &[Incoming],
        places: &mut [Place],
        acknowledged: &[Settled<Client>],
    ) -> Position {
        let enqueued_ms = now_ms();
        let mut appender = self.engine.store.appender();
        let mut last = Position(0);
        for Place { queue, message, entry } in places {
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
            let put_at = appender.put(queue.id, entry.seq, &item.message, item.shared.as_ref(), meta);
            entry.durable = Stored::Yes { put_at, shared: item.shared.clone() };
            last = last.max(put_at);
        }
        for Settled { queue, entry, .. } in acknowledged {
            if let Stored::Yes { put_at, shared } = &entry.durable {
                appender.delete(queue.id, entry.seq, shared.as_ref(), *put_at);
                last = last.max(appender.tail());
            }
        }
        last
    }
}
