"""Consumers, deliveries and acknowledgements: who gets what, in which order, how often, and what comes back."""

import re

import amqp
import pytest


def fill(channel, name, bodies, **flags):
    channel.declare(name, **flags)
    for body in bodies:
        channel.publish(name, body)
    return name


def tags(deliveries):
    return [delivery.delivery_tag for delivery in deliveries]


# ---- basic.consume and basic.cancel


def test_a_delivery_says_where_it_comes_from(channel, name):
    channel.call("exchange.declare", exchange=name, type="topic")
    channel.declare(name)
    channel.call("queue.bind", queue=name, exchange=name, routing_key="#")
    channel.consume(name, consumer_tag="t")
    for number in range(3):
        channel.publish(f"k.{number}", str(number), exchange=name)
        delivery = channel.expect("basic.deliver", consumer_tag="t", delivery_tag=number + 1, redelivered=False)
        assert (delivery.exchange, delivery.routing_key, delivery.body) == (name, f"k.{number}", str(number).encode())


def test_consume_ok_comes_before_the_first_delivery(channel, name):
    fill(channel, name, "abc")
    channel.send("basic.consume", queue=name, consumer_tag="t")
    channel.expect("basic.consume-ok", consumer_tag="t")
    assert channel.bodies(3) == ["a", "b", "c"]


def test_a_consumer_without_a_tag_gets_one(channel, name):
    channel.declare(name)
    given = {channel.consume(name) for _ in range(5)}
    assert len(given) == 5
    assert all(re.fullmatch(r"amq\.ctag-[A-Za-z0-9_-]{22}", tag) for tag in given), given


@pytest.mark.parametrize("tag", ["t", "x" * 255, "amq.own", "\u00e9", " "], ids=ascii)
def test_a_consumer_has_the_tag_it_asks_for(channel, name, tag):
    fill(channel, name, "a")
    assert channel.consume(name, consumer_tag=tag) == tag
    channel.expect("basic.deliver", consumer_tag=tag)
    assert channel.call("basic.cancel", consumer_tag=tag).consumer_tag == tag


def test_consume_without_wait_is_not_answered(channel, name):
    fill(channel, name, "a")
    channel.send("basic.consume", queue=name, consumer_tag="t", nowait=True)
    channel.expect("basic.deliver", consumer_tag="t")
    channel.send("basic.cancel", consumer_tag="t", nowait=True)
    channel.send("basic.ack", delivery_tag=1)
    channel.expect_counts(name, 0, 0)


def test_the_same_tag_on_another_channel_is_another_consumer(connect, name):
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    one.declare(name)
    one.consume(name, consumer_tag="t")
    two.consume(name, consumer_tag="t")
    one.expect_counts(name, 0, 2)


def test_a_cancelled_tag_may_be_used_again(channel, name):
    channel.declare(name)
    for _ in range(3):
        channel.consume(name, consumer_tag="t")
        channel.call("basic.cancel", consumer_tag="t")


def test_cancelling_an_unknown_tag_is_answered(channel):
    assert channel.call("basic.cancel", consumer_tag="nobody").consumer_tag == "nobody"


def test_a_cancelled_consumer_gets_nothing_more(channel, name):
    channel.declare(name)
    channel.consume(name, consumer_tag="t")
    channel.call("basic.cancel", consumer_tag="t")
    channel.publish(name, "x")
    channel.expect_counts(name, 1, 0)


def test_what_a_cancelled_consumer_has_can_still_be_acknowledged(channel, name):
    fill(channel, name, "ab")
    channel.consume(name, consumer_tag="t")
    channel.deliveries(2)
    channel.call("basic.cancel", consumer_tag="t")
    channel.expect_counts(name, 0, 0)
    channel.send("basic.ack", delivery_tag=1)
    channel.send("basic.nack", delivery_tag=2, requeue=True)
    channel.expect_counts(name, 1, 0)


