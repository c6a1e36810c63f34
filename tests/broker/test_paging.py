"""A queue of which four messages are in memory behaves like any other, before and after a restart; one promise a test."""

import pika
import pytest
from test_restart import drain, restart

both_ends = pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
both_modes = pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])

WINDOW = "queue.resident_limit.messages = 4\n"
COUNT = 300
ALL = [b"%d" % n for n in range(COUNT)]


@pytest.fixture
def paging(native):
    return lambda **arguments: native(settings=WINDOW, **arguments)


def opened(connection, queue="q", **arguments):
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True, arguments=arguments)
    return channel


def publish(channel, body, queue="q", **properties):
    channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2, **properties))


def fill(broker, bodies=ALL, **arguments):
    with broker.connect() as connection:
        channel = opened(connection, **arguments)
        for body in bodies:
            publish(channel, body)


def got(broker, queue="q"):
    with broker.connect() as connection:
        return [body for _, _, body in drain(connection.channel(), queue)]


def ready(channel, queue="q"):
    return channel.queue_declare(queue, passive=True).method.message_count


@both_ends
@both_modes
def test_order_and_count_are_kept(paging, how, mode):
    broker = paging(at_rest=mode)
    fill(broker)
    restart(broker, how)
    with broker.connect() as connection:
        channel = connection.channel()
        assert ready(channel) == COUNT
        assert [body for _, _, body in drain(channel, "q")] == ALL


@both_ends
def test_large_and_small_messages_come_back_whole(paging, how):
    broker = paging()
    bodies = [bytes([n % 251]) * size for n, size in enumerate([1, 300, 5000, 70_000, 300_000] * 6)]
    fill(broker, bodies)
    restart(broker, how)
    assert got(broker) == bodies


@both_ends
def test_what_was_acknowledged_is_gone_and_the_rest_keeps_its_place(paging, how):
    broker = paging()
    fill(broker)
    with broker.connect() as connection:
        channel = connection.channel()
        taken = [channel.basic_get("q") for _ in range(100)]
        for n, (method, _, body) in enumerate(taken):
            assert body == ALL[n]
            if n % 2:
                channel.basic_ack(method.delivery_tag)
        opened(connection, "other")  # its answer shows that the acknowledgements are on the disk
    restart(broker, how)
    assert got(broker) == ALL[:100:2] + ALL[100:]


def test_a_consumer_gets_all_in_order_and_what_comes_meanwhile_after_it(paging):
    broker = paging()
    fill(broker)
    with broker.connect() as connection:
        channel = opened(connection)
        channel.basic_qos(prefetch_count=7)
        more = [b"more %d" % n for n in range(50)]
        found = []
        for method, _, body in channel.consume("q", inactivity_timeout=30):
            assert method is not None, found
            found.append(body)
            channel.basic_ack(method.delivery_tag)
            if len(found) <= len(more):
                publish(channel, more[len(found) - 1])
            if len(found) == COUNT + len(more):
                break
        assert found == ALL + more
        assert ready(channel) == 0


@both_ends
def test_a_purge_takes_what_is_ready_and_nothing_comes_back(paging, how):
    broker = paging()
    fill(broker)
    with broker.connect() as connection:
        channel = connection.channel()
        held = channel.basic_get("q")
        assert channel.queue_purge("q").method.message_count == COUNT - 1
        channel.basic_nack(held[0].delivery_tag, requeue=True)
        opened(connection, "other")
    fill(broker, [b"later"])
    restart(broker, how)
    assert got(broker) == [ALL[0], b"later"]


@both_ends
def test_a_deleted_queue_stays_deleted(paging, how):
    broker = paging()
    fill(broker)
    with broker.connect() as connection:
        assert connection.channel().queue_delete("q").method.message_count == COUNT
    restart(broker, how)
    fill(broker, [b"new"])
    assert got(broker) == [b"new"]


@both_ends
def test_a_full_queue_drops_its_head_to_its_dead_letter_queue(paging, how):
    broker = paging()
    with broker.connect() as connection:
        opened(connection, "dead")
    rules = {"x-max-length": 250, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    fill(broker, **rules)
    restart(broker, how)
    assert got(broker, "dead") == ALL[:50]
    assert got(broker) == ALL[50:]


def test_all_that_is_too_old_is_dead_lettered_in_order(paging):
    broker = paging()
    with broker.connect() as connection:
        opened(connection, "dead")
        channel = opened(connection, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
        for body in ALL:
            publish(channel, body, expiration="1")
        found = []
        for method, properties, body in channel.consume("dead", inactivity_timeout=30):
            assert method is not None, found
            found.append(body)
            assert properties.headers["x-death"][0]["reason"] == "expired"
            if len(found) == COUNT:
                break
        assert found == ALL and ready(channel) == 0


@both_ends
def test_priorities_go_first_however_far_behind_they_stand(paging, how):
    broker = paging()
    with broker.connect() as connection:
        channel = opened(connection, **{"x-max-priority": 3})
        for n, body in enumerate(ALL):
            publish(channel, body, priority=n % 4)
    restart(broker, how)
    assert got(broker) == [body for level in (3, 2, 1, 0) for body in ALL[level::4]]


@both_ends
def test_a_quorum_queues_counts_go_on(paging, how):
    broker = paging()
    fill(broker, ALL[:40], **{"x-queue-type": "quorum"})
    for _ in range(2):
        with broker.connect() as connection:
            channel = connection.channel()
            assert len(drain(channel, "q")) == 40
            channel.basic_nack(0, multiple=True, requeue=True)
            opened(connection, "other")
        restart(broker, how)
    with broker.connect() as connection:
        counts = [properties.headers["x-delivery-count"] for _, properties, _ in drain(connection.channel(), "q")]
    assert counts == [2] * 40


@both_ends
def test_a_transaction_is_whole_or_not_there(paging, how):
    broker = paging()
    with broker.connect() as connection:
        opened(connection)
        channel = connection.channel()
        channel.tx_select()
        for body in ALL:
            publish(channel, body)
        channel.tx_commit()
        publish(channel, b"never committed")
        taken = channel.basic_get("q")
        channel.basic_ack(taken[0].delivery_tag)
        channel.tx_rollback()
    restart(broker, how)
    assert got(broker) == ALL


@both_ends
def test_a_message_in_many_queues_is_there_until_the_last_has_let_it_go(paging, how):
    broker = paging()
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.exchange_declare("fan", "fanout", durable=True)
        for queue in ("a", "b", "c"):
            opened(connection, queue)
            channel.queue_bind(queue, "fan")
        for body in ALL:
            channel.basic_publish("fan", "", body * 200, pika.BasicProperties(delivery_mode=2))
        for queue in ("a", "b"):
            channel.queue_purge(queue)
        opened(connection, "other")
    restart(broker, how)
    assert (got(broker, "a"), got(broker, "b")) == ([], [])
    assert got(broker, "c") == [body * 200 for body in ALL]


@both_ends
def test_messages_of_a_queue_that_drops_duplicates_are_known_after_a_restart(paging, how):
    broker = paging()
    rules = {"x-message-deduplication": True}
    with broker.connect() as connection:
        channel = opened(connection, **rules)
        for body in ALL[:50]:
            publish(channel, body, headers={"x-deduplication-header": body.decode()})
    restart(broker, how)
    with broker.connect() as connection:
        channel = opened(connection, **rules)
        for body in [*ALL[:50], b"another"]:
            publish(channel, body, headers={"x-deduplication-header": body.decode()})
    assert got(broker) == [*ALL[:50], b"another"]
