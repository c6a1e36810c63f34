"""Dramatiq: worker processes, retries through delay queues, dead letters, priorities, a queue that went away, a restart."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dramatiq_app
import pika
import pytest
from dramatiq import Message

HERE = Path(__file__).parent
SECONDS_MAX = 60


class Site:
    """A queue with its delay and dead-letter queues, and workers for it."""

    def __init__(self, broker, queue):
        self.told = {"url": broker.url, "ca": broker.ca, "queue": queue}
        self.queue, self.workers = queue, []
        self.broker = dramatiq_app.make(broker.url, broker.ca)
        self.broker.declare_queue(queue)

    def send(self, actor, *arguments, delay=None, **options):
        self.broker.enqueue(Message(self.queue, actor, arguments, {}, options), delay=delay)

    def worker(self, threads=4, **environment):
        self.workers.append(
            subprocess.Popen(
                [sys.executable, "-B", "-m", "dramatiq", "dramatiq_app", "--processes", "1", "--threads", str(threads)],
                cwd=HERE,
                env=os.environ | environment | {"INTEROP_DRAMATIQ": json.dumps(self.told)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        return self.workers[-1]

    def counts(self):
        """Messages in the queue, its delay queue and its dead letters."""
        return self.broker.get_queue_message_counts(self.queue)

    def close(self):
        try:
            for worker in self.workers:
                worker.terminate()
                assert worker.wait(SECONDS_MAX) == 0
        finally:
            for worker in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
            with contextlib.suppress(pika.exceptions.AMQPError):
                for suffix in ("", ".DQ", ".XQ"):
                    self.broker.channel.queue_delete(self.queue + suffix)
            self.broker.close()


@pytest.fixture
def site(broker, name):
    """Makes sites; at the end their workers have stopped."""
    made = []

    def site(on=broker):
        made.append(Site(on, name))
        return made[-1]

    yield site
    for one in made:
        one.close()


def numbers(file):
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca, name):
    lost = dramatiq_app.make(broker.url, stranger_ca)
    with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
        lost.enqueue(Message(name, "note", (), {}, {}))


def test_each_message_runs_once(site, tmp_path, eventually):
    one = site()
    one.worker()
    for number in range(500):
        one.send("note", str(tmp_path / "noted"), number)
    eventually(lambda: len(numbers(tmp_path / "noted")) >= 500, SECONDS_MAX)
    eventually(lambda: one.counts() == (0, 0, 0), SECONDS_MAX)
    assert sorted(numbers(tmp_path / "noted")) == list(range(500))


def test_what_fails_is_tried_again_and_ends_among_the_dead_letters(site, tmp_path, eventually):
    """A retry goes to the delay queue, from where the worker puts it back; after three of them it is rejected for good."""
    one = site()
    one.worker()
    for number in range(60):
        one.send("flaky", str(tmp_path), number, number % 6)
    recovering = [number for number in range(60) if number % 6 <= 3]
    eventually(lambda: len(numbers(tmp_path / "done")) >= len(recovering), SECONDS_MAX)
    eventually(lambda: one.counts() == (0, 0, 60 - len(recovering)), SECONDS_MAX)
    assert sorted(numbers(tmp_path / "done")) == recovering
    for number in range(60):
        assert len(numbers(tmp_path / f"tried-{number}")) == min(number % 6, 3) + 1
    letters = [one.broker.channel.basic_get(f"{one.queue}.XQ") for _ in range(60 - len(recovering))]
    assert sorted(Message.decode(body).args[1] for _, _, body in letters) == [number for number in range(60) if number % 6 > 3]
    deaths = [properties.headers["x-death"][0] for _, properties, _ in letters]
    assert {(death["reason"], death["queue"], death["count"]) for death in deaths} == {("rejected", one.queue, 1)}


def test_a_delayed_message_runs_no_earlier_than_its_time(site, tmp_path, eventually):
    one = site()
    one.worker()
    sent = time.time()
    for delay in (2000, 1000):
        for _ in range(20):
            one.send("tell_time", str(tmp_path / str(delay)), delay=delay)
    for delay in (2000, 1000):
        file = tmp_path / str(delay)
        eventually(lambda file=file: file.exists() and len(file.read_text().split()) >= 20, SECONDS_MAX)
        ran = [float(line) for line in file.read_text().split()]
        # Dramatiq's clock has milliseconds.
        assert len(ran) == 20 and min(ran) >= sent + delay / 1000 - 0.001


def test_priorities_come_first_and_in_order_within_one(site, tmp_path, eventually):
    one = site()
    for number in range(100):
        one.send("note", str(tmp_path / "order"), number, broker_priority=number % 10)
    assert one.counts() == (100, 0, 0)
    one.worker(threads=1, dramatiq_queue_prefetch="1")
    eventually(lambda: len(numbers(tmp_path / "order")) >= 100, SECONDS_MAX)
    assert numbers(tmp_path / "order") == sorted(range(100), key=lambda number: (-(number % 10), number))


def test_a_queue_that_went_away_is_declared_again_by_the_next_message(site, tmp_path, eventually):
    one = site()
    one.send("note", str(tmp_path / "noted"), 1)
    for suffix in ("", ".DQ", ".XQ"):
        one.broker.channel.queue_delete(one.queue + suffix)
    one.send("note", str(tmp_path / "noted"), 2)
    assert one.counts() == (1, 0, 0)
    one.worker()
    eventually(lambda: numbers(tmp_path / "noted") == [2], SECONDS_MAX)


def test_a_worker_goes_on_after_a_restart_of_the_broker(site, restartable, tmp_path, eventually):
    one = site(on=restartable)
    worker = one.worker()
    for number in range(50):
        one.send("note", str(tmp_path / "noted"), number)
    restartable.restart()
    for number in range(50, 100):
        one.send("note", str(tmp_path / "noted"), number)
    eventually(lambda: set(numbers(tmp_path / "noted")) == set(range(100)), SECONDS_MAX)
    assert worker.poll() is None
    # Those of the first half that were not acknowledged yet may have run twice; those of the second half have not.
    assert sorted(number for number in numbers(tmp_path / "noted") if number >= 50) == list(range(50, 100))