def test_no_local_is_not_looked_at(channel, name):
    channel.declare(name)
    channel.consume(name, no_local=True, no_ack=True)
    channel.publish(name, "x")
    assert channel.bodies(1) == ["x"]


def test_a_consumer_that_closes_its_channel_gives_back(connect, name):
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    fill(one, name, "abc")
    one.consume(name)
    one.deliveries(3)
    one.call("channel.close")
    two.consume(name)
    assert [(d.body, d.redelivered) for d in two.deliveries(3)] == [(b"a", True), (b"b", True), (b"c", True)]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_connection_that_ends_with_open_consumers_gives_back(connect, name, end):
    other = connect().channel()
    fill(other, name, "abcd", durable=True)
    connection = connect()
    ch = connection.channel()
    ch.consume(name)
    ch.deliveries(4)
    ch.send("basic.ack", delivery_tag=2)
    other.expect_counts(name, 0, 1)
    ch.call("basic.qos")
    getattr(connection, end)()
    other.consume(name)
    assert [(d.body, d.redelivered) for d in other.deliveries(3)] == [(b"a", True), (b"c", True), (b"d", True)]
    other.expect_counts(name, 0, 1)


def test_after_close_ok_messages_are_back_at_once(connect, name):
    other = connect().channel()
    fill(other, name, "ab", durable=True)
    connection = connect()
    ch = connection.channel()
    ch.consume(name)
    ch.deliveries(2)
    connection.close()
    other.expect_counts(name, 2, 0)
    assert other.drain(name) == ["a", "b"]


# ---- cancel by the broker


def test_a_consumer_is_told_when_its_queue_goes(connect, name):
    ch = connect().channel()
    ch.declare(name, durable=True)
    ch.consume(name, consumer_tag="t")
    connect().channel().call("queue.delete", queue=name)
    ch.expect("basic.cancel", consumer_tag="t", nowait=True)
    ch.call("basic.qos")


def test_a_consumer_is_told_when_its_own_channel_deletes_the_queue(channel, name):
    channel.declare(name)
    channel.consume(name, consumer_tag="t")
    channel.send("queue.delete", queue=name)
    got = {channel.next().name, channel.next().name}
    assert got == {"queue.delete-ok", "basic.cancel"}


def test_a_client_that_cannot_take_it_is_not_told(connect, name):
    ch = connect(capabilities={}).channel()
    ch.declare(name)
    ch.consume(name, consumer_tag="t")
    ch.call("queue.delete", queue=name)
    ch.declare(name)
    ch.expect_counts(name, 0, 0)


def test_the_tag_of_a_consumer_cancelled_by_the_broker_is_free(channel, name):
    channel.declare(name)
    channel.consume(name, consumer_tag="t")
    channel.send("queue.delete", queue=name)
    assert {channel.next().name, channel.next().name} == {"queue.delete-ok", "basic.cancel"}
    channel.declare(name)
    channel.consume(name, consumer_tag="t")
    channel.publish(name, "x")
    channel.expect("basic.deliver", consumer_tag="t")


# ---- exclusive consumers


def test_an_exclusive_consumer_makes_room_when_it_leaves(channel, name):
    channel.declare(name)
    channel.consume(name, consumer_tag="t", exclusive=True)
    channel.call("basic.cancel", consumer_tag="t")
    channel.consume(name, exclusive=True)


def test_basic_get_works_beside_an_exclusive_consumer(connect, name):
    connection = connect()
    ch, other = connection.channel(1), connection.channel(2)
    ch.declare(name)
    ch.call("basic.qos", prefetch_count=1)
    ch.consume(name, exclusive=True)
    for body in "ab":
        ch.publish(name, body)
    assert ch.bodies(1) == ["a"]
    ch.expect_counts(name, 1, 1)
    assert other.get(name).body == b"b"


# ---- basic.get


def test_get_takes_the_first_and_says_how_many_are_left(channel, name):
    fill(channel, name, "abc")
    for left, body in ((2, b"a"), (1, b"b"), (0, b"c")):
        message = channel.get(name)
        assert (message.body, message.message_count, message.redelivered) == (body, left, False)
        assert (message.exchange, message.routing_key) == ("", name)
    assert channel.get(name) is None


