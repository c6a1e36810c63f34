"""amqpstorm: a thread-safe blocking client, its confirms, transactions, exchanges and exceptions."""

import ssl
import threading

import amqpstorm
import pytest


@pytest.fixture
def client(broker):
    opened = []

    def client(**changes):
        tls = {"context": broker.context(changes.pop("ca", None)), "server_hostname": broker.host}
        options = {"port": broker.port, "ssl": True, "ssl_options": tls, "timeout": 20, **changes}
        opened.append(amqpstorm.Connection(broker.host, broker.user, broker.password, **options))
        return opened[-1]

    yield client
    for connection in opened:
        connection.close()


@pytest.fixture
def queue(client, name):
    channel = client().channel()
    channel.queue.declare(name, durable=True)
    yield name
    channel.queue.delete(name)


def test_a_certificate_of_another_ca_is_refused(client, stranger_ca):
    with pytest.raises((amqpstorm.AMQPConnectionError, ssl.SSLCertVerificationError), match="CERTIFICATE_VERIFY_FAILED"):
        client(ca=stranger_ca)


def test_confirmed_messages_arrive_once_in_order_and_whole(client, queue):
    producer, consumer = client().channel(), client().channel()
    producer.confirm_deliveries()
    for number in range(300):
        properties = {"headers": {"number": number, "text": "x" * (number % 50)}, "delivery_mode": 2, "message_id": str(number)}
        assert producer.basic.publish(bytes([number % 256]) * (number * 7), queue, properties=properties, mandatory=True)
    consumer.basic.qos(50)
    got = []

    def on_message(message):
        got.append((message.message_id, message.properties["headers"]["number"], message.body, message.redelivered))
        message.ack()
        if len(got) == 300:
            consumer.stop_consuming()

    # The body as it came: without this, what happens to be UTF-8 would be text.
    consumer.basic.consume(on_message, queue)
    consumer.start_consuming(auto_decode=False)
    assert got == [(str(number), number, bytes([number % 256]) * (number * 7), False) for number in range(300)]


def test_an_unroutable_message_raises_and_the_next_one_is_confirmed(client, queue, name):
    channel = client().channel()
    channel.confirm_deliveries()
    returned = 0
    for number in range(200):
        if number % 4 == 0:
            with pytest.raises(amqpstorm.AMQPMessageError, match="312|NO_ROUTE"):
                channel.basic.publish("lost", name + "-nowhere", mandatory=True)
            returned += 1
        else:
            assert channel.basic.publish(str(number), queue, mandatory=True)
    assert returned == 50
    assert channel.queue.declare(queue, passive=True)["message_count"] == 150


def test_threads_share_a_connection_and_nothing_is_lost_or_doubled(client, queue):
    connection = client()
    failures = []

    def publish(first):
        try:
            with connection.channel() as channel:
                channel.confirm_deliveries()
                for number in range(first, first + 60):
                    assert channel.basic.publish(str(number), queue)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(first,)) for first in range(0, 300, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    reader = client().channel()
    bodies = [int(reader.basic.get(queue, no_ack=True).body) for _ in range(300)]
    assert sorted(bodies) == list(range(300))
    for first in range(0, 300, 60):
        own = [number for number in bodies if first <= number < first + 60]
        assert own == sorted(own), "the order within one channel"


def test_a_transaction_is_all_or_nothing(client, queue):
    channel, reader = client().channel(), client().channel()
    for batch in range(4):
        with channel.tx:
            for number in range(50):
                channel.basic.publish(f"{batch}.{number}", queue, properties={"delivery_mode": 2})
            if batch % 2:
                channel.tx.rollback()
    assert reader.queue.declare(queue, passive=True)["message_count"] == 100
    got = [reader.basic.get(queue, no_ack=True).body for _ in range(100)]
    assert got == [f"{batch}.{number}" for batch in (0, 2) for number in range(50)]


def test_a_topic_exchange_counts_what_each_queue_gets(client, name):
    channel = client().channel()
    channel.confirm_deliveries()
    channel.exchange.declare(name, "topic")
    keys = {"errors": "*.error", "kernel": "kernel.#", "all": "#"}
    for suffix, key in keys.items():
        channel.queue.declare(f"{name}-{suffix}", exclusive=True)
        channel.queue.bind(f"{name}-{suffix}", name, key)
    for number in range(300):
        source, level = ("kernel", "mail", "cron")[number % 3], ("error", "info")[number % 2]
        channel.basic.publish(str(number), f"{source}.{level}", name)
    counts = {suffix: channel.queue.declare(f"{name}-{suffix}", passive=True)["message_count"] for suffix in keys}
    assert counts == {"errors": 150, "kernel": 100, "all": 300}
    channel.exchange.delete(name)


def test_a_broker_error_closes_the_channel_and_leaves_the_connection(client, queue, name):
    connection = client()
    channel = connection.channel()
    with pytest.raises(amqpstorm.AMQPChannelError, match="inequivalent arg 'durable'") as info:
        channel.queue.declare(queue, durable=False)
    assert info.value.error_code == 406
    with pytest.raises(amqpstorm.AMQPChannelError, match="no queue") as info:
        connection.channel().queue.declare(name + "-missing", passive=True)
    assert info.value.error_code == 404
    assert connection.is_open
    assert connection.channel().queue.declare(queue, passive=True)["message_count"] == 0
