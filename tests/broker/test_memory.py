"""What the memory of a running broker holds of keys, searched from outside as root may: while one is in use it stands in
locked pages and nowhere else, and afterwards nowhere at all. This is the program as it is run, optimized if it was built so;
the unit tests of src/seal search for the keys that only the broker knows."""

import base64
import os
import re
import secrets
import time

import pytest
from disk import READ, STALL, Disk, build
from test_keys import keyring, publish, secret, source, waiting

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="MAY NOT READ ANOTHER PROCESS'S MEMORY: run as root")
STEP_BYTES = 1 << 22


def regions(pid):
    """Each readable part of a process's memory: where it is, and its flags (proc(5), VmFlags)."""
    found = []
    for line in open(f"/proc/{pid}/smaps"):
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) .*?(\[v\w+\])?$", line):
            found.append([int(head[1], 16), int(head[2], 16), head[3].startswith("r") and not head[4], set()])
        elif line.startswith("VmFlags:"):
            found[-1][3] = set(line.split()[1:])
    return [(start, end, flags) for start, end, is_readable, flags in found if is_readable]


def places(broker, text):
    """The flags of each part of the broker's memory in which a text stands."""
    pid, found = broker.process.pid, []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end, flags in regions(pid):
            for at in range(start, end, STEP_BYTES):
                try:
                    memory.seek(at)
                    # Some more, for what stands across the border of two steps.
                    part = memory.read(min(STEP_BYTES + len(text), end - at))
                except OSError:
                    continue  # it has gone since it was listed
                if text in part:
                    found.append(flags)
    return found



def shown(broker, texts):
    """Of texts by their names, those that stand anywhere."""
    return [name for name, text in texts.items() if places(broker, text)]


def forms(key):
    return {"its bytes": key, "hex": key.hex().encode(), "base64": base64.b64encode(key)[:40]}


def test_the_key_is_in_locked_pages_while_it_is_needed_and_then_nowhere(native, tmp_path):
    broker = native(start=False)
    disk = Disk(broker, build(tmp_path))
    broker.start()
    publish(broker, "one")
    key = bytes.fromhex((broker.folder / "secrets" / "at_rest_kek").read_text())
    assert not shown(broker, forms(key))
    broker.stop()
    # The key has been read, and what it opens has not.
    disk.arm(STALL, READ, "/keyring")
    broker.spawn()
    until = time.monotonic() + 60
    while not disk.failed():
        assert broker.process.poll() is None and time.monotonic() < until, broker.logged()
        time.sleep(0.01)
    texts = forms(key)
    found = places(broker, texts.pop("its bytes"))
    assert found, "the control: a key in use is not found, so this search shows nothing"
    # Not dumped, empty in a forked child, and locked where the machine lets it.
    wanted = {"dd", "wf"} if "cannot be locked into memory" in broker.logged() else {"dd", "wf", "lo"}
    assert all(wanted <= flags for flags in found), found
    assert not shown(broker, texts), "the file that it was read from is left"
    disk.disarm()
    broker.wait_until_up()
    assert waiting(broker) == ["one"]
    assert not shown(broker, forms(key))


def test_keys_and_passphrases_that_came_while_it_serves_are_left_nowhere(native):
    broker = native()
    key, words = secrets.token_bytes(32), secrets.token_hex(20)
    path = secret(broker, "another", key.hex())
    keyring(broker, "add-slot", "--key-file", str(path))
    keyring(broker, "add-slot", "--passphrase-fd", "0", input=words)
    assert len(keyring(broker, "status")["slots"]) == 3
    assert not shown(broker, forms(key) | {"the passphrase": words.encode()})
    broker.stop()
    path = secret(broker, "words", words)
    source(broker, f"at_rest.kek.passphrase_file = {path}")
    broker.start()
    assert not shown(broker, forms(key) | {"the passphrase": words.encode()})


def test_the_file_of_the_private_key_of_tls_is_left_nowhere(native):
    broker = native()
    publish(broker, "one")
    (pem,) = (broker.certs / "private").glob("server*")
    lines = pem.read_text().split("\n")
    der = base64.b64decode("".join(line for line in lines if not line.startswith("-")))
    assert not shown(broker, {"its text": lines[1].encode(), "its bytes": der[:48]})
    # The control: what was sent to it a moment ago is found, while it waits in its queue.
    assert places(broker, b"one of a kind") == []
    publish(broker, "one of a kind")
    assert places(broker, b"one of a kind")
