//! A topology against three lists: queues, exchanges, bindings. The model looks through all bindings for
//! whatever it wants to know, and removes what has to go one by one until nothing more has to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use smallvec::SmallVec;

use crate::amqp::field_table::{Table, TableWriter, Value};
use crate::amqp::properties::Properties;
use crate::broker::exchange::{DestinationName, Exchange, ExchangeKind, ExchangeProperties};
use crate::broker::id::RowId;
use crate::broker::name::Name;
use crate::broker::routing_keys::{Routable, RoutingKeys};
use crate::broker::topology::{BindError, BindingRequest, Bound, Removed, Topology, Unbound};

const QUEUES: [&str; 5] = ["q0", "q1", "q2", "q3", "q4"];
const EXCHANGES: [&str; 9] = ["x0", "x1", "x2", "x3", "x4", "x5", "amq.topic", "amq.fanout", "amq.direct"];
const KEYS: [&str; 6] = ["a", "b", "a.b", "*", "#", "a.#"];
const ROUTED: [&str; 6] = ["a", "b", "a.b", "a.b.c", "", "q1"];

#[derive(Clone, Debug)]
enum Step {
    DeclareQueue(usize),
    DeclareExchange { at: usize, kind: usize, auto_delete: bool, alternate: Option<usize> },
    Bind { source: usize, to_queue: bool, destination: usize, key: usize, argument: u8 },
    Unbind { source: usize, to_queue: bool, destination: usize, key: usize, argument: u8 },
    DeleteQueue(usize),
    DeleteExchange(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let binding = || (0..EXCHANGES.len(), any::<bool>(), 0..EXCHANGES.len(), 0..KEYS.len(), 0u8..2);
    let exchange = (0usize..6, 0usize..4, any::<bool>(), prop::option::weighted(0.4, 0..EXCHANGES.len()));
    prop_oneof![
        3 => (0..QUEUES.len()).prop_map(Step::DeclareQueue),
        4 => exchange.prop_map(|(at, kind, auto_delete, alternate)| {
            Step::DeclareExchange { at, kind, auto_delete, alternate }
        }),
        10 => binding().prop_map(|(source, to_queue, destination, key, argument)| {
            Step::Bind { source, to_queue, destination, key, argument }
        }),
        3 => binding().prop_map(|(source, to_queue, destination, key, argument)| {
            Step::Unbind { source, to_queue, destination, key, argument }
        }),
        1 => (0..QUEUES.len()).prop_map(Step::DeleteQueue),
        1 => (0usize..6).prop_map(Step::DeleteExchange),
    ]
}

const KINDS: [ExchangeKind; 4] =
    [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Headers];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Queue(&'static str),
    Exchange(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    kind: ExchangeKind,
    auto_delete: bool,
    alternate: Option<&'static str>,
}

/// A binding: from, to, key, and the value of the header `h` that it asks for.
type Edge = (&'static str, To, &'static str, u8);

#[derive(Default)]
struct Model {
    queues: BTreeMap<&'static str, u32>,
    exchanges: BTreeMap<&'static str, Known>,
    edges: BTreeMap<Edge, u64>,
}

impl Model {
    fn has(&self, to: To) -> bool {
        match to {
            To::Queue(name) => self.queues.contains_key(name),
            To::Exchange(name) => self.exchanges.contains_key(name),
        }
    }

    /// Removes these bindings, and then what cannot stay: bindings whose ends are gone, and exchanges that
    /// delete themselves because they have just lost their last binding.
    fn remove(&mut self, edges: Vec<Edge>) -> (BTreeSet<u64>, BTreeSet<&'static str>) {
        let (mut rows, mut gone, mut left) = (BTreeSet::new(), BTreeSet::new(), edges);
        while let Some(edge) = left.pop() {
            let Some(row) = self.edges.remove(&edge) else { continue };
            rows.insert(row);
            let source = edge.0;
            let is_last = self.edges.keys().all(|other| other.0 != source);
            if is_last && self.exchanges.get(source).is_some_and(|known| known.auto_delete) {
                self.exchanges.remove(source);
                gone.insert(source);
                left.extend(self.edges.keys().filter(|other| other.1 == To::Exchange(source)).copied());
            }
        }
        (rows, gone)
    }

    fn touching(&self, to: To) -> Vec<Edge> {
        let is_source = |edge: &&Edge| To::Exchange(edge.0) == to;
        self.edges.keys().filter(|edge| edge.1 == to || is_source(edge)).copied().collect()
    }

    /// Every exchange that the message comes to, in waves, and the queues that take it.
    fn route(&self, start: &'static str, keys: &[&str], header: u8) -> BTreeSet<u32> {
        let (mut queues, mut seen, mut left) = (BTreeSet::new(), BTreeSet::new(), vec![start]);
        while let Some(name) = left.pop() {
            let Some(known) = self.exchanges.get(name) else { continue };
            if !seen.insert(name) {
                continue;
            }
            let takes = |edge: &&Edge| match known.kind {
                ExchangeKind::Direct => keys.contains(&edge.2),
                ExchangeKind::Fanout => true,
                ExchangeKind::Topic => keys.iter().any(|key| stands_for(&words(edge.2), &words(key))),
                ExchangeKind::Headers => edge.3 == 0 || edge.3 == header,
                _ => unreachable!("not among KINDS: what they choose cannot be told from the binding alone"),
            };
            let reached: Vec<To> =
                self.edges.keys().filter(|edge| edge.0 == name).filter(takes).map(|edge| edge.1).collect();
            if reached.is_empty() {
                left.extend(known.alternate);
            }
            for to in reached {
                match to {
                    To::Queue(queue) => drop(queues.insert(self.queues[queue])),
                    To::Exchange(next) => left.push(next),
                }
            }
        }
        queues
    }
}

fn words(key: &str) -> Vec<&str> {
    if key.is_empty() { Vec::new() } else { key.split('.').collect() }
}

/// The definition of topic patterns, word by word.
fn stands_for(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], []) => true,
        (["#", rest @ ..], _) if stands_for(rest, key) => true,
        (["#", ..], [_, tail @ ..]) => stands_for(pattern, tail),
        ([word, rest @ ..], [head, tail @ ..]) if word == head || *word == "*" => stands_for(rest, tail),
        _ => false,
    }
}

