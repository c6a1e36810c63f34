"""Simple queue: one producer, one queue, one consumer.

simple_queue.py send TEXT...      simple_queue.py receive
"""

import sys

from lab import connect, consume_until_interrupted, say, setting

QUEUE = setting("RABBITMQ_QUEUE", "hello")


def send(texts):
    with connect() as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        for text in texts:
            channel.basic_publish("", QUEUE, text.encode())
            say("sent", text)


def receive():
    channel = connect().channel()
    channel.queue_declare(QUEUE, durable=True)
    channel.basic_consume(QUEUE, lambda _channel, _method, _properties, body: say("received", body.decode()), auto_ack=True)
    consume_until_interrupted(channel)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", *texts] if texts:
            send(texts)
        case ["receive"]:
            receive()
        case _:
            sys.exit(__doc__)
