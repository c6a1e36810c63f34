"""What queues do by themselves: time to live, lengths, priorities, dead letters, one active consumer; and transactions."""

import time

import amqp
import pytest


@pytest.fixture
def dead(channel, name):
    """A queue that takes the dead letters of exchange `name`-dlx."""
    queue, exchange = f"{name}-dead", f"{name}-dlx"
    channel.call("exchange.declare", exchange=exchange, type="fanout", auto_delete=True)
    channel.call("queue.declare", queue=queue, exclusive=True)
    channel.call("queue.bind", queue=queue, exchange=exchange, routing_key="")
    return queue


def letters(dead, **arguments):
    return {"x-dead-letter-exchange": dead.removesuffix("-dead") + "-dlx", **arguments}


def one(channel, queue, eventually):
    """The one message that comes to a queue."""
    found = []
    eventually(lambda: found or found.extend(filter(None, [channel.get(queue)])))
    return found[0]


def deaths(message):
    headers = amqp.headers_of(message.properties)
    return [{key: value for key, value in death.items() if key != "time"} for death in headers["x-death"]]


# ---- time to live


def test_a_message_expires_after_the_queues_time(channel, name, dead, eventually):
    channel.declare(name, exclusive=True, arguments=letters(dead, **{"x-message-ttl": 50}))
    channel.publish(name, "old", block=amqp.properties(expiration="60000"))
    message = one(channel, dead, eventually)
    assert message.body == b"old" and not message.redelivered
    assert deaths(message) == [
        {
            "original-expiration": "60000",
            "count": 1,
            "reason": "expired",
            "queue": name,
            "exchange": "",
            "routing-keys": [name],
        }
    ]
    headers = amqp.headers_of(message.properties)
    for which in ("first", "last"):
        facts = [headers[f"x-{which}-death-{fact}"] for fact in ("exchange", "queue", "reason")]
        assert facts == ["", name, "expired"]


def test_a_message_expires_after_its_own_time_if_that_is_sooner(channel, name, dead, eventually):
    channel.declare(name, exclusive=True, arguments=letters(dead, **{"x-message-ttl": 60000}))
    channel.publish(name, "soon", block=amqp.properties(expiration="20"))
    assert one(channel, dead, eventually).body == b"soon"


def test_only_heads_expire(channel, name, eventually):
    channel.declare(name, exclusive=True)
    channel.publish(name, "stays")
    channel.publish(name, "goes", block=amqp.properties(expiration="1"))
    channel.publish(name, "stays, too")
    time.sleep(0.1)  # nothing can be waited for: nothing may happen
    assert channel.counts(name)[0] == 3
    assert channel.drain(name) == ["stays", "stays, too"]


def test_an_expired_message_without_a_dead_letter_exchange_is_gone(channel, name, eventually):
    channel.declare(name, exclusive=True, arguments={"x-message-ttl": 20})
    channel.publish(name, "x")
    eventually(lambda: channel.counts(name)[0] == 0)


@pytest.mark.parametrize(
    "text, why", [("abc", "no_integer"), ("-1", "{value_negative,-1}"), ("", "no_integer"), ("1.5", None)]
)
def test_an_expiration_that_is_no_number_of_milliseconds(channel, name, fault_of, text, why):
    channel.declare(name, exclusive=True)
    channel.publish(name, "x", block=amqp.properties(expiration=text))
    scope, code, reply, _ = fault_of(lambda: channel.counts(name))
    assert (scope, code) == ("channel", 406)
    assert reply.startswith(f"PRECONDITION_FAILED - invalid expiration '{text}': {why or ''}")


def test_an_unused_queue_goes_after_x_expires(channel, connect, name, fault_of):
    channel.declare(name, arguments={"x-expires": 50}, durable=False)
    time.sleep(0.5)
    fault = fault_of(lambda: channel.counts(name))
    assert fault[1:3] == (404, f"NOT_FOUND - no queue '{name}' in vhost '/'")


def test_a_queue_with_a_consumer_is_not_unused(channel, name):
    channel.declare(name, arguments={"x-expires": 50}, durable=False)
    tag = channel.consume(name)
    time.sleep(0.3)
    assert channel.counts(name) == (0, 1)
    channel.call("basic.cancel", consumer_tag=tag)


# ---- lengths


