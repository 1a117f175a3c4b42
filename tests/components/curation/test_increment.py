from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.curation import dataset as dataset_module
from components.curation import increment, shards
from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.decoding import DecodeWorkers
from foundry.errors import UserError
from tests.components.curation.growing import SETTINGS, curate, grow
from tests.components.curation.increment_rule import by_the_rule
from tests.components.curation.pictures import crops, encode, write_pool
from tests.components.curation.test_duplicates import icon
from tests.components.curation.test_step import files_of

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool and the dataset of it, below one folder."""
    folder = tmp_path_factory.mktemp("base")
    write_pool(folder / "pool", 60)
    curate(folder / "pool", folder / "dataset")
    return folder


@pytest.fixture
def pool(base: Path, tmp_path: Path) -> Path:
    """The grown pool: four files of the base are gone, of which some were samples and some pictures not drawn."""
    copy = Path(shutil.copytree(base / "pool", tmp_path / "pool"))
    grow(copy)
    before = CuratedDataset.open(base / "dataset")
    for path in before.samples["source"].to_pylist()[:2]:
        (copy / path).unlink()
    for row in [row for row in before.rejected.to_pylist() if row["reason"] == "balance"][:2]:
        (copy / row["path"]).unlink()
    return copy


def rows_of(found: CuratedDataset) -> tuple[set[Any], set[Any]]:
    samples = [(row["source"], row["cluster"], row["weight"]) for row in found.samples.to_pylist()]
    rejected = [(row["path"], row["reason"], row["of"]) for row in found.rejected.to_pylist()]
    assert len(set(samples)) == len(samples) and len(set(rejected)) == len(rejected)
    return set(samples), set(rejected)


def test_an_increment_is_what_the_rule_says(base: Path, pool: Path, tmp_path: Path) -> None:
    before = CuratedDataset.open(base / "dataset")
    untouched = files_of(base / "dataset")
    found = curate(pool, tmp_path / "grown", {"previous": base / "dataset"})
    assert files_of(base / "dataset") == untouched
    samples, rejected = rows_of(found)
    expected_samples, expected_rejected = by_the_rule(before, pool, CurationConfig.model_validate(SETTINGS))
    assert samples == expected_samples
    assert rejected == expected_rejected
    reasons = Counter(reason for path, reason, _ in rejected if path.startswith("new/"))
    assert {"near-duplicate", "exact-duplicate", "not-an-image", "too-small", "balance"} <= set(reasons)
    counts = found.description["counts"]
    gone = [row for row in before.samples["source"].to_pylist() if not (pool / row).exists()]
    assert counts["absent_files"] == len(gone) == 2
    assert counts["files"] + len(gone) == counts["samples"] + counts["rejected"]
    page = (tmp_path / "grown" / "report.html").read_text()
    assert "2 of these files are no longer in the pool" in page and "Not accounted for" not in page
    assert found.samples["key"].to_pylist() == sorted(found.samples["key"].to_pylist())
    digest = before.description["digests"]["content"]
    assert found.description["revision"] == {"number": 2, "previous": digest, "how": "increment"}
    before_rows = {row["key"]: row for row in before.samples.to_pylist()}
    assert before_rows.items() <= {row["key"]: row for row in found.samples.to_pylist()}.items()
    for shard in set(before.samples["shard"].to_pylist()):
        assert (tmp_path / "grown" / "shards" / shard).read_bytes() == (base / "dataset/shards" / shard).read_bytes()

    again = curate(pool, tmp_path / "again", {"previous": tmp_path / "grown"})
    assert rows_of(again) == (samples, rejected)
    assert again.description["digests"]["content"] == found.description["digests"]["content"]


def test_a_pool_that_did_not_grow_gives_the_same_dataset_and_decodes_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.curation.decoding._Worker._start", lambda _: pytest.fail("something was decoded"))
    found = curate(base / "pool", tmp_path / "same", {"previous": base / "dataset"})
    before = CuratedDataset.open(base / "dataset")
    assert found.samples.equals(before.samples) and found.rejected.equals(before.rejected)
    index = found.description["index"]["files"]
    assert index == before.description["index"]["files"]
    anew = curate(base / "pool", tmp_path / "anew", {"previous": base / "dataset"}, anew=True)
    assert anew.samples.equals(before.samples) and anew.rejected.equals(before.rejected)


def test_known_bytes_in_a_new_archive_are_read_but_not_decoded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "pool.tar", "w") as tar:
        for path in sorted((base / "pool").rglob("*.png")):
            tar.add(path, path.relative_to(base / "pool").as_posix())
        (tmp_path / "one.png").write_bytes(encode(crops(61, 48)[60]))
        tar.add(tmp_path / "one.png", "1/one.png")
    seen = []
    decode = DecodeWorkers.decode

    def watched(workers: DecodeWorkers, files: Any) -> Any:
        return decode(workers, (file for file in files if seen.append(file.path) or True))

    monkeypatch.setattr(DecodeWorkers, "decode", watched)
    found = curate(tmp_path / "pool.tar", tmp_path / "out", {"previous": base / "dataset"})
    assert seen == ["1/one.png"]
    before = CuratedDataset.open(base / "dataset")
    assert set(before.samples["source"].to_pylist()) <= set(found.samples["source"].to_pylist())


def test_doubtful_copies_are_looked_at_closely_those_that_are_gone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for text in "ABCDEFGH":
        (pool / f"{text}.png").write_bytes(icon(text))
    before = curate(pool, tmp_path / "first", balance={"fraction": 0.5})
    sample, other = before.samples["source"][0].as_py(), before.rejected["path"][0].as_py()
    assert before.rejected["reason"].to_pylist() == ["balance"] * 4
    keys = {}
    for path in (sample, other):
        keys[f"again-{path}.jpg"] = shards.key_of(files_of(pool)[path])
        Image.open(pool / path).save(pool / f"again-{path}.jpg", quality=70)
    (pool / sample).unlink()
    (pool / "Z.png").write_bytes(icon("Z"))
    seen: list[str] = []
    closeups = DecodeWorkers.closeups

    def watched(workers: DecodeWorkers, files: Any) -> Any:
        return closeups(workers, (file for file in files if seen.append(file.path) or True))  # type: ignore[func-returns-value]

    monkeypatch.setattr(DecodeWorkers, "closeups", watched)
    found = curate(pool, tmp_path / "second", {"previous": tmp_path / "first"}, balance={"fraction": 0.5})
    copies = {row["path"]: row["of"] for row in found.rejected.to_pylist() if row["reason"] == "near-duplicate"}
    assert copies == keys
    assert {sample, other, *keys} <= set(seen) and len(set(seen)) == len(seen)


def test_a_killed_increment_ends_the_same(base: Path, pool: Path, tmp_path: Path) -> None:
    curate(pool, tmp_path / "whole", {"previous": base / "dataset"})
    killed = tmp_path / "killed"
    killed.mkdir()
    program = f"""
