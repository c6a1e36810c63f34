//! The road of a batch of publishes: route on the snapshot, tell the store, enqueue under one lock for
//! each queue. Consecutive messages with the same route go together.

use smallvec::SmallVec;

use crate::amqp::properties::Properties;
use crate::amqp::reply_code::ReplyCode;
use crate::broker::exchange::Exchange;
use crate::broker::fault::{Fault, lossy};
use crate::broker::hash::mix;
use crate::broker::routing_keys::Routable;
use crate::broker::topology::Topology;
use crate::session::port::{Barrier, Outcome, Publish, RouteNumber};
use crate::store::Position;

use super::client::Client;
use super::engine_core::{DRAW_STEP, Engine, now_ms};
use super::history::Kept;
use super::operations::Targets;
use super::queue_cell::{Incoming, QueueRef};
use super::rights::Permit;

/// Where the last message went: publishers rarely change their route, so most messages find theirs
/// here instead of in the topology.
pub(super) struct RouteCache {
    /// the topology's version that it was found under
    version: Option<u64>,
    route: RouteNumber,
    pub(super) targets: Targets,
    /// an exchange had seen the message, or is to be asked later, and took it no further; such a route is never cached
    pub(super) is_duplicate: bool,
    /// what choices by chance are drawn from; one sequence for each connection, so that none waits for another
    draws: u64,
}

/// Consecutive messages with the same targets, and where their outcomes belong.
struct Run {
    targets: Targets,
    incoming: Vec<Incoming>,
    first: usize,
}

impl Client {
    pub(super) fn publish_batch(&mut self, batch: &mut Vec<Publish>, outcomes: &mut Vec<Outcome>) {
        if self.engine.store.failure().is_some() {
            outcomes.extend(batch.drain(..).map(|_| Outcome::Fault(Fault::store_failed().hard())));
            return;
        }
        self.refresh_permit();
        let topology = self.engine.topology.load_full();
        // A confirm tells that what the client did before is durable too, and waits for a commit then.
        let mut needs_commit = self.has_settled && batch.iter().any(|publish| publish.persistent);
        if needs_commit {
            self.has_settled = false;
            needs_commit = self.engine.store.appender().await_all();
        }
        let mut run = Run { targets: Targets::new(), incoming: Vec::with_capacity(batch.len()), first: 0 };
        let mut closed: SmallVec<[u16; 4]> = SmallVec::new();
        let mut highest = Position(0);
        for publish in batch.drain(..) {
            if closed.contains(&publish.channel) {
                self.finish(&mut run, outcomes, &mut highest);
                outcomes.push(Outcome::Skipped);
                continue;
            }
            let routed = self.routes.find(&self.engine, &topology, &publish, &mut self.permit);
            let same = matches!(&routed, Ok(Found::AsBefore)) && !run.incoming.is_empty();
            if !same {
                self.finish(&mut run, outcomes, &mut highest);
            }
            match routed {
                Err(fault) => {
                    closed.push(publish.channel);
                    outcomes.push(Outcome::Fault(fault));
                }
                Ok(_) if self.routes.targets.is_empty() => {
                    let outcome = self.unrouted(&publish);
                    if let Outcome::Routed(Barrier(place)) = outcome
                        && self.routes.is_duplicate
                    {
                        needs_commit = true;
                        highest = highest.max(Position(place));
                    }
                    outcomes.push(outcome);
                }
                Ok(_) => {
                    if publish.has_copies {
                        self.engine.replies.send(&publish.message);
                    }
                    if run.incoming.is_empty() {
                        run.targets.clone_from(&self.routes.targets);
                        run.first = outcomes.len();
                    }
                    outcomes.push(Outcome::Routed(Barrier(0)));
                    run.incoming.push(incoming(publish));
                }
            }
        }
        self.finish(&mut run, outcomes, &mut highest);
        // One wake-up for the whole batch: the confirms become due together or in order.
        if highest > Position(0) {
            let mut appender = self.engine.store.appender();
            if needs_commit {
                appender.hurry(highest);
            }
            appender.wake_when_kept(highest, self.waker.clone());
        }
    }

    /// What becomes of a message that no queue takes: it may be a reply, straight to who asked.
    pub(super) fn unrouted(&self, publish: &Publish) -> Outcome {
        let is_taken = self.engine.replies.send(&publish.message);
        match publish.mandatory && !is_taken {
            true => Outcome::Unroutable,
            // A duplicate's confirm promises the other one, which may still be on its way to the disk.
            false if self.routes.is_duplicate => {
                Outcome::Routed(Barrier(self.engine.store.appender().place_of_all().0))
            }
            false => Outcome::Routed(Barrier(0)),
        }
    }

