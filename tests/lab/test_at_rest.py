"""What a disk shows: canaries everywhere that a client can put a text, then every byte of the data directory.

The plain store is the positive control: each canary that the sealed store must not show stands there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).parent

CANARIES = {
    "body": "canary-body-3f9a1c",
    "long body": "canary-long-body-77b0e2",
    "header name": "canary-header-name-5d21",
    "header value": "canary-header-value-90ce",
    "property": "canary-correlation-id-44aa",
    "routing key": "canary.routing.key.b81f",
    "queue": "canary-queue-6c0d",
    "exchange": "canary-exchange-e7f3",
    "binding key": "canary.binding.*.1b9c",
    "binding argument": "canary-binding-argument-d024",
    "queue argument": "canary-queue-argument-8e55",
    "delayed body": "canary-delayed-body-2c7e",
    "long delayed body": "canary-long-delayed-body-a4d0",
    "delayed routing key": "canary-delayed-key-61fb",
    "delayed exchange": "canary-delayed-exchange-f83a",
    "user": "croupier-of-this-run",
}
# Nowhere, in neither mode: a store holds its hash.
PASSWORD = "a-password-for-this-run"

PUBLISH = """
import sys, lab, pika
C = dict(zip(sys.argv[1::2], sys.argv[2::2]))
channel = lab.connect().channel()
channel.exchange_declare(C["exchange"], "topic", durable=True)
channel.queue_declare(C["queue"], durable=True, arguments={"x-note": C["queue argument"]})
channel.queue_bind(C["queue"], C["exchange"], C["routing key"])
channel.queue_bind(C["queue"], C["exchange"], C["binding key"], arguments={"note": C["binding argument"]})
channel.confirm_delivery()
properties = pika.BasicProperties(delivery_mode=2, headers={C["header name"]: C["header value"]}, correlation_id=C["property"])
channel.basic_publish(C["exchange"], C["routing key"], C["body"].encode(), properties, mandatory=True)
long = (C["long body"] + " ").encode() * 20000
channel.basic_publish(C["exchange"], C["routing key"], long, properties, mandatory=True)
channel.exchange_declare(C["delayed exchange"], "x-delayed-message", durable=True, arguments={"x-delayed-type": "direct"})
delayed = pika.BasicProperties(delivery_mode=2, headers={"x-delay": 10**12})
channel.basic_publish(C["delayed exchange"], C["delayed routing key"], C["delayed body"].encode(), delayed)
channel.basic_publish(C["delayed exchange"], C["delayed routing key"], (C["long delayed body"] + " ").encode() * 20000, delayed)
# Acknowledged messages must not linger readable either.
channel.basic_publish(C["exchange"], C["routing key"], C["body"].encode(), properties, mandatory=True)
"""


def run_client(broker, program):
    pairs = [word for pair in CANARIES.items() for word in pair]
    environment = os.environ | broker.environment
    subprocess.run([sys.executable, "-c", program, *pairs], cwd=LAB, env=environment, check=True, timeout=60)


def publish_canaries(broker):
    run_client(broker, PUBLISH)


def scan(broker, *needles):
    """True when the data directory shows one of the needles, as text, UTF-16, hex or base64."""
    command = [broker.binaries / "sealmq-forensics", "scan", broker.data]
    for needle in needles:
        command += ["--needle", needle]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode in (0, 1), run.stderr
    return run.returncode == 1, run.stdout


@pytest.mark.parametrize("moment", ["while it runs", "after it stopped", "after kill -9 and a restart"])
def test_a_sealed_store_shows_nothing_and_a_plain_one_everything(native, moment):
    sealed, plain = native(), native(at_rest="plain-insecure")
    for broker in (sealed, plain):
        publish_canaries(broker)
        if moment == "after it stopped":
            broker.stop()
        elif moment != "while it runs":
            broker.process.kill()
            broker.process.wait(10)
            broker.start()
    found, report = scan(sealed, *CANARIES.values(), PASSWORD)
    assert not found, report
    for place, canary in CANARIES.items():
        found, _ = scan(plain, canary)
        assert found, f"the plain store does not show the {place}: the scan proves nothing about it"
    for broker in (sealed, plain):
        assert not scan(broker, PASSWORD)[0], "a password stands in a store"


def test_no_kind_of_file_shows_anything_after_compaction(native):
    """Each kind that RocksDB writes must show the plain store's canaries, or the scan has looked at nothing."""
    sealed, plain = native(), native(at_rest="plain-insecure")
    for broker in (sealed, plain):
        # Each start moves the log to a table; a few tables are compacted.
        for _ in range(6):
            publish_canaries(broker)
            broker.kill()
            broker.start()
        publish_canaries(broker)
    shown = {suffix: [path for path in (plain.data / "db").glob(f"*{suffix}") if shows(path)] for suffix in (".log", ".sst", ".blob")}
    assert all(shown.values()), f"the plain store's files of some kind show nothing: {shown}"
    assert not [path for path in sealed.data.rglob("*") if path.is_file() and shows(path)]
    found, report = scan(sealed, *CANARIES.values(), PASSWORD)
    assert not found, report


def shows(path):
    content = path.read_bytes()
    return any(canary.encode() in content for canary in CANARIES.values())


# A log line says whose connection it is about; names that clients give to queues and exchanges are not in it.
NAMES = {"user"}

CONSUME = """
import sys, lab, pika
C = dict(zip(sys.argv[1::2], sys.argv[2::2]))
channel = lab.connect().channel()
for _ in range(3):
    method, _, _ = channel.basic_get(C["queue"])
    channel.basic_reject(method.delivery_tag, requeue=True)
for method, _, _ in channel.consume(C["queue"], inactivity_timeout=10):
    channel.basic_ack(method.delivery_tag)
    if method.delivery_tag == 6:
        break
try:
    channel.queue_declare(C["queue"], passive=False, durable=True, arguments={"x-note": C["property"]})
except pika.exceptions.ChannelClosedByBroker:
    pass
"""


@pytest.mark.parametrize("level", ["", "trace"], ids=["as configured", "at trace"])
def test_the_log_shows_no_canary(native, level):
    broker = native(start=False)
    broker.environment["SEALMQ_LOG"] = level
    broker.start()
    publish_canaries(broker)
    run_client(broker, CONSUME)
    broker.stop()
    # Recovery logs as well.
    broker.start()
    broker.stop()
    log = broker.logged()
    assert "store open" in log
    shown = {place for place, canary in CANARIES.items() if canary in log}
    assert shown <= NAMES
    assert PASSWORD not in log


def test_the_same_message_twice_gives_different_bytes(native):
    broker = native()
    publish_canaries(broker)
    publish_canaries(broker)
    broker.stop()
    written = repeated = 0
    for file in (file for file in (broker.data / "db").iterdir() if file.suffix in (".log", ".sst")):
        content = file.read_bytes()
        # The long body repeats every 48 bytes: a mode that leaks equality would show thousands of equal blocks.
        # A few are right: numbers in RocksDB's keys, and the nonce prefix that the records of one commit share.
        blocks = [content[at : at + 16] for at in range(0, len(content) - 16, 16) if len(set(content[at : at + 16])) > 4]
        written += len(blocks)
        repeated += len(blocks) - len(set(blocks))
    assert written > 10000, "the messages are not where this test looks"
    assert repeated < written // 1000
