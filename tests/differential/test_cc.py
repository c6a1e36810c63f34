"""Sender-selected distribution: the headers CC and BCC as further routing keys."""

import amqp
import pytest


def headers(**given):
    return amqp.properties(headers=given)


def found(channel, queue):
    """The headers of the one message in a queue, or None without a message."""
    message = channel.get(queue)
    assert channel.get(queue) is None, "more than one message"
    return message and amqp.headers_of(message.properties)


@pytest.fixture
def queues(channel):
    """Three queues, on a channel that waits for confirms."""
    channel.call("confirm.select")
    return [channel.declare() for _ in range(3)]


def publish(channel, routing_key, block, **arguments):
    channel.publish(routing_key, "x", block=block, **arguments)
    channel.expect("basic.ack")


def test_cc_is_delivered_with_the_message(channel, queues):
    publish(channel, queues[0], headers(CC=[queues[1]], app=1))
    expected = {"CC": [queues[1]], "app": 1}
    assert [found(channel, queue) for queue in queues] == [expected, expected, None]


def test_bcc_is_taken_off_before_delivery(channel, queues):
    publish(channel, queues[0], headers(BCC=[queues[2]], app=1))
    assert [found(channel, queue) for queue in queues] == [{"app": 1}, None, {"app": 1}]
    publish(channel, queues[0], headers(BCC=[queues[2]]))
    assert found(channel, queues[2]) == {}


def test_other_properties_stay_beside_bcc(channel, queues):
    given = {"content_type": "text/plain", "delivery_mode": 2, "correlation_id": "c", "timestamp": 7}
    publish(channel, "nowhere", amqp.properties(headers={"BCC": [queues[0]], "k": "v"}, **given))
    message = channel.get(queues[0])
    assert message.properties == amqp.properties(headers={"k": "v"}, **given)
    assert (message.routing_key, message.body) == ("nowhere", b"x")


def test_a_queue_gets_a_message_once_however_many_keys_lead_there(channel, queues):
    a, b, c = queues
    publish(channel, a, headers(CC=[a, b, b], BCC=[b, c]))
    assert [found(channel, queue) for queue in queues] == [{"CC": [a, b, b]}] * 3


@pytest.mark.parametrize("name", ["CC", "BCC"])
@pytest.mark.parametrize(
    "value, kind", [("text", "longstr"), (5, "signedint"), (None, "void"), (True, "bool"), ({"a": 1}, "table")]
)
def test_anything_but_an_array_is_406(channel, queues, fault_of, name, value, kind):
    text = f'PRECONDITION_FAILED - invalid message: {{unacceptable_type_in_header,"{name}",{kind}}}'
    fault = fault_of(lambda: publish(channel, queues[0], headers(**{name: value})))
    assert fault == ("channel", 406, text, "basic.publish")


def test_items_that_are_not_strings_are_passed_over(channel, queues):
    publish(channel, queues[0], headers(CC=[5, None, [queues[2]], queues[1]]))
    assert [found(channel, queue) is not None for queue in queues] == [True, True, False]


def test_names_in_small_letters_mean_nothing(channel, queues):
    publish(channel, queues[0], headers(cc=[queues[1]], bcc=[queues[2]]))
    assert [found(channel, queue) for queue in queues] == [{"cc": [queues[1]], "bcc": [queues[2]]}, None, None]


def test_a_message_without_copies_goes_its_own_way_after_one_with_them(channel, queues):
    for block in (headers(app=1), headers(CC=[queues[1]]), headers(app=1), headers(BCC=[queues[2]]), headers(app=1)):
        publish(channel, queues[0], block)
    assert [len(channel.drain(queue)) for queue in queues] == [5, 1, 1]


def test_mandatory_returns_only_when_no_key_leads_anywhere(channel, queues):
    publish(channel, "nowhere", headers(CC=["nor-there"], BCC=[queues[0]]), mandatory=True)
    assert channel.get(queues[0]) is not None
    channel.publish("nowhere", "x", block=headers(CC=["nor-there"], BCC=["nor-anywhere"], k=1), mandatory=True)
    returned = channel.expect("basic.return", reply_code=312, routing_key="nowhere")
    assert amqp.headers_of(returned.properties) == {"CC": ["nor-there"], "k": 1}
    channel.expect("basic.ack")


def test_copies_are_part_of_a_transaction(channel):
    queues = [channel.declare() for _ in range(3)]
    channel.call("tx.select")
    channel.publish(queues[0], "x", block=headers(CC=[queues[1]], BCC=[queues[2]]))
    assert [channel.get(queue) for queue in queues] == [None] * 3
    channel.call("tx.commit")
    assert [found(channel, queue) for queue in queues] == [{"CC": [queues[1]]}] * 3


