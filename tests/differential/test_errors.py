"""What a broker closes with: scope, code, text word for word, and the method that it blames.

Each case is one request. `{n}` stands for a name of the case's own, `before` for what makes the request wrong.
People search logs for these texts, and clients take them apart.
"""

import amqp
import pytest

SOFT, HARD = "channel", "connection"


def nothing(ch, n):
    """Nothing comes before the request."""


def a_queue(**flags):
    return lambda ch, n: ch.declare(n, **(flags or {"exclusive": True}))


def an_exchange(**flags):
    return lambda ch, n: ch.call("exchange.declare", exchange=n, **({"type": "direct"} | flags))


def a_queue_with(consumer=None, messages=0):
    def before(ch, n):
        ch.declare(n)
        for _ in range(messages):
            ch.publish(n, "x")
        if consumer is not None:
            ch.consume(n, consumer_tag="there", **consumer)
        ch.expect_counts(n, messages, int(consumer is not None))

    return before


def a_bound_exchange(ch, n):
    an_exchange()(ch, n)
    ch.declare(n)
    ch.call("queue.bind", queue=n, exchange=n, routing_key="k")


def a_consumer(ch, n):
    ch.declare(n)
    ch.consume(n, consumer_tag="there")


def in_confirm_mode(ch, n):
    ch.call("confirm.select")


def a_settled_delivery(ch, n):
    ch.declare(n)
    ch.publish(n, "x")
    assert ch.get(n, no_ack=False).delivery_tag == 1
    ch.send("basic.ack", delivery_tag=1)


def an_unacknowledged_get(ch, n):
    ch.declare(n)
    ch.publish(n, "x")
    assert ch.get(n, no_ack=False).delivery_tag == 1


def inequivalent(what, kind, received, current):
    return f"PRECONDITION_FAILED - inequivalent arg '{what}' for {kind} '{{n}}' in vhost '/': {received} but current is {current}"


NO_QUEUE = "NOT_FOUND - no queue '{n}' in vhost '/'"
NO_EXCHANGE = "NOT_FOUND - no exchange '{n}' in vhost '/'"
NO_LAST_QUEUE = "NOT_FOUND - no previously declared queue"
DEFAULT_EXCHANGE = "ACCESS_REFUSED - operation not permitted on the default exchange"
LOCKED = (
    "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{n}' in vhost '/'. It could be originally declared "
    "on another connection or the exclusive property value does not match that of the original declaration."
)
UNKNOWN_TAG = "PRECONDITION_FAILED - unknown delivery tag {0}"

