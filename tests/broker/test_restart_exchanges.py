"""What a restart keeps of exchanges that choose by hash, by chance or keep a history."""

import pika
import pytest

PERSISTENT = pika.BasicProperties(delivery_mode=2)
KEYS = [f"key-{at}" for at in range(60)]
TYPES = {
    "x-consistent-hash": {"hash-header": "h"},
    "x-modulus-hash": {},
    "x-random": {},
    "x-local-random": {},
    "x-recent-history": {"x-recent-history-length": 3},
}
WEIGHTS = {"x-consistent-hash": ["1", "2", "3"]}


def queues_of(kind):
    return [f"{kind}-{at}" for at in range(3)]


def declare(channel):
    for kind, arguments in TYPES.items():
        channel.exchange_declare(kind, kind, durable=True, arguments=arguments)
        for queue, key in zip(queues_of(kind), WEIGHTS.get(kind, [""] * 3), strict=True):
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, kind, key)


def publish(channel, kind):
    for key in KEYS:
        properties = pika.BasicProperties(delivery_mode=2, headers={"h": key})
        channel.basic_publish(kind, key, key.encode(), properties)


def drain(channel, queue):
    found = []
    while (got := channel.basic_get(queue, auto_ack=True))[0]:
        found.append(got[2].decode())
    return found


def shares(channel, kind):
    return [drain(channel, queue) for queue in queues_of(kind)]


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_bindings_and_choices_are_the_same_after_a_restart(native, how):
    broker = native()
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        declare(channel)
        before = {}
        for kind in TYPES:
            publish(channel, kind)
            before[kind] = shares(channel, kind)
        listed = sorted((row["source_name"], row["destination_name"], row["routing_key"]) for row in broker.ctl("list_bindings"))
    broker.stop() if how == "SIGTERM" else broker.kill()
    broker.start()
    types = {row["name"]: row["type"] for row in broker.ctl("list_exchanges")}
    assert {kind: types.get(kind) for kind in TYPES} == {kind: kind for kind in TYPES}
    again = sorted((row["source_name"], row["destination_name"], row["routing_key"]) for row in broker.ctl("list_bindings"))
    assert again == listed
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        declare(channel)
        for kind in TYPES:
            # What was taken and acknowledged just before a kill may be there again.
            shares(channel, kind)
            publish(channel, kind)
            after = shares(channel, kind)
            if kind in ("x-consistent-hash", "x-modulus-hash"):
                assert after == before[kind], kind
            elif kind == "x-recent-history":
                assert after == [KEYS] * 3
            else:
                assert sorted(sum(after, [])) == sorted(KEYS) and all(after), kind
        channel.queue_declare("later", durable=True)
        channel.queue_bind("later", "x-recent-history", "")
        assert drain(channel, "later") == KEYS[-3:], "its length is as it was declared"
    with broker.connect() as connection, pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
        connection.channel().exchange_declare("x-random", "fanout", durable=True)
    assert closed.value.reply_code == 406
