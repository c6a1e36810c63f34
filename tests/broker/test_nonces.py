"""No two texts under one key and nonce: AES-GCM would give away both, and how to forge more."""

import shutil
import time

import pytest
from disk import FORK, SYNC, Disk, build
from files import BLOCK_BYTES
from nonces import assert_no_nonce_has_two_texts, of_store, sealed
from test_faults import KIB, Publisher, load
from test_restart import fill


def wait_for(event):
    until = time.monotonic() + 30
    while not event():
        assert time.monotonic() < until
        time.sleep(0.01)


def new_nonces(broker, before):
    return [record for record in of_store(broker.data) if record.value not in before]


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_two_brokers_from_one_directory_never_share_a_nonce(native, how):
    """A copied volume, or a backup that is started beside its original: same root key, same data keys, same counts."""
    brokers = [native(start=False), native(start=False)]
    first, second = brokers
    first.start()
    fill(first, [b"x" * 100] * 20)
    first.stop() if how == "closed" else first.kill()
    shutil.copytree(first.data, second.data)
    shutil.copy(first.folder / "secrets" / "at_rest_kek", first.folder / "kek")
    (second.folder / "secrets" / "at_rest_kek").unlink()
    shutil.copy(first.folder / "kek", second.folder / "secrets" / "at_rest_kek")
    before = {record.value for record in of_store(first.data)}
    for broker in brokers:
        broker.start()
    workers = [worker for broker in brokers for worker in load(broker, [100, 100 * KIB])]
    for broker in brokers:
        broker.kill()
    for worker in workers:
        worker.join(30)
    after = [new_nonces(broker, before) for broker in brokers]
    for records in after:
        # The key of topology and commit rows is the same for ever; the other is new at each start.
        assert {0} < {record.key_id for record in records} and len(records) > 100
    assert assert_no_nonce_has_two_texts([*after[0], *after[1]]) == len(after[0]) + len(after[1])
    # The prefixes alone would do.
    prefixes = [{record.prefix for record in records} for records in after]
    assert not prefixes[0] & prefixes[1]


def test_a_process_image_that_runs_twice_never_shares_a_nonce(native, tmp_path_factory, monkeypatch):
    """As a virtual machine's memory that is restored twice. The process is forked in the sync of a commit; both seal the
    next ones, from the same state, and what the other one writes goes to a file.

    Once it was forked while the publishers were at work, and mostly nothing was left for the other one to seal, who has
    nobody to give it more."""
    broker = native(start=False)
    disk = Disk(broker, build(tmp_path_factory.mktemp("faulty-disk")))
    broker.start()
    spill = broker.folder / "spill"
    # More than one commit takes.
    monkeypatch.setattr(Publisher, "WINDOW", 500)
    workers = load(broker, [100, 100, 100])
    disk.arm(FORK, SYNC, ".log", times=1, spill=spill)
    wait_for(disk.failed)
    # No more is confirmed meanwhile, so each stops at its window; the answer says that the broker has read all of it.
    for worker in workers:
        wait_for(lambda worker=worker: worker.is_waiting())
        worker.ask()
    disk.go_on()
    wait_for(lambda: spill.exists() and spill.stat().st_size > 20 * KIB)
    broker.kill()
    for worker in workers:
        worker.join(30)
    content = spill.read_bytes()
    at = int.from_bytes(content[:8], "little") % BLOCK_BYTES
    found = sealed(bytes(at) + content[8:], at)
    records = of_store(broker.data)
    assert len(found) > 3 and len(records) > 100
    assert_no_nonce_has_two_texts([*records, *found])
    assert not {record.prefix for record in records} & {record.prefix for record in found}