import sys
from pathlib import Path
from components.curation import decoding, scan
from components.curation.config import CurationConfig
from components.curation.step import run
scan.PART_FILES, decoding.BATCH_FILES = 4, 1
inputs = {{"pool": {str(pool)!r}, "previous": {str(base / "dataset")!r}}}
run(CurationConfig.model_validate({SETTINGS!r}), inputs, Path({str(killed)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while not (killed / "work" / "scan" / "part-000001.parquet").exists():
        assert process.poll() is None, "it ended before it could be killed"
        threading.Event().wait(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "dataset.json").exists()
    curate(pool, killed, {"previous": base / "dataset"})
    assert files_of(killed) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("module", "name"),
    [(shards, "write_shards"), (increment, "_write_samples"), (dataset_module, "write_description"), (os, "rename")],
)
def test_an_increment_broken_off_anywhere_ends_the_same(
    module: Any, name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Path(shutil.copytree(base / "pool", tmp_path / "pool"))
    shutil.copy(pool / "0" / "003.png", pool / "copy.png")
    for number, piece in enumerate(crops(66, 48)[60:]):
        (pool / f"{number}.png").write_bytes(encode(piece))
    curate(pool, tmp_path / "whole", {"previous": base / "dataset"}, balance={"fraction": 1})
    real = getattr(module, name)

    def breaks(*arguments: Any, **values: Any) -> Any:
        real(*arguments, **values)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, breaks)
        with pytest.raises(KeyboardInterrupt):
            curate(pool, tmp_path / "broken", {"previous": base / "dataset"}, balance={"fraction": 1})
    curate(pool, tmp_path / "broken", {"previous": base / "dataset"}, balance={"fraction": 1})
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    assert CuratedDataset.open(base / "dataset").check_images() is None, "what was linked is not written to"


def test_a_sample_that_is_held_out_later_leaves(base: Path, tmp_path: Path) -> None:
    before = CuratedDataset.open(base / "dataset")
    source = before.samples["source"].to_pylist()[0]
    held_out = tmp_path / "evaluation"
    held_out.mkdir()
    Image.open(base / "pool" / source).save(held_out / "one.jpg", quality=85)
    inputs = {"previous": base / "dataset", "evaluation": held_out}
    found = curate(base / "pool", tmp_path / "less", inputs, balance={"fraction": 0.1})
    (row,) = [row for row in found.rejected.to_pylist() if row["reason"] == "evaluation-copy"]
    assert row["path"] == source and source not in found.samples["source"].to_pylist()
    assert found.description["counts"]["removed_samples"] == 1
    bytes_of = (base / "pool" / source).read_bytes()
    assert not any(bytes_of in path.read_bytes() for path in (tmp_path / "less").rglob("*") if path.is_file())
    inputs["previous"] = tmp_path / "less"
    same = curate(base / "pool", tmp_path / "same", inputs, balance={"fraction": 0.1})
    assert same.samples.equals(found.samples) and same.rejected.equals(found.rejected)
    del inputs["evaluation"]  # nothing is held out any more: the picture is judged like a new one
    back = curate(base / "pool", tmp_path / "back", inputs, balance={"fraction": 1})
    assert source in back.samples["source"].to_pylist()


def test_what_cannot_be_added_to_is_an_error_of_people(base: Path, tmp_path: Path) -> None:
    inputs = {"previous": base / "dataset"}
    with pytest.raises(UserError, match=r"'curation.filters' \(min_side: 16 there, 20 here\).*curation.anew=true"):
        curate(base / "pool", tmp_path / "out", inputs, filters={"min_side": 20})
    with pytest.raises(UserError, match="not a curated dataset"):
        curate(base / "pool", tmp_path / "out", {"previous": base / "pool"})
    damaged = Path(shutil.copytree(base / "dataset", tmp_path / "damaged"))
    (damaged / "index" / "mean.npy").write_bytes(b"")
    with pytest.raises(UserError, match="mean.npy: damaged"):
        curate(base / "pool", tmp_path / "out", {"previous": damaged})
    description = json.loads((damaged / "dataset.json").read_text())
    del description["index"]
    (damaged / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="has no index"):
        curate(base / "pool", tmp_path / "out", {"previous": damaged})
