"""Queues and exchanges as things: declare, delete, purge, what they count, who may touch them, when they go."""

import re

import pytest

LOCKED = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{}' in vhost '/'."


# ---- queue.declare


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("auto_delete", [False, True])
def test_a_queue_of_every_kind(channel, name, durable, exclusive, auto_delete):
    """Transient queues that are not exclusive included: RabbitMQ refuses them from 4.3 on, SealMQ does not."""
    flags = dict(queue=name, durable=durable, exclusive=exclusive, auto_delete=auto_delete)
    for _ in range(2):  # the second declaration is equivalent
        answer = channel.call("queue.declare", **flags)
        assert (answer.queue, answer.message_count, answer.consumer_count) == (name, 0, 0)
    channel.publish(name, "x")
    channel.expect_counts(name, 1, 0)
    assert channel.call("queue.delete", queue=name).message_count == 1


@pytest.mark.parametrize(
    "odd", ["x", "x" * 255, " ", "a b", "a/b", "%2F", "'", "amq", "Amq.x", "\u00e9\u4e2d", "\t", "*", "#", "\x00"], ids=ascii
)
def test_a_queue_may_have_an_odd_name(channel, odd):
    assert channel.call("queue.declare", queue=odd, exclusive=True).queue == odd
    channel.publish(odd, "x")
    assert channel.drain(odd) == ["x"]
    channel.call("queue.delete", queue=odd)


def test_line_breaks_are_taken_out_of_a_queues_name(channel, name):
    head, tail = name[:8], name[8:]
    assert channel.call("queue.declare", queue=f"{head}\r\n{tail}", exclusive=True).queue == name


def test_line_breaks_are_taken_out_of_an_exchanges_name(channel, name):
    channel.call("exchange.declare", exchange=f"{name[:8]}\r\n{name[8:]}", type="direct", auto_delete=True)
    channel.call("exchange.declare", exchange=name, passive=True)
    channel.call("exchange.delete", exchange=name)


def test_a_server_named_queue(channel):
    names = {channel.declare() for _ in range(10)}
    assert len(names) == 10
    assert all(re.fullmatch(r"amq\.gen-[A-Za-z0-9_-]{22}", name) for name in names), names


def test_a_server_named_queue_may_be_looked_at_but_not_declared_again(channel, fault_of):
    name = channel.declare()
    channel.expect_counts(name, 0, 0)
    text = f"ACCESS_REFUSED - queue name '{name}' contains reserved prefix 'amq.*'"
    fault = fault_of(lambda: channel.call("queue.declare", queue=name, exclusive=True))
    assert fault == ("channel", 403, text, "queue.declare")


def test_a_passive_declare_looks_at_nothing_but_the_name(channel, name):
    channel.call("queue.declare", queue=name, durable=True, arguments={"x-max-length": 5})
    channel.call("queue.declare", queue=name, passive=True, exclusive=True, auto_delete=True, arguments={"x-max-length": 6})


def test_declare_without_wait_is_not_answered(channel, name):
    channel.send("queue.declare", queue=name, exclusive=True, nowait=True)
    channel.send("queue.bind", queue=name, exchange="amq.fanout", nowait=True)
    channel.send("exchange.declare", exchange=name, type="fanout", auto_delete=True, nowait=True)
    channel.send("queue.purge", queue=name, nowait=True)
    channel.expect_counts(name, 0, 0)
    channel.send("exchange.delete", exchange=name, nowait=True)
    channel.send("queue.delete", queue=name, nowait=True)
    channel.call("basic.qos")


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-message-ttl": 60000},
        {"x-expires": 60000},
        {"x-max-length": 10},
        {"x-max-length-bytes": 1000},
        {"x-dead-letter-exchange": ""},
        {"x-dead-letter-exchange": "dlx", "x-dead-letter-routing-key": "k"},
        {"x-overflow": "reject-publish"},
        {"x-max-priority": 5},
        {"x-single-active-consumer": True},
        {"x-queue-type": "classic"},
        {"x-queue-mode": "lazy"},
        {"x-unknown-to-all": "anything"},
        {"anything": [1, "two", {"three": None}]},
    ],
    ids=str,
)
def test_an_argument_is_taken_and_compared(channel, name, arguments):
    for _ in range(2):
        channel.call("queue.declare", queue=name, exclusive=True, arguments=arguments)


