from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from components.common import content
from components.common.content import content_digest
from foundry.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, fresh_home: Path) -> Path:
    root = tmp_path / "pool"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").write_bytes(b"aaaa")
    (root / "sub" / "b.jpg").write_bytes(b"bbbb")
    return root


def test_names_and_content_count_and_the_place_does_not(folder: Path, tmp_path: Path) -> None:
    first = content_digest(str(folder))
    moved = folder.rename(tmp_path / "moved")
    assert content_digest(str(moved)) == content_digest(f"file://{moved}") == first
    (moved / "a.jpg").rename(moved / "c.jpg")
    renamed = content_digest(str(moved))
    (moved / "c.jpg").write_bytes(b"cccc")
    assert len({first, renamed, content_digest(str(moved))}) == 3


def test_a_file_is_hashed_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = content.sha256_of_file
    monkeypatch.setattr(content, "sha256_of_file", lambda path: hashed.append(path.name) or real(path))
    first = content_digest(str(folder))
    assert content_digest(str(folder)) == first and hashed == ["a.jpg", "b.jpg"]
    status = (folder / "a.jpg").stat()
    (folder / "a.jpg").write_bytes(b"AAAA")
    os.utime(folder / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert content_digest(str(folder)) != first and hashed == ["a.jpg", "b.jpg", "a.jpg"]


def test_without_a_writable_memory_the_digest_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = content_digest(str(folder))
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "file"))
    assert content_digest(str(folder)) == first


def test_a_remote_folder_is_named_by_its_checksums() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/content_test/a.jpg", b"aaaa")
    files.pipe("/content_test/b.jpg", b"bbbb")
    first = content_digest("memory://content_test")
    assert content_digest("memory://content_test") == first
    files.pipe("/content_test/b.jpg", b"BBBBB")
    assert content_digest("memory://content_test") != first
    files.rm("/content_test", recursive=True)
    with pytest.raises(UserError, match="nothing is there"):
        content_digest("memory://content_test")


@pytest.mark.parametrize("url", ["/no/such/place", "nosuchprotocol://x/y"])
def test_what_is_not_there_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match=url):
        content_digest(url)
