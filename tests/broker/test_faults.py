"""What the broker makes of a disk that fails: an error, no space, half a write, power that goes out at any step.

The oracle is the same everywhere. What was confirmed is there after a restart with a sound disk. A failing disk ends the
broker with its exit status and its reason in the log, or refuses the start with a code; nothing hangs, and nothing is
confirmed that is not on the disk.

    SEALMQ_NIGHTLY=1   every step instead of each eighth, and more rounds
    SEED=word          repeats a run's choices
"""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time

import pika
import pytest
from disk import CHANGES, COUNT, FAIL, KILL, OPEN, POWER_CUT, READ, RENAME, SHORT, SYNC, WRITE, Disk, build
from test_restart import EXIT_STORE, PERSISTENT, bodies, drain, fill, wait_for_log

NIGHTLY = bool(os.environ.get("SEALMQ_NIGHTLY"))
SEED = os.environ.get("SEED") or f"{random.randrange(1 << 32):08x}"
# Of a start's steps (about a hundred) one in so many is tried.
STRIDE = 1 if NIGHTLY else 8
KIB, MIB = 1024, 1024 * 1024
STOP_SECONDS_MAX = 60
MESSAGES = [b"one", b"two" * 10 * KIB, b"three"]


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("faulty-disk"))


# ---- a start that ends at any of its steps


def prepare(broker, state):
    """Brings the data directory into a state; gives what must be in it."""
    if state == "none":
        return []
    broker.start()
    fill(broker, MESSAGES)
    if state == "closed":
        broker.stop()
    else:
        broker.kill()
    if state == "torn":
        log = max((broker.data / "db").glob("*.log"))
        log.write_bytes(log.read_bytes() + b"\x11" * 5)
    return MESSAGES


def steps(broker, disk):
    """How many steps a start takes, and some of them."""
    disk.arm(COUNT, CHANGES)
    broker.start()
    count = disk.seen()
    broker.kill()
    first = random.Random(SEED).randrange(STRIDE)
    return range(first, count, STRIDE)


def put_back(broker, saved):
    shutil.rmtree(broker.data, ignore_errors=True)
    if saved.exists():
        shutil.copytree(saved, broker.data)


def each_step(native, library, state):
    """A broker with its disk, before a start that the caller spoils at each of its steps."""
    broker = native(start=False)
    disk = Disk(broker, library)
    wanted = prepare(broker, state)
    saved = broker.folder / "saved"
    if broker.data.exists():
        shutil.copytree(broker.data, saved)
    for step in steps(broker, disk):
        put_back(broker, saved)
        print(f"SEED={SEED} {state}, step {step}")
        yield step, broker, disk, wanted


states = pytest.mark.parametrize("state", ["none", "closed", "killed", "torn"])


@states
@pytest.mark.parametrize("action", [KILL, POWER_CUT], ids=["kill -9", "power cut"])
def test_any_step_of_a_start_may_be_its_last(native, library, state, action):
    """A kill between the creation of the anchor and its first write left a store that was refused for ever."""
    for step, broker, disk, wanted in each_step(native, library, state):
        disk.arm(action, CHANGES, after=step)
        broker.spawn()
        assert broker.process.wait(STOP_SECONDS_MAX) == -signal.SIGKILL
        disk.disarm()
        broker.start()
        assert not wanted or bodies(broker) == wanted
        broker.kill()


@states
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_disk_that_fails_from_any_step_of_a_start_refuses_it(native, library, state, error):
    for step, broker, disk, wanted in each_step(native, library, state):
        disk.arm(FAIL, CHANGES, after=step, error=error)
        refused(broker)
        disk.disarm()
        broker.start()
        assert not wanted or bodies(broker) == wanted
        broker.kill()


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_disk_that_cannot_be_read_refuses_the_start(native, library, state):
    broker = native(start=False)
    disk = Disk(broker, library)
    wanted = prepare(broker, state)
    disk.arm(COUNT, READ)
    broker.start()
    reads = disk.seen()
    assert bodies(broker) == wanted
    broker.kill()
    for step in range(random.Random(SEED).randrange(STRIDE), reads, STRIDE):
        print(f"SEED={SEED} {state}, read {step}")
        disk.arm(FAIL, READ, after=step)
        refused(broker, or_up_within_seconds=10)
        disk.disarm()
    broker.start()
    assert bodies(broker) == wanted


def refused(broker, or_up_within_seconds=None):
    """Starts the broker, which must end by itself and say why. The last reads that were counted may have been those of a
    page, after the start: then it must be up, and say that it cannot read them back."""
    try:
        run = broker.attempt(or_up_within_seconds or STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"") + (late.stderr or b"")
        assert or_up_within_seconds and b"startup complete" in said and b"cannot be read back" in said, said
        return
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == EXIT_STORE and re.match("sealmq: E_[A-Z_]+: ", last), run.stderr


