"""A disk that fails on demand, under one broker: faulty_disk.c, steered through a file that both have mapped."""

import errno
import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

OPEN, WRITE, SYNC, RENAME, RESIZE, READ, THREAD = (1 << bit for bit in range(7))
CHANGES = OPEN | WRITE | SYNC | RENAME | RESIZE
COUNT, FAIL, SHORT, KILL, POWER_CUT, FORK, STALL = range(7)
# As `struct control` in faulty_disk.c.
LAYOUT = struct.Struct("=iiiiqqqqq512s64s512s")
SEEN_AT, FAILED_AT, GO_ON_AT = 32, 40, 48
NUMBER = struct.Struct("=q")


def build(folder):
    """The library; made once for each run of the tests."""
    library = folder / "faulty_disk.so"
    if not library.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if not compiler:
            pytest.skip("NO C COMPILER: what a failing disk does to the broker stays untested; install gcc")
        source = Path(__file__).parent / "faulty_disk.c"
        subprocess.run([compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Disk:
    """The disk below a broker's data directory; the broker must be started after this is made."""

    def __init__(self, broker, library):
        control = broker.folder / "disk"
        control.write_bytes(bytes(LAYOUT.size))
        with control.open("r+b") as file:
            self.control = mmap.mmap(file.fileno(), LAYOUT.size)
        self.root = str(broker.data).encode()
        # Every path begins with an empty one: sockets had to wait like files then.
        self.arm(COUNT, 0)
        self.disarm()
        broker.environment |= {"LD_PRELOAD": str(library), "FAULTY_DISK_CONTROL": str(control)}

    def arm(self, action, calls, match="", after=0, times=-1, error=errno.EIO, spill=""):
        """From the call number `after` on that touches a path with `match` in it, `action` happens, `times` times."""
        self.control[: LAYOUT.size] = LAYOUT.pack(1, action, error, calls, after, times, 0, 0, 0, self.root, match.encode(), str(spill).encode())

    def disarm(self):
        self.control[:4] = bytes(4)

    def seen(self):
        return NUMBER.unpack_from(self.control, SEEN_AT)[0]

    def failed(self):
        return NUMBER.unpack_from(self.control, FAILED_AT)[0]

    def go_on(self):
        """Lets a process go on twice that waits for it in an armed call."""
        NUMBER.pack_into(self.control, GO_ON_AT, 1)
