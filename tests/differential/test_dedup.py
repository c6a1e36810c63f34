"""Deduplication: exchanges of the community plugin's type and with LavinMQ's argument, and queues. RabbitMQ has it only
with that plugin, which the peer lacks: there these cases are skipped."""

import amqp
import pytest

KIND = "x-message-deduplication"
ON = {"x-message-deduplication": True}


@pytest.fixture(autouse=True)
def not_for_the_peer(is_rabbitmq):
    if is_rabbitmq:
        pytest.skip("RabbitMQ has no deduplication without a plugin")


def keyed(value, **headers):
    return amqp.properties(headers={"x-deduplication-header": value, **headers})


@pytest.fixture
def exchange(channel, name):
    """Declares an exchange and gives the name of a queue that is bound to it with the key `k`."""

    def exchange(kind, **arguments):
        channel.call("exchange.declare", exchange=name, type=kind, arguments=arguments)
        channel.declare(f"{name}-q", exclusive=True)
        channel.call("queue.bind", queue=f"{name}-q", exchange=name, routing_key="k")
        return f"{name}-q"

    return exchange


def confirmed(channel, exchange, key, body, block=b"\0\0"):
    channel.publish(key, body, exchange=exchange, block=block)
    channel.expect("basic.ack")


# ---- exchanges


def test_the_plugins_exchange_takes_each_value_once_to_all_that_is_bound(channel, name, exchange):
    queue = exchange(KIND, **{"x-cache-size": 10})
    channel.call("confirm.select")
    for body, value in [("a", 1), ("b", 1), ("c", "1"), ("d", 2), ("e", "1")]:
        confirmed(channel, name, "whatever", body, keyed(value))
    assert channel.drain(queue) == ["a", "c", "d"]
    for body in "xy":
        confirmed(channel, name, "", body)
    assert channel.drain(queue) == ["x", "y"], "without the header there are no duplicates"
    confirmed(channel, name, "", "after it was consumed", keyed(2))
    assert channel.drain(queue) == []


def test_a_full_cache_forgets_the_oldest(channel, name, exchange):
    queue = exchange(KIND, **{"x-cache-size": "2"})
    for value in [1, 2, 1, 3, 2, 1]:
        channel.publish("", str(value), exchange=name, block=keyed(value))
    assert channel.drain(queue) == ["1", "2", "3", "1"]


def test_a_value_counts_for_its_time(channel, name, exchange, eventually):
    queue = exchange(KIND, **{"x-cache-size": 10, "x-cache-ttl": 3_600_000})
    publish = lambda **headers: channel.publish("", "x", exchange=name, block=keyed(1, **headers))  # noqa: E731
    publish(**{"x-cache-ttl": 50})
    publish()
    assert channel.drain(queue) == ["x"]

    def again():
        publish()
        return channel.drain(queue) == ["x"]

    eventually(again)
    publish()
    assert channel.drain(queue) == [], "this one counts for the exchange's own hour"


def test_any_exchange_may_drop_duplicates_by_a_header_of_its_own(channel, name, exchange):
    queue = exchange("direct", **ON, **{"x-deduplication-header": "mine", "x-cache-size": 10})
    for body, key in [("no route", "other"), ("a", "k"), ("b", "k")]:
        value = 1 if key == "other" else 2
        channel.publish(key, body, exchange=name, block=amqp.properties(headers={"mine": value}))
    channel.publish("k", "c", exchange=name, block=keyed(2))
    assert channel.drain(queue) == ["a", "c"]


def test_without_the_argument_set_nothing_is_dropped(channel, name, exchange):
    queue = exchange("direct", **{"x-message-deduplication": False, "x-cache-size": 10})
    for body in "ab":
        channel.publish("k", body, exchange=name, block=keyed(1))
    assert channel.drain(queue) == ["a", "b"]


def test_a_duplicate_goes_to_the_alternate_exchange(channel, name, exchange):
    """The exchange takes it nowhere, so it is as unroutable as any other: an alternate exchange gets it."""
    channel.declare(f"{name}-again", exclusive=True)
    channel.call("exchange.declare", exchange=f"{name}-ae", type="fanout", auto_delete=True)
    channel.call("queue.bind", queue=f"{name}-again", exchange=f"{name}-ae", routing_key="")
    queue = exchange(KIND, **{"x-cache-size": 10, "alternate-exchange": f"{name}-ae"})
    for body in "ab":
        channel.publish("", body, exchange=name, block=keyed(1))
    assert (channel.drain(queue), channel.drain(f"{name}-again")) == (["a"], ["b"])


def test_a_mandatory_duplicate_is_returned_and_confirmed(channel, name, exchange):
    exchange(KIND, **{"x-cache-size": 10})
    channel.call("confirm.select")
    confirmed(channel, name, "", "a", keyed(1))
    channel.publish("", "b", exchange=name, block=keyed(1), mandatory=True)
    assert channel.expect("basic.return", reply_code=312).body == b"b"
    channel.expect("basic.ack")


