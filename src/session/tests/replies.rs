//! Direct reply-to: a channel's consumer of replies, and the address in what it publishes.

use super::desk::Talk;
use crate::amqp::field_table::{TableWriter, Value};
use crate::amqp::method::Method;
use crate::amqp::properties::Properties;
use crate::session::port::ReplyTo;

const REPLY_TO: &str = "amq.rabbitmq.reply-to";

fn request(talk: &mut Talk) -> &mut Talk {
    let properties = Properties { reply_to: Some(REPLY_TO.as_bytes()), ..Properties::default() };
    talk.begin_publish(1, "", "q", false).content(1, properties, "ask")
}

fn taking_replies() -> Talk {
    let mut talk = Talk::open();
    talk.consume(1, REPLY_TO, "t", true).send();
    assert_eq!(talk.said(), ["1 basic.consume-ok t"]);
    talk
}

/// The addresses that are good now.
fn addresses(talk: &Talk) -> Vec<(String, ReplyTo)> {
    let books = talk.books.borrow();
    books.replies.iter().map(|(address, to)| (String::from_utf8(address.clone()).unwrap(), *to)).collect()
}

#[test]
fn a_request_carries_the_address_and_a_reply_to_it_is_delivered() {
    let mut talk = taking_replies();
    let [(address, _)] = &addresses(&talk)[..] else { panic!() };
    request(&mut talk).get(1, "q", true).send();
    let output = talk.session.output().take();
    assert!(output.windows(address.len()).any(|piece| piece == address.as_bytes()));
    talk.publish(1, address, "answer").send();
    assert_eq!(talk.deliver().said(), ["1 basic.deliver t 2 answer"]);
}

#[test]
fn every_other_property_stays() {
    let mut talk = taking_replies();
    let [(address, _)] = &addresses(&talk)[..] else { panic!() };
    let headers = TableWriter::new().entry("k", Value::I32(1));
    let given = Properties {
        content_type: Some(b"a/b"),
        headers: Some(headers.as_table()),
        delivery_mode: Some(1),
        priority: Some(3),
        correlation_id: Some(b"c"),
        reply_to: Some(REPLY_TO.as_bytes()),
        message_id: Some(b"m"),
        timestamp: Some(9),
        kind: Some(b"k"),
        app_id: Some(b"a"),
        ..Properties::default()
    };
    talk.begin_publish(1, "", "q", false).content(1, given, "x").get(1, "q", true).send();
    let output = talk.session.output().take();
    let mut expected = Vec::new();
    Properties { reply_to: Some(address.as_bytes()), ..given }.encode(&mut expected);
    assert!(output.windows(expected.len()).any(|piece| piece == expected));
}

#[test]
fn without_a_consumer_of_replies_a_request_is_refused() {
    let mut talk = Talk::open();
    request(&mut talk).send();
    let text = "1 channel.close 406 PRECONDITION_FAILED - fast reply consumer does not exist (60, 40)";
    assert_eq!(talk.said(), [text]);
    assert_eq!(talk.books.borrow().counts("q"), (0, 0));
}

#[test]
fn misuse_is_refused_in_rabbitmqs_words() {
    let closes = |text: &str| format!("1 channel.close 406 PRECONDITION_FAILED - {text} (60, 20)");
    let mut talk = Talk::open();
    talk.consume(1, REPLY_TO, "t", false).send();
    assert_eq!(talk.said(), [closes("reply consumer cannot acknowledge")]);
    let mut talk = taking_replies();
    talk.consume(1, REPLY_TO, "u", true).send();
    assert_eq!(talk.said(), [closes("reply consumer already set")]);
    let mut talk = taking_replies();
    talk.consume(1, "q", "t", true).send();
    let text = "0 connection.close 530 NOT_ALLOWED - attempt to reuse consumer tag 't' (60, 20)";
    assert_eq!(talk.said(), [text]);
}

#[test]
fn an_address_ends_with_its_consumer_its_channel_or_its_connection() {
    type Script = fn(&mut Talk) -> &mut Talk;
    let ends: [Script; 3] = [
        |talk| talk.method(1, Method::BasicCancel { consumer_tag: b"t", no_wait: true }),
        |talk| talk.channel_close(1),
        |talk| {
            let close =
                Method::ConnectionClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 };
            talk.method(0, close)
        },
    ];
    for end in ends {
        let mut talk = taking_replies();
        assert_eq!(addresses(&talk).len(), 1);
        end(&mut talk).send();
        assert!(addresses(&talk).is_empty());
    }
    let talk = taking_replies();
    let Talk { session, books, .. } = talk;
    drop(session);
    assert!(books.borrow().replies.is_empty(), "the socket is gone");
}

/// A late reply to the consumer before must not look like an answer to the one after.
#[test]
fn a_reply_that_was_under_way_at_the_cancel_is_dropped() {
    let mut talk = taking_replies();
    let [(address, _)] = &addresses(&talk)[..] else { panic!() };
    talk.publish(1, address, "late").send();
    talk.method(1, Method::BasicCancel { consumer_tag: b"t", no_wait: true });
    talk.consume(1, REPLY_TO, "u", true).send().deliver();
    assert_eq!(talk.said(), ["1 basic.consume-ok u"]);
}

#[test]
fn ending_another_consumer_leaves_replies_where_they_are() {
    let mut talk = taking_replies();
    let [(address, _)] = &addresses(&talk)[..] else { panic!() };
    talk.consume(1, "q", "other", true).publish(1, address, "answer").send();
    talk.take_from_outbox();
    talk.method(1, Method::BasicCancel { consumer_tag: b"other", no_wait: true }).send();
    talk.said();
    assert_eq!(
        {
            talk.session.handle_deliveries(usize::MAX);
            talk.said()
        },
        ["1 basic.deliver t 1 answer"]
    );
}
