//! Transient messages beyond a queue's window: on the disk while the broker runs, and seen of by nobody.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::paging::{look, numbers};
use super::*;
use crate::broker::queue::Counts;
use crate::limits::RESIDENT_TRANSIENT_TIMES;
use crate::store::SPILL_DIR;

fn files(house: &House) -> Vec<PathBuf> {
    let listing = fs::read_dir(house.store.data_dir().join(SPILL_DIR));
    listing.into_iter().flatten().map(|found| found.unwrap().path()).collect()
}

impl Seat {
    /// Publishes numbered transient messages, and waits until all but a window of them is on the disk. The queue counts
    /// as paged what it has given away to be written: tests that changed the file then lost what was written after.
    fn overfill(&mut self, house: &House, queue: &str, numbers: std::ops::RangeInclusive<u32>) {
        for number in numbers {
            self.put(queue, &number.to_string(), false);
        }
        // Of four that may stay two are waiting to become a block, or one is.
        self.wait_until_true("the spilling", || {
            let counts = house.counts(queue);
            counts.ready - counts.paged <= 6 && !house.queue(queue).unwrap().lock().is_spilling()
        });
    }

    fn wait_until_no_file_is_left(&self, house: &House) {
        self.wait_until_true("the end of all files", || files(house).is_empty());
    }
}

/// A house where four transient messages may stay.
fn small(dir: &Path) -> House {
    let house = House::open(dir);
    house.engine.set_window(4 / RESIDENT_TRANSIENT_TIMES, 1 << 20);
    house
}

/// A house with small windows, and somebody who has declared a transient queue in it.
fn with_queue(dir: &Path) -> (House, Seat) {
    let house = small(dir);
    let mut seat = house.client();
    seat.declare("q", TRANSIENT);
    (house, seat)
}

#[test]
fn a_long_transient_queue_is_on_the_disk_and_comes_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (house, mut a) = with_queue(dir.path());
    a.overfill(&house, "q", 1..=500);
    let counts = house.counts("q");
    assert_eq!((counts.ready, counts.ready_bytes), (500, numbers(1..=500).concat().len()));
    assert_eq!(files(&house).len(), 1);
    assert_eq!(a.take_all("q"), numbers(1..=500));
    assert_eq!(house.counts("q"), Counts::default());
    a.wait_until_no_file_is_left(&house);
}

#[test]
fn a_consumer_gets_all_of_a_long_transient_queue_while_more_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (house, mut a) = with_queue(dir.path());
    a.overfill(&house, "q", 1..=200);
    let (queue, id, _) = a.consume("q", false);
    let (mut seen, mut next) = (Vec::new(), 201);
    while seen.len() < 400 {
        a.wait_until("a delivery", |a| a.outbox.is_filled());
        for waiting in a.drain().0 {
            let Waiting::Delivery(_, entry) = waiting else { panic!("{waiting:?}") };
            seen.push(String::from_utf8(entry.message.body().to_vec()).unwrap());
            a.client.settle(&queue, Some(id), &mut vec![entry]);
            if next <= 400 {
                a.put("q", &next.to_string(), false);
                next += 1;
            }
        }
    }
    assert_eq!(seen, numbers(1..=400));
    a.wait_until_no_file_is_left(&house);
}

#[test]
fn persistent_and_transient_messages_of_one_queue_keep_their_order_and_what_came_back_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    a.declare("q", DURABLE);
    let is_persistent = |number: u32| number.is_multiple_of(3) || (100..150).contains(&number);
    for number in 1..=3 {
        a.put("q", &number.to_string(), is_persistent(number));
    }
    let taken: Vec<_> = (0..3).map(|_| a.get("q").unwrap()).collect();
    for number in 4..=300 {
        let barrier = a.put("q", &number.to_string(), is_persistent(number));
        a.wait_for(barrier);
    }
    look(&house, "q");
    a.wait_until_true("the spilling", || house.counts("q").paged > 250);
    let queue = taken[0].0.clone();
    let back = taken.into_iter().map(|(_, entry)| Entry { redelivered: true, ..entry }).collect();
    a.client.requeue(&queue, &[Share { consumer: None, count: 3 }], back);
    let mut expected = numbers(1..=300);
    expected.iter_mut().take(3).for_each(|body| body.push('!'));
    assert_eq!(a.take_all("q"), expected);
    a.wait_until_no_file_is_left(&house);
}

