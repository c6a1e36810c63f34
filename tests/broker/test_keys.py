"""Where a broker gets its key from, how its keyring changes while it serves, and what it refuses."""

import hashlib
import hmac
import json
import os
import stat
import struct
import subprocess

import pika
import pytest
from test_restart import EXIT_CONFIGURATION, EXIT_STORE, refusal

COPIES = ("keyring", "keyring.mirror")
OTHER_KEY = "fedcba9876543210" * 4
PASSPHRASE = "correct horse battery staple"


def publish(broker, *texts):
    with broker.connect() as connection:
        channel = connection.channel()
        channel.queue_declare("q", durable=True)
        channel.confirm_delivery()
        for text in texts:
            channel.basic_publish("", "q", text.encode(), pika.BasicProperties(delivery_mode=2), mandatory=True)


def take(broker, count):
    """Takes messages away and gives their texts."""
    with broker.connect() as connection:
        channel = connection.channel()
        return [channel.basic_get("q", auto_ack=True)[2].decode() for _ in range(count)]


def waiting(broker):
    with broker.connect() as connection:
        channel = connection.channel()
        got = [channel.basic_get("q") for _ in range(channel.queue_declare("q", passive=True).method.message_count)]
        return [body.decode() for _, _, body in got]


def secret(broker, name, text, mode=0o400):
    path = broker.folder / "secrets" / name
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def kek(broker):
    return (broker.folder / "secrets" / "at_rest_kek").read_text().strip()


def source(broker, *lines):
    """The configuration with another source of the key."""
    broker.configure("sealed")
    path = broker.folder / "sealmq.conf"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("at_rest.kek.")]
    path.write_text("\n".join([*kept, *lines, ""]))


def keyring(broker, *words, check=True, **options):
    command = [broker.binaries / "sealmqctl", "--socket", broker.folder / "ctl.sock", "--formatter", "json", "keyring", *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert not check or ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout) if check else (ran.returncode, ran.stderr)


# ---- sources


