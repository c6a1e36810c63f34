"""Publish/subscribe: every subscriber has a queue of its own and gets every message.

publish_subscribe.py emit TEXT...      publish_subscribe.py receive
"""

import sys

from lab import connect, consume_until_interrupted, say, setting

EXCHANGE = setting("RABBITMQ_EXCHANGE", "logs")


def emit(texts):
    with connect() as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, "fanout")
        for text in texts:
            channel.basic_publish(EXCHANGE, "", text.encode())
            say("sent", text)


def receive():
    channel = connect().channel()
    channel.exchange_declare(EXCHANGE, "fanout")
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, EXCHANGE)
    channel.basic_consume(queue, lambda _channel, _method, _properties, body: say("received", body.decode()), auto_ack=True)
    consume_until_interrupted(channel)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["emit", *texts] if texts:
            emit(texts)
        case ["receive"]:
            receive()
        case _:
            sys.exit(__doc__)
