"""Keys that stay elsewhere: a PKCS#11 token (SoftHSM here).

The broker under test must have been built with the feature (`cargo build --features pkcs11`); where it was not, or SoftHSM
and pkcs11-tool are missing, the tests say so and are skipped.
"""

import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from test_keys import EXIT_CONFIGURATION, EXIT_STORE, OTHER_KEY, hkdf, kek, keyring, publish, refusal, secret, source, waiting

EXIT_UNAVAILABLE = 75
PIN, LABEL, KEY = "493817", "token-of-this-run", "key-of-this-run"
SOFTHSM = [f"/usr/lib/{folder}softhsm/libsofthsm2.so" for folder in ("", "x86_64-linux-gnu/", "aarch64-linux-gnu/")]
MODULE = next((path for path in SOFTHSM if Path(path).exists()), None)


def built_with(broker, *lines):
    """Whether the broker knows the service that these lines name."""
    source(broker, *lines)
    started = subprocess.run(broker.command(), env=os.environ | broker.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert started.returncode == EXIT_CONFIGURATION, started.stderr
    return "E_KEY_SERVICE_MISSING" not in started.stderr, started.stderr


# ---- PKCS#11


class Token:
    """A SoftHSM token of our own, with an AES-256 key."""

    def __init__(self, folder):
        self.folder = folder / "tokens"
        self.folder.mkdir()
        self.configuration = folder / "softhsm2.conf"
        self.configuration.write_text(f"directories.tokendir = {self.folder}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self.environment = {"SOFTHSM2_CONF": str(self.configuration)}
        self.run("softhsm2-util", "--init-token", "--free", "--label", LABEL, "--so-pin", "87654321", "--pin", PIN)
        self.make("AES:32")

    def run(self, *words, **options):
        ran = subprocess.run(words, env=os.environ | self.environment, capture_output=True, timeout=60, **options)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def tool(self, *words):
        return self.run("pkcs11-tool", "--module", MODULE, "--token-label", LABEL, "--login", "--pin", PIN, *words)

    def make(self, kind, label=KEY):
        self.tool("--keypairgen" if kind.startswith("rsa") else "--keygen", "--key-type", kind, "--label", label)

    def remove(self):
        self.tool("--delete-object", "--type", "secrkey", "--label", KEY)

    def lines(self, broker, pin=PIN, **changes):
        names = {"module": MODULE, "token": LABEL, "label": KEY, "pin_file": secret(broker, "pin", pin + "\n")} | changes
        return [f"at_rest.kek.pkcs11.{name} = {value}" for name, value in names.items()]

    def flags(self, broker, pin=PIN):
        pin = secret(broker, "pin", pin)
        return ["--pkcs11", "--module", MODULE, "--token", LABEL, "--label", KEY, "--pin-file", pin]


@pytest.fixture
def token(tmp_path, native):
    if not (MODULE and shutil.which("softhsm2-util") and shutil.which("pkcs11-tool")):
        pytest.skip("SKIPPED: no token to test with: apt-get install softhsm2 opensc")
    is_built_in, _ = built_with(native(start=False), "at_rest.kek.pkcs11.module = /no/such.so", "at_rest.kek.pkcs11.token = t", "at_rest.kek.pkcs11.label = l", "at_rest.kek.pkcs11.pin_env = HOME")
    if not is_built_in:
        pytest.skip("SKIPPED: this broker was built without `--features pkcs11`")
    return Token(tmp_path)


def on_token(native, token):
    """A broker whose store was made with the token's key."""
    broker = native(start=False)
    source(broker, *token.lines(broker))
    broker.environment |= token.environment
    broker.start()
    return broker


def test_a_store_is_made_and_opened_by_a_key_that_stays_in_its_token(native, token):
    broker = on_token(native, token)
    publish(broker, "one")
    assert [(slot["type"], slot["in_use"]) for slot in keyring(broker, "status")["slots"]] == [("pkcs11", True)]
    broker.kill()
    broker.start()
    assert waiting(broker) == ["one"]
    broker.stop()
    # The PIN may come from the environment as well.
    place = [line for line in token.lines(broker) if "pin_file" not in line]
    source(broker, *place, "at_rest.kek.pkcs11.pin_env = THE_PIN")
    broker.environment |= {"THE_PIN": PIN}
    broker.start()
    assert waiting(broker) == ["one"]
    for path in [path for path in broker.data.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert not any(text.encode() in content for text in (LABEL, KEY, PIN)), path
    assert PIN not in broker.logged()


def test_serving_does_not_need_the_token(native, token):
    broker = on_token(native, token)
    away = token.folder.with_name("away")
    token.folder.rename(away)
    token.folder.mkdir()
    publish(broker, "one")
    assert len(keyring(broker, "rotate-dek")["data_keys"]) == 2
    broker.stop()
    # It may be plugged in later: the status says that it is worth another try.
    assert "plug the token in" in refusal(broker, "E_PKCS11_TOKEN", EXIT_UNAVAILABLE)
    token.folder.rmdir()
    away.rename(token.folder)
    broker.start()
    assert waiting(broker) == ["one"]


REFUSALS = {
    "a module that is not there": ("E_PKCS11_MODULE", {"module": "/no/such/module.so"}),
    "a module that is none": ("E_PKCS11_MODULE", {"module": "/bin/sh"}),
    "a token that is not there": ("E_PKCS11_TOKEN", {"token": "another"}),
    "a wrong PIN": ("E_PKCS11_PIN", {"pin": "111111"}),
    "a PIN that others may read": ("E_PKCS11_PIN", {}),
    "a key that is not there": ("E_PKCS11_KEY", {"label": "another"}),
    "two keys of one name": ("E_PKCS11_KEY", {"label": "twins"}),
    "a key of 128 bits": ("E_PKCS11_KEY_KIND", {"label": "short"}),
    "a key pair": ("E_PKCS11_KEY_KIND", {"label": "pair"}),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_token_that_does_not_serve_keeps_the_broker_from_starting(native, token, what):
    code, changes = REFUSALS[what]
    for label, kind in [("short", "AES:16"), ("pair", "rsa:2048"), ("twins", "AES:32"), ("twins", "AES:32")]:
        if changes.get("label") == label:
            token.make(kind, label)
    broker = native(start=False)
    broker.environment |= token.environment
    source(broker, *token.lines(broker, **changes))
    if "others may read" in what:
        (broker.folder / "secrets" / "pin").chmod(0o444)
    said = refusal(broker, code, EXIT_UNAVAILABLE if code == "E_PKCS11_TOKEN" else EXIT_CONFIGURATION)
    assert PIN not in said and "111111" not in said
    assert not broker.data.exists(), "no store without a key"


def test_another_key_of_the_same_name_is_a_wrong_key(native, token):
    broker = on_token(native, token)
    shown = keyring(broker, "status")["slots"][0]["id"]
    broker.stop()
    token.remove()
    token.make("AES:32")
    said = refusal(broker, "E_KEK_WRONG", EXIT_STORE)
    assert "the key in the PKCS#11 token on 1 slots" in said and f"pkcs11 {shown}" in said


def test_a_token_is_added_to_a_store_with_a_key_file_and_takes_its_place(native, token):
    broker = native(start=False)
    broker.environment |= token.environment
    broker.start()
    publish(broker, "one")
    old = keyring(broker, "status")["slots"][0]["id"]
    before = (broker.data / "keyring").read_bytes()
    status, said = keyring(broker, "add-slot", *token.flags(broker, "111111"), check=False)
    assert (status, "E_PKCS11_PIN" in said) == (65, True), said
    assert (broker.data / "keyring").read_bytes() == before
    added = keyring(broker, "add-slot", *token.flags(broker))
    assert [(slot["type"], slot["in_use"]) for slot in added["slots"]] == [("key", True), ("pkcs11", False)]
    for lines in ([f"at_rest.kek.file = {broker.folder}/secrets/at_rest_kek"], token.lines(broker)):
        broker.stop()
        source(broker, *lines)
        broker.start()
        assert waiting(broker) == ["one"], lines
    # Once more under the same key of the token, as after its rotation; what is left still finds its part of the file.
    again = keyring(broker, "add-slot", *token.flags(broker))["slots"]
    assert [slot["type"] for slot in again] == ["key", "pkcs11", "pkcs11"]
    keyring(broker, "remove-slot", old)
    left = keyring(broker, "remove-slot", again[1]["id"], "--in-use")["slots"]
    assert [slot["id"] for slot in left] == [again[2]["id"]]
    status, said = keyring(broker, "remove-slot", left[0]["id"], "--in-use", check=False)
    assert (status, "E_SLOT_LAST" in said) == (65, True), said
    broker.kill()
    broker.start()
    assert waiting(broker) == ["one"]
    broker.stop()
    source(broker, f"at_rest.kek.file = {broker.folder}/secrets/at_rest_kek")
    assert kek(broker) not in refusal(broker, "E_KEK_WRONG", EXIT_STORE)


def test_another_program_finds_the_slots_key_by_the_published_layout(native, token, tmp_path):
    of_the_token = bytes(range(32))
    (tmp_path / "key").write_bytes(of_the_token)
    token.remove()
    token.tool("--write-object", tmp_path / "key", "--type", "secrkey", "--key-type", "AES:32", "--usage-decrypt", "--label", KEY)
    broker = on_token(native, token)
    assert "would give this key away" in broker.logged(), "it was not made in the token"
    keyring(broker, "add-slot", "--key-file", secret(broker, "new_kek", OTHER_KEY))
    for name in ("keyring", "keyring.mirror"):
        path = broker.data / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = path.read_bytes()
        slot, key_slot = content[40:296], content[296:552]
        assert (slot[:4], key_slot[:4], key_slot[152:156]) == (b"\3\1\0\0", b"\1\1\0\0", bytes(4))
        offset, length = struct.unpack(">HH", slot[152:156])
        assert (offset, length, content[552:556]) == (0, 62, struct.pack(">I", 62))
        blob = content[556 : 556 + length]
        assert blob[:2] == b"\1\1"
        # GCM is counter mode from the nonce and 2 on (NIST SP 800-38D, 7.1); openssl's program knows that one.
        counter = blob[2:14].hex() + "00000002"
        key = token.run("openssl", "enc", "-d", "-aes-256-ctr", "-K", of_the_token.hex(), "-iv", counter, input=blob[14:46])
        assert slot[4:20] == hkdf(key, b"sealmq/v1/slot", 16)
        assert slot[20:52] == hkdf(key, b"sealmq/v1/kcv" + content[12:28], 32)


def test_a_broker_without_the_feature_says_so(native):
    broker = native(start=False)
    lines = ["at_rest.kek.pkcs11.module = /no/such.so", "at_rest.kek.pkcs11.token = t", "at_rest.kek.pkcs11.label = l", "at_rest.kek.pkcs11.pin_env = HOME"]
    is_built_in, said = built_with(broker, *lines)
    assert is_built_in or "--features pkcs11" in said
    assert not broker.data.exists()
