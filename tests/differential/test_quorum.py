"""`x-queue-type: quorum` as clients see it: delivery counts and their limit, what the type refuses, its two priorities,
its single active consumer. One node is all that a client can tell."""

import amqp
import pytest

QUORUM = {"x-queue-type": "quorum"}


def declare(channel, queue, **arguments):
    return channel.declare(queue, durable=True, arguments={**QUORUM, **arguments})


def take(channel, queue, eventually):
    """The next message, unacknowledged."""
    found = []
    eventually(lambda: found or found.extend(filter(None, [channel.get(queue, no_ack=False)])))
    return found[0]


def count_of(message):
    """The header x-delivery-count, where there are headers at all."""
    has_headers = message.properties[0] & 0x20
    return amqp.headers_of(message.properties).get("x-delivery-count") if has_headers else None


def nack(channel, message):
    channel.send("basic.nack", delivery_tag=message.delivery_tag, requeue=True)


# ---- delivery counts


@pytest.mark.parametrize("how", ["basic.nack", "basic.reject", "basic.recover"])
def test_a_delivery_that_comes_back_is_counted_in_a_header(channel, name, eventually, how):
    declare(channel, name)
    channel.publish(name, "x", block=amqp.properties(headers={"mine": 1}, delivery_mode=2))
    for count in [None, 1, 2]:
        message = take(channel, name, eventually)
        assert (message.redelivered, count_of(message)) == (count is not None, count)
        assert amqp.headers_of(message.properties)["mine"] == 1
        if how == "basic.recover":
            channel.call(how, requeue=True)
        else:
            channel.send(how, delivery_tag=message.delivery_tag, requeue=True)


def test_the_header_is_a_64_bit_integer_behind_all_others(channel, name, eventually):
    declare(channel, name)
    channel.publish(name, "x", block=amqp.properties(content_type="text/plain", priority=3))
    nack(channel, take(channel, name, eventually))
    message = take(channel, name, eventually)
    count = amqp.Field(b"l", (1).to_bytes(8, "big"))
    assert message.properties == amqp.properties(content_type="text/plain", headers={"x-delivery-count": count}, priority=3)


def test_a_count_that_the_publisher_claims_is_replaced_by_the_first_real_one(channel, name, eventually):
    declare(channel, name)
    channel.publish(name, "x", block=amqp.properties(headers={"x-delivery-count": 7}))
    message = take(channel, name, eventually)
    assert count_of(message) == 7
    nack(channel, message)
    assert count_of(take(channel, name, eventually)) == 1


def test_what_a_consumer_leaves_behind_is_counted(connect, channel, name):
    declare(channel, name)
    channel.publish(name, "x")
    for count in [None, 1, 2]:
        connection = connect()
        consumer = connection.channel()
        consumer.consume(name)
        assert count_of(consumer.expect("basic.deliver")) == count
        if count == 1:
            consumer.call("channel.close")
        connection.close()


def test_what_was_prefetched_and_acknowledged_is_not_counted_for_others(channel, name, eventually):
    declare(channel, name)
    for body in "ab":
        channel.publish(name, body)
    first, second = take(channel, name, eventually), take(channel, name, eventually)
    channel.send("basic.ack", delivery_tag=first.delivery_tag)
    nack(channel, second)
    assert count_of(take(channel, name, eventually)) == 1


def test_a_requeue_within_a_transaction_is_counted_once(channel, name, eventually):
    declare(channel, name)
    channel.publish(name, "x")
    message = take(channel, name, eventually)
    channel.call("tx.select")
    nack(channel, message)
    channel.call("tx.commit")
    assert count_of(take(channel, name, eventually)) == 1


def test_a_classic_queue_counts_nothing(channel, name, eventually):
    channel.declare(name, exclusive=True)
    channel.publish(name, "x")
    for redelivered in [False, True, True]:
        message = take(channel, name, eventually)
        assert (message.redelivered, message.properties) == (redelivered, b"\0\0")
        nack(channel, message)


