"""What a restart leaves of dead letters that nobody has taken yet (`x-dead-letter-strategy` at-least-once)."""

import time

import pytest

ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-dead-letter-exchange": "dlx",
}


def open_queue(connection):
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("q", durable=True, arguments=ARGUMENTS)
    return channel


def get(channel, queue):
    return channel.basic_get(queue, auto_ack=True)[2]


def arrivals(channel, queue, count):
    """The next messages of a queue, waited for."""
    found, limit = [], time.monotonic() + 15
    while len(found) < count:
        assert time.monotonic() < limit, f"only {found} came"
        found += filter(None, [get(channel, queue)])
    return found


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
@pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])
def test_kept_letters_survive_and_are_not_delivered_again(native, how, mode):
    broker = native(at_rest=mode)
    with broker.connect() as connection:
        channel = open_queue(connection)
        for body in [b"1", b"2" * 10_000]:
            channel.basic_publish("", "q", body)
            channel.basic_reject(channel.basic_get("q")[0].delivery_tag, requeue=False)
        channel.basic_publish("", "q", b"ready")  # its confirm shows that the deaths are on the disk
    for _ in range(2):
        broker.stop() if how == "SIGTERM" else broker.kill()
        broker.start()
    with broker.connect() as connection:
        channel = open_queue(connection)
        assert channel.queue_declare("q", passive=True).method.message_count == 1
        channel.exchange_declare("dlx", "fanout", durable=True)
        channel.queue_declare("dead", durable=True)
        channel.queue_bind("dead", "dlx")
        assert arrivals(channel, "dead", 2) == [b"1", b"2" * 10_000]
        assert (get(channel, "q"), get(channel, "q"), get(channel, "dead")) == (b"ready", None, None)
