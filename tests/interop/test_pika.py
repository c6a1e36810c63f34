"""pika: what applications do with its blocking and its event-driven connection, in numbers that are counted."""

import ssl
import threading
import time

import pika
import pytest

PERSISTENT = pika.DeliveryMode.Persistent.value


def parameters(broker, ca=None, **options):
    tls = pika.SSLOptions(broker.context(ca), server_hostname=broker.host)
    credentials = pika.PlainCredentials(broker.user, broker.password)
    return pika.ConnectionParameters(broker.host, broker.port, credentials=credentials, ssl_options=tls, **options)


@pytest.fixture
def client(broker):
    opened = []

    def client(**options):
        opened.append(pika.BlockingConnection(parameters(broker, **options)))
        return opened[-1]

    yield client
    for connection in opened:
        if connection.is_open:
            connection.close()


@pytest.fixture
def queue(client, name):
    """A durable queue that is gone after the case."""
    channel = client().channel()
    channel.queue_declare(name, durable=True)
    yield name
    channel.queue_delete(name)


def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca):
    with pytest.raises(ssl.SSLCertVerificationError):
        pika.BlockingConnection(parameters(broker, ca=stranger_ca))


def test_a_thousand_confirmed_messages_arrive_once_in_order_and_whole(client, queue):
    producer, consumer = client().channel(), client().channel()
    producer.confirm_delivery()
    sent = []
    for number in range(1000):
        properties = pika.BasicProperties(
            content_type="application/octet-stream",
            delivery_mode=PERSISTENT,
            message_id=str(number),
            headers={"number": number, "nested": {"list": [number, str(number)]}, "huge": number << 40},
        )
        sent.append((properties, number.to_bytes(4, "big") * (number % 97)))
        producer.basic_publish("", queue, sent[-1][1], properties, mandatory=True)
    consumer.basic_qos(prefetch_count=100)
    got, redelivered = [], 0
    for method, properties, body in consumer.consume(queue):
        got.append((properties, body))
        redelivered += method.redelivered
        consumer.basic_ack(method.delivery_tag)
        if len(got) == len(sent):
            break
    consumer.cancel()
    assert got == sent
    assert redelivered == 0
    assert consumer.queue_declare(queue, passive=True).method.message_count == 0


def test_get_counts_down_and_what_was_not_acknowledged_comes_back_in_its_place(client, queue):
    channel, other = client().channel(), client().channel()
    for number in range(300):
        channel.basic_publish("", queue, str(number))
    left = []
    for number in range(300):
        method, _, body = channel.basic_get(queue)
        assert (body, method.redelivered) == (str(number).encode(), False)
        left.append(method.message_count)
        if number % 3 == 0:
            channel.basic_ack(method.delivery_tag)
    assert left == list(range(299, -1, -1))
    assert channel.basic_get(queue) == (None, None, None)
    channel.close()
    again = [other.basic_get(queue, auto_ack=True) for _ in range(200)]
    assert [int(body) for _, _, body in again] == [number for number in range(300) if number % 3]
    assert all(method.redelivered for method, _, _ in again)


def test_a_transaction_is_all_or_nothing(client, queue):
    channel, reader = client().channel(), client().channel()
    channel.tx_select()
    for batch in range(6):
        for number in range(50):
            channel.basic_publish("", queue, f"{batch}.{number}", pika.BasicProperties(delivery_mode=PERSISTENT))
        assert reader.queue_declare(queue, passive=True).method.message_count == batch // 2 * 50
        if batch % 2:
            channel.tx_commit()
        else:
            channel.tx_rollback()
    expected = [f"{batch}.{number}".encode() for batch in (1, 3, 5) for number in range(50)]
    for _ in range(100):
        channel.basic_ack(channel.basic_get(queue)[0].delivery_tag)
    channel.tx_commit()
    for _ in range(50):
        channel.basic_ack(channel.basic_get(queue)[0].delivery_tag)
    channel.tx_rollback()
    channel.close()
    assert [reader.basic_get(queue, auto_ack=True)[2] for _ in range(50)] == expected[100:]
    assert reader.basic_get(queue)[0] is None


def test_each_rejected_message_comes_back_once_and_each_refused_one_goes_to_the_dead_letters(client, name):
    channel = client().channel()
    dead = channel.queue_declare("", exclusive=True).method.queue
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    queue = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
    for number in range(300):
        channel.basic_publish("", queue, str(number))
    channel.basic_qos(prefetch_count=20)
    seen = {}
    for method, _, body in channel.consume(queue):
        number = int(body)
        assert method.redelivered == (number in seen)
        seen[number] = seen.get(number, 0) + 1
        if number % 3 == 0 and seen[number] == 1:
            channel.basic_nack(method.delivery_tag, requeue=True)
        elif number % 3 == 1:
            channel.basic_reject(method.delivery_tag, requeue=False)
        else:
            channel.basic_ack(method.delivery_tag)
        if sum(seen.values()) == 400:
            break
    channel.cancel()
    assert seen == {number: 2 if number % 3 == 0 else 1 for number in range(300)}
    letters = [channel.basic_get(dead, auto_ack=True) for _ in range(100)]
    assert [int(body) for _, _, body in letters] == list(range(1, 300, 3))
    deaths = [properties.headers["x-death"][0] for _, properties, _ in letters]
    assert {(death["queue"], death["reason"], death["count"]) for death in deaths} == {(queue, "rejected", 1)}
    assert channel.basic_get(dead)[0] is None


