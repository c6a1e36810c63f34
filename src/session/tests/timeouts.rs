//! Acknowledgement timeouts: who is late, what closes, what comes back, and when the clock is asked for.

use super::desk::{Talk, settings};
use crate::amqp::field_table::{TableWriter, Value};
use crate::amqp::method::Method;
use crate::session::{Peer, Settings};

const TIMEOUT_MS: u64 = 1000;
/// What one tick of the clock and the look after it may cost in milliseconds.
const SLACK_MS: u64 = 100;

/// The configuration names a timeout; there are messages in `q`.
fn with_messages(bodies: &[&str]) -> Talk {
    let settings = Settings { delivery_timeout_ms: TIMEOUT_MS, ..settings() };
    let mut talk = Talk::open_as(settings, Peer::default(), &[]);
    bodies.iter().for_each(|body| {
        talk.publish(1, "q", body);
    });
    talk.send();
    talk
}

fn consume_with_timeout(talk: &mut Talk, channel: u16, tag: &str, ms: i64) {
    let arguments = TableWriter::new().entry("x-consumer-timeout", Value::I64(ms));
    let consume = Method::BasicConsume {
        ticket: 0,
        queue: b"q",
        consumer_tag: tag.as_bytes(),
        no_local: false,
        no_ack: false,
        exclusive: false,
        no_wait: true,
        arguments: arguments.as_table(),
    };
    talk.method(channel, consume).send().deliver();
    talk.said();
}

fn closes(channel: u16, ms: u64) -> String {
    format!(
        "{channel} channel.close 406 PRECONDITION_FAILED - delivery acknowledgement on channel {channel} timed out. \
         Timeout value used: {ms} ms. This timeout value can be configured, see consumers doc guide to learn more (0, 0)"
    )
}

#[test]
fn a_late_delivery_closes_its_channel_and_everything_comes_back() {
    let mut talk = with_messages(&["a", "b"]);
    talk.session.handle_clock(5000);
    talk.consume(1, "q", "t", false).send().deliver();
    talk.publish(1, "q", "c").send();
    talk.session.handle_clock(5900);
    talk.deliver().said();
    talk.session.handle_clock(5000 + TIMEOUT_MS);
    assert!(talk.said().is_empty(), "not yet");
    talk.session.handle_clock(5000 + TIMEOUT_MS + SLACK_MS);
    assert_eq!(talk.said(), [closes(1, TIMEOUT_MS)]);
    assert_eq!(talk.books.borrow_mut().drain("q"), ["a!", "b!", "c!"]);
    assert_eq!(talk.session.deadline_ms(), None);
}

#[test]
fn what_basic_get_took_is_late_as_well() {
    let mut talk = with_messages(&["a"]);
    talk.get(1, "q", false).send().said();
    talk.session.handle_clock(TIMEOUT_MS + SLACK_MS);
    assert_eq!(talk.said(), [closes(1, TIMEOUT_MS)]);
}

#[test]
fn nobody_is_late_who_acknowledges_or_need_not() {
    let mut talk = with_messages(&["a", "b"]);
    talk.get(1, "q", true).get(1, "q", false).ack(1, 2).send().said();
    talk.session.handle_clock(100 * TIMEOUT_MS);
    assert!(talk.said().is_empty());
    assert_eq!(talk.session.deadline_ms(), None);
}

#[test]
fn a_delivery_counts_from_its_own_time_and_not_from_that_of_an_earlier_one() {
    let mut talk = with_messages(&["a"]);
    talk.get(1, "q", false).send();
    talk.session.handle_clock(900);
    talk.publish(1, "q", "b").get(1, "q", false).ack(1, 1).send().said();
    talk.session.handle_clock(TIMEOUT_MS + SLACK_MS);
    assert!(talk.said().is_empty());
    let due = talk.session.deadline_ms().unwrap();
    assert!((900 + TIMEOUT_MS..=900 + TIMEOUT_MS + SLACK_MS).contains(&due), "{due}");
    talk.session.handle_clock(due);
    assert_eq!(talk.said(), [closes(1, TIMEOUT_MS)]);
}

#[test]
fn the_clock_is_asked_for_when_the_first_delivery_can_be_late_and_not_before() {
    let mut talk = with_messages(&["a"]);
    assert_eq!(talk.session.deadline_ms(), None);
    talk.session.handle_clock(300);
    talk.get(1, "q", false).send();
    let due = talk.session.deadline_ms().unwrap();
    assert!((300 + TIMEOUT_MS..=300 + TIMEOUT_MS + SLACK_MS).contains(&due), "{due}");
}

#[test]
fn only_the_channel_that_is_late_closes() {
    let mut talk = with_messages(&["a", "b"]);
    talk.method(2, Method::ChannelOpen { out_of_band: b"" });
    talk.get(1, "q", false).send();
    talk.session.handle_clock(TIMEOUT_MS / 2);
    talk.get(2, "q", false).send().said();
    talk.session.handle_clock(TIMEOUT_MS + SLACK_MS);
    assert_eq!(talk.said(), [closes(1, TIMEOUT_MS)]);
    talk.session.handle_clock(2 * TIMEOUT_MS);
    assert_eq!(talk.said(), [closes(2, TIMEOUT_MS)]);
}

