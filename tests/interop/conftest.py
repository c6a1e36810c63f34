"""What the cases of every client library share: the broker, and names of a case's own.

    pytest tests/interop/test_X.py                                      SEALMQ_BIN: folder with the binaries
    pytest tests/interop/test_X.py --broker amqps://guest:guest@localhost:21671 --ca ca.crt

Each library has an environment of its own; run.py makes them and runs all cases against one broker.
The expectations are the same for every broker. Cases that restart the broker need SEALMQ_BIN.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "lab"))

from broker import Broker, Restartable, address_of  # noqa: E402
from native import Native, native  # noqa: E402, F401 (a fixture)


def pytest_addoption(parser):
    group = parser.getgroup("interop")
    group.addoption("--broker", help="amqps:// URL of a running broker; default: a SealMQ of our own")
    group.addoption("--ca", help="file with the CA certificates of that broker")


@pytest.fixture(scope="session")
def broker(request, tmp_path_factory):
    url = request.config.getoption("--broker")
    if url:
        yield Broker(url, request.config.getoption("--ca"))
        return
    if not os.environ.get("SEALMQ_BIN"):
        pytest.exit("give --broker URL, or SEALMQ_BIN (a folder with sealmq and sealmq-init)", 2)
    native = Native(tmp_path_factory.mktemp("broker"))
    yield Broker(*address_of(native))
    native.stop()


@pytest.fixture(scope="session")
def stranger_ca(tmp_path_factory):
    """A CA that did not sign the broker's certificate."""
    if not os.environ.get("SEALMQ_BIN"):
        pytest.skip("the other CA is made with sealmq-init (SEALMQ_BIN)")
    folder = tmp_path_factory.mktemp("stranger")
    init = [Path(os.environ["SEALMQ_BIN"]) / "sealmq-init", "--certs", folder / "ssl", "--secrets", folder / "secrets"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    return str(folder / "ssl" / "certs" / "ca_certificate.pem")


@pytest.fixture
def name():
    """A name of this case's own."""
    return f"interop-{os.urandom(6).hex()}"


@pytest.fixture
def restartable(native):
    return Restartable(native())


def eventually(claim, seconds=20):
    """Waits until the claim holds: for what another process does."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.02)


@pytest.fixture(name="eventually")
def eventually_fixture():
    return eventually
