"""Which images a command means, and in which order."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from foundry.errors import UserError
from serving.image_paths import find_images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b/2.PNG",
        "b/10.jpg",
        "a.b/1.jpeg",
        "a/z.webp",
        "0.jpg",
        "b/notes.txt",
        "b/jpg",
        ".git/x.jpg",
        "b/.x.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_gives_its_images_sorted_and_counts_the_rest(folder: Path) -> None:
    found = find_images(["."])
    assert [os.path.normpath(path) for path in found.paths] == [
        "0.jpg",
        "a.b/1.jpeg",
        "a/z.webp",
        "b/10.jpg",
        "b/2.PNG",
    ]
    assert found.left_out == 2
    assert found.read(found.paths[0]) == b"0.jpg"


def test_arguments_keep_their_order_and_the_list_comes_last(folder: Path) -> None:
    (folder / "list").write_bytes(b"b/2.PNG\r\n\nlost.jpg\nb/\xff.jpg")
    found = find_images(["b/notes.txt", "a", "**/1*.jp*g", "0.jpg", "0.jpg"], "list")
    assert found.paths == [
        "b/notes.txt",
        "a/z.webp",
        "a.b/1.jpeg",
        "b/10.jpg",
        "0.jpg",
        "0.jpg",
        "b/2.PNG",
        "lost.jpg",
        os.fsdecode(b"b/\xff.jpg"),
    ]
    with pytest.raises(OSError):
        found.read("lost.jpg")


def test_a_file_whose_name_looks_like_a_pattern_is_itself(folder: Path) -> None:
    (folder / "[1].jpg").write_bytes(b"x")
    assert find_images(["[1].jpg"]).paths == ["[1].jpg"]


def test_the_digest_follows_paths_and_order_and_the_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(*arguments: str, standard_input: bytes = b"") -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input)))
        return find_images(arguments).digest()

    digests = {
        digest("0.jpg", "a"),
        digest("a", "0.jpg"),
        digest("a"),
        digest("a", "-", standard_input=b"1"),
        digest("a", "-", standard_input=b"2"),
    }
    assert len(digests) == 5 and digest("a", "0.jpg") in digests


def test_what_names_no_image_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty").write_bytes(b"\n")
    (folder / "dash").write_bytes(b"-\n")
    for arguments, list_file, message in [
        ([], "empty", "the list is empty"),
        ([], "dash", "'-' is no path of a file"),
        ([], "nowhere", "nowhere: cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            find_images(arguments, list_file)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"0.jpg\n")))
    with pytest.raises(UserError, match="cannot be both an image and the list"):
        find_images(["-"], "-")
