//! Delayed exchanges: when messages leave, where they go then, what a restart keeps of them. Delays here are
//! a few milliseconds, but nothing moves before the test moves the clock on, or years.

use super::*;
use crate::broker::message::Copies;
use crate::engine::engine_core::now_ms;
use crate::limits::DELAYED_RELEASE_MAX;

const YEARS_MS: i64 = 100 * 365 * 24 * 3600 * 1000;

fn delayed_exchange(seat: &mut Seat, name: &str, inner: &str, durable: bool) {
    declare(
        seat,
        name,
        durable,
        false,
        TableWriter::new().entry("x-delayed-type", Value::LongStr(inner.as_bytes())),
    );
}

fn declare(seat: &mut Seat, name: &str, durable: bool, auto_delete: bool, arguments: TableWriter) {
    let spec = ExchangeSpec {
        name: name.as_bytes(),
        kind: b"x-delayed-message",
        passive: false,
        durable,
        auto_delete,
        internal: false,
        arguments: arguments.as_table(),
    };
    let barrier = seat.client.declare_exchange(&spec).unwrap();
    seat.wait_for(barrier);
}

fn later(exchange: &str, key: &str, body: &str, persistent: bool, delay_ms: i64) -> Publish {
    let headers = TableWriter::new().entry("x-delay", Value::I64(delay_ms));
    let delivery_mode = Some(if persistent { 2 } else { 1 });
    let properties = Properties { headers: Some(headers.as_table()), delivery_mode, ..Properties::default() };
    let mut block = Vec::new();
    properties.encode(&mut block);
    publish_of(Message::new(exchange.as_bytes(), key.as_bytes(), &block, &[body.as_bytes()]), persistent)
}

fn publish_later(seat: &mut Seat, publish: Publish) -> Barrier {
    match seat.publish(vec![publish]).pop() {
        Some(Outcome::Routed(barrier)) => barrier,
        other => panic!("not routed: {other:?}"),
    }
}

fn delay_queue(house: &House, exchange: &str) -> QueueRef {
    house.engine.topology.load().exchange(exchange.as_bytes()).unwrap().delay_queue().unwrap().clone()
}

/// As management shows it.
fn delayed(house: &House, exchange: &str) -> u64 {
    let views = house.engine.exchange_views();
    views.iter().find(|view| view.name == exchange).unwrap().messages_delayed.unwrap()
}

/// Moves the clock on until nothing waits there any more.
fn run_out(house: &House, exchange: &str) {
    let queue = delay_queue(house, exchange);
    let limit = Instant::now() + Duration::from_secs(60);
    while queue.counts().delayed > 0 {
        assert!(Instant::now() < limit, "{} still wait", queue.counts().delayed);
        house.engine.run_due(&queue);
        std::thread::yield_now();
    }
}

fn delay_header(message: &Message) -> Option<i64> {
    let properties = Properties::decode(message.properties()).unwrap();
    match properties.headers.and_then(|headers| headers.find(b"x-delay")) {
        Some(Value::I64(ms)) => Some(ms),
        _ => None,
    }
}

#[test]
fn a_message_goes_where_the_bindings_lead_when_its_time_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "topic", false);
    for queue in ["was bound", "is bound"] {
        a.declare(queue, TRANSIENT);
    }
    a.bind("later", "was bound", "a.*");
    publish_later(&mut a, later("later", "a.b", "x", false, 1));
    publish_later(&mut a, later("later", "c", "no binding takes it", false, 1));
    a.client.unbind(&binding("later", "was bound", "a.*")).unwrap();
    a.bind("later", "is bound", "a.#");
    assert_eq!((delayed(&house, "later"), house.engine.totals().messages), (2, 0));
    run_out(&house, "later");
    assert!(a.get("was bound").is_none());
    let (_, entry) = a.get("is bound").unwrap();
    assert_eq!((entry.message.exchange(), entry.message.routing_key()), (&b"later"[..], &b"a.b"[..]));
    assert_eq!(delay_header(&entry.message), Some(-1), "negated, as the plugin does");
    assert!(!entry.redelivered && a.get("is bound").is_none());
}

