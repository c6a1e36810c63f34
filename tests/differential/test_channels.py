"""Channels and channel 0: opening, closing, using again, limits, and methods where they do not belong. Heartbeats."""

import time

import amqp
import pytest


@pytest.mark.parametrize("number", [1, 2, 100, 2047])
def test_a_channel_of_any_number_opens(connect, number):
    ch = connect().channel(number)
    assert ch.counts(ch.declare()) == (0, 0)


def test_open_ok_has_an_empty_channel_id(connect):
    assert connect().call(1, "channel.open").channel_id == ""


@pytest.mark.parametrize("limit", [1, 2, 10])
def test_a_channel_too_many_closes_the_connection(connect, limit):
    connection = connect(channel_max=limit)
    for number in range(1, limit + 1):
        connection.channel(number)
    text = rf"number of channels opened \({limit}\) has reached the negotiated channel_max \({limit}\)"
    with pytest.raises(amqp.Closed, match="connection 530 NOT_ALLOWED - " + text):
        connection.channel(limit + 1)


def test_a_channel_number_beyond_the_limit(connect, is_rabbitmq):
    """RabbitMQ counts the channels only; for SealMQ the limit is the highest number as well, as in the
    specification (1.4.2.6.1), so that numbers can be an array's index."""
    connection = connect(channel_max=10)
    if is_rabbitmq:
        connection.channel(11)
        return
    with pytest.raises(amqp.Closed, match="connection 530 NOT_ALLOWED"):
        connection.channel(11)


@pytest.mark.parametrize(
    "method", ["queue.declare", "basic.qos", "basic.ack", "confirm.select", "channel.close", "channel.close-ok", "channel.flow"]
)
def test_a_method_on_a_channel_that_is_not_open(connect, fault_of, method):
    connection = connect()
    connection.channel(1)
    connection.send(2, method)
    assert fault_of(lambda: connection.next(2)) == ("connection", 504, "CHANNEL_ERROR - expected 'channel.open'", method)


@pytest.mark.parametrize(
    "method",
    ["channel.open", "channel.close", "queue.declare", "basic.qos", "connection.open", "connection.start-ok", "connection.tune-ok", "connection.start"],
)
def test_a_method_that_does_not_belong_on_channel_0(connect, fault_of, method):
    connection = connect()
    connection.send(0, method)
    text = "CHANNEL_ERROR - unexpected method in connection state running"
    assert fault_of(lambda: connection.next(0)) == ("connection", 504, text, method)


@pytest.mark.parametrize(
    "method",
    [
        "connection.start-ok",
        "connection.open",
        "connection.close",
        "connection.close-ok",
        "channel.close-ok",
        "channel.flow-ok",
        "basic.cancel-ok",
        "basic.qos-ok",
        "basic.recover-ok",
        "queue.bind-ok",
        "exchange.bind-ok",
    ],
)
def test_a_method_that_no_client_sends_on_a_channel(connect, fault_of, method):
    connection = connect()
    connection.channel(1)
    connection.send(1, method)
    assert fault_of(lambda: connection.next(1)) == ("connection", 503, "COMMAND_INVALID - unimplemented method", method)


def test_a_closed_channel_may_be_opened_again(connect):
    connection = connect()
    for _ in range(5):
        ch = connection.channel(1)
        ch.declare()
        ch.call("channel.close", reply_code=200)


def test_a_closed_channel_is_not_open(connect, fault_of):
    ch = connect().channel()
    ch.call("channel.close")
    assert fault_of(lambda: ch.call("basic.qos"))[:2] == ("connection", 504)


def test_a_channel_that_is_opened_again_begins_anew(connect, name, fault_of):
    """Delivery tags, consumer tags, the queue declared last and confirm mode are the channel's."""
    connection = connect()
    ch = connection.channel(1)
    ch.declare(name)
    ch.call("confirm.select")
    ch.consume(name, consumer_tag="t")
    ch.publish(name, "a")
    got = {method.name for method in (ch.next(), ch.next())}
    assert got == {"basic.ack", "basic.deliver"}
    ch.call("channel.close")
    ch = connection.channel(1)
    ch.consume(name, consumer_tag="t")
    delivery = ch.expect("basic.deliver", delivery_tag=1, redelivered=True)
    assert delivery.body == b"a"
    ch.publish(name, "b")
    ch.expect("basic.deliver", delivery_tag=2, redelivered=False)
    assert fault_of(lambda: ch.consume(""))[1:3] == (404, "NOT_FOUND - no previously declared queue")


def test_after_a_fault_the_channel_waits_for_close_ok(connect, name):
    connection = connect()
    ch = connection.channel(1)
    ch.declare(name)
    ch.send("queue.declare", queue=name + "-missing", passive=True)
    ch.publish(name, "lost")
    close = connection.receive()
    assert (close.name, close.reply_code, close.class_id, close.method_id) == ("channel.close", 404, 50, 10)
    ch.send("basic.qos")
    ch.publish(name, "lost as well")
    ch.send("channel.close-ok")
    again = connection.channel(1)
    again.expect_counts(name, 0, 0)


def test_a_close_that_crosses_ours_is_answered(connect, name):
    connection = connect()
    ch = connection.channel(1)
    ch.send("queue.declare", queue=name, passive=True)
    ch.send("channel.close")
    assert connection.receive().name == "channel.close"
    assert connection.receive().name == "channel.close-ok"
    ch.send("channel.close-ok")


def test_flow_on_is_answered(channel):
    assert channel.call("channel.flow", active=True).active is True


def test_a_hundred_channels_work_side_by_side(connect, name):
    connection = connect()
    channels = [connection.channel(number) for number in range(1, 101)]
    channels[0].declare(name)
    for number, ch in enumerate(channels):
        ch.publish(name, str(number))
        ch.call("basic.qos")
    assert sorted(channels[50].drain(name), key=int) == [str(number) for number in range(100)]


# ---- heartbeats


def test_the_server_sends_heartbeats(connect):
    connection = connect(heartbeat=1)
    deadline = time.monotonic() + 10
    beats = 0
    while beats < 3:
        kind, number, payload = connection.read_frame()
        assert (kind, number, payload) == (amqp.HEARTBEAT, 0, b"")
        connection.send_bytes(amqp.frame(amqp.HEARTBEAT, 0, b""))
        beats += 1
        assert time.monotonic() < deadline


def test_a_client_that_goes_silent_is_cut_off(connect):
    connection = connect(heartbeat=1)
    before = time.monotonic()
    connection.read_to_end()
    assert 1 < time.monotonic() - before < 8


def test_without_heartbeats_silence_is_taken(connect, name):
    connection = connect(heartbeat=0)
    ch = connection.channel()
    connection.socket.settimeout(3)
    with pytest.raises(TimeoutError):
        connection.read_frame(3)
    ch.declare(name)


def test_any_frame_counts_as_a_heartbeat(connect, name):
    connection = connect(heartbeat=1)
    ch = connection.channel()
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        ch.call("basic.qos")
        time.sleep(0.2)  # the pace of a client at work, not a wait


def test_what_a_silent_client_held_goes_to_another(connect, name):
    silent = connect(heartbeat=1).channel()
    other = connect().channel()
    other.declare(name, durable=True)
    other.publish(name, "x")
    other.expect_counts(name, 1, 0)
    assert silent.get(name, no_ack=False).body == b"x"
    other.consume(name)
    assert other.expect("basic.deliver", redelivered=True).body == b"x"
