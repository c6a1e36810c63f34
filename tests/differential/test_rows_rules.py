"""Dead letters byte for byte, expirations, reply texts at their longest, and faults of requests that ask for no
answer."""

import re
import struct

import amqp
import pytest
from amqp import Field


@pytest.fixture
def dead(channel, name):
    """A queue for the dead letters of exchange `name`-dlx."""
    queue, exchange = f"{name}-dead", f"{name}-dlx"
    channel.call("exchange.declare", exchange=exchange, type="fanout", auto_delete=True)
    channel.call("queue.declare", queue=queue, exclusive=True)
    channel.call("queue.bind", queue=queue, exchange=exchange)
    return queue


def taken(channel, queue, eventually, no_ack=True):
    found = []
    eventually(lambda: found or found.extend(filter(None, [channel.get(queue, no_ack)])))
    return found[0]


def letter(channel, name, dead, eventually, block=b"\x00\x00", exchange="", **arguments):
    """The dead letter of a message that is rejected, unless the queue's arguments end it before."""
    given = {"x-dead-letter-exchange": dead.removesuffix("-dead") + "-dlx", **arguments}
    channel.declare(name, exclusive=True, arguments=given)
    channel.publish(name, "x", exchange=exchange, block=block)
    if not arguments:
        message = taken(channel, name, eventually, no_ack=False)
        channel.send("basic.reject", delivery_tag=message.delivery_tag, requeue=False)
    return taken(channel, dead, eventually)


def death(name, reason, keys=None, expiration=None):
    """An entry of x-death as it is on the wire; the time is left open."""
    entry = {"original-expiration": expiration} if expiration else {}
    entry |= {"count": Field(b"l", struct.pack(">q", 1)), "reason": reason, "queue": name}
    entry |= {"time": Field(b"T", b"<seconds"), "exchange": "", "routing-keys": keys or [name]}
    return entry


def headers_of_dead(name, reason, **more):
    first_and_last = {
        f"x-{which}-death-{fact}": value
        for which in ("first", "last")
        for fact, value in (("exchange", ""), ("queue", name), ("reason", reason))
    }
    return {"x-death": [death(name, reason, **more)], **first_and_last}


def without_time(block):
    """Seconds since 1970 in eight bytes, of which the first three are 0 until the year 36812."""
    return re.sub(rb"(\x04time)T\x00\x00\x00.{5}", rb"\1T<seconds", block, flags=re.DOTALL)


@pytest.mark.parametrize(
    "reason, arguments",
    [
        ("rejected", {}),
        ("expired", {"x-message-ttl": 20}),
        ("maxlen", {"x-max-length": 0}),
        ("maxlen", {"x-max-length-bytes": 0}),
    ],
    ids=str,
)
def test_the_headers_of_a_dead_letter_byte_for_byte(channel, name, dead, eventually, reason, arguments):
    """Names, types on the wire and order: `count` is a 64-bit integer, `time` a timestamp, the rest strings."""
    message = letter(channel, name, dead, eventually, **arguments)
    assert without_time(message.properties) == amqp.properties(headers=headers_of_dead(name, reason))
    assert (message.exchange, message.routing_key) == (name + "-dlx", name)


def test_a_dead_letter_has_lost_its_expiration_and_tells_of_it(channel, name, dead, eventually):
    message = letter(channel, name, dead, eventually, amqp.properties(expiration="60000", delivery_mode=2))
    headers = headers_of_dead(name, "rejected", expiration="60000")
    assert without_time(message.properties) == amqp.properties(headers=headers, delivery_mode=2)


def test_a_dead_letter_keeps_all_other_properties(channel, name, dead, eventually):
    given = dict(content_type="text/plain", content_encoding="gzip", delivery_mode=2, priority=3, correlation_id="c")
    given |= dict(reply_to="r", message_id="m", timestamp=7, type="t", app_id="a", cluster_id="k")
    message = letter(channel, name, dead, eventually, amqp.properties(headers={"a": 1}, **given))
    headers = {"a": 1} | headers_of_dead(name, "rejected")
    assert without_time(message.properties) == amqp.properties(headers=headers, **given)


def test_a_dead_letters_own_claims_of_deaths_are_replaced(channel, name, dead, eventually):
    claims = {"x-death": "nonsense", "x-first-death-queue": "mine", "x-last-death-reason": "other"}
    message = letter(channel, name, dead, eventually, amqp.properties(headers=claims))
    assert without_time(message.properties) == amqp.properties(headers=headers_of_dead(name, "rejected"))


def test_the_latest_death_stands_first_and_the_first_stays_known(channel, name, eventually):
    """Two queues in a row: expired in the first, rejected in the second."""
    middle, end = name + "-middle", name + "-end"
    to = lambda queue: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}  # noqa: E731
    channel.declare(end)
    channel.declare(middle, exclusive=True, arguments=to(end))
    channel.declare(name, exclusive=True, arguments=to(middle) | {"x-message-ttl": 10})
    channel.publish(name, "x", block=amqp.properties(expiration="5000"))
    message = taken(channel, middle, eventually, no_ack=False)
    channel.send("basic.reject", delivery_tag=message.delivery_tag, requeue=False)
    headers = {"x-death": [death(middle, "rejected"), death(name, "expired", expiration="5000")]}
    for which, queue, reason in (("first", name, "expired"), ("last", middle, "rejected")):
        facts = (("exchange", ""), ("queue", queue), ("reason", reason))
        headers |= {f"x-{which}-death-{fact}": value for fact, value in facts}
    block = without_time(taken(channel, end, eventually).properties)
    assert block == amqp.properties(headers=headers)


