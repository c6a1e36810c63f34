"""Backups of a broker that goes on serving, and brokers that start from them."""

import json
import shutil
import subprocess
import threading

import pika
import pytest
from native import Native
from test_restart import PERSISTENT, bodies, fill

EXIT_CANNOT_CREATE = 73


def backup(broker, folder):
    """Asks for a backup; gives the exit code and what was printed."""
    command = [broker.binaries / "sealmqctl", "--socket", broker.folder / "ctl.sock", "--formatter", "json", "backup", folder]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return run.returncode, run.stdout or run.stderr


def restored(broker, folder, tmp_path):
    """A broker of its own whose data directory is a copy of the backup, under the other's keys and certificates."""
    other = Native(tmp_path, start=False)
    shutil.rmtree(other.folder / "secrets")
    shutil.copytree(broker.folder / "secrets", other.folder / "secrets")
    shutil.copytree(folder, other.data)
    other.start()
    return other


class Publisher(threading.Thread):
    """Publishes numbered messages, each confirmed before the next, until it is stopped."""

    def __init__(self, broker):
        super().__init__(daemon=True)
        self.broker, self.confirmed, self.stopping = broker, 0, threading.Event()
        self.progress = threading.Condition()
        self.start()

    def run(self):
        with self.broker.connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while not self.stopping.is_set():
                number = self.confirmed + 1
                channel.basic_publish("", "q", b"%d" % number + b" " * (number % 7 * 1000), PERSISTENT)
                with self.progress:
                    self.confirmed = number
                    self.progress.notify_all()

    def wait_for(self, count):
        with self.progress:
            assert self.progress.wait_for(lambda: self.confirmed >= count, 60)

    def stop(self):
        self.stopping.set()
        self.join(60)
        return self.confirmed


@pytest.fixture
def brokers():
    """Brokers made without the fixture `native`; they are stopped at the end."""
    made = []
    yield made
    for broker in made:
        if broker.process.poll() is None:
            broker.stop()


def test_a_backup_holds_what_was_confirmed_before_it_and_the_broker_goes_on(native, brokers, tmp_path):
    broker, folder = native(), tmp_path / "backup"
    with broker.connect() as connection:
        connection.channel().queue_declare("q", durable=True)
    publisher = Publisher(broker)
    publisher.wait_for(50)
    before = publisher.confirmed
    code, answer = backup(broker, folder)
    after = publisher.confirmed + 1
    publisher.wait_for(after + 20)
    last = publisher.stop()
    assert code == 0, answer
    made = json.loads(answer)
    assert made["dir"] == str(folder) and made["commit_seq"] >= before and made["keyring_generation"] == 2
    brokers.append(restored(broker, folder, tmp_path / "other"))
    numbers = [int(body) for body in bodies(brokers[0])]
    assert numbers == list(range(1, len(numbers) + 1))
    assert before <= len(numbers) <= after
    assert [int(body) for body in bodies(broker)] == list(range(1, last + 1))


def test_acknowledged_messages_and_deleted_queues_do_not_come_back(native, brokers, tmp_path):
    broker, folder = native(), tmp_path / "backup"
    fill(broker)
    fill(broker, queue="gone")
    with broker.connect() as connection:
        channel = connection.channel()
        method, _, _ = channel.basic_get("q")
        channel.basic_ack(method.delivery_tag)
        channel.queue_delete("gone")
        # What was acknowledged is on the disk when a later message is confirmed.
        channel.confirm_delivery()
        channel.basic_publish("", "q", b"four", PERSISTENT)
    assert backup(broker, folder)[0] == 0
    broker.kill()
    brokers.append(restored(broker, folder, tmp_path / "other"))
    assert bodies(brokers[0]) == [b"two", b"three", b"four"]
    with brokers[0].connect() as connection, pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
        connection.channel().queue_declare("gone", passive=True)
    assert refused.value.reply_code == 404


def test_a_folder_that_cannot_be_used_is_refused_and_left_as_it_is(native, tmp_path):
    broker = native()
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    for folder, reason in [
        (full, "not empty"),
        (full / "precious", "no folder"),
        (broker.data / "in", "in the data directory"),
        (tmp_path / "none" / "in", "No such file"),
    ]:
        code, answer = backup(broker, folder)
        assert code == EXIT_CANNOT_CREATE and "E_BACKUP_TARGET" in answer and reason in answer
    assert [path.name for path in full.iterdir()] == ["precious"]
    assert not (broker.data / "in").exists()
    assert backup(broker, tmp_path / "good")[0] == 0
