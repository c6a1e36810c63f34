//! What a crash between two batches may leave: a message that moves from one queue to another is in both,
//! or in one, and never in neither.

use super::*;
use crate::limits::DEAD_BURIED_MAX;

fn with(entries: &[(&str, Value<'_>)]) -> TableWriter {
    entries.iter().fold(TableWriter::new(), |table, (name, value)| table.entry(name, *value))
}

/// A queue called `full` that has no room, and gives everything to `dead`.
fn declare_full(seat: &mut Seat, overflow: &[u8]) {
    let arguments = with(&[
        ("x-max-length", Value::I32(0)),
        ("x-overflow", Value::LongStr(overflow)),
        ("x-dead-letter-exchange", Value::LongStr(b"")),
        ("x-dead-letter-routing-key", Value::LongStr(b"dead")),
    ]);
    seat.declare("dead", DURABLE);
    seat.declare("full", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
}

/// A message that was dead-lettered before its batch was taken used to be struck out of that batch, as if
/// it had been acknowledged. The batch told its publisher that it was safe, while its dead letter waited
/// for the next one: a kill in between lost a confirmed message.
#[test]
fn a_dead_letter_does_not_strike_out_what_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    declare_full(&mut a, b"drop-head");
    let mut last = Barrier(0);
    for _ in 0..200 {
        last = a.put("full", "x", true);
    }
    assert_eq!(house.store.stats().elided, 0, "each was written, and then removed");
    a.wait_for(last);
    assert_eq!(
        (house.queue("full").unwrap().counts().ready, house.queue("dead").unwrap().counts().ready),
        (0, 200)
    );
}

/// Where nothing takes its place a message that goes at once is still never written.
#[test]
fn what_nobody_takes_when_it_dies_needs_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let arguments = with(&[("x-max-length", Value::I32(0))]);
    a.declare("full", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    for _ in 0..50 {
        // One appender holds them all, so that some are still there when they are dropped.
        a.publish((0..50).map(|_| publish("", "full", b"x", true)).collect());
    }
    assert!(house.store.stats().elided > 0);
}

/// An acknowledgement in a transaction used to strike out a put that was not taken yet. The put's batch
/// told the publisher that it was safe, while the transaction was in the next one: a kill in between lost
/// the message although the transaction had not happened.
#[test]
fn a_commit_does_not_strike_out_what_it_acknowledges() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("in", DURABLE);
    a.declare("out", DURABLE);
    let mut last = Barrier(0);
    for _ in 0..200 {
        a.put("in", "x", true);
        let (queue, entry) = a.get("in").unwrap();
        last =
            a.commit(vec![publish("", "out", b"y", true)], vec![Settled { queue, consumer: None, entry }]).1;
    }
    assert_eq!(house.store.stats().elided, 0);
    a.wait_for(last);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    assert_eq!((a.take_all("in").len(), a.take_all("out").len()), (0, 200));
}

/// A commit said that all was well although a full queue had refused a part of it, and within one commit
/// the limit did not count what the same commit had put in before.
#[test]
fn a_commit_tells_what_a_full_queue_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let arguments =
        with(&[("x-max-length-bytes", Value::I32(2)), ("x-overflow", Value::LongStr(b"reject-publish"))]);
    a.declare("q", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    let three = |_| (0..3).map(|_| publish("", "q", b"x", true)).collect();
    let (outcomes, _) = a.commit(three(()), Vec::new());
    assert_eq!(outcomes, [Outcome::Routed(Barrier(0)), Outcome::Routed(Barrier(0)), Outcome::Refused]);
    assert_eq!(a.take_all("q").len(), 2);
    let (outcomes, _) = a.commit(three(()), Vec::new());
    assert_eq!(outcomes[2], Outcome::Refused, "what was given out before is not counted for ever");
    assert_eq!(a.take_all("q").len(), 2);
}

/// A transaction of nothing but duplicates was told that it is done while what it repeats was on its way to the disk: after
/// a crash in between there was neither.
#[test]
fn a_commit_of_duplicates_waits_for_what_they_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let [mut a, mut b] = [house.client(), house.client()];
    let drops = with(&[("x-message-deduplication", Value::Bool(true))]);
    a.declare("by-queue", QueueSpec { arguments: drops.as_table(), ..DURABLE });
    a.declare("by-exchange", DURABLE);
    let size = with(&[("x-message-deduplication", Value::Bool(true)), ("x-cache-size", Value::I32(10))]);
    let exchange = ExchangeSpec {
        name: b"once",
        kind: b"direct",
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: size.as_table(),
    };
    a.client.declare_exchange(&exchange).unwrap();
    a.bind("once", "by-exchange", "by-exchange");
    let headers = with(&[("x-deduplication-header", Value::LongStr(b"1"))]);
    let mut properties = Vec::new();
    Properties { headers: Some(headers.as_table()), ..Properties::default() }.encode(&mut properties);
    for (exchange, queue) in [("", "by-queue"), ("once", "by-exchange")] {
        let message = Message::new(exchange.as_bytes(), queue.as_bytes(), &properties, &[b"x"]);
        let publish = || Publish { mandatory: false, ..publish_of(message.clone(), true) };
        let Some(Outcome::Routed(first)) = a.publish(vec![publish()]).pop() else { panic!("not routed") };
        let (_, done) = b.commit(vec![publish()], Vec::new());
        assert!(first > Barrier(0) && done >= first, "{exchange}: {first:?}, {done:?}");
        b.wait_for(done);
        assert_eq!(house.queue(queue).unwrap().counts().ready, 1);
    }
}

