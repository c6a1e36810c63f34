"""Arguments of queues, exchanges and consumers: each with values of the right and of the wrong type, and how two
declarations that differ are told apart. Texts word for word: they hold Erlang terms, which people search for."""

import struct

import amqp
import pytest
from amqp import Field

FIVE = {
    "byte": Field(b"b", b"\x05"),
    "unsignedbyte": Field(b"B", b"\x05"),
    "short": Field(b"s", b"\x00\x05"),
    "unsignedshort": Field(b"u", b"\x00\x05"),
    "signedint": Field(b"I", b"\x00\x00\x00\x05"),
    "unsignedint": Field(b"i", b"\x00\x00\x00\x05"),
    "long": Field(b"l", struct.pack(">q", 5)),
}
NO_INTEGERS = {
    "longstr": "5",
    "bool": True,
    "double": 5.0,
    "float": Field(b"f", struct.pack(">f", 5.0)),
    "decimal": Field(b"D", b"\x00\x00\x00\x00\x05"),
    "timestamp": Field(b"T", struct.pack(">Q", 5)),
    "binary": Field(b"x", amqp.long("5")),
    "table": {"a": 1},
    "array": [5],
    "void": None,
}
NO_STRINGS = NO_INTEGERS | {"signedint": 5}
del NO_STRINGS["longstr"]
NO_BOOLS = NO_INTEGERS | {"signedint": 1}
del NO_BOOLS["bool"]
INTEGERS = ["x-expires", "x-message-ttl", "x-max-length", "x-max-length-bytes", "x-max-priority"]


def declare(channel, name, arguments):
    return channel.call("queue.declare", queue=name, exclusive=True, arguments=arguments)


def refused(argument, name, why):
    text = f"PRECONDITION_FAILED - invalid arg '{argument}' for queue '{name}' in vhost '/': {why}"
    return "channel", 406, text, "queue.declare"


# ---- queues


@pytest.mark.parametrize("argument", INTEGERS)
@pytest.mark.parametrize("kind", FIVE)
def test_an_integer_of_every_width_is_taken(channel, name, argument, kind):
    declare(channel, name, {argument: FIVE[kind]})
    declare(channel, name, {argument: 5})


@pytest.mark.parametrize("argument", INTEGERS)
@pytest.mark.parametrize("kind", NO_INTEGERS)
def test_what_is_no_integer_is_refused(channel, name, fault_of, argument, kind):
    fault = fault_of(lambda: declare(channel, name, {argument: NO_INTEGERS[kind]}))
    assert fault == refused(argument, name, f'"expected integer, got {kind}"')


@pytest.mark.parametrize(
    "argument, value, why",
    [
        ("x-expires", -1, "{value_negative,-1}"),
        ("x-expires", 0, "{value_zero,0}"),
        ("x-expires", 315_360_000_001, "{value_too_large,315360000001}"),
        ("x-message-ttl", 315_360_000_001, "{value_too_large,315360000001}"),
        ("x-message-ttl", -(1 << 63), "{value_negative,-9223372036854775808}"),
        ("x-max-length-bytes", -1, "{value_negative,-1}"),
        ("x-max-priority", -1, "{value_negative,-1}"),
        ("x-max-priority", 256, "{max_value_exceeded,256}"),
        ("x-overflow", "other", "invalid_overflow"),
        ("x-overflow", "", "invalid_overflow"),
        ("x-queue-mode", "other", "\"unsupported queue mode 'other'\""),
        ("x-queue-version", 3, "\"unsupported queue version '3'\""),
        ("x-queue-type", "other", "\"unsupported queue type 'other'\""),
        ("x-queue-leader-locator", "other", "invalid_queue_locator_arg"),
        ("x-dead-letter-routing-key", "k", "routing_key_but_no_dlx_defined"),
    ],
)
def test_a_value_beyond_what_an_argument_takes_is_refused(channel, name, fault_of, argument, value, why):
    assert fault_of(lambda: declare(channel, name, {argument: value})) == refused(argument, name, why)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("x-expires", 315_360_000_000),
        ("x-message-ttl", 0),
        ("x-message-ttl", 315_360_000_000),
        ("x-max-length", 0),
        ("x-max-length", (1 << 63) - 1),
        ("x-max-length-bytes", 0),
        ("x-max-priority", 0),
        ("x-max-priority", 255),
        ("x-overflow", "drop-head"),
        ("x-overflow", "reject-publish-dlx"),
        ("x-single-active-consumer", False),
        ("x-queue-mode", "default"),
        ("x-queue-version", 1),
        ("x-queue-version", 2),
        ("x-queue-leader-locator", "balanced"),
        ("x-queue-leader-locator", "client-local"),
        ("x-queue-master-locator", "min-masters"),
    ],
)
def test_the_outermost_values_are_taken(channel, name, argument, value):
    """RabbitMQ 4.3 takes neither lazy modes nor version 1 any more; SealMQ takes and ignores both."""
    declare(channel, name, {argument: value})


