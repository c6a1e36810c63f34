//! Publishes: how their frames are put together, when they go to the broker, and what the publisher is told.

use proptest::collection::vec;
use proptest::prelude::*;

use super::desk::{Talk, settings};
use crate::amqp::field_table::{TableWriter, Value};
use crate::amqp::method::Method;
use crate::amqp::properties::Properties;
use crate::limits::ASSEMBLED_BYTES_MAX;
use crate::session::{Peer, Settings};

const ADDRESS: &str = "amq.rabbitmq.reply-to";

fn confirming() -> Talk {
    let mut talk = Talk::open();
    talk.method(1, Method::ConfirmSelect { no_wait: false }).send();
    assert_eq!(talk.said(), ["1 confirm.select-ok"]);
    talk.log();
    talk
}

#[test]
fn hands_publishes_over_in_batches_and_before_any_other_method() {
    let mut talk = Talk::open();
    talk.log();
    for _ in 0..3 {
        talk.publish(1, "q", "x");
    }
    talk.declare(1, "q").publish(1, "q", "y").send();
    assert_eq!(talk.said(), ["1 queue.declare-ok q 3"]);
    assert_eq!(talk.log(), ["publish 3", "publish 1"]);
    talk.times(300, |t| t.publish(1, "q", "z"));
    talk.send();
    assert_eq!(talk.log(), ["publish 128", "publish 128", "publish 44"]);
}

#[test]
fn a_reply_is_handed_over_before_its_request_is_acknowledged() {
    let mut talk = Talk::open();
    talk.declare(1, "other").consume(1, "q", "a", false).consume(1, "other", "b", false).send();
    talk.publish(1, "q", "request").publish(1, "other", "request").send().deliver().said();
    talk.log();
    talk.publish(1, "reply", "1").ack(1, 1).publish(1, "reply", "2").ack(1, 2).send();
    assert_eq!(talk.log(), ["publish 2", "settle q 1", "settle other 1"]);
}

#[test]
fn confirms_at_the_barrier_and_cumulatively() {
    let mut talk = confirming();
    talk.times(3, |t| t.publish_persistent(1, "q", "x"));
    assert!(talk.send().said().is_empty(), "nothing is durable yet");
    assert_eq!(talk.commit(2).said(), ["1 basic.ack 2 multiple"]);
    talk.publish(1, "q", "transient").send();
    assert!(talk.said().is_empty(), "it may not overtake the third");
    assert_eq!(talk.commit(3).said(), ["1 basic.ack 4 multiple"]);
    assert_eq!(talk.publish(1, "q", "transient").send().said(), ["1 basic.ack 5"]);
    assert!(talk.commit(9).said().is_empty());
}

#[test]
fn each_channel_counts_its_own_confirms() {
    let mut talk = confirming();
    talk.method(2, Method::ChannelOpen { out_of_band: b"" });
    talk.method(2, Method::ConfirmSelect { no_wait: true });
    talk.publish_persistent(1, "q", "a")
        .publish_persistent(2, "q", "b")
        .publish_persistent(1, "q", "c")
        .send();
    assert_eq!(talk.said(), ["2 channel.open-ok"]);
    assert_eq!(talk.commit(3).said(), ["1 basic.ack 2 multiple", "2 basic.ack 1"]);
}

#[test]
fn returns_what_is_unroutable_before_confirming_it() {
    let mut talk = confirming();
    talk.begin_publish(1, "", "nobody", true).content(1, Properties::default(), "lost").send();
    assert_eq!(talk.said(), ["1 basic.return 312 NO_ROUTE lost", "1 basic.ack 1"]);
    talk.publish(1, "nobody", "lost").send();
    assert_eq!(talk.said(), ["1 basic.ack 2"], "not mandatory");
    talk.publish(1, "full", "refused").send();
    assert_eq!(talk.said(), ["1 basic.nack 3"]);
}

#[test]
fn a_body_comes_in_any_number_of_frames() {
    let mut talk = Talk::open();
    talk.begin_publish(1, "", "q", false)
        .header(1, 60, 7)
        .body(1, b"one")
        .body(1, b"")
        .body(1, b"-two")
        .send();
    talk.begin_publish(1, "", "q", false).header(1, 60, 0).send();
    assert_eq!(talk.books.borrow_mut().drain("q"), ["one-two", ""]);
    assert_eq!(talk.session.assembled_bytes, 0);
}

