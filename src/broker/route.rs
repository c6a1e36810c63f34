//! Where a message goes: one walk over a topology, from the exchange it was published to, through the
//! exchanges that lead on, to queues. It reads the snapshot and changes nothing.

use super::exchange::{Destination, Exchange, Keeper, Reached};
use super::name::Name;
use super::routing_keys::Routable;
use super::topology::Topology;
use foldhash::quality::RandomState;
use smallvec::SmallVec;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Queues found by one route up to which a scan finds a duplicate faster than a hash set does.
const SCANNED_MAX: usize = 32;

/// What a route says besides the queues.
#[derive(Debug)]
pub struct Routed<'t> {
    /// Another message with the same key goes the same way, and nothing else is to be done with it.
    pub is_repeatable: bool,
    /// What is kept for the exchanges on the way that have something kept.
    pub keepers: SmallVec<[&'t Keeper; 1]>,
    /// An exchange on the way has seen the message before, and took it no further.
    pub is_duplicate: bool,
}

impl<Q: Clone + Eq + Hash> Topology<Q> {
    /// Appends the queues that a message published to `exchange` goes to, each at most once, in an
    /// order that depends on the topology only; queues that are in `out` already are not added again.
    ///
    /// Each exchange on the way is asked once, with all the message's routing keys. Follows bindings to
    /// exchanges, and an alternate exchange where one's own bindings take nothing. A delayed exchange has a message with a delay wait in its delay
    /// queue, and what lies behind it is found when the delay is over.
    pub fn route<'t>(
        &'t self,
        exchange: &'t Exchange<Q>,
        message: &Routable<'_>,
        out: &mut SmallVec<[Q; 4]>,
    ) -> Routed<'t> {
        let mut walk = Walk::new(self, exchange, out);
        walk.visit(exchange, message);
        let mut at = 0;
        while let Some(exchange) = walk.ahead.get(at).copied() {
            walk.visit(exchange, message);
            at += 1;
        }
        let visited = || std::iter::once(exchange).chain(walk.ahead.iter().copied());
        // What waits for its time first is kept when that has come.
        let keeps = |exchange: &&Exchange<Q>| {
            exchange.delays(message).is_none() && !walk.refusing.contains(&&exchange.name)
        };
        Routed {
            is_repeatable: visited().all(Exchange::is_repeatable),
            keepers: visited().filter(keeps).filter_map(Exchange::keeper).collect(),
            is_duplicate: !walk.refusing.is_empty(),
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
    /// Those that have seen it before, and keep nothing of it either.
    refusing: SmallVec<[&'t Name; 1]>,
}

impl<'t, 'o, Q: Clone + Eq + Hash> Walk<'t, 'o, Q> {
    fn new(
        topology: &'t Topology<Q>,
        start: &'t Exchange<Q>,
        out: &'o mut SmallVec<[Q; 4]>,
    ) -> Walk<'t, 'o, Q> {
        Walk { topology, start, out, seen: None, ahead: Vec::new(), known: None, refusing: SmallVec::new() }
    }

    fn visit(&mut self, exchange: &'t Exchange<Q>, message: &Routable<'_>) {
        if exchange.deduplication().is_some_and(message.is_duplicate) {
            self.refusing.push(&exchange.name);
            return exchange.alternate().into_iter().for_each(|alternate| self.follow(alternate));
        }
        if let Some(delay_queue) = exchange.delays(message) {
            return self.push(delay_queue);
        }
        let mut reached = false;
        if exchange.is_default() {
            for queue in message.keys.iter().filter_map(|key| self.topology.queue(key)) {
                reached = true;
                self.push(queue);
            }
        }
        exchange.targets(message, |found| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::field_table::{Table, TableWriter, Value};
    use crate::amqp::properties::Properties;
    use crate::broker::exchange::{DestinationName, ExchangeKind, ExchangeProperties};
    use crate::broker::routing_keys::RoutingKeys;
    use crate::broker::topology::BindingRequest;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from(text.as_bytes())
    }

    /// Queues `q0` to `q9` and the exchanges `d`, `f`, `t`, `h`, `d2`, one of each kind and one more.
    fn topology() -> Topology<u32> {
        let mut topology = Topology::new();
        for at in 0..10 {
            topology.insert_queue(name(&format!("q{at}")), at).unwrap();
        }
        let kinds = [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Headers];
        for (text, kind) in ["d", "f", "t", "h", "d2"].into_iter().zip(kinds.into_iter().cycle()) {
            insert(&mut topology, text, kind, TableWriter::new());
        }
        topology
    }

    fn insert(topology: &mut Topology<u32>, text: &str, kind: ExchangeKind, arguments: TableWriter) {
        let arguments = arguments.as_table().raw().into();
        let properties =
            ExchangeProperties { kind, durable: false, auto_delete: false, internal: false, arguments };
        topology.insert_exchange(Arc::new(Exchange::new(name(text), properties, None))).unwrap();
    }

    /// Binds `source` to a queue when `to` begins with a q, else to an exchange.
    fn bind(topology: &mut Topology<u32>, source: &str, to: &str, key: &str, arguments: Table<'_>) {
        let destination = match to.starts_with('q') {
            true => DestinationName::Queue(name(to)),
            false => DestinationName::Exchange(name(to)),
        };
        let (source, routing_key) = (source.as_bytes(), key.as_bytes());
        topology.bind(&BindingRequest { source, destination, routing_key, arguments }, None).unwrap();
    }

    fn route(topology: &Topology<u32>, exchange: &str, key: &str) -> Vec<u32> {
        let keys = RoutingKeys::one(key.as_bytes());
        let message =
            Routable { keys, properties: &Properties::default(), draw: 0, is_duplicate: &|_| false };
        routed(topology, exchange, &message)
    }

    fn routed(topology: &Topology<u32>, exchange: &str, message: &Routable<'_>) -> Vec<u32> {
        let mut out = SmallVec::new();
        topology.route(topology.exchange(exchange.as_bytes()).unwrap(), message, &mut out);
        out.to_vec()
    }

    #[test]
    fn the_default_exchange_leads_to_the_queue_of_that_name() {
        let topology = topology();
        assert_eq!(route(&topology, "", "q3"), [3]);
        assert!(route(&topology, "", "nope").is_empty());
    }

    #[test]
    fn a_queue_that_is_reached_twice_is_found_once() {
        let mut t = topology();
        for key in ["#", "a.#", "*.b", "a.b"] {
            bind(&mut t, "t", "q1", key, Table::default());
        }
        bind(&mut t, "t", "q2", "a.b", Table::default());
        assert_eq!(route(&t, "t", "a.b"), [1, 2]);
        for key in ["x", "y"] {
            bind(&mut t, "f", "q1", key, Table::default());
        }
        assert_eq!(route(&t, "f", ""), [1]);
    }

    #[test]
    fn every_key_of_a_message_counts_and_a_queue_is_found_once() {
        let mut t = topology();
        let alternate = TableWriter::new().entry("alternate-exchange", Value::LongStr(b"f"));
        insert(&mut t, "main", ExchangeKind::Direct, alternate);
        bind(&mut t, "f", "q9", "", Table::default());
        for (exchange, queue, key) in
            [("main", "q1", "a"), ("main", "t", "a"), ("t", "q2", "b"), ("t", "q1", "#")]
        {
            bind(&mut t, exchange, queue, key, Table::default());
        }
        let open =
            TableWriter::new().item(Value::I32(1)).item(Value::LongStr(b"b")).item(Value::LongStr(b"b"));
        let blind = TableWriter::new().item(Value::LongStr(b"a"));
        let properties = Properties::default();
        let of = |first| {
            let keys = RoutingKeys::new(first, open.as_array(), blind.as_array());
            Routable { keys, properties: &properties, draw: 0, is_duplicate: &|_| false }
        };
        assert_eq!(routed(&t, "main", &of(b"x")), [1, 2], "by b over the exchange that a leads to");
        assert_eq!(routed(&t, "", &Routable { keys: RoutingKeys::one(b"q3"), ..of(b"") }), [3]);
        assert_eq!(route(&t, "main", "x"), [9], "no key: the alternate exchange");
    }

    #[test]
    fn one_of_two_equal_routes_may_go() {
        let mut t = topology();
        let table = TableWriter::new().entry("a", Value::U8(1));
        bind(&mut t, "d", "q1", "k", Table::default());
        bind(&mut t, "d", "q1", "k", table.as_table());
        for left in [vec![1], vec![]] {
            let arguments = if left.is_empty() { Table::default() } else { table.as_table() };
            let destination = DestinationName::Queue(name("q1"));
            let request = BindingRequest { source: b"d", destination, routing_key: b"k", arguments };
            t.unbind(&request).unwrap();
            assert_eq!(route(&t, "d", "k"), left);
        }
    }

    #[test]
    fn headers_choose_bindings() {
        let mut t = topology();
        let one = TableWriter::new().entry("a", Value::I32(1));
        let any = TableWriter::new().entry("x-match", Value::LongStr(b"any")).entry("b", Value::Void);
        bind(&mut t, "h", "q1", "", one.as_table());
        bind(&mut t, "h", "q2", "", any.as_table());
        bind(&mut t, "h", "q3", "", Table::default());
        let of = |headers: &TableWriter| {
            let properties = Properties { headers: Some(headers.as_table()), ..Properties::default() };
            routed(
                &t,
                "h",
                &Routable {
                    keys: RoutingKeys::one(b""),
                    properties: &properties,
                    draw: 0,
                    is_duplicate: &|_| false,
                },
            )
        };
        assert_eq!(of(&TableWriter::new().entry("a", Value::I64(1))), [1, 3]);
        assert_eq!(of(&TableWriter::new().entry("b", Value::Bool(true))), [2, 3]);
        assert_eq!(route(&t, "h", ""), [3], "a message without headers");
    }

    #[test]
    fn follows_exchanges_through_cycles_once() {
        let mut t = topology();
        bind(&mut t, "d", "t", "a.b", Table::default());
        bind(&mut t, "t", "f", "a.*", Table::default());
        bind(&mut t, "f", "d", "", Table::default());
        bind(&mut t, "f", "f", "", Table::default());
        bind(&mut t, "f", "q1", "", Table::default());
        bind(&mut t, "d", "q2", "a.b", Table::default());
        for from in ["d", "t", "f"] {
            let mut found = route(&t, from, "a.b");
            found.sort();
            assert_eq!(found, [1, 2], "from {from}");
        }
        assert!(route(&t, "d", "other").is_empty());
    }

    #[test]
    fn what_nothing_takes_goes_to_the_alternate_exchange() {
        let mut t = topology();
        let alternate = |to| TableWriter::new().entry("alternate-exchange", Value::LongStr(to));
        insert(&mut t, "main", ExchangeKind::Direct, alternate(b"second"));
        insert(&mut t, "second", ExchangeKind::Direct, alternate(b"main"));
        insert(&mut t, "lost", ExchangeKind::Direct, alternate(b"nope"));
        insert(&mut t, "to-default", ExchangeKind::Direct, alternate(b""));
        bind(&mut t, "main", "q1", "k", Table::default());
        bind(&mut t, "second", "q2", "k", Table::default());
        bind(&mut t, "second", "q3", "other", Table::default());
        assert_eq!(route(&t, "main", "k"), [1]);
        assert_eq!(route(&t, "main", "other"), [3]);
        assert!(route(&t, "main", "neither").is_empty());
        assert!(route(&t, "lost", "k").is_empty());
        assert_eq!(route(&t, "to-default", "q7"), [7]);
    }

    #[test]
    fn thousands_of_queues_are_each_found_once() {
        let mut t = Topology::new();
        for at in 0..5_000 {
            let queue = format!("q{at}");
            t.insert_queue(name(&queue), at).unwrap();
            bind(&mut t, "amq.topic", &queue, "#", Table::default());
            bind(&mut t, "amq.topic", &queue, "a", Table::default());
        }
        let mut found = route(&t, "amq.topic", "a");
        found.sort();
        assert_eq!(found, (0..5_000).collect::<Vec<u32>>());
    }

    proptest! {
        /// Exchanges route through their index; the definition asks each binding.
        #[test]
        fn agrees_with_asking_each_binding(
            steps in prop::collection::vec((any::<bool>(), 0usize..5, 0u32..10, 0usize..4), 1..150),
            key in 0usize..4,
        ) {
            const KEYS: [&str; 4] = ["a", "b", "#", ""];
            const NAMES: [&str; 5] = ["d", "f", "t", "h", "d2"];
            let mut t = topology();
            let mut model: Vec<(usize, u32, usize)> = Vec::new();
            for (is_bind, exchange, queue, key) in steps {
                let destination = DestinationName::Queue(name(&format!("q{queue}")));
                let (source, routing_key) = (NAMES[exchange].as_bytes(), KEYS[key].as_bytes());
                let request = BindingRequest { source, destination, routing_key, arguments: Table::default() };
                model.retain(|entry| *entry != (exchange, queue, key));
                if is_bind {
                    t.bind(&request, None).unwrap();
                    model.push((exchange, queue, key));
                } else {
                    t.unbind(&request).unwrap();
                }
            }
            for (at, exchange) in NAMES.into_iter().enumerate() {
                let takes = |pattern: usize| match exchange {
                    "d" | "d2" => KEYS[pattern] == KEYS[key],
                    "t" => KEYS[pattern] == "#" || KEYS[pattern] == KEYS[key],
                    _ => true,
                };
                let bound = model.iter().filter(|(x, _, pattern)| *x == at && takes(*pattern));
                let mut expected: Vec<u32> = bound.map(|(_, queue, _)| *queue).collect();
                expected.sort();
                expected.dedup();
                let mut found = route(&t, exchange, KEYS[key]);
                found.sort();
                prop_assert_eq!(found, expected, "exchange {}", exchange);
            }
        }
    }
}
