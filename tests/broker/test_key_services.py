"""Keys that stay elsewhere: a PKCS#11 token (SoftHSM here), the transit engine of Vault (a server of our own, transit.py).

The broker under test must have been built with the features (`cargo build --features pkcs11,vault`); where it was not, or
SoftHSM and pkcs11-tool are missing, the tests say so and are skipped. With SEALMQ_KEY_SERVICES set, a broker that was not is
a failure: scripts/test has just built it.
"""

import hashlib
import os
import shutil
import stat
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from native import free_port
from test_keys import OTHER_KEY, hkdf, kek, keyring, publish, secret, source, waiting
from test_restart import EXIT_CONFIGURATION, EXIT_STORE, refusal
from transit import Transit, say

EXIT_UNAVAILABLE = 75
PIN, LABEL, KEY = "493817", "token-of-this-run", "key-of-this-run"
SOFTHSM = [f"/usr/lib/{folder}softhsm/libsofthsm2.so" for folder in ("", "x86_64-linux-gnu/", "aarch64-linux-gnu/")]
MODULE = next((path for path in SOFTHSM if Path(path).exists()), None)


def built_with(broker, *lines):
    """Whether the broker knows the service that these lines name."""
    source(broker, *lines)
    started = broker.attempt()
    assert started.returncode == EXIT_CONFIGURATION, started.stderr
    is_built_in = "E_KEY_SERVICE_MISSING" not in started.stderr
    assert is_built_in or not os.environ.get("SEALMQ_KEY_SERVICES"), started.stderr
    return is_built_in, started.stderr


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


FAILING_MODULE = """
/* SoftHSM, but for C_GetSlotList: PKCS #11 gives the order of the functions. */
#include <dlfcn.h>
#include <string.h>
struct list { unsigned char version[2]; unsigned long (*functions[68])(); };
static unsigned long fail() { return 0x30; /* CKR_DEVICE_ERROR */ }
unsigned long C_GetFunctionList(struct list **given) {
    static struct list list;
    struct list *real = 0;
    void *module = dlopen(MODULE, RTLD_NOW);
    unsigned long result = ((unsigned long (*)(struct list **))dlsym(module, "C_GetFunctionList"))(&real);
    list = *real;
    list.functions[4] = fail;
    *given = &list;
    return result;
}
"""


def test_a_token_that_fails_keeps_the_broker_from_starting_and_is_asked_again_by_the_next_start(native, token, tmp_path):
    compiler = shutil.which("cc") or pytest.skip("NO C COMPILER: a token that fails stays untested; install gcc")
    (tmp_path / "failing.c").write_text(FAILING_MODULE)
    build = [compiler, "-std=gnu11", "-shared", "-fPIC", f'-DMODULE="{MODULE}"', "-o", tmp_path / "failing.so", tmp_path / "failing.c", "-ldl"]
    subprocess.run(build, check=True)
    broker = on_token(native, token)
    publish(broker, "one")
    broker.stop()
    source(broker, *token.lines(broker, module=tmp_path / "failing.so"))
    said = refusal(broker, "E_PKCS11_FAILED", EXIT_CONFIGURATION)
    assert "GetSlotList: DeviceError" in said and "(look at the token and its module's log" in said and PIN not in said
    source(broker, *token.lines(broker))
    broker.start()
    assert waiting(broker) == ["one"]


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


# ---- Vault


@pytest.fixture
def vault(native, tmp_path):
    broker = native(start=False)
    (tmp_path / "token").write_text("t")
    (tmp_path / "token").chmod(0o400)
    is_built_in, _ = built_with(broker, "at_rest.kek.vault.address = http://no", "at_rest.kek.vault.key = k", f"at_rest.kek.vault.token_file = {tmp_path}/token", "at_rest.kek.vault.ca_file = /no/such/file")
    if not is_built_in:
        pytest.skip("SKIPPED: this broker was built without `--features vault`")
    certificates = broker.certs / "certs"
    server = Transit(free_port(), certificates / "server_certificate.pem", broker.certs / "private" / "server_key.pem")
    server.authority = certificates / "ca_certificate.pem"
    yield server
    server.close()


def vault_place(broker, vault, **changes):
    address = f"https://localhost:{vault.server.server_address[1]}"
    token = secret(broker, "vault_token", changes.pop("token", vault.token) + "\n")
    return {"address": address, "key": "sealmq", "token_file": token, "ca_file": vault.authority} | changes


def vault_lines(broker, vault, **changes):
    return [f"at_rest.kek.vault.{name} = {value}" for name, value in vault_place(broker, vault, **changes).items()]