#[test]
fn content_that_does_not_fit_its_header_closes_what_it_must() {
    type Script = fn(&mut Talk) -> &mut Talk;
    let cases: [(Script, &str); 6] = [
        (|t| t.header(1, 60, 1), "0 connection.close 505 UNEXPECTED_FRAME"),
        (|t| t.body(1, b"x"), "0 connection.close 505 UNEXPECTED_FRAME"),
        (|t| t.begin_publish(1, "", "q", false).body(1, b"x"), "0 connection.close 505 UNEXPECTED_FRAME"),
        (|t| t.begin_publish(1, "", "q", false).header(1, 50, 1), "0 connection.close 505 UNEXPECTED_FRAME"),
        (
            |t| t.begin_publish(1, "", "q", false).header(1, 60, 1).body(1, b"xy"),
            "0 connection.close 501 FRAME_ERROR",
        ),
        (
            |t| t.begin_publish(1, "", "q", false).header(1, 60, 1001).body(1, &[0; 500]).body(1, &[0; 501]),
            "1 channel.close 406 PRECONDITION_FAILED - message size 1001 is larger than configured max size 1000",
        ),
    ];
    for (script, expected) in cases {
        let mut talk = Talk::open();
        script(&mut talk);
        let said = talk.send().said();
        assert!(said.len() == 1 && said[0].starts_with(expected), "{said:?}, not {expected}");
    }
}

#[test]
fn a_claimed_user_id_must_be_the_users() {
    let mut talk = Talk::open();
    let claims = |name| Properties { user_id: Some(name), ..Properties::default() };
    talk.begin_publish(1, "", "q", false).content(1, claims(b"me"), "mine").send();
    assert_eq!(talk.books.borrow_mut().drain("q"), ["mine"]);
    talk.begin_publish(1, "", "q", false).content(1, claims(b"root"), "forged").send();
    assert_eq!(
        talk.said(),
        [
            "1 channel.close 406 PRECONDITION_FAILED - user_id property set to 'root' but authenticated user was \
          'me' (60, 40)"
        ]
    );
}

/// What a publish with each of these properties is must not depend on the ones before.
fn kinds() -> Vec<Vec<u8>> {
    let keys = TableWriter::new().item(Value::LongStr(b"other"));
    let open = TableWriter::new().entry("CC", Value::Array(keys.as_array()));
    let blind = TableWriter::new().entry("BCC", Value::Array(keys.as_array()));
    let none = Properties::default();
    let kinds = [
        none,
        Properties { delivery_mode: Some(2), ..none },
        Properties { priority: Some(7), ..none },
        Properties { expiration: Some(b"500"), ..none },
        Properties { headers: Some(open.as_table()), ..none },
        Properties { headers: Some(blind.as_table()), ..none },
        Properties { user_id: Some(b"me"), ..none },
        Properties { reply_to: Some(b"q"), ..none },
        Properties { reply_to: Some(ADDRESS.as_bytes()), ..none },
    ];
    let encoded = |properties: &Properties<'_>| {
        let mut block = Vec::new();
        properties.encode(&mut block);
        block
    };
    kinds.iter().map(encoded).collect()
}

/// A talk with a queue, whose channels 1 and 2 take replies.
fn with_replies() -> Talk {
    let mut talk = Talk::open();
    talk.method(2, Method::ChannelOpen { out_of_band: b"" }).declare(1, "q");
    talk.consume(1, ADDRESS, "r", true).consume(2, ADDRESS, "r", true).send().said();
    talk
}

fn told(talk: &mut Talk) -> (Vec<String>, Vec<Vec<u8>>) {
    let mut books = talk.books.borrow_mut();
    (std::mem::take(&mut books.published), books.messages("q"))
}

