"""amqprs for Rust: confirms, returns, requeueing, topics (rust/src/amqprs.rs). INTEROP_RUST is the folder of programs."""

import os
from pathlib import Path

import program
import pytest

PROGRAM = Path(os.environ["INTEROP_RUST"]) / "interop-amqprs"


@pytest.mark.parametrize("case", ["confirms", "returns", "requeue", "topics"])
def test_what_applications_do(broker, case):
    program.run([PROGRAM, case], broker, RUST_BACKTRACE="0")


def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca):
    program.run([PROGRAM, "stranger"], broker, ca=stranger_ca, RUST_BACKTRACE="0")
