"""Finds the broker that the patterns run against.

RABBITMQ_BROKER set: that one, with the environment of lab.py as it is (any broker will do).
SEALMQ_BIN set to a folder of binaries: a sealed broker of our own with throw-away certificates, once with
TLS_ENABLE=1 and once with TLS_ENABLE=0, stopped by its pid at the end.
"""

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

LAB = Path(__file__).parent
STARTUP_SECONDS_MAX = 60


def pytest_sessionstart():
    if not os.environ.get("RABBITMQ_BROKER") and not os.environ.get("SEALMQ_BIN"):
        pytest.exit("set RABBITMQ_BROKER (a running broker) or SEALMQ_BIN (a folder with sealmq and sealmq-init)", 2)


def pytest_generate_tests(metafunc):
    """A broker that is given is tested as it is; one of our own in both modes."""
    if "broker" in metafunc.fixturenames:
        given = bool(os.environ.get("RABBITMQ_BROKER"))
        modes = [os.environ.get("TLS_ENABLE", "1")] if given else ["1", "0"]
        metafunc.parametrize("broker", modes, ids=[f"tls{mode}" for mode in modes], indirect=True, scope="session")


def free_port():
    """Below 32768, out of the way of outgoing connections."""
    for _ in range(100):
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 20000 and 32000")


class Native:
    """A broker of our own: one folder, one process."""

    def __init__(self, folder, tls="1", at_rest="sealed"):
        self.binaries = Path(os.environ["SEALMQ_BIN"])
        self.folder = folder
        self.data = folder / "data"
        self.certs = folder / "ssl"
        self.tls_port, self.plain_port = free_port(), free_port()
        init = [self.binaries / "sealmq-init", "--certs", self.certs, "--secrets", folder / "secrets"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
        self.configure(at_rest)
        self.environment = {
            "RABBITMQ_BROKER": "localhost",
            "RABBITMQ_USER": "croupier-of-this-run",
            "RABBITMQ_PASS": "a-password-for-this-run",
            "RABBITMQ_PORT": str(self.tls_port if tls == "1" else self.plain_port),
            "RABBITMQ_SSL_DIR": str(self.certs),
            "TLS_ENABLE": tls,
        }
        self.start()

    def configure(self, at_rest):
        """The labs' file, with this run's places."""
        lines = (LAB / "rabbitmq.conf").read_text().replace("/etc/rabbitmq/ssl", str(self.certs))
        lines = lines.replace("listeners.tcp.default = 5672", f"listeners.tcp.1 = 127.0.0.1:{self.plain_port}")
        lines = lines.replace("listeners.ssl.default = 5671", f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}")
        lines += f"data_dir = {self.data}\nat_rest.mode = {at_rest}\ncontrol.socket = {self.folder}/ctl.sock\n"
        if at_rest == "sealed":
            lines += f"at_rest.kek.file = {self.folder}/secrets/at_rest_kek\n"
        (self.folder / "sealmq.conf").write_text(lines)

    def start(self):
        self.log = (self.folder / "broker.log").open("a+")
        self.process = subprocess.Popen(
            [self.binaries / "sealmq", "--config", self.folder / "sealmq.conf"],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        port = int(self.environment["RABBITMQ_PORT"])
        deadline = time.monotonic() + STARTUP_SECONDS_MAX
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)
        self.process.kill()
        pytest.fail(f"the broker did not come up on port {port}:\n{self.logged()}")

    def logged(self):
        return (self.folder / "broker.log").read_text(errors="replace")

    def stop(self):
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail("the broker did not stop within 30 s of SIGTERM")
        assert status == 0, f"the broker ended with {status} after SIGTERM:\n{self.logged()}"


@pytest.fixture(scope="session")
def broker(request, tmp_path_factory):
    """The environment of a lab client."""
    if os.environ.get("RABBITMQ_BROKER"):
        yield {}
        return
    native = Native(tmp_path_factory.mktemp("broker"), request.param)
    yield native.environment
    native.stop()


@pytest.fixture
def native(tmp_path_factory):
    """Makes brokers of our own, with the arguments of Native; stops them at the end."""
    if "SEALMQ_BIN" not in os.environ:
        pytest.skip("only with binaries of our own (SEALMQ_BIN)")
    made = []

    def make(**arguments):
        made.append(Native(tmp_path_factory.mktemp("broker"), **arguments))
        return made[-1]

    yield make
    for broker in made:
        if broker.process.poll() is None:
            broker.stop()


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