def test_duplicates_are_dropped_behind_a_binding_between_exchanges(channel, name, exchange):
    queue = exchange(KIND, **{"x-cache-size": 10})
    channel.call("exchange.declare", exchange=f"{name}-in", type="fanout", auto_delete=True)
    channel.call("exchange.bind", destination=name, source=f"{name}-in", routing_key="")
    for body in "ab":
        channel.publish("", body, exchange=f"{name}-in", block=keyed(1))
    assert channel.drain(queue) == ["a"]


def test_a_history_keeps_no_duplicate(channel, name, exchange):
    queue = exchange("x-recent-history", **ON)
    for body in "ab":
        channel.publish("", body, exchange=name, block=keyed(1))
    late = channel.declare(f"{name}-late", exclusive=True)
    channel.call("queue.bind", queue=late, exchange=name, routing_key="")
    assert (channel.drain(queue), channel.drain(late)) == (["a"], ["a"])


@pytest.mark.parametrize("inner, own", [(KIND, {}), ("topic", ON)])
def test_behind_a_delay_the_one_that_was_taken_is_no_duplicate_of_itself(channel, name, exchange, eventually, inner, own):
    queue = exchange("x-delayed-message", **{"x-delayed-type": inner, "x-cache-size": 10}, **own)
    for body, delay in [("a", 30), ("b", 1), ("c", 0)]:
        channel.publish("k", body, exchange=name, block=keyed(1, **{"x-delay": delay}))
    channel.publish("k", "other", exchange=name, block=keyed(2, **{"x-delay": 60}))
    eventually(lambda: channel.counts(queue)[0] == 2)
    assert channel.drain(queue) == ["a", "other"]


def test_a_transaction_counts_when_it_is_committed(channel, name, exchange):
    queue = exchange(KIND, **{"x-cache-size": 10})
    channel.call("tx.select")
    channel.publish("", "rolled back", exchange=name, block=keyed(1))
    channel.call("tx.rollback")
    for body in "ab":
        channel.publish("", body, exchange=name, block=keyed(1))
    channel.call("tx.commit")
    assert channel.drain(queue) == ["a"]


def test_an_exchange_that_is_declared_anew_has_seen_nothing(channel, name, exchange):
    for _ in range(2):
        queue = exchange(KIND, **{"x-cache-size": 10})
        channel.publish("", "x", exchange=name, block=keyed(1))
        assert channel.drain(queue) == ["x"]
        channel.call("exchange.delete", exchange=name)


SIZE = "Missing or invalid argument, 'x-cache-size' must be an integer greater than 0"


@pytest.mark.parametrize(
    "kind, arguments, text",
    [
        (KIND, {}, SIZE),
        (KIND, {"x-cache-size": 0}, SIZE),
        (KIND, {"x-cache-size": "many"}, SIZE),
        (KIND, {"x-cache-size": 1_000_001}, "Invalid argument, 'x-cache-size' must not be above 1000000"),
        (KIND, {"x-cache-size": 1, "x-cache-ttl": 0}, "Invalid argument, 'x-cache-ttl' must be an integer greater than 0"),
        (KIND, {"x-cache-size": 1, "x-cache-persistence": "tape"}, "Invalid argument, 'x-cache-persistence' must be either 'disk' or 'memory'"),
        ("topic", {"x-message-deduplication": 1}, "Invalid argument, 'x-message-deduplication' must be a boolean"),
        ("topic", {**ON, "x-deduplication-header": 1}, "Invalid argument, 'x-deduplication-header' must be a string"),
    ],
)  # fmt: skip
def test_arguments_that_an_exchange_cannot_have(channel, name, fault_of, kind, arguments, text):
    fault = fault_of(lambda: channel.call("exchange.declare", exchange=name, type=kind, arguments=arguments))
    assert fault == ("channel", 406, f"PRECONDITION_FAILED - {text}", "exchange.declare")


# ---- queues


@pytest.fixture(params=["classic", "quorum"])
def queue(request, channel, name):
    return channel.declare(name, durable=True, arguments={**ON, "x-queue-type": request.param})


def test_a_queue_takes_no_duplicate_of_what_is_in_it(channel, queue):
    channel.call("confirm.select")
    for body, value in [("a", 1), ("b", 1), ("c", 2), ("d", 2)]:
        confirmed(channel, "", queue, body, keyed(value))
    for body in "xy":
        confirmed(channel, "", queue, body)
    assert channel.counts(queue)[0] == 4
    assert channel.drain(queue) == ["a", "c", "x", "y"]
    confirmed(channel, "", queue, "again", keyed(1))
    assert channel.drain(queue) == ["again"], "what was consumed is no duplicate any more"


