"""lapin for Rust: confirms, returns, requeueing, tasks, refusals (rust/src/lapin.rs). INTEROP_RUST is the folder of programs."""

import os
from pathlib import Path

import program
import pytest

PROGRAM = Path(os.environ["INTEROP_RUST"]) / "interop-lapin"


@pytest.mark.parametrize("case", ["confirms", "returns", "requeue", "concurrent", "faults"])
def test_what_applications_do(broker, case):
    program.run([PROGRAM, case], broker, RUST_BACKTRACE="0")


def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca):
    program.run([PROGRAM, "stranger"], broker, ca=stranger_ca, RUST_BACKTRACE="0")
