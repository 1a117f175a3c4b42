from __future__ import annotations

import io
import os
import pty
import re
from collections.abc import Iterator

import pytest

from foundry import progress as module
from foundry.progress import Progress, duration, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that the test turns by hand."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    yield now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (200_000, "55 h 33 min"),
    ],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_plain_lines_now_and_then(clock: list[float]) -> None:
    log = io.StringIO()
    with Progress("decode", 1000, log_every=10, stream=log) as progress:
        for _ in range(30):
            clock[0] += 1
            progress.advance(20, "loss 1.5")
    lines = log.getvalue().splitlines()
    assert lines == [
        "decode: 200/1000 images, 20.0/s, 40.0 s left, loss 1.5",
        "decode: 400/1000 images, 20.0/s, 30.0 s left, loss 1.5",
        "decode: 600/1000 images, 20.0/s, 20.0 s left, loss 1.5",
        "decode: 600 images in 30.0 s",
    ]
    assert "\x1b" not in log.getvalue() and "\r" not in log.getvalue()


def test_rate_of_a_resumed_run_counts_new_work_only(clock: list[float]) -> None:
    log = io.StringIO()
    progress = Progress("train", 600, "steps", done=500, stream=log)
    clock[0] += 100
    progress.advance(4)
    assert log.getvalue() == "train: 504/600 steps, 2.4/min, 40 min 00 s left\n"


def test_without_a_total_there_is_no_remaining_time(clock: list[float]) -> None:
    log = io.StringIO()
    progress = Progress("read", None, "files", stream=log)
    clock[0] += 10
    progress.advance(50)
    assert log.getvalue() == "read: 50 files, 5.0/s\n"


def test_a_stopped_run_says_so(clock: list[float]) -> None:
    log = io.StringIO()
    with pytest.raises(KeyError), Progress("x", 5, stream=log) as progress:
        progress.advance()
        raise KeyError
    assert log.getvalue() == "x: 1 images in 0.0 s (stopped)\n"


def test_a_terminal_gets_one_moving_line(clock: list[float]) -> None:
    """On a real pseudo-terminal of 40 columns."""
    import fcntl
    import struct
    import termios

    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(writer, "w", encoding="utf-8") as terminal:
        with Progress("encode", 100, stream=terminal) as progress:
            for _ in range(100):
                clock[0] += 0.1
                progress.advance(1, "a note that is far too long for the line")
        shown = ""
        while not shown.endswith("\n"):  # the kernel hands on what was written in pieces
            shown += os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert shown.count("\n") == 1 and shown.endswith("\r\n")
    lines = shown.rstrip().split("\r\x1b[2K")[1:]
    # five times a second at most, in ten seconds
    assert 40 <= len(lines) <= 51
    assert all(len(line) < 40 for line in lines), "a longer line would wrap and stay on the screen"
    assert lines[0].startswith("encode: ") and re.fullmatch(r"encode: 100 images in 10\.0 s", lines[-1])


def test_track_counts_what_was_taken(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(module.sys, "stderr", log)
    assert list(track("abc", "letters", 3, "letters")) == ["a", "b", "c"]
    for letter in track("abc", "letters", 3, "letters"):
        if letter == "b":
            break
    assert log.getvalue().splitlines() == ["letters: 3 letters in 0.0 s", "letters: 1 letters in 0.0 s (stopped)"]