def test_get_without_ack_mode_counts_delivery_tags_too(channel, name):
    fill(channel, name, "abc")
    assert [channel.get(name, no_ack=no_ack).delivery_tag for no_ack in (True, False, True)] == [1, 2, 3]


def test_get_empty_has_an_empty_cluster_id(channel, name):
    channel.declare(name)
    assert channel.call("basic.get", queue=name).cluster_id == ""


def test_a_message_that_was_got_comes_back_when_the_channel_closes(connect, name):
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    fill(one, name, "ab")
    one.get(name, no_ack=False)
    one.call("channel.close")
    messages = [two.get(name), two.get(name)]
    assert [(m.body, m.redelivered) for m in messages] == [(b"a", True), (b"b", False)]


def test_an_auto_acknowledged_tag_is_unknown(channel, name, fault_of):
    fill(channel, name, "a")
    assert channel.get(name, no_ack=True).delivery_tag == 1
    channel.send("basic.ack", delivery_tag=1)
    fault = fault_of(channel.next)
    assert fault == ("channel", 406, "PRECONDITION_FAILED - unknown delivery tag 1", "basic.ack")


# ---- acknowledgements


@pytest.mark.parametrize(
    "acks, left",
    [
        ([("basic.ack", {"delivery_tag": 1})], "bcde"),
        ([("basic.ack", {"delivery_tag": 3})], "abde"),
        ([("basic.ack", {"delivery_tag": 3, "multiple": True})], "de"),
        ([("basic.ack", {"delivery_tag": 5, "multiple": True})], ""),
        ([("basic.ack", {"delivery_tag": 0, "multiple": True})], ""),
        ([("basic.ack", {"delivery_tag": 2}), ("basic.ack", {"delivery_tag": 4, "multiple": True})], "e"),
        ([("basic.reject", {"delivery_tag": 2})], "acde"),
        ([("basic.nack", {"delivery_tag": 2})], "acde"),
        ([("basic.nack", {"delivery_tag": 3, "multiple": True})], "de"),
        ([("basic.nack", {"delivery_tag": 0, "multiple": True})], ""),
        ([("basic.ack", {"delivery_tag": 5}), ("basic.nack", {"delivery_tag": 2, "multiple": True})], "cd"),
    ],
    ids=range(11),
)
def test_what_is_settled_does_not_come_back(connect, name, acks, left):
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    fill(one, name, "abcde")
    one.consume(name)
    one.deliveries(5)
    for method, arguments in acks:
        one.send(method, **arguments)
    one.call("channel.close")
    two.expect_counts(name, len(left), 0)
    assert two.drain(name) == list(left)


@pytest.mark.parametrize(
    "method, arguments, order",
    [
        ("basic.reject", {"delivery_tag": 2}, "bde"),
        ("basic.nack", {"delivery_tag": 2}, "bde"),
        ("basic.nack", {"delivery_tag": 2, "multiple": True}, "abde"),
        ("basic.nack", {"delivery_tag": 3, "multiple": True}, "abcde"),
        ("basic.nack", {"delivery_tag": 0, "multiple": True}, "abcde"),
        ("basic.reject", {"delivery_tag": 3}, "cde"),
        ("basic.recover", {}, "abcde"),
        ("basic.recover-async", {}, "abcde"),
    ],
)
def test_what_is_given_back_goes_to_its_old_place(channel, name, method, arguments, order):
    fill(channel, name, "abcde")
    for _ in range(3):
        channel.get(name, no_ack=False)
    channel.send(method, requeue=True, **arguments)
    if method == "basic.recover":
        channel.expect("basic.recover-ok")
    channel.expect_counts(name, len(order), 0)
    got = [channel.get(name) for _ in order]
    assert [message.body.decode() for message in got] == list(order)
    assert [message.redelivered for message in got] == [letter in "abc" for letter in order]
    assert channel.get(name) is None


