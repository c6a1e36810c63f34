"""Runs a client program of another language: it checks what it sees and says `ok` at the end, or why not."""

import contextlib
import os
import subprocess
import threading

SECONDS_MAX = 120


class Program:
    """A program that may ask for things: a line `ask WORD` runs what the case offers for that word, and is answered."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, **offers):
        lines = []
        timer = threading.Timer(SECONDS_MAX, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                lines.append(line)
                if line.startswith("ask "):
                    offers[line.removeprefix("ask ").strip()]()
                    with contextlib.suppress(BrokenPipeError):  # then it has ended, and its status tells
                        self.process.stdin.write("done\n")
                        self.process.stdin.flush()
            status = self.process.wait()
        finally:
            timer.cancel()
            self.process.kill()
            self.process.wait()
        said = "".join(lines)
        assert status == 0 and lines and lines[-1] == "ok\n", f"ended with {status}:\n{said}"
        return said


def run(command, broker, *, ca=None, offers=None, **environment):
    """Runs it to its end with AMQP_URL and AMQP_CA, and fails unless its last word is ok."""
    address = {"AMQP_URL": broker.url, "AMQP_CA": ca or broker.ca}
    return Program([str(word) for word in command], address | environment).finish(**(offers or {}))