def vault_flags(broker, vault, **changes):
    place = vault_place(broker, vault, **changes)
    return ["--vault", *(word for name, value in place.items() for word in ("--" + name.replace("_", "-"), value))]


def on_vault(native, vault):
    broker = native(start=False)
    source(broker, *vault_lines(broker, vault))
    broker.start()
    return broker


def test_a_store_is_made_and_opened_by_a_key_that_stays_in_vault(native, vault):
    broker = on_vault(native, vault)
    publish(broker, "one")
    assert [(slot["type"], slot["in_use"]) for slot in keyring(broker, "status")["slots"]] == [("vault", True)]
    asked = len(vault.requests)
    assert {path for path, _, _ in vault.requests} == {"/v1/transit/encrypt/sealmq", "/v1/transit/decrypt/sealmq"}
    assert all(headers["Content-Type"] == "application/json" for _, headers, _ in vault.requests)
    broker.kill()
    broker.start()
    assert waiting(broker) == ["one"]
    assert [path for path, _, _ in vault.requests[asked:]] == ["/v1/transit/decrypt/sealmq"], "one request at a start"
    for path in [path for path in broker.data.rglob("*") if path.is_file()]:
        assert vault.token.encode() not in path.read_bytes(), path
    assert vault.token not in broker.logged()


def test_serving_does_not_need_vault(native, vault):
    broker = on_vault(native, vault)

    def is_sealed(handler):
        say(handler, 503, {"errors": ["Vault is sealed"]})

    vault.misbehave = is_sealed
    publish(broker, "one")
    assert len(keyring(broker, "rotate-dek")["data_keys"]) == 2
    broker.stop()
    assert "Vault is sealed" in refusal(broker, "E_VAULT_UNREACHABLE", EXIT_UNAVAILABLE)
    vault.misbehave = None
    broker.start()
    assert waiting(broker) == ["one"]


def too_much(handler):
    say(handler, 200, b'{"data":"' + b"x" * 100_000 + b'"}')


def elsewhere(handler):
    say(handler, 307, b"", [("Location", "https://localhost:1/v1/transit/encrypt/sealmq")])


def no_json(handler):
    say(handler, 200, b"<html>")


def short_key(handler):
    say(handler, 200, {"data": {"ciphertext": "vault:v1:eA==", "plaintext": "eA=="}})


def another_key(handler):
    say(handler, 200, {"data": {"ciphertext": "vault:v1:eA==", "plaintext": "A" * 43 + "="}})


def a_script(handler):
    say(handler, 200, {"data": {"ciphertext": 'vault:v1:","x":"'}})


def bad_gateway(handler):
    say(handler, 502, b"<html>")


def hang_up(handler):
    handler.connection.close()


VAULT_REFUSALS = {
    "plain HTTP": ("E_VAULT_ADDRESS", EXIT_CONFIGURATION, {"address": "http://localhost:8200"}, None),
    "a key whose name leads elsewhere": ("E_VAULT_ADDRESS", EXIT_CONFIGURATION, {"key": "../../sys/seal"}, None),
    "nobody there": ("E_VAULT_UNREACHABLE", EXIT_UNAVAILABLE, {"address": "https://localhost:1"}, None),
    "a name that nobody has": ("E_VAULT_UNREACHABLE", EXIT_UNAVAILABLE, {"address": "https://vault.invalid"}, None),
    "a certificate of another authority": ("E_VAULT_TLS", EXIT_CONFIGURATION, {"ca_file": "{other}/certs/ca_certificate.pem"}, None),
    "an authority that is none": ("E_VAULT_TLS", EXIT_CONFIGURATION, {"ca_file": "/etc/hostname"}, None),
    "a wrong token": ("E_VAULT_DENIED", EXIT_CONFIGURATION, {"token": "s.another"}, None),
    "a token that others may read": ("E_VAULT_TOKEN", EXIT_CONFIGURATION, {}, None),
    "a key that is not there": ("E_VAULT_KEY", EXIT_CONFIGURATION, {"key": "another"}, None),
    "a mount that is not there": ("E_VAULT_KEY", EXIT_CONFIGURATION, {"mount": "elsewhere"}, None),
    "a key of the wrong kind": (
        "E_VAULT_REFUSED",
        EXIT_CONFIGURATION,
        {},
        lambda handler: say(handler, 400, {"errors": ["'[0].associated_data' provided for non-AEAD cipher suite rsa-2048"]}),
    ),
    "more than an answer": ("E_VAULT_ANSWER", EXIT_CONFIGURATION, {}, too_much),
    "another address": ("E_VAULT_ANSWER", EXIT_CONFIGURATION, {}, elsewhere),
    "no JSON": ("E_VAULT_ANSWER", EXIT_CONFIGURATION, {}, no_json),
    "a ciphertext that is none": ("E_VAULT_ANSWER", EXIT_CONFIGURATION, {}, a_script),
    "a key of one byte": ("E_VAULT_ANSWER", EXIT_CONFIGURATION, {}, short_key),
    "a key that is not the one": ("E_KEY_SERVICE", EXIT_CONFIGURATION, {}, another_key),
    "a gateway that has lost it": ("E_VAULT_UNREACHABLE", EXIT_UNAVAILABLE, {}, bad_gateway),
    "a connection that ends": ("E_VAULT_UNREACHABLE", EXIT_UNAVAILABLE, {}, hang_up),
}