@pytest.mark.parametrize("first, second", [(5, 5.0), (5, 1 << 40)], ids=str)
def test_unknown_arguments_are_not_compared(channel, name, first, second):
    channel.call("queue.declare", queue=name, exclusive=True, arguments={"x-unknown-to-all": first})
    channel.call("queue.declare", queue=name, exclusive=True, arguments={"x-unknown-to-all": second})


# ---- the empty name


def test_the_empty_name_stands_for_the_queue_declared_last(channel, name):
    channel.declare(name + "-other")
    channel.declare(name)
    channel.call("queue.bind", exchange="amq.direct", routing_key="k-" + name)
    channel.publish("k-" + name, "x", exchange="amq.direct")
    channel.expect_counts(name, 1, 0)
    channel.call("queue.unbind", exchange="amq.direct", routing_key="k-" + name)
    assert channel.call("basic.get", no_ack=True).body == b"x"
    channel.publish(name, "y")
    assert channel.call("queue.purge").message_count == 1
    tag = channel.consume()
    channel.call("basic.cancel", consumer_tag=tag)
    assert channel.call("queue.delete").message_count == 0


def test_binding_with_both_names_empty_takes_the_queues_name_as_key(channel, name):
    channel.declare(name)
    channel.call("queue.bind", exchange="amq.direct")
    channel.publish(name, "x", exchange="amq.direct")
    assert channel.drain(name) == ["x"]


def test_binding_with_only_the_key_empty_takes_the_empty_key(channel, name):
    channel.declare(name)
    channel.call("queue.bind", queue=name, exchange="amq.direct")
    channel.publish(name, "x", exchange="amq.direct")
    channel.publish("", "y", exchange="amq.direct")
    assert channel.drain(name) == ["y"]


def test_a_server_named_queue_is_the_one_declared_last(channel, name):
    channel.declare(name)
    own = channel.declare()
    channel.publish(own, "x")
    assert channel.call("basic.get", no_ack=True).body == b"x"


def test_a_passive_declare_counts_as_declared_last(channel, name):
    channel.declare(name)
    channel.declare()
    channel.counts(name)
    channel.publish(name, "x")
    assert channel.call("basic.get", no_ack=True).body == b"x"


def test_the_queue_declared_last_may_be_gone(channel, name, fault_of):
    channel.declare(name)
    channel.call("queue.delete", queue=name)
    fault = fault_of(lambda: channel.consume())
    assert fault[1:3] == (404, f"NOT_FOUND - no queue '{name}' in vhost '/'")


# ---- counts


def test_the_message_count_is_of_ready_messages_only(channel, name):
    channel.declare(name)
    for body in "abc":
        channel.publish(name, body)
    channel.expect_counts(name, 3, 0)
    channel.get(name, no_ack=False)
    channel.expect_counts(name, 2, 0)
    channel.send("basic.reject", delivery_tag=1, requeue=True)
    channel.expect_counts(name, 3, 0)


def test_the_consumer_count(channel, name):
    channel.declare(name)
    channel.consume(name, consumer_tag="a")
    channel.consume(name, consumer_tag="b")
    channel.expect_counts(name, 0, 2)
    channel.call("basic.cancel", consumer_tag="a")
    channel.expect_counts(name, 0, 1)


def test_purge_says_how_many_went_and_leaves_what_is_delivered(channel, name):
    channel.declare(name)
    for body in "abcde":
        channel.publish(name, body)
    channel.get(name, no_ack=False)
    assert channel.call("queue.purge", queue=name).message_count == 4
    assert channel.call("queue.purge", queue=name).message_count == 0
    channel.send("basic.reject", delivery_tag=1, requeue=True)
    assert channel.drain(name) == ["a"]


def test_delete_says_how_many_were_ready(channel, name):
    channel.declare(name)
    for body in "abc":
        channel.publish(name, body)
    channel.get(name, no_ack=False)
    assert channel.call("queue.delete", queue=name).message_count == 2


def test_deleting_what_is_not_there_succeeds(channel, name):
    assert channel.call("queue.delete", queue=name).message_count == 0
    channel.call("exchange.delete", exchange=name)


def test_if_empty_and_if_unused_let_an_idle_queue_go(channel, name):
    channel.declare(name)
    channel.call("queue.delete", queue=name, if_unused=True, if_empty=True)


def test_if_empty_counts_ready_messages_only(channel, name):
    channel.declare(name)
    channel.publish(name, "x")
    assert channel.get(name, no_ack=False)
    assert channel.call("queue.delete", queue=name, if_empty=True).message_count == 0


