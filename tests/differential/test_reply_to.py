"""Direct reply-to: a request names the pseudo-queue `amq.rabbitmq.reply-to`, and its reply comes back without a queue.

RabbitMQ 4.0 returns a mandatory reply even when it was delivered; later ones and SealMQ return it only when nobody
takes it. Where a case meets that, it says so."""

import re
import struct

import amqp
import pytest

REPLY_TO = "amq.rabbitmq.reply-to"
REQUEST = amqp.properties(reply_to=REPLY_TO)


def reply_to_of(message):
    """The property reply_to of a message that has no other property."""
    flags, length = struct.unpack(">HB", message.properties[:3])
    assert flags == 1 << 9, f"other properties than reply_to: {flags:#x}"
    return message.properties[3 : 3 + length].decode()


def take_replies(channel, tag="replies"):
    return channel.call("basic.consume", queue=REPLY_TO, no_ack=True, consumer_tag=tag)


def address_of(channel):
    """A channel's address, as its request tells it to whoever answers."""
    queue = channel.declare()
    channel.publish(queue, "request", block=REQUEST)
    channel.expect_counts(queue, 1, 0)
    return reply_to_of(channel.get(queue))


@pytest.fixture
def requester(connect):
    """A channel that takes replies, and its address."""
    channel = connect().channel()
    take_replies(channel)
    return channel, address_of(channel)


# ---- the round trip


def test_a_reply_reaches_the_requester_on_another_connection(connect, requester):
    channel, address = requester
    answerer = connect().channel()
    answerer.publish(address, "answer", block=amqp.properties(correlation_id="7"))
    reply = channel.expect("basic.deliver", consumer_tag="replies", redelivered=False, exchange="", routing_key=address)
    assert (reply.body, reply.properties) == (b"answer", amqp.properties(correlation_id="7"))


def test_a_reply_reaches_the_requester_on_its_own_channel(requester):
    channel, address = requester
    channel.publish(address, "answer")
    assert channel.bodies(1) == ["answer"]


def test_replies_come_in_the_order_of_publishing(connect, requester):
    channel, address = requester
    answerer = connect().channel()
    for number in range(500):
        answerer.publish(address, str(number))
    assert channel.bodies(500) == [str(number) for number in range(500)]


def test_a_large_reply_comes_whole(connect, requester):
    channel, address = requester
    connect().channel().publish(address, "x" * 300_000)
    assert channel.expect("basic.deliver").body == b"x" * 300_000


def test_replies_are_outside_of_any_prefetch(connect, requester):
    channel, address = requester
    channel.call("basic.qos", prefetch_count=1, **{"global": True})
    answerer = connect().channel()
    for number in range(3):
        answerer.publish(address, str(number))
    assert channel.bodies(3) == ["0", "1", "2"]


def test_the_address_is_opaque_and_the_same_for_every_request(requester):
    channel, address = requester
    assert re.fullmatch(re.escape(REPLY_TO) + r"\.[A-Za-z0-9_.+/=@-]{22,200}", address)
    assert address_of(channel) == address


def test_only_reply_to_is_rewritten(connect, name):
    channel = connect().channel()
    take_replies(channel)
    channel.declare(name)
    given = dict(content_type="text/plain", headers={"k": 1}, delivery_mode=1, correlation_id="c", message_id="m")
    channel.publish(name, "x", block=amqp.properties(reply_to=REPLY_TO, **given))
    channel.expect_counts(name, 1, 0)
    block = channel.get(name).properties
    address = re.search(rb"amq\.rabbitmq\.reply-to\.[^\x01]+", block).group().decode()
    assert block == amqp.properties(reply_to=address, **given)


@pytest.mark.parametrize("reply_to", ["q", REPLY_TO + ".x", REPLY_TO + "x", "AMQ.rabbitmq.reply-to"])
def test_any_other_reply_to_stays_as_it_is(channel, name, reply_to):
    channel.declare(name)
    channel.publish(name, "x", block=amqp.properties(reply_to=reply_to))
    channel.expect_counts(name, 1, 0)
    assert reply_to_of(channel.get(name)) == reply_to