def test_direct_replies_reach_the_caller_in_order(broker, client, queue):
    """RPC over amq.rabbitmq.reply-to, as RabbitMQ's documentation shows it: no queue for the replies."""
    served, ready = [], threading.Event()

    def serve():
        with pika.BlockingConnection(parameters(broker)) as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=10)
            ready.set()
            for method, properties, body in channel.consume(queue):
                assert properties.reply_to.startswith("amq.rabbitmq.reply-to.")
                reply = pika.BasicProperties(correlation_id=properties.correlation_id)
                channel.basic_publish("", properties.reply_to, body[::-1], reply)
                channel.basic_ack(method.delivery_tag)
                served.append(body)
                if len(served) == 500:
                    break
            channel.cancel()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    assert ready.wait(30)
    connection = client()
    channel, replies = connection.channel(), []

    def on_reply(_channel, _method, properties, body):
        replies.append((properties.correlation_id, body))

    channel.basic_consume("amq.rabbitmq.reply-to", on_reply, auto_ack=True)
    for number in range(500):
        properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=str(number))
        channel.basic_publish("", queue, f"call {number}", properties)
    deadline = time.monotonic() + 60
    while len(replies) < 500 and time.monotonic() < deadline:
        connection.process_data_events(time_limit=1)
    server.join(30)
    assert replies == [(str(number), f"call {number}".encode()[::-1]) for number in range(500)]


class Publisher:
    """A SelectConnection that publishes without waiting, and keeps book of what the broker says."""

    def __init__(self, parameters, queue, count):
        self.queue, self.count = queue, count
        self.unconfirmed, self.events, self.returned, self.received = set(), [], [], []
        self.closed_with = None
        self.connection = pika.SelectConnection(
            parameters, on_open_callback=self.on_open, on_close_callback=self.on_close, on_open_error_callback=self.on_close
        )

    def on_open(self, connection):
        connection.channel(on_open_callback=self.on_publishing_channel)

    def on_close(self, connection, reason):
        self.closed_with = reason
        connection.ioloop.stop()

    def on_publishing_channel(self, channel):
        channel.confirm_delivery(self.on_confirm, callback=lambda _: self.publish(channel))
        channel.add_on_return_callback(self.on_return)
        self.connection.channel(on_open_callback=self.on_consuming_channel)

    def publish(self, channel):
        for number in range(1, self.count + 1):
            nowhere = number % 10 == 0
            routing_key = f"{self.queue}-nowhere" if nowhere else self.queue
            self.unconfirmed.add(number)
            properties = pika.BasicProperties(delivery_mode=PERSISTENT if number % 2 else 1)
            channel.basic_publish("", routing_key, str(number), properties, mandatory=True)

    def on_return(self, _channel, method, _properties, body):
        assert (method.reply_code, method.reply_text) == (312, "NO_ROUTE")
        assert int(body) in self.unconfirmed, "a return comes before its confirm"
        self.returned.append(int(body))

    def on_confirm(self, frame):
        method = frame.method
        assert isinstance(method, pika.spec.Basic.Ack)
        if method.multiple:
            confirmed = {number for number in self.unconfirmed if number <= method.delivery_tag}
        else:
            confirmed = {method.delivery_tag} & self.unconfirmed
        assert confirmed, "nothing is confirmed twice"
        self.unconfirmed -= confirmed
        self.finish()

    def on_consuming_channel(self, channel):
        def on_message(channel, method, _properties, body):
            self.received.append((int(body), method.redelivered))
            if len(self.received) % 50 == 0:
                channel.basic_ack(method.delivery_tag, multiple=True)
            self.finish()

        channel.basic_qos(prefetch_count=500, callback=lambda _: channel.basic_consume(self.queue, on_message))

    def finish(self):
        if not self.unconfirmed and len(self.received) == self.count - self.count // 10 and self.connection.is_open:
            self.connection.close()

    def run(self):
        self.connection.ioloop.start()
        return self.closed_with


def test_an_event_driven_publisher_gets_every_confirm_and_every_return_once(broker, client, queue):
    publisher = Publisher(parameters(broker), queue, 3000)
    assert isinstance(publisher.run(), pika.exceptions.ConnectionClosedByClient)
    assert publisher.returned == list(range(10, 3001, 10))
    assert publisher.received == [(number, False) for number in range(1, 3001) if number % 10]
    assert client().channel().queue_declare(queue, passive=True).method.message_count == 0


def test_confirmed_messages_outlive_a_restart_and_clients_are_told_of_it(restartable, name):
    connection = pika.BlockingConnection(parameters(restartable))
    channel = connection.channel()
    channel.queue_declare(name, durable=True)
    channel.confirm_delivery()
    for number in range(300):
        channel.basic_publish("", name, str(number), pika.BasicProperties(delivery_mode=PERSISTENT))
    for _ in range(100):
        channel.basic_ack(channel.basic_get(name)[0].delivery_tag)
    connection.process_data_events()
    channel.queue_declare(name, passive=True)
    restartable.stop()
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as info:
        connection.process_data_events(time_limit=10)
    assert info.value.reply_code == 320
    restartable.start()
    with pika.BlockingConnection(parameters(restartable)) as again:
        channel = again.channel()
        assert [int(channel.basic_get(name, auto_ack=True)[2]) for _ in range(200)] == list(range(100, 300))
        assert channel.basic_get(name)[0] is None


def test_a_client_that_is_not_trusted_is_refused_in_words(broker):
    wrong = parameters(broker)
    wrong.credentials = pika.PlainCredentials(broker.user, "wrong")
    with pytest.raises(pika.exceptions.ProbableAuthenticationError, match="403"):
        pika.BlockingConnection(wrong)
