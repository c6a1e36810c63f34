//! Consumers, basic.get and acknowledgements: who gets what, what comes back, and what credit is worth.

use super::desk::Talk;
use crate::amqp::method::Method;

fn with_messages(bodies: &[&str]) -> Talk {
    let mut talk = Talk::open();
    for body in bodies {
        talk.publish(1, "q", body);
    }
    talk.send();
    talk.log();
    talk
}

fn nack(delivery_tag: u64, multiple: bool, requeue: bool) -> Method<'static> {
    Method::BasicNack { delivery_tag, multiple, requeue }
}

fn global_qos(prefetch_count: u16) -> Method<'static> {
    Method::BasicQos { prefetch_size: 0, prefetch_count, global: true }
}

fn cancel(consumer_tag: &[u8]) -> Method<'_> {
    Method::BasicCancel { consumer_tag, no_wait: false }
}

#[test]
fn delivers_after_consume_ok_and_gathers_acknowledgements() {
    let mut talk = with_messages(&["a", "b", "c"]);
    talk.consume(1, "q", "t", false).send().deliver();
    assert_eq!(
        talk.said(),
        ["1 basic.consume-ok t", "1 basic.deliver t 1 a", "1 basic.deliver t 2 b", "1 basic.deliver t 3 c"]
    );
    talk.ack(1, 1).ack(1, 2).ack(1, 3).send();
    assert_eq!(talk.log(), ["settle q 3"]);
    assert_eq!(talk.books.borrow().counts("q"), (0, 0));
}

#[test]
fn without_acknowledgements_a_delivery_is_settled_when_it_leaves() {
    let mut talk = with_messages(&["a", "b"]);
    talk.consume(1, "q", "t", true).send().deliver();
    assert_eq!(talk.log(), ["settle q 2"]);
    talk.publish(1, "q", "c").get(1, "q", true).send();
    assert_eq!(talk.deliver().said().last().unwrap(), "1 basic.deliver t 3 c");
}

#[test]
fn an_unknown_tag_closes_the_channel_and_names_it() {
    type Script = fn(&mut Talk) -> &mut Talk;
    let cases: [Script; 5] = [
        |t| t.ack(1, 7),
        |t| t.ack(1, 1).ack(1, 1),
        |t| t.method(1, Method::BasicAck { delivery_tag: 7, multiple: true }),
        |t| t.method(1, nack(7, false, true)),
        |t| t.method(1, Method::BasicReject { delivery_tag: 7, requeue: false }),
    ];
    for script in cases {
        let mut talk = with_messages(&["a"]);
        talk.consume(1, "q", "t", false).send().deliver().said();
        script(&mut talk);
        let said = talk.send().said();
        assert!(
            said[0].starts_with("1 channel.close 406 PRECONDITION_FAILED - unknown delivery tag "),
            "{said:?}"
        );
    }
}

#[test]
fn get_counts_what_is_left_and_its_message_may_come_back() {
    let mut talk = with_messages(&["a", "b"]);
    talk.get(1, "q", false).send();
    assert_eq!(talk.said(), ["1 basic.get-ok 1 of 1 more a"]);
    talk.method(1, Method::BasicReject { delivery_tag: 1, requeue: true })
        .get(1, "q", false)
        .get(1, "q", true);
    talk.get(1, "q", false).send();
    assert_eq!(
        talk.said(),
        ["1 basic.get-ok 2! of 1 more a", "1 basic.get-ok 3 of 0 more b", "1 basic.get-empty"]
    );
    assert_eq!(talk.ack(1, 2).send().said(), [""; 0]);
    assert_eq!(talk.books.borrow().counts("q"), (0, 0));
    assert!(talk.session.sources.is_empty(), "a get leaves no source behind");
}

#[test]
fn rejecting_drops_or_requeues_to_the_old_place() {
    let mut talk = with_messages(&["a", "b", "c", "d"]);
    talk.times(3, |t| t.get(1, "q", false));
    talk.method(1, nack(1, false, false)).method(1, nack(0, true, true)).send();
    assert_eq!(talk.log(), ["settle q 1", "requeue q 2"]);
    assert_eq!(talk.books.borrow_mut().drain("q"), ["b!", "c!", "d"]);
}

