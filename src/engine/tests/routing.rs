//! Routing that has a memory: histories of exchanges, and the keys of CC and BCC in the store.

use super::*;
use crate::amqp::field_table::Array;
use crate::broker::message::Copies;
use crate::broker::routing_keys::{Routable, RoutingKeys};
use crate::engine::history::Kept;
use crate::engine::operations::Targets;

fn history(seat: &mut Seat, name: &str, length: i32) {
    let arguments = TableWriter::new().entry("x-recent-history-length", Value::I32(length));
    let spec = ExchangeSpec {
        name: name.as_bytes(),
        kind: b"x-recent-history",
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: arguments.as_table(),
    };
    seat.client.declare_exchange(&spec).unwrap();
}

#[test]
fn a_binding_gets_each_message_once_and_in_order_while_others_publish() {
    const MESSAGES: usize = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut binds = house.client();
    history(&mut binds, "h", MESSAGES as i32);
    let mut publishes = house.client();
    let queues: Vec<String> = (0..20).map(|at| format!("q{at}")).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..MESSAGES {
                publishes.publish(vec![publish("h", "", format!("{at}").as_bytes(), false)]);
            }
        });
        for queue in &queues {
            binds.declare(queue, TRANSIENT);
            binds.bind("h", queue, "");
        }
    });
    let expected: Vec<String> = (0..MESSAGES).map(|at| at.to_string()).collect();
    for queue in &queues {
        assert!(binds.take_all(queue) == expected, "{queue}");
    }
}

/// Who publishes may be between its snapshot and the history while a binding reads the history: the message
/// is in neither of the two then, so it is routed again.
#[test]
fn a_message_routed_before_a_binding_and_kept_after_it_reaches_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    history(&mut a, "h", 10);
    let before = house.engine.topology.load_full();
    a.declare("q", TRANSIENT);
    a.bind("h", "q", "");
    let kept = || Kept {
        message: Message::new(b"h", b"", &[0, 0], &[]),
        persistent: false,
        priority: 0,
        ttl_ms: None,
    };
    let routable = Routable {
        keys: RoutingKeys::one(b""),
        properties: &Properties::default(),
        draw: 0,
        is_duplicate: &|_| false,
    };
    let mut targets = Targets::new();
    house.engine.route(&before, before.exchange(b"h").unwrap(), &routable, kept, &mut targets);
    assert!(targets.as_slice() == [house.queue("q").unwrap()]);
}

#[test]
fn a_history_is_in_memory_only_and_its_deliveries_are_as_durable_as_others() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    history(&mut a, "h", 10);
    a.declare("transient", TRANSIENT);
    a.declare("durable", DURABLE);
    let tail = house.store.appender().tail();
    a.publish(vec![publish("h", "", b"kept", true)]);
    a.bind("h", "transient", "");
    assert_eq!(house.store.appender().tail(), tail, "nothing was appended");
    a.bind("h", "durable", "");
    assert!(house.store.appender().tail() > tail);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    assert_eq!(a.take_all("durable"), ["kept"]);
    a.declare("later", DURABLE);
    a.bind("h", "later", "");
    assert_eq!(a.take_all("later"), Vec::<String>::new(), "a restart forgets the history");
    a.publish(vec![publish("h", "", b"new", true)]);
    a.declare("last", DURABLE);
    a.bind("h", "last", "");
    assert_eq!(a.take_all("last"), ["new"], "and begins a new one");
}

/// Dead letters are routed, and so may be kept by the history that is just read.
#[test]
fn dead_letters_of_a_replay_may_go_to_the_same_history() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    history(&mut a, "h", 10);
    for body in ["a", "b", "c"] {
        a.publish(vec![publish("h", "", body.as_bytes(), true)]);
    }
    let arguments = TableWriter::new()
        .entry("x-max-length", Value::I32(1))
        .entry("x-dead-letter-exchange", Value::LongStr(b"h"));
    a.declare("short", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.declare("other", DURABLE);
    a.bind("h", "short", "");
    assert_eq!(a.take_all("short"), ["c"]);
    a.bind("h", "other", "");
    assert_eq!(a.take_all("other"), ["a", "b", "c", "a", "b"]);
}

#[test]
fn a_dead_letter_goes_by_its_blind_copies_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let arguments = TableWriter::new().entry("x-dead-letter-exchange", Value::LongStr(b"amq.direct"));
    a.declare("q", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.declare("dead", DURABLE);
    a.bind("amq.direct", "dead", "blind");
    let keys = TableWriter::new().item(Value::LongStr(b"blind"));
    let copies = Copies { open: false, blind: Array::from_raw(keys.as_array().raw()) };
    let message = Message::with_copies(b"", b"q", &[0, 0], &[b"body"], copies);
    let outcomes = a.publish(vec![publish_of(message, true)]);
    let [Outcome::Routed(barrier)] = outcomes[..] else { panic!("{outcomes:?}") };
    a.wait_for(barrier);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    let (queue, entry) = a.get("q").unwrap();
    assert_eq!(entry.message.body(), b"body");
    a.client.reject(&queue, None, vec![entry]);
    assert_eq!(a.take_all("dead"), ["body"]);
}
