"""Delayed messages: exchange type x-delayed-message, as the community plugin rabbitmq_delayed_message_exchange has it.

RabbitMQ itself comes without the plugin, so these cases hold for SealMQ alone; the expectations are the plugin's
(its README and its own tests), but for what is marked as better here.
"""

import time

import amqp
import pytest

DAY_MS = 24 * 3600 * 1000


@pytest.fixture(autouse=True)
def skip_without_the_plugin(is_rabbitmq):
    if is_rabbitmq:
        pytest.skip("the peer lacks the plugin")


@pytest.fixture
def exchange(channel, name):
    """A delayed exchange that routes as a direct one, with queue `name` bound by the key "k"."""
    declare(channel, name, "direct")
    channel.declare(name, exclusive=True)
    channel.call("queue.bind", queue=name, exchange=name, routing_key="k")
    return name


def declare(channel, exchange, inner, **flags):
    arguments = {"x-delayed-type": inner} | flags.pop("arguments", {})
    channel.call("exchange.declare", exchange=exchange, type="x-delayed-message", arguments=arguments, **flags)


def later(delay, **properties):
    return amqp.properties(headers={"x-delay": delay}, **properties)


def now_ms():
    return int(time.time() * 1000)


# ---- declaration


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({}, "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ({"x-delayed-type": 7}, "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ({"x-delayed-type": "x-nothing"}, "unknown exchange type 'x-nothing'"),
        ({"x-delayed-type": "x-delayed-message"}, "Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'"),
    ],
)
def test_the_inner_type_must_exist(channel, name, fault_of, arguments, text):
    scope, code, said, cause = fault_of(
        lambda: channel.call("exchange.declare", exchange=name, type="x-delayed-message", arguments=arguments)
    )
    assert (scope, code, said, cause) == ("channel", 406, f"PRECONDITION_FAILED - {text}", "exchange.declare")


def test_a_delayed_exchange_is_not_one_of_its_inner_type(channel, name, fault_of):
    declare(channel, name, "direct")
    declare(channel, name, "direct")
    channel.call("exchange.declare", exchange=name, passive=True)
    _, code, text, _ = fault_of(lambda: channel.call("exchange.declare", exchange=name, type="direct"))
    what = f"inequivalent arg 'type' for exchange '{name}' in vhost '/'"
    # RabbitMQ prints such a type as Erlang spells it, in quotes of its own: see test_plugin_exchanges.
    assert (code, text) == (406, f"PRECONDITION_FAILED - {what}: received 'direct' but current is ''x-delayed-message''")


def test_its_bindings_are_checked_as_the_inner_types(channel, name, fault_of):
    declare(channel, name, "headers")
    channel.declare(name, exclusive=True)
    bind = {"queue": name, "exchange": name, "routing_key": "", "arguments": {"x-match": "some"}}
    _, code, _, cause = fault_of(lambda: channel.call("queue.bind", **bind))
    assert (code, cause) == (406, "queue.bind")


# ---- waiting


@pytest.mark.parametrize("delay", [30, "30", 30.9, amqp.Field(b"s", (30).to_bytes(2, "big"))])
def test_a_message_waits_and_carries_its_delay_negated(channel, name, exchange, delay):
    channel.consume(name, no_ack=True)
    before_ms = now_ms()
    channel.publish("k", "late", exchange=exchange, block=later(delay, priority=4), mandatory=True)
    delivery = channel.expect("basic.deliver", exchange=exchange, routing_key="k", redelivered=False)
    assert now_ms() >= before_ms + 30 and delivery.body == b"late"
    assert delivery.properties == later(amqp.Field(b"l", (-30).to_bytes(8, "big", signed=True)), priority=4)


@pytest.mark.parametrize("delay", [0, -5, "soon", "", True, None])
def test_what_is_no_delay_is_none(channel, name, exchange, delay):
    block = later(delay)
    channel.publish("k", "now", exchange=exchange, block=block)
    channel.publish("k", "plain", exchange=exchange)
    message = channel.get(name)
    assert (message.body, message.properties) == (b"now", block)
    assert channel.drain(name) == ["plain"]


def test_the_shorter_delay_comes_first_and_equal_ones_in_order(channel, name, exchange):
    channel.consume(name, no_ack=True)
    for delay, body in [(300, "5"), (20, "1"), (150, "3"), (20, "2"), (150, "4")]:
        channel.publish("k", body, exchange=exchange, block=later(delay))
    assert channel.bodies(5) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("delay", [2**31 - 1, 400 * 365 * DAY_MS, 2**63 - 1])
def test_a_long_delay_holds_nobody_up(channel, name, exchange, delay):
    """The plugin routes at once what waits longer than 2^32-1 ms; here it waits."""
    channel.consume(name, no_ack=True)
    channel.publish("k", "never", exchange=exchange, block=later(delay))
    channel.publish("k", "soon", exchange=exchange, block=later(20))
    channel.publish("k", "now", exchange=exchange)
    assert channel.bodies(2) == ["now", "soon"]
    channel.expect_counts(name, 0, 1)


