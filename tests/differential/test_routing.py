"""Which bindings take which messages: default, direct, fanout, topic and headers exchanges, and exchanges bound to
exchanges. Keys and names are this case's own, so that the tables also hold on a broker that others use."""

import amqp
import pytest


def bind(channel, queue, exchange, key="", arguments=None):
    channel.call("queue.bind", queue=queue, exchange=exchange, routing_key=key, arguments=arguments)


def exchange(channel, name, kind):
    channel.call("exchange.declare", exchange=name, type=kind)
    return name


def arrives(channel, queue, key="", exchange="", **properties):
    channel.publish(key, "x", exchange=exchange, block=amqp.properties(**properties))
    return channel.drain(queue) == ["x"]


# ---- default and direct


@pytest.mark.parametrize("key, taken", [("{n}", True), ("{n}x", False), ("", False), ("#", False), ("{N}", False)])
def test_the_default_exchange_routes_by_the_queues_name(channel, name, key, taken):
    channel.declare(name)
    assert arrives(channel, name, key.format(n=name, N=name.upper())) is taken


@pytest.mark.parametrize("bound", ["k", "", "a.b", "#", "*", "\u00e9", "x" * 255])
@pytest.mark.parametrize("key", ["k", "", "a.b", "#", "*", "\u00e9", "x" * 255])
def test_direct(channel, name, bound, key):
    bind(channel, channel.declare(name), exchange(channel, name, "direct"), bound)
    assert arrives(channel, name, key, name) is (bound == key)


def test_fanout_looks_at_no_key(channel, name):
    bind(channel, channel.declare(name), exchange(channel, name, "fanout"), "some.key")
    assert arrives(channel, name, "another", name)


def test_a_message_goes_to_each_queue_once(channel, name):
    exchange(channel, name, "topic")
    queues = [channel.declare(f"{name}-{letter}") for letter in "abc"]
    for queue in queues:
        for key in ("#", "k", "*", "#.k"):
            bind(channel, queue, name, key)
    channel.publish("k", "x", exchange=name)
    assert [channel.drain(queue) for queue in queues] == [["x"]] * 3


def test_binding_twice_is_binding_once(channel, name):
    exchange(channel, name, "direct")
    channel.declare(name)
    for _ in range(2):
        bind(channel, name, name, "k")
    assert arrives(channel, name, "k", name)
    channel.call("queue.unbind", queue=name, exchange=name, routing_key="k")
    assert not arrives(channel, name, "k", name)


def test_bindings_that_differ_in_arguments_are_two(channel, name):
    exchange(channel, name, "direct")
    channel.declare(name)
    bind(channel, name, name, "k", {"a": 1})
    bind(channel, name, name, "k", {"a": 2})
    channel.call("queue.unbind", queue=name, exchange=name, routing_key="k", arguments={"a": 1})
    assert arrives(channel, name, "k", name)
    channel.call("queue.unbind", queue=name, exchange=name, routing_key="k", arguments={"a": 2})
    assert not arrives(channel, name, "k", name)


UNBOUND = [("other", {}), ("k", {"a": 1})]


@pytest.mark.parametrize("key, arguments", UNBOUND)
def test_unbinding_what_is_not_bound_succeeds_and_changes_nothing(channel, name, key, arguments):
    bind(channel, channel.declare(name), exchange(channel, name, "direct"), "k")
    channel.call("queue.unbind", queue=name, exchange=name, routing_key=key, arguments=arguments)
    assert arrives(channel, name, "k", name)


@pytest.mark.parametrize("missing", ["queue", "exchange"])
def test_unbinding_what_is_not_there_succeeds(channel, name, missing):
    channel.declare(name)
    exchange(channel, name, "direct")
    names = {"queue": name, "exchange": name} | {missing: name + "-missing"}
    channel.call("queue.unbind", routing_key="k", **names)


@pytest.mark.parametrize("missing", ["source", "destination"])
def test_unbinding_exchanges_that_are_not_there_succeeds(channel, name, missing):
    exchange(channel, name, "direct")
    names = {"source": name, "destination": name} | {missing: name + "-missing"}
    channel.call("exchange.unbind", routing_key="k", **names)


# ---- topic

