"""What is told, while a long store is read, to who waits for the start."""

import contextlib
import os
import re
import subprocess

import pytest
from test_restart import PERSISTENT

MESSAGES = 5000
LINE = rf"\r\x1b\[Kreading the store: \d+ of {MESSAGES} messages, \d+/s\r"


@pytest.fixture
def filled(native):
    broker = native()
    with broker.connect() as connection:
        channel = connection.channel()
        channel.queue_declare("q", durable=True)
        channel.tx_select()
        for _ in range(MESSAGES):
            channel.basic_publish("", "q", b"text", PERSISTENT)
        channel.tx_commit()
    broker.stop()
    return broker


def start(broker, errors):
    """Starts it with another standard error."""
    with (broker.folder / "broker.log").open("a") as log:
        environment = os.environ | broker.environment
        broker.process = subprocess.Popen(broker.command(), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=errors)
    broker.wait_until_up()


def everything(terminal):
    """All that was written to a terminal that nobody has open any more."""
    shown = b""
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while piece := file.read(4096):
            shown += piece
    return shown.decode()


def test_a_terminal_shows_one_line_that_is_drawn_anew_and_taken_away(filled):
    ours, brokers = os.openpty()
    start(filled, brokers)
    os.close(brokers)
    filled.stop()
    shown = everything(ours)
    assert re.fullmatch(rf"({LINE})+\r\x1b\[K", shown), repr(shown)


def test_where_standard_error_is_no_terminal_nothing_is_written_to_it(filled):
    errors = filled.folder / "errors"
    with errors.open("wb") as file:
        start(filled, file)
    filled.stop()
    assert errors.read_bytes() == b""
    assert f"the store was read messages={MESSAGES} " in re.sub(r"\x1b\[\d*m", "", filled.logged())