#[test]
fn recover_gives_everything_back() {
    let mut talk = with_messages(&["a", "b"]);
    talk.consume(1, "q", "t", false).send().deliver().said();
    talk.method(1, Method::BasicRecover { requeue: true }).send().deliver();
    assert_eq!(talk.said(), ["1 basic.recover-ok", "1 basic.deliver t 3! a", "1 basic.deliver t 4! b"]);
}

#[test]
fn a_cancelled_consumer_gives_back_what_was_on_its_way_and_keeps_what_it_got() {
    let mut talk = with_messages(&["a"]);
    talk.consume(1, "q", "t", false).send().deliver();
    talk.publish(1, "q", "b").send().take_from_outbox().publish(1, "q", "c").send();
    talk.log();
    talk.method(1, cancel(b"t")).send();
    assert_eq!(talk.log(), ["requeue q 2"]);
    assert_eq!(talk.books.borrow_mut().drain("q"), ["b", "c"], "untouched and in order");
    assert_eq!(talk.books.borrow().counts("q"), (0, 1));
    talk.ack(1, 1).send();
    assert_eq!(talk.log(), ["settle q 1"], "it may still be acknowledged");
    assert!(talk.session.sources.is_empty());
    assert_eq!(talk.said().last().unwrap(), "1 basic.cancel-ok t");
}

/// Somebody else on the queue would be handed the later ones first if they came back in pieces.
#[test]
fn what_a_channel_held_comes_back_at_once_and_in_order() {
    let mut talk = with_messages(&["a", "b"]);
    talk.consume(1, "q", "t", false).consume(1, "q", "u", false).send().deliver();
    talk.publish(1, "q", "c").publish(1, "q", "d").send().take_from_outbox();
    talk.publish(1, "q", "e").publish(1, "q", "f").get(1, "q", false).send();
    talk.method(2, Method::ChannelOpen { out_of_band: b"" }).consume(2, "q", "other", false);
    talk.channel_close(1).send().deliver();
    let got: Vec<String> = talk.said().into_iter().filter(|line| line.contains(" other ")).collect();
    assert_eq!(
        got,
        [
            "2 basic.deliver other 1! a",
            "2 basic.deliver other 2! b",
            "2 basic.deliver other 3 c",
            "2 basic.deliver other 4 d",
            "2 basic.deliver other 5 e",
            "2 basic.deliver other 6 f",
        ]
    );
    assert_eq!(talk.session.sources.len(), 1);
}

#[test]
fn a_prefetch_is_for_consumers_that_come_later() {
    let mut talk = with_messages(&["a", "b", "c"]);
    talk.method(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 1, global: false });
    talk.consume(1, "q", "t", false).send().deliver();
    assert_eq!(talk.said(), ["1 basic.qos-ok", "1 basic.consume-ok t", "1 basic.deliver t 1 a"]);
    talk.ack(1, 1).send().deliver();
    assert_eq!(talk.said(), ["1 basic.deliver t 2 b"]);
}

#[test]
fn a_common_limit_holds_for_all_consumers_of_the_channel() {
    let mut talk = with_messages(&["a", "b", "c", "d"]);
    talk.method(1, global_qos(2)).consume(1, "q", "t", false).consume(1, "q", "u", false).send().deliver();
    let got = talk.said();
    assert_eq!(got.iter().filter(|line| line.contains("deliver")).count(), 2, "{got:?}");
    talk.ack(1, 1).send().deliver();
    assert_eq!(talk.said().len(), 1);
    talk.method(1, global_qos(0)).send().deliver();
    assert_eq!(talk.said().len(), 2, "qos-ok and the last one");
}

