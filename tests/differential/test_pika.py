"""The same questions through a real client, as applications ask them: pika's BlockingConnection over TLS."""

import threading

import pika
import pytest


def parameters(broker, **options):
    tls = pika.SSLOptions(broker.context(), server_hostname=broker.host) if broker.tls else None
    credentials = options.pop("credentials", pika.PlainCredentials(broker.user, broker.password))
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
def ch(client):
    return client().channel()


def test_a_wrong_password_is_a_probable_authentication_error(broker):
    credentials = pika.PlainCredentials(broker.user, "wrong")
    with pytest.raises(pika.exceptions.ProbableAuthenticationError, match="403"):
        pika.BlockingConnection(parameters(broker, credentials=credentials))


def test_a_wrong_virtual_host_is_a_probable_access_error(broker):
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError, match="530.*vhost nope not found"):
        pika.BlockingConnection(parameters(broker, virtual_host="nope"))


def test_the_capabilities_that_pika_asks_for(client):
    connection = client()
    assert connection.basic_nack_supported
    assert connection.consumer_cancel_notify_supported
    assert connection.exchange_exchange_bindings_supported
    assert connection.publisher_confirms_supported


@pytest.mark.parametrize("frame_max", [4096, 8192, 131072])
@pytest.mark.parametrize("heartbeat", [0, 5, 600])
def test_pika_negotiates(client, frame_max, heartbeat):
    channel = client(frame_max=frame_max, heartbeat=heartbeat, channel_max=10).channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", queue, b"x" * 50000)
    assert channel.basic_get(queue, auto_ack=True)[2] == b"x" * 50000


def test_a_confirmed_publish_returns_and_an_unroutable_one_raises(ch, name):
    ch.confirm_delivery()
    queue = ch.queue_declare("", exclusive=True).method.queue
    for delivery_mode in (1, 2):
        ch.basic_publish("", queue, b"x", pika.BasicProperties(delivery_mode=delivery_mode), mandatory=True)
    with pytest.raises(pika.exceptions.UnroutableError) as info:
        ch.basic_publish("", name, b"lost", mandatory=True)
    returned = info.value.messages[0]
    assert (returned.method.reply_code, returned.method.reply_text, returned.body) == (312, "NO_ROUTE", b"lost")


def test_all_properties_through_pika(ch, broker):
    given = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"i": 1, "s": "text", "t": True, "n": None, "l": [1, "two"], "d": {"k": {"deep": 1 << 40}}},
        delivery_mode=2,
        priority=3,
        correlation_id="c",
        reply_to="r",
        expiration="60000",
        message_id="m",
        timestamp=1700000000,
        type="t",
        user_id=broker.user,
        app_id="a",
        cluster_id="c",
    )
    queue = ch.queue_declare("", exclusive=True).method.queue
    ch.basic_publish("", queue, b"x", given)
    assert ch.basic_get(queue, auto_ack=True)[1] == given


def test_the_consume_generator_gives_back_what_it_leaves(ch):
    queue = ch.queue_declare("", exclusive=True).method.queue
    for number in range(5):
        ch.basic_publish("", queue, str(number))
    for method, _, body in ch.consume(queue):
        ch.basic_ack(method.delivery_tag)
        if body == b"1":
            break
    ch.cancel()
    got = [ch.basic_get(queue, auto_ack=True)[2] for _ in range(3)]
    assert got == [b"2", b"3", b"4"]


def test_a_deleted_queue_ends_start_consuming(client, ch, name):
    """pika leaves start_consuming when the broker cancels its last consumer."""
    ch.queue_declare(name, auto_delete=True)
    ch.basic_consume(name, lambda *_: None)
    other = client().channel()
    ch.connection.call_later(0.2, lambda: other.queue_delete(name))
    ch.start_consuming()


def test_fair_dispatch(client, ch):
    queue = ch.queue_declare("", exclusive=True).method.queue
    done = {"slow": [], "fast": []}
    slow, fast = ch.connection.channel(), ch.connection.channel()
    slow.basic_qos(prefetch_count=1)
    fast.basic_qos(prefetch_count=1)
    slow.basic_consume(queue, lambda c, method, p, body: done["slow"].append(body))  # never acknowledges

    def work(channel, method, _, body):
        done["fast"].append(body)
        channel.basic_ack(method.delivery_tag)

    fast.basic_consume(queue, work)
    for number in range(6):
        ch.basic_publish("", queue, str(number))
    while len(done["slow"]) + len(done["fast"]) < 6:
        ch.connection.process_data_events(time_limit=1)
    assert (len(done["slow"]), len(done["fast"])) == (1, 5)


def test_remote_procedure_call(client, ch):
    requests = ch.queue_declare("", exclusive=True).method.queue
    answers = ch.queue_declare("", exclusive=True).method.queue

    def answer(channel, method, asked, body):
        properties = pika.BasicProperties(correlation_id=asked.correlation_id)
        channel.basic_publish("", asked.reply_to, str(int(body) ** 2), properties)
        channel.basic_ack(method.delivery_tag)

    ch.basic_consume(requests, answer)
    for number in range(10):
        asked = pika.BasicProperties(reply_to=answers, correlation_id=str(number))
        ch.basic_publish("", requests, str(number), asked)
    got = {}
    for method, properties, body in ch.consume(answers, auto_ack=True):
        got[int(properties.correlation_id)] = int(body)
        if len(got) == 10:
            break
    ch.cancel()
    assert got == {number: number**2 for number in range(10)}


def test_a_channel_fault_is_an_exception_and_the_connection_lives(client, name):
    connection = client()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as info:
        connection.channel().queue_declare(name, passive=True)
    assert (info.value.reply_code, info.value.reply_text) == (404, f"NOT_FOUND - no queue '{name}' in vhost '/'")
    assert connection.channel().queue_declare("", exclusive=True)


def test_publishers_in_threads_lose_nothing(broker, client, ch, name):
    ch.queue_declare(name, auto_delete=True)

    def publish(letter):
        connection = pika.BlockingConnection(parameters(broker))
        channel = connection.channel()
        channel.confirm_delivery()
        for number in range(50):
            channel.basic_publish("", name, f"{letter}{number}", mandatory=True)
        connection.close()

    threads = [threading.Thread(target=publish, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    got = [ch.basic_get(name, auto_ack=True)[2].decode() for _ in range(200)]
    assert ch.basic_get(name)[0] is None
    for letter in "abcd":
        assert [body for body in got if body[0] == letter] == [f"{letter}{number}" for number in range(50)]
    ch.queue_delete(name)
