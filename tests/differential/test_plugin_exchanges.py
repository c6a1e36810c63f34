"""Exchange types that RabbitMQ has as plugins, and x-local-random.

They are skipped for a broker that does not know the type: RabbitMQ without the plugin.
"""

import amqp
import pytest

HASH, MODULUS, RANDOM, LOCAL = "x-consistent-hash", "x-modulus-hash", "x-random", "x-local-random"
HISTORY = "x-recent-history"


@pytest.fixture
def declare(connect, channel, name):
    """Declares an exchange of a type on the case's channel, and gives its name."""
    made = []

    def declare(kind, **declared):
        trial = connect().channel()
        exchange = f"{name}-{len(made)}"
        made.append(exchange)
        try:
            trial.call("exchange.declare", exchange=f"{exchange}-trial", type=kind, auto_delete=True)
        except amqp.Closed as closed:
            if "unknown exchange type" in closed.text:
                pytest.skip(f"{kind} is not enabled")
            raise
        channel.call("exchange.declare", exchange=exchange, type=kind, **{"auto_delete": True, **declared})
        return exchange

    return declare


def bound(channel, exchange, count, key):
    """So many queues that are bound to an exchange with one key."""
    queues = [channel.declare() for _ in range(count)]
    for queue in queues:
        channel.call("queue.bind", queue=queue, exchange=exchange, routing_key=key)
    return queues


def publish(channel, exchange, keys, blocks=None, **flags):
    """One message for each key, its body the key; all of them are confirmed."""
    channel.call("confirm.select")
    channel.published = getattr(channel, "published", 0)
    waiting = set(range(channel.published + 1, channel.published + 1 + len(keys)))
    channel.published += len(keys)
    for at, key in enumerate(keys):
        channel.publish(key, key, exchange=exchange, block=blocks[at] if blocks else b"\x00\x00", **flags)
    while waiting:
        ack = channel.expect("basic.ack")
        tag = ack.delivery_tag
        waiting -= {other for other in waiting if other <= tag} if ack.multiple else {tag}


def refusal(fault_of, action, method):
    scope, code, text, cause = fault_of(action)
    assert (scope, code, cause) == ("channel", 406, method)
    return text.removeprefix("PRECONDITION_FAILED - ")


# ---- x-consistent-hash


def test_equal_keys_go_to_one_queue_and_many_keys_to_all(channel, declare):
    exchange = declare(HASH)
    queues = bound(channel, exchange, 4, "10")
    keys = [f"key-{at}" for at in range(400)]
    publish(channel, exchange, keys + keys)
    found = [channel.drain(queue) for queue in queues]
    assert sorted(sum(found, [])) == sorted(keys + keys)
    for bodies in found:
        assert len(bodies) > 40, "an even share would be 200"
        assert all(bodies.count(body) == 2 for body in bodies)


def test_a_weight_is_a_share(channel, declare):
    exchange = declare(HASH)
    light, heavy = bound(channel, exchange, 1, "1") + bound(channel, exchange, 1, "9")
    publish(channel, exchange, [f"key-{at}" for at in range(500)])
    light, heavy = len(channel.drain(light)), len(channel.drain(heavy))
    assert light + heavy == 500 and 10 < light < 120, "a share of one in ten would be 50"


def test_a_queue_that_is_bound_later_takes_only_its_own_keys(channel, declare):
    exchange = declare(HASH)
    queues = bound(channel, exchange, 3, "10")
    keys = [f"key-{at}" for at in range(300)]
    publish(channel, exchange, keys)
    before = {key: queue for queue in queues for key in channel.drain(queue)}
    queues += bound(channel, exchange, 1, "10")
    publish(channel, exchange, keys)
    after = {key: queue for queue in queues for key in channel.drain(queue)}
    assert {after[key] for key in keys if after[key] != before[key]} == {queues[3]}


@pytest.mark.parametrize("key", ["abc", "", "1.5", " 1"])
def test_a_binding_key_must_be_an_integer(channel, declare, fault_of, key):
    exchange = declare(HASH)
    text = refusal(fault_of, lambda: bound(channel, exchange, 1, key), "queue.bind")
    assert text == f'The binding key must be an integer: <<"{key}">>'.replace('""', "")


@pytest.mark.parametrize("key", ["0", "-1"])
def test_a_binding_key_must_be_positive(channel, declare, fault_of, key):
    exchange = declare(HASH)
    text = refusal(fault_of, lambda: bound(channel, exchange, 1, key), "queue.bind")
    assert text == "The binding key must be greater than 0"


