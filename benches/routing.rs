//! What it costs to find a message's queues, among one binding and among ten thousand.

use std::hint::black_box;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use sealmq::amqp::field_table::{Table, TableWriter, Value};
use sealmq::amqp::properties::Properties;
use sealmq::broker::exchange::{DestinationName, Exchange, ExchangeKind, ExchangeProperties};
use sealmq::broker::name::Name;
use sealmq::broker::routing_keys::{Routable, RoutingKeys};
use sealmq::broker::topology::{BindingRequest, Topology};
use smallvec::SmallVec;

const EXCHANGE: &[u8] = b"exchange";
/// Keys that are routed one after the other, so that not one path alone is warm.
const KEYS: usize = 64;

fn main() {
    divan::main();
}

/// As many queues as bindings; `key` and `arguments` give the binding of a queue's number.
fn topology(
    kind: ExchangeKind,
    bindings: usize,
    key: impl Fn(usize) -> String,
    arguments: impl Fn(usize) -> TableWriter,
) -> Topology<u64> {
    let mut topology = Topology::new();
    let properties = ExchangeProperties {
        kind,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Arc::default(),
    };
    let exchange = Exchange::new(Name::from(EXCHANGE), properties, None);
    assert!(topology.insert_exchange(Arc::new(exchange)).is_ok());
    for number in 0..bindings {
        let queue = Name::from(format!("queue-{number}").as_bytes());
        assert!(topology.insert_queue(queue.clone(), number as u64).is_ok());
        let (key, arguments) = (key(number), arguments(number));
        let request = BindingRequest {
            source: EXCHANGE,
            destination: DestinationName::Queue(queue),
            routing_key: key.as_bytes(),
            arguments: arguments.as_table(),
        };
        assert!(topology.bind(&request, None).is_ok());
    }
    topology
}

/// Routes `keys` in turn; each must reach `reached` queues.
fn route(
    bencher: Bencher,
    topology: &Topology<u64>,
    keys: &[String],
    headers: Option<Table<'_>>,
    reached: usize,
) {
    let Some(exchange) = topology.exchange(EXCHANGE) else { return };
    let properties = Properties { headers, ..Properties::default() };
    let mut out = SmallVec::new();
    let mut next = 0;
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        out.clear();
        let key = keys[next % keys.len()].as_bytes();
        next += 1;
        let message = Routable {
            keys: RoutingKeys::one(key),
            properties: &properties,
            draw: next as u64,
            is_duplicate: &|_| false,
        };
        black_box(topology.route(exchange, black_box(&message), &mut out));
        assert_eq!(out.len(), reached);
    });
}

fn no_arguments(_: usize) -> TableWriter {
    TableWriter::new()
}

/// Numbers far apart from each other, the same at each run.
fn spread(bindings: usize) -> impl Iterator<Item = usize> {
    (0..KEYS).map(move |at| at * 7919 % bindings)
}

#[divan::bench(args = [1, 100, 10_000])]
fn direct(bencher: Bencher, bindings: usize) {
    let key = |number| format!("key.{number}");
    let topology = topology(ExchangeKind::Direct, bindings, key, no_arguments);
    let keys: Vec<String> = spread(bindings).map(key).collect();
    route(bencher, &topology, &keys, None, 1);
}

/// Patterns with a word of their own, a `*` and a `#`: one of them matches.
#[divan::bench(args = [1, 100, 10_000])]
fn topic(bencher: Bencher, bindings: usize) {
    let pattern = |number| format!("region.*.sensor-{number}.#");
    let topology = topology(ExchangeKind::Topic, bindings, pattern, no_arguments);
    let keys: Vec<String> =
        spread(bindings).map(|number| format!("region.north.sensor-{number}.heat.max")).collect();
    route(bencher, &topology, &keys, None, 1);
}

#[divan::bench(args = [1, 10, 1000])]
fn fanout(bencher: Bencher, bindings: usize) {
    let topology = topology(ExchangeKind::Fanout, bindings, |_| String::new(), no_arguments);
    route(bencher, &topology, &[String::new()], None, bindings);
}

/// Every binding is asked: what a headers exchange costs grows with their number.
#[divan::bench(args = [1, 100, 10_000])]
fn headers(bencher: Bencher, bindings: usize) {
    let arguments = |number: usize| {
        TableWriter::new()
            .entry("x-match", Value::LongStr(b"all"))
            .entry("format", Value::LongStr(b"pdf"))
            .entry("number", Value::I64(number as i64))
    };
    let topology = topology(ExchangeKind::Headers, bindings, |_| String::new(), arguments);
    let sent = TableWriter::new()
        .entry("format", Value::LongStr(b"pdf"))
        .entry("number", Value::I64(bindings as i64 / 2))
        .entry("other", Value::Bool(true));
    route(bencher, &topology, &[String::new()], Some(sent.as_table()), 1);
}

/// The default exchange among many queues.
#[divan::bench(args = [1, 100, 10_000])]
fn to_a_queue_by_name(bencher: Bencher, queues: usize) {
    let topology = topology(ExchangeKind::Direct, queues, |_| "key".into(), no_arguments);
    let Some(exchange) = topology.exchange(b"") else { return };
    let keys: Vec<String> = spread(queues).map(|number| format!("queue-{number}")).collect();
    let properties = Properties::default();
    let (mut out, mut next) = (SmallVec::new(), 0);
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        out.clear();
        let keys = RoutingKeys::one(keys[next % keys.len()].as_bytes());
        next += 1;
        let message = Routable { keys, properties: &properties, draw: 0, is_duplicate: &|_| false };
        black_box(topology.route(exchange, black_box(&message), &mut out));
        assert_eq!(out.len(), 1);
    });
}
