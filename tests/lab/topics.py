"""Topics: a subscriber binds patterns; * stands for one word, # for any number of words.

topics.py emit ROUTING.KEY TEXT      topics.py receive PATTERN...
"""

import sys

from lab import connect, consume_until_interrupted, say, setting

EXCHANGE = setting("RABBITMQ_EXCHANGE", "topic_logs")


def emit(routing_key, text):
    with connect() as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, "topic")
        channel.basic_publish(EXCHANGE, routing_key, text.encode())
        say("sent", routing_key, text)


def receive(patterns):
    channel = connect().channel()
    channel.exchange_declare(EXCHANGE, "topic")
    queue = channel.queue_declare("", exclusive=True).method.queue
    for pattern in patterns:
        channel.queue_bind(queue, EXCHANGE, routing_key=pattern)
    channel.basic_consume(queue, show, auto_ack=True)
    consume_until_interrupted(channel)


def show(_channel, method, _properties, body):
    say("received", method.routing_key, body.decode())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["emit", routing_key, text]:
            emit(routing_key, text)
        case ["receive", *patterns] if patterns:
            receive(patterns)
        case _:
            sys.exit(__doc__)