def test_a_delivery_of_a_deleted_queue_may_still_be_acknowledged(channel, name):
    channel.declare(name)
    channel.publish(name, "x")
    channel.publish(name, "y")
    channel.get(name, no_ack=False)
    channel.get(name, no_ack=False)
    channel.call("queue.delete", queue=name)
    channel.send("basic.ack", delivery_tag=1)
    channel.send("basic.reject", delivery_tag=2, requeue=True)
    channel.call("basic.qos")


def test_a_queue_declared_again_is_empty(channel, name):
    channel.declare(name)
    channel.publish(name, "x")
    channel.call("queue.delete", queue=name)
    channel.declare(name)
    channel.expect_counts(name, 0, 0)


# ---- exclusive


@pytest.mark.parametrize(
    "method, arguments",
    [
        ("queue.declare", {"passive": True}),
        ("queue.declare", {"exclusive": True}),
        ("queue.declare", {}),
        ("queue.bind", {"exchange": "amq.direct"}),
        ("queue.unbind", {"exchange": "amq.direct"}),
        ("queue.purge", {}),
        ("queue.delete", {}),
        ("basic.consume", {}),
        ("basic.get", {}),
    ],
)
def test_another_connections_exclusive_queue_is_locked(connect, name, fault_of, method, arguments):
    own = connect().channel()
    own.declare(name)
    own.call("queue.bind", queue=name, exchange="amq.direct")
    other = connect().channel()
    scope, code, text, cause = fault_of(lambda: other.call(method, queue=name, **arguments))
    assert (scope, code, cause) == ("channel", 405, method)
    assert text.startswith(LOCKED.format(name))


def test_unbinding_what_is_not_bound_needs_no_lock(connect, name):
    connect().channel().declare(name)
    connect().channel().call("queue.unbind", queue=name, exchange="amq.direct", routing_key="not bound")


def test_another_connection_may_publish_to_an_exclusive_queue(connect, name):
    ch = connect().channel()
    ch.declare(name)
    other = connect().channel()
    other.call("confirm.select")
    other.publish(name, "x")
    other.expect("basic.ack")
    assert ch.drain(name) == ["x"]


def test_another_channel_of_the_connection_may_use_an_exclusive_queue(connect, name):
    connection = connect()
    connection.channel(1).declare(name)
    other = connection.channel(2)
    other.publish(name, "x")
    assert other.drain(name) == ["x"]


def test_an_exclusive_queue_outlives_its_channel(connect, name):
    connection = connect()
    ch = connection.channel(1)
    ch.declare(name)
    ch.call("channel.close")
    connection.channel(2).expect_counts(name, 0, 0)


@pytest.mark.parametrize("durable", [False, True])
def test_an_exclusive_queue_is_gone_when_close_ok_has_come(connect, name, fault_of, durable):
    for _ in range(10):
        connection = connect()
        ch = connection.channel()
        ch.declare(name, exclusive=True, durable=durable)
        connection.close()
        text = f"NOT_FOUND - no queue '{name}' in vhost '/'"
        assert fault_of(lambda: connect().channel().counts(name))[1:3] == (404, text)


def test_an_exclusive_queue_goes_with_a_connection_that_breaks(connect, name, eventually):
    connection = connect()
    connection.channel().declare(name)
    connection.drop()
    other = connect().channel()

    def is_free():
        other.connection.send(1, "queue.declare", queue=name, exclusive=True)
        answer = other.connection.receive()
        if answer.name == "channel.close":
            assert answer.reply_code == 405
            other.send("channel.close-ok")
            other.call("channel.open")
        return answer.name == "queue.declare-ok"

    eventually(is_free)


# ---- auto-delete


def exists(connect, kind, name):
    ch = connect().channel()
    ch.send(f"{kind}.declare", **{kind: name}, passive=True)
    return ch.connection.receive().name == f"{kind}.declare-ok"


def test_an_auto_delete_queue_stays_until_its_first_consumer_has_left(connect, channel, name, eventually):
    channel.declare(name, auto_delete=True)
    channel.expect_counts(name, 0, 0)
    channel.consume(name, consumer_tag="a")
    channel.consume(name, consumer_tag="b")
    channel.call("basic.cancel", consumer_tag="a")
    channel.expect_counts(name, 0, 1)
    channel.call("basic.cancel", consumer_tag="b")
    eventually(lambda: not exists(connect, "queue", name))