@pytest.mark.parametrize("limit, kept", [({"x-max-length": 2}, 2), ({"x-max-length-bytes": 9}, 2), ({"x-max-length": 0}, 0)])
def test_a_full_queue_drops_its_oldest_messages(channel, name, dead, eventually, limit, kept):
    channel.declare(name, exclusive=True, arguments=letters(dead, **limit))
    for number in range(4):
        channel.publish(name, f"no {number}")
    eventually(lambda: channel.counts(dead)[0] == 4 - kept)
    assert channel.drain(name) == [f"no {number}" for number in range(4 - kept, 4)]
    assert deaths(channel.get(dead))[0]["reason"] == "maxlen"


def test_a_full_queue_refuses_publishes_if_it_is_to(channel, name):
    channel.declare(name, exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.call("confirm.select")
    answers = []
    for number in range(3):
        channel.publish(name, str(number))
        answers.append(channel.next().name)
    assert answers == ["basic.ack", "basic.nack", "basic.nack"]
    assert channel.drain(name) == ["0"]


def test_a_refused_publish_can_be_dead_lettered(channel, name, dead, eventually):
    arguments = letters(dead, **{"x-max-length": 1, "x-overflow": "reject-publish-dlx"})
    channel.declare(name, exclusive=True, arguments=arguments)
    for number in range(2):
        channel.publish(name, str(number))
    message = one(channel, dead, eventually)
    assert message.body == b"1" and deaths(message)[0]["reason"] == "maxlen"


# ---- priorities


def test_higher_priorities_come_first(channel, name, eventually):
    channel.declare(name, exclusive=True, arguments={"x-max-priority": 5})
    for priority in (0, 5, 3, 9, 1):
        channel.publish(name, str(priority), block=amqp.properties(priority=priority))
    channel.publish(name, "none")
    eventually(lambda: channel.counts(name)[0] == 6)
    assert channel.drain(name) == ["5", "9", "3", "1", "0", "none"]


def test_without_x_max_priority_the_property_means_nothing(channel, name):
    channel.declare(name, exclusive=True)
    for priority in (0, 9, 1):
        channel.publish(name, str(priority), block=amqp.properties(priority=priority))
    assert channel.drain(name) == ["0", "9", "1"]


def test_a_consumer_of_higher_priority_is_served_first(channel, connect, name):
    channel.declare(name, durable=False)
    low, high = connect().channel(), connect().channel()
    low.consume(name, consumer_tag="low", arguments={"x-priority": -1}, no_ack=True)
    high.call("basic.qos", prefetch_count=2)
    high.consume(name, consumer_tag="high", arguments={"x-priority": 10})
    for number in range(3):
        channel.publish(name, str(number))
    assert high.bodies(2) == ["0", "1"]
    assert low.bodies(1) == ["2"], "the one of higher priority has no room"


def test_one_active_consumer_and_the_next_when_it_goes(channel, connect, name):
    channel.declare(name, durable=False, arguments={"x-single-active-consumer": True})
    first, second = connect().channel(), connect().channel()
    first.consume(name, consumer_tag="a", no_ack=True)
    second.consume(name, consumer_tag="b", no_ack=True)
    for number in range(2):
        channel.publish(name, str(number))
    assert first.bodies(2) == ["0", "1"]
    first.call("basic.cancel", consumer_tag="a")
    channel.publish(name, "2")
    assert second.bodies(1) == ["2"]


# ---- dead letters


def reject(channel, queue, eventually):
    message = []
    eventually(lambda: message or message.extend(filter(None, [channel.get(queue, no_ack=False)])))
    channel.send("basic.reject", delivery_tag=message[0].delivery_tag, requeue=False)


def test_a_rejected_message_goes_to_the_key_that_the_queue_names(channel, name, dead, eventually):
    channel.declare(name, exclusive=True, arguments=letters(dead, **{"x-dead-letter-routing-key": "other"}))
    channel.publish(name, "x", block=amqp.properties(headers={"mine": 1}, delivery_mode=2))
    reject(channel, name, eventually)
    message = one(channel, dead, eventually)
    assert message.routing_key == "other" and amqp.headers_of(message.properties)["mine"] == 1
    assert deaths(message)[0]["reason"] == "rejected"


def test_deaths_of_the_same_kind_are_counted(channel, name, eventually):
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name}
    channel.declare(name, exclusive=True, arguments=arguments)
    channel.publish(name, "again")
    for _ in range(3):
        reject(channel, name, eventually)
    message = one(channel, name, eventually)
    assert [(death["count"], death["reason"]) for death in deaths(message)] == [(3, "rejected")]


