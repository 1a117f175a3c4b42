from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from pathlib import Path

import pytest

from foundry.errors import UserError
from foundry.storage import (
    files_under,
    filesystem,
    is_local,
    local_path,
    sha256_of,
    sha256_of_file,
    shown_url,
    without_credentials,
    write_atomically,
)


def test_local_and_remote_urls() -> None:
    assert is_local("/data/images") and is_local("images") and is_local("file:///data")
    assert not is_local("s3://bucket/images") and not is_local("zip://a::s3://b/c.zip")
    assert local_path("file:///data/a b") == Path("/data/a b")
    assert local_path("images") == Path("images")
    assert local_path("~/images") == Path.home() / "images"


def test_file_systems(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    system, path = filesystem(str(tmp_path / "a"))
    assert system.cat_file(path) == b"abc"
    system, path = filesystem("memory://folder/b")
    system.pipe_file(path, b"xyz")
    assert filesystem("memory://folder/b")[0].cat_file(path) == b"xyz"
    with pytest.raises(UserError, match="nosuch://x: cannot be opened"):
        filesystem("nosuch://x")


def test_digests(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    stream = io.BytesIO(content)
    stream.seek(10)
    assert sha256_of(stream, chunk=1000) == hashlib.sha256(content[10:]).hexdigest()


def test_writes_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    write_atomically(path, "größer")
    assert path.read_bytes() == "größer".encode()
    write_atomically(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["a.json"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = [bytes([value]) * 300_000 for value in range(4)]
    write_atomically(path, contents[0])
    stop = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        for content in contents:
            write_atomically(path, content)
    stop.set()
    reader.join()
    assert seen and set(seen) <= set(contents)


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == ["a"]


def test_files_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/z", "b.txt", "a/c/d", "a-b", "B"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    names = [path.relative_to(tmp_path).as_posix() for path in files_under(tmp_path)]
    assert names == ["B", "a-b", "a/c/d", "b.txt", "b/z"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/a.zip?X-Signature=secret&b=1", "https://host/a.zip"),
        ("https://me:sec@ret@host:81/a b", "https://host:81/a b"),
        ("zip://in.png::s3://key:secret@bucket/a.zip", "zip://in.png::s3://bucket/a.zip"),
        (
            "dvc://data?repo=https://me:secret@host/r.git&rev=v1&token=secret",
            "dvc://data?repo=https://host/r.git&rev=v1",
        ),
        ("copy of s3://k:secret@b/x.jpg, kept for its name", "copy of s3://b/x.jpg, kept for its name"),
        ("user@host/plain?name.jpg", "user@host/plain?name.jpg"),
    ],
)
def test_urls_are_shown_without_credentials(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_local_paths_are_shown_by_their_last_part() -> None:
    assert shown_url("/home/someone/photos/") == shown_url("file:///elsewhere/photos") == "photos"
    assert shown_url("s3://key:secret@bucket/photos") == "s3://bucket/photos"
