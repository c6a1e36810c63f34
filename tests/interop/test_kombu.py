"""kombu by itself: pools, confirms, serializers and compression, simple queues, mixins, broadcast mailboxes, QoS."""

import contextlib
import queue as queues
import ssl
import threading

import kombu
import pytest
from kombu.mixins import ConsumerProducerMixin
from kombu.pidbox import Mailbox
from kombu.pools import producers

SECONDS_MAX = 30


@pytest.fixture
def client(broker):
    opened = []

    def client(ca=None, **options):
        tls = {"ca_certs": ca or broker.ca, "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": broker.host}
        url = broker.url.replace("amqps://", "pyamqp://")
        opened.append(kombu.Connection(url, ssl=tls, transport_options={"confirm_publish": True}, heartbeat=10, **options))
        return opened[-1]

    yield client
    for connection in opened:
        connection.release()


def drain(connection, got, count):
    while len(got) < count:
        connection.drain_events(timeout=SECONDS_MAX)


def test_a_certificate_of_another_ca_is_refused(client, stranger_ca):
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        client(ca=stranger_ca).connect()


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_confirmed_messages_arrive_once_in_order_and_whole(client, name, serializer, compression):
    exchange = kombu.Exchange(name, "topic", auto_delete=True)
    queue = kombu.Queue(name, exchange, routing_key="#", exclusive=True)
    connection, got = client(), []

    def on_message(body, message):
        got.append((body, message.headers["number"], message.delivery_info["redelivered"]))
        message.ack()

    consumer = kombu.Consumer(connection, [queue], callbacks=[on_message], accept=[serializer], prefetch_count=20)
    with consumer:
        with producers[client()].acquire(block=True) as producer:
            for number in range(500):
                body = {"number": number, "text": "x" * number, "list": [None, True, number / 2]}
                producer.publish(
                    body, exchange=exchange, routing_key=f"a.{number}", serializer=serializer, compression=compression,
                    headers={"number": number}, mandatory=True, retry=True,
                )  # fmt: skip
        drain(connection, got, 500)
    expected = [({"number": n, "text": "x" * n, "list": [None, True, n / 2]}, n, False) for n in range(500)]
    assert got == expected


def test_a_simple_queue_puts_and_gets(client, name):
    with contextlib.closing(client().SimpleQueue(name)) as simple:
        for number in range(300):
            simple.put({"number": number})
        assert simple.qsize() == 300
        for number in range(300):
            message = simple.get(timeout=SECONDS_MAX)
            assert message.payload == {"number": number}
            message.ack()
        with pytest.raises(queues.Empty):
            simple.get(block=False)
    client().default_channel.queue_delete(name)


def test_what_is_requeued_comes_back_and_what_is_rejected_does_not(client, name):
    connection, seen = client(), {}
    queue = kombu.Queue(name, exclusive=True)

    def on_message(body, message):
        seen.setdefault(body, []).append(message.delivery_info["redelivered"])
        if body % 3 == 0 and len(seen[body]) == 1:
            message.requeue()
        elif body % 3 == 1:
            message.reject()
        else:
            message.ack()

    with kombu.Consumer(connection, [queue], callbacks=[on_message], prefetch_count=10):
        producer = kombu.Producer(connection.channel())
        for number in range(300):
            producer.publish(number, routing_key=name)
        while sum(map(len, seen.values())) < 400:
            connection.drain_events(timeout=SECONDS_MAX)
    assert seen == {number: [False, True] if number % 3 == 0 else [False] for number in range(300)}


def test_a_service_answers_each_request_to_its_sender(client, name):
    """RPC with a mixin that consumes and produces, and replies matched by their correlation."""
    requests = kombu.Queue(name, auto_delete=True)

    class Service(ConsumerProducerMixin):
        def __init__(self, connection):
            self.connection = connection

        def get_consumers(self, consumer, _channel):
            return [consumer([requests], on_message=self.answer, prefetch_count=5)]

        def answer(self, message):
            properties = message.properties
            number = message.payload["number"]
            self.producer.publish({"square": number**2}, routing_key=properties["reply_to"], correlation_id=properties["correlation_id"])
            message.ack()

    service, connection, answers = Service(client()), client(), {}
    thread = threading.Thread(target=service.run, daemon=True)
    requests(connection.default_channel).declare()
    thread.start()
    replies = kombu.Queue(f"{name}-replies", exclusive=True, auto_delete=True)

    def on_reply(message):
        answers[message.properties["correlation_id"]] = message.payload["square"]

    with kombu.Consumer(connection, [replies], on_message=on_reply, no_ack=True):
        producer = kombu.Producer(connection.channel())
        for number in range(200):
            producer.publish({"number": number}, routing_key=name, reply_to=replies.name, correlation_id=str(number))
        drain(connection, answers, 200)
    service.should_stop = True
    thread.join(SECONDS_MAX)
    assert answers == {str(number): number**2 for number in range(200)}


def test_a_mailbox_reaches_every_node_or_the_one_that_is_named(client, name):
    """What Celery's remote control is made of: fanout to transient queues that expire, replies to one of the sender."""
    ready, stop, threads = [], threading.Event(), []

    def node(hostname):
        connection = client()
        mailbox = Mailbox(name, type="fanout", queue_expires=10, reply_queue_expires=10)
        listener = mailbox(connection).Node(hostname, state=hostname)

        @listener.handler
        def increment(state, value):
            return {"host": state, "value": value + 1}

        with listener.listen(connection.channel()):
            ready.append(hostname)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)

    for number in range(3):
        threads.append(threading.Thread(target=node, args=(f"node-{number}",), daemon=True))
        threads[-1].start()
    control = Mailbox(name, type="fanout", queue_expires=10, reply_queue_expires=10)(client())
    while len(ready) < 3 and any(thread.is_alive() for thread in threads):
        stop.wait(0.02)
    for value in range(20):
        replies = control.multi_call("increment", {"value": value}, timeout=SECONDS_MAX, limit=3)
        assert sorted(reply[host]["host"] for reply in replies for host in reply) == ["node-0", "node-1", "node-2"]
        assert {reply[host]["value"] for reply in replies for host in reply} == {value + 1}
    one = control.call(["node-1"], "increment", {"value": 7}, timeout=SECONDS_MAX)
    assert one == [{"node-1": {"host": "node-1", "value": 8}}]
    stop.set()
    for thread in threads:
        thread.join(SECONDS_MAX)


def test_priorities_limits_and_expiry_as_kombu_names_them(client, name):
    channel = client().channel()
    queue = kombu.Queue(name, exclusive=True, max_priority=5, max_length=10, message_ttl=3600, queue_arguments={"x-overflow": "reject-publish"})
    queue(channel).declare()
    producer = kombu.Producer(channel)
    for number in range(10):
        producer.publish(number, routing_key=name, priority=number % 5)
    got = [queue(channel).get(no_ack=True).payload for _ in range(10)]
    assert got == sorted(range(10), key=lambda number: (-(number % 5), number))
    assert queue(channel).get() is None