def test_a_circle_of_expiries_ends(channel, name, eventually):
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name, "x-message-ttl": 20}
    channel.declare(name, exclusive=True, arguments=arguments)
    channel.publish(name, "x")
    eventually(lambda: channel.counts(name)[0] == 0)
    time.sleep(0.1)
    assert channel.counts(name)[0] == 0


def test_deaths_that_the_publisher_claims_do_not_count(channel, name, dead, eventually):
    channel.declare(name, exclusive=True, arguments=letters(dead))
    claim = [{"queue": name, "reason": "expired", "count": 7}]
    channel.publish(name, "x", block=amqp.properties(headers={"x-death": claim}))
    reject(channel, name, eventually)
    assert [(d["count"], d["reason"]) for d in deaths(one(channel, dead, eventually))] == [(1, "rejected")]


def test_a_dead_letter_exchange_that_is_not_there_takes_nothing(channel, name, eventually):
    channel.declare(name, exclusive=True, arguments={"x-dead-letter-exchange": f"{name}-nowhere"})
    channel.publish(name, "x")
    reject(channel, name, eventually)
    assert channel.counts(name)[0] == 0


# ---- transactions


def test_a_transaction_shows_nothing_before_its_commit(channel, connect, name):
    channel.declare(name, durable=True)
    seen = lambda: connect().channel().counts(name)[0]  # noqa: E731
    channel.call("tx.select")
    for number in range(3):
        channel.publish(name, str(number), block=amqp.properties(delivery_mode=2))
    channel.counts(name)
    assert seen() == 0
    channel.call("tx.commit")
    assert seen() == 3
    channel.publish(name, "forgotten")
    channel.call("tx.rollback")
    assert seen() == 3


def test_a_rolled_back_acknowledgement_can_be_given_again(channel, name):
    channel.declare(name, exclusive=True)
    channel.publish(name, "x")
    channel.call("tx.select")
    tag = channel.get(name, no_ack=False).delivery_tag
    channel.send("basic.ack", delivery_tag=tag)
    channel.call("tx.rollback")
    channel.send("basic.ack", delivery_tag=tag)
    channel.call("tx.commit")
    channel.call("basic.recover", requeue=True)
    assert channel.drain(name) == []


def test_what_a_closed_channel_did_not_commit_has_not_happened(connect, name):
    connection = connect()
    channel = connection.channel()
    channel.declare(name, durable=True)
    channel.publish(name, "kept")
    channel.call("tx.select")
    channel.send("basic.ack", delivery_tag=channel.get(name, no_ack=False).delivery_tag)
    channel.publish(name, "lost")
    channel.call("channel.close")
    other = connection.channel(2)
    message = other.get(name)
    assert message.body == b"kept" and message.redelivered
    assert other.get(name) is None


def test_a_rejection_takes_effect_at_the_commit(channel, name, dead, eventually):
    channel.declare(name, exclusive=True, arguments=letters(dead))
    channel.publish(name, "x")
    channel.call("tx.select")
    channel.send("basic.reject", delivery_tag=channel.get(name, no_ack=False).delivery_tag, requeue=False)
    assert channel.counts(dead)[0] == 0
    channel.call("tx.commit")
    assert one(channel, dead, eventually).body == b"x"


@pytest.mark.parametrize(
    "methods, text",
    [
        (["tx.commit"], "channel is not transactional"),
        (["tx.rollback"], "channel is not transactional"),
        (["tx.select", "confirm.select"], "cannot switch from tx to confirm mode"),
        (["confirm.select", "tx.select"], "cannot switch from confirm to tx mode"),
    ],
)
def test_transactions_and_confirms_exclude_each_other(channel, fault_of, methods, text):
    *before, last = methods
    for method in before:
        channel.call(method)
    assert fault_of(lambda: channel.call(last)) == ("channel", 406, f"PRECONDITION_FAILED - {text}", last)


def test_an_exchange_that_is_not_there_is_a_fault_at_the_publish(channel, name, fault_of):
    channel.call("tx.select")
    channel.publish("k", "x", exchange=name)
    assert fault_of(channel.next)[1:3] == (404, f"NOT_FOUND - no exchange '{name}' in vhost '/'")
