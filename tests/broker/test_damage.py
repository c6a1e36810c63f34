"""What a start does about a store that was damaged, shortened, put back or changed: the code, the exit status, where
the damage is, what to do, and that doing it works. The store's own tests go through many more kinds of damage."""

import re
import shutil

import pytest
from files import fingerprint, flip, largest, repair_checksums
from test_restart import EXIT_STORE, bodies, end, fill, refusal

BODIES = [b"one", b"two", b"three"]


def with_flags(broker, *flags):
    """The broker is started with these from now on."""
    command = type(broker).command(broker)
    broker.command = lambda: [*command, *flags]


def anchored(native, **arguments):
    """A broker whose anchor lies outside its data directory."""
    broker = native(start=False, **arguments)
    (broker.folder / "elsewhere").mkdir()
    broker.anchor = broker.folder / "elsewhere" / "anchor"
    with (broker.folder / "sealmq.conf").open("a") as settings:
        settings.write(f"at_rest.anchor.path = {broker.anchor}\n")
    broker.start()
    return broker


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def refusal_that_changes_nothing(broker, code):
    before = fingerprint(broker.data)
    said = refusal(broker, code, EXIT_STORE)
    assert fingerprint(broker.data) == before, "a refused start has changed something"
    return said


def assert_whole(broker):
    broker.start()
    assert bodies(broker) == BODIES


@pytest.mark.parametrize(
    ("pattern", "at", "code"),
    [("*.log", 40, "E_WAL_CORRUPT"), ("MANIFEST-*", 20, "E_MANIFEST_CORRUPT"), ("CURRENT", 2, "E_CURRENT_CORRUPT")],
)
def test_rot_in_the_databases_logs_is_named_with_file_and_place(native, pattern, at, code):
    broker = native()
    fill(broker, BODIES)
    broker.kill()
    path = only(broker.data / "db", pattern)
    flip(path, at)
    said = refusal_that_changes_nothing(broker, code)
    assert str(path) in said and re.search(r"at byte \d+", said) and "backup" in said
    flip(path, at)
    assert_whole(broker)


@pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])
def test_a_log_that_lost_a_confirmed_message_is_refused(native, mode):
    """RocksDB takes it for an interrupted write, and would serve the rest without a word."""
    broker = native(at_rest=mode)
    fill(broker, BODIES)
    broker.kill()
    log = largest(broker.data / "db", ".log")
    content = log.read_bytes()
    log.write_bytes(content[:-20])
    assert "--accept-rollback" in refusal_that_changes_nothing(broker, "E_STORE_ROLLBACK")
    log.write_bytes(content)
    assert_whole(broker)


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_a_data_directory_that_was_put_back_is_refused_until_it_is_accepted(native, how):
    broker = anchored(native)
    fill(broker, BODIES)
    end(broker, how)
    shutil.copytree(broker.data, broker.folder / "saved")
    broker.start()
    fill(broker, [b"four"])
    end(broker, how)
    shutil.rmtree(broker.data)
    shutil.copytree(broker.folder / "saved", broker.data)
    said = refusal(broker, "E_STORE_ROLLBACK", EXIT_STORE)
    found, promised = re.search(r"ends with commit (\d+), and its anchor \S+ tells of commit (\d+)", said).groups()
    assert int(found) < int(promised)
    with_flags(broker, "--accept-rollback", promised)
    refusal(broker, "E_STORE_ROLLBACK", EXIT_STORE)
    with_flags(broker, "--accept-rollback", found)
    assert_whole(broker)
    assert "E_STORE_ROLLBACK" in broker.logged() and "accepted by --accept-rollback" in broker.logged()
    broker.stop()
    with_flags(broker)
    assert_whole(broker)


def test_a_missing_anchor_is_refused_and_never_made_anew(native):
    broker = anchored(native)
    fill(broker, BODIES)
    broker.stop()
    content = broker.anchor.read_bytes()
    broker.anchor.unlink()
    said = refusal(broker, "E_ANCHOR_MISSING", EXIT_STORE)
    assert str(broker.anchor) in said and "at_rest.anchor.path" in said
    assert not broker.anchor.exists()
    broker.anchor.write_bytes(b"rot" + content[3:4000])
    assert "copy of the anchor" in refusal(broker, "E_ANCHOR_CORRUPT", EXIT_STORE)
    broker.anchor.write_bytes(content)
    assert_whole(broker)


def test_no_new_store_is_made_beside_the_anchor_of_one_that_was_taken_away(native):
    broker = anchored(native)
    fill(broker, BODIES)
    broker.stop()
    broker.data.rename(broker.folder / "taken-away")
    assert "move the old anchor away" in refusal(broker, "E_ANCHOR_FOREIGN", EXIT_STORE)
    shutil.rmtree(broker.data, ignore_errors=True)
    (broker.folder / "taken-away").rename(broker.data)
    assert_whole(broker)


@pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])
def test_a_message_that_is_missing_refuses_the_start_and_quarantine_serves_the_others(native, mode):
    broker = native(at_rest=mode)
    fill(broker, BODIES)
    broker.kill()
    log = largest(broker.data / "db", ".log")
    content = log.read_bytes()
    # The key of the second entry of the only queue: it is made the key of another place, checksums and all.
    (key,) = re.findall(rb"\x10\x00{7}[^\x00]\x00{7}\x02", content)
    log.write_bytes(content.replace(key, key[:-1] + b"\xc8"))
    assert repair_checksums(log) == 1
    said = refusal(broker, "E_QUEUE_INTEGRITY", EXIT_STORE)
    assert re.search(r"queue \d+: 1 missing \(entry 2\), 1 extra", said) and "--quarantine" in said
    with_flags(broker, "--quarantine")
    broker.start()
    assert bodies(broker) == [b"one", b"three"]
    assert "faulty_queues=1" in broker.logged() and "E_ENTRY_EXTRA" in broker.logged()
    broker.kill()
    with_flags(broker)
    broker.start()
    assert bodies(broker) == [b"one", b"three"], "accepted once, and what does not belong there stays in quarantine"
