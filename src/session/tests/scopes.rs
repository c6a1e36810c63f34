//! What a fault closes, what is still looked at afterwards, and what waits for a commit.

use super::desk::Talk;
use crate::amqp::field_table::Table;
use crate::amqp::method::Method;
use crate::amqp::properties::Properties;

const OPEN: Method<'static> = Method::ChannelOpen { out_of_band: b"" };
const CLOSE: Method<'static> =
    Method::ConnectionClose { reply_code: 200, reply_text: b"", class_id: 0, method_id: 0 };

#[test]
fn a_channels_fault_leaves_the_connection_and_its_other_channels() {
    let mut talk = Talk::open();
    talk.method(2, OPEN).consume(1, "nope", "t", false);
    talk.declare(1, "ignored").publish(1, "q", "ignored").ack(1, 9).declare(2, "q").send();
    assert_eq!(
        talk.said(),
        [
            "2 channel.open-ok",
            "1 channel.close 404 NOT_FOUND - no queue 'nope' in vhost '/' (60, 20)",
            "2 queue.declare-ok q 0"
        ]
    );
    talk.method(1, Method::ChannelCloseOk {}).method(1, OPEN).declare(1, "q").send();
    assert_eq!(talk.said(), ["1 channel.open-ok", "1 queue.declare-ok q 0"]);
}

#[test]
fn a_publish_to_an_unknown_exchange_closes_its_channel_once() {
    let mut talk = Talk::open();
    for _ in 0..3 {
        talk.begin_publish(1, "nope", "", false).content(1, Properties::default(), "x");
    }
    // The second fault comes from a channel that is closed by then.
    talk.ack(1, 99).send();
    assert_eq!(talk.said(), ["1 channel.close 404 NOT_FOUND - no exchange 'nope' in vhost '/' (60, 40)"]);
    talk.method(1, Method::ChannelCloseOk {}).method(1, OPEN).send();
    assert_eq!(talk.said(), ["1 channel.open-ok"]);
}

#[test]
fn what_was_published_before_a_fault_counts() {
    let mut talk = Talk::open();
    talk.publish(1, "q", "kept").ack(1, 99).publish(1, "q", "ignored").send();
    assert_eq!(talk.said().len(), 1);
    assert_eq!(talk.books.borrow_mut().drain("q"), ["kept"]);
}

#[test]
fn both_sides_may_close_a_channel_at_once() {
    let mut talk = Talk::open();
    talk.begin_publish(1, "nope", "", false).content(1, Properties::default(), "x").channel_close(1).send();
    let said = talk.said();
    assert!(said.len() == 2 && said[0].starts_with("1 channel.close 404") && said[1] == "1 channel.close-ok");
    // The client answers our close as well.
    talk.method(1, Method::ChannelCloseOk {}).method(1, OPEN).send();
    assert_eq!(talk.said(), ["1 channel.open-ok"]);
}

#[test]
fn methods_of_a_channel_that_is_not_open_close_the_connection() {
    for number in [2, 9] {
        let mut talk = Talk::open();
        talk.declare(number, "q").send();
        let said = talk.said();
        assert!(
            said[0].starts_with("0 connection.close 504 CHANNEL_ERROR - expected 'channel.open'"),
            "{said:?}"
        );
    }
    let mut talk = Talk::open();
    talk.method(1, OPEN).send();
    assert!(talk.said()[0].starts_with("0 connection.close 504 CHANNEL_ERROR - second 'channel.open' seen"));
}

#[test]
fn a_channels_number_is_used_again_with_nothing_left_of_it() {
    let mut talk = Talk::open();
    talk.publish(1, "q", "a").consume(1, "q", "t", false).method(1, Method::ConfirmSelect { no_wait: true });
    talk.send().deliver().said();
    talk.channel_close(1).method(1, OPEN).send();
    assert_eq!(talk.said(), ["1 channel.close-ok", "1 channel.open-ok"]);
    assert_eq!(talk.books.borrow().counts("q"), (1, 0));
    talk.publish(1, "q", "b").consume(1, "q", "t", false).send().deliver();
    let said = talk.said();
    assert_eq!(
        said,
        ["1 basic.consume-ok t", "1 basic.deliver t 1! a", "1 basic.deliver t 2 b"],
        "no confirm"
    );
}

#[test]
fn a_frame_that_is_none_ends_the_connection_at_once() {
    let mut talk = Talk::open();
    talk.publish(1, "q", "a").frame(7, 0, b"").publish(1, "q", "b").send();
    assert_eq!(talk.said(), ["0 connection.close 501 FRAME_ERROR - unknown frame type 7 (0, 0)"]);
    assert!(talk.session.is_closing() && talk.input.is_empty(), "the peer may read our close");
    assert_eq!(talk.books.borrow_mut().drain("q"), ["a"]);
}

