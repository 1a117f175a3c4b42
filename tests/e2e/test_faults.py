"""The line under harm: killed at every step, on a full disk, on one that is read-only (make test-faults)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.checkout import PURE, Checkout

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def run_on(checkout: Checkout, mount: str, home: Path) -> subprocess.CompletedProcess[str]:
    """``python -m pipelines run`` with FOUNDRY_HOME on a file system of its own, seen by that process only."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare here to mount a small file system")
    home.mkdir()
    script = f'mount -t tmpfs -o {mount} none "$FOUNDRY_HOME" && exec "$0" -m pipelines run'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "/bin/sh", "-c", script, sys.executable],
        cwd=checkout.folder,
        env={**checkout.environment, "FOUNDRY_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize("mount", ["size=8m", "size=64m", "ro"])
def test_a_full_or_read_only_disk_is_one_line(checkout: Checkout, tmp_path: Path, mount: str) -> None:
    home = tmp_path / "home"
    done = run_on(checkout, mount, home)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert "FOUNDRY_HOME" in lines[0]
    assert ("read-only" if mount == "ro" else "free") in lines[0]


def test_killed_at_every_step_the_line_still_ends_with_the_same_results(checkout: Checkout) -> None:
    whole = checkout.run()
    for made in ("store", "cache", "mlflow", "model_repository"):  # its champion would be an input of the next verdict
        shutil.rmtree(checkout.home / made, ignore_errors=True)
    for step in PURE:
        process = checkout.start("pipelines", "run")
        folder = checkout.home / "store" / step
        deadline = time.monotonic() + 300
        while not any(folder.glob("*.partial/*")):  # it has begun to write
            assert process.poll() is None and time.monotonic() < deadline, f"{step} was not seen at work"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)  # the orchestrator alone: the step has to notice
        while checkout.processes():
            assert time.monotonic() < deadline, checkout.processes()
            time.sleep(0.05)
        process.communicate()
    again = checkout.run()
    for step in PURE:
        assert again.step(step)["digest"] == whole.step(step)["digest"], step