def test_a_weight_beyond_a_million_is_refused(channel, declare, fault_of, is_rabbitmq):
    """RabbitMQ 4.0 would make as many buckets in memory."""
    if is_rabbitmq:
        pytest.skip("RabbitMQ has no bound")
    exchange = declare(HASH)
    text = refusal(fault_of, lambda: bound(channel, exchange, 1, "1000001"), "queue.bind")
    assert text == "The binding key must not be greater than 1000000"


@pytest.mark.parametrize(
    "arguments, given",
    [
        ({"hash-header": "h"}, {"headers": {"h": "same"}}),
        ({"hash-property": "message_id"}, {"message_id": "same"}),
        ({"hash-property": "correlation_id"}, {"correlation_id": "same"}),
        ({"hash-property": "timestamp"}, {"timestamp": 1234}),
    ],
)
def test_hashes_a_header_or_a_property_instead_of_the_key(channel, declare, arguments, given):
    exchange = declare(HASH, arguments=arguments)
    queues = bound(channel, exchange, 4, "10")
    keys = [f"key-{at}" for at in range(50)]
    publish(channel, exchange, keys, [amqp.properties(**given)] * 50)
    assert sorted(len(channel.drain(queue)) for queue in queues) == [0, 0, 0, 50]
    publish(channel, exchange, keys, [amqp.properties(app_id=key) for key in keys], mandatory=True)
    assert sorted(len(channel.drain(queue)) for queue in queues) == [0, 0, 0, 50], "all that have none go together"


def test_different_values_of_a_header_are_shared_out(channel, declare):
    exchange = declare(HASH, arguments={"hash-header": "h"})
    queues = bound(channel, exchange, 2, "10")
    publish(channel, exchange, ["same"] * 100, [amqp.properties(headers={"h": f"value-{at}"}) for at in range(100)])
    assert all(channel.drain(queue) for queue in queues)


def test_only_some_properties_can_be_hashed(declare, fault_of):
    text = refusal(fault_of, lambda: declare(HASH, arguments={"hash-property": "app_id"}), "exchange.declare")
    assert text == "Unsupported property: app_id"


def test_header_and_property_exclude_each_other(declare, fault_of):
    both = {"hash-header": "h", "hash-property": "message_id"}
    text = refusal(fault_of, lambda: declare(HASH, arguments=both), "exchange.declare")
    assert text == "hash-header and hash-property are mutually exclusive"


def test_an_argument_that_is_no_string_is_refused(declare, fault_of, is_rabbitmq):
    """RabbitMQ 4.0 crashes and ends the connection with 541."""
    if is_rabbitmq:
        pytest.skip("RabbitMQ ends the connection")
    text = refusal(fault_of, lambda: declare(HASH, arguments={"hash-header": 5}), "exchange.declare")
    assert text.startswith("invalid arg 'hash-header' for exchange") and text.endswith("{unacceptable_type,signedint}")


def test_cc_does_not_change_where_a_consistent_hash_leads(channel, declare):
    exchange = declare(HASH)
    queues = bound(channel, exchange, 4, "10")
    blocks = [amqp.properties(headers={"CC": [f"copy-{at}"]}) for at in range(50)]
    publish(channel, exchange, ["same"] * 50, blocks)
    assert sorted(len(channel.drain(queue)) for queue in queues) == [0, 0, 0, 50]


# ---- x-modulus-hash


def test_a_modulus_hash_leads_equal_keys_to_one_queue(channel, declare):
    exchange = declare(MODULUS)
    queues = bound(channel, exchange, 4, "any")
    keys = [f"key-{at}" for at in range(200)]
    publish(channel, exchange, keys + keys)
    found = [channel.drain(queue) for queue in queues]
    assert sorted(sum(found, [])) == sorted(keys + keys)
    assert all(bodies and all(bodies.count(body) == 2 for body in bodies) for bodies in found)


# ---- x-random, x-local-random


@pytest.mark.parametrize("kind", [RANDOM, LOCAL])
def test_each_message_goes_to_one_queue_by_chance(channel, declare, kind):
    exchange = declare(kind)
    queues = bound(channel, exchange, 4, "")
    publish(channel, exchange, ["same"] * 200)
    counts = [len(channel.drain(queue)) for queue in queues]
    assert sum(counts) == 200 and min(counts) > 10, "an even share would be 50"


def test_a_random_exchange_does_not_look_at_keys(channel, declare):
    exchange = declare(RANDOM)
    (queue,) = bound(channel, exchange, 1, "one")
    publish(channel, exchange, ["one", "another"])
    assert channel.drain(queue) == ["one", "another"]


def test_a_local_random_exchange_takes_only_the_empty_key(channel, declare, fault_of):
    exchange = declare(LOCAL)
    text = refusal(fault_of, lambda: bound(channel, exchange, 1, "a"), "queue.bind")
    assert text == "Non empty binding 'a' key not permitted"


