"""Routing: a subscriber gets the severities that it has bound to, and no others.

routing.py emit SEVERITY TEXT      routing.py receive SEVERITY...
"""

import sys

from lab import connect, consume_until_interrupted, say, setting

EXCHANGE = setting("RABBITMQ_EXCHANGE", "direct_logs")


def emit(severity, text):
    with connect() as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, "direct")
        channel.basic_publish(EXCHANGE, severity, text.encode())
        say("sent", severity, text)


def receive(severities):
    channel = connect().channel()
    channel.exchange_declare(EXCHANGE, "direct")
    queue = channel.queue_declare("", exclusive=True).method.queue
    for severity in severities:
        channel.queue_bind(queue, EXCHANGE, routing_key=severity)
    channel.basic_consume(queue, show, auto_ack=True)
    consume_until_interrupted(channel)


def show(_channel, method, _properties, body):
    say("received", method.routing_key, body.decode())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["emit", severity, text]:
            emit(severity, text)
        case ["receive", *severities] if severities:
            receive(severities)
        case _:
            sys.exit(__doc__)
