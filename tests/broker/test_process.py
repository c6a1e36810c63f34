"""What the broker's process takes from itself, and what a crash of it leaves behind."""

import array
import fcntl
import os
import resource
import signal
import subprocess
import termios

import pytest


def facts(pid, file):
    """The lines of a file of /proc/PID, by what stands before the colon or the double space."""
    lines = open(f"/proc/{pid}/{file}").read().splitlines()
    split = (line.split(":", 1) if file == "status" else line.split("  ", 1) for line in lines)
    return {pair[0]: pair[-1].split() for pair in split}


def test_it_can_gain_no_privileges_write_no_core_and_make_no_file_for_others(native):
    broker = native()
    status = facts(broker.process.pid, "status")
    assert status["NoNewPrivs"] == ["1"]
    assert status["Umask"] == ["0077"]
    assert facts(broker.process.pid, "limits")["Max core file size"][:2] == ["0", "0"]


def test_the_tool_that_takes_a_passphrase_writes_no_core_either(native):
    broker = native()
    command = [broker.binaries / "sealmqctl", "--socket", broker.folder / "ctl.sock", "keyring", "add-slot", "--passphrase-fd", "0"]
    tool = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # Once it has taken the line out of the pipe it waits for the rest, and has done what it does first.
    tool.stdin.write(b"correct horse battery staple")
    tool.stdin.flush()
    while fionread(tool.stdin):
        os.sched_yield()
    assert facts(tool.pid, "status")["NoNewPrivs"] == ["1"]
    assert facts(tool.pid, "limits")["Max core file size"][:2] == ["0", "0"]
    tool.communicate(timeout=120)
    assert tool.returncode == 0


def fionread(pipe):
    """Bytes that nobody has taken out of a pipe yet."""
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0]


def dumped(process):
    """Ends a process as a crash would; whether the kernel wrote a core."""
    process.send_signal(signal.SIGABRT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT
    assert os.WIFSIGNALED(status)
    return os.WCOREDUMP(status)


def test_a_crash_leaves_no_core(native, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        broker = native()
        assert not dumped(broker.process)
        assert not list(tmp_path.glob("core*"))
        control = subprocess.Popen(["sleep", "60"])
        if not dumped(control):
            pytest.skip("this machine writes no cores at all, so nothing is shown")
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_the_secrets_of_tls_are_never_logged_for_a_debugger(native, tmp_path):
    """SSLKEYLOGFILE makes many TLS programs write their session keys to a file."""
    target = tmp_path / "keys"
    broker = native(start=False)
    broker.environment["SSLKEYLOGFILE"] = str(target)
    broker.start()
    with broker.connect() as connection:
        connection.channel().queue_declare("q")
    broker.stop()
    assert not target.exists()
