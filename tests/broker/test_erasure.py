"""What is deleted is gone: queues with keys of their own, over purges, deletions and kill -9."""

import json
import random
import subprocess
import threading
import time

import pika
import pytest

SHRED = {"x-seal-shred": True}
PERSISTENT = pika.BasicProperties(delivery_mode=2)


def keyring(broker):
    command = [broker.binaries / "sealmqctl", "--socket", broker.folder / "ctl.sock", "--formatter", "json", "keyring", "status"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)


def own_keys(broker):
    return [key for key in keyring(broker)["data_keys"] if key["queue"] is not None]


def test_a_shredding_queue_has_its_key_until_it_is_purged_or_deleted(native):
    broker = native()
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True, arguments=SHRED)
        channel.queue_declare("common", durable=True)
        for queue in ("q", "common"):
            channel.queue_bind(queue, "amq.fanout")
        for size in (10, 10_000, 200_000):
            channel.basic_publish("amq.fanout", "", b"x" * size, PERSISTENT, mandatory=True)
        [key] = own_keys(broker)
        # Three entries and two bodies apart are its own; the other queue has others.
        assert (key["state"], key["records"]) == ("seals", 5)
        assert channel.queue_purge("q").method.message_count == 3
        [purged] = own_keys(broker)
        assert purged["id"] > key["id"] and purged["records"] == 0
        channel.basic_publish("", "q", b"again", PERSISTENT, mandatory=True)
    broker.kill()
    broker.start()
    assert [key["id"] for key in own_keys(broker)] == [purged["id"]]
    with broker.connect() as connection:
        channel = connection.channel()
        assert channel.basic_get("q", auto_ack=True)[2] == b"again"
        assert [len(channel.basic_get("common", auto_ack=True)[2]) for _ in range(3)] == [10, 10_000, 200_000]
        channel.queue_delete("q")
        assert own_keys(broker) == []
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            channel.queue_declare("q", durable=True, arguments={"x-seal-shred": "yes"})
        assert refused.value.reply_code == 406


def test_kill_9_while_queues_are_shredded_loses_nothing_else_and_leaves_no_key(native):
    broker = native()
    kept = set()
    for number in range(6):
        existing, doubtful, stop = set(), set(), threading.Event()

        def shred(number=number, existing=existing, doubtful=doubtful):
            with broker.connect() as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                for n in range(10_000):
                    name = f"shred-{number}-{n}"
                    doubtful.add(name)
                    channel.queue_declare(name, durable=True, arguments=SHRED)
                    for size in (10, 9000):
                        channel.basic_publish("", name, b"x" * size, PERSISTENT, mandatory=True)
                    if n % 3 == 1:
                        channel.queue_purge(name)
                        channel.basic_publish("", name, b"after", PERSISTENT, mandatory=True)
                    if n % 4:
                        channel.queue_delete(name)
                    else:
                        existing.add(name)
                    doubtful.discard(name)
                    if stop.is_set():
                        return

        def publish(number=number):
            with broker.connect() as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                channel.queue_declare("common", durable=True)
                for n in range(1_000_000):
                    channel.basic_publish("", "common", f"{number}/{n}".encode(), PERSISTENT, mandatory=True)
                    kept.add(f"{number}/{n}")

        def ends(work):
            try:
                work()
            except (pika.exceptions.AMQPError, OSError):
                pass

        threads = [threading.Thread(target=ends, args=(work,)) for work in (shred, publish)]
        [thread.start() for thread in threads]
        deadline = time.monotonic() + 60
        while len(existing) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.random() / 5)
        broker.kill()
        stop.set()
        [thread.join() for thread in threads]
        broker.start()
        with broker.connect() as connection:
            channel = connection.channel()
            count = channel.queue_declare("common", durable=True, passive=True).method.message_count
            found = {channel.basic_get("common", auto_ack=True)[2].decode() for _ in range(count)}
            assert kept <= found, f"round {number}: lost {len(kept - found)}"
            kept.clear()
            for name in sorted(existing):
                # Two, or one after a purge.
                declared = channel.queue_declare(name, durable=True, arguments=SHRED).method
                sizes = [len(channel.basic_get(name, auto_ack=True)[2]) for _ in range(declared.message_count)]
                assert sizes in ([10, 9000], [5]), name
                channel.queue_delete(name)
            [channel.queue_delete(name) for name in doubtful]
            assert own_keys(broker) == []


def windows(folder, count):
    """Pieces of what the write-ahead log holds, behind the rows that are still needed."""
    log = max((folder / "data" / "db").glob("*.log"), key=lambda path: path.stat().st_size).read_bytes().rstrip(b"\0")
    places = [random.randrange(len(log) // 4, len(log) // 4 * 3) for _ in range(count)]
    return [log[at : at + 24] for at in places]


def on_disk(folder, pieces):
    found = set()
    for path in (folder / "data" / "db").iterdir():
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # RocksDB has removed it
            continue
        found |= {piece for piece in pieces if piece in content}
    return found


def test_what_was_acknowledged_leaves_the_disk_in_time(native):
    broker = native(settings="at_rest.erase_within = 4s\n")
    with broker.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True)
        for n in range(60):
            channel.basic_publish("", "q", random.randbytes((100, 3000, 100_000)[n % 3]), PERSISTENT, mandatory=True)
        pieces = windows(broker.folder, 200)
        # It stays as long as nothing is deleted.
        assert on_disk(broker.folder, pieces) == set(pieces)
    broker.kill()
    broker.start()
    # Now in tables and blob files; few pieces had the log's own bytes in them.
    assert len(on_disk(broker.folder, pieces)) > 150
    with broker.connect() as connection:
        channel = connection.channel()
        assert channel.queue_declare("q", passive=True).method.message_count == 60
        for _ in range(59):
            channel.basic_get("q", auto_ack=True)
        deadline = time.monotonic() + 60
        while len(left := on_disk(broker.folder, pieces)) > 0:
            assert time.monotonic() < deadline, f"{len(left)} of {len(pieces)} are left"
            time.sleep(0.2)
        assert len(channel.basic_get("q", auto_ack=True)[2]) == 100_000