@pytest.mark.parametrize("end", ["channel.close", "connection.close", "drop"])
def test_an_auto_delete_queue_goes_with_its_last_consumer(connect, name, eventually, end):
    connection = connect()
    ch = connection.channel()
    ch.declare(name, auto_delete=True)
    ch.consume(name)
    if end == "channel.close":
        ch.call("channel.close")
    elif end == "connection.close":
        connection.close()
    else:
        connection.drop()
    eventually(lambda: not exists(connect, "queue", name))


def test_basic_get_is_no_consumer(channel, name):
    channel.declare(name, auto_delete=True)
    assert channel.get(name) is None
    channel.expect_counts(name, 0, 0)


def test_an_auto_delete_exchange_goes_with_its_last_binding(connect, channel, name):
    channel.call("exchange.declare", exchange=name, type="direct", auto_delete=True)
    channel.declare(name)
    assert exists(connect, "exchange", name)
    for key in "ab":
        channel.call("queue.bind", queue=name, exchange=name, routing_key=key)
    channel.call("queue.unbind", queue=name, exchange=name, routing_key="a")
    assert exists(connect, "exchange", name)
    channel.call("queue.unbind", queue=name, exchange=name, routing_key="b")
    assert not exists(connect, "exchange", name)


def test_an_auto_delete_exchange_goes_with_its_last_queue(connect, channel, name):
    channel.call("exchange.declare", exchange=name, type="fanout", auto_delete=True)
    channel.declare(name)
    channel.call("queue.bind", queue=name, exchange=name)
    channel.call("queue.delete", queue=name)
    assert not exists(connect, "exchange", name)


def test_an_auto_delete_exchange_goes_when_its_last_destination_exchange_goes(connect, channel, name):
    channel.call("exchange.declare", exchange=name, type="fanout", auto_delete=True)
    channel.call("exchange.declare", exchange=name + "-to", type="fanout")
    channel.call("exchange.bind", source=name, destination=name + "-to")
    channel.call("exchange.delete", exchange=name + "-to")
    assert not exists(connect, "exchange", name)


# ---- exchanges


@pytest.mark.parametrize(
    "exchange, kind",
    [
        ("amq.direct", "direct"),
        ("amq.fanout", "fanout"),
        ("amq.topic", "topic"),
        ("amq.headers", "headers"),
        ("amq.match", "headers"),
    ],
)
def test_a_system_exchange_is_there_and_may_be_declared_as_it_is(channel, exchange, kind):
    channel.call("exchange.declare", exchange=exchange, passive=True)
    channel.call("exchange.declare", exchange=exchange, type=kind, durable=True)


def test_the_trace_exchange_is_internal(channel):
    channel.call("exchange.declare", exchange="amq.rabbitmq.trace", type="topic", durable=True, internal=True)


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("auto_delete", [False, True])
@pytest.mark.parametrize("internal", [False, True])
def test_an_exchange_of_every_kind(channel, name, kind, durable, auto_delete, internal):
    flags = dict(exchange=name, type=kind, durable=durable, auto_delete=auto_delete, internal=internal)
    for _ in range(2):
        channel.call("exchange.declare", **flags)
    channel.call("exchange.declare", exchange=name, passive=True, type="whatever")
    channel.call("exchange.delete", exchange=name, if_unused=True)


def test_exchange_arguments_but_the_alternate_are_not_compared(channel, name):
    channel.call("exchange.declare", exchange=name, type="direct", arguments={"x": 1})
    channel.call("exchange.declare", exchange=name, type="direct", arguments={"y": "z"})


def test_publishing_to_an_internal_exchange_is_refused(channel, name, fault_of):
    channel.call("exchange.declare", exchange=name, type="fanout", internal=True)
    channel.publish("", "x", exchange=name)
    text = f"ACCESS_REFUSED - cannot publish to internal exchange '{name}' in vhost '/'"
    assert fault_of(channel.next) == ("channel", 403, text, "basic.publish")


def test_a_deleted_exchange_takes_its_bindings_along(channel, name):
    channel.declare(name)
    for _ in range(2):
        channel.call("exchange.declare", exchange=name, type="fanout")
        channel.publish("", "x", exchange=name)
        channel.expect_counts(name, 0, 0)
        channel.call("queue.bind", queue=name, exchange=name)
        channel.call("exchange.delete", exchange=name)


def test_if_unused_lets_an_exchange_go_that_is_only_a_destination(channel, name):
    channel.call("exchange.declare", exchange=name, type="fanout")
    channel.call("exchange.bind", source="amq.fanout", destination=name)
    channel.call("exchange.delete", exchange=name, if_unused=True)