@pytest.mark.parametrize("argument", ["x-overflow", "x-queue-mode", "x-queue-type", "x-queue-leader-locator"])
@pytest.mark.parametrize("kind", NO_STRINGS)
def test_what_is_no_string_is_refused(channel, name, fault_of, argument, kind):
    fault = fault_of(lambda: declare(channel, name, {argument: NO_STRINGS[kind]}))
    assert fault == refused(argument, name, f"{{unacceptable_type,{kind}}}")


@pytest.mark.parametrize("kind", NO_STRINGS)
def test_a_dead_letter_key_that_is_no_string_is_refused(channel, name, fault_of, kind):
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": NO_STRINGS[kind]}
    fault = fault_of(lambda: declare(channel, name, arguments))
    assert fault == refused("x-dead-letter-routing-key", name, f"{{unacceptable_type,{kind}}}")


@pytest.mark.parametrize("kind", NO_STRINGS)
def test_a_dead_letter_exchange_that_is_no_string_is_refused(channel, name, fault_of, kind):
    fault = fault_of(lambda: declare(channel, name, {"x-dead-letter-exchange": NO_STRINGS[kind]}))
    text = f"PRECONDITION_FAILED - invalid type '{kind}' for arg 'x-dead-letter-exchange' in queue '{name}' in vhost '/'"
    assert fault == ("channel", 406, text, "queue.declare")


@pytest.mark.parametrize("kind", NO_BOOLS)
def test_what_is_no_bool_is_refused(channel, name, fault_of, kind):
    fault = fault_of(lambda: declare(channel, name, {"x-single-active-consumer": NO_BOOLS[kind]}))
    assert fault == refused("x-single-active-consumer", name, f"{{unacceptable_type,{kind}}}")


def test_the_first_of_two_faults_is_told(channel, name, fault_of):
    fault = fault_of(lambda: declare(channel, name, {"x-message-ttl": -1, "x-expires": 0}))
    assert fault == refused("x-expires", name, "{value_zero,0}")


# ---- declared again


@pytest.mark.parametrize(
    "argument, first, second",
    [
        ("x-message-ttl", 5, Field(b"l", struct.pack(">q", 5))),
        ("x-message-ttl", 5, Field(b"B", b"\x05")),
        ("x-message-ttl", 5, Field(b"T", struct.pack(">Q", 5))),
        ("x-dead-letter-exchange", "x", Field(b"x", amqp.long("x"))),
    ],
)
def test_equal_values_of_another_type_are_equivalent(channel, name, argument, first, second):
    declare(channel, name, {argument: first})
    declare(channel, name, {argument: second})


