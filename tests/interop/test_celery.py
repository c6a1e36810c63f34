"""Celery: real worker processes with results, retries, delays, priorities, revocation, remote control, events, quorum queues."""

import contextlib
import os
import threading
import time

import celery_app
import pytest
from celery import group
from celery.exceptions import TaskRevokedError
from celery_site import SECONDS_MAX, Site, numbers, site  # noqa: F401 (a fixture)
from kombu.exceptions import OperationalError
from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE, MAX_LEVEL, level_name


@pytest.fixture(scope="module")
def shared(broker):
    """One application with one worker of two processes, for what does not disturb others."""
    site = Site(broker, f"interop-{os.urandom(6).hex()}")
    site.worker("-c", "2", "-E")
    yield site
    site.close()


def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca, name):
    told = {"url": broker.url, "ca": stranger_ca, "settings": {"task_default_queue": name}}
    with celery_app.make(**told).connection_for_write() as connection:
        with pytest.raises((OperationalError, OSError), match="CERTIFICATE_VERIFY_FAILED"):
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


def test_every_result_comes_back_to_its_caller(shared):
    sums = group(shared.app.tasks["celery_app.add"].s(number, 1000) for number in range(300)).apply_async()
    assert sums.get(timeout=SECONDS_MAX) == [number + 1000 for number in range(300)]
    assert shared.ready() == 0


def test_a_task_that_asks_for_it_is_tried_again(shared):
    results = [shared.send("flaky", failures, 0) for failures in (0, 1, 2, 3, 5) * 10]
    assert [result.get(timeout=SECONDS_MAX) for result in results] == [0, 1, 2, 3, 5] * 10
    lost = shared.send("flaky", 6, 0)
    with pytest.raises(Exception, match="MaxRetriesExceeded|Can't retry"):
        lost.get(timeout=SECONDS_MAX)


def test_a_task_runs_no_earlier_than_its_time(shared):
    sent = time.time()
    results = {countdown: [shared.send("now", countdown=countdown) for _ in range(20)] for countdown in (2, 1, 0)}
    for countdown, some in results.items():
        assert all(result.get(timeout=SECONDS_MAX) >= sent + countdown for result in some)


def test_events_tell_of_each_task_once(shared, eventually):
    seen, ready, enough = {}, threading.Event(), threading.Event()

    def on_success(event):
        seen[event["uuid"]] = seen.get(event["uuid"], 0) + 1

    def capture():
        with shared.app.connection_for_read() as given:
            receiver = shared.app.events.Receiver(given, handlers={"task-succeeded": on_success})
            with receiver.consumer_context() as (connection, _, _):
                ready.set()
                while not enough.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=1)

    thread = threading.Thread(target=capture, daemon=True)
    thread.start()
    try:
        assert ready.wait(SECONDS_MAX)
        results = [shared.send("add", number, number) for number in range(100)]
        assert [result.get(timeout=SECONDS_MAX) for result in results] == [2 * number for number in range(100)]
        ours = {result.id for result in results}
        eventually(lambda: ours <= seen.keys(), SECONDS_MAX)
    finally:
        enough.set()
        thread.join(10)
    assert {uuid: seen[uuid] for uuid in ours} == dict.fromkeys(ours, 1)


def test_a_revoked_task_does_not_run(site, tmp_path, eventually):
    """On a worker of its own. The process that takes the place of a terminated one closes, over TLS, the connections
    that it has inherited (kombu's `_after_fork_cleanup_resource`), so that the worker publishes again what was under
    way: once in some forty runs a reply to remote control came twice, and the next case took it for the answer to its
    next question. RabbitMQ sees the same.
    """
    one = site()
    node = one.worker("-c", "2").node
    later = one.send("order", str(tmp_path / "ran"), 1, countdown=3600)
    inspect = one.app.control.inspect(destination=[node], timeout=5)
    eventually(lambda: inspect.scheduled()[node], SECONDS_MAX)
    one.app.control.revoke(later.id, destination=[node], reply=True, timeout=5)
    assert later.id in inspect.revoked()[node]
    running = one.send("hold", str(tmp_path), 1)
    eventually((tmp_path / "started").exists, SECONDS_MAX)
    one.app.control.revoke(running.id, terminate=True, destination=[node])
    with pytest.raises(TaskRevokedError):
        running.get(timeout=SECONDS_MAX)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "done").exists()


