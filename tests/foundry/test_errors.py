from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foundry.errors import UserError, explain_os_error, run_command

REPOSITORY = Path(__file__).resolve().parents[2]


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def main(argv: list[str]) -> int:
        raise error

    return main


def test_success_is_status_0() -> None:
    assert run_command(lambda argv: None, []) == 0
    assert run_command(lambda argv: 0, []) == 0
    assert run_command(lambda argv: 3, []) == 3


def test_a_mistake_of_a_person_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(UserError("pool: no such folder;\n  give another\tone")), ["x"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: pool: no such folder; give another one\n" and captured.out == ""


def test_debug_is_taken_out_of_the_arguments_and_shows_the_traceback() -> None:
    seen: list[list[str]] = []
    assert run_command(lambda argv: seen.append(argv), ["a", "--debug", "b"]) == 0
    assert seen == [["a", "b"]]
    with pytest.raises(UserError):
        run_command(raising(UserError("wrong")), ["--debug"])
    with pytest.raises(OSError, match="full"):
        run_command(raising(OSError(errno.ENOSPC, "full")), ["--debug"])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_a_full_or_locked_disk_is_a_plain_line(number: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(OSError(number, os.strerror(number), "/data/shards")), []) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: /data/shards: ") and words in line and len(line.splitlines()) == 1


def test_the_name_in_an_os_error_may_be_anything() -> None:
    assert explain_os_error(OSError(errno.ENOSPC, "full")) == explain_os_error(OSError(errno.ENOSPC, "full", 3))
    assert str(explain_os_error(OSError(errno.EROFS, "ro", b"/x"))).startswith("/x: ")
    assert str(explain_os_error(OSError(errno.EROFS, "ro", "/a", None, "/b"))).startswith("/b: ")
    assert explain_os_error(OSError(errno.ENOENT, "absent", "/x")) is None


def test_a_real_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")

    def main(argv: list[str]) -> None:
        with open("/dev/full", "w", encoding="ascii") as file:
            file.write("x")

    assert run_command(main, []) == 2
    assert "disk is full" in capsys.readouterr().err


def test_errors_of_the_program_propagate() -> None:
    for error in (ValueError("bug"), OSError(errno.ENOENT, "absent"), SystemExit(2)):
        with pytest.raises(type(error)):
            run_command(raising(error), [])


def test_ctrl_c_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_statuses_of_real_processes() -> None:
    def status(body: str) -> tuple[int, str]:
        program = (
            "import os, signal, sys\nfrom foundry.errors import UserError, run_command\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored under a shell's background job
            f"def main(argv):\n    {body}\nsys.exit(run_command(main))\n"
        )
        command = [sys.executable, "-c", program, "--name", "x"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    assert status("assert argv == ['--name', 'x']") == (0, "")
    assert status("raise UserError('no such folder')") == (2, "error: no such folder\n")
    assert status("os.kill(os.getpid(), signal.SIGINT); signal.pause()") == (130, "stopped\n")
    code, text = status("raise RuntimeError('bug')")
    assert code == 1 and "Traceback" in text
    code, text = status("argv.append('--debug'); raise KeyError('bug')")
    assert code == 1 and "Traceback" in text
    assert signal.SIGINT == 2
