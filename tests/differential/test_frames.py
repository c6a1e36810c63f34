"""Frames that are wrong, and frames that are odd and right. Codes are RabbitMQ's; its texts for frame errors are
Erlang terms with the bytes in them, which SealMQ does not repeat: a payload has no place in a log."""

import struct

import amqp
import pytest
from amqp import BODY, HEADER, HEARTBEAT, METHOD, content_header, encode_method, frame

PUBLISH = frame(METHOD, 1, encode_method("basic.publish", routing_key="nowhere"))
QOS = encode_method("basic.qos")
NOT_A_METHOD = "UNEXPECTED_FRAME - expected method frame, got non method frame instead"
NO_HEADER = "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead"
NO_BODY = "UNEXPECTED_FRAME - expected content body, got non content body frame instead"

# What is sent on a connection whose channel 1 is open: code, text (None: any), blamed method.
FAULTS = {
    "a wrong end octet": (frame(METHOD, 1, QOS, end=b"\x00"), 501, None, "none"),
    "an end octet one byte late": (frame(METHOD, 1, QOS, end=b"\x00\xce"), 501, None, "none"),
    "frame type 0": (frame(0, 1, b""), 501, None, "none"),
    "frame type 4": (frame(4, 1, b""), 501, None, "none"),
    "frame type 5 on channel 0": (frame(5, 0, b"abc"), 501, None, "none"),
    "frame type 255": (frame(255, 1, b"abc"), 501, None, "none"),
    "a heartbeat on channel 1": (frame(HEARTBEAT, 1, b""), 505, None, "none"),
    "a heartbeat with a payload": (frame(HEARTBEAT, 0, b"abc"), 501, None, "none"),
    "a method of two bytes": (frame(METHOD, 1, b"\x00\x32"), 501, None, "none"),
    "a method of no bytes": (frame(METHOD, 1, b""), 501, None, "none"),
    "a method that ends early": (
        frame(METHOD, 1, struct.pack(">HH", 50, 10) + b"\x00\x00\x05ab"), 501, None, "queue.declare"),
    "a method with bytes left over": (
        frame(METHOD, 1, encode_method("queue.purge", queue="x") + b"z"), 501, None, "queue.purge"),
    "a header on channel 0": (content_header(0, 5), 505, None, "none"),
    "a body on channel 0": (frame(BODY, 0, b"abc"), 505, None, "none"),
    "a header without a publish": (content_header(1, 5), 505, NOT_A_METHOD, "none"),
    "a body without a publish": (frame(BODY, 1, b"abc"), 505, NOT_A_METHOD, "none"),
    "a header on a channel that is not open": (content_header(2, 5), 505, NOT_A_METHOD, "none"),
    "a body on a channel that is not open": (frame(BODY, 2, b"abc"), 505, NOT_A_METHOD, "none"),
    "a method for the header": (PUBLISH + frame(METHOD, 1, QOS), 505, NO_HEADER, "basic.publish"),
    "a publish for the header": (PUBLISH + PUBLISH, 505, NO_HEADER, "basic.publish"),
    "a body for the header": (PUBLISH + frame(BODY, 1, b"abc"), 505, NO_HEADER, "basic.publish"),
    "a method for the body": (PUBLISH + content_header(1, 5) + frame(METHOD, 1, QOS), 505, NO_BODY, "basic.publish"),
    "a method in the body": (
        PUBLISH + content_header(1, 5) + frame(BODY, 1, b"abc") + frame(METHOD, 1, QOS), 505, NO_BODY, "basic.publish"),
    "a header for the body": (PUBLISH + content_header(1, 5) + content_header(1, 5), 505, NO_BODY, "basic.publish"),
    "a header of another class": (
        PUBLISH + content_header(1, 0, class_id=50), 505,
        "UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead", "basic.publish"),
    "a header with a weight": (PUBLISH + content_header(1, 0, weight=1), 505, None, "basic.publish"),
    "a header of four bytes": (PUBLISH + frame(HEADER, 1, b"\x00\x3c\x00\x00"), 501, None, None),
    "a frame of 9 bytes over the limit": (struct.pack(">BHI", BODY, 1, 131073), 501, None, "none"),
    "a frame of 4 GiB": (struct.pack(">BHI", METHOD, 1, 0xFFFFFFFF), 501, None, "none"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_wrong_frame_closes_the_connection(connect, fault_of, case):
    sent, code, text, cause = FAULTS[case]
    connection = connect()
    connection.channel()
    connection.send_bytes(sent)
    scope, got_code, got_text, got_cause = fault_of(lambda: connection.next(1))
    assert (scope, got_code) == ("connection", code)
    assert got_text == text or text is None
    assert got_cause == cause or cause is None


UNREADABLE = {
    "an unknown class": frame(METHOD, 1, struct.pack(">HH", 99, 1)),
    "an unknown method": frame(METHOD, 1, struct.pack(">HH", 60, 99)),
    "an unknown method on channel 0": frame(METHOD, 0, struct.pack(">HH", 10, 99)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unknown_method_ends_the_connection(connect, is_rabbitmq, case):
    """RabbitMQ's reader crashes and the socket is reset; SealMQ closes with the code that the specification has."""
    connection = connect()
    connection.channel()
    connection.send_bytes(UNREADABLE[case])
    if is_rabbitmq:
        with pytest.raises(amqp.Gone):
            connection.next(1)
        return
    with pytest.raises(amqp.Closed, match="connection 540 NOT_IMPLEMENTED"):
        connection.next(1)


BAD_TABLE = b"\x01aU\x00"
CUT_TABLE = b"\x01aI\x00"
BAD_PROPERTIES = {
    "a property that ends early": b"\x80\x00\x05ab",
    "bytes left over": b"\x00\x00x",
    "a second flag word": b"\x00\x01\x00\x00",
    "no flags": b"",
    "a header table with an unknown type": struct.pack(">H", 0x2000) + amqp.long(BAD_TABLE),
    "a header table that ends early": struct.pack(">H", 0x2000) + amqp.long(CUT_TABLE),
}


@pytest.mark.parametrize("case", BAD_PROPERTIES)
def test_properties_that_cannot_be_read_close_the_connection(connect, is_rabbitmq, case):
    """541 from RabbitMQ, whose channel crashes; 502 from SealMQ, which is what the specification has for it."""
    connection = connect()
    connection.channel()
    connection.send_bytes(PUBLISH + content_header(1, 0, BAD_PROPERTIES[case]))
    with pytest.raises(amqp.Closed) as info:
        connection.next(1)
    assert info.value.scope == "connection"
    assert info.value.code in ((541, 501) if is_rabbitmq else (502, 501))


@pytest.mark.parametrize("table", [BAD_TABLE, CUT_TABLE, b"\x05ab", b"\x01aS\xff\xff\xff\xff"])
def test_an_argument_table_that_cannot_be_read_ends_the_connection(connect, is_rabbitmq, name, table):
    """RabbitMQ's reader crashes on it; SealMQ says 502."""
    connection = connect()
    connection.channel()
    connection.send(1, "queue.declare", queue=name, exclusive=True, arguments=table)
    with pytest.raises((amqp.Closed, amqp.Gone)) as info:
        connection.next(1)
    assert is_rabbitmq or info.value.code == 502


def test_a_body_longer_than_its_header_says(connect, is_rabbitmq):
    """RabbitMQ waits for more of it until the connection ends; SealMQ says 501, as the specification asks."""
    connection = connect()
    connection.channel()
    connection.send_bytes(PUBLISH + content_header(1, 2) + frame(BODY, 1, b"abc"))
    if is_rabbitmq:
        pytest.skip("RabbitMQ never answers")
    with pytest.raises(amqp.Closed, match="connection 501 FRAME_ERROR"):
        connection.next(1)


def test_a_frame_too_large_is_answered_even_while_its_rest_is_still_coming(connect):
    connection = connect()
    connection.channel()
    connection.send_bytes(PUBLISH + content_header(1, 200000) + frame(BODY, 1, bytes(200000)))
    with pytest.raises(amqp.Closed, match="connection 501 FRAME_ERROR"):
        connection.next(1)


# ---- odd, but right


def served(connection, name):
    ch = amqp.Channel(connection, 1)
    assert ch.declare(name) == name


@pytest.mark.parametrize("size", [1, 131063, 131064, 131065, 131072])
def test_a_body_frame_of_that_size_is_taken(connect, name, size):
    """131064 bytes fill a frame of 131072; RabbitMQ lets a payload run eight bytes over."""
    connection = connect()
    ch = connection.channel()
    ch.declare(name)
    method = frame(METHOD, 1, encode_method("basic.publish", routing_key=name))
    connection.send_bytes(method + content_header(1, size) + frame(BODY, 1, b"x" * size))
    assert len(ch.get(name).body) == size


def test_empty_body_frames_are_skipped(connect, name):
    connection = connect()
    ch = connection.channel()
    ch.declare(name)
    method = frame(METHOD, 1, encode_method("basic.publish", routing_key=name))
    body = frame(BODY, 1, b"") + frame(BODY, 1, b"a") + frame(BODY, 1, b"") + frame(BODY, 1, b"b")
    connection.send_bytes(method + content_header(1, 2) + body)
    assert ch.get(name).body == b"ab"


def test_a_body_in_frames_of_one_byte(connect, name):
    connection = connect()
    ch = connection.channel()
    ch.declare(name)
    body = bytes(range(256))
    frames = b"".join(frame(BODY, 1, body[at : at + 1]) for at in range(256))
    method = frame(METHOD, 1, encode_method("basic.publish", routing_key=name))
    connection.send_bytes(method + content_header(1, 256) + frames)
    assert ch.get(name).body == body


def test_publishes_of_two_channels_may_be_interleaved(connect, name):
    connection = connect()
    one, two = connection.channel(1), connection.channel(2)
    one.declare(name)
    frames = []
    for number, letter in ((1, b"a"), (2, b"b")):
        method = frame(METHOD, number, encode_method("basic.publish", routing_key=name))
        frames.append([method, content_header(number, 4), frame(BODY, number, letter * 2), frame(BODY, number, letter * 2)])
    connection.send_bytes(b"".join(a + b for a, b in zip(*frames)))
    two.call("basic.qos")
    assert sorted(one.drain(name)) == ["aaaa", "bbbb"]


def test_heartbeats_may_stand_between_the_frames_of_a_publish(connect, name):
    connection = connect()
    ch = connection.channel()
    ch.declare(name)
    beat = frame(HEARTBEAT, 0, b"")
    method = frame(METHOD, 1, encode_method("basic.publish", routing_key=name))
    connection.send_bytes(beat.join([b"", method, content_header(1, 2), frame(BODY, 1, b"a"), frame(BODY, 1, b"b"), b""]))
    assert ch.get(name).body == b"ab"


def test_a_publish_that_comes_byte_by_byte(connect, name):
    connection = connect()
    ch = connection.channel()
    ch.declare(name)
    method = frame(METHOD, 1, encode_method("basic.publish", routing_key=name))
    for byte in method + content_header(1, 2) + frame(BODY, 1, b"ab"):
        connection.send_bytes(bytes([byte]))
    assert ch.get(name).body == b"ab"


@pytest.mark.parametrize("frame_max", [4096, 8192, 131072])
@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 8184, 100000, 1 << 20])
def test_a_delivery_is_cut_into_frames_of_the_consumers_size(connect, name, frame_max, size):
    connection = connect(frame_max=frame_max)
    ch = connection.channel()
    ch.declare(name)
    body = bytes(at * 7 % 251 for at in range(size))
    connect().channel()  # another connection with larger frames must not matter
    method = frame(METHOD, 1, encode_method("basic.publish", routing_key=name))
    step = frame_max - 8
    frames = b"".join(frame(BODY, 1, body[at : at + step]) for at in range(0, size, step))
    connection.send_bytes(method + content_header(1, size) + frames)
    ch.consume(name, no_ack=True)
    assert ch.expect("basic.deliver").body == body
    assert sum(connection.body_frames) == size
    assert max(connection.body_frames, default=0) <= frame_max - 8


def test_the_reserved_ticket_is_ignored(connect, name):
    ch = connect().channel()
    ch.call("queue.declare", queue=name, exclusive=True, ticket=65535)
    ch.call("basic.get", queue=name, ticket=1)


def test_access_request_gets_ticket_1(connect):
    ch = connect().channel()
    assert ch.call("access.request", realm="/data", active=True).ticket == 1
