"""Transient messages beyond a queue's window are on the disk while the broker runs, where nobody can read them."""

import errno
import time
from pathlib import Path

import pika
import pytest
from disk import FAIL, READ, WRITE, Disk, build
from test_restart import drain, end, restart, wait_for_log

both_ends = pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
both_modes = pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])

KIB, MIB = 1024, 1024 * 1024
WINDOW = "queue.resident_limit.messages = 8\n"
CANARY = b"CANARY-OF-THE-SPILL"
COUNT = 400
ALL = [b"%s %d" % (CANARY, n) for n in range(COUNT)]
SECONDS_MAX = 60


@pytest.fixture
def spilling(native):
    return lambda **arguments: native(settings=WINDOW, **arguments)


def wait_until(is_so, what):
    deadline = time.monotonic() + SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def files(broker):
    folder = broker.data / "spill"
    return sorted(folder.iterdir()) if folder.exists() else []


def spilled_bytes(broker):
    return sum(path.stat().st_size for path in files(broker) if path.exists())


def on_a_failing_disk(spilling, tmp_path):
    broker = spilling(start=False)
    disk = Disk(broker, build(tmp_path))
    broker.start()
    return broker, disk


def wait_until_spilled(broker, size_bytes):
    wait_until(lambda: spilled_bytes(broker) >= size_bytes, f"{size_bytes} bytes are spilled")


def wait_until_no_file_is_left(broker):
    wait_until(lambda: not files(broker), "no file is left")


def publish(channel, body, queue="q", **properties):
    channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=1, **properties))


def fill(connection, bodies=ALL, queue="q", durable=False, **arguments):
    """An exclusive queue of transient messages, or a durable one."""
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=durable, exclusive=not durable, arguments=arguments)
    for body in bodies:
        publish(channel, body, queue)
    return channel


def resident_bytes(broker):
    status = Path(f"/proc/{broker.process.pid}/status").read_text()
    return next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmRSS"))


def test_two_hundred_thousand_transient_messages_need_little_memory_and_come_back_in_order(native):
    """All of them were in memory, and a memory alarm stopped whoever published."""
    count = 200_000
    broker = native(settings="queue.resident_limit.messages = 500\n")
    with broker.connect() as connection:
        channel = connection.channel()
        channel.queue_declare("q", exclusive=True)
        before = resident_bytes(broker)
        for n in range(count):
            publish(channel, b"%d" % n + b"." * KIB)
        wait_until(lambda: channel.queue_declare("q", passive=True).method.message_count == count, "all have come")
        wait_until_spilled(broker, (count - 4000) * KIB)
        wait_until(lambda: resident_bytes(broker) < before + 64 * MIB, "the memory is given back")
        expected = 0
        for method, _, body in channel.consume("q", auto_ack=True, inactivity_timeout=SECONDS_MAX):
            assert method is not None, expected
            assert int(body.split(b".", 1)[0]) == expected
            expected += 1
            if expected == count:
                break
        channel.cancel()
        assert channel.queue_declare("q", passive=True).method.message_count == 0
        wait_until_no_file_is_left(broker)


@both_modes
@both_ends
def test_what_is_spilled_can_be_read_by_nobody_and_is_gone_after_the_next_start(spilling, how, mode):
    broker = spilling(at_rest=mode)
    with broker.connect() as connection:
        fill(connection, durable=True)
        wait_until_spilled(broker, (COUNT - 40) * len(ALL[0]))
        scanned = [path.read_bytes() for path in broker.data.rglob("*") if path.is_file()]
        assert not any(CANARY in content for content in scanned)
        assert {path.stat().st_mode & 0o777 for path in files(broker)} == {0o600}
        assert (broker.data / "spill").stat().st_mode & 0o777 == 0o700
    end(broker, how)
    # An orderly end takes them along.
    left = [path.read_bytes() for path in files(broker)]
    assert bool(left) == (how == "kill -9") and not any(CANARY in content for content in left)
    broker.start()
    assert not files(broker)
    with broker.connect() as connection:
        channel = connection.channel()
        assert channel.queue_declare("q", passive=True).method.message_count == 0
        # And the place is fit for use again.
        fill(connection, durable=True)
        wait_until_spilled(broker, (COUNT - 40) * len(ALL[0]))
        assert [body for _, _, body in drain(channel, "q")] == ALL


