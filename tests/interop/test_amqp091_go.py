"""amqp091-go, Debian's package: deferred confirms, returns, transactions, goroutines (go/main.go). INTEROP_GO is the program."""

import os

import program
import pytest


@pytest.mark.parametrize("case", ["confirms", "returns", "requeue", "transactions", "concurrent", "faults"])
def test_what_applications_do(broker, case):
    program.run([os.environ["INTEROP_GO"], case], broker)


def test_a_certificate_of_another_ca_is_refused(broker, stranger_ca):
    program.run([os.environ["INTEROP_GO"], "stranger"], broker, ca=stranger_ca)