def test_a_local_random_exchange_leads_to_classic_queues_only(channel, declare, fault_of, name):
    exchange = declare(LOCAL)
    channel.declare(name, durable=True, arguments={"x-queue-type": "quorum"})
    bind = lambda: channel.call("queue.bind", queue=name, exchange=exchange)  # noqa: E731
    assert refusal(fault_of, bind, "queue.bind") == "Queue type rabbit_quorum_queue not valid for this exchange type"


def test_a_local_random_exchange_leads_to_no_exchange(channel, declare, fault_of):
    exchange, other = declare(LOCAL), declare(RANDOM)
    bind = lambda: channel.call("exchange.bind", destination=other, source=exchange)  # noqa: E731
    assert refusal(fault_of, bind, "exchange.bind") == "Destination not found"


# ---- x-recent-history


def test_a_new_binding_gets_the_latest_messages_in_order(channel, declare, eventually):
    exchange = declare(HISTORY)
    publish(channel, exchange, [f"{at}" for at in range(25)])
    (queue,) = bound(channel, exchange, 1, "any")
    came = []
    eventually(lambda: came.extend(channel.drain(queue)) or len(came) >= 20)
    assert came == [f"{at}" for at in range(5, 25)]
    publish(channel, exchange, ["next"])
    assert channel.drain(queue) == ["next"]


def test_a_history_is_as_long_as_its_argument_says(channel, declare):
    exchange = declare(HISTORY, arguments={"x-recent-history-length": 2})
    publish(channel, exchange, ["a", "b", "c"])
    (queue,) = bound(channel, exchange, 1, "")
    channel.expect_counts(queue, 2, 0)
    assert channel.drain(queue) == ["b", "c"]


def test_a_kept_message_is_as_it_was_published(channel, declare):
    exchange = declare(HISTORY)
    block = amqp.properties(content_type="text/plain", headers={"k": "v"}, delivery_mode=2, priority=3)
    publish(channel, exchange, ["key"], [block])
    (queue,) = bound(channel, exchange, 1, "")
    channel.expect_counts(queue, 1, 0)
    message = channel.get(queue)
    assert (message.exchange, message.routing_key, message.body) == (exchange, "key", b"key")
    assert message.properties == block and not message.redelivered


def test_a_message_can_ask_not_to_be_kept(channel, declare):
    exchange = declare(HISTORY)
    (present,) = bound(channel, exchange, 1, "")
    no_store = [amqp.properties(headers={"x-recent-history-no-store": value}) for value in (True, False, "true")]
    publish(channel, exchange, ["kept-not", "kept", "kept-too"], no_store)
    (later,) = bound(channel, exchange, 1, "")
    channel.expect_counts(later, 2, 0)
    assert channel.drain(later) == ["kept", "kept-too"]
    assert channel.drain(present) == ["kept-not", "kept", "kept-too"], "it is delivered all the same"


def test_only_a_new_binding_gets_the_history(channel, declare):
    exchange = declare(HISTORY)
    publish(channel, exchange, ["a"])
    (queue,) = bound(channel, exchange, 1, "key")
    channel.expect_counts(queue, 1, 0)
    channel.call("queue.bind", queue=queue, exchange=exchange, routing_key="key")
    channel.expect_counts(queue, 1, 0)
    channel.call("queue.bind", queue=queue, exchange=exchange, routing_key="another")
    channel.expect_counts(queue, 2, 0)


def test_a_binding_to_an_exchange_gets_the_history_too(channel, declare):
    """The order differs: RabbitMQ delivers the newest first here, and ends the connection when nothing takes it."""
    exchange, other = declare(HISTORY), declare(RANDOM)
    (queue,) = bound(channel, other, 1, "")
    publish(channel, exchange, ["a", "b"])
    channel.call("exchange.bind", destination=other, source=exchange)
    channel.expect_counts(queue, 2, 0)
    assert sorted(channel.drain(queue)) == ["a", "b"]


def test_a_message_that_came_back_was_kept(channel, declare):
    exchange = declare(HISTORY)
    channel.publish("key", "x", exchange=exchange, mandatory=True)
    channel.expect("basic.return", reply_code=312)
    (queue,) = bound(channel, exchange, 1, "")
    channel.expect_counts(queue, 1, 0)


def test_what_a_transaction_publishes_is_kept_when_it_is_routed(channel, declare):
    """Which is at the publish: what is rolled back is kept as well."""
    exchange = declare(HISTORY)
    channel.call("tx.select")
    channel.publish("key", "rolled back", exchange=exchange)
    channel.call("tx.rollback")
    channel.publish("key", "committed", exchange=exchange)
    channel.call("tx.commit")
    (queue,) = bound(channel, exchange, 1, "")
    channel.expect_counts(queue, 2, 0)
    assert channel.drain(queue) == ["rolled back", "committed"]