#[test]
fn the_consumer_s_timeout_wins_over_the_queues_and_that_over_the_configurations() {
    let mut talk = with_messages(&["a"]);
    consume_with_timeout(&mut talk, 1, "t", 200);
    talk.session.handle_clock(200 + SLACK_MS);
    assert_eq!(talk.said(), [closes(1, 200)]);

    let mut talk = with_messages(&["a"]);
    talk.books.borrow_mut().timeouts_ms.insert(b"q".to_vec(), 3000);
    talk.get(1, "q", false).send().said();
    talk.session.handle_clock(2 * TIMEOUT_MS);
    assert!(talk.said().is_empty());
    talk.session.handle_clock(3000 + SLACK_MS);
    assert_eq!(talk.said(), [closes(1, 3000)]);

    let mut talk = with_messages(&["a"]);
    talk.books.borrow_mut().timeouts_ms.insert(b"q".to_vec(), 0);
    talk.get(1, "q", false).send().said();
    talk.session.handle_clock(u64::from(u32::MAX));
    assert!(talk.said().is_empty(), "0 is none");
}

/// The list is in the order of delivery, not of deadlines.
#[test]
fn a_short_timeout_behind_a_long_one_is_seen_in_time() {
    let mut talk = with_messages(&["a"]);
    consume_with_timeout(&mut talk, 1, "long", 60_000);
    talk.method(1, Method::BasicCancel { consumer_tag: b"long", no_wait: true });
    talk.publish(1, "q", "b").send();
    consume_with_timeout(&mut talk, 1, "short", 200);
    assert_eq!(talk.books.borrow().counts("q"), (0, 2));
    let due = talk.session.deadline_ms().unwrap();
    assert!(due <= 200 + SLACK_MS, "{due}");
    talk.session.handle_clock(due);
    assert_eq!(talk.said(), [closes(1, 200)]);
}

/// A reply that waits for a commit would come on a channel that is closed.
#[test]
fn a_reply_that_waits_for_a_commit_goes_before_the_close() {
    let mut talk = with_messages(&["a"]);
    talk.get(1, "q", false).send().said();
    talk.declare_as(1, "durable", true).send();
    assert!(talk.said().is_empty() && talk.session.is_paused());
    assert_eq!(talk.session.deadline_ms(), None);
    talk.session.handle_clock(2 * TIMEOUT_MS);
    assert!(talk.said().is_empty());
    talk.commit(1).session.handle_clock(2 * TIMEOUT_MS);
    assert_eq!(talk.said(), ["1 queue.declare-ok durable 0".to_owned(), closes(1, TIMEOUT_MS)]);
}

/// What a transaction acknowledges waits for its client no more; a rollback makes it wait again, and the time
/// that it has waited counts.
#[test]
fn a_rollback_brings_late_deliveries_back() {
    let mut talk = with_messages(&["a"]);
    talk.method(1, Method::TxSelect {}).get(1, "q", false).ack(1, 1).send().said();
    talk.session.handle_clock(2 * TIMEOUT_MS);
    assert!(talk.said().is_empty());
    assert_eq!(talk.session.deadline_ms(), None);
    talk.method(1, Method::TxRollback {}).send();
    talk.session.handle_clock(2 * TIMEOUT_MS);
    assert_eq!(talk.said(), ["1 tx.rollback-ok".to_owned(), closes(1, TIMEOUT_MS)]);
}

#[test]
fn a_close_in_the_middle_of_a_publish_drops_what_there_was_of_it() {
    let mut talk = with_messages(&["a"]);
    talk.get(1, "q", false).begin_publish(1, "", "q", false).header(1, 60, 8).body(1, b"half").send().said();
    talk.session.handle_clock(TIMEOUT_MS + SLACK_MS);
    assert_eq!(talk.said(), [closes(1, TIMEOUT_MS)]);
    talk.body(1, b"rest").send();
    assert!(talk.said().is_empty());
    assert_eq!(talk.books.borrow_mut().drain("q"), ["a!"]);
}

#[test]
fn after_497_days_the_clock_s_wrap_makes_nobody_late() {
    let wrap_ms = (u64::from(u32::MAX) + 1) * 10;
    let mut talk = with_messages(&["a"]);
    talk.session.handle_clock(wrap_ms - 20);
    talk.get(1, "q", false).send().said();
    talk.session.handle_clock(wrap_ms + TIMEOUT_MS / 2);
    assert!(talk.said().is_empty());
    talk.session.handle_clock(wrap_ms + TIMEOUT_MS + SLACK_MS);
    assert_eq!(talk.said(), [closes(1, TIMEOUT_MS)]);
}
