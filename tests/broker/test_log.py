"""What a broker's log shows of its clients. Every broker of these tests logs at TRACE, and native.py searches its log for
all that clients have sent when it ends; here is what shows that the search finds it."""

import base64

import canaries
import pika
import pytest

BODY, KEY, VALUE, SECRET = "a body like no other", "key.like.no.other", "value like no other", "password like no other"
FORMS = {
    "as it is": lambda text: text,
    "in a line of JSON": lambda text: f'{{"body":"{text}"}}',
    "as a debugger shows bytes": lambda text: str(list(text.encode())),
    "in hex": lambda text: text.encode().hex(),
    "in base64": lambda text: base64.b64encode(text.encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_client_sends_is_found_if_it_stands_in_a_log(native, form):
    broker = native()
    with broker.connect() as connection:
        channel = connection.channel()
        channel.exchange_declare(KEY, "topic", arguments={"x-note": VALUE})
        properties = pika.BasicProperties(headers={"h": VALUE}, delivery_mode=2)
        channel.basic_publish(KEY, KEY, BODY.encode(), properties)
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        broker.connect(credentials=pika.PlainCredentials("nobody-of-this-run", SECRET))
    broker.stop()
    sound = (broker.folder / "broker.log").read_bytes()
    for planted in (BODY, KEY, VALUE, SECRET):
        line = f"2026-11-21T18:57:17.288743Z  INFO sealmq::planted: note text={FORMS[form](planted)} user=nobody\n"
        assert planted.encode() in canaries.leaks(sound + line.encode())
    assert canaries.leaks(sound) == []


def test_a_connection_that_the_broker_closes_is_logged_without_the_clients_words(native):
    broker = native()
    connection = broker.connect()
    channel = connection.channel()
    channel.queue_declare("queue-like-no-other")
    channel.basic_consume("queue-like-no-other", print, consumer_tag="tag-like-no-other")
    method = pika.spec.Basic.Consume(queue="queue-like-no-other", consumer_tag="tag-like-no-other")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as closed:
        channel._impl._send_method(method)
        connection.process_data_events(30)
    assert "tag-like-no-other" in closed.value.reply_text, "the client is told"
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError, match="host-like-no-other"):
        broker.connect(virtual_host="host-like-no-other")
    broker.stop()
    assert broker.logged().count('reason="NOT_ALLOWED"') == 2 and "like-no-other" not in broker.logged()