#[test]
fn thousands_that_came_back_are_spilled_again_and_are_known_to_have_been_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (house, mut a) = with_queue(dir.path());
    a.overfill(&house, "q", 1..=200);
    let taken: Vec<_> = (0..150).map(|_| a.get_late("q").unwrap()).collect();
    let queue = taken[0].0.clone();
    let back = taken.into_iter().map(|(_, entry)| Entry { redelivered: true, ..entry }).collect();
    a.client.requeue(&queue, &[Share { consumer: None, count: 150 }], back);
    a.wait_until_true("the spilling", || house.counts("q").paged > 180);
    let mut expected = numbers(1..=200);
    expected.iter_mut().take(150).for_each(|body| body.push('!'));
    assert_eq!(a.take_all("q"), expected);
}

#[test]
fn while_memory_is_short_less_of_each_queue_stays_in_it_though_nobody_uses_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path());
    house.engine.set_window(2000 / RESIDENT_TRANSIENT_TIMES, 1 << 30);
    let mut a = house.client();
    a.declare("q", TRANSIENT);
    for number in 1..=2000 {
        a.put("q", &number.to_string(), false);
    }
    assert_eq!(house.counts("q").paged, 0, "it fits");
    // At nine tenths of the watermark a sixty-fourth may stay, or the least there can be.
    house.engine.fit_into(Some(90), 100);
    a.wait_until_true("the spilling", || house.counts("q").paged >= 1800);
    assert_eq!(a.take_all("q"), numbers(1..=2000));
    a.wait_until_no_file_is_left(&house);
}

#[test]
fn a_purge_or_a_deletion_takes_the_files_along() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    a.declare("purged", TRANSIENT);
    a.declare("deleted", TRANSIENT);
    a.overfill(&house, "purged", 1..=100);
    let held = a.get("purged").unwrap();
    let (count, _) = a.client.purge_queue(b"purged").unwrap();
    assert_eq!((count, house.counts("purged").ready, house.counts("purged").paged), (99, 0, 0));
    a.wait_until_no_file_is_left(&house);
    a.overfill(&house, "deleted", 1..=100);
    let (count, _) = a.client.delete_queue(b"deleted", false, false).unwrap();
    assert_eq!(count, 100);
    a.wait_until_no_file_is_left(&house);
    a.overfill(&house, "purged", 1..=50);
    assert_eq!(a.take_all("purged"), numbers(1..=50));
    drop(held);
    let mut b = house.client();
    b.declare("own", EXCLUSIVE);
    b.overfill(&house, "own", 1..=50);
    drop(b);
    a.wait_until_no_file_is_left(&house);
}

#[test]
fn limits_priorities_and_dead_letters_go_beyond_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    a.declare("dead", TRANSIENT);
    let arguments = TableWriter::new()
        .entry("x-max-length", Value::I64(50))
        .entry("x-max-priority", Value::I64(2))
        .entry("x-dead-letter-exchange", Value::LongStr(b""))
        .entry("x-dead-letter-routing-key", Value::LongStr(b"dead"));
    a.declare("q", QueueSpec { arguments: arguments.as_table(), ..TRANSIENT });
    // While nobody has to wait for a page, for what is over goes at once.
    for number in 1..=50u8 {
        let message = Publish { priority: number % 3, ..publish("", "q", &[number], false) };
        assert!(matches!(a.publish(vec![message])[..], [Outcome::Routed(_)]));
    }
    let queue = house.queue("q").unwrap();
    a.wait_until_true("the spilling", || queue.counts().paged > 40);
    for number in 51..=60u8 {
        assert!(matches!(a.publish(vec![publish("", "q", &[number], false)])[..], [Outcome::Routed(_)]));
    }
    a.wait_until_true("the limit", || queue.counts().ready == 50);
    let highest = (1..=50u8).filter(|number| number % 3 == 2);
    let others = |rest: u8| (1..=50u8).filter(move |number| number % 3 == rest);
    let died: Vec<u8> = highest.clone().take(10).collect();
    let left: Vec<u8> = highest.skip(10).chain(others(1)).chain(others(0)).chain(51..=60).collect();
    let mut bodies = |queue: &str| -> Vec<u8> {
        std::iter::from_fn(|| a.get_late(queue)).map(|(_, entry)| entry.message.body()[0]).collect()
    };
    assert_eq!(bodies("dead"), died);
    assert_eq!(bodies("q"), left);
}