def test_messages_given_back_one_by_one_keep_their_order(channel, name):
    fill(channel, name, "abcdef")
    for _ in range(4):
        channel.get(name, no_ack=False)
    for tag in (3, 1, 4, 2):
        channel.send("basic.nack", delivery_tag=tag, requeue=True)
    channel.expect_counts(name, 6, 0)
    assert channel.drain(name) == list("abcdef")


def test_a_rejected_message_comes_to_the_same_consumer_again(channel, name):
    fill(channel, name, "a")
    channel.consume(name)
    channel.expect("basic.deliver", delivery_tag=1, redelivered=False)
    for tag in range(1, 10):
        channel.send("basic.reject", delivery_tag=tag, requeue=True)
        channel.expect("basic.deliver", delivery_tag=tag + 1, redelivered=True)


def test_a_rejected_message_comes_to_the_other_consumer(connect, name):
    """Round robin goes on: the one that rejected it is at the end."""
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    one.declare(name)
    for ch in (one, two):
        ch.call("basic.qos", prefetch_count=1)
        ch.consume(name)
    one.publish(name, "x")
    assert one.bodies(1) == ["x"]
    one.send("basic.reject", delivery_tag=1, requeue=True)
    two.expect("basic.deliver", redelivered=True)


def test_recover_gives_everything_back_to_its_consumer(channel, name):
    fill(channel, name, "abc")
    channel.consume(name)
    channel.deliveries(3)
    channel.send("basic.recover", requeue=True)
    got = [channel.next() for _ in range(4)]
    assert [method.name for method in got].count("basic.recover-ok") == 1
    deliveries = [method for method in got if method.name == "basic.deliver"]
    assert [(d.body, d.redelivered) for d in deliveries] == [(b"a", True), (b"b", True), (b"c", True)]
    assert tags(deliveries) == [4, 5, 6]


def test_tags_are_of_the_channel_not_of_the_consumer(channel, name):
    for letter in "ab":
        channel.declare(f"{name}-{letter}")
        channel.consume(f"{name}-{letter}")
    for letter in "ab":
        channel.publish(f"{name}-{letter}", letter)
    assert tags(channel.deliveries(2)) == [1, 2]
    channel.send("basic.ack", delivery_tag=2, multiple=True)
    channel.call("channel.close")


def test_ack_multiple_reaches_over_queues(connect, name):
    connection = connect()
    ch, other = connection.channel(1), connection.channel(2)
    for letter in "ab":
        fill(ch, f"{name}-{letter}", "xy")
        ch.consume(f"{name}-{letter}")
        ch.deliveries(2)
    ch.send("basic.ack", delivery_tag=3, multiple=True)
    ch.call("channel.close")
    other.expect_counts(name + "-a", 0, 0)
    assert other.drain(name + "-b") == ["y"]


def test_a_tag_of_another_channel_is_unknown(connect, name, fault_of):
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    fill(one, name, "a")
    one.get(name, no_ack=False)
    two.send("basic.ack", delivery_tag=1)
    assert fault_of(two.next)[:2] == ("channel", 406)


@pytest.mark.parametrize("method", ["basic.ack", "basic.nack"])
def test_settling_all_of_nothing_is_no_fault(channel, method):
    channel.send(method, delivery_tag=0, multiple=True)
    channel.call("basic.qos")


def test_a_message_without_acknowledgement_is_gone(connect, name):
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    fill(one, name, "abc")
    one.consume(name, no_ack=True)
    one.deliveries(3)
    one.call("channel.close")
    two.expect_counts(name, 0, 0)
    assert two.drain(name) == []


# ---- qos


def test_prefetch_holds_a_consumer_back(channel, name):
    channel.call("basic.qos", prefetch_count=2)
    fill(channel, name, "abcde")
    channel.consume(name)
    assert channel.bodies(2) == ["a", "b"]
    channel.expect_counts(name, 3, 1)
    channel.send("basic.ack", delivery_tag=1)
    assert channel.bodies(1) == ["c"]
    channel.expect_counts(name, 2, 1)
    channel.send("basic.ack", delivery_tag=3, multiple=True)
    assert channel.bodies(2) == ["d", "e"]
    channel.expect_counts(name, 0, 1)