def deliveries_until_dead(channel, name, eventually, limit):
    dead = f"{name}-dead"
    channel.declare(dead, durable=True)
    declare(channel, name, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}, **limit)
    channel.publish(name, "poison", block=amqp.properties(headers={"mine": 1}))
    deliveries, letters = 0, []
    while not letters:
        found = []
        eventually(lambda: found or found.extend(filter(None, [channel.get(name, no_ack=False), channel.get(dead)])))
        if found[0].routing_key == dead:
            letters += found
            break
        deliveries += 1
        nack(channel, found[0])
    return deliveries, letters[0]


@pytest.mark.parametrize("limit, deliveries", [(0, 1), (1, 2), (3, 4), (None, 21)])
def test_what_comes_back_more_often_than_the_limit_is_dead(channel, name, eventually, limit, deliveries):
    arguments = {} if limit is None else {"x-delivery-limit": limit}
    counted, letter = deliveries_until_dead(channel, name, eventually, arguments)
    headers = amqp.headers_of(letter.properties)
    assert counted == deliveries and letter.body == b"poison"
    assert [(d["reason"], d["queue"], d["count"]) for d in headers["x-death"]] == [("delivery_limit", name, 1)]
    assert headers["x-first-death-reason"] == headers["x-last-death-reason"] == "delivery_limit"
    assert headers["mine"] == 1 and "x-delivery-count" not in headers


def test_minus_one_is_no_limit(channel, name, eventually):
    declare(channel, name, **{"x-delivery-limit": -1})
    channel.publish(name, "x")
    for _ in range(25):
        nack(channel, take(channel, name, eventually))
    assert count_of(take(channel, name, eventually)) == 25


# ---- what the type refuses


@pytest.mark.parametrize("flag", ["if-unused", "if-empty"])
def test_it_is_not_deleted_conditionally(channel, name, fault_of, flag):
    declare(channel, name)
    fault = fault_of(lambda: channel.call("queue.delete", queue=name, **{flag.replace("-", "_"): True}))
    text = (
        f"NOT_IMPLEMENTED - cannot delete queue '{name}' in vhost '/'. queue.delete operations with {flag} flag set "
        "are not supported by quorum queues"
    )
    assert fault == ("connection", 540, text, "queue.delete")


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_common_limit_of_the_channel_is_refused(channel, name, fault_of, no_ack):
    declare(channel, name)
    channel.call("basic.qos", prefetch_count=5, **{"global": True})
    fault = fault_of(lambda: channel.consume(name, no_ack=no_ack))
    assert fault == (
        "connection", 540, f"NOT_IMPLEMENTED - queue '{name}' in vhost '/' does not support global qos", "basic.consume"
    )  # fmt: skip


def test_a_common_limit_of_zero_is_none(channel, name):
    declare(channel, name)
    channel.call("basic.qos", prefetch_count=0, **{"global": True})
    assert channel.consume(name)


@pytest.mark.parametrize(
    "shape, wrong",
    [
        ({"durable": False}, "non-durable"),
        ({"durable": True, "exclusive": True}, "exclusive-owner"),
        ({"durable": True, "auto_delete": True}, "auto-delete"),
        ({"durable": False, "exclusive": True, "auto_delete": True}, "auto-delete"),
    ],
)
def test_shapes_that_it_cannot_have(channel, name, fault_of, shape, wrong):
    fault = fault_of(lambda: channel.declare(name, arguments=QUORUM, **shape))
    text = f"PRECONDITION_FAILED - invalid property '{wrong}' for queue '{name}' in vhost '/'"
    assert fault == ("channel", 406, text, "queue.declare")


def test_the_server_does_not_name_it(channel, fault_of):
    fault = fault_of(lambda: channel.declare("", durable=True, arguments=QUORUM))
    text = "PRECONDITION_FAILED - Cannot declare a server-named queue for type rabbit_quorum_queue"
    assert fault == ("channel", 406, text, "queue.declare")