def test_remote_control_answers(shared):
    node = shared.workers[0].node
    inspect = shared.app.control.inspect(destination=[node], timeout=5)
    assert inspect.ping() == {node: {"ok": "pong"}}
    assert [queue["name"] for queue in inspect.active_queues()[node]] == [shared.queue]
    assert "celery_app.add" in inspect.registered()[node]
    assert inspect.stats()[node]["pool"]["max-concurrency"] == 2


def test_priorities_come_first_and_in_order_within_one(site, tmp_path, eventually):
    one = site(task_queue_max_priority=9, worker_prefetch_multiplier=1, task_acks_late=True)
    with one.app.connection_for_write() as connection:
        one.app.amqp.queues[one.queue](connection.default_channel).declare()
    for number in range(100):
        one.send("order", str(tmp_path / "order"), number, priority=number % 10, ignore_result=True)
    assert one.ready() == 100
    one.worker("-c", "1")
    eventually(lambda: len(numbers(tmp_path / "order")) == 100, SECONDS_MAX)
    assert numbers(tmp_path / "order") == sorted(range(100), key=lambda number: (-(number % 10), number))


def test_a_warm_shutdown_finishes_what_runs_and_leaves_the_rest(site, tmp_path, eventually):
    one = site()
    first = one.worker("-c", "2")
    for number in range(40):
        one.send("hold_early", str(tmp_path), number, ignore_result=True)
    eventually(lambda: len(numbers(tmp_path / "started")) == 2, SECONDS_MAX)
    first.process.terminate()
    # It has let go of what it had fetched: all but the two that run.
    eventually(lambda: any("Warm shutdown" in line or "shutdown" in line for line in first.lines), SECONDS_MAX)
    (tmp_path / "gate").touch()
    assert first.process.wait(SECONDS_MAX) == 0
    finished = numbers(tmp_path / "done")
    assert one.ready() == 40 - len(finished)
    one.worker("-c", "2")
    eventually(lambda: len(numbers(tmp_path / "done")) >= 40, SECONDS_MAX)
    assert sorted(numbers(tmp_path / "done")) == list(range(40))


def test_what_a_killed_worker_had_goes_to_another_as_redelivered(site, tmp_path, eventually):
    one = site(worker_prefetch_multiplier=1)
    first = one.worker("-c", "1")
    result = one.send("was_redelivered", str(tmp_path))
    eventually((tmp_path / "started").exists, SECONDS_MAX)
    first.kill()
    one.worker("-c", "1")
    assert result.get(timeout=SECONDS_MAX) is True
    assert len(numbers(tmp_path / "started")) == 2
    one.workers.remove(first)


def test_a_worker_goes_on_after_a_restart_of_the_broker(site, restartable, tmp_path, eventually):
    one = site(on=restartable)
    worker = one.worker("-c", "2")
    for number in range(50):
        one.send("order", str(tmp_path / "order"), number, ignore_result=True)
    restartable.restart()
    for number in range(50, 100):
        one.send("order", str(tmp_path / "order"), number, ignore_result=True)
    eventually(lambda: set(numbers(tmp_path / "order")) == set(range(100)), SECONDS_MAX)
    assert worker.process.poll() is None
    # Tasks of the first half that were not acknowledged yet may have run twice; those of the second half have not.
    second = [number for number in numbers(tmp_path / "order") if number >= 50]
    assert sorted(second) == list(range(50, 100))


def test_quorum_queues_with_celerys_own_delayed_delivery(site):
    """Delays go through 28 levels of exchanges and queues with a time to live; a retry goes through them again."""
    one = site(task_default_queue_type="quorum", task_default_exchange_type="topic", worker_prefetch_multiplier=2)
    one.worker("-c", "2")
    sent = time.time()
    at_once = [one.send("add", number, number) for number in range(200)]
    delayed = {countdown: [one.send("now", countdown=countdown) for _ in range(10)] for countdown in (1, 2, 3, 5)}
    assert [result.get(timeout=SECONDS_MAX) for result in at_once] == [2 * number for number in range(200)]
    for countdown, some in delayed.items():
        assert all(result.get(timeout=SECONDS_MAX) >= sent + countdown for result in some)
    retried = [one.send("flaky", failures, 1) for failures in (1, 2, 3)]
    assert [result.get(timeout=SECONDS_MAX) for result in retried] == [1, 2, 3]
    assert one.ready() == 0
    one.workers[0].stop()
    with one.app.connection_for_write() as connection:
        connection.default_channel.exchange_delete(CELERY_DELAYED_DELIVERY_EXCHANGE)
        for level in range(MAX_LEVEL + 1):
            connection.default_channel.queue_delete(level_name(level))
            connection.default_channel.exchange_delete(level_name(level))