@pytest.mark.parametrize("method", ["basic.nack", "basic.reject"])
def test_a_rejected_delivery_makes_room(channel, name, method):
    channel.call("basic.qos", prefetch_count=1)
    fill(channel, name, "ab")
    channel.consume(name)
    assert channel.bodies(1) == ["a"]
    channel.send(method, delivery_tag=1, requeue=False)
    assert channel.bodies(1) == ["b"]


def test_prefetch_0_is_no_limit(channel, name):
    channel.call("basic.qos", prefetch_count=1)
    channel.call("basic.qos", prefetch_count=0)
    fill(channel, name, "abcde")
    channel.consume(name)
    assert channel.bodies(5) == list("abcde")


def test_prefetch_means_nothing_without_acknowledgements(channel, name):
    channel.call("basic.qos", prefetch_count=1)
    fill(channel, name, "abcde")
    channel.consume(name, no_ack=True)
    assert channel.bodies(5) == list("abcde")


def test_a_prefetch_is_for_consumers_that_come_later(channel, name):
    channel.declare(name)
    channel.consume(name, consumer_tag="early")
    channel.call("basic.qos", prefetch_count=1)
    for body in "abc":
        channel.publish(name, body)
    assert channel.bodies(3) == ["a", "b", "c"]


def test_each_consumer_has_a_prefetch_of_its_own(channel, name):
    channel.call("basic.qos", prefetch_count=2)
    for letter in "ab":
        channel.declare(f"{name}-{letter}")
        channel.consume(f"{name}-{letter}", consumer_tag=letter)
    for letter in "ab":
        for number in range(5):
            channel.publish(f"{name}-{letter}", letter + str(number))
    assert sorted(channel.bodies(4)) == ["a0", "a1", "b0", "b1"]
    for letter in "ab":
        channel.expect_counts(f"{name}-{letter}", 3, 1)


def test_a_global_prefetch_is_the_channels(channel, name):
    """RabbitMQ honours it up to 4.2 and ignores it from 4.3 on; SealMQ honours it."""
    channel.call("basic.qos", prefetch_count=3, **{"global": True})
    for letter in "ab":
        channel.declare(f"{name}-{letter}")
        channel.consume(f"{name}-{letter}")
    for number in range(5):
        channel.publish(f"{name}-a", f"a{number}")
    assert channel.bodies(3) == ["a0", "a1", "a2"]
    channel.publish(f"{name}-b", "b0")
    channel.expect_counts(f"{name}-a", 2, 1)
    channel.expect_counts(f"{name}-b", 1, 1)
    channel.send("basic.ack", delivery_tag=3, multiple=True)
    assert sorted(channel.bodies(3)) == ["a3", "a4", "b0"]


def test_a_global_prefetch_holds_for_consumers_that_are_there(channel, name):
    fill(channel, name, "")
    channel.consume(name)
    channel.call("basic.qos", prefetch_count=1, **{"global": True})
    for body in "abc":
        channel.publish(name, body)
    assert channel.bodies(1) == ["a"]
    channel.expect_counts(name, 2, 1)
    channel.call("basic.qos", prefetch_count=2, **{"global": True})
    assert channel.bodies(1) == ["b"]
    channel.expect_counts(name, 1, 1)
    channel.call("basic.qos", prefetch_count=0, **{"global": True})
    assert channel.bodies(1) == ["c"]