proptest! {
    #[test]
    fn a_publish_is_what_its_own_frames_say(steps in vec((1u16..=2, 0usize..9, any::<bool>()), 1..40)) {
        let kinds = kinds();
        let mut talk = with_replies();
        for (channel, kind, is_named) in steps {
            // A publish between, by other names, so that names come and go too.
            if is_named {
                talk.begin_publish(channel, "", "full", true).block(channel, &kinds[0], "");
            }
            talk.begin_publish(channel, "", "q", is_named).block(channel, &kinds[kind], "x").send();
            let mut alone = with_replies();
            alone.begin_publish(channel, "", "q", is_named).block(channel, &kinds[kind], "x").send();
            let (mut published, messages) = told(&mut talk);
            published.drain(..usize::from(is_named));
            prop_assert_eq!((published, messages), told(&mut alone));
        }
    }
}

#[test]
fn names_that_come_again_on_another_channel_have_the_same_number() {
    let mut talk = Talk::open();
    talk.method(2, Method::ChannelOpen { out_of_band: b"" });
    talk.publish(1, "q", "x").publish(2, "q", "y").publish(1, "q", "z").send();
    assert_eq!(talk.books.borrow().routes.len(), 1);
    talk.publish(1, "other", "x").publish(2, "q", "y").send();
    assert!(talk.books.borrow().routes.len() > 1);
}

/// Thousands of channels may each begin a large message.
#[test]
fn unfinished_bodies_of_all_channels_together_are_bounded() {
    const QUARTER: usize = ASSEMBLED_BYTES_MAX / 4;
    let settings = Settings { message_bytes_max: QUARTER as u64, ..settings() };
    let mut talk = Talk::open_as(settings, Peer::default(), &[]);
    let piece = vec![0; 4000];
    let begin = |talk: &mut Talk, channel| {
        talk.method(channel, Method::ChannelOpen { out_of_band: b"" });
        talk.begin_publish(channel, "", "q", false).header(channel, 60, QUARTER as u64);
        talk.times(QUARTER / 4000, |t| t.body(channel, &piece)).send().said()
    };
    for channel in 2..=5 {
        assert_eq!(begin(&mut talk, channel), [format!("{channel} channel.open-ok")]);
    }
    talk.body(2, &[0; QUARTER % 4000]).send();
    assert_eq!(talk.books.borrow().counts("q"), (1, 0));
    assert_eq!(begin(&mut talk, 6), ["6 channel.open-ok"], "what is finished makes room");
    let said = begin(&mut talk, 7);
    assert!(said[1].starts_with("0 connection.close 506 RESOURCE_ERROR"), "{said:?}");
    assert_eq!(talk.session.assembled_bytes, 0);
}

#[test]
fn an_alarm_stops_a_publisher_at_its_next_publish_and_nobody_else() {
    let mut talk = Talk::open();
    talk.session.handle_alarm(Some("low on memory"));
    talk.declare(1, "q").send();
    assert_eq!(talk.said(), ["1 queue.declare-ok q 0"]);
    talk.publish(1, "q", "x").publish(1, "q", "y").send();
    assert_eq!(talk.said(), ["0 connection.blocked low on memory"]);
    assert!(talk.session.is_paused());
    assert_eq!(talk.books.borrow().counts("q"), (0, 0), "it takes no room before the alarm is over");
    talk.session.handle_alarm(Some("low on disk"));
    assert!(talk.said().is_empty(), "told once");
    talk.session.handle_alarm(None);
    talk.send();
    assert_eq!(talk.said(), ["0 connection.unblocked"]);
    assert_eq!(talk.books.borrow_mut().drain("q"), ["x", "y"]);
}

#[test]
fn a_blocked_publisher_that_cannot_be_told_is_stopped_all_the_same() {
    let mut talk = Talk::open_with(&[]);
    talk.session.handle_alarm(Some("low on memory"));
    talk.publish(1, "q", "x").send();
    assert!(talk.said().is_empty() && talk.session.is_paused());
    talk.session.handle_alarm(None);
    assert!(talk.send().said().is_empty() && !talk.session.is_paused());
}

#[test]
fn a_store_that_has_failed_ends_the_connection_and_confirms_nothing() {
    let mut talk = confirming();
    talk.publish_persistent(1, "q", "x").send();
    talk.books.borrow_mut().has_failed = true;
    talk.session.handle_kept();
    assert_eq!(talk.said(), ["0 connection.close 541 INTERNAL_ERROR - the store has failed (0, 0)"]);
}
