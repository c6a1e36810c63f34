"""A Celery application with its queue and its worker processes, for test_celery.py and test_celery_global_qos.py."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import celery_app
import pytest
from kombu.exceptions import OperationalError

HERE = Path(__file__).parent
SECONDS_MAX = 60


class Worker:
    """A worker process with its children, in a session of its own."""

    def __init__(self, told, node, *arguments):
        self.node = f"{node}@interop"
        command = [sys.executable, "-B", "-m", "celery", "-A", "celery_app", "worker", "-n", self.node, "-l", "INFO", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=HERE,
            env=os.environ | {"INTEROP_CELERY": json.dumps(told), "C_FORCE_ROOT": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines, self.is_ready = [], threading.Event()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if f"{self.node} ready" in line:
                self.is_ready.set()

    def ready(self):
        assert self.is_ready.wait(SECONDS_MAX), "".join(self.lines)
        return self

    def stop(self):
        """Warm shutdown: what runs is finished, and the status says so."""
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(SECONDS_MAX) == 0, "".join(self.lines)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS_MAX)


class Site:
    """An application with its queue and its workers."""

    def __init__(self, broker, queue, **settings):
        exchange = {"task_default_queue": queue, "task_default_exchange": queue, "task_default_routing_key": queue}
        self.told = {"url": broker.url, "ca": broker.ca, "settings": exchange | settings}
        self.queue = queue
        self.app = celery_app.make(**self.told)
        self.workers = []

    def spawn(self, *arguments):
        self.workers.append(Worker(self.told, f"{self.queue}-{len(self.workers)}", *arguments))
        return self.workers[-1]

    def worker(self, *arguments):
        return self.spawn(*arguments).ready()

    def send(self, task, *arguments, **options):
        return self.app.tasks[f"celery_app.{task}"].apply_async(arguments, **options)

    def ready(self):
        """How many messages the broker holds that no worker has."""
        with self.app.connection_for_read() as connection:
            return connection.default_channel.queue_declare(self.queue, passive=True).message_count

    def close(self):
        try:
            for worker in self.workers:
                worker.stop()
        finally:
            for worker in self.workers:
                worker.kill()
            with contextlib.suppress(OperationalError, OSError), self.app.connection_for_write() as connection:
                connection.default_channel.queue_delete(self.queue)
                connection.default_channel.exchange_delete(self.queue)
            self.app.close()


@pytest.fixture
def site(broker, name):
    """Makes applications; at the end their workers have stopped."""
    made = []

    def site(on=broker, **settings):
        made.append(Site(on, name, **settings))
        return made[-1]

    yield site
    for one in made:
        one.close()


def numbers(file):
    return [int(line) for line in file.read_text().split()] if file.exists() else []