def test_a_delayed_message_is_confirmed_and_never_returned(channel, name, exchange):
    """Whether anything will take it is known when it is due; the plugin's README rules mandatory out for that."""
    channel.call("confirm.select")
    channel.publish("nobody", exchange=exchange, block=later(DAY_MS, delivery_mode=2), mandatory=True)
    channel.expect("basic.ack", delivery_tag=1)
    channel.publish("nobody", exchange=exchange, block=later(0), mandatory=True)
    channel.expect("basic.return", reply_code=312, routing_key="nobody")
    channel.expect("basic.ack", delivery_tag=2)


def test_a_transaction_delays_from_its_commit(channel, name, exchange):
    channel.consume(name, no_ack=True)
    channel.call("tx.select")
    channel.publish("k", "late", exchange=exchange, block=later(30))
    channel.publish("k", "now", exchange=exchange)
    before_ms = now_ms()
    channel.send("tx.commit")
    got = [channel.next() for _ in range(3)]
    bodies = [method.body for method in got if method.name == "basic.deliver"]
    assert bodies == [b"now", b"late"] and now_ms() >= before_ms + 30


# ---- routing


def test_a_topic_inside_routes_as_a_topic(channel, name):
    declare(channel, name, "topic")
    channel.declare(name, exclusive=True)
    for key in ("a.*", "#.z", "a.#"):
        channel.call("queue.bind", queue=name, exchange=name, routing_key=key)
    channel.consume(name, no_ack=True)
    for key in ("a.b", "b", "y.z"):
        channel.publish(key, key, exchange=name, block=later(10))
    assert channel.bodies(2) == ["a.b", "y.z"]
    channel.expect_counts(name, 0, 1)


def test_a_headers_exchange_inside_sees_the_headers(channel, name):
    declare(channel, name, "headers")
    channel.declare(name, exclusive=True)
    channel.call("queue.bind", queue=name, exchange=name, routing_key="", arguments={"color": "red"})
    channel.consume(name, no_ack=True)
    for color in ("blue", "red"):
        channel.publish("", color, exchange=name, block=amqp.properties(headers={"x-delay": 10, "color": color}))
    assert channel.bodies(1) == ["red"]


def test_a_binding_between_exchanges_leads_into_a_delay(channel, name, exchange):
    channel.call("exchange.declare", exchange=f"{name}-front", type="fanout", auto_delete=True)
    channel.call("exchange.bind", destination=exchange, source=f"{name}-front", routing_key="")
    channel.consume(name, no_ack=True)
    before_ms = now_ms()
    channel.publish("k", "late", exchange=f"{name}-front", block=later(30))
    channel.expect("basic.deliver", exchange=f"{name}-front")
    assert now_ms() >= before_ms + 30


def test_the_alternate_exchange_gets_what_nobody_takes_when_it_is_due(channel, name):
    """The plugin hands it over at once, with its delay (its issue 36): here it waits first."""
    other = channel.declare(f"{name}-other", exclusive=True)
    arguments = {"alternate-exchange": "amq.fanout"}
    declare(channel, name, "direct", arguments=arguments)
    channel.call("queue.bind", queue=other, exchange="amq.fanout", routing_key="")
    channel.consume(other, no_ack=True)
    before_ms = now_ms()
    channel.publish(name, "late", exchange=name, block=later(30))
    # Other cases may publish to amq.fanout as well.
    while (delivery := channel.expect("basic.deliver")).exchange != name:
        pass
    assert now_ms() >= before_ms + 30 and amqp.headers_of(delivery.properties)["x-delay"] == -30


def test_a_dead_letter_is_delayed(channel, name, exchange):
    work = channel.declare(
        f"{name}-work",
        exclusive=True,
        arguments={"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": "k"},
    )
    channel.consume(name, no_ack=True)
    channel.publish(work, "job", block=later(30))
    got = channel.get(work, no_ack=False)
    before_ms = now_ms()
    channel.send("basic.reject", delivery_tag=got.delivery_tag, requeue=False)
    delivery = channel.expect("basic.deliver", exchange=exchange, routing_key="k")
    headers = amqp.headers_of(delivery.properties)
    assert now_ms() >= before_ms + 30 and headers["x-delay"] == -30
    assert [(death["queue"], death["reason"]) for death in headers["x-death"]] == [(work, "rejected")]


def test_a_deleted_exchange_takes_its_delayed_messages_along(channel, name, exchange):
    channel.publish("k", "gone", exchange=exchange, block=later(50))
    channel.call("exchange.delete", exchange=exchange)
    declare(channel, exchange, "direct")
    channel.call("queue.bind", queue=name, exchange=exchange, routing_key="k")
    channel.consume(name, no_ack=True)
    channel.publish("k", "new", exchange=exchange, block=later(100))
    assert channel.bodies(1) == ["new"]