# ---- a disk that fails under load


class Publisher(threading.Thread):
    """Publishes persistent messages to its own queue, up to a window ahead of the confirms, until the broker is gone."""

    WINDOW = 50

    def __init__(self, broker, queue, size_bytes):
        super().__init__(daemon=True)
        self.parameters, self.queue, self.size_bytes = broker.parameters(), queue, size_bytes
        self.published, self.confirmed, self.refused, self.failure = 0, set(), set(), None

    def body(self, number):
        return random.Random(f"{SEED}/{self.queue}/{number}").randbytes(self.size_bytes) + b"%d" % number

    def run(self):
        connection = pika.SelectConnection(
            self.parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.opened),
            on_open_error_callback=lambda connection, _: connection.ioloop.stop(),
            on_close_callback=lambda connection, _: connection.ioloop.stop(),
        )
        connection.ioloop.start()

    def opened(self, channel):
        self.channel = channel
        channel.confirm_delivery(self.answered, callback=lambda _: self.fill())

    def fill(self):
        while self.published < len(self.confirmed) + len(self.refused) + self.WINDOW and self.channel.is_open:
            self.channel.basic_publish("", self.queue, self.body(self.published), PERSISTENT)
            self.published += 1

    def answered(self, frame):
        tag, multiple = frame.method.delivery_tag, frame.method.multiple
        answers = self.confirmed if isinstance(frame.method, pika.spec.Basic.Ack) else self.refused
        first = 0 if multiple else tag - 1
        answers |= set(range(first, tag)) - self.confirmed - self.refused
        self.fill()

    def is_waiting(self):
        return self.published == len(self.confirmed) + len(self.refused) + self.WINDOW

    def ask(self):
        """Waits until the broker has read what was published."""
        answered = threading.Event()
        question = lambda: self.channel.basic_qos(prefetch_count=1, callback=lambda _: answered.set())
        self.channel.connection.ioloop.add_callback_threadsafe(question)
        assert answered.wait(30), f"{self.queue}: no answer"

    def judge(self, broker):
        """What the restarted broker holds of it, against what it was told."""
        with broker.connect() as connection:
            found = [body for _, _, body in drain(connection.channel(), self.queue)]
        numbers = {self.body(number): number for number in range(self.published)}
        assert all(body in numbers for body in found), f"{self.queue}: something that was never published"
        present = [numbers[body] for body in found]
        assert present == sorted(set(present)), f"{self.queue}: twice, or out of order"
        lost = self.confirmed - set(present)
        assert not lost, f"{self.queue}: confirmed and lost: {sorted(lost)}"
        return len(self.confirmed)


def load(broker, sizes):
    """Publishers at work, each with some confirms."""
    workers = [Publisher(broker, f"q{n}", size_bytes) for n, size_bytes in enumerate(sizes)]
    with broker.connect() as connection:
        for worker in workers:
            connection.channel().queue_declare(worker.queue, durable=True)
    for worker in workers:
        worker.start()
    until = time.monotonic() + 30
    while not all(len(worker.confirmed) > 20 for worker in workers):
        assert time.monotonic() < until and broker.process.poll() is None, broker.logged()
        time.sleep(0.01)
    return workers


def judge_all(broker, workers):
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive(), f"{worker.queue}: the publisher did not notice that the broker is gone"
    broker.start()
    assert sum(worker.judge(broker) for worker in workers) > 20 * len(workers)


FAULTS = {"EIO once": (errno.EIO, 1), "ENOSPC for ever": (errno.ENOSPC, -1)}
if NIGHTLY:
    FAULTS |= {"EIO for ever": (errno.EIO, -1), "ENOSPC once": (errno.ENOSPC, 1)}


