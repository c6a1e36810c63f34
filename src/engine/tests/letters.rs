//! Dead letters at least once: they stay with their queue until everybody has taken them.

use super::*;
use crate::broker::arguments::Overflow;

fn with(entries: &[(&str, Value<'_>)]) -> TableWriter {
    entries.iter().fold(TableWriter::new(), |table, (name, value)| table.entry(name, *value))
}

/// A queue whose dead letters go to the exchange `dlx`, which is not there yet.
fn declare_source(seat: &mut Seat, name: &str, more: &[(&str, Value<'_>)]) {
    let arguments = [
        ("x-queue-type", Value::LongStr(b"quorum")),
        ("x-dead-letter-strategy", Value::LongStr(b"at-least-once")),
        ("x-dead-letter-exchange", Value::LongStr(b"dlx")),
        ("x-overflow", Value::LongStr(b"reject-publish")),
    ];
    let arguments = with(&[&arguments[..], more].concat());
    seat.declare(name, QueueSpec { arguments: arguments.as_table(), ..DURABLE });
}

/// A queue that takes no more than so many.
fn declare_narrow(seat: &mut Seat, name: &str, max: i32, overflow: &[u8]) {
    let arguments = with(&[
        ("x-max-length", Value::I32(max)),
        ("x-overflow", Value::LongStr(overflow)),
        ("x-dead-letter-exchange", Value::LongStr(b"")),
        ("x-dead-letter-routing-key", Value::LongStr(b"refused")),
    ]);
    seat.declare(name, QueueSpec { arguments: arguments.as_table(), ..DURABLE });
}

fn put_and_reject(seat: &mut Seat, bodies: &[&str]) -> Barrier {
    let mut last = Barrier(0);
    for body in bodies {
        last = seat.put("q", body, true);
        let (queue, entry) = seat.get("q").unwrap();
        seat.client.reject(&queue, None, vec![entry]);
    }
    last
}

/// How many are ready, and how many letters there are.
fn counts(house: &House, queue: &str) -> (usize, usize) {
    let counts = house.queue(queue).unwrap().counts();
    (counts.ready, counts.letters)
}

/// The clock comes to the queue.
fn retry(house: &House) {
    house.engine.run_due(&house.queue("q").unwrap());
}

fn open_house() -> (tempfile::TempDir, House) {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    (dir, house)
}

#[test]
fn a_letter_that_leads_nowhere_is_kept_until_it_leads_somewhere() {
    let (_dir, house) = open_house();
    let mut a = house.client();
    declare_source(&mut a, "q", &[]);
    put_and_reject(&mut a, &["1", "2"]);
    retry(&house);
    assert_eq!((counts(&house, "q"), house.engine.totals().messages), ((0, 2), 2), "there is no exchange");
    a.exchange("dlx", "fanout", true);
    retry(&house);
    assert_eq!(counts(&house, "q"), (0, 2), "no queue is bound");
    a.declare("dead", DURABLE);
    a.bind("dlx", "dead", "");
    put_and_reject(&mut a, &["3"]);
    retry(&house);
    assert_eq!(counts(&house, "q"), (0, 0));
    assert_eq!(a.take_all("dead"), ["3", "1", "2"], "what is new does not wait for what is stuck");
}

#[test]
fn the_clock_tries_again_by_itself() {
    let (_dir, house) = open_house();
    let mut a = house.client();
    let clock = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    clock.spawn(house.engine.clone().keep_time());
    declare_source(&mut a, "q", &[]);
    put_and_reject(&mut a, &["1"]);
    a.exchange("dlx", "fanout", true);
    a.declare("dead", DURABLE);
    a.bind("dlx", "dead", "");
    a.consume("dead", true);
    a.wait_until("a dead letter", |seat| !seat.drain().0.is_empty());
    clock.shutdown_background();
}

#[test]
fn who_took_a_letter_does_not_get_it_again_while_another_refuses_it() {
    let (_dir, house) = open_house();
    let mut a = house.client();
    a.exchange("dlx", "fanout", true);
    declare_narrow(&mut a, "narrow", 1, b"reject-publish");
    a.declare("wide", DURABLE);
    for queue in ["narrow", "wide"] {
        a.bind("dlx", queue, "");
    }
    declare_source(&mut a, "q", &[]);
    put_and_reject(&mut a, &["1", "2"]);
    for _ in 0..3 {
        retry(&house);
        assert_eq!((counts(&house, "q"), counts(&house, "wide")), ((0, 1), (2, 0)));
    }
    assert_eq!(a.take_all("narrow"), ["1"]);
    retry(&house);
    assert_eq!((counts(&house, "q"), a.take_all("narrow")), ((0, 0), vec!["2".to_owned()]));
    assert_eq!(a.take_all("wide"), ["1", "2"]);
}

#[test]
fn a_target_that_goes_is_not_waited_for_if_another_has_the_letter() {
    let (_dir, house) = open_house();
    let mut a = house.client();
    a.exchange("dlx", "fanout", true);
    declare_narrow(&mut a, "narrow", 0, b"reject-publish");
    a.declare("wide", DURABLE);
    a.bind("dlx", "narrow", "");
    declare_source(&mut a, "q", &[]);
    put_and_reject(&mut a, &["1"]);
    a.client.delete_queue(b"narrow", false, false).unwrap();
    retry(&house);
    assert_eq!(counts(&house, "q"), (0, 1), "nobody has it");
    a.bind("dlx", "wide", "");
    declare_narrow(&mut a, "narrow", 0, b"reject-publish");
    a.bind("dlx", "narrow", "");
    retry(&house);
    assert_eq!((counts(&house, "q"), counts(&house, "wide")), ((0, 1), (1, 0)));
    a.client.delete_queue(b"narrow", false, false).unwrap();
    retry(&house);
    assert_eq!((counts(&house, "q"), counts(&house, "wide")), ((0, 0), (1, 0)));
}

#[test]
fn a_target_that_dead_letters_what_it_refuses_does_so_once() {
    let (_dir, house) = open_house();
    let mut a = house.client();
    a.exchange("dlx", "fanout", true);
    declare_narrow(&mut a, "narrow", 0, b"reject-publish-dlx");
    a.declare("refused", DURABLE);
    a.bind("dlx", "narrow", "");
    declare_source(&mut a, "q", &[]);
    put_and_reject(&mut a, &["1"]);
    (0..3).for_each(|_| retry(&house));
    assert_eq!((counts(&house, "q"), a.take_all("refused")), ((0, 1), vec!["1".to_owned()]));
}

#[test]
fn a_restart_keeps_letters_and_does_not_deliver_them_again() {
    let (dir, house) = open_house();
    let mut a = house.client();
    declare_source(&mut a, "q", &[]);
    let large = "x".repeat(INLINE_BODY_BYTES_MAX + 1);
    put_and_reject(&mut a, &["1", &large]);
    a.put("q", "ready", true);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    let mut a = house.client();
    assert_eq!(counts(&house, "q"), (1, 2));
    retry(&house);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    a = house.client();
    assert_eq!(counts(&house, "q"), (1, 2), "as often as it may be");
    a.exchange("dlx", "fanout", true);
    a.declare("dead", DURABLE);
    a.bind("dlx", "dead", "");
    retry(&house);
    let (_, letter) = a.get("dead").unwrap();
    let properties = Properties::decode(letter.message.properties()).unwrap();
    let reason = properties.headers.unwrap().find(b"x-first-death-reason");
    assert_eq!((letter.message.body(), reason), (&b"1"[..], Some(Value::LongStr(b"rejected"))));
    assert_eq!((a.take_all("dead"), a.take_all("q")), (vec![large], vec!["ready".to_owned()]));
    drop((a, letter));
    house.close();
    let house = House::open(dir.path());
    assert_eq!(counts(&house, "q"), (0, 0), "what was taken is gone from the store");
}

#[test]
fn a_letter_that_was_taken_before_its_entry_was_written_does_not_strike_it_out() {
    let (_dir, house) = open_house();
    let mut a = house.client();
    a.exchange("dlx", "fanout", true);
    a.declare("dead", DURABLE);
    a.bind("dlx", "dead", "");
    declare_source(&mut a, "q", &[]);
    let mut last = Barrier(0);
    for _ in 0..200 {
        last = put_and_reject(&mut a, &["x"]);
    }
    assert_eq!(house.store.stats().elided, 0, "each was written, and then removed");
    a.wait_for(last);
    assert_eq!((counts(&house, "q"), counts(&house, "dead")), ((0, 0), (200, 0)));
}

#[test]
fn letters_take_room_and_go_with_their_queue_but_not_with_a_purge() {
    let (dir, house) = open_house();
    let mut a = house.client();
    declare_source(&mut a, "q", &[("x-max-length", Value::I32(3))]);
    put_and_reject(&mut a, &["1", "2"]);
    let outcomes = a.publish((0..2).map(|_| publish("", "q", b"x", true)).collect());
    assert!(matches!(outcomes[..], [Outcome::Routed(_), Outcome::Refused]));
    assert_eq!(a.client.purge_queue(b"q").unwrap().0, 1);
    assert_eq!(counts(&house, "q"), (0, 2));
    assert_eq!(a.client.delete_queue(b"q", false, false).unwrap().0, 0, "what was ready");
    declare_source(&mut a, "q", &[]);
    drop(a);
    house.close();
    let house = House::open(dir.path());
    assert_eq!(counts(&house, "q"), (0, 0));
}

#[test]
fn only_a_quorum_queue_that_refuses_publishes_keeps_letters() {
    let (_dir, house) = open_house();
    let mut a = house.client();
    for overflow in [None, Some(&b"drop-head"[..])] {
        let mut entries = vec![
            ("x-queue-type", Value::LongStr(b"quorum")),
            ("x-dead-letter-strategy", Value::LongStr(b"at-least-once")),
            ("x-dead-letter-exchange", Value::LongStr(b"dlx")),
        ];
        entries.extend(overflow.map(|overflow| ("x-overflow", Value::LongStr(overflow))));
        a.declare("q", QueueSpec { arguments: with(&entries).as_table(), ..DURABLE });
        assert_eq!(house.queue("q").unwrap().arguments.overflow, Overflow::DropHead);
        put_and_reject(&mut a, &["1"]);
        assert_eq!(counts(&house, "q"), (0, 0), "it is dropped, as ever");
        a.client.delete_queue(b"q", false, false).unwrap();
    }
}
