"""The Dramatiq broker of test_dramatiq.py and the actors that its workers run: what they are told comes in the environment."""

import json
import os
import ssl
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker


def make(url, ca):
    parts = urlsplit(url)
    parameters = {
        "host": parts.hostname,
        "port": parts.port,
        "credentials": pika.PlainCredentials(unquote(parts.username), unquote(parts.password)),
        "ssl_options": pika.SSLOptions(ssl.create_default_context(cafile=ca), server_hostname=parts.hostname),
        "heartbeat": 10,
    }
    return RabbitmqBroker(confirm_delivery=True, max_priority=10, parameters=[parameters])


def write(file, line):
    """One line, whole, however many threads write."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def note(file, number):
    write(file, number)


def tell_time(file):
    write(file, time.time())


def flaky(folder, number, failures):
    """Fails so many times."""
    write(f"{folder}/tried-{number}", number)
    if len(Path(f"{folder}/tried-{number}").read_text().splitlines()) <= failures:
        raise RuntimeError("once more")
    write(f"{folder}/done", number)


if "INTEROP_DRAMATIQ" in os.environ:
    told = json.loads(os.environ["INTEROP_DRAMATIQ"])
    dramatiq.set_broker(make(told["url"], told["ca"]))
    for function in (note, tell_time, flaky):
        dramatiq.actor(function, queue_name=told["queue"], max_retries=3, min_backoff=100, max_backoff=400)
