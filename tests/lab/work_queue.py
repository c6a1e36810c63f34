"""Work queue: tasks shared out fairly between workers, one at a time each, acknowledged when done.

work_queue.py send [COUNT]      publish COUNT rolls of a die (six by default), persistent and confirmed
work_queue.py work              take one task at a time
work_queue.py serve [COUNT]     send, then stay until stopped (the lab's producer)
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pika
from lab import connect, consume_until_interrupted, say, setting

QUEUE = setting("RABBITMQ_QUEUE", "task_queue")
# How long one task takes. It is what makes dispatch fair: whoever is busy gets nothing new.
TASK_SECONDS = float(os.environ.get("TASK_SECONDS", "0.3"))


def roll(number):
    outcome = 1 + (number - 1) % 6
    return {"data": {"message": f"Rolling {outcome}", "outcome": outcome}, "version": "1.0.0"}


def send(count):
    with connect() as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        channel.confirm_delivery()
        for number in range(1, count + 1):
            body = json.dumps(roll(number))
            persistent = pika.BasicProperties(content_type="application/json", delivery_mode=2)
            channel.basic_publish("", QUEUE, body.encode(), persistent, mandatory=True)
            say("sent", body)


def work():
    channel = connect().channel()
    channel.queue_declare(QUEUE, durable=True)
    channel.basic_qos(prefetch_count=1)

    def task(channel, method, _properties, body):
        say("received", body.decode())
        time.sleep(TASK_SECONDS)
        channel.basic_ack(method.delivery_tag)
        say("done")

    channel.basic_consume(QUEUE, task)
    mark_ready()
    consume_until_interrupted(channel)


def mark_ready():
    """The container's health check looks for this file."""
    if path := os.environ.get("READY_FILE"):
        Path(path).touch()


if __name__ == "__main__":
    # A container's first process has no default handlers: without this, `docker stop` waits ten seconds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    match sys.argv[1:]:
        case ["send", *count] if len(count) <= 1:
            send(int(count[0]) if count else 6)
        case ["serve", *count] if len(count) <= 1:
            send(int(count[0]) if count else 6)
            mark_ready()
            signal.pause()
        case ["work"]:
            work()
        case _:
            sys.exit(__doc__)
