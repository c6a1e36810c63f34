"""The README's first command: scripts/start, and then the snippet that it prints, pasted as it is."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from native import free_port

ROOT = Path(__file__).parent.parent.parent
# A first build is part of the command.
STARTUP_SECONDS_MAX = 1800


@pytest.mark.skipif("SEALMQ_BIN" not in os.environ, reason="only natively: a checkout and its toolchain are needed")
def test_the_printed_snippet_works_as_it_is(tmp_path):
    port = free_port()
    places = {"SEALMQ_HOME": str(tmp_path / "home"), "SEALMQ_CERTS": str(tmp_path / "certs"), "SEALMQ_PORT": str(port)}
    output = (tmp_path / "output").open("w+")
    start = subprocess.Popen([ROOT / "scripts" / "start"], env=os.environ | places, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        wait_for_port(start, port, output)
        printed = (tmp_path / "output").read_text()
        snippet = printed.split("<<'PYTHON'\n")[1].split("\nPYTHON\n")[0]
        answer = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60)
        assert (answer.stdout, answer.stderr, answer.returncode) == ("Hello, sealed world\n", "", 0)
        assert (tmp_path / "home" / "secrets" / "admin_password").read_text().strip() not in printed
    finally:
        start.send_signal(signal.SIGTERM)
        assert start.wait(60) == 0


def wait_for_port(start, port, output):
    deadline = time.monotonic() + STARTUP_SECONDS_MAX
    while time.monotonic() < deadline and start.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    output.seek(0)
    pytest.fail(f"scripts/start did not open port {port}:\n{output.read()}")