@pytest.mark.parametrize("what", VAULT_REFUSALS)
def test_a_vault_that_does_not_serve_keeps_the_broker_from_starting(native, vault, what):
    code, status, changes, misbehave = VAULT_REFUSALS[what]
    broker = native(start=False)
    changes = {name: value.replace("{other}", str(broker.certs)) for name, value in changes.items()}
    source(broker, *vault_lines(broker, vault, **changes))
    if "others may read" in what:
        (broker.folder / "secrets" / "vault_token").chmod(0o440)
    vault.misbehave = misbehave
    said = refusal(broker, code, status)
    assert vault.token not in said and "s.another" not in said
    assert not broker.data.exists(), "no store without a key"


def test_a_vault_that_does_not_answer_is_not_waited_for(native, vault):
    broker = native(start=False)
    source(broker, *vault_lines(broker, vault))
    over = threading.Event()
    vault.misbehave = lambda handler: over.wait(50)
    try:
        assert "timeout" in refusal(broker, "E_VAULT_UNREACHABLE", EXIT_UNAVAILABLE)
        assert not over.is_set()
    finally:
        over.set()


def test_another_key_of_the_same_name_in_vault_is_a_wrong_key(native, vault):
    broker = on_vault(native, vault)
    broker.stop()
    vault.keys["transit/sealmq"] = bytes(32)
    assert "the key in Vault on 1 slots" in refusal(broker, "E_KEK_WRONG", EXIT_STORE)


def test_vault_is_added_to_a_store_with_a_key_file_and_takes_its_place(native, vault):
    broker = native()
    publish(broker, "one")
    old = keyring(broker, "status")["slots"][0]["id"]
    before = (broker.data / "keyring").read_bytes()
    status, said = keyring(broker, "add-slot", *vault_flags(broker, vault, token="s.another"), check=False)
    assert (status, "E_VAULT_DENIED" in said) == (65, True), said
    assert (broker.data / "keyring").read_bytes() == before
    added = keyring(broker, "add-slot", *vault_flags(broker, vault, mount="transit"))
    assert [(slot["type"], slot["in_use"]) for slot in added["slots"]] == [("key", True), ("vault", False)]
    broker.stop()
    source(broker, *vault_lines(broker, vault))
    broker.start()
    keyring(broker, "remove-slot", old)
    assert waiting(broker) == ["one"]
    broker.kill()
    broker.start()
    assert waiting(broker) == ["one"]
    broker.stop()
    source(broker, f"at_rest.kek.file = {broker.folder}/secrets/at_rest_kek")
    refusal(broker, "E_KEK_WRONG", EXIT_STORE)
    # A change of one bit of what Vault gave is Vault's to find, behind a checksum that anybody can mend.
    source(broker, *vault_lines(broker, vault))
    for name in ("keyring", "keyring.mirror"):
        content = bytearray((broker.data / name).read_bytes())
        at = content.index(b"vault:v1:") + 20
        content[at] = ord("A") if content[at] != ord("A") else ord("B")
        content[-32:] = hashlib.sha256(content[:-32]).digest()
        (broker.data / name).write_bytes(content)
    refusal(broker, "E_KEK_WRONG", EXIT_STORE)


# ---- without the features


def test_a_broker_without_the_feature_says_so(native):
    broker = native(start=False)
    lines = ["at_rest.kek.pkcs11.module = /no/such.so", "at_rest.kek.pkcs11.token = t", "at_rest.kek.pkcs11.label = l", "at_rest.kek.pkcs11.pin_env = HOME"]
    is_built_in, said = built_with(broker, *lines)
    assert is_built_in or "--features pkcs11" in said
    lines = ["at_rest.kek.vault.address = http://no", "at_rest.kek.vault.key = k", f"at_rest.kek.vault.token_file = {secret(broker, 'token', 't')}", "at_rest.kek.vault.ca_file = /no/such/file"]
    is_built_in, said = built_with(broker, *lines)
    assert is_built_in or "--features vault" in said
    assert not broker.data.exists()
