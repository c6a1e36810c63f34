"""Delayed messages over the ends of a broker: none confirmed is lost, none comes before its time, none that was deleted
comes back. SEED repeats a run's choices."""

import os
import random
import time

import pika
import pytest

YEARS_MS = 100 * 365 * 24 * 3600 * 1000
ROUNDS, EACH = 6, 60
DELAY_MS_MAX = 1500
SECONDS_MAX = 60


def declare(channel):
    channel.exchange_declare("later", "x-delayed-message", durable=True, arguments={"x-delayed-type": "direct"})
    channel.queue_declare("q", durable=True)
    channel.queue_bind("q", "later", "k")


def publish(channel, body, delay_ms, delivery_mode=2):
    """Returns when it is confirmed."""
    properties = pika.BasicProperties(delivery_mode=delivery_mode, headers={"x-delay": delay_ms})
    channel.basic_publish("later", "k", body, properties)


def now_ms():
    return int(time.time() * 1000)


def waiting(broker):
    """How many messages the exchange delays."""
    rows = broker.ctl("list_exchanges", "name", "messages_delayed")
    return next(row["messages_delayed"] for row in rows if row["name"] == "later")


class Watch:
    """When each message has to come at the soonest, and which have come."""

    def __init__(self):
        self.due_ms, self.early, self.seen = {}, {}, set()

    def consume(self, channel):
        channel.basic_consume("q", self.delivered)

    def delivered(self, channel, method, properties, body):
        number, at_ms = int(body.split()[0]), now_ms()
        if at_ms < self.due_ms[number]:
            self.early[number] = self.due_ms[number] - at_ms
        assert properties.headers["x-delay"] < 0
        self.seen.add(number)
        channel.basic_ack(method.delivery_tag)


def test_kill_9_loses_no_delayed_message_and_hurries_none(native):
    seed = os.environ.get("SEED") or f"{random.randrange(1 << 32):08x}"
    print(f"\nSEED={seed}")
    choice, broker, watch = random.Random(seed), native(), Watch()
    far = 0
    for number in range(ROUNDS):
        connection = broker.connect()
        channel = connection.channel()
        declare(channel)
        channel.confirm_delivery()
        watch.consume(channel)
        for n in range(number * EACH, (number + 1) * EACH):
            delay_ms = choice.randint(1, DELAY_MS_MAX)
            # The first ones are on their way already while the later ones are published.
            watch.due_ms[n] = now_ms() + delay_ms
            publish(channel, b"%d " % n + b"x" * choice.choice([0, 100, 5000, 70000]), delay_ms)
        publish(channel, b"never", YEARS_MS)
        far += 1
        # The end comes while some wait, some are being routed, and some have come.
        connection.process_data_events(choice.uniform(0, DELAY_MS_MAX / 1000))
        broker.kill()
        broker.start()
    connection = broker.connect()
    watch.consume(connection.channel())
    until = time.monotonic() + SECONDS_MAX
    while len(watch.seen) < ROUNDS * EACH:
        assert time.monotonic() < until, f"SEED={seed}: lost: {sorted(set(watch.due_ms) - watch.seen)}"
        connection.process_data_events(1)
    connection.close()
    assert not watch.early, f"SEED={seed}: by so many ms too early: {watch.early}"
    assert waiting(broker) == far


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_what_fell_due_while_the_broker_was_down_comes_at_its_start_in_order(native, how):
    broker = native()
    with broker.connect() as connection:
        channel = connection.channel()
        declare(channel)
        channel.confirm_delivery()
        start_ms = now_ms()
        # Far enough apart that publishing takes less than the difference.
        for body, delay_ms in [(b"3", 3000), (b"1", 1000), (b"2", 2000), (b"never", YEARS_MS)]:
            publish(channel, body, delay_ms)
        publish(channel, b"transient", YEARS_MS, delivery_mode=1)
        assert waiting(broker) == 5
    broker.stop() if how == "SIGTERM" else broker.kill()
    while now_ms() < start_ms + 3500:
        time.sleep(0.05)
    broker.start()
    with broker.connect() as connection:
        channel = connection.channel()
        bodies = []
        for method, _, body in channel.consume("q", inactivity_timeout=SECONDS_MAX):
            assert method, f"only {bodies} came"
            bodies.append(body)
            channel.basic_ack(method.delivery_tag)
            if len(bodies) == 3:
                break
        assert bodies == [b"1", b"2", b"3"]
    assert waiting(broker) == 1


def test_what_a_deleted_exchange_delayed_does_not_come_back(native):
    broker = native()
    with broker.connect() as connection:
        channel = connection.channel()
        declare(channel)
        channel.confirm_delivery()
        for body in (b"small", b"x" * 100_000):
            publish(channel, body, YEARS_MS)
        channel.exchange_delete("later")
    broker.kill()
    broker.start()
    assert not [row for row in broker.ctl("list_exchanges") if row["name"] == "later"]
    with broker.connect() as connection:
        declare(connection.channel())
    assert waiting(broker) == 0