    /// Enqueues a run in each of its queues, one lock after another, and fills in the barriers.
    fn finish(&self, run: &mut Run, outcomes: &mut [Outcome], highest: &mut Position) {
        if run.incoming.is_empty() {
            return;
        }
        self.engine.enqueue(&run.targets, &mut run.incoming);
        for (item, outcome) in run.incoming.drain(..).zip(outcomes.iter_mut().skip(run.first)) {
            *highest = item.barrier.max(*highest);
            *outcome = match item.refused {
                true => Outcome::Refused,
                false => Outcome::Routed(Barrier(item.barrier.0)),
            };
        }
    }
}

pub(super) fn incoming(publish: Publish) -> Incoming {
    Incoming {
        message: Some(publish.message),
        persistent: publish.persistent,
        priority: publish.priority,
        ttl_ms: publish.expiration_ms,
        delay_ms: 0,
        shared: None,
        barrier: Position(0),
        refused: false,
    }
}

fn kept(publish: &Publish) -> Kept {
    Kept {
        message: publish.message.clone(),
        persistent: publish.persistent,
        priority: publish.priority,
        ttl_ms: publish.expiration_ms,
    }
}

/// When exchanges that drop duplicates are asked whether a message is one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// as the message comes to them
    Now,
    /// later: until then each stops the message, and the route tells that it did
    AtCommit,
}

/// How a route was found; the targets are in the cache.
pub(super) enum Found {
    /// the same as the message before
    AsBefore,
    /// looked up
    Anew,
}

impl RouteCache {
    /// An empty one; `seed` begins its sequence of draws.
    pub(super) fn new(seed: u64) -> RouteCache {
        RouteCache {
            version: None,
            route: RouteNumber::default(),
            targets: Targets::new(),
            is_duplicate: false,
            draws: seed,
        }
    }

    /// The next message is looked up, wherever it goes.
    pub(super) fn forget(&mut self) {
        self.version = None;
    }

    pub(super) fn find(
        &mut self,
        engine: &Engine,
        topology: &Topology<QueueRef>,
        publish: &Publish,
        permit: &mut Permit,
    ) -> Result<Found, Fault> {
        self.find_asking(Ask::Now, engine, topology, publish, permit)
    }

    pub(super) fn find_asking(
        &mut self,
        ask: Ask,
        engine: &Engine,
        topology: &Topology<QueueRef>,
        publish: &Publish,
        permit: &mut Permit,
    ) -> Result<Found, Fault> {
        // Nothing of the message is read: it is best left to who sends it on.
        let is_current = self.version == Some(topology.version());
        if is_current && self.route == publish.route && !publish.has_copies {
            return Ok(Found::AsBefore);
        }
        self.version = None;
        let message = &publish.message;
        let exchange = message.exchange();
        permit.check_publish(exchange, &engine.vhost)?;
        let source = published_to(topology, exchange, &engine.vhost)?;
        let duplicates = &engine.duplicates;
        self.targets.clear();
        let properties = Properties::decode(message.properties()).unwrap_or_default();
        self.draws = self.draws.wrapping_add(DRAW_STEP);
        let routable = Routable {
            keys: message.routing_keys(&properties),
            properties: &properties,
            draw: mix(self.draws),
            is_duplicate: &|rules| match ask {
                Ask::Now => duplicates.has_seen(rules, &properties, now_ms()),
                Ask::AtCommit => true,
            },
        };
        let way = engine.route(topology, source, &routable, || kept(publish), &mut self.targets);
        self.is_duplicate = way.is_duplicate;
        // A route that depends on more than the key says nothing about the next message's.
        if way.is_repeatable && !publish.has_copies {
            self.route = publish.route;
            self.version = Some(topology.version());
        }
        Ok(Found::Anew)
    }
}

/// The exchange, if clients may publish to it.
pub(super) fn published_to<'t>(
    topology: &'t Topology<QueueRef>,
    exchange: &[u8],
    vhost: &str,
) -> Result<&'t Exchange<QueueRef>, Fault> {
    let source = topology.exchange(exchange).ok_or_else(|| Fault::no_exchange(exchange, vhost))?;
    if source.properties.internal {
        let text = format!("cannot publish to internal exchange '{}' in vhost '{vhost}'", lossy(exchange));
        return Err(Fault::new(ReplyCode::AccessRefused, text));
    }
    Ok(source)
}