def test_both_limits_hold_together(channel, name):
    channel.call("basic.qos", prefetch_count=2)
    channel.call("basic.qos", prefetch_count=3, **{"global": True})
    for letter in "ab":
        channel.declare(f"{name}-{letter}")
        channel.consume(f"{name}-{letter}")
    for number in range(3):
        channel.publish(f"{name}-a", f"a{number}")
    assert channel.bodies(2) == ["a0", "a1"]
    channel.expect_counts(f"{name}-a", 1, 1)
    for number in range(3):
        channel.publish(f"{name}-b", f"b{number}")
    assert channel.bodies(1) == ["b0"]
    channel.expect_counts(f"{name}-b", 2, 1)


def test_basic_get_is_not_held_back_by_a_prefetch(channel, name):
    channel.call("basic.qos", prefetch_count=1)
    fill(channel, name, "abc")
    assert [channel.get(name, no_ack=False).body for _ in range(3)] == [b"a", b"b", b"c"]


# ---- fairness


def test_consumers_take_turns(connect, name):
    connection = connect()
    publisher = connection.channel(1)
    publisher.declare(name)
    workers = [connection.channel(number) for number in (2, 3, 4)]
    for worker in workers:
        worker.consume(name, no_ack=True)
    for number in range(9):
        publisher.publish(name, str(number))
    assert [worker.bodies(3) for worker in workers] == [["0", "3", "6"], ["1", "4", "7"], ["2", "5", "8"]]


def test_consumers_of_one_channel_take_turns(channel, name):
    channel.declare(name)
    for tag in "ab":
        channel.consume(name, consumer_tag=tag, no_ack=True)
    for number in range(6):
        channel.publish(name, str(number))
    assert [delivery.consumer_tag for delivery in channel.deliveries(6)] == list("ababab")


def test_a_busy_consumer_leaves_the_work_to_the_idle_one(connect, name):
    connection = connect()
    publisher, busy, idle = (connection.channel(number) for number in (1, 2, 3))
    publisher.declare(name)
    for worker in (busy, idle):
        worker.call("basic.qos", prefetch_count=1)
        worker.consume(name)
    for number in range(6):
        publisher.publish(name, str(number))
    assert busy.bodies(1) == ["0"]
    done = []
    for _ in range(5):
        delivery = idle.expect("basic.deliver")
        done.append(delivery.body.decode())
        idle.send("basic.ack", delivery_tag=delivery.delivery_tag)
    assert done == ["1", "2", "3", "4", "5"]


def test_a_thousand_messages_arrive_in_order(channel, name):
    channel.declare(name)
    channel.call("basic.qos", prefetch_count=10)
    channel.consume(name)
    for number in range(1000):
        channel.publish(name, str(number))
    for number in range(1000):
        delivery = channel.expect("basic.deliver", delivery_tag=number + 1)
        assert delivery.body == str(number).encode()
        channel.send("basic.ack", delivery_tag=number + 1)
    channel.expect_counts(name, 0, 1)


def test_messages_wait_for_a_consumer_that_reads_slowly(connect, name):
    """More than any buffer on the way holds; nothing is lost and nothing comes twice."""
    publisher = connect().channel()
    publisher.declare(name, durable=True)
    slow = connect().channel()
    slow.consume(name, no_ack=True)
    body = "x" * 100_000
    for number in range(100):
        publisher.publish(name, f"{number:03}{body}")
    assert [delivery.body[:3].decode() for delivery in slow.deliveries(100)] == [f"{number:03}" for number in range(100)]
    publisher.expect_counts(name, 0, 1)


@pytest.mark.parametrize("mode", [1, 2])
def test_redelivered_is_false_for_who_never_had_a_message(connect, name, mode):
    """A consumer with a prefetch of one never has the second message, so nobody else gets it as redelivered."""
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    one.declare(name, durable=True)
    one.call("basic.qos", prefetch_count=1)
    one.consume(name)
    for body in "ab":
        one.publish(name, body, block=amqp.properties(delivery_mode=mode))
    assert one.bodies(1) == ["a"]
    one.expect_counts(name, 1, 1)
    one.call("channel.close")
    two.expect_counts(name, 2, 0)
    assert [(m.body, m.redelivered) for m in (two.get(name), two.get(name))] == [(b"a", True), (b"b", False)]
