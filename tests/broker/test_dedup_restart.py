"""What a restart leaves of deduplication: a queue knows its messages again, an exchange has seen nothing."""

import pika
import pytest

both_ends = pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
ON = {"x-message-deduplication": True}


def restart(broker, how):
    broker.stop() if how == "SIGTERM" else broker.kill()
    broker.start()


def publish(channel, exchange, key, body, value):
    properties = pika.BasicProperties(delivery_mode=2, headers={"x-deduplication-header": value})
    channel.basic_publish(exchange, key, body, properties)


def confirming(connection):
    channel = connection.channel()
    channel.confirm_delivery()
    return channel


def drain(channel, queue):
    bodies = []
    while (got := channel.basic_get(queue, auto_ack=True))[0]:
        bodies.append(got[2])
    return bodies


@both_ends
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_queue_still_knows_what_is_in_it(native, how, kind):
    broker = native()
    with broker.connect() as connection:
        channel = confirming(connection)
        channel.queue_declare("q", durable=True, arguments={**ON, "x-queue-type": kind})
        publish(channel, "", "q", b"gone", "consumed before")
        assert channel.basic_get("q", auto_ack=True)[2] == b"gone"
        publish(channel, "", "q", b"first", "kept")
        publish(channel, "", "q", b"duplicate", "kept")
    restart(broker, how)
    with broker.connect() as connection:
        channel = confirming(connection)
        publish(channel, "", "q", b"duplicate", "kept")
        publish(channel, "", "q", b"new", "consumed before")
        assert drain(channel, "q") == [b"first", b"new"]
        publish(channel, "", "q", b"again", "kept")
        assert drain(channel, "q") == [b"again"]


@both_ends
@pytest.mark.parametrize("persistence", ["memory", "disk"])
def test_an_exchange_stays_what_it_is_and_begins_anew(native, how, persistence):
    """A cache is in memory, also where `disk` is asked for: a duplicate across a restart comes through."""
    broker = native()
    arguments = {"x-cache-size": 10, "x-cache-persistence": persistence}
    with broker.connect() as connection:
        channel = confirming(connection)
        channel.exchange_declare("x", "x-message-deduplication", durable=True, arguments=arguments)
        channel.queue_declare("q", durable=True)
        channel.queue_bind("q", "x")
        publish(channel, "x", "", b"a", 1)
    restart(broker, how)
    with broker.connect() as connection:
        channel = confirming(connection)
        channel.exchange_declare("x", "x-message-deduplication", durable=True, arguments=arguments)
        for body in [b"b", b"c"]:
            publish(channel, "x", "", body, 1)
        assert drain(channel, "q") == [b"a", b"b"]
