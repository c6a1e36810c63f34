"""Runs the workloads of all client libraries against one broker over TLS, several libraries at a time.

    scripts/interop [LIBRARY ...]

Prints one closing line for each library, and all that a failed one said. SEALMQ_BIN names the folder of binaries.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "lab"))

import environments  # noqa: E402
from broker import address_of  # noqa: E402
from native import Native  # noqa: E402

# A library waits more than it computes: three keep two cores busy.
AT_A_TIME = 3
LIBRARY_SECONDS_MAX = 600


def python(requirements):
    return lambda: (environments.python(requirements), {})


def other(name, make):
    """Programs in other languages are driven from this very environment, which has pytest."""
    return lambda: (sys.executable, {name: str(make())})


# The longest first: library, what makes its interpreter and its variables.
LIBRARIES = {
    "celery": python("celery"),
    "celery_global_qos": python("celery-5.5"),
    "dramatiq": python("dramatiq"),
    "lapin": other("INTEROP_RUST", environments.rust),
    "amqprs": other("INTEROP_RUST", environments.rust),
    "amqplib": other("NODE_PATH", environments.node),
    "amqp_connection_manager": other("NODE_PATH", environments.node),
    "kombu": python("celery"),
    "aio_pika": python("aio-pika"),
    "amqpstorm": python("amqpstorm"),
    "pika": python("pika"),
    "amqp091_go": other("INTEROP_GO", environments.go),
    "amqp_tools": other("INTEROP_TOOLS", environments.amqp_tools),
}

printing = threading.Lock()


def report(library, outcome, output=""):
    with printing:
        if output:
            print(output, flush=True)
        print(f"{library}: {outcome}", flush=True)


def run(library, url, ca):
    """True unless the library was there and failed."""
    try:
        interpreter, variables = LIBRARIES[library]()
    except environments.Missing as reason:
        report(library, f"SKIPPED: {reason}")
        return True
    except Exception as error:
        report(library, f"FAILED: its environment cannot be made: {error}")
        return False
    command = [interpreter, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=log"]
    command += [HERE / f"test_{library}.py", "--broker", url, "--ca", str(ca)]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, env=os.environ | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIBRARY_SECONDS_MAX
        )
    except subprocess.TimeoutExpired as late:
        report(library, f"FAILED: not done after {LIBRARY_SECONDS_MAX} s", str(late.stdout))
        return False
    tally = re.search(r"^(?:=* ?)?((?:\d+ (?:passed|failed|error|skipped|warning)\S*(?:, )?)+)", done.stdout, re.MULTILINE)
    outcome = f"{tally[1] if tally else 'no case ran'} in {time.monotonic() - started:.0f} s"
    if done.returncode != 0:
        report(library, f"FAILED: {outcome}", done.stdout + done.stderr)
        return False
    report(library, outcome)
    return True


def main():
    unknown = set(sys.argv[1:]) - set(LIBRARIES)
    if unknown:
        sys.exit(f"no such library: {', '.join(sorted(unknown))}; there are {', '.join(LIBRARIES)}")
    wanted = sys.argv[1:] or list(LIBRARIES)
    with tempfile.TemporaryDirectory(prefix="sealmq-interop-") as folder:
        broker = Native(Path(folder))
        url, ca = address_of(broker)
        try:
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                passed = list(pool.map(lambda library: run(library, url, ca), wanted))
        finally:
            broker.stop()
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