#[test]
fn without_a_positive_delay_a_message_is_routed_at_once_and_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "direct", true);
    a.declare("q", DURABLE);
    a.bind("later", "q", "k");
    for delay_ms in [0, -1, i64::MIN] {
        publish_later(&mut a, later("later", "k", "now", true, delay_ms));
        assert_eq!(delay_header(&a.get("q").unwrap().1.message), Some(delay_ms));
    }
    publish_later(&mut a, publish("later", "k", b"plain", false));
    assert_eq!(a.take_all("q"), ["plain"]);
    let unroutable = later("later", "nobody", "now", true, 0);
    assert_eq!(a.publish(vec![unroutable]), [Outcome::Unroutable]);
}

#[test]
fn what_is_due_leaves_by_time_and_then_in_the_order_of_publishing() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "fanout", false);
    a.declare("q", TRANSIENT);
    a.bind("later", "q", "");
    let with = |delay_ms: i64, body: &str| later("later", "", body, false, delay_ms);
    let batch = vec![with(30, "e"), with(1, "a"), with(20, "d"), with(1, "b"), with(1, "c")];
    assert_eq!(a.publish(batch).len(), 5);
    run_out(&house, "later");
    assert_eq!(a.take_all("q"), ["a", "b", "c", "d", "e"]);
}

#[test]
fn a_step_of_the_clock_releases_no_more_than_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "fanout", false);
    a.declare("q", TRANSIENT);
    a.bind("later", "q", "");
    let count = 2 * DELAYED_RELEASE_MAX + 1;
    a.publish((0..count).map(|n| later("later", "", &n.to_string(), false, 1)).collect());
    let (queue, target) = (delay_queue(&house, "later"), house.queue("q").unwrap());
    let due_ms = now_ms() + 1;
    while now_ms() <= due_ms {
        std::thread::yield_now();
    }
    for left in [DELAYED_RELEASE_MAX + 1, 1, 0] {
        house.engine.run_due(&queue);
        assert_eq!((queue.counts().delayed, target.counts().ready), (left, count - left));
    }
    assert_eq!(a.take_all("q"), (0..count).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn the_clock_releases_what_is_due_beside_what_has_ages_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "fanout", true);
    a.declare("q", DURABLE);
    a.bind("later", "q", "");
    a.consume("q", false);
    let clock = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    clock.spawn(house.engine.clone().keep_time());
    for delay_ms in [i64::MAX, YEARS_MS] {
        publish_later(&mut a, later("later", "", "far", true, delay_ms));
    }
    publish_later(&mut a, later("later", "", "near", true, 5));
    let mut got = VecDeque::new();
    a.wait_until("the delayed message", |seat| {
        got.extend(seat.drain().0);
        !got.is_empty()
    });
    let Some(Waiting::Delivery(_, entry)) = got.pop_front() else { panic!("{got:?}") };
    assert_eq!((entry.message.body(), got.len(), delayed(&house, "later")), (&b"near"[..], 0, 2));
    clock.shutdown_timeout(Duration::from_secs(10));
}

#[test]
fn a_confirm_of_a_durable_delay_waits_for_the_disk_and_the_others_never_touch_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "kept", "fanout", true);
    delayed_exchange(&mut a, "lost", "fanout", false);
    let tail = house.store.appender().tail();
    assert_eq!(publish_later(&mut a, later("kept", "", "transient", false, YEARS_MS)), Barrier(0));
    assert_eq!(publish_later(&mut a, later("lost", "", "persistent", true, YEARS_MS)), Barrier(0));
    assert_eq!(house.store.appender().tail(), tail, "nothing was appended");
    let barrier = publish_later(&mut a, later("kept", "", "persistent", true, YEARS_MS));
    assert!(barrier.0 > tail.0);
    a.wait_for(barrier);
    assert_eq!((delayed(&house, "kept"), delayed(&house, "lost")), (2, 1));
    drop(a);
    house.close();
    let house = House::open(dir.path());
    assert_eq!(delayed(&house, "kept"), 1);
    assert!(!house.engine.exchange_views().iter().any(|exchange| exchange.name == "lost"));
}