@pytest.mark.parametrize(("error", "times"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize(
    ("action", "calls", "match"),
    [
        (FAIL, WRITE, "/db/"),
        (SHORT, WRITE, "/db/"),
        (FAIL, SYNC, "/db/"),
        (FAIL, WRITE, "/anchor"),
        (SHORT, WRITE, "/anchor"),
        (FAIL, SYNC, "/anchor"),
    ],
    ids=["write log", "half of a log's write", "sync log", "write anchor", "half of the anchor's write", "sync anchor"],
)
def test_a_commit_that_fails_stops_the_broker_and_confirms_nothing(native, library, action, calls, match, error, times):
    broker = native(start=False)
    disk = Disk(broker, library)
    broker.start()
    workers = load(broker, [100, 20 * KIB])
    # The anchor is synced once a second only. Half a write is gone on with, so the one after it must fail.
    after = 0 if calls == SYNC and match == "/anchor" else random.Random(SEED).randrange(20)
    disk.arm(action, calls, match, after, times=2 if action == SHORT and times == 1 else times, error=error)
    assert broker.process.wait(STOP_SECONDS_MAX) == EXIT_STORE
    assert disk.failed() > 0 and "the store has stopped" in broker.logged() and "E_COMMIT_FAILED" in broker.logged()
    disk.disarm()
    judge_all(broker, workers)


def test_a_power_cut_under_load_loses_nothing_confirmed(native, library):
    """Whatever is not synced is gone: what was appended to logs, and the anchor's last writes."""
    broker = native(start=False)
    disk = Disk(broker, library)
    choice = random.Random(SEED)
    for number in range(40 if NIGHTLY else 4):
        shutil.rmtree(broker.data, ignore_errors=True)
        broker.start()
        calls = choice.choice([WRITE, SYNC, CHANGES])
        print(f"SEED={SEED} round {number}: calls {calls}")
        workers = load(broker, [100, 20 * KIB])
        disk.arm(POWER_CUT, calls, after=choice.randrange(300))
        assert broker.process.wait(STOP_SECONDS_MAX) == -signal.SIGKILL
        disk.disarm()
        judge_all(broker, workers)
        broker.kill()


@pytest.mark.parametrize("calls", [OPEN | RENAME, WRITE, SYNC], ids=["create", "write", "sync"])
@pytest.mark.parametrize("match", [".sst", ".blob", "MANIFEST"])
def test_a_failing_flush_loses_nothing_confirmed(native, library, match, calls):
    """Behind the commits RocksDB moves messages from its memory to tables and blob files."""
    if (match, calls) == ("MANIFEST", OPEN | RENAME):
        pytest.skip("the MANIFEST is made at a start only")
    broker = native(start=False)
    disk = Disk(broker, library)
    broker.start()
    disk.arm(FAIL, calls, match)
    # More than RocksDB keeps in memory of bodies.
    workers = load(broker, [MIB])
    assert broker.process.wait(STOP_SECONDS_MAX) == EXIT_STORE
    assert disk.failed() > 0 and "the store has stopped" in broker.logged()
    disk.disarm()
    judge_all(broker, workers)


# ---- a disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; its size can be changed."""
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("MAY NOT MOUNT: a full disk stays untested here; run as root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_stops_the_broker_and_loses_nothing_confirmed(native, small_disk):
    # 0 is no alarm.
    broker = native(start=False, settings="disk_free_limit.absolute = 0\n")
    broker.data.symlink_to(small_disk)
    broker.start()
    workers = load(broker, [100, 20 * KIB])
    assert broker.process.wait(STOP_SECONDS_MAX) == EXIT_STORE
    assert "No space left on device" in broker.logged() and "E_COMMIT_FAILED" in broker.logged()
    refused(broker)
    subprocess.run(["mount", "-o", "remount,size=256m", small_disk], check=True)
    judge_all(broker, workers)
    broker.stop()


def test_publishers_are_blocked_before_the_disk_is_full_and_nothing_stops(native, small_disk):
    """With RabbitMQ's default limit. It was looked at once a second, which a fast publisher outran."""
    subprocess.run(["mount", "-o", "remount,size=256m", small_disk], check=True)
    broker = native(start=False, settings="disk_free_limit.absolute = 50MB\n")
    broker.data.symlink_to(small_disk)
    broker.start()
    workers = load(broker, [20 * KIB])
    wait_for_log(broker, "alarm: publishers are blocked")
    subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
    wait_for_log(broker, "the alarm is over")
    confirmed = len(workers[0].confirmed)
    until = time.monotonic() + STOP_SECONDS_MAX
    while len(workers[0].confirmed) < confirmed + 100:
        assert time.monotonic() < until and broker.process.poll() is None, broker.logged()
        time.sleep(0.01)
    broker.kill()
    judge_all(broker, workers)
    broker.stop()


def test_an_alarm_over_what_is_still_to_be_written_ends_once_it_is_written(native, small_disk):
    """Blocked publishers write nothing, so nothing had the database write its tables: the alarm would have lasted."""
    subprocess.run(["mount", "-o", "remount,size=512m", small_disk], check=True)
    broker = native(start=False, settings="disk_free_limit.absolute = 50MB\n")
    broker.data.symlink_to(small_disk)
    broker.start()
    fill(broker, [bytes(100 * KIB)] * 100)
    size = shutil.disk_usage(small_disk).used + 50_000_000 + 5 * KIB * KIB
    subprocess.run(["mount", "-o", f"remount,size={size}", small_disk], check=True)
    wait_for_log(broker, "alarm: publishers are blocked")
    wait_for_log(broker, "the alarm is over")
    broker.stop()