struct Pair {
    topology: Topology<u32>,
    model: Model,
    next: u64,
}

fn name(text: &str) -> Name {
    Name::from(text.as_bytes())
}

fn arguments(argument: u8) -> TableWriter {
    match argument {
        0 => TableWriter::new(),
        value => TableWriter::new().entry("h", Value::U8(value)),
    }
}

fn destination(to_queue: bool, at: usize) -> To {
    if to_queue { To::Queue(QUEUES[at % QUEUES.len()]) } else { To::Exchange(EXCHANGES[at]) }
}

fn named(to: To) -> DestinationName {
    match to {
        To::Queue(text) => DestinationName::Queue(name(text)),
        To::Exchange(text) => DestinationName::Exchange(name(text)),
    }
}

impl Pair {
    fn new() -> Pair {
        let mut model = Model::default();
        for (text, kind) in [("amq.topic", KINDS[2]), ("amq.fanout", KINDS[1]), ("amq.direct", KINDS[0])] {
            model.exchanges.insert(text, Known { kind, auto_delete: false, alternate: None });
        }
        Pair { topology: Topology::new(), model, next: 1 }
    }

    fn step(&mut self, step: Step) {
        let version = self.topology.version();
        self.next += 1;
        let changed = match step {
            Step::DeclareQueue(at) => {
                let is_new = !self.model.queues.contains_key(QUEUES[at]);
                assert_eq!(self.topology.insert_queue(name(QUEUES[at]), self.next as u32).is_ok(), is_new);
                self.model.queues.entry(QUEUES[at]).or_insert(self.next as u32);
                is_new
            }
            Step::DeclareExchange { at, kind, auto_delete, alternate } => self.declare(
                EXCHANGES[at],
                Known { kind: KINDS[kind], auto_delete, alternate: alternate.map(|at| EXCHANGES[at]) },
            ),
            Step::Bind { source, to_queue, destination: at, key, argument } => {
                self.bind((EXCHANGES[source], destination(to_queue, at), KEYS[key], argument))
            }
            Step::Unbind { source, to_queue, destination: at, key, argument } => {
                self.unbind((EXCHANGES[source], destination(to_queue, at), KEYS[key], argument))
            }
            Step::DeleteQueue(at) => {
                let was = self.model.queues.remove(QUEUES[at]);
                let removed = self.topology.remove_queue(QUEUES[at].as_bytes());
                assert_eq!(removed.as_ref().and_then(|removed| removed.queue), was);
                let edges = self.model.touching(To::Queue(QUEUES[at]));
                self.check_removed(removed, edges, None);
                was.is_some()
            }
            Step::DeleteExchange(at) => {
                let was = self.model.exchanges.remove(EXCHANGES[at]);
                let removed = self.topology.remove_exchange(EXCHANGES[at].as_bytes());
                assert_eq!(removed.is_some(), was.is_some());
                let edges = self.model.touching(To::Exchange(EXCHANGES[at]));
                self.check_removed(removed, edges, was.is_some().then_some(EXCHANGES[at]));
                was.is_some()
            }
        };
        assert_eq!(
            self.topology.version() > version,
            changed,
            "the version rises with changes, and only then"
        );
    }

    fn declare(&mut self, text: &'static str, known: Known) -> bool {
        let is_new = !self.model.exchanges.contains_key(text);
        let table = match known.alternate {
            Some(other) => TableWriter::new().entry("alternate-exchange", Value::LongStr(other.as_bytes())),
            None => TableWriter::new(),
        };
        let properties = ExchangeProperties {
            kind: known.kind,
            durable: false,
            auto_delete: known.auto_delete,
            internal: false,
            arguments: table.as_table().raw().into(),
        };
        let exchange = Arc::new(Exchange::new(name(text), properties, None));
        assert_eq!(self.topology.insert_exchange(exchange).is_ok(), is_new);
        self.model.exchanges.entry(text).or_insert(known);
        is_new
    }