def test_an_unacknowledged_message_is_still_in_the_queue(channel, queue):
    publish = lambda body: channel.publish(queue, body, block=keyed("k"))  # noqa: E731
    publish("a")
    message = channel.get(queue, no_ack=False)
    publish("b")
    assert channel.drain(queue) == []
    channel.send("basic.nack", delivery_tag=message.delivery_tag, requeue=True)
    publish("c")
    message = channel.get(queue, no_ack=False)
    assert message.body == b"a" and channel.drain(queue) == []
    channel.send("basic.ack", delivery_tag=message.delivery_tag)
    publish("d")
    assert channel.drain(queue) == ["d"]


@pytest.mark.parametrize("way", ["rejected", "purged", "in a transaction", "to a consumer that does not acknowledge"])
def test_whichever_way_a_message_leaves_its_like_may_come(channel, queue, way):
    channel.publish(queue, "a", block=keyed(1))
    if way == "purged":
        assert channel.call("queue.purge", queue=queue).message_count == 1
    elif way == "to a consumer that does not acknowledge":
        tag = channel.consume(queue, no_ack=True)
        assert channel.bodies(1) == ["a"]
        channel.call("basic.cancel", consumer_tag=tag)
    else:
        message = channel.get(queue, no_ack=False)
        if way == "rejected":
            channel.send("basic.reject", delivery_tag=message.delivery_tag, requeue=False)
        else:
            channel.call("tx.select")
            channel.send("basic.ack", delivery_tag=message.delivery_tag)
            channel.call("tx.commit")
    channel.publish(queue, "b", block=keyed(1))
    if way == "in a transaction":
        channel.call("tx.commit")
    assert channel.get(queue).body == b"b"


@pytest.mark.parametrize(
    "limit, reason", [({"x-message-ttl": 20}, "expired"), ({"x-max-length": 1}, "maxlen")]
)  # fmt: skip
def test_what_expires_or_has_no_room_is_dead_lettered_once_and_may_come_again(channel, name, eventually, limit, reason):
    dead = channel.declare(f"{name}-dead", exclusive=True)
    arguments = {**ON, **limit, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    channel.declare(name, exclusive=True, arguments=arguments)
    for letters in [1, 2]:
        for body in "ab":
            channel.publish(name, body, block=keyed(1))
        if reason == "maxlen":
            channel.publish(name, "c", block=keyed(3 + letters))
        eventually(lambda: channel.counts(dead)[0] >= letters)  # noqa: B023
    bodies = channel.drain(dead)
    assert bodies == (["a", "a"] if reason == "expired" else ["a", "c", "a"])


def test_duplicates_within_one_transaction_come_once(channel, queue):
    channel.call("tx.select")
    for body in "ab":
        channel.publish(queue, body, block=keyed(1))
    channel.call("tx.commit")
    assert channel.counts(queue)[0] == 1


def test_what_is_acknowledged_and_sent_again_in_one_transaction_is_no_duplicate(channel, queue):
    channel.publish(queue, "a", block=keyed(1))
    message = channel.get(queue, no_ack=False)
    channel.call("tx.select")
    channel.publish(queue, "b", block=keyed(1))
    channel.send("basic.ack", delivery_tag=message.delivery_tag)
    channel.call("tx.commit")
    assert channel.drain(queue) == ["b"]


def test_a_large_body_for_several_queues_is_dropped_by_one_of_them_only(channel, name, queue):
    """A body that several queues share is stored once; what one of them drops must not take it from the other."""
    other = channel.declare(f"{name}-other", durable=True)
    channel.call("confirm.select")
    for target in [queue, other]:
        channel.call("queue.bind", queue=target, exchange="amq.fanout", routing_key=name)
    block = amqp.properties(headers={"x-deduplication-header": 1}, delivery_mode=2)
    for body in ["a" * 10_000, "b" * 10_000]:
        confirmed(channel, "amq.fanout", "", body, block)
    assert (channel.counts(queue)[0], channel.counts(other)[0]) == (1, 2)
    assert [body[0] for body in channel.drain(other)] == ["a", "b"]
    assert [body[0] for body in channel.drain(queue)] == ["a"]


def test_a_queue_may_name_another_header(channel, name):
    channel.declare(name, exclusive=True, arguments={**ON, "x-deduplication-header": "mine"})
    for body in "ab":
        channel.publish(name, body, block=amqp.properties(headers={"mine": 1}))
    for body in "cd":
        channel.publish(name, body, block=keyed(1))
    assert channel.drain(name) == ["a", "c", "d"]


@pytest.mark.parametrize("key, value, found", [("x-message-deduplication", "yes", "longstr"), ("x-deduplication-header", 1, "signedint")])
def test_arguments_that_a_queue_cannot_have(channel, name, fault_of, key, value, found):
    fault = fault_of(lambda: channel.declare(name, exclusive=True, arguments={**ON, key: value}))
    text = f"PRECONDITION_FAILED - invalid arg '{key}' for queue '{name}' in vhost '/': {{unacceptable_type,{found}}}"
    assert fault == ("channel", 406, text, "queue.declare")
