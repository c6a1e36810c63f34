"""`x-dead-letter-strategy` at-least-once: a dead letter that nobody takes stays with its queue until somebody does.

RabbitMQ tries again after three minutes, which no case waits for; SealMQ within a second. So the cases that wait for a
second attempt are skipped there, unless PEER_RETRIES is set: for a RabbitMQ that was told to be as quick by
`rabbitmqctl eval 'application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 1000).'`
"""

import os

import amqp
import pytest

KEEPS = {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


@pytest.fixture
def dlx(name):
    return f"{name}-dlx"


@pytest.fixture
def dead(name):
    return f"{name}-dead"


@pytest.fixture
def tries_again(is_rabbitmq):
    if is_rabbitmq and not os.environ.get("PEER_RETRIES"):
        pytest.skip("RabbitMQ tries again after three minutes")


def declare(channel, queue, dlx, **arguments):
    return channel.declare(queue, durable=True, arguments={**KEEPS, "x-dead-letter-exchange": dlx, **arguments})


def declare_dlx(channel, dlx, *queues):
    channel.call("exchange.declare", exchange=dlx, type="fanout", durable=True)
    for queue in queues:
        channel.call("queue.declare", queue=queue, durable=True)
        channel.call("queue.bind", queue=queue, exchange=dlx, routing_key="")


def take(channel, queue, eventually, no_ack=False):
    found = []
    eventually(lambda: found or found.extend(filter(None, [channel.get(queue, no_ack=no_ack)])))
    return found[0]


def put(channel, queue, body):
    """The answer that a publisher gets."""
    channel.publish(queue, body)
    return channel.next().name


def die(channel, queue, eventually, *bodies):
    """Messages that are rejected."""
    channel.call("confirm.select")
    for body in bodies:
        assert put(channel, queue, body) == "basic.ack"
        message = take(channel, queue, eventually)
        assert message.body == body.encode()
        channel.send("basic.reject", delivery_tag=message.delivery_tag, requeue=False)


def test_a_dead_letter_that_is_taken_at_once_looks_like_any_other(channel, name, dlx, dead, eventually):
    declare_dlx(channel, dlx, dead)
    declare(channel, name, dlx)
    die(channel, name, eventually, "x")
    message = take(channel, dead, eventually, no_ack=True)
    headers = amqp.headers_of(message.properties)
    death = headers["x-death"][0]
    facts = [death[key] for key in ("count", "reason", "queue", "exchange", "routing-keys")]
    assert (message.body, facts) == (b"x", [1, "rejected", name, "", [name]])
    assert headers["x-first-death-queue"] == headers["x-last-death-queue"] == name


def test_a_kept_letter_is_not_ready_and_in_nobodys_way(channel, name, dlx, eventually):
    declare(channel, name, dlx)
    die(channel, name, eventually, "a", "b")
    channel.expect_counts(name, 0, 0)
    assert put(channel, name, "later") == "basic.ack"
    message = take(channel, name, eventually, no_ack=True)
    assert (message.body, message.redelivered, message.message_count) == (b"later", False, 0)
    assert channel.get(name) is None


def test_a_kept_letter_comes_once_its_exchange_exists_and_leads_to_a_queue(
    channel, name, dlx, dead, eventually, tries_again
):
    declare(channel, name, dlx)
    die(channel, name, eventually, "a", "b")
    declare_dlx(channel, dlx, dead)
    letters = [take(channel, dead, eventually, no_ack=True) for _ in range(2)]
    assert [letter.body for letter in letters] == [b"a", b"b"]
    deaths = [amqp.headers_of(letter.properties)["x-death"] for letter in letters]
    assert [(len(death), death[0]["count"], death[0]["reason"]) for death in deaths] == [(1, 1, "rejected")] * 2


def test_what_is_new_does_not_wait_for_what_is_stuck(channel, name, dlx, dead, eventually):
    channel.call("exchange.declare", exchange=dlx, type="direct", durable=True)
    channel.call("queue.declare", queue=dead, durable=True)
    channel.call("queue.bind", queue=dead, exchange=dlx, routing_key="known")
    declare(channel, name, dlx)
    source = f"{name}-source"
    channel.call("exchange.declare", exchange=source, type="fanout", durable=True)
    channel.call("queue.bind", queue=name, exchange=source, routing_key="")
    channel.call("confirm.select")
    for key in ("unknown", "known"):
        channel.publish(key, key, exchange=source)
        assert channel.next().name == "basic.ack"
        channel.send("basic.reject", delivery_tag=take(channel, name, eventually).delivery_tag, requeue=False)
    assert take(channel, dead, eventually, no_ack=True).body == b"known"
    channel.expect_counts(name, 0, 0)


def test_what_a_full_target_refuses_comes_when_it_has_room(channel, name, dlx, dead, eventually, tries_again):
    channel.declare(dead, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.call("exchange.declare", exchange=dlx, type="fanout", durable=True)
    channel.call("queue.bind", queue=dead, exchange=dlx, routing_key="")
    declare(channel, name, dlx)
    die(channel, name, eventually, "a", "b", "c")
    taken = [take(channel, dead, eventually, no_ack=True).body for _ in range(3)]
    assert sorted(taken) == [b"a", b"b", b"c"]


def test_who_has_a_letter_does_not_get_it_twice_while_another_is_full(
    channel, name, dlx, dead, eventually, tries_again
):
    full = f"{name}-full"
    declare_dlx(channel, dlx, dead)
    channel.declare(full, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.call("queue.bind", queue=full, exchange=dlx, routing_key="")
    channel.call("confirm.select")
    assert put(channel, full, "in the way") == "basic.ack"
    declare(channel, name, dlx)
    die(channel, name, eventually, "x")
    assert take(channel, dead, eventually, no_ack=True).body == b"x"
    assert take(channel, full, eventually, no_ack=True).body == b"in the way"
    assert take(channel, full, eventually, no_ack=True).body == b"x"
    assert channel.counts(dead)[0] == 0


def test_what_expires_is_kept_as_well(channel, name, dlx, dead, eventually, tries_again):
    declare(channel, name, dlx, **{"x-message-ttl": 20})
    channel.call("confirm.select")
    assert put(channel, name, "x") == "basic.ack"
    eventually(lambda: channel.counts(name)[0] == 0)
    declare_dlx(channel, dlx, dead)
    message = take(channel, dead, eventually, no_ack=True)
    assert amqp.headers_of(message.properties)["x-death"][0]["reason"] == "expired"


def test_kept_letters_count_towards_the_limit(channel, name, dlx, eventually):
    """RabbitMQ refuses one or two messages later than SealMQ: its limit is a soft one."""
    declare(channel, name, dlx, **{"x-max-length": 4})
    die(channel, name, eventually, "a", "b", "c")
    answers = [put(channel, name, "x") for _ in range(6)]
    assert 1 <= answers.count("basic.ack") <= 3 and answers[-1] == "basic.nack"


def test_a_purge_leaves_kept_letters(channel, name, dlx, dead, eventually, tries_again):
    declare(channel, name, dlx)
    die(channel, name, eventually, "letter")
    assert put(channel, name, "ready") == "basic.ack"
    assert channel.call("queue.purge", queue=name).message_count == 1
    declare_dlx(channel, dlx, dead)
    assert take(channel, dead, eventually, no_ack=True).body == b"letter"


def test_a_deleted_queue_takes_its_letters_along_and_does_not_count_them(channel, name, dlx, dead, eventually):
    declare(channel, name, dlx)
    die(channel, name, eventually, "letter")
    assert put(channel, name, "ready") == "basic.ack"
    eventually(lambda: channel.counts(name)[0] == 1)
    assert channel.call("queue.delete", queue=name).message_count == 1
    declare_dlx(channel, dlx, dead)
    declare(channel, name, dlx)
    die(channel, name, eventually, "successor")
    assert take(channel, dead, eventually, no_ack=True).body == b"successor"
    assert channel.get(dead) is None


@pytest.mark.parametrize("overflow", [{}, {"x-overflow": "drop-head"}])
def test_a_queue_that_drops_its_head_dead_letters_at_most_once(channel, name, dlx, dead, eventually, overflow):
    arguments = {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-dead-letter-exchange": dlx}
    channel.declare(name, durable=True, arguments={**arguments, **overflow})
    die(channel, name, eventually, "lost")
    # The queue has dealt with it when it answers; then there is an exchange.
    die(channel, name, eventually, "lost, too")
    eventually(lambda: channel.counts(name)[0] == 0)
    declare_dlx(channel, dlx, dead)
    die(channel, name, eventually, "found")
    assert take(channel, dead, eventually, no_ack=True).body == b"found"
    assert channel.get(dead) is None
