"""`sealmq-forensics verify` and `inspect` beside a whole broker: what they say about its data directory, and that they
change nothing in it."""

import json
import shutil
import subprocess

import pytest
from files import fingerprint, flip, largest
from test_damage import anchored
from test_restart import bodies, fill

BODIES = [b"one", b"two", b"three"]
SOUND, FAULTS, CANNOT = 0, 1, 2


def forensics(broker, *arguments):
    """Gives the exit status, what was printed, and what was said on the side."""
    command = [broker.binaries / "sealmq-forensics", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return run.returncode, run.stdout, run.stderr


def key(broker):
    return ["--kek", broker.folder / "secrets" / "at_rest_kek"] if broker.at_rest == "sealed" else []


def footprint(folder):
    """Names, contents, times and modes of everything below a folder."""
    facts = {path: path.stat() for path in [folder, *folder.rglob("*")]}
    return fingerprint(folder), {path: (at.st_mtime_ns, at.st_ctime_ns, at.st_mode, at.st_ino) for path, at in facts.items()}


@pytest.mark.parametrize("mode", ["sealed", "plain-insecure"])
def test_verify_reads_all_of_a_killed_brokers_store_and_changes_nothing(native, mode):
    broker = native(at_rest=mode)
    broker.at_rest = mode
    fill(broker, BODIES)
    broker.kill()
    before = footprint(broker.data)
    status, printed, said = forensics(broker, "verify", broker.data, *key(broker), "--json")
    assert status == SOUND, printed + said
    report = json.loads(printed)
    (queue,) = [queue for queue in report["queues"] if queue["messages"]]
    assert (queue["messages"], queue["name"] is not None, report["complete"]) == (len(BODIES), True, True)
    assert any("not stopped in order" in note for note in report["notes"])
    status, printed, said = forensics(broker, "inspect", broker.data, "--queue", str(queue["id"]), "--seq", "2", *key(broker))
    assert status == SOUND and "\ntwo\n" in printed and f'"{queue["name"]}"' in printed
    assert "WARNING" in said
    assert footprint(broker.data) == before, "something was changed"
    broker.start()
    assert bodies(broker) == BODIES


def test_verify_leaves_a_running_brokers_store_alone_and_takes_its_configuration(native):
    broker = native()
    fill(broker, BODIES)
    config = ["--config", broker.folder / "sealmq.conf"]
    status, _, said = forensics(broker, "verify", broker.data, *config)
    assert status == CANNOT and "E_STORE_LOCKED" in said and "sealmqctl backup" in said
    assert bodies(broker) == BODIES, "the broker serves on"
    broker.stop()
    assert forensics(broker, "verify", broker.data, *config)[0] == SOUND
    status, _, said = forensics(broker, "verify", broker.data)
    assert status == CANNOT and "E_KEK_UNAVAILABLE" in said


def test_verify_names_what_is_damaged_while_the_broker_refuses_to_start(native):
    broker = native()
    broker.at_rest = "sealed"
    fill(broker, BODIES)
    broker.kill()
    log = largest(broker.data / "db", ".log")
    flip(log, 40)
    (broker.data / "keyring.mirror").unlink()
    status, printed, _ = forensics(broker, "verify", broker.data, *key(broker))
    assert status == FAULTS
    for wanted in ("E_WAL_CORRUPT", f"{log} at byte ", "E_KEYRING_COPY", "keyring.mirror", "FAULTS: 2"):
        assert wanted in printed, printed
    flip(log, 40)
    shutil.copy(broker.data / "keyring", broker.data / "keyring.mirror")
    assert forensics(broker, "verify", broker.data, *key(broker))[0] == SOUND


def test_a_backup_is_verified_while_its_broker_serves(native):
    broker = anchored(native)
    fill(broker, BODIES)
    backup = broker.folder / "backup"
    command = [broker.binaries / "sealmqctl", "--socket", broker.folder / "ctl.sock", "backup", backup]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    broker.at_rest = "sealed"
    before = footprint(backup)
    assert forensics(broker, "verify", backup, *key(broker))[0] == SOUND
    # The broker has not come further than its backup, nor has the anchor that it uses.
    assert forensics(broker, "verify", backup, "--config", broker.folder / "sealmq.conf")[0] == SOUND
    assert footprint(backup) == before
    (backup / "anchor").unlink()
    status, printed, _ = forensics(broker, "verify", backup, *key(broker))
    assert status == FAULTS and "E_ANCHOR_MISSING" in printed
    status, printed, _ = forensics(broker, "verify", backup, *key(broker), "--no-anchor", "--json")
    report = json.loads(printed)
    assert status == SOUND and report["counts"]["messages"] == len(BODIES)
    assert any("newest state" in note for note in report["notes"])
    assert bodies(broker) == BODIES
