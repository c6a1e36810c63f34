"""Rules of queues and transactions where they meet: times to live and waiting consumers, priorities and lengths,
topology that changes within a transaction."""

import time

import amqp
import pytest


def dead_letters(channel, name):
    """A queue that takes what the default exchange is given for it, and the arguments that lead there."""
    dead = f"{name}-dead"
    channel.call("queue.declare", queue=dead, exclusive=True)
    return dead, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}


def reasons(message):
    return [(d["queue"], d["reason"], d["count"]) for d in amqp.headers_of(message.properties)["x-death"]]


# ---- times to live


def test_a_message_without_time_reaches_a_consumer_that_waits(channel, connect, name):
    """RabbitMQ's documentation: with a TTL of 0 a message expires unless it can be delivered at once."""
    channel.declare(name, durable=False, arguments={"x-message-ttl": 0})
    consumer = connect().channel()
    consumer.consume(name, no_ack=True)
    for number in range(3):
        channel.publish(name, str(number))
        assert consumer.bodies(1) == [str(number)]


def test_a_message_without_time_is_dead_when_nobody_waits(channel, name, eventually):
    dead, letters = dead_letters(channel, name)
    channel.declare(name, exclusive=True, arguments={"x-message-ttl": 0, **letters})
    channel.publish(name, "x")
    eventually(lambda: channel.counts(dead)[0] == 1)
    assert channel.counts(name)[0] == 0


def test_a_consumer_never_gets_what_has_expired_behind_a_living_message(channel, connect, name, eventually):
    dead, letters = dead_letters(channel, name)
    channel.declare(name, durable=False, arguments=letters)
    channel.publish(name, "1")
    channel.publish(name, "old", block=amqp.properties(expiration="1"))
    channel.publish(name, "2")
    time.sleep(0.1)  # nothing can be waited for: it expires out of sight
    assert channel.counts(name)[0] == 3
    consumer = connect().channel()
    consumer.consume(name, no_ack=True)
    assert consumer.bodies(2) == ["1", "2"]
    eventually(lambda: channel.counts(dead)[0] == 1)
    # A consumer that was passed over is not forgotten.
    channel.publish(name, "3")
    assert consumer.bodies(1) == ["3"]


def test_a_message_that_comes_back_too_late_is_dead(channel, name, eventually):
    dead, letters = dead_letters(channel, name)
    channel.declare(name, exclusive=True, arguments=letters)
    channel.publish(name, "x", block=amqp.properties(expiration="200"))
    got = []
    eventually(lambda: got or got.extend(filter(None, [channel.get(name, no_ack=False)])))
    time.sleep(0.3)  # its time runs while it is out
    channel.send("basic.reject", delivery_tag=got[0].delivery_tag, requeue=True)
    eventually(lambda: channel.counts(dead)[0] == 1)
    assert channel.get(name) is None


# ---- lengths


def test_a_full_queue_drops_the_highest_priority_first(channel, name, eventually):
    """The head goes, and the head is of the highest priority (RabbitMQ's documentation of priorities says so)."""
    dead, letters = dead_letters(channel, name)
    channel.declare(name, exclusive=True, arguments={"x-max-priority": 5, "x-max-length": 2, **letters})
    for priority in (1, 5, 3):
        channel.publish(name, str(priority), block=amqp.properties(priority=priority))
    eventually(lambda: channel.counts(dead)[0] == 1)
    assert channel.drain(dead) == ["5"] and channel.drain(name) == ["3", "1"]


def test_what_comes_back_to_a_full_queue_is_its_head_and_goes(channel, name, eventually):
    dead, letters = dead_letters(channel, name)
    channel.declare(name, exclusive=True, arguments={"x-max-length": 1, **letters})
    channel.publish(name, "1")
    got = []
    eventually(lambda: got or got.extend(filter(None, [channel.get(name, no_ack=False)])))
    channel.publish(name, "2")
    channel.send("basic.reject", delivery_tag=got[0].delivery_tag, requeue=True)
    eventually(lambda: channel.counts(dead)[0] == 1)
    assert channel.drain(dead) == ["1"] and channel.drain(name) == ["2"]


def test_a_queue_of_no_length_serves_a_consumer_that_waits(channel, connect, name):
    channel.declare(name, durable=False, arguments={"x-max-length": 0})
    consumer = connect().channel()
    consumer.consume(name, no_ack=True)
    for number in range(3):
        channel.publish(name, str(number))
        assert consumer.bodies(1) == [str(number)]
    assert channel.counts(name)[0] == 0


@pytest.mark.parametrize("second, answer", [(2, "basic.ack"), (3, "basic.nack")])
def test_a_publish_that_would_exceed_the_bytes_is_refused(channel, name, second, answer):
    channel.declare(name, exclusive=True, arguments={"x-max-length-bytes": 10, "x-overflow": "reject-publish"})
    channel.call("confirm.select")
    channel.publish(name, "8 bytes.")
    channel.expect("basic.ack")
    channel.publish(name, "x" * second)
    channel.expect(answer)


# ---- circles of dead letters


def test_a_circle_that_began_with_a_rejection_ends_when_nobody_rejects_again(channel, name, eventually):
    """Two queues without room lead to each other: once round is allowed because a client rejected, then it ends."""
    one, two = f"{name}-1", f"{name}-2"
    to = lambda queue: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}  # noqa: E731
    channel.declare(one, exclusive=True, arguments=to(two))
    channel.declare(two, exclusive=True, arguments={"x-max-length": 0, **to(one)})
    channel.publish(one, "x")
    for rounds in (1, 2):
        got = []
        eventually(lambda got=got: got or got.extend(filter(None, [channel.get(one, no_ack=False)])))
        if rounds == 2:
            assert reasons(got[0]) == [(two, "maxlen", 1), (one, "rejected", 1)]
        channel.send("basic.reject", delivery_tag=got[0].delivery_tag, requeue=False)
    got = []
    eventually(lambda: got or got.extend(filter(None, [channel.get(one, no_ack=False)])))
    assert reasons(got[0]) == [(two, "maxlen", 2), (one, "rejected", 2)]
    channel.send("basic.ack", delivery_tag=got[0].delivery_tag)
    assert channel.counts(one)[0] == channel.counts(two)[0] == 0


