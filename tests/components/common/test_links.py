from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.common import links
from components.common.execution import execute
from components.common.links import link
from foundry.errors import UserError


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_link_farm_shows_the_result_without_a_copy(toy, tmp_path: Path) -> None:
    outcome = execute(toy.step, toy.config(), {}, tmp_path / "shown", store=toy.store)
    shown = tmp_path / "shown"
    assert content(shown) == content(outcome.path)
    big, original = (shown / "big.bin").stat(), (outcome.path / "big.bin").stat()
    assert big.st_ino == original.st_ino or big.st_nlink == original.st_nlink == 1  # hardlink, or reflink


def test_an_older_farm_is_replaced_whole(toy, tmp_path: Path) -> None:
    execute(toy.step, toy.config(), {"source": str(toy.folder)}, tmp_path / "shown", store=toy.store)
    assert (tmp_path / "shown" / "source.txt").is_file()
    new = execute(toy.step, toy.config(rows=5), {}, tmp_path / "shown", store=toy.store)
    assert content(tmp_path / "shown") == content(new.path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".shown")] == []


@pytest.mark.parametrize("errno", sorted(links._NOT_POSSIBLE))
def test_across_disks_it_is_a_copy(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errno: int) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)

    def refuse(*_: object) -> None:
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(links.fcntl, "ioctl", refuse)
    monkeypatch.setattr(links.os, "link", refuse)
    link(outcome.path, tmp_path / "copied")
    assert content(tmp_path / "copied") == content(outcome.path)
    assert (tmp_path / "copied" / "big.bin").stat().st_nlink == 1


def test_files_of_a_person_are_not_touched(toy, tmp_path: Path) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="mine: holds files"):
        link(outcome.path, mine)
    with pytest.raises(UserError, match="is not a folder"):
        link(outcome.path, mine / "thesis.txt")
    calls = toy.calls()
    with pytest.raises(UserError, match="mine: holds files"):
        execute(toy.step, toy.config(rows=9), {}, mine, store=toy.store)
    assert toy.calls() == calls  # known before the work starts
    assert content(mine) == {"thesis.txt": b"years"}


def test_an_empty_folder_is_filled(toy, tmp_path: Path) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    (tmp_path / "empty").mkdir()
    link(outcome.path, tmp_path / "empty")
    assert content(tmp_path / "empty") == content(outcome.path)
