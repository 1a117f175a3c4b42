"""The guard of a node: containers, verdicts, and the meeting point of a job on several nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.common.guard import CUT_OFF, VERDICT_VARIABLE
from components.common.rendezvous import STORE_VARIABLE
from foundry.errors import ERROR_FILE_VARIABLE

GUARD = [sys.executable, "-m", "components.common.guard"]
SHORT = """
import sys
from components.common import guard
guard.LOST_SECONDS, guard.CUT_OFF_SECONDS, guard.STORE_START_SECONDS = 1.0, 2.0, 2.0
sys.exit(guard.main(sys.argv[1:]))
"""


def guarded(*command: str, **environment: str) -> int:
    return subprocess.run([*GUARD, *command], env={**os.environ, **environment}, timeout=60, check=False).returncode


FORGETFUL = """
import sys
from components.common import guard
guard.LOST_SECONDS = 2.0
sys.exit(guard.main(sys.argv[1:]))
"""


def rendezvous(port: str) -> list[str]:
    return [sys.executable, "-m", "components.common.rendezvous", "--host", "127.0.0.1", "--port", port]


@pytest.fixture
def store() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running meeting point and its endpoint."""
    with subprocess.Popen(rendezvous("0"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split()[-1]
        yield process, f"127.0.0.1:{port}"
        process.kill()


def test_the_first_process_of_a_container_has_no_launcher_to_follow() -> None:
    inside = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    tried = subprocess.run([*inside, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a container's first process needs a process namespace, which the kernel refuses: {tried.stderr}")
    assert subprocess.run([*inside, *GUARD, "sleep", "1"], timeout=60, check=False).returncode == 0
    assert subprocess.run([*inside, *GUARD, "false"], timeout=60, check=False).returncode == 1


def test_a_job_that_failed_for_good_says_why_and_is_not_started_again(tmp_path: Path) -> None:
    verdict = tmp_path / "logs" / "job.failed"
    assert guarded("false", **{VERDICT_VARIABLE: str(verdict)}) == 0
    assert "exit status 1" in verdict.read_text()
    assert guarded("touch", str(tmp_path / "started"), **{VERDICT_VARIABLE: str(verdict)}) == 0
    assert not (tmp_path / "started").exists()


def test_the_reason_is_the_line_for_a_person_where_there_is_one(tmp_path: Path) -> None:
    verdict, error = tmp_path / "failed", tmp_path / "error"
    error.write_text("the dataset has no images\n")
    variables = {VERDICT_VARIABLE: str(verdict), ERROR_FILE_VARIABLE: str(error)}
    assert guarded("false", **variables) == 0
    assert verdict.read_text() == "the dataset has no images"


def test_a_node_that_is_told_to_stop_gives_no_verdict(tmp_path: Path) -> None:
    verdict = tmp_path / "failed"
    environment = {**os.environ, VERDICT_VARIABLE: str(verdict)}
    with subprocess.Popen([*GUARD, "bash", "-c", f"touch {tmp_path}/up; exec sleep 60"], env=environment) as node:
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 128 + signal.SIGTERM
    assert not verdict.exists()


def test_the_store_ends_when_a_node_is_done(store: tuple[subprocess.Popen[str], str]) -> None:
    process, endpoint = store
    assert guarded("false", **{STORE_VARIABLE: endpoint}) == 1
    assert process.poll() is None
    assert guarded("true", **{STORE_VARIABLE: endpoint}) == 0
    assert process.wait(20) == 0


def test_a_node_that_comes_back_too_late_has_nothing_to_do(
    store: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    _, endpoint = store
    variables = {STORE_VARIABLE: endpoint, VERDICT_VARIABLE: str(tmp_path / "failed")}
    assert guarded("true", **variables) == 0
    assert guarded("false", **variables) == 0
    assert not (tmp_path / "failed").exists()


def test_a_node_cut_off_from_the_store_ends(store: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, endpoint = store
    environment = {**os.environ, STORE_VARIABLE: endpoint}
    command = [sys.executable, "-c", SHORT, "bash", "-c", f"touch {tmp_path}/up; exec sleep 60"]
    with subprocess.Popen(command, env=environment) as node:
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        process.kill()
        assert node.wait(30) == CUT_OFF


def test_a_node_that_failed_for_want_of_the_store_starts_again_with_it(
    store: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, endpoint = store
    verdict, starts = tmp_path / "failed", tmp_path / "starts"
    environment = {**os.environ, STORE_VARIABLE: endpoint, VERDICT_VARIABLE: str(verdict)}
    script = f"echo start >> {starts}; [ $(wc -l < {starts}) = 2 ] || {{ sleep 4; exit 1; }}"
    with subprocess.Popen([sys.executable, "-c", FORGETFUL, "bash", "-c", script], env=environment) as node:
        while not starts.exists():
            time.sleep(0.02)
        process.kill()
        time.sleep(6)
        with subprocess.Popen(rendezvous(endpoint.rpartition(":")[2]), stdout=subprocess.DEVNULL) as again:
            assert node.wait(60) == 0
            assert again.wait(30) == 0
    assert starts.read_text().split() == ["start", "start"]
    assert not verdict.exists()


def test_a_node_that_finds_no_store_does_not_start(tmp_path: Path) -> None:
    environment = {**os.environ, STORE_VARIABLE: "127.0.0.1:1"}
    command = [sys.executable, "-c", SHORT, "touch", str(tmp_path / "up")]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == CUT_OFF
    assert not (tmp_path / "up").exists()
