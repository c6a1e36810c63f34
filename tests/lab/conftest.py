"""Finds the broker that the patterns run against.

RABBITMQ_BROKER set: that one, with the environment of lab.py as it is (any broker will do).
SEALMQ_BIN set to a folder of binaries: a sealed broker of our own with throw-away certificates, once with
TLS_ENABLE=1 and once with TLS_ENABLE=0, stopped by its pid at the end.
"""

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from native import Native, native  # noqa: F401 (a fixture)

LAB = Path(__file__).parent


def pytest_sessionstart():
    if not os.environ.get("RABBITMQ_BROKER") and not os.environ.get("SEALMQ_BIN"):
        pytest.exit("set RABBITMQ_BROKER (a running broker) or SEALMQ_BIN (a folder with sealmq and sealmq-init)", 2)


def pytest_generate_tests(metafunc):
    """A broker that is given is tested as it is; one of our own in both modes."""
    if "broker" in metafunc.fixturenames:
        given = bool(os.environ.get("RABBITMQ_BROKER"))
        modes = [os.environ.get("TLS_ENABLE", "1")] if given else ["1", "0"]
        metafunc.parametrize("broker", modes, ids=[f"tls{mode}" for mode in modes], indirect=True, scope="session")


@pytest.fixture(scope="session")
def broker(request, tmp_path_factory):
    """The environment of a lab client."""
    if os.environ.get("RABBITMQ_BROKER"):
        yield {}
        return
    native = Native(tmp_path_factory.mktemp("broker"), request.param)
    yield native.environment
    native.stop()


class Client:
    """One lab program as a process: its lines can be waited for."""

    def __init__(self, environment, program, *arguments):
        self.name = f"{program} {' '.join(arguments)}"
        self.process = subprocess.Popen(
            [sys.executable, "-u", LAB / f"{program}.py", *arguments],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()

    def starting_with(self, word):
        return [line.removeprefix(word).strip() for line in self.lines if line.startswith(word)]

    def wait_for(self, word, count=1, seconds=30):
        """The rest of the first `count` lines that start with `word`, as soon as they are there."""
        with self.changed:
            arrived = self.changed.wait_for(lambda: len(self.starting_with(word)) >= count, seconds)
            assert arrived, f"{self.name}: {count} lines with '{word}' expected, got:\n" + "\n".join(self.lines)
            return self.starting_with(word)

    def finish(self, seconds=60):
        status = self.process.wait(seconds)
        self.reader.join(10)
        assert status == 0, f"{self.name} ended with {status}:\n" + "\n".join(self.lines)
        return list(self.lines)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def run(broker, request):
    """Starts lab programs against the broker, with names of this test's own; stops them at the end."""
    name = f"lab-{os.getpid()}-{random.randrange(1 << 32):08x}"
    environment = broker | {"RABBITMQ_QUEUE": name, "RABBITMQ_EXCHANGE": name}
    started = []

    def start(program, *arguments, **changes):
        started.append(Client(environment | changes, program, *arguments))
        return started[-1]

    start.environment = environment
    yield start
    for client in started:
        client.stop()
    forget(environment)


def forget(environment):
    """Removes what a test declared, so that a broker that lives on stays as it was."""
    code = (
        "import os, lab\n"
        "channel = lab.connect().channel()\n"
        "channel.queue_delete(os.environ['RABBITMQ_QUEUE'])\n"
        "channel.exchange_delete(os.environ['RABBITMQ_EXCHANGE'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=LAB, env=os.environ | environment, check=True, timeout=60)
