"""Deliveries that nobody acknowledges: their channel is closed in time, and others get the messages."""

import pika
import pytest

SECONDS_MAX = 30
HOUR_MS = 3_600_000


def declare(channel, queue="q", bodies=(b"one", b"two"), **arguments):
    given = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
    channel.queue_declare(queue, durable=True, arguments=given)
    channel.confirm_delivery()
    for body in bodies:
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))


def consume(channel, queue="q", **arguments):
    """A consumer that never acknowledges; what it gets."""
    got = []
    given = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
    channel.basic_consume(queue, lambda _, method, __, body: got.append(body), arguments=given)
    return got


def wait_for_the_close(connection, channel, ms):
    """The broker closes the channel, and says which timeout it used."""
    connection.call_later(SECONDS_MAX, channel.stop_consuming)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
        channel.start_consuming()
        channel.basic_qos(prefetch_count=1)
    assert closed.value.reply_code == 406
    assert closed.value.reply_text == (
        f"PRECONDITION_FAILED - delivery acknowledgement on channel {channel.channel_number} timed out. "
        f"Timeout value used: {ms} ms. This timeout value can be configured, see consumers doc guide to learn more"
    )


def redelivered(connection, queue="q"):
    channel, found = connection.channel(), []
    while (got := channel.basic_get(queue, auto_ack=True))[0]:
        found.append((got[2], got[0].redelivered))
    return found


@pytest.fixture
def connect(native):
    """Starts a broker with these settings and connects to it, without heartbeats: nothing but the timeout wakes it."""
    connections = []

    def connect(settings=""):
        broker = native(settings=settings)
        connections.append(broker.connect(heartbeat=0))
        connections[-1].logged = broker.logged
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_queues_timeout_closes_the_channel_and_gives_the_messages_back(connect, queue_type):
    connection = connect()
    channel = connection.channel()
    declare(channel, consumer_timeout=200, queue_type=queue_type)
    got = consume(channel)
    wait_for_the_close(connection, channel, 200)
    assert got == [b"one", b"two"]
    assert redelivered(connection) == [(b"one", True), (b"two", True)]
    assert connection.channel().is_open, "the connection goes on"


def test_a_consumers_timeout_wins_over_the_queues(connect):
    connection = connect()
    channel = connection.channel()
    declare(channel, consumer_timeout=HOUR_MS)
    consume(channel, consumer_timeout=200)
    wait_for_the_close(connection, channel, 200)


def test_the_configured_timeout_holds_where_nothing_else_is_said(connect):
    connection = connect("consumer_timeout = 250\n")
    channel = connection.channel()
    declare(channel)
    consume(channel)
    wait_for_the_close(connection, channel, 250)
    assert "NOT in effect" not in connection.logged()


def test_what_basic_get_took_times_out_as_well(connect):
    connection = connect()
    channel = connection.channel()
    declare(channel, consumer_timeout=200)
    assert channel.basic_get("q")[2] == b"one"
    consume(channel, consumer_timeout=HOUR_MS)
    wait_for_the_close(connection, channel, 200)


@pytest.mark.parametrize("off", ["0", "undefined"])
def test_a_consumer_without_a_timeout_outlives_one_that_has_one(connect, off):
    """The one without was there first; it still holds its message when the other is closed."""
    connection = connect(f"consumer_timeout = {off}\n")
    patient, late = connection.channel(), connection.channel()
    declare(patient, "patient", [b"kept"])
    declare(late, "late", [b"lost"], consumer_timeout=300)
    kept = consume(patient, "patient")
    patient.basic_qos()
    consume(late, "late")
    wait_for_the_close(connection, late, 300)
    assert kept == [b"kept"] and redelivered(connection, "patient") == []
    patient.basic_ack(1)
    patient.basic_qos()
    assert patient.is_open


def test_who_acknowledges_in_time_is_left_alone(connect):
    """It works for longer than its timeout, one message after another."""
    connection = connect()
    channel, late = connection.channel(), connection.channel()
    declare(channel, bodies=[b"%d" % number for number in range(100)], consumer_timeout=400)
    declare(late, "late", [b"x"], consumer_timeout=1200)
    acknowledged = []

    def work(_, method, __, body):
        connection.call_later(0.02, lambda: channel.basic_ack(method.delivery_tag))
        acknowledged.append(body)

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("q", work)
    consume(late, "late")
    wait_for_the_close(connection, late, 1200)
    assert channel.is_open and len(acknowledged) > 10
