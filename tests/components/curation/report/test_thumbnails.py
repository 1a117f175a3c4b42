"""Small pictures, and which files of a pool can be had for them."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from components.curation.pool import open_pool
from components.curation.report import thumbnails
from components.curation.report.thumbnails import SIDE, Album, find_files
from foundry.images import DecodeLimits
from tests.components.curation.pictures import crops, encode

LIMITS = DecodeLimits(max_pixels=2_000_000)


def test_a_thumbnail_is_the_image_made_small() -> None:
    row, column = np.mgrid[0:900, 0:1500]
    pixels = np.stack([row * 255 // 900, column * 255 // 1500, 255 - row * 255 // 900], axis=-1).astype(np.uint8)
    for data in (encode(pixels, "JPEG", quality=95), encode(pixels)):
        picture = Album(LIMITS).add(data)
        assert picture is not None and (picture.width, picture.height) == (SIDE, round(SIDE * 900 / 1500))
        shown = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
        assert shown.size == (picture.width, picture.height)
        expected = np.asarray(Image.fromarray(pixels).resize(shown.size, Image.Resampling.BOX), dtype=float)
        assert np.abs(np.asarray(shown.convert("RGB")) - expected).mean() < 4


def test_strips_and_dots_have_thumbnails() -> None:
    strip, dot = (Album(LIMITS).add(encode(np.zeros(shape, np.uint8))) for shape in ((2, 4000, 3), (1, 1, 3)))
    assert strip is not None and (strip.width, strip.height) == (SIDE, 1)
    assert dot is not None and (dot.width, dot.height) == (1, 1)


def test_what_does_not_decode_within_the_limits_has_none() -> None:
    album = Album(LIMITS)
    assert album.add(b"") is None and album.add(b"no image") is None and album.add(encode(crops(1)[0])[:200]) is None
    assert album.add(encode(np.zeros((2000, 1001, 3), np.uint8))) is None


def test_an_album_is_full_at_its_allowance() -> None:
    generator = np.random.default_rng(0)
    album = Album(LIMITS, allowance=40_000)
    added = [album.add(encode(generator.integers(0, 256, (80, 80, 3), dtype=np.uint8))) for _ in range(30)]
    sizes = [len(picture.uri) for picture in added if picture]
    assert 0 < len(sizes) < 30 and sum(sizes) <= 40_000


@pytest.fixture
def files() -> dict[str, bytes]:
    return {f"{number % 2}/{number}.png": encode(piece) for number, piece in enumerate(crops(6, 32))}


def store(folder: Path, kind: str, files: dict[str, bytes]) -> tuple[str, str]:
    """(URL of a pool of ``kind`` that holds ``files``, what stands before their names in it)."""
    if kind in ("folder", "list"):
        for path, data in files.items():
            (folder / "in" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "in" / path).write_bytes(data)
        (folder / "list.txt").write_text("\n".join(f"in/{path}" for path in files))
        return (str(folder / "in"), "") if kind == "folder" else (str(folder / "list.txt"), "in/")
    inside = folder / "in" / kind
    inside.parent.mkdir()
    if kind.endswith(".zip"):
        with zipfile.ZipFile(inside, "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
    elif kind.endswith(".parquet"):
        parquet.write_table(arrow.table({"path": list(files), "image": list(files.values())}), inside)
    else:
        with tarfile.open(inside, "w:gz") as tar:
            for path, data in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return (str(inside), "") if kind.startswith("only") else (str(inside.parent), f"{kind}/")


KINDS = ("folder", "list", "only.tar.gz", "a.tar.gz", "a.zip", "only.parquet", "a.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_found_in_every_kind_of_local_pool(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    url, prefix = store(tmp_path, kind, files)
    names = [prefix + path for path in files]
    assert sorted(file.path for file in open_pool(url).files()) == sorted(names)
    wanted = {(prefix + path, hashlib.sha256(data).hexdigest()): data for path, data in list(files.items())[1:4]}
    stale = (names[5], hashlib.sha256(b"as it was").hexdigest())
    gone = ("gone/file.png", stale[1])
    assert dict(find_files(open_pool(url), [*wanted, stale, gone], 1 << 20)) == wanted
    assert dict(find_files(open_pool(url), wanted, 100)) == {}


def test_large_archives_and_other_machines_are_left_alone(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    memory = fsspec.filesystem("memory")
    for path, data in files.items():
        memory.pipe_file(f"/thumbnails/{path}", data)
    assert dict(find_files(open_pool("memory://thumbnails"), digests.items(), 1 << 20)) == {}
    url, _ = store(tmp_path, "only.tar.gz", files)
    monkeypatch.setattr(thumbnails, "ARCHIVE_BYTES", 1000)
    assert dict(find_files(open_pool(url), digests.items(), 1 << 20)) == {}