@both_ends
def test_of_a_mixed_queue_all_is_in_order_and_the_persistent_ones_outlive_the_broker(spilling, how):
    broker = spilling()
    # Stretches of either, and every other one.
    is_persistent = [n % 2 == 0 if n < 100 else n // 50 % 2 == 0 for n in range(COUNT)]
    with broker.connect() as connection:
        channel = fill(connection, [], durable=True)
        for body, persistent in zip(ALL, is_persistent):
            channel.basic_publish("", "q", body, pika.BasicProperties(delivery_mode=2 if persistent else 1))
        wait_until_spilled(broker, 100 * len(ALL[0]))
        reader = connection.channel()
        assert [body for _, _, body in drain(reader, "q")] == ALL
        reader.basic_nack(0, multiple=True, requeue=True)
        again = drain(reader, "q")
        assert [body for _, _, body in again] == ALL and all(method.redelivered for method, _, _ in again)
    restart(broker, how)
    with broker.connect() as connection:
        found = [body for _, _, body in drain(connection.channel(), "q")]
    assert found == [body for body, persistent in zip(ALL, is_persistent) if persistent]


def test_a_purge_or_the_end_of_the_queue_frees_the_disk(spilling):
    broker = spilling()
    with broker.connect() as connection:
        channel = fill(connection)
        wait_until_spilled(broker, KIB)
        assert channel.queue_purge("q").method.message_count == COUNT
        wait_until_no_file_is_left(broker)
        fill(connection)
        wait_until_spilled(broker, KIB)
    # With its connection goes the queue.
    wait_until_no_file_is_left(broker)


def test_a_full_queue_drops_its_head_and_what_is_too_old_dies_in_order(spilling):
    broker = spilling()
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    with broker.connect() as connection:
        fill(connection, [], "dead")
        channel = fill(connection, queue="short", **dead, **{"x-max-length": 300})
        reader = connection.channel()
        assert [body for _, _, body in drain(reader, "short")] == ALL[100:]
        assert [body for _, _, body in drain(reader, "dead")] == ALL[:100]
        fill(connection, [], "old", **dead)
        for body in ALL:
            publish(channel, body, "old", expiration="1")
        found = []
        for method, properties, body in channel.consume("dead", auto_ack=True, inactivity_timeout=SECONDS_MAX):
            assert method is not None, found
            found.append(body)
            assert properties.headers["x-death"][0]["reason"] == "expired"
            if len(found) == COUNT:
                break
        assert found == ALL


def test_priorities_go_first_however_far_behind_they_stand(spilling):
    broker = spilling()
    with broker.connect() as connection:
        channel = fill(connection, [], **{"x-max-priority": 3})
        for n, body in enumerate(ALL):
            publish(channel, body, priority=n % 4)
        wait_until_spilled(broker, KIB)
        found = [body for _, _, body in drain(channel, "q")]
        assert found == [body for level in (3, 2, 1, 0) for body in ALL[level::4]]


def test_what_the_disk_does_not_take_stays_in_memory_and_nothing_else_is_touched(spilling, tmp_path):
    broker = spilling(start=False)
    disk = Disk(broker, build(tmp_path))
    disk.arm(FAIL, WRITE, match="/spill/", error=errno.ENOSPC)
    broker.start()
    with broker.connect() as connection:
        channel = fill(connection)
        wait_until(lambda: disk.failed() >= 2, "another try")
        assert not spilled_bytes(broker)
        # Confirmed by a store on the same disk.
        channel.queue_declare("stored", durable=True)
        channel.basic_publish("", "stored", b"persistent", pika.BasicProperties(delivery_mode=2))
        reader = connection.channel()
        assert [body for _, _, body in drain(reader, "q")] == ALL
        reader.basic_nack(0, multiple=True, requeue=True)
        assert broker.logged().count("transient messages stay in memory") == 1
        disk.disarm()
        wait_until_spilled(broker, KIB)
        wait_for_log(broker, "transient messages go to the disk again")
        assert [body for _, _, body in drain(connection.channel(), "q")] == ALL


def test_what_cannot_be_read_back_at_once_is_delivered_later_in_order(spilling, tmp_path):
    """A passing error of the disk destroyed messages that were sound."""
    broker, disk = on_a_failing_disk(spilling, tmp_path)
    with broker.connect() as connection:
        channel = fill(connection)
        wait_until_spilled(broker, KIB)
        disk.arm(FAIL, READ, match="/spill/", times=3)
        assert [body for _, _, body in drain(channel, "q")] == ALL
        wait_until_no_file_is_left(broker)
        log = broker.logged()
        assert disk.failed() == 3 and "tried again" in log and "E_STORE_IO" in log
        assert "are lost" not in log and CANARY.decode() not in log


def test_what_cannot_be_read_back_in_ten_tries_is_lost_is_said_and_the_rest_is_delivered(spilling, tmp_path):
    broker, disk = on_a_failing_disk(spilling, tmp_path)
    with broker.connect() as connection:
        channel = fill(connection)
        wait_until_spilled(broker, KIB)
        # Of four messages, for half of the window is a block.
        disk.arm(FAIL, READ, match="/spill/", times=10)
        found = [body for _, _, body in drain(channel, "q")]
        assert len(found) == COUNT - 4 and found == [body for body in ALL if body in set(found)]
        assert channel.queue_declare("q", passive=True).method.message_count == 0
        wait_until_no_file_is_left(broker)
        log = broker.logged()
        assert "transient messages are lost" in log and "E_STORE_IO" in log and CANARY.decode() not in log
