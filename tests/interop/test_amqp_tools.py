"""amqp-tools (rabbitmq-c): the command-line programs that shell scripts use, with --ssl and --cacert."""

import subprocess

import pytest

SECONDS_MAX = 60


@pytest.fixture
def tool(broker):
    """Runs amqp-PROGRAM with the way to the broker."""

    def tool(program, *arguments, ca=None, input=b"", expected=0):
        command = [f"amqp-{program}", "--url", broker.url, "--ssl", "--cacert", ca or broker.ca, *arguments]
        done = subprocess.run(command, input=input, capture_output=True, timeout=SECONDS_MAX)
        assert (done.returncode == 0) == (expected == 0), (done.returncode, done.stderr)
        return done.stderr.decode() if expected else done.stdout

    return tool


@pytest.fixture
def queue(tool, name):
    """A durable queue that is gone after the case."""
    assert tool("declare-queue", "--queue", name, "--durable").decode().strip() == name
    yield name
    tool("delete-queue", "--queue", name)


def test_a_certificate_of_another_ca_is_refused(tool, stranger_ca):
    """The tool says no more than this; with the right CA it gets as far as the queue that is not there."""
    assert "opening socket" in tool("get", "--queue", "interop-none", ca=stranger_ca, expected=1)
    assert "no queue 'interop-none'" in tool("get", "--queue", "interop-none", expected=1)


def test_get_gives_messages_in_order_and_fails_on_an_empty_queue(tool, queue):
    for number in range(20):
        tool("publish", "--routing-key", queue, "--body", f"message {number}", "--persistent")
    for number in range(20):
        assert tool("get", "--queue", queue) == f"message {number}".encode()
    assert tool("get", "--queue", queue, expected=2) == ""


def test_each_line_is_a_message_and_consume_runs_a_command_for_each(tool, queue, tmp_path):
    lines = [f"line {number} {'x' * (number % 300)}".encode() for number in range(1000)]
    tool("publish", "--routing-key", queue, "--line-buffered", "--persistent", input=b"\n".join(lines) + b"\n")
    # cat writes each message to the tool's own output; what is consumed is acknowledged.
    got = tool("consume", "--queue", queue, "--count", "1000", "--prefetch-count", "50", "cat")
    assert got == b"\n".join(lines) + b"\n" or got == b"".join(lines)
    assert tool("get", "--queue", queue, expected=2) == ""


def test_a_command_that_fails_leaves_its_message_in_the_queue(tool, queue):
    """The command reads all of its message: the tool dies of SIGPIPE otherwise."""
    tool("publish", "--routing-key", queue, "--body", "stays")
    tool("consume", "--queue", queue, "--count", "1", "grep", "another")
    assert tool("get", "--queue", queue) == b"stays"


def test_a_large_body_from_standard_input_comes_back_whole(tool, queue):
    body = bytes(range(256)) * 4096
    tool("publish", "--routing-key", queue, "--content-type", "application/octet-stream", input=body)
    assert tool("get", "--queue", queue) == body


def test_a_refusal_names_its_reason(tool, name):
    assert "NOT_FOUND - no queue" in tool("get", "--queue", name, expected=1)