def test_each_channel_has_an_address_of_its_own(connect):
    connection = connect()
    channels = [connection.channel(number) for number in (1, 2)]
    for channel in channels:
        take_replies(channel, f"replies-{channel.number}")
    addresses = [address_of(channel) for channel in channels]
    for channel, address in zip(channels, reversed(addresses)):
        channel.publish(address, "crosswise")
    for channel in channels:
        assert channel.expect("basic.deliver", consumer_tag=f"replies-{channel.number}").body == b"crosswise"


def test_a_persistent_reply_with_an_expiration_is_delivered_as_it_is(connect, requester):
    channel, address = requester
    block = amqp.properties(delivery_mode=2, expiration="0")
    connect().channel().publish(address, "x", block=block)
    assert channel.expect("basic.deliver").properties == block


def test_a_reply_is_confirmed(connect, requester):
    channel, address = requester
    answerer = connect().channel()
    answerer.call("confirm.select")
    answerer.publish(address, "x", block=amqp.properties(delivery_mode=2))
    answerer.expect("basic.ack", delivery_tag=1)
    assert channel.bodies(1) == ["x"]


def test_a_mandatory_reply_that_is_taken(connect, requester, is_rabbitmq):
    channel, address = requester
    answerer = connect().channel()
    answerer.call("confirm.select")
    answerer.publish(address, "x", mandatory=True)
    if is_rabbitmq:
        answerer.expect("basic.return", reply_code=312)
    answerer.expect("basic.ack", delivery_tag=1)
    assert channel.bodies(1) == ["x"]


def test_a_committed_reply_is_delivered(connect, requester):
    """RabbitMQ sends it before the commit."""
    channel, address = requester
    answerer = connect().channel()
    answerer.call("tx.select")
    answerer.publish(address, "x")
    answerer.call("tx.commit")
    assert channel.bodies(1) == ["x"]


def test_a_returned_request_shows_the_address(connect):
    channel = connect().channel()
    take_replies(channel)
    channel.publish("diff-nowhere", "x", block=REQUEST, mandatory=True)
    assert reply_to_of(channel.expect("basic.return")).startswith(REPLY_TO + ".")


# ---- the consumer


def test_a_consumer_of_replies_gets_a_tag(connect):
    assert connect().channel().call("basic.consume", queue=REPLY_TO, no_ack=True).consumer_tag.startswith("amq.ctag-")


def test_exclusive_and_arguments_mean_nothing(connect):
    arguments = {"x-priority": "high", "x-stream-offset": "first"}
    take = dict(queue=REPLY_TO, no_ack=True, exclusive=True, arguments=arguments)
    assert connect().channel().call("basic.consume", consumer_tag="t", **take).consumer_tag == "t"


def test_consume_without_wait_is_not_answered(connect):
    channel = connect().channel()
    channel.send("basic.consume", queue=REPLY_TO, no_ack=True, consumer_tag="t", nowait=True)
    channel.publish(address_of(channel), "x")
    channel.expect("basic.deliver", consumer_tag="t")


SOFT = "channel"


@pytest.mark.parametrize("is_second", [False, True])
def test_replies_cannot_be_acknowledged(connect, fault_of, is_second):
    channel = connect().channel()
    if is_second:
        take_replies(channel)
    text = "PRECONDITION_FAILED - reply consumer cannot acknowledge"
    assert fault_of(lambda: channel.call("basic.consume", queue=REPLY_TO)) == (SOFT, 406, text, "basic.consume")


@pytest.mark.parametrize("tag", ["replies", "other"])
def test_a_second_consumer_of_replies_is_refused(connect, fault_of, tag):
    channel = connect().channel()
    take_replies(channel)
    text = "PRECONDITION_FAILED - reply consumer already set"
    assert fault_of(lambda: take_replies(channel, tag)) == (SOFT, 406, text, "basic.consume")


def test_the_tag_of_another_consumer_is_refused(connect, fault_of):
    channel = connect().channel()
    channel.consume(channel.declare(), consumer_tag="t")
    text = "NOT_ALLOWED - attempt to reuse consumer tag 't'"
    assert fault_of(lambda: take_replies(channel, "t")) == ("connection", 530, text, "basic.consume")


def test_after_a_cancel_there_may_be_another(connect):
    channel = connect().channel()
    take_replies(channel)
    old = address_of(channel)
    assert channel.call("basic.cancel", consumer_tag="replies").consumer_tag == "replies"
    take_replies(channel, "again")
    new = address_of(channel)
    assert new != old
    channel.publish(old, "to the old one")
    channel.publish(new, "to the new one")
    assert channel.expect("basic.deliver", consumer_tag="again").body == b"to the new one"


