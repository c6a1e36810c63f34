"""Request/response: a request names a queue for its answer and an id to know it by. The service answers factorials.

request_response.py serve      request_response.py call NUMBER...
"""

import math
import sys
import uuid

import pika
from lab import connect, consume_until_interrupted, say, setting

QUEUE = setting("RABBITMQ_QUEUE", "rpc_queue")
ANSWER_SECONDS_MAX = 30


def serve():
    channel = connect().channel()
    channel.queue_declare(QUEUE)
    channel.basic_qos(prefetch_count=1)

    def answer(channel, method, properties, body):
        number = int(body)
        say("asked", number)
        same_id = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish("", properties.reply_to, str(math.factorial(number)).encode(), same_id)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(QUEUE, answer)
    consume_until_interrupted(channel)


def call(numbers):
    """Sends all requests at once and pairs the answers by correlation id."""
    with connect() as connection:
        channel = connection.channel()
        reply_queue = channel.queue_declare("", exclusive=True).method.queue
        asked = {}
        for number in numbers:
            correlation_id = str(uuid.uuid4())
            asked[correlation_id] = number
            request = pika.BasicProperties(reply_to=reply_queue, correlation_id=correlation_id)
            channel.basic_publish("", QUEUE, str(number).encode(), request)
        for _method, properties, body in channel.consume(reply_queue, auto_ack=True, inactivity_timeout=ANSWER_SECONDS_MAX):
            if properties is None:
                sys.exit(f"no answer within {ANSWER_SECONDS_MAX} s")
            number = asked.pop(properties.correlation_id, None)
            if number is not None:
                say(f"factorial({number}) = {body.decode()}")
            if not asked:
                break


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            serve()
        case ["call", *numbers] if numbers:
            call([int(number) for number in numbers])
        case _:
            sys.exit(__doc__)