def start_with(broker, number, content, flag=None):
    """Starts the broker with a pipe at a descriptor."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    command = broker.command() + ([flag, str(number)] if flag else [])
    with (broker.folder / "broker.log").open("a") as log:

        def arrange():
            os.dup2(reading, number)

        broker.process = subprocess.Popen(command, env=os.environ | broker.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=arrange, pass_fds=(number,) if number == reading else (), close_fds=False)
    os.close(reading)
    broker.wait_until_up()


def test_one_store_opens_with_its_key_from_every_source(native):
    broker = native()
    publish(broker, "one", "two")
    key = kek(broker)
    credentials = broker.folder / "credentials"
    credentials.mkdir()
    (credentials / "sealmq.kek").write_text(key)
    (credentials / "sealmq.kek").chmod(0o440)
    program = broker.folder / "give-key"
    program.write_text(f'#!/bin/sh\necho "for $1" >&2\n[ -z "$SEALMQ_AT_REST_KEK" ] && echo {key}\n')
    program.chmod(0o700)
    for lines, environment in [
        ([f"at_rest.kek.command.1 = {program}", "at_rest.kek.command.2 = sealmq"], {"SEALMQ_DEFAULT_VHOST": "/"}),
        (["at_rest.kek.credential = sealmq.kek"], {"CREDENTIALS_DIRECTORY": str(credentials)}),
        ([], {"CREDENTIALS_DIRECTORY": str(credentials)}),
        (["at_rest.kek.env = THE_KEY"], {"THE_KEY": key}),
    ]:
        broker.stop()
        source(broker, *lines)
        before, broker.environment = broker.environment, broker.environment | environment
        broker.start()
        assert waiting(broker) == ["one", "two"], lines
        broker.environment = before
    for lines, flag in [(["at_rest.kek.fd = 7"], None), (["at_rest.kek.file = /ignored"], "--kek-fd")]:
        broker.stop()
        source(broker, *lines)
        start_with(broker, 7, key.encode(), flag)
        assert waiting(broker) == ["one", "two"]
    assert key not in broker.logged()


def test_a_passphrase_makes_a_store_and_opens_it_from_a_file_and_a_descriptor(native):
    broker = native(start=False)
    path = secret(broker, "passphrase", PASSPHRASE + "\n")
    source(broker, f"at_rest.kek.passphrase_file = {path}")
    broker.start()
    publish(broker, "one")
    slots = keyring(broker, "status")["slots"]
    assert [(slot["type"], slot["cost"], slot["in_use"]) for slot in slots] == [("passphrase", "m=262144,t=3,p=1", True)]
    broker.stop()
    source(broker, "at_rest.kek.passphrase_fd = 7")
    start_with(broker, 7, PASSPHRASE.encode())
    assert waiting(broker) == ["one"]
    broker.stop()
    secret(broker, "passphrase", "another passphrase")
    source(broker, f"at_rest.kek.passphrase_file = {path}")
    assert "a passphrase on 1 slots" in refusal(broker, "E_KEK_WRONG", EXIT_STORE)
    assert PASSPHRASE not in broker.logged()


def nothing(_broker):
    pass


UNAVAILABLE = {
    "a credential that systemd did not give": (["at_rest.kek.credential = sealmq.kek"], nothing, "LoadCredential="),
    "a descriptor that is not open": (["at_rest.kek.fd = 77"], nothing, "3< KEY_FILE"),
    "a command that fails": (["at_rest.kek.command.1 = /bin/false"], nothing, "run it by hand"),
    "a command that is not there": (["at_rest.kek.command.1 = /no/such/program"], nothing, "run it by hand"),
    "a command that prints more than a key": (
        ["at_rest.kek.command.1 = /bin/echo", f"at_rest.kek.command.2 = {OTHER_KEY} {OTHER_KEY}"],
        nothing,
        "run it by hand",
    ),
    "a command that prints no key": (["at_rest.kek.command.1 = /bin/true"], nothing, "64 hex digits"),
    "a command that does not end": (["at_rest.kek.command.1 = /bin/sleep", "at_rest.kek.command.2 = 1000"], nothing, "within 10 s"),
    "a link to a key": (
        ["at_rest.kek.file = {folder}/link"],
        lambda b: (b.folder / "link").symlink_to(b.folder / "secrets" / "at_rest_kek"),
        "symbolic link",
    ),
    "a key of one byte, repeated": (["at_rest.kek.file = {folder}/secrets/same"], lambda b: secret(b, "same", "ab" * 32), "random"),
    "a short passphrase": (["at_rest.kek.passphrase_file = {folder}/secrets/p"], lambda b: secret(b, "p", "short\n"), "8 to 1024 bytes"),
    "a passphrase that others may read": (
        ["at_rest.kek.passphrase_file = {folder}/secrets/p"],
        lambda b: secret(b, "p", PASSPHRASE, 0o640),
        "chmod 0400",
    ),
    "a passphrase without a terminal": (["at_rest.kek.passphrase_prompt = true"], nothing, "passphrase_fd"),
}


@pytest.mark.parametrize("what", UNAVAILABLE)
def test_a_key_that_cannot_be_had_keeps_the_broker_from_starting(native, what):
    lines, prepare, remedy = UNAVAILABLE[what]
    broker = native(start=False)
    prepare(broker)
    source(broker, *(line.replace("{folder}", str(broker.folder)) for line in lines))
    # In a session of its own, so that there is no terminal to ask at.
    said = refusal(broker, "E_KEK_UNAVAILABLE", EXIT_CONFIGURATION, start_new_session=True)
    assert remedy in said
    assert not broker.data.exists(), "no store without a key"


def test_two_sources_of_one_rank_are_refused(native):
    broker = native(start=False)
    source(broker, "at_rest.kek.fd = 7", "at_rest.kek.command.1 = /bin/cat")
    started = broker.attempt()
    assert started.returncode == EXIT_CONFIGURATION
    assert "at_rest.kek.fd and at_rest.kek.command.1 are both set" in started.stderr


def test_a_key_beside_the_data_is_warned_of(native):
    broker = native()
    shared = os.stat(broker.data).st_dev == os.stat(broker.folder / "secrets").st_dev
    assert ("on one file system" in broker.logged()) == shared


# ---- the running broker


def test_the_key_is_replaced_while_the_broker_serves(native):
    broker = native()
    publish(broker, "one")
    new = secret(broker, "new_kek", OTHER_KEY)
    before = keyring(broker, "status")
    old = before["slots"][0]
    assert (old["type"], old["state"], old["in_use"]) == ("key", "active", True)
    added = keyring(broker, "add-slot", "--key-file", "new_kek", cwd=new.parent)
    assert [slot["in_use"] for slot in added["slots"]] == [True, False]
    assert added["generation"] == before["generation"] + 1
    publish(broker, "two")
    status, said = keyring(broker, "remove-slot", old["id"], check=False)
    assert status == 65 and "E_SLOT_IN_USE" in said and "--in-use" in said
    broker.stop()
    # Both keys open it; then only the new one does.
    broker.start()
    assert waiting(broker) == ["one", "two"]
    broker.stop()
    source(broker, f"at_rest.kek.file = {new}")
    broker.start()
    saved = {name: (broker.data / name).read_bytes() for name in COPIES}
    assert len(keyring(broker, "remove-slot", old["id"][:10])["slots"]) == 1
    assert waiting(broker) == ["one", "two"]
    broker.kill()
    source(broker, f"at_rest.kek.file = {broker.folder}/secrets/at_rest_kek")
    said = refusal(broker, "E_KEK_WRONG", EXIT_STORE)
    assert old["id"] in said and added["slots"][1]["id"] in said, "the ids that were tried"
    assert kek(broker) not in said and OTHER_KEY not in said
    # The keyring that the old key still opens is older than the database.
    for name, content in saved.items():
        (broker.data / name).write_bytes(content)
    refusal(broker, "E_KEYRING_ROLLBACK", EXIT_STORE)


def test_a_passphrase_is_a_second_way_in(native):
    broker = native()
    publish(broker, "one")
    words = ("add-slot", "--passphrase-fd", "0")
    added = keyring(broker, *words, input=PASSPHRASE + "\n")
    assert [slot["type"] for slot in added["slots"]] == ["key", "passphrase"]
    status, said = keyring(broker, *words, input="short\n", check=False)
    assert status == 65 and "E_KEK_UNAVAILABLE" in said
    broker.stop()
    (broker.folder / "secrets" / "at_rest_kek").unlink()
    path = secret(broker, "passphrase", PASSPHRASE)
    source(broker, f"at_rest.kek.passphrase_file = {path}")
    broker.start()
    assert waiting(broker) == ["one"]
    assert PASSPHRASE not in broker.logged()


def test_slots_that_cannot_be_are_refused_and_change_nothing(native):
    broker = native()
    own = keyring(broker, "status")["slots"][0]["id"]
    readable = secret(broker, "readable", OTHER_KEY, 0o644)
    for words, code in [
        (("remove-slot", own, "--in-use"), "E_SLOT_LAST"),
        (("remove-slot", "0123456789abcdef"), "E_SLOT_UNKNOWN"),
        (("add-slot", "--key-file", broker.folder / "secrets" / "at_rest_kek"), "E_SLOT_EXISTS"),
        (("add-slot", "--key-file", readable), "E_KEK_UNAVAILABLE"),
        (("add-slot", "--key-file", "/no/such/file"), "E_KEK_UNAVAILABLE"),
    ]:
        before = (broker.data / "keyring").read_bytes()
        status, said = keyring(broker, *words, check=False)
        assert (status, code in said) == (65, True), said
        assert (broker.data / "keyring").read_bytes() == before, code
    for number in range(7):
        keyring(broker, "add-slot", "--key-file", secret(broker, f"k{number}", f"{number:02x}" + OTHER_KEY[2:]))
    status, said = keyring(broker, "add-slot", "--key-file", secret(broker, "k8", "88" + OTHER_KEY[2:]), check=False)
    assert (status, "E_SLOTS_FULL" in said) == (65, True), said
    plain = native(at_rest="plain-insecure")
    status, said = keyring(plain, "status", check=False)
    assert (status, "E_NO_KEYRING" in said) == (65, True), said


def test_a_data_key_goes_with_the_last_message_that_needs_it(native):
    broker = native()
    publish(broker, "one", "two")
    first = keyring(broker, "status")["data_keys"]
    assert [(key["state"], key["records"]) for key in first] == [("seals", 2)]
    rotated = keyring(broker, "rotate-dek")["data_keys"]
    assert [(key["state"], key["records"]) for key in rotated] == [("opens", 2), ("seals", 0)]
    publish(broker, "three")
    assert take(broker, 1) == ["one"]
    assert [key["records"] for key in keyring(broker, "status")["data_keys"]][1:] == [1]
    broker.kill()
    broker.start()
    left = waiting(broker)
    assert left[-2:] == ["two", "three"]
    take(broker, len(left) - 1)
    # An acknowledgement waits for company; the status waits for a commit behind it.
    ids = [key["id"] for key in keyring(broker, "status")["data_keys"]]
    if rotated[0]["id"] in ids:
        ids = [key["id"] for key in keyring(broker, "status")["data_keys"]]
    assert rotated[0]["id"] not in ids and rotated[1]["id"] in ids
    assert f"{rotated[0]['id']}" in broker.logged()
    broker.stop()
    broker.start()
    assert waiting(broker) == ["three"]


def test_old_messages_are_sealed_again_while_the_broker_serves_and_their_keys_go(native):
    broker = native()
    large = "large " * 100_000
    texts = [f"message {n}" for n in range(600)] + [large]
    publish(broker, *texts)
    broker.stop()
    broker.start()
    old, new = (key["id"] for key in keyring(broker, "status")["data_keys"])
    began = keyring(broker, "reseal")["reseal"]
    assert began["state"] == "running" and began["left"] == 602
    # Polled: there is no event to wait for outside the broker. What is published meanwhile is none of its concern.
    publish(broker, "meanwhile")
    for _ in range(600):
        status = keyring(broker, "status")
        if status["reseal"]["state"] == "idle":
            break
    assert status["reseal"] == {"state": "idle", "keys": [], "resealed": 602, "left": 0, "unreadable": 0}
    assert [(key["id"] == new, key["records"]) for key in status["data_keys"]] == [(True, 1), (False, 602)]
    assert old not in [key["id"] for key in status["data_keys"]]
    broker.kill()
    broker.start()
    assert sorted(waiting(broker)) == sorted([*texts, "meanwhile"])
    assert sorted(take(broker, 602)) == sorted([*texts, "meanwhile"])
    broker.stop()
    verified = subprocess.run(
        [broker.binaries / "sealmq-forensics", "verify", broker.data, "--kek", broker.folder / "secrets" / "at_rest_kek"],
        capture_output=True, text=True, timeout=120,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_reseal_of_keys_of_an_age_leaves_younger_ones(native):
    broker = native()
    publish(broker, "one")
    keyring(broker, "rotate-dek")
    before = [key["id"] for key in keyring(broker, "status")["data_keys"]]
    asked = keyring(broker, "reseal", "--older-than", "1h")
    assert ([key["id"] for key in asked["data_keys"]], asked["reseal"]["keys"]) == (before, [])
    status, said = keyring(broker, "reseal", "--older-than", "soon", check=False)
    assert status == 64 and "a time such as" in said
    status, said = keyring(native(at_rest="plain-insecure"), "reseal", check=False)
    assert (status, "E_NO_KEYRING" in said) == (65, True), said


# ---- the keyring as another program reads it


def hkdf(key, info, length):
    """HKDF-SHA256 (RFC 5869) without a salt, for at most one block."""
    extracted = hmac.new(bytes(32), key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\1", hashlib.sha256).digest()[:length]


def test_another_program_finds_its_way_in_the_keyring_by_the_published_layout(native):
    broker = native()
    keyring(broker, "add-slot", "--key-file", secret(broker, "new_kek", OTHER_KEY))
    shown = keyring(broker, "add-slot", "--passphrase-fd", "0", input=PASSPHRASE)
    for name in COPIES:
        path = broker.data / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = path.read_bytes()
        assert content[-32:] == hashlib.sha256(content[:-32]).digest()
        assert content[:12] == b"SMQKRNG1\0\1\0\1"
        assert (content[12:28].hex(), *struct.unpack(">QHH", content[28:40])) == (shown["store"], shown["generation"], 3, 256)
        slots = [content[at : at + 256] for at in (40, 296, 552)]
        assert [slot[:4] for slot in slots] == [b"\1\1\0\0", b"\1\1\0\0", b"\2\1\0\0"]
        assert [slot[4:20].hex() for slot in slots] == [slot["id"] for slot in shown["slots"]]
        for slot, key in zip(slots, (kek(broker), OTHER_KEY), strict=False):
            key = bytes.fromhex(key)
            assert slot[4:20] == hkdf(key, b"sealmq/v1/slot", 16)
            assert slot[20:52] == hkdf(key, b"sealmq/v1/kcv" + content[12:28], 32)
            assert slot[52:80] == bytes(28) and slot[152:] == bytes(104)
        assert struct.unpack(">III", slots[2][52:64]) == (256 * 1024, 3, 1)
        assert len(content) == 40 + 3 * 256 + 4 + 32 + 24 + 4 + 4096 + 16 + 32
