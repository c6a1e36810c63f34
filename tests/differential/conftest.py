"""Which broker the cases run against: one that is given, or a sealed SealMQ of our own.

    pytest tests/differential                                            SEALMQ_BIN: folder with the binaries
    pytest tests/differential --broker amqps://guest:guest@localhost:21671 --ca ca.crt

The expectations are the same for every broker. Where a case has two, its docstring says why.
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

import amqp  # noqa: E402
from native import Native  # noqa: E402


def pytest_addoption(parser):
    group = parser.getgroup("differential")
    group.addoption("--broker", help="amqp:// or amqps:// URL of a running broker; default: a SealMQ of our own")
    group.addoption("--ca", help="file with the CA certificates of an amqps:// broker")


@pytest.fixture(scope="session")
def broker(request, tmp_path_factory):
    url = request.config.getoption("--broker")
    if url:
        yield amqp.Broker(url, request.config.getoption("--ca"), is_strict=False)
        return
    if not os.environ.get("SEALMQ_BIN"):
        pytest.exit("give --broker URL, or SEALMQ_BIN (a folder with sealmq and sealmq-init)", 2)
    native = Native(tmp_path_factory.mktemp("broker"))
    settings = native.environment
    url = f"amqps://{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASS']}@localhost:{settings['RABBITMQ_PORT']}"
    yield amqp.Broker(url, native.certs / "certs" / "ca_certificate.pem", certificate_of(native))
    native.stop()


def certificate_of(native):
    """A client certificate in the name of the broker's user, for EXTERNAL."""
    user, certs, secrets = native.environment["RABBITMQ_USER"], native.certs, native.folder / "secrets"
    init = [native.binaries / "sealmq-init", "--certs", certs, "--secrets", secrets, "--client", user]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    return certs / "certs" / f"{user}_certificate.pem", certs / "private" / f"{user}_key.pem"


@pytest.fixture(scope="session")
def is_rabbitmq(broker):
    """Whether it is RabbitMQ itself: SealMQ bears its name, but does not run on Erlang."""
    connection = amqp.Connection(broker)
    platform = connection.start().server_properties["platform"]
    connection.drop()
    return platform.startswith("Erlang")


@pytest.fixture
def name():
    """A name of this case's own."""
    return f"diff-{os.urandom(6).hex()}"


@pytest.fixture
def connect(broker):
    """Opens connections; at the end they are gone, and so is what they declared."""
    made = []

    def connect(vhost="/", certificate=None, **options):
        made.append(amqp.Connection(broker, certificate))
        return made[-1].open(vhost, **options)

    def bare(certificate=None):
        made.append(amqp.Connection(broker, certificate))
        return made[-1]

    connect.bare = bare
    yield connect
    for connection in made:
        connection.drop()
    declared = {(kind, name) for made_by in made for kind, name in made_by.declared}
    forget(broker, {(kind, name) for kind, name in declared if name.startswith("diff-")})


def forget(broker, declared):
    """Deletes what is left, so that a broker that lives on stays as it was."""
    if not declared:
        return
    connection = amqp.Connection(broker).open()
    number = 0
    for kind, name in sorted(declared):
        number += 1
        channel = connection.channel(number)
        try:
            channel.call(f"{kind}.delete", **{kind: name})
        except amqp.Closed as closed:
            # An exclusive queue whose connection is on its way out goes by itself.
            assert closed.code == 405, closed
    connection.close()


@pytest.fixture
def channel(connect):
    """Channel 1 of a new connection."""
    return connect().channel()


def eventually(claim, seconds=10):
    """Waits until the claim holds: for what another connection does."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.02)


@pytest.fixture(name="eventually")
def eventually_fixture():
    return eventually


def fault_of(action):
    """What the broker closes with: scope, code, text, and the method that it blames."""
    with pytest.raises(amqp.Closed) as info:
        action()
    closed = info.value
    return closed.scope, closed.code, closed.text, closed.cause


@pytest.fixture(name="fault_of")
def fault_of_fixture():
    return fault_of