def test_a_history_goes_with_its_exchange(channel, declare):
    exchange = declare(HISTORY)
    publish(channel, exchange, ["a"])
    channel.call("exchange.delete", exchange=exchange)
    channel.call("exchange.declare", exchange=exchange, type=HISTORY, auto_delete=True)
    (queue,) = bound(channel, exchange, 1, "")
    publish(channel, exchange, ["b"])
    channel.expect_counts(queue, 1, 0)
    assert channel.drain(queue) == ["b"]


def test_a_delayed_message_is_kept_when_its_time_has_come(channel, name):
    """For a broker with delayed exchanges, which RabbitMQ has as a community plugin."""
    arguments = {"x-delayed-type": HISTORY, "x-recent-history-length": 2}
    declared = {"exchange": name, "type": "x-delayed-message", "auto_delete": True, "arguments": arguments}
    try:
        channel.call("exchange.declare", **declared)
    except amqp.Closed:
        pytest.skip("x-delayed-message is not enabled")
    (first,) = bound(channel, name, 1, "")
    publish(channel, name, ["later", "now"], [amqp.properties(headers={"x-delay": 1000}), b"\x00\x00"])
    channel.expect_counts(first, 2, 0)
    (second,) = bound(channel, name, 1, "")
    channel.expect_counts(second, 2, 0)
    assert channel.drain(second) == ["now", "later"]


@pytest.mark.parametrize("length, shown", [(0, "0"), (-1, "-1"), ("5", '<<"5">>'), (True, "true"), (2.5, "2.5")])
def test_a_history_length_must_be_a_positive_integer(declare, fault_of, length, shown):
    arguments = {"x-recent-history-length": length}
    text = refusal(fault_of, lambda: declare(HISTORY, arguments=arguments), "exchange.declare")
    assert text == f"Invalid argument {shown}, 'x-recent-history-length' must be a positive integer"


def test_a_history_longer_than_its_bound_is_refused(declare, fault_of, is_rabbitmq):
    """RabbitMQ has no bound; all of a history is in memory."""
    if is_rabbitmq:
        pytest.skip("RabbitMQ has no bound")
    arguments = {"x-recent-history-length": 100_001}
    text = refusal(fault_of, lambda: declare(HISTORY, arguments=arguments), "exchange.declare")
    assert text == "Invalid argument 100001, 'x-recent-history-length' must not be greater than 100000"


# ---- all of them


@pytest.mark.parametrize("kind", [HASH, MODULUS, RANDOM, HISTORY])
def test_leads_to_exchanges_as_to_queues(channel, declare, kind):
    exchange, other = declare(kind), declare(RANDOM)
    (queue,) = bound(channel, other, 1, "")
    channel.call("exchange.bind", destination=other, source=exchange, routing_key="1")
    publish(channel, exchange, ["a", "b"])
    assert channel.drain(queue) == ["a", "b"]


@pytest.mark.parametrize("kind", [HASH, MODULUS, RANDOM, LOCAL, HISTORY])
def test_without_a_binding_the_alternate_exchange_takes_it(channel, declare, kind):
    alternate = declare(RANDOM)
    (queue,) = bound(channel, alternate, 1, "")
    publish(channel, declare(kind, arguments={"alternate-exchange": alternate}), ["a"])
    assert channel.drain(queue) == ["a"]


@pytest.mark.parametrize("kind", [HASH, MODULUS, RANDOM, LOCAL, HISTORY])
def test_without_a_binding_a_mandatory_message_comes_back(channel, declare, kind):
    channel.publish("a", "x", exchange=declare(kind), mandatory=True)
    channel.expect("basic.return", reply_code=312)


@pytest.mark.parametrize("kind", [HASH, MODULUS, RANDOM, LOCAL, HISTORY])
def test_an_unbound_queue_gets_nothing_more(channel, declare, kind):
    exchange = declare(kind)
    key = "1" if kind == HASH else ""
    first, second = bound(channel, exchange, 2, key)
    channel.call("queue.unbind", queue=first, exchange=exchange, routing_key=key)
    publish(channel, exchange, [f"key-{at}" for at in range(20)])
    assert (len(channel.drain(first)), len(channel.drain(second))) == (0, 20)


def test_a_type_with_a_hyphen_is_quoted_when_another_was_declared(channel, declare, fault_of):
    exchange = declare(RANDOM)
    again = lambda: channel.call("exchange.declare", exchange=exchange, type="fanout", auto_delete=True)  # noqa: E731
    text = f"inequivalent arg 'type' for exchange '{exchange}' in vhost '/': received 'fanout' but current is ''x-random''"
    assert refusal(fault_of, again, "exchange.declare") == text
