from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from components.curation import decoding
from components.curation import scan as scan_module
from components.curation.config import DecodeConfig
from components.curation.pool import PoolFile, open_pool
from components.curation.scan import Scan, gather, scan_pool
from tests.components.curation.pictures import write_pool


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "PART_FILES", 7)
    monkeypatch.setattr(decoding, "BATCH_FILES", 1)
    monkeypatch.setattr(decoding, "WINDOW_BATCHES", 1)  # so that little is read ahead


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 20)
    return folder


class Recorder:
    """A pool that notes which files are read, and may break off like a killed process."""

    def __init__(self, folder: Path, stop_after: int | None = None) -> None:
        self.pool = open_pool(str(folder))
        self.read: list[str] = []
        self.stop_after = stop_after

    def files(self, start: int = 0, max_bytes: int = 1 << 20) -> Iterator[PoolFile]:
        for file in self.pool.files(start, max_bytes):
            if len(self.read) == self.stop_after:
                raise KeyboardInterrupt
            self.read.append(file.path)
            yield file


def scan(pool: object, folder: Path, workers: int = 1, digest: str = "d", **settings: int) -> Scan:
    return scan_pool(pool, digest, DecodeConfig(workers=workers, **settings), folder)  # type: ignore[arg-type]


def assert_equal(one: Scan, other: Scan) -> None:
    for field in fields(Scan):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


def test_every_file_has_a_row_and_the_number_of_workers_changes_nothing(pool_folder: Path, tmp_path: Path) -> None:
    paths = [file.path for file in open_pool(str(pool_folder)).files()]
    scans = [scan(Recorder(pool_folder), tmp_path / str(workers), workers) for workers in (1, 2, 4)]
    assert scans[0].path == paths
    assert_equal(scans[0], scans[1])
    assert_equal(scans[0], scans[2])
    by_path = dict(zip(paths, scans[0].reason, strict=True))
    assert by_path["broken/empty.jpg"] == "empty"
    assert by_path["broken/page.jpg"] == by_path["broken/notes.txt"] == "not-an-image"
    assert by_path["broken/short.png"] == "truncated"
    assert scans[0].extension[paths.index("again/named.jpg")] == "png", "by content, not by name"
    assert sum(reason == "" for reason in scans[0].reason) == len(paths) - 4


def test_a_scan_that_was_broken_off_goes_on_where_it_was(pool_folder: Path, tmp_path: Path) -> None:
    whole = scan(Recorder(pool_folder), tmp_path / "whole")
    broken = Recorder(pool_folder, stop_after=18)
    with pytest.raises(KeyboardInterrupt):
        scan(broken, tmp_path / "work")
    parts = len(list((tmp_path / "work").glob("part-*")))
    assert 1 <= parts <= 2
    again = Recorder(pool_folder)
    assert_equal(scan(again, tmp_path / "work"), whole)
    assert again.read == whole.path[7 * parts :]
    third = Recorder(pool_folder)
    assert_equal(scan(third, tmp_path / "work"), whole)
    assert third.read == []


def test_a_damaged_part_is_made_again(pool_folder: Path, tmp_path: Path) -> None:
    whole = scan(Recorder(pool_folder), tmp_path)
    (tmp_path / "part-000002.parquet").write_bytes(b"PAR1 damaged")
    again = Recorder(pool_folder)
    assert_equal(scan(again, tmp_path), whole)
    assert again.read == whole.path[14:]


@pytest.mark.parametrize("change", [{"digest": "other"}, {"max_pixels": 10_000}])
def test_parts_of_another_pool_or_other_limits_are_not_used(
    pool_folder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    scan(Recorder(pool_folder), tmp_path)
    again = Recorder(pool_folder)
    scan(again, tmp_path, **change)  # type: ignore[arg-type]
    assert len(again.read) == len(list(open_pool(str(pool_folder)).files()))


def test_thumbnails_lie_in_files_and_are_gathered_into_files(
    pool_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "GATHER_ROWS", 3)
    found = scan(Recorder(pool_folder), tmp_path / "scan")
    for name in scan_module.ARRAYS:
        column = getattr(found, name)
        assert isinstance(column, np.memmap) and len(column) == len(found)
        rows = [np.array([4, 0, 7, 11, 2]), np.array([], np.int64), np.array([1])]
        gathered = gather([column] * 3, rows, tmp_path / f"{name}.npy")
        assert isinstance(gathered, np.memmap)
        np.testing.assert_array_equal(gathered, np.asarray(column)[[4, 0, 7, 11, 2, 1]])
        assert gather([column], [rows[1]], tmp_path / "none.npy").shape == (0, *column.shape[1:])


def test_the_number_of_workers_may_change_on_the_way(pool_folder: Path, tmp_path: Path) -> None:
    scan(Recorder(pool_folder), tmp_path, workers=1)
    again = Recorder(pool_folder)
    scan(again, tmp_path, workers=2)
    assert again.read == []