@pytest.mark.parametrize("argument", [{"x-max-priority": 5}, {"x-queue-mode": "lazy"}, {"x-queue-version": 2}])
def test_arguments_of_classic_queues_are_refused(channel, name, fault_of, argument):
    fault = fault_of(lambda: declare(channel, name, **argument))
    (key,) = argument
    text = f"PRECONDITION_FAILED - invalid arg '{key}' for queue '{name}' in vhost '/' of queue type rabbit_quorum_queue"
    assert fault == ("channel", 406, text, "queue.declare")


@pytest.mark.parametrize("argument", [{"x-dead-letter-strategy": "at-most-once"}, {"x-delivery-limit": 3}])
def test_a_classic_queue_refuses_its_arguments(channel, name, fault_of, argument):
    fault = fault_of(lambda: channel.declare(name, exclusive=True, arguments=argument))
    (key,) = argument
    text = f"PRECONDITION_FAILED - invalid arg '{key}' for queue '{name}' in vhost '/' of queue type rabbit_classic_queue"
    assert fault == ("channel", 406, text, "queue.declare")


@pytest.mark.parametrize(
    "value, why", [("nope", "invalid_dlx_strategy"), (5, "{unacceptable_type,signedint}")]
)
def test_a_dead_letter_strategy_that_there_is_not(channel, name, fault_of, value, why):
    fault = fault_of(lambda: declare(channel, name, **{"x-dead-letter-strategy": value}))
    text = f"PRECONDITION_FAILED - invalid arg 'x-dead-letter-strategy' for queue '{name}' in vhost '/': {why}"
    assert fault == ("channel", 406, text, "queue.declare")


@pytest.mark.parametrize("overflow", [None, "drop-head", "reject-publish"])
def test_at_least_once_is_accepted_whatever_happens_when_it_is_full(channel, name, overflow):
    arguments = {"x-dead-letter-strategy": "at-least-once", "x-dead-letter-exchange": ""}
    declare(channel, name, **arguments, **({"x-overflow": overflow} if overflow else {}))


