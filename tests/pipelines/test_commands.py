"""The command line of the pipelines: help at once, errors of people in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ("run", "plan", "compile", "submit")


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KFP_")} | variables
    command = [sys.executable, "-m", "pipelines", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def assert_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS)], ids=lambda names: " ".join(names) or "pipelines"
)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    program = (
        "import runpy, sys; sys.argv = ['pipelines', *sys.argv[1:]]\n"
        "try: runpy.run_module('pipelines', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'kfp', 'mlflow', 'torch', 'pandas', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "usage: python -m pipelines" in done.stdout
    assert time.monotonic() - start < 10  # 0.1 s on a quiet machine; this only catches a wrong import


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_folder_that_is_not_there(command: str) -> None:
    assert_error(call(command, "--images", "/no/such"), "--images /no/such", "no such file or folder")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert_error(call("run", "--images", str(tmp_path)), str(tmp_path), "empty")


def test_a_mistyped_setting_names_the_nearest() -> None:
    assert_error(call("run", "--set", "curation.sed=3"), "curation.sed", "did you mean", "curation.seed")


def test_a_mistyped_section_names_the_nearest() -> None:
    assert_error(call("compile", "--set", "pretrainin.processes=1"), "pretrainin", "did you mean 'pretraining'")


def test_a_wrong_value() -> None:
    assert_error(call("run", "--set", "pretraining.processes=none"), "pretraining.processes")


def test_a_settings_file_that_is_not_there() -> None:
    assert_error(call("run", "--params", "/no/such.yaml"), "/no/such.yaml")


def test_submit_without_a_server() -> None:
    assert_error(call("submit"), "--host", "KFP_HOST")


def test_submit_with_a_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert_error(call("submit", "--host", "http://127.0.0.1:1", "--images", str(tmp_path)), "pods", str(tmp_path))


def test_submit_to_a_server_that_does_not_answer() -> None:
    assert_error(call("submit", "--host", "http://127.0.0.1:1"), "http://127.0.0.1:1", "does not answer")


def test_compile_to_a_folder(tmp_path: Path) -> None:
    assert_error(call("compile", str(tmp_path)), str(tmp_path), ".yaml")
