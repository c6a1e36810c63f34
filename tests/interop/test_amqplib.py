"""amqplib for Node, as it is now and as it was before 0.10.7, when it asked for frames of 4096 bytes (node/amqplib.js)."""

from pathlib import Path

import program
import pytest

SCRIPT = Path(__file__).parent / "node" / "amqplib.js"


@pytest.mark.parametrize("library", ["amqplib", "amqplib-old"])
@pytest.mark.parametrize("case", ["confirms", "returns", "unequal", "requeue", "callbacks"])
def test_what_applications_do(broker, library, case):
    program.run(["node", SCRIPT, library, case], broker)


@pytest.mark.parametrize("library", ["amqplib", "amqplib-old"])
def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca, library):
    program.run(["node", SCRIPT, library, "stranger"], broker, ca=stranger_ca)