TOPIC = [
    # binding key, the routing keys it takes, the routing keys it does not
    ("a.b.c", ["a.b.c"], ["a.b", "a.b.c.d", "a.b.C", "a", ""]),
    ("*", ["a", "abc", "*", "#"], ["a.b", "a."]),
    ("#", ["", "a", "a.b.c", ".", "..a"], []),
    ("a.*", ["a.b", "a.", "a.*"], ["a", "a.b.c", "b.a", ""]),
    ("*.a", ["b.a", ".a"], ["a", "c.b.a"]),
    ("*.*", ["a.b", "."], ["a", "a.b.c", ""]),
    ("a.#", ["a", "a.b", "a.b.c", "a."], ["b", "ab", "", "b.a"]),
    ("#.a", ["a", "b.a", "c.b.a", ".a"], ["b", "a.b", "ba"]),
    ("#.a.#", ["a", "b.a", "a.b", "b.a.c"], ["b", "ab", ""]),
    ("a.#.b", ["a.b", "a.x.b", "a.x.y.b"], ["a", "b", "a.bb", "b.a"]),
    ("a.*.#", ["a.b", "a.b.c"], ["a", ""]),
    ("#.*", ["a", "a.b"], []),
    ("*.#", ["a", "a.b"], []),
    ("a.*.c", ["a.b.c", "a..c"], ["a.c", "a.b.b.c"]),
    ("*.critical", ["kernel.critical"], ["critical", "a.b.critical"]),
    ("kernel.*", ["kernel.info"], ["kernel", "kernel.a.b"]),
    ("a*", ["a*"], ["ab", "a.b"]),
    ("#a", ["#a"], ["a", "b.a"]),
    ("", [""], ["a", "."]),
    ("a..b", ["a..b"], ["a.b", "a.x.b"]),
    (".", ["."], ["", "a"]),
]


@pytest.mark.parametrize("bound, takes, leaves", TOPIC, ids=[row[0] or "empty" for row in TOPIC])
def test_topic(channel, name, bound, takes, leaves):
    bind(channel, channel.declare(name), exchange(channel, name, "topic"), bound)
    assert [key for key in takes if not arrives(channel, name, key, name)] == []
    assert [key for key in leaves if arrives(channel, name, key, name)] == []


def test_topic_unbind(channel, name):
    exchange(channel, name, "topic")
    channel.declare(name)
    for key in ("a.*", "a.#", "a.b"):
        bind(channel, name, name, key)
    for key in ("a.b", "a.*"):
        channel.call("queue.unbind", queue=name, exchange=name, routing_key=key)
        assert arrives(channel, name, "a.b", name)
    channel.call("queue.unbind", queue=name, exchange=name, routing_key="a.#")
    assert not arrives(channel, name, "a.b", name)


# ---- headers

F = amqp.Field
HEADERS = [
    # binding arguments, message headers, taken
    ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "x"}, True),
    ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "x", "c": True}, True),
    ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1}, False),
    ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "y"}, False),
    ({"x-match": "all", "a": 1}, {}, False),
    ({"x-match": "all"}, {}, True),
    ({"x-match": "all"}, {"a": 1}, True),
    ({}, {"a": 1}, True),
    ({"a": 1}, {"a": 1}, True),
    ({"a": 1, "b": 2}, {"a": 1}, False),
    ({"x-match": "any", "a": 1, "b": "x"}, {"a": 1}, True),
    ({"x-match": "any", "a": 1, "b": "x"}, {"b": "x", "a": 9}, True),
    ({"x-match": "any", "a": 1, "b": "x"}, {"a": 2, "b": "y"}, False),
    ({"x-match": "any", "a": 1}, {}, False),
    ({"x-match": "any"}, {}, False),
    ({"x-match": "any"}, {"a": 1}, False),
    # the value may be absent: only the name counts
    ({"x-match": "all", "a": None}, {"a": 7}, True),
    ({"x-match": "all", "a": None}, {"a": "x"}, True),
    ({"x-match": "all", "a": None}, {"b": 7}, False),
    ({"x-match": "any", "a": None}, {"a": None}, True),
    # names that begin with x- count only where asked for
    ({"x-match": "all", "x-a": 1, "b": 2}, {"b": 2}, True),
    ({"x-match": "any", "x-a": 1}, {"x-a": 1}, False),
    ({"x-match": "all-with-x", "x-a": 1, "b": 2}, {"b": 2}, False),
    ({"x-match": "all-with-x", "x-a": 1, "b": 2}, {"x-a": 1, "b": 2}, True),
    ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
    ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 2}, False),
    ({"x-match": "any-with-x", "x-a": 1, "b": 2}, {"b": 2}, True),
    # types
    ({"x-match": "all", "a": "1"}, {"a": 1}, False),
    ({"x-match": "all", "a": True}, {"a": True}, True),
    ({"x-match": "all", "a": True}, {"a": 1}, False),
    ({"x-match": "all", "a": True}, {"a": "true"}, False),
    ({"x-match": "all", "a": 1}, {"a": F(b"l", b"\0\0\0\0\0\0\0\1")}, True),
    ({"x-match": "all", "a": 1}, {"a": F(b"b", b"\1")}, True),
    ({"x-match": "all", "a": 1.5}, {"a": 1.5}, True),
    ({"x-match": "all", "a": 1}, {"a": 1.0}, False),
    ({"x-match": "all", "a": {"k": 1}}, {"a": {"k": 1}}, True),
    ({"x-match": "all", "a": {"k": 1}}, {"a": {"k": 2}}, False),
    ({"x-match": "all", "a": [1, 2]}, {"a": [1, 2]}, True),
    ({"x-match": "all", "a": [1, 2]}, {"a": [2, 1]}, False),
    ({"x-match": "all", "A": 1}, {"a": 1}, False),
    ({"x-match": "all", "b": 1, "a": 2}, {"a": 2, "b": 1}, True),
]