#[test]
fn a_restart_keeps_due_times_and_order_and_releases_what_is_overdue() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "direct", true);
    a.declare("q", DURABLE);
    a.bind("later", "q", "k");
    let large = "y".repeat(INLINE_BODY_BYTES_MAX + 1);
    let first = later("later", "k", &large, true, 3);
    a.publish(vec![first, Publish { priority: 7, ..later("later", "k", "2", true, 3) }]);
    let before_ms = now_ms();
    let last = publish_later(&mut a, later("later", "k", "3", true, YEARS_MS));
    a.wait_for(last);
    drop(a);
    house.close();

    let house = House::open(dir.path());
    let mut a = house.client();
    let queue = delay_queue(&house, "later");
    assert_eq!(queue.counts().delayed, 3);
    let limit = Instant::now() + Duration::from_secs(60);
    while queue.counts().delayed > 1 && Instant::now() < limit {
        house.engine.run_due(&queue);
        std::thread::yield_now();
    }
    let due_ms = queue.lock().next_deadline_ms().unwrap();
    assert!((before_ms..=now_ms()).contains(&(due_ms - YEARS_MS as u64)));
    let priorities: Vec<u8> = [a.get("q"), a.get("q")].map(|got| got.unwrap().1.priority).into();
    assert_eq!(priorities, [0, 7]);
    drop(a);
    house.close();

    let house = House::open(dir.path());
    let mut a = house.client();
    assert_eq!(a.take_all("q"), [format!("{large}!"), "2!".to_owned()]);
    assert_eq!(delayed(&house, "later"), 1);
    let mut barrier = Barrier(0);
    for body in ["4", "5"] {
        barrier = publish_later(&mut a, later("later", "k", body, true, 1));
    }
    a.wait_for(barrier);
    let queue = delay_queue(&house, "later");
    while queue.counts().delayed > 1 && Instant::now() < limit {
        house.engine.run_due(&queue);
    }
    assert_eq!(a.take_all("q"), ["4", "5"], "their places in the store are new ones");
}

#[test]
fn an_exchange_takes_what_it_delays_along_and_nothing_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let fanout = || TableWriter::new().entry("x-delayed-type", Value::LongStr(b"fanout"));
    a.declare("q", DURABLE);
    a.declare("doomed", DURABLE);
    for name in ["deleted", "unbound", "bereft"] {
        declare(&mut a, name, true, name != "deleted", fanout());
        a.bind(name, if name == "bereft" { "doomed" } else { "q" }, "");
        for body in ["small".to_owned(), "z".repeat(INLINE_BODY_BYTES_MAX + 1)] {
            let barrier = publish_later(&mut a, later(name, "", &body, true, 1));
            a.wait_for(barrier);
        }
    }
    let queues = ["deleted", "unbound", "bereft"].map(|name| delay_queue(&house, name));
    let late = delay_queue(&house, "deleted");
    let barriers = [
        a.client.delete_exchange(b"deleted", false).unwrap(),
        a.client.unbind(&binding("unbound", "q", "")).unwrap(),
        a.client.delete_queue(b"doomed", false, false).unwrap().1,
    ];
    barriers.into_iter().for_each(|barrier| a.wait_for(barrier));
    for queue in &queues {
        assert_eq!(queue.counts().delayed, 0);
        house.engine.run_due(queue);
    }
    // The moment between route and lock: the snapshot still had it.
    let mut incoming = vec![super::super::publish::incoming(later("deleted", "", "late", true, 1))];
    house.engine.enqueue(&[late.clone()].into_iter().collect(), &mut incoming);
    assert_eq!((late.counts().delayed, incoming[0].barrier.0), (0, 0));
    assert!(a.get("q").is_none());
    drop(a);
    house.close();

    let house = House::open(dir.path());
    let mut a = house.client();
    for name in ["deleted", "unbound", "bereft"] {
        assert!(house.engine.topology.load().exchange(name.as_bytes()).is_none());
        declare(&mut a, name, true, false, fanout());
        assert_eq!(delayed(&house, name), 0);
    }
}

