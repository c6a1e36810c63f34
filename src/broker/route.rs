//! Where a message goes: one walk over a topology, from the exchange it was published to, through the
//! exchanges that lead on, to queues. It reads the snapshot and changes nothing.

use super::exchange::{Destination, Exchange, Reached};
use super::name::Name;
use super::topology::Topology;
use crate::amqp::field_table::Table;
use foldhash::quality::RandomState;
use smallvec::SmallVec;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Queues found by one route up to which a scan finds a duplicate faster than a hash set does.
const SCANNED_MAX: usize = 32;

impl<Q: Clone + Eq + Hash> Topology<Q> {
    /// Appends the queues that a message published to `exchange` goes to, each at most once, in an
    /// order that depends on the topology only; queues that are in `out` already are not added again,
    /// so that several keys of one message (CC) can be routed one after another.
    ///
    /// Follows bindings to exchanges, each exchange once, and an alternate exchange where one's own
    /// bindings take nothing. `headers` is the message's header table, asked for by headers exchanges.
    pub fn route<'t>(
        &'t self,
        exchange: &'t Exchange<Q>,
        routing_key: &[u8],
        headers: Option<Table<'_>>,
        out: &mut SmallVec<[Q; 4]>,
    ) {
        let mut walk = Walk::new(self, exchange, out);
        walk.visit(exchange, routing_key, headers);
        let mut at = 0;
        while let Some(exchange) = walk.ahead.get(at).copied() {
            walk.visit(exchange, routing_key, headers);
            at += 1;
        }
    }
}

/// One route under way.
struct Walk<'t, 'o, Q: Clone + Eq + Hash> {
    topology: &'t Topology<Q>,
    start: &'t Exchange<Q>,
    out: &'o mut SmallVec<[Q; 4]>,
    /// What is in `out`, once that is too long to scan.
    seen: Option<HashSet<Q, RandomState>>,
    /// Exchanges that bindings or alternates lead to, each once, in the order they were met.
    ahead: Vec<&'t Exchange<Q>>,
    /// Their names, and the first one's; made when the first one leads to an exchange at all.
    known: Option<HashSet<&'t Name, RandomState>>,
}

impl<'t, 'o, Q: Clone + Eq + Hash> Walk<'t, 'o, Q> {
    fn new(
        topology: &'t Topology<Q>,
        start: &'t Exchange<Q>,
        out: &'o mut SmallVec<[Q; 4]>,
    ) -> Walk<'t, 'o, Q> {
        Walk { topology, start, out, seen: None, ahead: Vec::new(), known: None }
    }

    fn visit(&mut self, exchange: &'t Exchange<Q>, routing_key: &[u8], headers: Option<Table<'_>>) {
        let mut reached = false;
        if exchange.is_default() {
            let queue = self.topology.queue(routing_key);
            reached = queue.is_some();
            queue.into_iter().for_each(|queue| self.push(queue));
        }
        exchange.targets(routing_key, headers, |found| {
            reached |= match found {
                Reached::One(destination) => self.reach(destination),
                Reached::Set(targets) => {
                    // Within one set nobody is twice, so the first one needs no look for duplicates.
                    let first = self.out.is_empty();
                    targets.iter().fold(false, |_, destination| match destination {
                        Destination::Queue(queue) if first => {
                            self.out.push(queue.clone());
                            true
                        }
                        destination => self.reach(destination),
                    })
                }
            }
        });
        if !reached && let Some(alternate) = exchange.alternate() {
            self.follow(alternate);
        }
    }

    fn reach(&mut self, destination: &'t Destination<Q>) -> bool {
        match destination {
            Destination::Queue(queue) => self.push(queue),
            Destination::Exchange(name) => self.follow(name),
        }
        true
    }

    fn push(&mut self, queue: &Q) {
        let is_new = if self.out.len() <= SCANNED_MAX {
            !self.out.contains(queue)
        } else {
            let out = &self.out;
            self.seen.get_or_insert_with(|| out.iter().cloned().collect()).insert(queue.clone())
        };
        if is_new {
            self.out.push(queue.clone());
        }
    }

    fn follow(&mut self, name: &Name) {
        let Some(exchange) = self.topology.exchange(name).map(Arc::as_ref) else { return };
        let start = &self.start.name;
        let known = self.known.get_or_insert_with(|| HashSet::from_iter([start]));
        if known.insert(&exchange.name) {
            self.ahead.push(exchange);
        }
    }
}