SHOWN = {
    "longstr": ("text", "text"),
    "signedint": (6, "6"),
    "long": (1 << 40, "1099511627776"),
    "bool": (True, "true"),
    "double": (1.5, "1.5"),
    "timestamp": (Field(b"T", struct.pack(">Q", 7)), "7"),
    "binary": (Field(b"x", amqp.long("b")), "b"),
    "table": ({"a": 1}, '[{<<"a">>,signedint,1}]'),
    "array": ([1, "x", []], '[{signedint,1},{longstr,<<"x">>},{array,[]}]'),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_another_value_of_any_type_is_shown(channel, name, fault_of, kind):
    value, shown = SHOWN[kind]
    declare(channel, name, {"x-message-ttl": 5})
    fault = fault_of(lambda: declare(channel, name, {"x-message-ttl": value}))
    text = f"inequivalent arg 'x-message-ttl' for queue '{name}' in vhost '/': received '{shown}' but current is '5'"
    assert fault == ("channel", 406, f"PRECONDITION_FAILED - {text}", "queue.declare")


@pytest.mark.parametrize("kind", [*SHOWN, "void"])
def test_an_added_value_of_any_type_is_shown_with_its_type(channel, name, fault_of, kind):
    value, shown = {**SHOWN, "void": (None, "undefined")}[kind]
    declare(channel, name, {})
    fault = fault_of(lambda: declare(channel, name, {"x-message-ttl": value}))
    text = f"received the value '{shown}' of type '{kind}' but current is none"
    text = f"PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue '{name}' in vhost '/': {text}"
    # A reply text has 255 bytes at most; what is longer ends in three dots.
    assert fault[2] == (text if len(text) <= 255 else text[:252] + "...")


def test_a_value_of_nothing_is_shown_as_none(channel, name, fault_of):
    declare(channel, name, {"x-message-ttl": 5})
    fault = fault_of(lambda: declare(channel, name, {"x-message-ttl": None}))
    text = f"inequivalent arg 'x-message-ttl' for queue '{name}' in vhost '/': received none but current is '5'"
    assert fault[1:3] == (406, f"PRECONDITION_FAILED - {text}")


def test_saying_the_default_type_is_saying_nothing(channel, name):
    declare(channel, name, {})
    declare(channel, name, {"x-queue-type": "classic"})


def test_another_type_of_queue_is_inequivalent(channel, name, fault_of):
    channel.call("queue.declare", queue=name, durable=True)
    again = dict(queue=name, durable=True, arguments={"x-queue-type": "quorum"})
    text = f"inequivalent arg 'x-queue-type' for queue '{name}' in vhost '/': received 'quorum' but current is 'classic'"
    assert fault_of(lambda: channel.call("queue.declare", **again))[1:3] == (406, f"PRECONDITION_FAILED - {text}")


# ---- exchanges


@pytest.mark.parametrize("kind", NO_STRINGS)
def test_an_alternate_exchange_that_is_no_string_is_refused(channel, name, fault_of, kind):
    arguments = {"alternate-exchange": NO_STRINGS[kind]}
    fault = fault_of(lambda: channel.call("exchange.declare", exchange=name, type="direct", arguments=arguments))
    text = f"invalid type '{kind}' for arg 'alternate-exchange' in exchange '{name}' in vhost '/'"
    assert fault == ("channel", 406, f"PRECONDITION_FAILED - {text}", "exchange.declare")


@pytest.mark.parametrize("kind", SHOWN)
def test_another_alternate_exchange_of_any_type_is_shown(channel, name, fault_of, kind):
    declare_exchange = lambda value: channel.call(  # noqa: E731
        "exchange.declare", exchange=name, type="direct", arguments={"alternate-exchange": value}
    )
    declare_exchange("a")
    value, shown = SHOWN[kind]
    text = f"inequivalent arg 'alternate-exchange' for exchange '{name}' in vhost '/': received '{shown}' but current is 'a'"
    assert fault_of(lambda: declare_exchange(value))[1:3] == (406, f"PRECONDITION_FAILED - {text}")


# ---- bindings


@pytest.mark.parametrize(
    "value, shown",
    [
        ("\u00e9", '<<"\u00e9"/utf8>>'),
        ("a\nb", '<<"a\\nb">>'),
        ('a"b', '<<"a\\"b">>'),
        (b"\xff\x00", "<<255,0>>"),
        ("", "<<>>"),
    ],
    ids=ascii,
)
def test_an_x_match_that_there_is_not_is_shown_as_an_erlang_term(channel, name, fault_of, value, shown):
    channel.call("exchange.declare", exchange=name, type="headers")
    channel.declare(name)
    fault = fault_of(lambda: channel.call("queue.bind", queue=name, exchange=name, arguments={"x-match": value}))
    text = f"Invalid x-match field value {shown}; expected all, any, all-with-x, or any-with-x"
    assert fault == ("channel", 406, f"PRECONDITION_FAILED - {text}", "queue.bind")


def test_a_large_number_has_a_point_before_its_exponent(channel, name, fault_of):
    channel.call("exchange.declare", exchange=name, type="headers")
    channel.declare(name)
    fault = fault_of(lambda: channel.call("queue.bind", queue=name, exchange=name, arguments={"x-match": 1e30}))
    assert fault[2] == "PRECONDITION_FAILED - Invalid x-match field type double (value 1.0e30); expected longstr"


# ---- consumers


@pytest.mark.parametrize("kind", FIVE)
def test_a_consumers_priority_may_be_an_integer_of_every_width(channel, name, kind):
    channel.declare(name)
    channel.consume(name, arguments={"x-priority": FIVE[kind]})


@pytest.mark.parametrize("argument", ["x-stream-offset", "x-stream-filter", "x-stream-match-unfiltered"])
def test_a_streams_argument_is_refused_by_a_classic_queue(channel, name, fault_of, argument):
    channel.declare(name)
    fault = fault_of(lambda: channel.consume(name, arguments={argument: "first"}))
    text = f"invalid arg '{argument}' for queue '{name}' in vhost '/' of queue type rabbit_classic_queue"
    assert fault == ("channel", 406, f"PRECONDITION_FAILED - {text}", "basic.consume")


def test_an_unknown_argument_of_a_consumer_is_ignored(channel, name):
    channel.declare(name)
    channel.consume(name, arguments={"x-cancel-on-ha-failover": True, "x-unknown-to-all": "anything"})