#[test]
fn what_no_binding_takes_goes_to_the_alternate_exchange_when_it_is_due_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let arguments = TableWriter::new()
        .entry("x-delayed-type", Value::LongStr(b"direct"))
        .entry("alternate-exchange", Value::LongStr(b"amq.fanout"));
    declare(&mut a, "later", false, false, arguments);
    a.declare("other", TRANSIENT);
    a.bind("amq.fanout", "other", "");
    publish_later(&mut a, later("later", "nobody", "x", false, 1));
    assert!(a.get("other").is_none());
    run_out(&house, "later");
    assert_eq!(a.take_all("other"), ["x"]);
}

#[test]
fn a_delayed_exchange_delays_however_it_is_reached_and_each_message_once() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    for name in ["later", "still later"] {
        delayed_exchange(&mut a, name, "fanout", true);
    }
    let alternate = TableWriter::new().entry("alternate-exchange", Value::LongStr(b"later"));
    let spec = ExchangeSpec {
        name: b"lonely",
        kind: b"direct",
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: alternate.as_table(),
    };
    a.client.declare_exchange(&spec).unwrap();
    for queue in ["at once", "delayed", "behind"] {
        a.declare(queue, DURABLE);
    }
    let to_exchange = |source, destination| BindingSpec {
        kind: DestinationKind::Exchange,
        ..binding(source, destination, "k")
    };
    a.client.bind(&to_exchange("amq.direct", "later")).unwrap();
    a.client.bind(&to_exchange("later", "still later")).unwrap();
    a.bind("amq.direct", "at once", "k");
    a.bind("later", "delayed", "");
    a.bind("still later", "behind", "");
    for source in ["amq.direct", "lonely"] {
        let barrier = publish_later(&mut a, later(source, "k", source, true, 2));
        a.wait_for(barrier);
        assert!(barrier > Barrier(0));
    }
    let at_once = a.get("at once").unwrap().1;
    assert_eq!(delay_header(&at_once.message), Some(2), "it was not delayed here");
    assert!(a.get("delayed").is_none() && a.get("behind").is_none());
    run_out(&house, "later");
    assert_eq!(delayed(&house, "still later"), 0, "not a second time");
    for queue in ["delayed", "behind"] {
        assert_eq!(a.take_all(queue), ["amq.direct", "lonely"]);
    }
    drop((a, at_once));
    house.close();
    let house = House::open(dir.path());
    assert_eq!(house.client().take_all("at once"), ["amq.direct!"]);
    assert_eq!((delayed(&house, "later"), house.engine.totals().messages), (0, 0));
}

#[test]
fn a_dead_letter_is_delayed_once_by_a_delayed_exchange() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "retry", "fanout", true);
    let arguments = TableWriter::new().entry("x-dead-letter-exchange", Value::LongStr(b"retry"));
    a.declare("work", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.bind("retry", "work", "");
    publish_later(&mut a, later("", "work", "job", true, 2));
    let (queue, entry) = a.get("work").unwrap();
    a.client.reject(&queue, None, vec![entry]);
    assert_eq!((delayed(&house, "retry"), queue.counts().ready), (1, 0));
    run_out(&house, "retry");
    let (queue, entry) = a.get("work").unwrap();
    assert!(entry.message.is_dead_lettered(), "its history is the broker's own still");
    assert_eq!(delay_header(&entry.message), Some(-2));
    a.client.reject(&queue, None, vec![entry]);
    assert_eq!((delayed(&house, "retry"), queue.counts().ready), (0, 1), "the second time at once");
}

#[test]
fn a_time_to_live_begins_when_the_delay_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "fanout", false);
    a.declare("q", TRANSIENT);
    a.bind("later", "q", "");
    let headers = TableWriter::new().entry("x-delay", Value::I32(2));
    let properties =
        Properties { headers: Some(headers.as_table()), expiration: Some(b"60000"), ..Properties::default() };
    let mut block = Vec::new();
    properties.encode(&mut block);
    let message = Message::new(b"later", b"", &block, &[b"x"]);
    publish_later(&mut a, Publish { expiration_ms: Some(60_000), ..publish_of(message, false) });
    let due_ms = delay_queue(&house, "later").lock().next_deadline_ms().unwrap();
    run_out(&house, "later");
    let expires_ms = a.get("q").unwrap().1.expires_ms;
    assert!(expires_ms >= due_ms + 60_000, "{expires_ms} is before {due_ms} and a minute");
}

