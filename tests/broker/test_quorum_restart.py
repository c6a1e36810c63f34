"""What a restart leaves of a quorum queue's delivery counts."""

import pytest

both_ends = pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])


def restart(broker, how):
    broker.stop() if how == "SIGTERM" else broker.kill()
    broker.start()


def open_queue(connection, **arguments):
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum", **arguments})
    return channel


def publish(channel, body):
    """Returns when it is on the disk, and so is all that came before it."""
    channel.basic_publish("", "q", body)


def counts(channel):
    """Body and delivery count of all that is ready; stays unacknowledged."""
    found = {}
    while (got := channel.basic_get("q"))[0]:
        _, properties, body = got
        found[body] = (properties.headers or {}).get("x-delivery-count", 0)
    return found


@both_ends
@pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])
def test_delivery_counts_go_on_after_a_restart(native, how, mode):
    broker = native(at_rest=mode)
    with broker.connect() as connection:
        channel = open_queue(connection)
        for body in [b"poison", b"fine"]:
            publish(channel, body)
        for _ in range(3):
            channel.basic_nack(channel.basic_get("q")[0].delivery_tag, requeue=True)
        publish(channel, b"later")
    restart(broker, how)
    with broker.connect() as connection:
        channel = open_queue(connection)
        assert counts(channel) == {b"poison": 3, b"fine": 0, b"later": 0}
        channel.basic_nack(0, multiple=True, requeue=True)
        assert counts(channel) == {b"poison": 4, b"fine": 1, b"later": 1}


def test_what_a_consumer_holds_when_the_broker_is_stopped_is_counted(native):
    broker = native()
    with broker.connect() as connection:
        publish(open_queue(connection), b"x")
    connection = broker.connect()
    assert counts(open_queue(connection)) == {b"x": 0}
    broker.stop()
    broker.start()
    with broker.connect() as connection:
        assert counts(open_queue(connection)) == {b"x": 1}


@both_ends
def test_restarts_do_not_help_a_poison_message_over_its_limit(native, how):
    broker = native()
    with broker.connect() as connection:
        publish(open_queue(connection, **{"x-delivery-limit": 2}), b"poison")
    for deliveries in range(3):
        with broker.connect() as connection:
            channel = open_queue(connection, **{"x-delivery-limit": 2})
            assert counts(channel) == {b"poison": deliveries}
            channel.basic_nack(0, multiple=True, requeue=True)
            channel.queue_declare("other", durable=True)  # its answer shows that the count is on the disk
        restart(broker, how)
    with broker.connect() as connection:
        assert counts(open_queue(connection, **{"x-delivery-limit": 2})) == {}


def test_a_deleted_queue_leaves_no_counts_for_its_successor(native):
    broker = native()
    with broker.connect() as connection:
        channel = open_queue(connection)
        publish(channel, b"old")
        channel.basic_nack(channel.basic_get("q")[0].delivery_tag, requeue=True)
        channel.queue_delete("q")
        publish(open_queue(connection), b"new")
    restart(broker, "kill -9")
    with broker.connect() as connection:
        assert counts(open_queue(connection)) == {b"new": 0}