def bound(channel, name, kind, queues, keys, arguments=None, **declared):
    channel.call("exchange.declare", exchange=name, type=kind, auto_delete=True, **declared)
    for queue, key in zip(queues, keys, strict=False):
        channel.call("queue.bind", queue=queue, exchange=name, routing_key=key, arguments=arguments)


def test_each_key_is_matched_by_a_topic_exchange(channel, name, queues):
    bound(channel, name, "topic", queues, ["a.*", "*.b", "c.#"])
    publish(channel, "x.y", headers(CC=["a.b"], BCC=["c"]), exchange=name)
    assert [found(channel, queue) for queue in queues] == [{"CC": ["a.b"]}] * 3


def test_fanout_and_headers_exchanges_take_no_more_for_more_keys(channel, name, queues):
    bound(channel, f"{name}-f", "fanout", queues, ["a", "b", "c"])
    bound(channel, f"{name}-h", "headers", queues[:2], ["", ""], {"app": 1})
    publish(channel, "a", headers(CC=["b", "c"]), exchange=f"{name}-f")
    assert [len(channel.drain(queue)) for queue in queues] == [1, 1, 1]
    publish(channel, "a", headers(CC=["b", "c"], app=1), exchange=f"{name}-h")
    assert [len(channel.drain(queue)) for queue in queues] == [1, 1, 0]


def test_all_keys_go_on_over_an_exchange_that_one_of_them_leads_to(channel, name, queues):
    bound(channel, f"{name}-next", "direct", queues, ["first", "second", "third"])
    channel.call("exchange.declare", exchange=name, type="direct", auto_delete=True)
    channel.call("exchange.bind", destination=f"{name}-next", source=name, routing_key="second")
    publish(channel, "first", headers(CC=["second"]), exchange=name)
    assert [len(channel.drain(queue)) for queue in queues] == [1, 1, 0]


def test_the_alternate_exchange_gets_what_no_key_led_anywhere(channel, name, queues):
    bound(channel, f"{name}-rest", "fanout", queues[2:], [""])
    arguments = {"alternate-exchange": f"{name}-rest"}
    channel.call("exchange.declare", exchange=name, type="direct", auto_delete=True, arguments=arguments)
    channel.call("queue.bind", queue=queues[0], exchange=name, routing_key="k")
    publish(channel, "nowhere", headers(CC=["k"]), exchange=name)
    assert [len(channel.drain(queue)) for queue in queues] == [1, 0, 0]
    publish(channel, "nowhere", headers(CC=["nor-there"]), exchange=name)
    assert [len(channel.drain(queue)) for queue in queues] == [0, 0, 1]


@pytest.fixture
def died(channel, name, eventually):
    """Publishes with CC and BCC, rejects, and gives the dead letters by the key that they were bound with."""

    def died(**arguments):
        keys = [name, "copy", "blind", "other"]
        dead = [channel.declare() for _ in keys]
        bound(channel, f"{name}-dlx", "direct", dead, keys)
        arguments |= {"x-dead-letter-exchange": f"{name}-dlx"}
        channel.declare(name, exclusive=True, arguments=arguments)
        channel.publish(name, "x", block=headers(CC=["copy"], BCC=["blind"]))
        taken = channel.call("basic.get", queue=name)
        channel.send("basic.reject", delivery_tag=taken.delivery_tag)
        letters = {}

        def all_came():
            letters.update({key: letter for key, queue in zip(keys, dead, strict=True) if (letter := channel.get(queue))})
            return len(letters) >= (1 if "x-dead-letter-routing-key" in arguments else 3)

        eventually(all_came)
        return letters

    return died


def test_a_dead_letter_goes_by_all_keys_it_was_published_with(channel, name, died):
    letters = died()
    assert sorted(letters) == sorted([name, "copy", "blind"])
    for letter in letters.values():
        assert letter.routing_key == name
        told = amqp.headers_of(letter.properties)
        assert told["CC"] == ["copy"] and "BCC" not in told
        assert told["x-death"][0]["routing-keys"] == [name, "copy"]


def test_a_dead_letter_routing_key_takes_the_place_of_all_keys(channel, name, died):
    letters = died(**{"x-dead-letter-routing-key": "other"})
    assert list(letters) == ["other"]
    told = amqp.headers_of(letters["other"].properties)
    assert letters["other"].routing_key == "other"
    assert told["x-death"][0]["routing-keys"] == [name, "copy"]