    fn bind(&mut self, edge: Edge) -> bool {
        let (source, to, key, argument) = edge;
        let table = arguments(argument);
        let request = request(source, to, key, table.as_table());
        let bound = self.topology.bind(&request, Some(RowId(self.next)));
        if !self.model.exchanges.contains_key(source) || !self.model.has(to) {
            assert!(matches!(bound, Err(BindError::Missing(..))), "an end of it is missing");
            return false;
        }
        let is_new = !self.model.edges.contains_key(&edge);
        assert_eq!(matches!(bound, Ok(Bound::Added(_))), is_new);
        self.model.edges.entry(edge).or_insert(self.next);
        is_new
    }

    fn unbind(&mut self, edge: Edge) -> bool {
        let (source, to, key, argument) = edge;
        let table = arguments(argument);
        match self.topology.unbind(&request(source, to, key, table.as_table())).unwrap() {
            Unbound::NotFound => {
                assert!(!self.model.edges.contains_key(&edge));
                false
            }
            Unbound::Removed(removed) => {
                assert!(self.model.edges.contains_key(&edge));
                self.check_removed(Some(removed), vec![edge], None);
                true
            }
        }
    }

    fn check_removed(
        &mut self,
        removed: Option<Removed<u32>>,
        edges: Vec<Edge>,
        deleted: Option<&'static str>,
    ) {
        let (rows, mut gone) = self.model.remove(edges);
        gone.extend(deleted);
        let Some(removed) = removed else {
            assert!(rows.is_empty() && gone.is_empty());
            return;
        };
        let got: Vec<u64> =
            removed.bindings.iter().filter_map(|binding| binding.row).map(|row| row.0).collect();
        assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), rows, "bindings that went");
        assert_eq!(got.len(), rows.len(), "each once");
        let got: Vec<&[u8]> = removed.exchanges.iter().map(|exchange| &*exchange.name).collect();
        assert_eq!(got.len(), gone.len(), "{gone:?}");
        assert!(gone.iter().all(|text| got.contains(&text.as_bytes())), "{gone:?}");
    }

    fn check(&self) {
        let mut listed: Vec<(String, String, String)> = self
            .topology
            .bindings()
            .filter(|binding| !binding.source.is_empty())
            .map(|b| {
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                (text(b.source), text(b.destination), text(b.routing_key))
            })
            .collect();
        let mut expected: Vec<_> = self
            .model
            .edges
            .keys()
            .map(|(from, to, key, _)| {
                let (To::Queue(to) | To::Exchange(to)) = to;
                ((*from).to_owned(), (*to).to_owned(), (*key).to_owned())
            })
            .collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
        assert_eq!(self.topology.queue_count(), self.model.queues.len());
        for text in EXCHANGES {
            let exchange = self.topology.exchange(text.as_bytes());
            assert_eq!(exchange.is_some(), self.model.exchanges.contains_key(text), "{text}");
        }
    }

    fn check_routes(&self) {
        for (start, key) in EXCHANGES.iter().flat_map(|start| ROUTED.map(|key| (*start, key))) {
            let Some(exchange) = self.topology.exchange(start.as_bytes()) else { continue };
            for (header, copy) in [(0, None), (1, None), (0, Some("b")), (1, Some("a.b.c"))] {
                let table = arguments(header);
                let properties = Properties { headers: Some(table.as_table()), ..Properties::default() };
                let copies = copy.iter().fold(TableWriter::new(), |all: TableWriter, copy: &&str| {
                    all.item(Value::LongStr(copy.as_bytes()))
                });
                let keys = RoutingKeys::new(key.as_bytes(), copies.as_array(), Default::default());
                let mut out: SmallVec<[u32; 4]> = SmallVec::new();
                let message = Routable { keys, properties: &properties, draw: 0, is_duplicate: &|_| false };
                self.topology.route(exchange, &message, &mut out);
                let found: BTreeSet<u32> = out.iter().copied().collect();
                assert_eq!(found.len(), out.len(), "each queue once");
                let keys: Vec<&str> = std::iter::once(key).chain(copy).collect();
                assert_eq!(found, self.model.route(start, &keys, header), "{start} {keys:?} {header}");
            }
        }
    }
}

fn request<'a>(source: &'a str, to: To, key: &'a str, arguments: Table<'a>) -> BindingRequest<'a> {
    let (source, routing_key) = (source.as_bytes(), key.as_bytes());
    BindingRequest { source, destination: named(to), routing_key, arguments }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_topology_is_what_plain_lists_would_be(steps in vec(step(), 1..70)) {
        let mut pair = Pair::new();
        for (at, step) in steps.into_iter().enumerate() {
            let before = pair.topology.clone();
            let was = before.bindings().count();
            pair.step(step);
            pair.check();
            assert_eq!(before.bindings().count(), was, "a snapshot does not change");
            if at % 8 == 0 {
                pair.check_routes();
            }
        }
        pair.check_routes();
    }
}