#[test]
fn what_a_full_queue_refuses_in_a_commit_is_dead_lettered_if_it_is_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    declare_full(&mut a, b"reject-publish-dlx");
    let (outcomes, _) = a.commit(vec![publish("", "full", b"x", true)], Vec::new());
    assert_eq!(outcomes, [Outcome::Refused]);
    assert_eq!(a.take_all("dead"), ["x"]);
}

/// A queue that goes between publish and commit takes nothing, and its share of the body is given up.
#[test]
fn a_queue_that_goes_before_the_commit_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    for queue in ["stays", "goes"] {
        a.declare(queue, DURABLE);
        a.bind("amq.fanout", queue, "");
    }
    let large = vec![b'x'; 3 * INLINE_BODY_BYTES_MAX];
    let planned = a.client.plan(publish("amq.fanout", "", &large, true)).unwrap();
    a.client.delete_queue(b"goes", false, false).unwrap();
    let (outcomes, barrier) = a.client.commit(vec![planned], Vec::new()).unwrap();
    assert_eq!(outcomes, [Outcome::Refused], "the client hears that a part is missing");
    a.wait_for(barrier);
    assert_eq!(a.take_all("stays").len(), 1);
    house.store.appender().wake(Waker::from(a.outbox.clone()));
    a.wait_until("the backlog", |_| house.store.backlog_bytes() == 0);
}

/// The clock and a publisher made one queue give up its heads at the same time, each took its own to the
/// dead letter exchange, and whoever was faster came first.
#[test]
fn dead_letters_keep_their_order_whoever_makes_them() {
    const COUNT: usize = 5000;
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let arguments = with(&[
        ("x-message-ttl", Value::I32(1)),
        ("x-dead-letter-exchange", Value::LongStr(b"")),
        ("x-dead-letter-routing-key", Value::LongStr(b"dead")),
    ]);
    a.declare("dead", TRANSIENT);
    a.declare("short", QueueSpec { arguments: arguments.as_table(), ..TRANSIENT });
    let (short, dead) = (house.queue("short").unwrap(), house.queue("dead").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while dead.counts().ready < COUNT {
                    house.engine.run_due(&short);
                }
            });
        }
        for number in 0..COUNT {
            a.put("short", &number.to_string(), false);
        }
    });
    let expected: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
    assert!(a.take_all("dead") == expected, "in the order in which they were published");
}

#[test]
fn all_that_one_call_gives_up_is_dead_lettered_when_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    let arguments = with(&[
        ("x-dead-letter-exchange", Value::LongStr(b"")),
        ("x-dead-letter-routing-key", Value::LongStr(b"dead")),
    ]);
    a.declare("dead", TRANSIENT);
    a.declare("work", QueueSpec { arguments: arguments.as_table(), ..TRANSIENT });
    let count = 2 * DEAD_BURIED_MAX;
    a.publish((0..count).map(|_| publish("", "work", b"x", false)).collect());
    let taken: Vec<_> = (0..count).map(|_| a.get("work").unwrap()).collect();
    let (queue, _) = taken[0].clone();
    a.client.reject(&queue, None, taken.into_iter().map(|(_, entry)| entry).collect());
    assert_eq!(house.queue("dead").unwrap().counts().ready, count);
}

/// Confirms need not wait for a commit any more. Who acknowledges and then publishes is still told by the confirm that
/// both are safe, even if what it published was consumed at once.
#[test]
fn a_confirm_tells_that_what_was_acknowledged_before_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    let mut a = house.client();
    a.declare("in", DURABLE);
    a.declare("out", DURABLE);
    let mut b = house.client();
    let (out, id, _) = b.consume("out", false);
    for round in 0..50 {
        let last = a.put("in", "x", true);
        a.wait_for(last);
        let (queue, entry) = a.get("in").unwrap();
        a.client.settle(&queue, None, &mut vec![entry]);
        let acknowledged = house.store.appender().tail();
        // As if it had always been so quick.
        out.pace.acknowledged(Some(Duration::from_micros(1)));
        let confirm = a.put("out", "y", true);
        for waiting in b.drain().0 {
            let Waiting::Delivery(_, entry) = waiting else { continue };
            b.client.settle(&out, Some(id), &mut vec![entry]);
        }
        a.wait_for(confirm);
        assert!(house.store.durable() >= acknowledged, "round {round}");
    }
    assert!(house.store.stats().elided > 0, "no commit was needed for what went on");
}
