"""Tests of what a whole broker promises, through its port and its files. SEALMQ_BIN names the binaries."""

import logging
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))

from native import native  # noqa: E402, F401 (a fixture)


def pytest_sessionstart():
    if not os.environ.get("SEALMQ_BIN"):
        pytest.exit("set SEALMQ_BIN to a folder with sealmq, sealmq-init and sealmqctl", 2)
    # Connections that break are the point of these tests.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