#[test]
fn messages_of_a_damaged_block_are_lost_and_all_others_are_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (house, mut a) = with_queue(dir.path());
    a.overfill(&house, "q", 1..=100);
    let [file] = &files(&house)[..] else { panic!("one file") };
    let mut content = fs::read(file).unwrap();
    let at = content.len() / 2;
    content[at] ^= 1;
    fs::write(file, content).unwrap();
    let found = a.take_all("q");
    assert_eq!(found.len(), 99, "one makes a block here");
    assert!(found.iter().is_sorted_by_key(|body| body.parse::<u32>().unwrap()));
    assert_eq!(house.counts("q"), Counts::default());
}

/// A passing error of the disk destroyed messages that were sound.
#[test]
fn what_the_disk_does_not_give_now_stays_there_and_is_delivered_later_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (house, mut a) = with_queue(dir.path());
    a.overfill(&house, "q", 1..=100);
    let [file] = &files(&house)[..] else { panic!("one file") };
    let content = fs::read(file).unwrap();
    fs::write(file, "").unwrap();
    let queue = house.queue("q").unwrap();
    let mut seen: Vec<String> = Vec::new();
    while let Some((_, entry)) = a.get("q") {
        seen.push(String::from_utf8(entry.message.body().to_vec()).unwrap());
    }
    a.wait_until_true("another try", || queue.due_ms.load(Ordering::Acquire) > 0);
    let left = house.counts("q").ready;
    assert!(left > 90 && left + seen.len() == 100, "{left} of a hundred without {}", seen.len());
    fs::write(file, content).unwrap();
    house.engine.run_due(&queue);
    seen.extend(a.take_all("q"));
    assert_eq!(seen, numbers(1..=100));
    assert_eq!((house.counts("q").ready, house.counts("q").paged), (0, 0));
    a.wait_until_no_file_is_left(&house);
}

#[test]
fn what_the_disk_does_not_take_stays_in_memory_and_goes_there_later() {
    let dir = tempfile::tempdir().unwrap();
    let house = small(dir.path());
    let mut a = house.client();
    let in_the_way = dir.path().join(SPILL_DIR);
    type Change<'a> = &'a dyn Fn();
    let breaks: [(&str, Change, Change); 2] = [
        ("full", &|| house.engine.set_disk_reserve(u64::MAX), &|| house.engine.set_disk_reserve(0)),
        ("broken", &|| fs::write(&in_the_way, "no folder").unwrap(), &|| {
            fs::remove_file(&in_the_way).unwrap()
        }),
    ];
    // The files of one are gone before the next is in the way of their folder.
    for (name, fail, mend) in breaks {
        a.declare(name, TRANSIENT);
        if in_the_way.exists() {
            a.wait_until_no_file_is_left(&house);
            fs::remove_dir(&in_the_way).unwrap();
        }
        fail();
        for number in 1..=100 {
            a.put(name, &number.to_string(), false);
        }
        let queue = house.queue(name).unwrap();
        a.wait_until_true("another try", || queue.due_ms.load(Ordering::Acquire) > 0);
        assert_eq!((house.counts(name).ready, house.counts(name).paged), (100, 0));
        let first: Vec<_> = (1..=40).map(|_| a.get(name).unwrap().1.message).collect();
        assert_eq!(first[39].body(), b"40");
        mend();
        house.engine.run_due(&queue);
        a.wait_until_true("the spilling", || house.counts(name).paged > 50);
        assert_eq!(a.take_all(name), numbers(41..=100));
    }
}
