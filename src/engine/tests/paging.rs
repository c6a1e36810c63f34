//! Queues that are longer than their window: the same is seen of them as of short ones, and little of them is in
//! memory.

use super::*;
use crate::broker::queue::Counts;

/// A broker that keeps four messages of each queue in memory.
fn small(dir: &Path) -> House {
    let house = House::open(dir);
    house.engine.set_window(4, 1 << 20);
    house
}

impl House {
    pub(super) fn counts(&self, queue: &str) -> Counts {
        self.queue(queue).unwrap().counts()
    }
}

impl Seat {
    /// Publishes numbered messages and waits for them.
    fn fill(&mut self, queue: &str, numbers: std::ops::RangeInclusive<u32>) {
        let barriers: Vec<Barrier> =
            numbers.map(|number| self.put(queue, &format!("{number}"), true)).collect();
        self.wait_for(*barriers.last().unwrap());
    }

    /// Sleeps a little between looks: what is waited for wakes nobody.
    pub(super) fn wait_until_true(&self, what: &str, done: impl Fn() -> bool) {
        let limit = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < limit, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(super) fn numbers(range: std::ops::RangeInclusive<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// Lets the queue see that what it was given is in the store now.
pub(super) fn look(house: &House, queue: &str) {
    let queue = house.queue(queue).unwrap();
    house.engine.with_queue(&queue, |_, _| ());
}

#[test]
fn a_long_queue_keeps_its_window_in_memory_and_gives_everything_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    a.declare("q", DURABLE);
    a.fill("q", 1..=500);
    look(&house, "q");
    let counts = house.counts("q");
    assert_eq!((counts.ready, counts.paged), (500, 496));
    assert_eq!(counts.ready_bytes, numbers(1..=500).concat().len());
    assert_eq!(a.take_all("q"), numbers(1..=500));
    assert_eq!(house.counts("q"), Counts::default());
}

#[test]
fn a_consumer_gets_all_of_a_long_queue_without_asking_again() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    a.declare("q", DURABLE);
    a.fill("q", 1..=300);
    look(&house, "q");
    let (queue, id, _) = a.consume("q", false);
    let mut seen = Vec::new();
    while seen.len() < 300 {
        a.wait_until("a delivery", |a| a.outbox.is_filled());
        for waiting in a.drain().0 {
            let Waiting::Delivery(_, entry) = waiting else { panic!("{waiting:?}") };
            seen.push(String::from_utf8(entry.message.body().to_vec()).unwrap());
            a.client.settle(&queue, Some(id), &mut vec![entry]);
        }
    }
    assert_eq!(seen, numbers(1..=300));
}

#[test]
fn what_came_back_and_what_is_transient_stand_in_their_old_places() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    a.declare("q", DURABLE);
    a.fill("q", 1..=3);
    let taken: Vec<_> = (0..2).map(|_| a.get("q").unwrap()).collect();
    for number in 4..=30 {
        let barrier = a.put("q", &number.to_string(), number % 10 != 0);
        a.wait_for(barrier);
    }
    look(&house, "q");
    assert!(house.counts("q").paged > 15);
    let queue = taken[0].0.clone();
    let back = taken.into_iter().map(|(_, entry)| Entry { redelivered: true, ..entry }).collect();
    a.client.requeue(&queue, &[Share { consumer: None, count: 2 }], back);
    let mut expected = numbers(1..=30);
    expected[0].push('!');
    expected[1].push('!');
    assert_eq!(a.take_all("q"), expected);
}

#[test]
fn a_purge_or_a_deletion_takes_what_is_in_the_store_only() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    for queue in ["purged", "deleted", "both"] {
        a.declare(queue, DURABLE);
        a.bind("amq.fanout", queue, "");
    }
    let mut last = Barrier(0);
    for number in 1..=100 {
        let outcomes = a.publish(vec![publish("amq.fanout", "", format!("{number}").as_bytes(), true)]);
        let [Outcome::Routed(barrier)] = outcomes[..] else { panic!("{outcomes:?}") };
        last = barrier;
    }
    a.wait_for(last);
    ["purged", "deleted", "both"].iter().for_each(|queue| look(&house, queue));
    assert!(house.counts("purged").paged > 90);
    let held = a.get("purged").unwrap();
    let (count, barrier) = a.client.purge_queue(b"purged").unwrap();
    assert_eq!((count, house.counts("purged").ready, house.counts("purged").paged), (99, 0, 0));
    a.wait_for(barrier);
    a.put("purged", "after", true);
    let (count, barrier) = a.client.delete_queue(b"deleted", false, false).unwrap();
    assert_eq!(count, 100);
    a.wait_for(barrier);
    drop(held);
    drop(a);
    house.close();
    let house = small(dir.path());
    let mut a = house.client();
    assert!(house.queue("deleted").is_none());
    assert_eq!(a.take_all("purged"), ["1!", "after"]);
    assert_eq!(a.take_all("both"), numbers(1..=100), "bodies that others had, too, are there");
}

#[test]
fn limits_expiry_and_dead_letters_go_beyond_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    a.declare("dead", DURABLE);
    let arguments = TableWriter::new()
        .entry("x-max-length", Value::I64(50))
        .entry("x-dead-letter-exchange", Value::LongStr(b""))
        .entry("x-dead-letter-routing-key", Value::LongStr(b"dead"));
    a.declare("q", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.fill("q", 1..=200);
    look(&house, "q");
    let queue = house.queue("q").unwrap();
    a.wait_until_true("the limit", || queue.counts().ready == 50);
    assert_eq!(a.take_all("dead"), numbers(1..=150));
    assert_eq!(a.take_all("q"), numbers(151..=200));

    let arguments = TableWriter::new()
        .entry("x-message-ttl", Value::I64(1))
        .entry("x-dead-letter-exchange", Value::LongStr(b""))
        .entry("x-dead-letter-routing-key", Value::LongStr(b"dead"));
    a.declare("short", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.fill("short", 1..=100);
    let queue = house.queue("short").unwrap();
    a.wait_until_true("the end of all", || {
        look(&house, "short");
        queue.counts().ready == 0
    });
    assert_eq!(a.take_all("dead"), numbers(1..=100));
}

#[test]
fn a_long_queue_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    let arguments = TableWriter::new().entry("x-max-priority", Value::I64(3));
    a.declare("plain", DURABLE);
    a.declare("ranked", QueueSpec { arguments: arguments.as_table(), ..DURABLE });
    a.fill("plain", 1..=100);
    for number in 0..40u8 {
        let message = Publish { priority: number % 4, ..publish("", "ranked", &[b'A' + number / 4], true) };
        let outcomes = a.publish(vec![message]);
        let [Outcome::Routed(barrier)] = outcomes[..] else { panic!("{outcomes:?}") };
        a.wait_for(barrier);
    }
    let ranked = "ABCDEFGHIJ".repeat(4);
    drop(a);
    house.close();
    let house = small(dir.path());
    let mut a = house.client();
    assert_eq!((house.counts("plain").ready, house.counts("ranked").ready), (100, 40));
    assert_eq!(a.take_all("plain"), numbers(1..=100));
    assert_eq!(a.take_all("ranked").concat(), ranked);
}
