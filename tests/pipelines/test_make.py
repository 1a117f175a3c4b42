"""The Makefile hands over exactly what it was given."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **variables}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


def test_without_a_target_it_explains_itself() -> None:
    done = make()
    assert done.returncode == 0
    for name in ("make run", "make test", "make lint", "make setup"):
        assert name in done.stdout


def test_a_wrong_folder_ends_it_before_set_up() -> None:
    done = make("run", "IMAGES=/no/such folder", "PYTHON=/must/not/be/called")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: IMAGES=/no/such folder: no such file or folder"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_names_with_spaces_and_quotes_arrive_whole(tmp_path: Path, how: str) -> None:
    images, labels = str(tmp_path / 'it\'s "mine"'), "s3://bucket/a b"
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    show.chmod(0o755)
    given = {"IMAGES": images, "EVAL": labels}
    arguments = [f"{name}={value}" for name, value in given.items()] if how == "argument" else []
    done = make(
        *("run", "--old-file=inputs", "--old-file=setup", f"PYTHON={show}", *arguments),
        *("SET=curation.seed=3 evaluation.further_neighbours=[1,5]", "SERVE=keep"),
        **(given if how == "environment" else {}),
    )
    assert done.stdout.splitlines() == [
        *("-m", "pipelines", "run", "--images", images, "--evaluation", labels),
        *("--set", "deployment.serve=keep", "--set", "curation.seed=3"),
        *("--set", "evaluation.further_neighbours=[1,5]"),
    ], done.stderr
