from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.curation import dataset as dataset_module
from components.curation import deletion, previous
from components.curation.commands import run_dataset_command
from components.curation.dataset import CuratedDataset
from components.curation.deletion import DeletionConfig
from components.curation.index import Index
from components.curation.pool import open_pool
from components.curation.report.facts import read_facts
from components.curation.report.gallery import make_gallery
from components.curation.tombstones import Tombstones
from foundry.errors import UserError
from foundry.images import DecodeLimits
from tests.components.curation.growing import curate
from tests.components.curation.pictures import crops, encode, write_pool
from tests.components.curation.test_step import files_of

ALL = {"balance": {"fraction": 1}, "shard_mib": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, with a re-encoded copy of 1/001.png, and the dataset of it, below one folder."""
    folder = tmp_path_factory.mktemp("base")
    write_pool(folder / "pool", 24, side=96)
    (folder / "pool" / "again" / "small.jpg").write_bytes(encode(crops(24, 96)[1][::2, ::2], "JPEG", quality=85))
    curate(folder / "pool", folder / "dataset", **ALL)
    return folder


def delete(base: Path, output: Path, image: Path | None = None, **settings: Any) -> CuratedDataset:
    output.mkdir(exist_ok=True)
    inputs = {"dataset": str(base / "dataset")} | ({"image": str(image)} if image else {})
    metrics = deletion.run(DeletionConfig.model_validate({"reason": "withdrawn", **settings}), inputs, output)
    found = CuratedDataset.open(output)
    found.check_images()
    assert metrics["digest"] == found.description["digests"]["content"]
    assert metrics["digest"] != CuratedDataset.open(base / "dataset").description["digests"]["content"]
    return found


def key_of(base: Path, path: str) -> str:
    return hashlib.sha256((base / "pool" / path).read_bytes()).hexdigest()[:24]


def holds(folder: Path, data: bytes) -> bool:
    return any(data in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def rejected_as(found: CuratedDataset, reason: str) -> set[str]:
    return {row["path"] for row in found.rejected.to_pylist() if row["reason"] == reason}


def test_an_image_goes_with_its_copies(base: Path, tmp_path: Path) -> None:
    untouched = files_of(base / "dataset")
    before = CuratedDataset.open(base / "dataset")
    key = key_of(base, "1/001.png")
    found = delete(base, tmp_path / "less", keys=[key])
    assert files_of(base / "dataset") == untouched
    assert set(before.samples["key"].to_pylist()) - set(found.samples["key"].to_pylist()) == {key}
    gone = {"1/001.png", "again/small.jpg"}
    assert rejected_as(found, "deleted") == gone
    page = (tmp_path / "less" / "report.html").read_text()
    assert "2 show what was deleted from the dataset" in page and "Not accounted for" not in page
    data = (base / "pool" / "1" / "001.png").read_bytes()
    assert holds(base / "dataset", data) and not holds(tmp_path / "less", data)
    assert found.description["revision"] == {
        "number": 2,
        "previous": before.description["digests"]["content"],
        "how": "deletion",
    }
    counts = found.description["counts"]
    assert counts["samples"] + counts["rejected"] == counts["files"] and counts["reasons"]["deleted"] == 2

    index = Index.read(tmp_path / "less", found.description)
    scan = index.images.scan
    rows = [row for row, path in enumerate(scan.path) if path in gone]
    assert np.isnan(index.described[rows]).all()
    assert not scan.grey[rows].any() and not scan.colour[rows].any() and not scan.hash[rows].any()
    assert [scan.pixels_sha256[row] for row in rows] == ["", ""] == [index.cluster[row] for row in rows]
    others = Index.read(base / "dataset", before.description)
    kept = np.flatnonzero([path not in gone for path in scan.path])
    np.testing.assert_array_equal(scan.grey[kept], others.images.scan.grey[kept])

    stones = Tombstones.read(tmp_path / "less", found.description).table.to_pylist()
    assert {row["key"] for row in stones} == {key, key_of(base, "again/small.jpg")}
    assert {(row["why"], row["dataset"]) for row in stones} == {("withdrawn", before.description["digests"]["content"])}
    assert json.loads((tmp_path / "less" / "dataset.json").read_text())["tombstones"]["count"] == 2


@pytest.mark.parametrize("anew", [False, True])
def test_what_was_deleted_does_not_come_back(anew: bool, base: Path, tmp_path: Path) -> None:
    pool = Path(shutil.copytree(base / "pool", tmp_path / "pool"))
    piece = crops(24, 96)[1]
    delete(base, tmp_path / "less", keys=[key_of(base, "1/001.png")])
    copies = {
        "moved.png": (pool / "1" / "001.png").read_bytes(),
        "pixels.png": encode(piece, compress_level=1),
        "mirrored.jpg": encode(np.ascontiguousarray(piece[:, ::-1]), "JPEG", quality=70),
    }
    for name, data in copies.items():
        (pool / name).write_bytes(data)
    (pool / "new.png").write_bytes(encode(crops(25, 96)[24]))
    found = curate(pool, tmp_path / "grown", {"previous": tmp_path / "less"}, anew=anew, **ALL)
    assert rejected_as(found, "deleted") == {"1/001.png", "again/small.jpg", *copies}
    assert "new.png" in found.samples["source"].to_pylist()
    details = {row["detail"] for row in found.rejected.to_pylist() if row["path"] in copies}
    assert all("deleted on 2" in detail and detail.endswith(": withdrawn") for detail in details)
    assert not any(holds(tmp_path / "grown", data) for data in copies.values())
    gallery = make_gallery(read_facts(found), DecodeLimits(), open_pool(str(pool)))
    reasons = found.rejected["reason"].to_pylist()
    assert {reasons[row] for rows in gallery.examples.values() for row in rows} >= {"deleted"}
    assert "deleted" not in {reasons[row] for row in gallery.rejected}, "what was deleted is not shown"
    again = curate(pool, tmp_path / "again", {"previous": tmp_path / "grown"}, **ALL)
    assert rejected_as(again, "deleted") == rejected_as(found, "deleted")
    assert again.samples.equals(found.samples)


def test_a_copy_shows_what_is_deleted(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(encode(np.ascontiguousarray(crops(24, 96)[5][4:, ::-1]), "JPEG", quality=75))
    found = delete(base, tmp_path / "less", image=copy)
    assert rejected_as(found, "deleted") == {"2/005.png"}
    stones = Tombstones.read(tmp_path / "less", found.description).table.to_pylist()
    assert {row["sha256"] for row in stones} == {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (copy, base / "pool" / "2" / "005.png")
    }


def test_without_thumbnails_equal_images_are_told_and_near_copies_are_not(base: Path, tmp_path: Path) -> None:
    pool = Path(shutil.copytree(base / "pool", tmp_path / "pool"))
    piece = crops(24, 96)[5]
    delete(base, tmp_path / "less", keys=[key_of(base, "2/005.png")], digests_only=True)
    assert Tombstones.read(tmp_path / "less", CuratedDataset.open(tmp_path / "less").description).table[
        "grey"
    ].to_pylist() == [None]
    (pool / "pixels.png").write_bytes(encode(piece, compress_level=1))
    (pool / "near.jpg").write_bytes(encode(piece, "JPEG", quality=75))
    found = curate(pool, tmp_path / "grown", {"previous": tmp_path / "less"}, **ALL)
    assert rejected_as(found, "deleted") == {"2/005.png", "pixels.png"}
    assert "near.jpg" in found.samples["source"].to_pylist()


@pytest.mark.parametrize("place", ["carry_over", "write_table", "write_description", "rmtree"])
def test_a_deletion_broken_off_anywhere_ends_the_same(
    place: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: dict[str, Any] = {"carry_over": previous, "rmtree": shutil}
    module = modules.get(place, dataset_module)
    keys = [key_of(base, "1/001.png")]
    real = getattr(module, place)

    def breaks(*arguments: Any, **values: Any) -> Any:
        real(*arguments, **values)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, place, breaks)
        with pytest.raises(KeyboardInterrupt):
            delete(base, tmp_path / "broken", keys=keys)
    begun = deletion._begun(tmp_path / "broken")
    with monkeypatch.context() as patch:  # a later restart
        patch.setattr(deletion, "_begun", lambda _: begun)
        delete(base, tmp_path / "whole", keys=keys)
    delete(base, tmp_path / "broken", keys=keys)
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def test_errors_of_people(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither its samples nor its rejected files have the key 0123"):
        delete(base, tmp_path / "out", keys=["0123"])
    keys = CuratedDataset.open(base / "dataset").samples["key"].to_pylist()
    with pytest.raises(UserError, match="no image would be left"):
        delete(base, tmp_path / "all", keys=keys)
    found = delete(base, tmp_path / "dataset", keys=keys[:1])
    with pytest.raises(UserError, match="deleted already"):
        delete(tmp_path, tmp_path / "twice", keys=keys[:1])
    assert len(found.samples) == len(keys) - 1


def test_the_command_makes_a_result_that_training_takes(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from components.common.execution import describe_input
    from components.common.inputs import DATASET

    target = tmp_path / "artifacts"
    arguments = ["delete", "--dataset", str(base / "dataset"), "--output", str(target), "--reason", "withdrawn"]
    arguments += ["--store", str(tmp_path / "store")]
    assert run_dataset_command(arguments) == 2
    assert "--key KEY or --image FILE" in capsys.readouterr().err
    first, second = (key_of(base, f"0/{number}.png") for number in ("003", "006"))
    assert run_dataset_command([*arguments, "--key", first]) == 0
    assert "deleted 1 samples" in capsys.readouterr().out
    digest = describe_input(DATASET, str(target)).digest
    arguments[2] = str(target)
    assert run_dataset_command([*arguments, "--key", second]) == 0
    found = CuratedDataset.open(target)
    assert {first, second}.isdisjoint(found.samples["key"].to_pylist())
    assert found.description["revision"]["number"] == 3 and found.description["tombstones"]["count"] == 2
    assert describe_input(DATASET, str(target)).digest != digest
