"""The six patterns of RabbitMQ's tutorials, each as its own programs, against any broker (see conftest.py).

Nothing here waits for time to pass: each step waits for the line that says that it has happened.
"""

import json
import os

import pytest


def assert_nothing_more(client, expected):
    assert client.starting_with("received") == expected


def test_simple_queue_delivers_in_order(run):
    receiver = run("simple_queue", "receive")
    receiver.wait_for("ready")
    run("simple_queue", "send", "one", "two", "three").finish()
    assert receiver.wait_for("received", 3) == ["one", "two", "three"]


def test_simple_queue_keeps_messages_for_a_later_consumer(run):
    run("simple_queue", "send", "early", "bird").finish()
    assert run("simple_queue", "receive").wait_for("received", 2) == ["early", "bird"]


def test_work_queue_gives_three_of_six_messages_to_each_of_two_consumers(run):
    workers = [run("work_queue", "work"), run("work_queue", "work")]
    for worker in workers:
        worker.wait_for("ready")
    sent = run("work_queue", "send").finish()
    for worker in workers:
        worker.wait_for("done", 3)
    received = [worker.starting_with("received") for worker in workers]
    assert [len(share) for share in received] == [3, 3]
    assert sorted(sum(received, [])) == sorted(line.removeprefix("sent ") for line in sent)
    assert {json.loads(text)["data"]["outcome"] for text in sum(received, [])} == {1, 2, 3, 4, 5, 6}


def test_work_queue_hands_an_unfinished_task_to_the_other_worker(run):
    stuck = run("work_queue", "work", TASK_SECONDS="600")
    stuck.wait_for("ready")
    run("work_queue", "send", "1").finish()
    task = stuck.wait_for("received")
    other = run("work_queue", "work")
    other.wait_for("ready")
    assert_nothing_more(other, [])
    stuck.process.kill()
    assert other.wait_for("received") == task


def test_publish_subscribe_gives_every_subscriber_every_message(run):
    subscribers = [run("publish_subscribe", "receive") for _ in range(3)]
    for subscriber in subscribers:
        subscriber.wait_for("ready")
    run("publish_subscribe", "emit", "first", "second").finish()
    for subscriber in subscribers:
        assert subscriber.wait_for("received", 2) == ["first", "second"]


def test_routing_selects_by_severity(run):
    calm = run("routing", "receive", "info")
    alarmed = run("routing", "receive", "error", "warning")
    for subscriber in (calm, alarmed):
        subscriber.wait_for("ready")
    for severity in ("warning", "info", "debug", "error", "info"):
        run("routing", "emit", severity, f"a {severity}").finish()
    assert calm.wait_for("received", 2) == ["info a info", "info a info"]
    assert alarmed.wait_for("received", 2) == ["warning a warning", "error a error"]


def test_topics_select_by_pattern(run):
    critical = run("topics", "receive", "*.critical")
    kernel = run("topics", "receive", "kernel.*")
    everything = run("topics", "receive", "#")
    both = run("topics", "receive", "*.critical", "kernel.*")
    for subscriber in (critical, kernel, everything, both):
        subscriber.wait_for("ready")
    keys = ["kernel.critical", "kernel.info", "cron.critical", "cron.info", "kernel.cpu.critical", "kernel"]
    for key in keys:
        run("topics", "emit", key, "x").finish()
    assert everything.wait_for("received", 6) == [f"{key} x" for key in keys]
    assert critical.wait_for("received", 2) == ["kernel.critical x", "cron.critical x"]
    assert kernel.wait_for("received", 2) == ["kernel.critical x", "kernel.info x"]
    # A message that matches two bindings of one queue comes once.
    assert both.wait_for("received", 3) == ["kernel.critical x", "kernel.info x", "cron.critical x"]


def test_request_response_pairs_answers_by_correlation_id(run):
    service = run("request_response", "serve")
    service.wait_for("ready")
    lines = run("request_response", "call", "5", "0", "20").finish()
    assert sorted(lines) == sorted(["factorial(5) = 120", "factorial(0) = 1", "factorial(20) = 2432902008176640000"])
    assert service.wait_for("asked", 3) == ["5", "0", "20"]


def test_a_wrong_password_is_refused(run):
    client = run("simple_queue", "send", "x", RABBITMQ_PASS="not the password")
    assert client.process.wait(60) != 0
    client.wait_for("pika.exceptions.ProbableAuthenticationError")


def test_a_server_that_another_ca_signed_is_not_trusted(run, tmp_path):
    """The lab's verification is real: with a foreign CA the client refuses to talk."""
    if run.environment.get("TLS_ENABLE", os.environ.get("TLS_ENABLE", "1")) == "0":
        pytest.skip("no TLS in this mode")
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "ca_certificate.pem").write_text(FOREIGN_CA)
    client = run("simple_queue", "send", "x", RABBITMQ_SSL_DIR=str(tmp_path))
    assert client.process.wait(60) != 0
    client.wait_for("ssl.SSLCertVerificationError")


FOREIGN_CA = """\
-----BEGIN CERTIFICATE-----
MIIBkjCCATegAwIBAgIUBeYXwD85HmqMag4SodHbJRSyERwwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKZm9yZWlnbi1jYTAgFw0yNjExMjEwODU0MTZaGA8yMTI2MTAy
ODA4NTQxNlowFTETMBEGA1UEAwwKZm9yZWlnbi1jYTBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABFQXL/1xjg6XiflqjVJO4YdkWpVmhLu59cfs5DxFhe1+p9lmq8XB
axHYM5K+GvCIdLCXCT6zmcZsP8uePJim2RqjYzBhMB0GA1UdDgQWBBTlbHOJyDB+
nv2mLaBw4AbMqJWk0DAfBgNVHSMEGDAWgBTlbHOJyDB+nv2mLaBw4AbMqJWk0DAP
BgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwICBDAKBggqhkjOPQQDAgNJADBG
AiEAk5EJ/hQ8ehrABAJyEGmn7uZbxUnbqcbFoO+UOPUPKnYCIQCAuT1hv8tJJFwA
iFcMvM2IsviWlFIkOgVelY2Bxx/0fQ==
-----END CERTIFICATE-----
"""
