"""Celery before 5.7: it changes its prefetch while it consumes, with the global QoS that RabbitMQ 4.3 no longer has.

Later versions ask a RabbitMQ of 4.0 or later for a prefetch of each consumer, which stays as it was.
"""

from celery_site import SECONDS_MAX, numbers, site  # noqa: F401 (a fixture)


def test_a_pool_that_grows_takes_more_at_once(site, tmp_path, eventually):
    """Celery changes its prefetch on a channel that consumes: global QoS with RabbitMQ's meaning."""
    one = site(worker_prefetch_multiplier=3)
    worker = one.worker("-c", "1")
    for number in range(20):
        one.send("hold", str(tmp_path), number, ignore_result=True)
    eventually(lambda: one.ready() == 20 - 3, SECONDS_MAX)
    one.app.control.pool_grow(2, destination=[worker.node], reply=True, timeout=10)
    eventually(lambda: one.ready() == 20 - 9, SECONDS_MAX)
    eventually(lambda: len(numbers(tmp_path / "started")) == 3, SECONDS_MAX)
    (tmp_path / "gate").touch()
    eventually(lambda: sorted(numbers(tmp_path / "done")) == list(range(20)), SECONDS_MAX)


def test_tasks_with_a_later_time_do_not_block_the_next_one(site, eventually):
    """The worker raises its prefetch for each, takes all of them although it works on one at a time, and gives them back."""
    one = site(worker_prefetch_multiplier=1)
    worker = one.worker("-c", "1")
    for _ in range(50):
        one.send("now", countdown=3600, ignore_result=True)
    one.send("now").get(timeout=SECONDS_MAX)
    eventually(lambda: one.ready() == 0, SECONDS_MAX)
    scheduled = one.app.control.inspect(destination=[worker.node], timeout=10).scheduled()
    assert len(scheduled[worker.node]) == 50
    worker.stop()
    eventually(lambda: one.ready() == 50, SECONDS_MAX)
