"""Refusals and faults that no other test here brings about, each by its code: what is said, with which exit status, what
to do about it, and that nothing confirmed is gone afterwards. SECURITY.md has the table; tests/readme.rs holds it to
this and the other tests."""

import os
import shutil
import subprocess

import pytest
from disk import FAIL, OPEN, READ, STALL, SYNC, THREAD, WRITE, Disk, build
from files import fingerprint, largest, repair_checksums
from nonces import commits, puts
from test_backup import EXIT_CANNOT_CREATE
from test_damage import with_flags
from test_restart import EXIT_STORE, bodies, fill, refusal

BODIES = [b"one", b"two", b"three"]
# Too large to stand in their entries.
LARGE, LARGER = b"large " * 1000, b"larger" * 1500
EXIT_UNAVAILABLE, EXIT_SOFTWARE = 69, 70
QUEUE_ROW = 0x12
ENTRY_KEY_BYTES, BODY_KEY_BYTES, ROW_KEY_BYTES = 16, 12, 9
# RocksDB's is the only one of the open calls that comes after the looks at its files.
OPENED_LAST = "/db/LOCK"


@pytest.fixture
def disk(native, tmp_path):
    """Makes a broker that has been filled, and the disk below it."""

    made = []

    def make():
        broker = native(start=False)
        made.append(Disk(broker, build(tmp_path)))
        broker.start()
        fill(broker, BODIES)
        return broker, made[-1]

    yield make
    for disk in made:
        disk.disarm()


def control(broker, *words, **options):
    """sealmqctl as a process."""
    command = [broker.binaries / "sealmqctl", "--socket", broker.folder / "ctl.sock", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def outcome(process):
    """Its exit status, and what it said."""
    printed, said = process.communicate(timeout=120)
    return process.returncode, printed + said


# ---- a disk or a system that does not do what it is asked


def test_a_database_that_does_not_open_in_time_is_given_up(disk):
    broker, below = disk()
    broker.stop()
    below.arm(STALL, WRITE, OPENED_LAST)
    said = refusal(broker, "E_OPEN_TIMEOUT", EXIT_STORE, seconds=120)
    assert "did not open within 60 s; the check before it said:" in said and "check the disk" in said
    assert below.failed() == 1
    below.disarm()
    broker.start()
    assert bodies(broker) == BODIES


def test_a_disk_that_does_not_sync_is_told_by_the_checks_and_serves_on_when_it_does(disk):
    broker, below = disk()
    below.arm(STALL, SYNC, "/db/")
    status, said = outcome(control(broker, "ping"))
    assert status == EXIT_UNAVAILABLE and "E_COMMIT_STUCK: " in said and "(check the disk" in said
    command, environment = [*broker.command(), "healthcheck"], os.environ | broker.environment
    check = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (check.returncode, "E_COMMIT_STUCK: " in check.stderr) == (EXIT_UNAVAILABLE, True), check.stderr
    below.disarm()
    fill(broker, [b"four"])
    assert outcome(control(broker, "ping"))[0] == 0
    broker.kill()
    broker.start()
    assert bodies(broker) == [*BODIES, b"four"]


def test_one_backup_at_a_time_is_made(disk, tmp_path):
    broker, below = disk()
    below.arm(STALL, READ, "/keyring")
    first = control(broker, "backup", str(tmp_path / "first"))
    while not below.failed():
        assert first.poll() is None, outcome(first)
    status, said = outcome(control(broker, "backup", str(tmp_path / "second")))
    assert status == EXIT_CANNOT_CREATE and "E_BACKUP_BUSY: " in said and "(try again when it is over)" in said
    assert not (tmp_path / "second").exists()
    below.disarm()
    assert outcome(first)[0] == 0
    assert outcome(control(broker, "backup", str(tmp_path / "second")))[0] == 0


@pytest.mark.parametrize("name", ["/SEALMQ_STORE", "/keyring", "/anchor", "/db/CURRENT"])
def test_a_file_that_cannot_be_read_refuses_the_start(disk, name):
    broker, below = disk()
    broker.stop()
    before = fingerprint(broker.data)
    below.arm(FAIL, READ | WRITE, name)
    said = refusal(broker, "E_STORE_IO", EXIT_STORE)
    assert name in said and "Input/output error" in said and "(check that the folder exists" in said
    below.disarm()
    assert fingerprint(broker.data) == before, "a refused start has changed something"
    broker.start()
    assert bodies(broker) == BODIES


def generation_and_keys(broker):
    ring = broker.ctl("keyring", "status")
    return ring["generation"], [key["id"] for key in ring["data_keys"]]


def test_a_keyring_that_cannot_be_written_changes_nothing_and_the_broker_serves_on(disk):
    broker, below = disk()
    before = generation_and_keys(broker)
    below.arm(FAIL, OPEN, "/keyring")
    status, said = outcome(control(broker, "keyring", "rotate-dek"))
    assert status == EXIT_SOFTWARE and "E_STORE_IO: " in said and "(check that the folder exists" in said
    fill(broker, [b"four"])
    assert generation_and_keys(broker) == before
    below.disarm()
    assert outcome(control(broker, "keyring", "rotate-dek"))[0] == 0
    broker.kill()
    broker.start()
    assert bodies(broker) == [*BODIES, b"four"]


def test_a_system_that_gives_no_thread_refuses_the_start(disk):
    broker, below = disk()
    broker.stop()
    before = fingerprint(broker.data)
    below.arm(FAIL, THREAD)
    said = refusal(broker, "E_SYSTEM", EXIT_STORE)
    assert "(check the limits of the process and its system call filter)" in said
    assert fingerprint(broker.data) == before, "a refused start has changed something"
    below.disarm()
    broker.start()
    assert bodies(broker) == BODIES


# ---- records that were changed by somebody who knows how the database's checksums are made


class Log:
    """The log of a broker that was killed."""

    def __init__(self, broker):
        self.path = largest(broker.data / "db", ".log")
        self.sound = self.path.read_bytes()
        self.puts = [put for batch in commits(self.sound) for put in puts(batch)]

    def last(self, key_bytes, kind=None):
        """The key and the value of the last record of a kind."""
        return [(key, value) for key, value in self.puts if len(key) == key_bytes and kind in (None, key[0])][-1]

    def bodies(self):
        return [key for key, _ in self.puts if len(key) == BODY_KEY_BYTES]

    def change(self, *changes):
        """Each is a text and what takes its place, at once."""
        content = bytearray(self.sound)
        for text, other in changes:
            assert self.sound.count(text) == 1 and len(other) == len(text)
            at = self.sound.index(text)
            content[at : at + len(text)] = other
        self.path.write_bytes(content)
        assert repair_checksums(self.path)


def killed(native, mode="sealed", messages=BODIES):
    broker = native(at_rest=mode)
    fill(broker, messages)
    broker.kill()
    return broker, Log(broker)


def flipped(value, at):
    return value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :]


@pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])
def test_a_changed_row_of_the_topology_refuses_the_start(native, mode):
    broker, log = killed(native, mode)
    shutil.copytree(broker.data, broker.folder / "saved")
    _, value = log.last(ROW_KEY_BYTES, QUEUE_ROW)
    log.change((value, flipped(value, len(value) - 20)))
    for flags in [[], ["--quarantine"]]:
        with_flags(broker, *flags)
        said = refusal(broker, "E_METADATA_DAMAGED", EXIT_STORE)
        assert "(restore the data directory from a backup" in said
    shutil.rmtree(broker.data)
    (broker.folder / "saved").rename(broker.data)
    with_flags(broker)
    broker.start()
    assert bodies(broker) == BODIES


def test_a_message_under_a_data_key_that_the_keyring_does_not_hold_refuses_the_start(native):
    broker, log = killed(native)
    _, value = log.last(ENTRY_KEY_BYTES)
    log.change((value, value[:4] + (4711).to_bytes(4, "big") + value[8:]))
    said = refusal(broker, "E_DEK_MISSING", EXIT_STORE)
    assert "1 messages" in said and "key 4711" in said and "(restore the newest keyring" in said
    with_flags(broker, "--quarantine")
    broker.start()
    assert bodies(broker) == BODIES[:-1]
    assert "E_DEK_MISSING" in broker.logged()


def of_another_version(log):
    _, value = log.last(BODY_KEY_BYTES)
    return [(value[:28], b"\x09" + value[1:28])]


def moved_away(log):
    key = log.bodies()[-1]
    return [(b"\x0c" + key, b"\x0c\x4f" + key[1:])]


def exchanged(log):
    one, other = (b"\x0c" + key for key in log.bodies())
    return [(one, other), (other, one)]


# In a store of which mode, with which messages, what was done; the code, and which are still delivered. In a sealed store
# a body in another's place is a forged record, unless it was genuine there before a crash: src/store/tests has that.
QUARANTINED = {
    "a body of a version that nobody knows": ("sealed", [LARGE, b"two", LARGER], of_another_version, "E_RECORD_DAMAGED", [0, 1]),
    "a body at another place": ("sealed", [b"one", LARGE, LARGER], moved_away, "E_BODY_MISSING", [0, 1]),
    "a plain body at another place": ("plain-insecure", [b"one", LARGE, LARGER], moved_away, "E_BODY_MISSING", [0, 1]),
    "two plain bodies that changed places": ("plain-insecure", [LARGE, b"two", LARGER], exchanged, "E_BODY_SWAPPED", [1]),
}


@pytest.mark.parametrize("what", QUARANTINED)
def test_a_record_that_is_not_what_it_should_be_is_kept_back_and_the_others_are_delivered(native, what):
    mode, messages, changes, code, delivered = QUARANTINED[what]
    broker, log = killed(native, mode, messages)
    log.change(*changes(log))
    for _ in range(2):  # it is kept, not cleared away
        broker.start()
        assert bodies(broker) == [messages[at] for at in delivered]
        assert code in broker.logged()
        broker.kill()
