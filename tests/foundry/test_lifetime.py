from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundry.lifetime import WATCH_VARIABLE, free_port, is_alive, process_identity, watch_environment

REPOSITORY = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")

CHILD = """
import pathlib, signal, sys
from foundry.lifetime import die_with_launcher
def before():
    pathlib.Path(sys.argv[1]).write_text("ended others")
    if len(sys.argv) > 2:
        raise RuntimeError("even if that fails")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
die_with_launcher(before, interval=0.02)
print("up", flush=True)
signal.pause()
"""

# starts the child in a session of its own, as TorchX does, tells its pid and waits
LAUNCHER = """
import os, subprocess, sys
from foundry.lifetime import watch_environment
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env={**os.environ, **watch_environment()},
                         start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def gone_within(identity: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(identity):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@linux
@pytest.mark.parametrize("extra", [[], ["fail"]], ids=["plain", "failing last act"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_in_its_own_session_dies_with_its_launcher(number: int, extra: list[str], tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = [sys.executable, "-c", LAUNCHER, CHILD, str(note), *extra]
    launcher = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert launcher.stdout is not None
    child = int(launcher.stdout.readline())
    identity = process_identity(child)
    try:
        assert identity is not None and is_alive(identity) and not note.exists()
        launcher.send_signal(number)
        launcher.wait(10)
        assert gone_within(identity, 20)
        assert note.read_text() == "ended others"
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        if identity is not None and is_alive(identity):
            os.kill(child, signal.SIGKILL)


@linux
def test_a_launcher_that_is_gone_before_the_watch_begins(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(launcher.pid)
    launcher.communicate(b"\n")
    assert identity is not None and not is_alive(identity)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "note")]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, WATCH_VARIABLE: identity}, stdout=subprocess.DEVNULL
    )
    assert child.wait(20) == -signal.SIGKILL


@linux
def test_a_process_without_a_launcher_lives_on(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != WATCH_VARIABLE}
    program = CHILD.replace("signal.pause()", "input()")
    command = [sys.executable, "-c", program, str(tmp_path / "note")]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.communicate("\n", timeout=20)[0] == "up\n"
    assert child.returncode == 0


@linux
def test_identity_tells_a_reused_number_apart() -> None:
    own = process_identity(os.getpid())
    assert own is not None and is_alive(own)
    pid, _, ticks = own.partition(":")
    assert pid == str(os.getpid()) and not is_alive(f"{pid}:{int(ticks) + 1}")
    assert watch_environment() == {WATCH_VARIABLE: own}
    # started within this boot: ticks of the clock since then
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < int(ticks) / os.sysconf("SC_CLK_TCK") <= uptime


@linux
def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    identity = process_identity(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert process_identity(child.pid) is None
    assert identity is None or not is_alive(identity)
    child.wait()
    assert process_identity(child.pid) is None


@linux
def test_a_process_name_with_brackets_and_blanks(tmp_path: Path) -> None:
    program = tmp_path / "a) S (b"
    program.symlink_to("/bin/cat")
    child = subprocess.Popen([program], stdin=subprocess.PIPE)
    try:
        identity = process_identity(child.pid)
        assert identity is not None and identity.partition(":")[2].isdigit() and is_alive(identity)
    finally:
        child.communicate()


def test_free_ports_can_be_bound() -> None:
    ports = {free_port() for _ in range(5)}
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