# id: before, method, arguments, scope, code, text
CASES = {
    # -- queues that are not there
    "passive declare of no queue": (nothing, "queue.declare", dict(queue="{n}", passive=True), SOFT, 404, NO_QUEUE),
    "bind no queue": (nothing, "queue.bind", dict(queue="{n}", exchange="amq.direct"), SOFT, 404, NO_QUEUE),
    "purge no queue": (nothing, "queue.purge", dict(queue="{n}"), SOFT, 404, NO_QUEUE),
    "consume from no queue": (nothing, "basic.consume", dict(queue="{n}"), SOFT, 404, NO_QUEUE),
    "get from no queue": (nothing, "basic.get", dict(queue="{n}"), SOFT, 404, NO_QUEUE),
    # -- the empty name without a queue declared before
    "empty name: passive declare": (nothing, "queue.declare", dict(passive=True), SOFT, 404, "NOT_FOUND - no queue '' in vhost '/'"),
    "empty name: bind": (nothing, "queue.bind", dict(exchange="amq.direct"), SOFT, 404, NO_LAST_QUEUE),
    "empty name: unbind": (nothing, "queue.unbind", dict(exchange="amq.direct"), SOFT, 404, NO_LAST_QUEUE),
    "empty name: purge": (nothing, "queue.purge", {}, SOFT, 404, NO_LAST_QUEUE),
    "empty name: delete": (nothing, "queue.delete", {}, SOFT, 404, NO_LAST_QUEUE),
    "empty name: consume": (nothing, "basic.consume", {}, SOFT, 404, NO_LAST_QUEUE),
    "empty name: get": (nothing, "basic.get", {}, SOFT, 404, NO_LAST_QUEUE),
    # -- exchanges that are not there
    "passive declare of no exchange": (nothing, "exchange.declare", dict(exchange="{n}", passive=True), SOFT, 404, NO_EXCHANGE),
    "bind to no exchange": (a_queue(), "queue.bind", dict(queue="{n}", exchange="{n}"), SOFT, 404, NO_EXCHANGE),
    "bind neither": (nothing, "queue.bind", dict(queue="{n}", exchange="{n}"), SOFT, 404, NO_EXCHANGE),
    "e2e: no source": (nothing, "exchange.bind", dict(source="{n}", destination="amq.fanout"), SOFT, 404, NO_EXCHANGE),
    "e2e: no destination": (nothing, "exchange.bind", dict(source="amq.fanout", destination="{n}"), SOFT, 404, NO_EXCHANGE),
    # -- declared differently
    "queue durable differs": (
        a_queue(durable=True), "queue.declare", dict(queue="{n}", durable=False, auto_delete=False), SOFT, 406,
        inequivalent("durable", "queue", "received 'false'", "'true'")),
    "queue auto-delete differs": (
        a_queue(durable=True), "queue.declare", dict(queue="{n}", durable=True, auto_delete=True), SOFT, 406,
        inequivalent("auto_delete", "queue", "received 'true'", "'false'")),
    "queue exclusive differs": (
        a_queue(exclusive=True), "queue.declare", dict(queue="{n}"), SOFT, 405, LOCKED),
    "queue becomes exclusive": (
        a_queue(durable=True), "queue.declare", dict(queue="{n}", durable=True, exclusive=True), SOFT, 405, LOCKED),
    "exchange type differs": (
        an_exchange(), "exchange.declare", dict(exchange="{n}", type="fanout"), SOFT, 406,
        inequivalent("type", "exchange", "received 'fanout'", "'direct'")),
    "exchange durable differs": (
        an_exchange(), "exchange.declare", dict(exchange="{n}", type="direct", durable=True), SOFT, 406,
        inequivalent("durable", "exchange", "received 'true'", "'false'")),
    "exchange auto-delete differs": (
        an_exchange(), "exchange.declare", dict(exchange="{n}", type="direct", auto_delete=True), SOFT, 406,
        inequivalent("auto_delete", "exchange", "received 'true'", "'false'")),
    "exchange internal differs": (
        an_exchange(internal=True), "exchange.declare", dict(exchange="{n}", type="direct"), SOFT, 406,
        inequivalent("internal", "exchange", "received 'false'", "'true'")),
    "exchange alternate differs": (
        an_exchange(), "exchange.declare",
        dict(exchange="{n}", type="direct", arguments={"alternate-exchange": "amq.fanout"}), SOFT, 406,
        inequivalent("alternate-exchange", "exchange", "received the value 'amq.fanout' of type 'longstr'", "none")),
    "exchange alternate missing": (
        an_exchange(arguments={"alternate-exchange": "amq.fanout"}), "exchange.declare",
        dict(exchange="{n}", type="direct"), SOFT, 406,
        inequivalent("alternate-exchange", "exchange", "received none", "the value 'amq.fanout' of type 'longstr'")),
    "amq.direct as fanout": (
        nothing, "exchange.declare", dict(exchange="amq.direct", type="fanout", durable=True), SOFT, 406,
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'amq.direct' in vhost '/': received 'fanout' but current is 'direct'"),
    "queue argument added": (
        a_queue(exclusive=True), "queue.declare", dict(queue="{n}", exclusive=True, arguments={"x-message-ttl": 60000}), SOFT, 406,
        inequivalent("x-message-ttl", "queue", "received the value '60000' of type 'signedint'", "none")),
    "queue argument missing": (
        a_queue(exclusive=True, arguments={"x-message-ttl": 60000}), "queue.declare", dict(queue="{n}", exclusive=True), SOFT, 406,
        inequivalent("x-message-ttl", "queue", "received none", "the value '60000' of type 'signedint'")),
    "queue argument differs": (
        a_queue(exclusive=True, arguments={"x-max-length": 5}), "queue.declare",
        dict(queue="{n}", exclusive=True, arguments={"x-max-length": 6}), SOFT, 406,
        inequivalent("x-max-length", "queue", "received '6'", "'5'")),
    "queue argument of another type": (
        a_queue(exclusive=True, arguments={"x-dead-letter-exchange": "a"}), "queue.declare",
        dict(queue="{n}", exclusive=True, arguments={"x-dead-letter-exchange": "b"}), SOFT, 406,
        inequivalent("x-dead-letter-exchange", "queue", "received 'b'", "'a'")),
    # -- arguments that are refused
    "x-message-ttl negative": (
        nothing, "queue.declare", dict(queue="{n}", exclusive=True, arguments={"x-message-ttl": -1}), SOFT, 406,
        "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue '{n}' in vhost '/': {{value_negative,-1}}"),
    "x-message-ttl a string": (
        nothing, "queue.declare", dict(queue="{n}", exclusive=True, arguments={"x-message-ttl": "1"}), SOFT, 406,
        "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue '{n}' in vhost '/': \"expected integer, got longstr\""),
    "x-expires zero": (
        nothing, "queue.declare", dict(queue="{n}", exclusive=True, arguments={"x-expires": 0}), SOFT, 406,
        "PRECONDITION_FAILED - invalid arg 'x-expires' for queue '{n}' in vhost '/': {{value_zero,0}}"),
    "x-max-length negative": (
        nothing, "queue.declare", dict(queue="{n}", exclusive=True, arguments={"x-max-length": -5}), SOFT, 406,
        "PRECONDITION_FAILED - invalid arg 'x-max-length' for queue '{n}' in vhost '/': {{value_negative,-5}}"),
    # -- reserved names and the default exchange
    "new queue amq.x": (
        nothing, "queue.declare", dict(queue="amq.x"), SOFT, 403,
        "ACCESS_REFUSED - queue name 'amq.x' contains reserved prefix 'amq.*'"),
    "new queue amq.gen-x": (
        nothing, "queue.declare", dict(queue="amq.gen-x", exclusive=True), SOFT, 403,
        "ACCESS_REFUSED - queue name 'amq.gen-x' contains reserved prefix 'amq.*'"),
    "new exchange amq.x": (
        nothing, "exchange.declare", dict(exchange="amq.x", type="direct"), SOFT, 403,
        "ACCESS_REFUSED - exchange name 'amq.x' contains reserved prefix 'amq.*'"),
    "delete amq.direct": (
        nothing, "exchange.delete", dict(exchange="amq.direct"), SOFT, 403,
        "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed"),
    "declare the default exchange": (
        nothing, "exchange.declare", dict(exchange="", type="direct", durable=True), SOFT, 403, DEFAULT_EXCHANGE),
    "passive declare of the default exchange": (
        nothing, "exchange.declare", dict(exchange="", passive=True), SOFT, 403, DEFAULT_EXCHANGE),
    "delete the default exchange": (nothing, "exchange.delete", dict(exchange=""), SOFT, 403, DEFAULT_EXCHANGE),
    "bind to the default exchange": (a_queue(), "queue.bind", dict(queue="{n}", exchange=""), SOFT, 403, DEFAULT_EXCHANGE),
    "unbind from the default exchange": (
        a_queue(), "queue.unbind", dict(queue="{n}", exchange="", routing_key="{n}"), SOFT, 403, DEFAULT_EXCHANGE),
    "e2e: from the default exchange": (
        nothing, "exchange.bind", dict(source="", destination="amq.fanout"), SOFT, 403, DEFAULT_EXCHANGE),
    "e2e: to the default exchange": (
        nothing, "exchange.bind", dict(source="amq.fanout", destination=""), SOFT, 403, DEFAULT_EXCHANGE),
    # -- exchange types
    "unknown exchange type": (
        nothing, "exchange.declare", dict(exchange="{n}", type="no-such-type"), SOFT, 406,
        "PRECONDITION_FAILED - unknown exchange type 'no-such-type'"),
    # -- in use, not empty
    "delete a queue in use": (
        a_queue_with(consumer={}), "queue.delete", dict(queue="{n}", if_unused=True), SOFT, 406,
        "PRECONDITION_FAILED - queue '{n}' in vhost '/' in use"),
    "delete a queue that is not empty": (
        a_queue_with(messages=1), "queue.delete", dict(queue="{n}", if_empty=True), SOFT, 406,
        "PRECONDITION_FAILED - queue '{n}' in vhost '/' not empty"),
    "delete an exchange in use": (
        a_bound_exchange, "exchange.delete", dict(exchange="{n}", if_unused=True), SOFT, 406,
        "PRECONDITION_FAILED - exchange '{n}' in vhost '/' in use"),
    # -- consumers
    "a consumer tag twice": (
        a_consumer, "basic.consume", dict(queue="{n}", consumer_tag="there"), HARD, 530,
        "NOT_ALLOWED - attempt to reuse consumer tag 'there'"),
    "beside an exclusive consumer": (
        a_queue_with(consumer={"exclusive": True}), "basic.consume", dict(queue="{n}"), SOFT, 403,
        "ACCESS_REFUSED - queue '{n}' in vhost '/' in exclusive use"),
    "exclusive beside a consumer": (
        a_queue_with(consumer={}), "basic.consume", dict(queue="{n}", exclusive=True), SOFT, 403,
        "ACCESS_REFUSED - queue '{n}' in vhost '/' in exclusive use"),
    # -- delivery tags
    "ack of an unknown tag": (nothing, "basic.ack", dict(delivery_tag=7), SOFT, 406, UNKNOWN_TAG.format(7)),
    "ack multiple of an unknown tag": (
        nothing, "basic.ack", dict(delivery_tag=7, multiple=True), SOFT, 406, UNKNOWN_TAG.format(7)),
    "ack of tag 0": (nothing, "basic.ack", dict(delivery_tag=0), SOFT, 406, UNKNOWN_TAG.format(0)),
    "ack twice": (a_settled_delivery, "basic.ack", dict(delivery_tag=1), SOFT, 406, UNKNOWN_TAG.format(1)),
    "ack multiple of a settled tag": (
        a_settled_delivery, "basic.ack", dict(delivery_tag=1, multiple=True), SOFT, 406, UNKNOWN_TAG.format(1)),
    "ack of a tag beyond the last": (
        an_unacknowledged_get, "basic.ack", dict(delivery_tag=2), SOFT, 406, UNKNOWN_TAG.format(2)),
    "ack multiple beyond the last": (
        an_unacknowledged_get, "basic.ack", dict(delivery_tag=2, multiple=True), SOFT, 406, UNKNOWN_TAG.format(2)),
    "nack of an unknown tag": (nothing, "basic.nack", dict(delivery_tag=7), SOFT, 406, UNKNOWN_TAG.format(7)),
    "nack multiple of an unknown tag": (
        nothing, "basic.nack", dict(delivery_tag=7, multiple=True, requeue=True), SOFT, 406, UNKNOWN_TAG.format(7)),
    "nack of tag 0": (nothing, "basic.nack", dict(delivery_tag=0), SOFT, 406, UNKNOWN_TAG.format(0)),
    "reject of an unknown tag": (nothing, "basic.reject", dict(delivery_tag=7), SOFT, 406, UNKNOWN_TAG.format(7)),
    "reject of tag 0": (nothing, "basic.reject", dict(delivery_tag=0), SOFT, 406, UNKNOWN_TAG.format(0)),
    "nack after ack": (
        a_settled_delivery, "basic.nack", dict(delivery_tag=1, requeue=True), SOFT, 406, UNKNOWN_TAG.format(1)),
    "reject after ack": (
        a_settled_delivery, "basic.reject", dict(delivery_tag=1, requeue=True), SOFT, 406, UNKNOWN_TAG.format(1)),
    "the largest tag": (
        nothing, "basic.ack", dict(delivery_tag=(1 << 64) - 1), SOFT, 406, UNKNOWN_TAG.format((1 << 64) - 1)),
    # -- not implemented, by either
    "qos with a prefetch size": (
        nothing, "basic.qos", dict(prefetch_size=10), HARD, 540, "NOT_IMPLEMENTED - prefetch_size!=0 (10)"),
    "flow off": (nothing, "channel.flow", dict(active=False), HARD, 540, "NOT_IMPLEMENTED - active=false"),
    "recover without requeue": (
        nothing, "basic.recover", dict(requeue=False), HARD, 540, "NOT_IMPLEMENTED - requeue=false"),
    "recover-async without requeue": (
        nothing, "basic.recover-async", dict(requeue=False), HARD, 540, "NOT_IMPLEMENTED - requeue=false"),
    "publish immediate": (
        nothing, "basic.publish", dict(immediate=True), HARD, 540, "NOT_IMPLEMENTED - immediate=true"),
    # -- methods that only brokers send, or that belong elsewhere
    "a second channel.open": (nothing, "channel.open", {}, HARD, 504, "CHANNEL_ERROR - second 'channel.open' seen"),
    "connection.open on a channel": (nothing, "connection.open", dict(virtual_host="/"), HARD, 503, None),
    "connection.close on a channel": (nothing, "connection.close", {}, HARD, 503, None),
    "basic.deliver from a client": (nothing, "basic.deliver", {}, HARD, 503, None),
    "basic.return from a client": (nothing, "basic.return", {}, HARD, 503, None),
    "basic.get-ok from a client": (nothing, "basic.get-ok", {}, HARD, 503, None),
    "queue.declare-ok from a client": (nothing, "queue.declare-ok", {}, HARD, 503, None),
    "exchange.declare-ok from a client": (nothing, "exchange.declare-ok", {}, HARD, 503, None),
    "channel.open-ok from a client": (nothing, "channel.open-ok", {}, HARD, 503, None),
    "confirm.select-ok from a client": (nothing, "confirm.select-ok", {}, HARD, 503, None),
    "basic.consume-ok from a client": (nothing, "basic.consume-ok", {}, HARD, 503, None),
}

# Methods that a content follows; RabbitMQ looks at them when they are whole.
WITH_CONTENT = ("basic.publish", "basic.deliver", "basic.return", "basic.get-ok")


def request(ch, method, arguments):
    ch.send(method, **arguments)
    if method in WITH_CONTENT:
        ch.connection.send_bytes(amqp.content_header(ch.number, 0))
    ch.next()


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_request_is_closed_with_rabbitmqs_code_and_text(connect, name, fault_of, case):
    before, method, arguments, scope, code, text = CASES[case]
    ch = connect().channel()
    before(ch, name)
    fill = lambda value: value.format(n=name) if isinstance(value, str) else value  # noqa: E731
    arguments = {field: fill(value) for field, value in arguments.items()}
    fault = fault_of(lambda: request(ch, method, arguments))
    expected = (scope, code, fill(text) if text else fault[2], method)
    assert fault == expected


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][3] == SOFT])
def test_a_channel_fault_leaves_the_connection_and_its_other_channels_alone(connect, name, fault_of, case):
    before, method, arguments, _, code, _ = CASES[case]
    connection = connect()
    other = connection.channel(2)
    ch = connection.channel(1)
    before(ch, name)
    arguments = {f: v.format(n=name) if isinstance(v, str) else v for f, v in arguments.items()}
    assert fault_of(lambda: request(ch, method, arguments))[:2] == (SOFT, code)
    own = other.declare()
    other.publish(own, "still there")
    assert other.drain(own) == ["still there"]
    again = connection.channel(1)
    again.expect_counts(own, 0, 0)
