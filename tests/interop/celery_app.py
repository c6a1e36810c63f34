"""The Celery application that test_celery.py and its workers share: what it is told comes in the environment."""

import json
import os
import ssl
import time
from pathlib import Path

from celery import Celery
from urllib.parse import urlsplit

WAIT_SECONDS_MAX = 60


def make(url, ca, settings):
    app = Celery("interop")
    tls = {"ca_certs": ca, "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": urlsplit(url).hostname}
    app.conf.update(
        broker_url=url.replace("amqps://", "pyamqp://"),
        broker_use_ssl=tls,
        result_backend="rpc://",
        broker_connection_retry_on_startup=True,
        broker_transport_options={"confirm_publish": True},
        worker_hijack_root_logger=False,
        broker_heartbeat=10,
        **settings,
    )
    app.task(add)
    app.task(order)
    app.task(hold, acks_late=True)
    app.task(hold, name="celery_app.hold_early")
    app.task(now)
    app.task(flaky, bind=True, max_retries=5)
    app.task(was_redelivered, bind=True, acks_late=True)
    return app


def add(a, b):
    return a + b


def now():
    return time.time()


def write(file, line):
    """One line, whole, however many processes write."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def wait_for(file):
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not Path(file).exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody opened the gate")
        time.sleep(0.01)


def order(file, number):
    write(file, number)


def hold(folder, number):
    """Says that it runs, waits for the gate, says that it is done."""
    write(f"{folder}/started", number)
    wait_for(f"{folder}/gate")
    write(f"{folder}/done", number)
    return number


def flaky(self, failures, countdown):
    """Fails so many times, and then tells how often it was tried."""
    if self.request.retries < failures:
        raise self.retry(countdown=countdown)
    return self.request.retries


def was_redelivered(self, folder):
    write(f"{folder}/started", os.getpid())
    if not self.request.delivery_info["redelivered"]:
        wait_for(f"{folder}/never")
    return self.request.delivery_info["redelivered"]


if "INTEROP_CELERY" in os.environ:
    app = make(**json.loads(os.environ["INTEROP_CELERY"]))
