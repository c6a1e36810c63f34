"""A broker of our own for tests: its folder, its certificates, its process. Needs SEALMQ_BIN, a folder of binaries."""

import contextlib
import json
import os
import random
import socket
import ssl
import subprocess
import time
from pathlib import Path

import canaries
import pytest

LAB = Path(__file__).parent
STARTUP_SECONDS_MAX = 60


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

    def __init__(self, folder, tls="1", at_rest="sealed", settings="", start=True):
        self.binaries = Path(os.environ["SEALMQ_BIN"])
        self.folder = folder
        self.data = folder / "data"
        self.certs = folder / "ssl"
        self.process = None
        self.tls_port, self.plain_port = free_port(), free_port()
        init = [self.binaries / "sealmq-init", "--certs", self.certs, "--secrets", folder / "secrets"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
        self.configure(at_rest, settings)
        self.environment = {
            "RABBITMQ_BROKER": "localhost",
            "RABBITMQ_USER": "croupier-of-this-run",
            "RABBITMQ_PASS": "a-password-for-this-run",
            "RABBITMQ_PORT": str(self.tls_port if tls == "1" else self.plain_port),
            "RABBITMQ_SSL_DIR": str(self.certs),
            "TLS_ENABLE": tls,
            # Nothing that clients send may be in the log, whatever the level; see `search_log`.
            "SEALMQ_LOG": "trace",
        }
        self.log_searched_bytes = 0
        with contextlib.suppress(ImportError):
            canaries.watch_pika()
        if start:
            self.start()

    def configure(self, at_rest, settings=""):
        """The labs' file, with this run's places, and `settings` after it."""
        lines = (LAB / "rabbitmq.conf").read_text().replace("/etc/rabbitmq/ssl", str(self.certs))
        lines = lines.replace("listeners.tcp.default = 5672", f"listeners.tcp.1 = 127.0.0.1:{self.plain_port}")
        lines = lines.replace("listeners.ssl.default = 5671", f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}")
        lines += f"data_dir = {self.data}\nat_rest.mode = {at_rest}\ncontrol.socket = {self.folder}/ctl.sock\n"
        if at_rest == "sealed":
            lines += f"at_rest.kek.file = {self.folder}/secrets/at_rest_kek\n"
        # Whole suites can be run under other settings, such as a queue that keeps four messages in memory.
        everywhere = os.environ.get("SEALMQ_TEST_SETTINGS", "")
        (self.folder / "sealmq.conf").write_text(lines + settings + everywhere)

    def command(self):
        return [self.binaries / "sealmq", "--config", self.folder / "sealmq.conf"]

    def start(self):
        self.spawn()
        self.wait_until_up()

    def spawn(self):
        """Starts the process and waits for nothing."""
        with (self.folder / "broker.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_up(self):
        port = int(self.environment["RABBITMQ_PORT"])
        deadline = time.monotonic() + STARTUP_SECONDS_MAX
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.01)
        self.process.kill()
        pytest.fail(f"the broker did not come up on port {port}:\n{self.logged()}")

    def logged(self):
        return (self.folder / "broker.log").read_text(errors="replace")

    def attempt(self, seconds=60, **options):
        """Starts the process, which must end by itself; gives its outcome."""
        usual = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": seconds}
        ended = subprocess.run(self.command(), env=os.environ | self.environment, **usual | options)
        self.search((ended.stdout + ended.stderr).encode())
        return ended

    def search_log(self):
        """Searches what was logged since the last time."""
        log = (self.folder / "broker.log").read_bytes() if (self.folder / "broker.log").exists() else b""
        new, self.log_searched_bytes = log[self.log_searched_bytes :], len(log)
        self.search(new)

    def search(self, log):
        """Fails when it shows something that clients have sent. The broker's own folder is named after the test."""
        found = canaries.leaks(log.replace(bytes(self.folder), b""))
        assert not found, f"the broker's log shows what clients have sent: {found[:20]}"

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def parameters(self, **changes):
        """How pika gets in: over TLS, with everything checked, unless the broker was made with tls="0"."""
        import pika  # here, so that environments without pika can run a broker

        tls = None
        if self.environment["TLS_ENABLE"] == "1":
            context = ssl.create_default_context(cafile=self.certs / "certs" / "ca_certificate.pem")
            tls = pika.SSLOptions(context, server_hostname="localhost")
        user, password = self.environment["RABBITMQ_USER"], self.environment["RABBITMQ_PASS"]
        usual = {"credentials": pika.PlainCredentials(user, password), "heartbeat": 60, "socket_timeout": 10, "stack_timeout": 20, "blocked_connection_timeout": 60}
        return pika.ConnectionParameters(
            host="localhost",
            port=int(self.environment["RABBITMQ_PORT"]),
            ssl_options=tls,
            **usual | changes,
        )

    def connect(self, **changes):
        import pika

        return pika.BlockingConnection(self.parameters(**changes))

    def ctl(self, *words):
        """The answer of sealmqctl, as rows."""
        command = [self.binaries / "sealmqctl", "--socket", self.folder / "ctl.sock", "--formatter", "json", *words]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)

    def stop(self):
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail("the broker did not stop within 30 s of SIGTERM")
        assert status == 0, f"the broker ended with {status} after SIGTERM:\n{self.logged()}"
        self.search_log()


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
        if broker.process and broker.process.poll() is None:
            broker.stop()
    for broker in made:
        broker.search_log()
