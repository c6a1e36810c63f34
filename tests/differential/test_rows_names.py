"""Line breaks in names: what declares, deletes, binds or unbinds takes the name without them; what only uses a
queue or an exchange looks for the name as it is."""

import re

import pytest


@pytest.fixture
def things(channel, name):
    """A queue and two exchanges, bound one after the other with the key `k`."""
    channel.declare(name)
    for exchange in (name, name + "-to"):
        channel.call("exchange.declare", exchange=exchange, type="fanout", auto_delete=False)
    channel.call("queue.bind", queue=name, exchange=name, routing_key="k")
    channel.call("exchange.bind", source=name, destination=name + "-to", routing_key="k")
    return name


def broken(name, where):
    at = {"front": 0, "middle": 7, "end": len(name)}[where]
    return name[:at] + "\r\n" + name[at:]


STRIPPED = [
    ("queue.bind", "queue", dict(exchange="{n}", routing_key="new")),
    ("queue.bind", "exchange", dict(queue="{n}", routing_key="new")),
    ("exchange.bind", "source", dict(destination="{n}-to", routing_key="new")),
    ("exchange.bind", "destination", dict(source="{n}", routing_key="new")),
    ("queue.declare", "queue", dict(passive=True)),
    ("queue.declare", "queue", dict(exclusive=True)),
    ("exchange.declare", "exchange", dict(passive=True)),
    ("exchange.declare", "exchange", dict(type="fanout")),
]


@pytest.mark.parametrize("where", ["front", "middle", "end"])
@pytest.mark.parametrize("method, field, rest", STRIPPED, ids=[f"{row[0]} {row[1]} {at}" for at, row in enumerate(STRIPPED)])
def test_line_breaks_do_not_hide_what_is_there(channel, things, where, method, field, rest):
    """A binding to a name with a line break in it was refused as if nothing of that name were there."""
    rest = {key: value.format(n=things) if isinstance(value, str) else value for key, value in rest.items()}
    channel.call(method, **{field: broken(things, where)}, **rest)


@pytest.mark.parametrize("field", ["queue", "exchange"])
@pytest.mark.parametrize("where", ["front", "middle", "end"])
def test_unbinding_with_line_breaks_unbinds(channel, things, where, field):
    names = {"queue": things, "exchange": things} | {field: broken(things, where)}
    channel.call("queue.unbind", **names, routing_key="k")
    channel.publish("k", "x", exchange=things, mandatory=True)
    channel.expect("basic.return")


@pytest.mark.parametrize("field", ["source", "destination"])
def test_unbinding_exchanges_with_line_breaks_unbinds(channel, things, field):
    channel.call("queue.unbind", queue=things, exchange=things, routing_key="k")
    channel.call("queue.bind", queue=things, exchange=things + "-to")
    names = {"source": things, "destination": things + "-to"}
    channel.call("exchange.unbind", **names | {field: broken(names[field], "middle")}, routing_key="k")
    channel.publish("k", "x", exchange=things, mandatory=True)
    channel.expect("basic.return")


@pytest.mark.parametrize("where", ["front", "middle", "end"])
@pytest.mark.parametrize("kind", ["queue", "exchange"])
def test_deleting_with_line_breaks_deletes(channel, things, fault_of, where, kind):
    channel.call(f"{kind}.delete", **{kind: broken(things, where)})
    fault = fault_of(lambda: channel.call(f"{kind}.declare", **{kind: things}, passive=True))
    assert fault[1:3] == (404, f"NOT_FOUND - no {kind} '{things}' in vhost '/'")


@pytest.mark.parametrize("method", ["queue.purge", "basic.consume", "basic.get"])
def test_what_uses_a_queue_takes_its_name_as_it_is(channel, things, fault_of, method):
    other = broken(things, "middle")
    fault = fault_of(lambda: channel.call(method, queue=other))
    assert fault == ("channel", 404, f"NOT_FOUND - no queue '{other}' in vhost '/'", method)


def test_a_publish_takes_the_exchanges_name_as_it_is(channel, things, fault_of):
    other = broken(things, "middle")
    channel.publish("k", "x", exchange=other)
    assert fault_of(channel.next)[1:3] == (404, f"NOT_FOUND - no exchange '{other}' in vhost '/'")


def test_a_name_of_line_breaks_only_is_no_name(channel):
    """It made a queue whose name is empty, which a client can never name again."""
    queue = channel.call("queue.declare", queue="\r\n", exclusive=True).queue
    assert re.fullmatch(r"amq\.gen-[A-Za-z0-9_-]{22}", queue), queue


def test_looking_for_a_queue_of_line_breaks_only_finds_none(channel, fault_of):
    fault = fault_of(lambda: channel.call("queue.declare", queue="\n", passive=True))
    assert fault == ("channel", 404, "NOT_FOUND - no queue '' in vhost '/'", "queue.declare")


DEFAULT_EXCHANGE = "ACCESS_REFUSED - operation not permitted on the default exchange"
RESERVED = "ACCESS_REFUSED - {} name 'amq.x' contains reserved prefix 'amq.*'"


@pytest.mark.parametrize(
    "method, arguments, text",
    [
        ("exchange.declare", dict(exchange="\r\n", type="direct"), DEFAULT_EXCHANGE),
        ("exchange.delete", dict(exchange="\n"), DEFAULT_EXCHANGE),
        ("queue.bind", dict(queue="{n}", exchange="\n"), DEFAULT_EXCHANGE),
        ("queue.declare", dict(queue="am\nq.x"), RESERVED.format("queue")),
        ("exchange.declare", dict(exchange="am\nq.x", type="direct"), RESERVED.format("exchange")),
        (
            "exchange.delete",
            dict(exchange="amq.\ndirect"),
            "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
        ),
    ],
)
def test_line_breaks_open_no_way_around_a_rule(channel, things, fault_of, method, arguments, text):
    arguments = {key: value.replace("{n}", things) for key, value in arguments.items()}
    assert fault_of(lambda: channel.call(method, **arguments)) == ("channel", 403, text, method)