def test_cancelling_another_tag_does_not_end_it(requester):
    channel, address = requester
    channel.call("basic.cancel", consumer_tag="other")
    channel.publish(address, "x")
    channel.expect("basic.deliver", consumer_tag="replies")


# ---- requests that cannot be


def test_a_request_without_a_consumer_of_replies_is_refused(channel, name, fault_of):
    channel.declare(name)
    channel.publish(name, "x", block=REQUEST)
    text = "PRECONDITION_FAILED - fast reply consumer does not exist"
    assert fault_of(channel.next) == (SOFT, 406, text, "basic.publish")


def test_a_consumer_of_replies_on_another_channel_does_not_count(connect, name, fault_of):
    connection = connect()
    take_replies(connection.channel(1))
    channel = connection.channel(2)
    channel.publish("diff-nowhere", "x", block=REQUEST)
    assert fault_of(channel.next)[1:3] == (406, "PRECONDITION_FAILED - fast reply consumer does not exist")


def test_within_a_transaction_it_is_refused_at_once(channel, fault_of):
    channel.call("tx.select")
    channel.publish("diff-nowhere", "x", block=REQUEST)
    assert fault_of(channel.next)[1:3] == (406, "PRECONDITION_FAILED - fast reply consumer does not exist")


@pytest.mark.parametrize(
    "more, code, text",
    [
        (dict(exchange="diff-none"), 404, "NOT_FOUND - no exchange 'diff-none' in vhost '/'"),
        (dict(block=dict(user_id="nobody")), 406, "PRECONDITION_FAILED - fast reply consumer does not exist"),
        (dict(block=dict(expiration="x")), 406, "PRECONDITION_FAILED - fast reply consumer does not exist"),
    ],
    ids=["no exchange", "wrong user", "wrong expiration"],
)
def test_which_of_two_faults_is_told(channel, fault_of, more, code, text):
    block = amqp.properties(reply_to=REPLY_TO, **more.pop("block", {}))
    channel.publish("diff-nowhere", "x", block=block, **more)
    assert fault_of(channel.next)[1:3] == (code, text)


# ---- replies that reach nobody


def gone(how, connect):
    """An address that was good, and how it came to lead nowhere."""
    connection = connect()
    channel = connection.channel(7)
    take_replies(channel)
    address = address_of(channel)
    if how == "cancel":
        channel.call("basic.cancel", consumer_tag="replies")
    elif how == "channel.close":
        channel.call("channel.close")
    elif how == "fault":
        with pytest.raises(amqp.Closed):
            channel.call("queue.declare", queue="diff-none", passive=True)
        connection.channel(7)
    else:
        connection.close()
    return address


@pytest.mark.parametrize("how", ["cancel", "channel.close", "fault", "connection.close"])
def test_a_reply_to_a_consumer_that_is_gone(connect, eventually, how):
    address = gone(how, connect)
    connection = connect()

    def is_gone():
        with pytest.raises(amqp.Closed) as closed:
            return connection.channel().call("queue.declare", queue=address, passive=True) is None
        text = f"NOT_FOUND - no queue '{address}' in vhost '/'"
        assert (closed.value.code, closed.value.text) == (404, text)
        return True

    eventually(is_gone)
    answerer = connection.channel(2)
    answerer.call("confirm.select")
    answerer.publish(address, "x", mandatory=True)
    answerer.expect("basic.return", reply_code=312, reply_text="NO_ROUTE", exchange="", routing_key=address)
    answerer.expect("basic.ack", delivery_tag=1)
    answerer.publish(address, "x")
    answerer.expect("basic.ack", delivery_tag=2)


@pytest.mark.parametrize("end", ["", ".", ".x", ".\u00e9", "." + "A" * 22, "." + "A" * 200])
def test_a_reply_to_an_address_that_never_was(channel, end):
    channel.publish(REPLY_TO + end, "x", mandatory=True)
    channel.expect("basic.return", reply_code=312, routing_key=REPLY_TO + end)


