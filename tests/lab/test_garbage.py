"""What strangers send: none of it may stop the broker, fill its memory, or go by without a line in the log."""

import contextlib
import os
import random
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAB = Path(__file__).parent
MEMORY_GROWTH_BYTES_MAX = 64 * 1024 * 1024
CONNECTIONS_DROPPED = 10000
# Past both handshake timeouts (TLS 5 s, AMQP 10 s): by then the broker must have let go of whoever says nothing.
SILENCE_SECONDS_MAX = 25

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
FRAME_OF_4_GIB = b"\x01\x00\x00\xff\xff\xff\xff\x00\x0a\x00\x0b"
HALF_A_FRAME = b"\x01\x00\x00\x00\x00\x01\x00\x00\x0a"


def client_hello():
    """The first bytes of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def memory_bytes(broker):
    pages = int(Path(f"/proc/{broker.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def connect(port):
    return socket.create_connection(("127.0.0.1", port), SILENCE_SECONDS_MAX)


def connect_tls(broker):
    context = ssl.create_default_context(cafile=broker.certs / "certs" / "ca_certificate.pem")
    return context.wrap_socket(connect(broker.tls_port), server_hostname="localhost")


def drain(stream):
    """Reads until the broker closes; a broker that keeps a stranger for ever fails by the socket's timeout."""
    with contextlib.suppress(ConnectionError, ssl.SSLError, BrokenPipeError):
        while stream.recv(65536):
            pass


def assert_serves(broker):
    over_tls = broker.environment | {"TLS_ENABLE": "1", "RABBITMQ_PORT": str(broker.tls_port)}
    for environment in (broker.environment, over_tls):
        command = [sys.executable, "work_queue.py", "send", "2"]
        subprocess.run(command, cwd=LAB, env=os.environ | environment, check=True, timeout=60)


def assert_log_names(broker, stranger):
    deadline = time.monotonic() + 5
    while stranger not in broker.logged():
        assert time.monotonic() < deadline, f"no line in the log about {stranger}:\n{broker.logged()}"
        time.sleep(0.05)


CASES = {
    "random bytes on the TLS port": ("tls port", random.Random(1).randbytes(4096)),
    "random bytes on the plain port": ("plain port", random.Random(2).randbytes(4096)),
    "random bytes inside TLS": ("inside tls", random.Random(3).randbytes(4096)),
    "HTTP on the TLS port": ("tls port", HTTP),
    "HTTP on the plain port": ("plain port", HTTP),
    "HTTP inside TLS": ("inside tls", HTTP),
    "a plain AMQP header on the TLS port": ("tls port", PROTOCOL_HEADER),
    "TLS on the plain port": ("plain port", client_hello()),
    "an unknown protocol version": ("inside tls", b"AMQP\x00\x01\x00\x00"),
    "a frame of 4 GiB": ("inside tls", PROTOCOL_HEADER + FRAME_OF_4_GIB),
    "half a frame, then silence": ("inside tls", PROTOCOL_HEADER + HALF_A_FRAME),
    "nothing at all inside TLS": ("inside tls", b""),
    "nothing at all on the TLS port": ("tls port", b""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stranger_is_cut_off_and_the_broker_serves_on(native, case):
    broker = native(tls="0")  # both listeners
    before = memory_bytes(broker)
    way, payload = CASES[case]
    stream = connect_tls(broker) if way == "inside tls" else connect(broker.tls_port if way == "tls port" else broker.plain_port)
    with stream:
        stranger = "127.0.0.1:%d" % stream.getsockname()[1]
        with contextlib.suppress(ConnectionError):
            stream.sendall(payload)
        drain(stream)
    assert_log_names(broker, stranger)
    assert_serves(broker)
    assert memory_bytes(broker) - before < MEMORY_GROWTH_BYTES_MAX


def test_ten_thousand_connections_that_come_and_go(native):
    broker = native(tls="0")  # both listeners
    assert_serves(broker)
    before = memory_bytes(broker)
    for number in range(CONNECTIONS_DROPPED):
        port = broker.tls_port if number % 2 else broker.plain_port
        with connect(port) as stream:
            if number % 3 == 0:
                stream.sendall(PROTOCOL_HEADER)
    assert_serves(broker)
    assert memory_bytes(broker) - before < MEMORY_GROWTH_BYTES_MAX
