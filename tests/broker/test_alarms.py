"""Too little memory or disk: publishers are told and stopped, nobody else is, nothing is lost, and it ends."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "differential"))

import amqp  # noqa: E402
from native import Native  # noqa: E402

MIB = 1024 * 1024
SECONDS_MAX = 60
"""Small enough that a message which is not read fits into the sockets' buffers."""
BODY_BYTES = 256 * 1024
"""What may be used beyond a broker that does nothing; the queue that raises the alarm holds more than that."""
MEMORY_MARGIN_BYTES, MEMORY_FILL_BYTES = 64 * MIB, 128 * MIB
"""A file system of its own, so that nobody else's files raise or end the alarm."""
SHM = Path("/dev/shm")


class Alarmed:
    """A broker that runs short of memory or disk on demand."""

    def __init__(self, folder):
        self.folder = folder
        self.ballast = folder / "ballast"
        self.native = Native(folder, start=False)
        self.native.start()
        # With RocksDB's files at the size that they have while it runs.
        used, free = self.resident_bytes(), shutil.disk_usage(folder).free
        self.native.stop()
        self.disk_margin = min(free // 4, 64 * MIB)
        self.native.configure(
            "sealed",
            f"vm_memory_high_watermark.absolute = {used + MEMORY_MARGIN_BYTES}\n"
            f"disk_free_limit.absolute = {free - self.disk_margin}\n",
        )
        self.native.start()
        settings = self.native.environment
        url = f"amqps://{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASS']}@localhost:{settings['RABBITMQ_PORT']}"
        self.address = amqp.Broker(url, self.native.certs / "certs" / "ca_certificate.pem")
        self.connections = []
        self.filler = self.connect().channel()

    def connect(self, **options):
        self.connections.append(amqp.Connection(self.address).open(**options))
        return self.connections[-1]

    def resident_bytes(self):
        status = Path(f"/proc/{self.native.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def raise_memory(self):
        """A queue that nobody reads, confirmed message by message."""
        self.filler.declare("full", durable=True)
        self.filler.call("confirm.select")
        body = b"x" * BODY_BYTES
        with contextlib.suppress(Blocked):
            for _ in range(MEMORY_FILL_BYTES // BODY_BYTES):
                self.filler.publish("full", body)
                confirmed(self.filler)

    def end_memory(self):
        # The filler may be blocked itself.
        self.connect().channel().call("queue.delete", queue="full")

    def raise_disk(self):
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * self.disk_margin)

    def end_disk(self):
        self.ballast.unlink()

    def end(self):
        for connection in self.connections:
            connection.drop()
        if self.native.process.poll() is None:
            self.native.stop()


class Blocked(Exception):
    """connection.blocked came."""


def confirmed(channel):
    """Waits for the confirm of a publish, or for the news that it is not read."""
    method = channel.next()
    if method.name == "connection.blocked":
        raise Blocked(method.reason)
    assert method.name == "basic.ack", method


def publish_until_blocked(channel, reason):
    """Small messages, each confirmed before the next; how many were, when one was not read any more."""
    deadline = time.monotonic() + SECONDS_MAX
    count = 0
    with pytest.raises(Blocked) as blocked:
        while True:
            channel.publish("few", str(count))
            confirmed(channel)
            count += 1
            assert time.monotonic() < deadline, "no alarm"
    assert str(blocked.value) == reason
    return count


@pytest.fixture
def alarmed():
    if not SHM.is_dir():
        pytest.skip("/dev/shm is needed: a file system that nobody else fills meanwhile")
    folder = Path(tempfile.mkdtemp(prefix="sealmq-alarms-", dir=SHM))
    broker = None
    try:
        broker = Alarmed(folder)
        yield broker
    finally:
        if broker:
            broker.end()
        shutil.rmtree(folder)


@pytest.mark.parametrize("what, reason", [("memory", "low on memory"), ("disk", "low on disk")])
def test_a_publisher_is_blocked_while_the_alarm_lasts_and_loses_nothing(alarmed, what, reason):
    connection = alarmed.connect()
    channel = connection.channel(1)
    channel.declare("few", durable=True)
    channel.call("confirm.select")
    getattr(alarmed, f"raise_{what}")()
    count = publish_until_blocked(channel, reason)
    # What it asks for now is not read before the alarm is over.
    channel.send("basic.qos")
    # Whoever does not publish is served; that includes the end of the alarm.
    assert alarmed.connect().channel().counts("few") == (count, 0)
    getattr(alarmed, f"end_{what}")()
    connection.expect(0, "connection.unblocked")
    confirmed(channel)
    channel.expect("basic.qos-ok")
    assert channel.drain("few") == [str(number) for number in range(count + 1)]


def test_a_blocked_connection_still_gets_its_deliveries(alarmed):
    connection = alarmed.connect()
    channel, holder = connection.channel(1), alarmed.connect().channel()
    channel.declare("few", durable=True)
    channel.declare("other", durable=True)
    channel.publish("other", "held")
    channel.expect_counts("other", 1, 0)
    assert holder.get("other", no_ack=False).body == b"held"
    channel.consume("other", no_ack=True)
    channel.call("confirm.select")
    alarmed.raise_disk()
    publish_until_blocked(channel, "low on disk")
    holder.send("channel.close")
    assert channel.expect("basic.deliver").body == b"held"
    alarmed.end_disk()
    connection.expect(0, "connection.unblocked")
    confirmed(channel)


def test_both_alarms_have_one_reason_and_end_with_the_last_of_them(alarmed):
    alarmed.filler.declare("few", durable=True)
    alarmed.raise_memory()
    alarmed.raise_disk()
    deadline = time.monotonic() + SECONDS_MAX
    # The broker looks once in a while, so it may see one of them first; who is blocked is told once only.
    while True:
        assert time.monotonic() < deadline, "no alarm of both"
        connection = alarmed.connect()
        channel = connection.channel(1)
        channel.call("confirm.select")
        channel.publish("few", "x")
        try:
            confirmed(channel)
        except Blocked as blocked:
            if str(blocked) == "low on memory & disk":
                break
    alarmed.end_disk()
    alarmed.end_memory()
    connection.expect(0, "connection.unblocked")
    confirmed(channel)
