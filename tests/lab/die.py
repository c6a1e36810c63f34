"""One persistent message for the forensics lesson: JSON, a content type and a header, to the durable queue `die`.

die.py [OUTCOME]
"""

import json
import sys

import pika
from lab import connect, say, setting

QUEUE = setting("RABBITMQ_QUEUE", "die")


def publish(outcome):
    body = json.dumps({"data": {"message": f"Rolling {outcome}", "outcome": outcome}, "version": "1.0.0"})
    properties = pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        headers={"x-table": "craps-table-7"},
    )
    with connect() as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", QUEUE, body.encode(), properties, mandatory=True)
    say("confirmed", body)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            publish(3)
        case [outcome]:
            publish(int(outcome))
        case _:
            sys.exit(__doc__)
