"""Wrong inputs are told at once, in one line, with the standard library alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundry.errors import UserError
from pipelines.inputs import check_images, check_labels

REPOSITORY = Path(__file__).resolve().parents[2]


def test_what_is_there_or_elsewhere_passes(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "image.jpg").write_bytes(b"x")
    for url in (
        "sample:",
        "s3://bucket/none",
        str(tmp_path),
        f"file://{tmp_path}",
        str(tmp_path / "deep/er/image.jpg"),
        str(tmp_path / "shards-{000..009}.tar"),
    ):
        check_images(url)
    for url in ("", "auto", "none", "sample:evaluation", str(tmp_path)):
        check_labels(url)


@pytest.mark.parametrize("kind", ["absent", "empty folder", "folder of empty folders", "empty file"])
def test_what_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "images"
    if kind == "folder of empty folders":
        (path / "a" / "b").mkdir(parents=True)
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "empty file":
        path.touch()
    with pytest.raises(UserError, match=f"EVAL={path}: .*(no such|empty)"):
        check_labels(str(path))


def test_a_linked_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"x")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "link").symlink_to(tmp_path / "real")
    check_images(str(tmp_path / "pool"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="permission"):
        check_images(str(tmp_path))


@pytest.mark.parametrize("variables", [{"IMAGES": "/no/such"}, {"EVAL": "/no/such"}])
def test_make_asks_before_anything_is_installed(variables: dict[str, str]) -> None:
    bare = [sys.executable, "-S", "-E", "-m", "pipelines.inputs"]  # -S: no site-packages
    done = subprocess.run(
        bare, cwd=REPOSITORY, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True
    )
    (name,) = variables
    assert done.returncode == 2
    assert done.stderr == f"error: {name}=/no/such: no such file or folder\n"