def test_a_dead_letter_at_least_once_looks_like_any_other(channel, name, eventually):
    dead = f"{name}-dead"
    channel.declare(dead, durable=True)
    arguments = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    declare(channel, name, **arguments, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    channel.publish(name, "x")
    message = take(channel, name, eventually)
    channel.send("basic.reject", delivery_tag=message.delivery_tag, requeue=False)
    letter = take(channel, dead, eventually)
    assert [(d["reason"], d["queue"]) for d in amqp.headers_of(letter.properties)["x-death"]] == [("rejected", name)]
    eventually(lambda: channel.counts(name)[0] == 0)


def test_another_delivery_limit_is_inequivalent(channel, name, fault_of):
    declare(channel, name, **{"x-delivery-limit": 5})
    fault = fault_of(lambda: declare(channel, name, **{"x-delivery-limit": 6}))
    text = f"inequivalent arg 'x-delivery-limit' for queue '{name}' in vhost '/': received '6' but current is '5'"
    assert fault[1:3] == (406, f"PRECONDITION_FAILED - {text}")


def test_an_exclusive_consumer_is_not_alone(connect, channel, name):
    """RabbitMQ does not look at the flag where the queue is a quorum queue, and applications rely on getting in."""
    declare(channel, name)
    for exclusive in [True, False, True]:
        assert connect().channel().consume(name, exclusive=exclusive)


# ---- order and room


def published(channel, name, bodies):
    """h is of high priority, everything else of a normal one."""
    for at, body in enumerate(bodies):
        priority = {} if body[0] == "n" else {"priority": at % 5 + 5 * (body[0] == "h")}
        channel.publish(name, body, block=amqp.properties(**priority))
    channel.expect_counts(name, len(bodies), 0)


def test_high_priorities_are_favoured_two_to_one(channel, name):
    """Without an argument: 5 and above is high, the rest and none is normal, as RabbitMQ 4.0 has it."""
    declare(channel, name)
    published(channel, name, ["l0", "l1", "n2", "l3", "h0", "h1", "h2", "h3", "h4"])
    assert channel.drain(name) == ["h0", "h1", "l0", "h2", "h3", "l1", "h4", "n2", "l3"]


def test_what_is_of_high_priority_and_older_anyway_is_no_favour(channel, name):
    declare(channel, name)
    published(channel, name, ["h0", "h1", "h2", "h3", "l0", "l1"])
    assert channel.drain(name) == ["h0", "h1", "h2", "h3", "l0", "l1"]


def test_reject_publish_dlx_means_drop_head(channel, name, eventually):
    dead = f"{name}-dead"
    channel.declare(dead, durable=True)
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish-dlx"}
    declare(channel, name, **arguments, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    channel.call("confirm.select")
    for number in range(5):
        channel.publish(name, str(number))
        assert channel.next().name == "basic.ack"
    channel.expect_counts(dead, 3, 0)
    assert channel.drain(name) == ["3", "4"]
    assert channel.drain(dead) == ["0", "1", "2"]


# ---- a single active consumer

ONE = {"x-single-active-consumer": True}


def test_basic_get_is_refused_beside_a_single_active_consumer(channel, name, fault_of):
    declare(channel, name, **ONE)
    text = (
        f"RESOURCE_LOCKED - cannot obtain access to locked queue '{name}' in vhost '/'. basic.get operations are not "
        "supported by quorum queues with single active consumer"
    )
    assert fault_of(lambda: channel.get(name)) == ("channel", 405, text, "basic.get")


def test_in_a_classic_queue_basic_get_goes_on(channel, name):
    channel.declare(name, exclusive=True, arguments=ONE)
    assert channel.get(name) is None


def test_in_a_classic_queue_nobody_is_exclusive_and_the_only_active_one(channel, name, fault_of):
    channel.declare(name, exclusive=True, arguments=ONE)
    fault = fault_of(lambda: channel.consume(name, exclusive=True))
    assert fault[1:3] == (403, f"ACCESS_REFUSED - queue '{name}' in vhost '/' in exclusive use")


def consumer(connect, name, tag, priority, prefetch=2):
    channel = connect().channel()
    channel.call("basic.qos", prefetch_count=prefetch)
    channel.consume(name, consumer_tag=tag, arguments={"x-priority": priority})
    return channel


def test_the_active_consumer_gives_way_to_a_higher_priority_once_it_has_settled(connect, channel, name, eventually):
    declare(channel, name, **ONE)
    low = consumer(connect, name, "low", 1)
    for number in range(2):
        channel.publish(name, str(number))
    held = low.deliveries(2)
    high = consumer(connect, name, "high", 9)
    for number in range(2, 4):
        channel.publish(name, str(number))
    eventually(lambda: channel.counts(name)[0] == 2)
    low.send("basic.ack", delivery_tag=held[0].delivery_tag)
    low.call("basic.qos", prefetch_count=2)  # answered after the acknowledgement was taken
    assert channel.counts(name)[0] == 2, "one is still out"
    low.send("basic.ack", delivery_tag=held[1].delivery_tag)
    assert high.bodies(2) == ["2", "3"]


def test_of_equals_the_active_consumer_stays(connect, channel, name):
    declare(channel, name, **ONE)
    first, _second = consumer(connect, name, "a", 3), consumer(connect, name, "b", 3)
    channel.publish(name, "x")
    assert first.bodies(1) == ["x"]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_highest_priority_follows_the_active_consumer(connect, channel, name, kind):
    """In a classic queue the active one stays however high the priority of others is; then it goes by priority."""
    channel.declare(name, durable=True, arguments={**ONE, "x-queue-type": kind})
    active = consumer(connect, name, "active", 5)
    low, high = consumer(connect, name, "low", 1), consumer(connect, name, "high", 3)
    active.call("basic.cancel", consumer_tag="active")
    channel.publish(name, "x")
    assert high.bodies(1) == ["x"]
    assert low.call("basic.cancel", consumer_tag="low").consumer_tag == "low"