# ---- queues that go


def test_deliveries_of_a_queue_that_is_gone_can_be_settled_in_every_way(channel, name):
    channel.declare(name, durable=False)
    for number in range(3):
        channel.publish(name, str(number))
    channel.consume(name)
    tags = [delivery.delivery_tag for delivery in channel.deliveries(3)]
    channel.send("queue.delete", queue=name)
    assert {channel.next().name, channel.next().name} == {"basic.cancel", "queue.delete-ok"}
    channel.send("basic.ack", delivery_tag=tags[0])
    channel.send("basic.reject", delivery_tag=tags[1], requeue=True)
    channel.send("basic.nack", delivery_tag=tags[2], requeue=False)
    channel.declare(name, durable=False)
    assert channel.drain(name) == []


# ---- transactions


def test_a_transaction_goes_where_its_routes_led_when_it_published(channel, connect, name):
    """What a binding, or its exchange, becomes between publish and commit does not matter."""
    other = connect().channel()
    exchange = f"{name}-x"
    channel.call("exchange.declare", exchange=exchange, type="fanout")
    for queue in ("early", "late"):
        channel.declare(f"{name}-{queue}", durable=False)
    other.call("queue.bind", queue=f"{name}-early", exchange=exchange)
    channel.call("tx.select")
    channel.publish("", "x", exchange=exchange)
    channel.call("basic.qos", prefetch_count=0)  # the publish has been looked at
    other.call("queue.bind", queue=f"{name}-late", exchange=exchange)
    other.call("exchange.delete", exchange=exchange)
    channel.call("tx.commit")
    assert [other.counts(f"{name}-{queue}")[0] for queue in ("early", "late")] == [1, 0]


def test_a_commit_to_a_queue_that_is_gone_is_told_and_the_rest_arrives(channel, connect, name, fault_of):
    other = connect().channel()
    for queue in ("a", "b"):
        channel.declare(f"{name}-{queue}", durable=False)
    channel.call("tx.select")
    for queue in ("a", "b"):
        channel.publish(f"{name}-{queue}", queue, mandatory=True)
    channel.call("basic.qos", prefetch_count=0)
    other.call("queue.delete", queue=f"{name}-a")
    fault = fault_of(lambda: channel.call("tx.commit"))
    assert fault == ("channel", 406, "PRECONDITION_FAILED - partial tx completion", "tx.commit")
    assert other.drain(f"{name}-b") == ["b"]


def test_what_cannot_be_routed_comes_back_at_the_commit(channel, name):
    channel.call("tx.select")
    channel.publish(f"{name}-nowhere", "x", mandatory=True)
    channel.call("basic.qos", prefetch_count=0)
    channel.send("tx.commit")
    assert channel.expect("basic.return", reply_code=312).body == b"x"
    channel.expect("tx.commit-ok")


def test_a_commit_that_a_full_queue_refuses_is_told(channel, connect, name, fault_of):
    """The limit holds within one transaction, and commit-ok is not said of what was refused."""
    other = connect().channel()
    channel.declare(name, durable=False, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    channel.call("tx.select")
    for number in range(4):
        channel.publish(name, str(number))
    fault = fault_of(lambda: channel.call("tx.commit"))
    assert fault == ("channel", 406, "PRECONDITION_FAILED - partial tx completion", "tx.commit")
    assert other.drain(name) == ["0", "1"]


def test_a_refused_part_of_a_transaction_can_be_dead_lettered(channel, connect, name, fault_of, eventually):
    other = connect().channel()
    dead, letters = dead_letters(other, name)
    limits = {"x-max-length": 1, "x-overflow": "reject-publish-dlx"}
    channel.declare(name, durable=False, arguments={**limits, **letters})
    channel.call("tx.select")
    for number in range(2):
        channel.publish(name, str(number))
    assert fault_of(lambda: channel.call("tx.commit"))[1] == 406
    eventually(lambda: other.counts(dead)[0] == 1)
    message = other.get(dead)
    assert message.body == b"1" and reasons(message) == [(name, "maxlen", 1)]


def test_a_consumer_that_waits_makes_room_for_a_transaction(channel, connect, name):
    channel.declare(name, durable=False, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    consumer = connect().channel()
    consumer.consume(name, no_ack=True)
    channel.call("tx.select")
    for number in range(4):
        channel.publish(name, str(number))
    channel.call("tx.commit")
    assert consumer.bodies(4) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("arguments", [{}, {"x-max-priority": 3}, {"x-single-active-consumer": True}])
def test_a_transaction_of_many_messages_keeps_their_order(channel, connect, name, arguments):
    other = connect().channel()
    channel.declare(name, durable=False, arguments=arguments)
    channel.call("tx.select")
    for number in range(500):
        channel.publish(name, str(number))
    channel.call("tx.commit")
    other.call("basic.qos", prefetch_count=7)
    other.consume(name, consumer_tag="c")
    for number in range(500):
        delivery = other.expect("basic.deliver")
        assert delivery.body == str(number).encode()
        other.send("basic.ack", delivery_tag=delivery.delivery_tag)