#[test]
fn after_connection_close_everything_but_its_answer_is_ignored() {
    let mut talk = Talk::open();
    talk.consume(1, "q", "t", false).publish(1, "q", "a").send().deliver().said();
    talk.method(0, Method::ConnectionOpenOk { known_hosts: b"" }).declare(1, "q").publish(1, "q", "b");
    talk.frame(8, 5, b"").send();
    let said = talk.said();
    assert!(said.len() == 1 && said[0].starts_with("0 connection.close 504 CHANNEL_ERROR"), "{said:?}");
    assert!(talk.session.is_closing() && !talk.session.is_closed());
    assert_eq!(talk.books.borrow_mut().drain("q"), ["a!"], "it gave back what it held");
    talk.method(0, Method::ConnectionCloseOk {}).send();
    assert!(talk.session.is_closed() && talk.said().is_empty());
}

#[test]
fn a_clients_close_is_answered_when_everything_is_given_back() {
    let mut talk = Talk::open();
    talk.consume(1, "q", "t", false).publish(1, "q", "a").send().deliver().said();
    talk.log();
    talk.publish(1, "q", "b").method(0, CLOSE).send();
    assert_eq!(talk.said(), ["0 connection.close-ok"]);
    assert_eq!(talk.log(), ["publish 1", "requeue q 2", "leave"]);
    assert_eq!(talk.books.borrow_mut().drain("q"), ["a!", "b"]);
    assert!(talk.session.is_closing() && talk.session.sources.is_empty());
    talk.method(0, CLOSE).send();
    assert_eq!(talk.said(), ["0 connection.close-ok"], "another thread of the client says goodbye, too");
}

#[test]
fn a_connection_that_dies_gives_everything_back() {
    let mut talk = Talk::open();
    talk.consume(1, "q", "t", false).publish(1, "q", "a").send().deliver();
    talk.publish(1, "q", "b").send().take_from_outbox().publish(1, "q", "c").send();
    let books = talk.books.clone();
    drop(talk);
    assert_eq!(books.borrow_mut().drain("q"), ["a!", "b", "c"]);
    assert_eq!(books.borrow().counts("q"), (0, 0));
}

#[test]
fn a_reply_that_promises_durability_waits_and_so_does_what_follows() {
    let mut talk = Talk::open();
    talk.declare_as(1, "d", true).declare(1, "q").send();
    assert!(talk.said().is_empty() && talk.session.is_paused());
    assert!(talk.commit(0).send().said().is_empty());
    assert_eq!(talk.commit(1).said(), ["1 queue.declare-ok d 0"]);
    assert_eq!(talk.send().said(), ["1 queue.declare-ok q 0"]);
    let declare = Method::ExchangeDeclare {
        ticket: 0,
        exchange: b"x",
        kind: b"fanout",
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        no_wait: true,
        arguments: Table::default(),
    };
    talk.method(1, declare).declare(1, "q").send();
    assert_eq!(talk.said(), ["1 queue.declare-ok q 0"], "who does not wait for a reply is not held up");
}

#[test]
fn deliveries_go_on_while_a_reply_waits() {
    let mut talk = Talk::open();
    talk.consume(1, "q", "t", false).publish(1, "q", "a").declare_as(1, "d", true).send().deliver();
    assert_eq!(talk.said(), ["1 basic.consume-ok t", "1 basic.deliver t 1 a"]);
}

#[test]
fn an_empty_name_is_the_queue_declared_last() {
    let mut talk = Talk::open();
    talk.declare(1, "").send();
    assert_eq!(talk.said(), ["1 queue.declare-ok amq.gen-1 0"]);
    talk.log();
    let bind = |queue, routing_key| Method::QueueBind {
        ticket: 0,
        queue,
        exchange: b"x",
        routing_key,
        no_wait: false,
        arguments: Table::default(),
    };
    talk.method(1, bind(b"", b"")).method(1, bind(b"", b"k")).method(1, bind(b"q", b"")).send();
    assert_eq!(talk.log(), ["bind amq.gen-1 amq.gen-1", "bind amq.gen-1 k", "bind q "]);
    talk.said();
    talk.method(2, OPEN).consume(2, "", "t", false).send();
    assert_eq!(
        talk.said(),
        ["2 channel.open-ok", "2 channel.close 404 NOT_FOUND - no previously declared queue (60, 20)"]
    );
}

#[test]
fn shutting_down_says_320_and_waits_for_the_answer() {
    let mut talk = Talk::open();
    talk.declare_as(1, "d", true).send();
    talk.session.shut_down();
    assert_eq!(
        talk.said(),
        [
            "0 connection.close 320 CONNECTION_FORCED - broker forced connection closure with reason 'shutdown' (0, 0)"
        ]
    );
    assert!(talk.session.is_closing() && !talk.session.is_paused());
    talk.session.shut_down();
    assert!(talk.said().is_empty());
    talk.method(0, Method::ConnectionCloseOk {}).send();
    assert!(talk.session.is_closed());
}

#[test]
fn what_is_not_implemented_says_so() {
    let mut talk = Talk::open();
    talk.frame(1, 1, &[0, 60, 0, 99]).send();
    let said = talk.said();
    assert!(
        said[0].starts_with("0 connection.close 540 NOT_IMPLEMENTED - class 60 has no method 99"),
        "{said:?}"
    );
    let mut talk = Talk::open();
    talk.frame(1, 1, &[0, 60, 0]).send();
    let said = talk.said();
    assert!(said[0].starts_with("0 connection.close 501 FRAME_ERROR"), "{said:?}");
}