@pytest.mark.parametrize("bound, headers, taken", HEADERS, ids=range(len(HEADERS)))
def test_headers(channel, name, bound, headers, taken):
    bind(channel, channel.declare(name), exchange(channel, name, "headers"), "ignored", bound)
    assert arrives(channel, name, "whatever", name, headers=headers) is taken


def test_headers_of_a_message_without_any(channel, name):
    exchange(channel, name, "headers")
    for queue, arguments in (("all", {"x-match": "all"}), ("a", {"x-match": "all", "a": 1}), ("any", {"x-match": "any"})):
        bind(channel, channel.declare(f"{name}-{queue}"), name, "", arguments)
    channel.publish("", "x", exchange=name)
    assert [channel.drain(f"{name}-{queue}") for queue in ("all", "a", "any")] == [["x"], [], []]


@pytest.mark.parametrize("value", ["some", "", "ALL", 1, None, True])
def test_an_unknown_x_match_is_refused(channel, name, fault_of, value):
    channel.declare(name)
    exchange(channel, name, "headers")
    fault = fault_of(lambda: bind(channel, name, name, "", {"x-match": value}))
    assert (fault[0], fault[1], fault[3]) == ("channel", 406, "queue.bind")


# ---- exchanges bound to exchanges


def test_a_message_follows_bindings_between_exchanges(channel, name):
    for part, kind in (("a", "direct"), ("b", "topic"), ("c", "fanout")):
        exchange(channel, f"{name}-{part}", kind)
    channel.call("exchange.bind", source=f"{name}-a", destination=f"{name}-b", routing_key="k.l")
    channel.call("exchange.bind", source=f"{name}-b", destination=f"{name}-c", routing_key="k.*")
    bind(channel, channel.declare(name), f"{name}-c")
    assert arrives(channel, name, "k.l", f"{name}-a")
    assert not arrives(channel, name, "k.m", f"{name}-a")
    assert arrives(channel, name, "k.m", f"{name}-b")
    channel.call("exchange.unbind", source=f"{name}-b", destination=f"{name}-c", routing_key="k.*")
    assert not arrives(channel, name, "k.l", f"{name}-a")


def test_a_circle_of_exchanges_ends(channel, name):
    a, b = exchange(channel, name + "-a", "fanout"), exchange(channel, name + "-b", "fanout")
    channel.call("exchange.bind", source=a, destination=b)
    channel.call("exchange.bind", source=b, destination=a)
    channel.call("exchange.bind", source=a, destination=a)
    bind(channel, channel.declare(name), b)
    assert arrives(channel, name, "", a)


def test_an_internal_exchange_takes_what_comes_from_another(channel, name):
    exchange(channel, name + "-out", "fanout")
    channel.call("exchange.declare", exchange=name, type="fanout", internal=True)
    channel.call("exchange.bind", source=name + "-out", destination=name)
    bind(channel, channel.declare(name), name)
    assert arrives(channel, name, "", name + "-out")


def test_a_message_keeps_the_exchange_and_key_it_was_published_with(channel, name):
    a, b = exchange(channel, name + "-a", "fanout"), exchange(channel, name + "-b", "fanout")
    channel.call("exchange.bind", source=a, destination=b, routing_key="other")
    bind(channel, channel.declare(name), b, "third")
    channel.publish("first", "x", exchange=a)
    message = channel.get(name)
    assert (message.exchange, message.routing_key) == (a, "first")


def test_a_deleted_queue_takes_its_bindings_along(channel, name):
    exchange(channel, name, "direct")
    bind(channel, channel.declare(name), name, "k")
    channel.call("queue.delete", queue=name)
    channel.declare(name)
    assert not arrives(channel, name, "k", name)
