"""A process that is busy is not lost; one that is gone or silent is, within the time given."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS = 4
WORKER = """
import sys, time
import torch.distributed as dist
from training.engine.pulse import Pulse

store, rank, work = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
pulse = Pulse(float(sys.argv[4]))
print("beating", flush=True)
until = time.monotonic() + work
while time.monotonic() < until:
    sum(range(10_000))
pulse.stop()
dist.destroy_process_group()  # as a training does: gloo's threads must not outlive the interpreter
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes with a pulse, the second busy for three times the time after which silence counts as loss."""
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "store"), str(rank), str(work), str(SECONDS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, work in enumerate((0.0, 3.0 * SECONDS))
    ]
    for process in pair:
        assert process.stdout is not None
        assert process.stdout.readline() == "beating\n", process.communicate()[1]
    yield pair
    for process in pair:
        process.kill()
        process.communicate()


def test_a_busy_process_is_waited_for(pair: list[subprocess.Popen[str]]) -> None:
    for process in pair:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "silent"])
def test_a_lost_process_ends_the_others(pair: list[subprocess.Popen[str]], sent: signal.Signals) -> None:
    pair[1].send_signal(sent)
    start = time.monotonic()
    _, errors = pair[0].communicate(timeout=60)
    assert pair[0].returncode == 1
    assert "gone or cut off" in errors
    assert time.monotonic() - start < SECONDS + 5