def test_another_exchange_knows_no_addresses(connect, requester):
    _, address = requester
    answerer = connect().channel()
    answerer.publish(address, "x", exchange="amq.direct", mandatory=True)
    answerer.expect("basic.return", reply_code=312)


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_copy_may_go_to_an_address(connect, requester, name, header):
    """Once, however often it is named, and beside the queues."""
    channel, address = requester
    answerer = connect().channel()
    answerer.declare(name)
    block = amqp.properties(headers={header: [address, address]})
    answerer.publish(name, "copy", block=block)
    assert channel.bodies(1) == ["copy"]
    answerer.expect_counts(name, 1, 0)
    answerer.publish("diff-nowhere", "alone", block=block)
    answerer.publish(address, "last")
    assert channel.bodies(2) == ["alone", "last"]


def test_replies_that_are_under_way_go_with_their_channel(connect, requester):
    channel, address = requester
    answerer = connect().channel()
    answerer.call("confirm.select")
    for _ in range(100):
        answerer.publish(address, "x" * 1000)
    while answerer.expect("basic.ack").delivery_tag < 100:
        pass
    channel.send("channel.close")
    while channel.next().name != "channel.close-ok":
        pass
    again = channel.connection.channel(channel.number)
    take_replies(again)
    again.publish(address_of(again), "new")
    assert again.bodies(1) == ["new"]


# ---- what else may be asked of the name and of an address


@pytest.mark.parametrize("flags", [dict(passive=True), {}, dict(durable=True, exclusive=True, arguments={"x-max-length": -1})])
def test_declaring_the_name_says_what_a_queue_would(channel, flags):
    channel.send("queue.declare", queue=REPLY_TO, **flags)
    channel.expect("queue.declare-ok", queue=REPLY_TO, message_count=0, consumer_count=1)


@pytest.mark.parametrize("passive", [True, False])
def test_declaring_an_address_tells_whether_its_consumer_is_there(connect, requester, passive):
    _, address = requester
    answerer = connect().channel()
    answerer.send("queue.declare", queue=address, passive=passive)
    answerer.expect("queue.declare-ok", queue=address, message_count=0, consumer_count=1)


@pytest.mark.parametrize("passive", [True, False])
def test_an_address_that_never_was_is_no_queue(channel, fault_of, passive):
    text = f"NOT_FOUND - no queue '{REPLY_TO}.x' in vhost '/'"
    fault = fault_of(lambda: channel.call("queue.declare", queue=REPLY_TO + ".x", passive=passive))
    assert fault == (SOFT, 404, text, "queue.declare")


def test_an_empty_name_stands_for_the_name_that_was_declared(channel):
    channel.call("queue.declare", queue=REPLY_TO, passive=True)
    channel.call("basic.consume", queue="", no_ack=True, consumer_tag="t")
    channel.publish(address_of(channel), "x")
    channel.expect("basic.deliver", consumer_tag="t")


@pytest.mark.parametrize("of", ["name", "address"])
@pytest.mark.parametrize(
    "method, arguments",
    [
        ("queue.bind", dict(exchange="amq.direct", routing_key="k")),
        ("queue.purge", {}),
        ("basic.get", dict(no_ack=True)),
    ],
    ids=["bind", "purge", "get"],
)
def test_neither_is_a_queue(requester, fault_of, of, method, arguments):
    channel, address = requester
    queue = REPLY_TO if of == "name" else address
    text = f"NOT_FOUND - no queue '{queue}' in vhost '/'"
    assert fault_of(lambda: channel.call(method, queue=queue, **arguments)) == (SOFT, 404, text, method)


def test_an_address_cannot_be_consumed_from(requester, fault_of):
    channel, address = requester
    text = f"NOT_FOUND - no queue '{address}' in vhost '/'"
    fault = fault_of(lambda: channel.call("basic.consume", queue=address, no_ack=True))
    assert fault == (SOFT, 404, text, "basic.consume")


@pytest.mark.parametrize("of", ["name", "address"])
def test_deleting_and_unbinding_change_nothing(requester, of):
    channel, address = requester
    queue = REPLY_TO if of == "name" else address
    assert channel.call("queue.delete", queue=queue).message_count == 0
    channel.call("queue.unbind", queue=queue, exchange="amq.direct", routing_key="k")
    channel.publish(address, "x")
    assert channel.bodies(1) == ["x"]