#[test]
fn a_transaction_makes_delays_durable_with_the_rest_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "fanout", true);
    a.declare("q", DURABLE);
    a.bind("later", "q", "");
    let publishes = vec![
        later("later", "", "2", true, 2),
        later("later", "", "1", true, 1),
        publish("", "q", b"0", true),
        later("later", "", "far", true, YEARS_MS),
    ];
    let (outcomes, barrier) = a.commit(publishes, Vec::new());
    assert_eq!(outcomes, [const { Outcome::Routed(Barrier(0)) }; 4]);
    a.wait_for(barrier);
    assert_eq!(a.take_all("q"), ["0"]);
    assert_eq!(delayed(&house, "later"), 3);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    let queue = delay_queue(&house, "later");
    let limit = Instant::now() + Duration::from_secs(60);
    while queue.counts().delayed > 1 && Instant::now() < limit {
        house.engine.run_due(&queue);
        std::thread::yield_now();
    }
    assert_eq!(a.take_all("q"), ["1", "2"]);
}

#[test]
fn nobody_can_name_the_queue_in_which_messages_wait() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "fanout", true);
    publish_later(&mut a, later("later", "", "x", true, YEARS_MS));
    assert!(house.engine.queue_views().is_empty());
    assert_eq!(house.engine.totals().queues, 0);
    for name in ["", "later"] {
        assert!(a.client.get(name.as_bytes()).is_err());
        let spec = QueueSpec { name: name.as_bytes(), passive: true, ..DURABLE };
        assert!(a.client.declare_queue(&spec).is_err());
        assert!(a.client.purge_queue(name.as_bytes()).is_err());
        assert_eq!(a.client.delete_queue(name.as_bytes(), false, false).unwrap().0, 0);
    }
    assert_eq!(delayed(&house, "later"), 1);
}

#[test]
fn a_second_declaration_does_not_change_how_it_routes() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "fanout", true);
    publish_later(&mut a, later("later", "", "x", true, YEARS_MS));
    delayed_exchange(&mut a, "later", "topic", true);
    assert_eq!(delayed(&house, "later"), 1);
    a.declare("q", TRANSIENT);
    a.bind("later", "q", "any");
    publish_later(&mut a, later("later", "other", "still a fanout", false, 0));
    assert_eq!(a.take_all("q"), ["still a fanout"]);
}

#[test]
fn all_keys_of_a_message_count_when_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "direct", true);
    for queue in ["first", "open", "blind"] {
        a.declare(queue, DURABLE);
        a.bind("later", queue, queue);
    }
    let keys = |key| TableWriter::new().item(Value::LongStr(key));
    let headers =
        TableWriter::new().entry("x-delay", Value::I8(1)).entry("CC", Value::Array(keys(b"open").as_array()));
    let mut block = Vec::new();
    Properties { headers: Some(headers.as_table()), ..Properties::default() }.encode(&mut block);
    let blind = keys(b"blind");
    let copies = Copies { open: true, blind: blind.as_array() };
    let message = Message::with_copies(b"later", b"first", &block, &[b"x"], copies);
    let barrier = publish_later(&mut a, publish_of(message, true));
    a.wait_for(barrier);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    run_out(&house, "later");
    for queue in ["first", "open", "blind"] {
        assert_eq!(a.take_all(queue), ["x"]);
    }
}

#[test]
fn a_delayed_exchange_may_route_as_one_of_the_plugins_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    delayed_exchange(&mut a, "later", "x-consistent-hash", true);
    for queue in ["one", "two"] {
        a.declare(queue, DURABLE);
        a.bind("later", queue, "1");
    }
    assert!(a.client.bind(&binding("later", "one", "not a weight")).is_err());
    for key in 0..100 {
        let barrier = publish_later(&mut a, later("later", &key.to_string(), "x", true, 1));
        a.wait_for(barrier);
    }
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    run_out(&house, "later");
    let counts = ["one", "two"].map(|queue| a.take_all(queue).len());
    assert!(counts[0] + counts[1] == 100 && counts.iter().all(|count| *count > 10), "{counts:?}");
}