/// What was on its way to a consumer takes no room once that is cancelled.
#[test]
fn a_cancelled_consumer_gives_its_room_back_to_the_channel() {
    for is_taken in [true, false] {
        let mut talk = Talk::open();
        talk.declare(1, "r").method(1, global_qos(2)).consume(1, "q", "t", false).send().said();
        talk.publish(1, "q", "a").publish(1, "q", "b").publish(1, "r", "c").send();
        if is_taken {
            talk.take_from_outbox();
        }
        talk.consume(1, "r", "u", false).method(1, cancel(b"t")).send().deliver();
        assert_eq!(talk.said().last().unwrap(), "1 basic.deliver u 1 c");
    }
}

#[test]
fn deliveries_from_before_a_common_limit_count() {
    let mut talk = with_messages(&["a", "b", "c"]);
    talk.consume(1, "q", "t", false).send().deliver().said();
    talk.method(1, global_qos(1)).publish(1, "q", "d").ack(1, 1).ack(1, 2).send().deliver();
    assert_eq!(talk.said(), ["1 basic.qos-ok"], "one of three is out still");
    talk.ack(1, 3).send().deliver();
    assert_eq!(talk.said(), ["1 basic.deliver t 4 d"]);
}

#[test]
fn acknowledgements_while_the_limit_is_lifted_make_room() {
    let mut talk = with_messages(&["a"]);
    talk.method(1, global_qos(1)).consume(1, "q", "t", false).send().deliver();
    talk.method(1, global_qos(0)).ack(1, 1).method(1, global_qos(1)).publish(1, "q", "b").send().deliver();
    assert_eq!(talk.said().last().unwrap(), "1 basic.deliver t 2 b");
}

#[test]
fn a_deleted_queue_tells_its_consumers_after_what_they_got() {
    let mut talk = with_messages(&["a"]);
    talk.consume(1, "q", "t", true).send();
    let delete =
        Method::QueueDelete { ticket: 0, queue: b"q", if_unused: false, if_empty: false, no_wait: true };
    talk.method(1, delete).send().deliver();
    assert_eq!(talk.said(), ["1 basic.consume-ok t", "1 basic.deliver t 1 a", "1 basic.cancel t"]);
    assert_eq!(talk.log(), ["settle q 1"], "what was delivered unacknowledged is settled");
    assert!(talk.session.sources.is_empty());
    talk.declare(1, "q").consume(1, "q", "t", false).send();
    assert_eq!(talk.said(), ["1 queue.declare-ok q 0", "1 basic.consume-ok t"], "its tag is free again");
}

#[test]
fn who_cannot_be_told_of_a_cancellation_is_not() {
    let mut talk = Talk::open_with(&[]);
    talk.consume(1, "q", "t", false).send();
    let delete =
        Method::QueueDelete { ticket: 0, queue: b"q", if_unused: false, if_empty: false, no_wait: true };
    talk.method(1, delete).send().deliver();
    assert_eq!(talk.said(), ["1 basic.consume-ok t"]);
    assert!(talk.session.sources.is_empty());
}

#[test]
fn a_consumer_tag_is_given_once_and_made_up_when_empty() {
    let mut talk = Talk::open();
    talk.consume(1, "q", "", false).consume(1, "q", "t", false).consume(1, "q", "t", false).send();
    assert_eq!(
        talk.said(),
        [
            "1 basic.consume-ok amq.ctag-1",
            "1 basic.consume-ok t",
            "0 connection.close 530 NOT_ALLOWED - attempt to reuse consumer tag 't' (60, 20)"
        ]
    );
}

/// A peer that asks and never reads must not make the answers pile up.
#[test]
fn stops_asking_the_queue_while_the_output_is_full() {
    let mut talk = with_messages(&["x".repeat(900).as_str(); 20]);
    talk.times(20, |t| t.get(1, "q", true));
    let used = talk.session.handle_bytes(&talk.input, 3000);
    talk.input.drain(..used);
    assert!(!talk.input.is_empty() && talk.session.output().len() < 5000);
    assert_eq!(talk.books.borrow().counts("q").0, 16);
    talk.said();
    talk.send();
    assert_eq!(talk.said().len(), 16);
}