def test_a_rejection_on_the_way_lets_a_circle_go_on(channel, name, eventually):
    """Expired there, rejected here, and back: somebody looked at it, so it is no circle that nobody ends."""
    back = name + "-back"
    channel.declare(back, exclusive=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name, "x-message-ttl": 10})
    channel.declare(name, exclusive=True, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": back})
    channel.publish(name, "x")
    for _ in range(3):
        message = taken(channel, name, eventually, no_ack=False)
        channel.send("basic.reject", delivery_tag=message.delivery_tag, requeue=False)
    deaths = amqp.headers_of(taken(channel, name, eventually).properties)["x-death"]
    assert [(d["queue"], d["reason"], d["count"]) for d in deaths] == [(back, "expired", 3), (name, "rejected", 3)]


# ---- expirations


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "no_integer"),
        ("abc", "no_integer"),
        (" 5", "no_integer"),
        ("-1", "{value_negative,-1}"),
        ("1.5", '{leftover_string,".5"}'),
        ("5 ", '{leftover_string," "}'),
        ("0x5", '{leftover_string,"x5"}'),
        ("1e3", '{leftover_string,"e3"}'),
        ("315360000001", "{value_too_large,315360000001}"),
    ],
    ids=ascii,
)
def test_an_expiration_that_is_none_is_refused_with_its_reason(channel, name, fault_of, text, why):
    channel.publish(name, "x", block=amqp.properties(expiration=text))
    expected = f"PRECONDITION_FAILED - invalid expiration '{text}': {why}"
    assert fault_of(channel.next) == ("channel", 406, expected, "basic.publish")


@pytest.mark.parametrize("text", ["1000000", "+1000000", "01000000", "315360000000"])
def test_an_expiration_of_digits_is_taken_and_comes_back(channel, name, is_rabbitmq, text):
    """RabbitMQ writes the number anew; SealMQ gives the publisher's bytes back."""
    channel.declare(name)
    channel.publish(name, "x", block=amqp.properties(expiration=text))
    expected = str(int(text)) if is_rabbitmq else text
    assert channel.get(name).properties == amqp.properties(expiration=expected)


# ---- reply texts


def test_a_reply_text_that_is_too_long_ends_in_dots(channel, fault_of):
    name = "q" * 255
    fault = fault_of(lambda: channel.call("queue.declare", queue=name, passive=True))
    assert fault[2] == f"NOT_FOUND - no queue '{name}"[:252] + "..."


@pytest.mark.parametrize(
    "method, arguments, code",
    [
        ("queue.declare", dict(queue="{n}", passive=True), 404),
        ("queue.declare", dict(queue="amq.{n}"), 403),
        ("exchange.declare", dict(exchange="{n}", passive=True), 404),
        ("exchange.declare", dict(exchange="{n}", type="no-such-type"), 406),
        ("exchange.delete", dict(exchange="amq.direct"), 403),
        ("exchange.bind", dict(source="{n}", destination="amq.direct"), 404),
        ("queue.bind", dict(queue="{n}", exchange="amq.direct"), 404),
        ("queue.purge", dict(queue="{n}"), 404),
        ("basic.consume", dict(queue="{n}"), 404),
    ],
)
def test_a_fault_is_told_even_to_who_asked_for_no_answer(channel, name, fault_of, method, arguments, code):
    arguments = {key: value.format(n=name) if isinstance(value, str) else value for key, value in arguments.items()}
    channel.send(method, nowait=True, **arguments)
    scope, got, _, cause = fault_of(channel.next)
    assert (scope, got, cause) == ("channel", code, method)


def test_of_both_conditions_of_a_delete_the_messages_are_told_first(channel, name, fault_of):
    channel.declare(name)
    channel.call("basic.qos", prefetch_count=1)
    channel.consume(name)
    for _ in range(2):
        channel.publish(name, "x")
    channel.expect("basic.deliver")
    channel.expect_counts(name, 1, 1)
    fault = fault_of(lambda: channel.call("queue.delete", queue=name, if_unused=True, if_empty=True))
    assert fault[1:3] == (406, f"PRECONDITION_FAILED - queue '{name}' in vhost '/' not empty")


def test_an_exchange_may_be_bound_to_itself(channel, name):
    channel.call("exchange.declare", exchange=name, type="fanout")
    channel.call("exchange.bind", source=name, destination=name)
    channel.declare(name)
    channel.call("queue.bind", queue=name, exchange=name)
    channel.publish("", "x", exchange=name)
    assert channel.drain(name) == ["x"]


def test_selecting_transactions_twice_is_selecting_them_once(channel):
    channel.call("tx.select")
    channel.call("tx.select")
    channel.call("tx.commit")
    channel.call("tx.rollback")
