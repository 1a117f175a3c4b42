from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset, content_digest
from components.curation.step import run
from foundry.errors import UserError
from tests.components.curation.pictures import write_pool


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    write_pool(folder / "pool", 18)
    (folder / "dataset").mkdir()
    config = CurationConfig.model_validate({"decode": {"workers": 1}, "shard_mib": 1})
    run(config, {"pool": str(folder / "pool")}, folder / "dataset")
    return folder / "dataset"


@pytest.fixture
def copy(curated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(curated, tmp_path / "dataset"))


def test_every_image_is_there(curated: Path) -> None:
    dataset = CuratedDataset.open(curated)
    dataset.check_images()
    assert len(dataset.samples) == dataset.description["counts"]["samples"] > 0


def test_the_digest_by_its_definition(curated: Path) -> None:
    table = parquet.read_table(curated / "samples.parquet")
    names = ("key", "sha256", "source", "cluster", "weight", "parts")
    rows = sorted(tuple(r[name] for name in names) for r in table.to_pylist())
    mix = {"homogeneous": {}, "weights": {}}
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in [*map(list, rows), mix])
    expected = hashlib.sha256(text.encode()).hexdigest()
    description = json.loads((curated / "dataset.json").read_text())
    assert description["mix"] == mix and description["digests"]["content"] == expected
    backwards = table.take(list(reversed(range(len(table)))))
    assert content_digest(backwards, mix) == expected != content_digest(backwards, {**mix, "weights": {"balanced": 1}})


def version_1(folder: Path) -> None:
    """Make the dataset in ``folder`` what the version before wrote."""
    table = parquet.read_table(folder / "samples.parquet").drop_columns(["parts"])
    parquet.write_table(table, folder / "samples.parquet")
    rows = sorted((r["key"], r["sha256"], r["source"], r["cluster"], r["weight"]) for r in table.to_pylist())
    text = "".join(json.dumps(list(row), separators=(",", ":")) + "\n" for row in rows)
    description = json.loads((folder / "dataset.json").read_text())
    del description["mix"]
    description |= {"schema": 1, "digests": {"content": hashlib.sha256(text.encode()).hexdigest()}}
    (folder / "dataset.json").write_text(json.dumps(description))


def test_datasets_of_version_1_are_read(curated: Path, copy: Path) -> None:
    from training.data.shards import ShardDataset

    version_1(copy)
    dataset = CuratedDataset.open(copy)
    assert dataset.samples.equals(CuratedDataset.open(curated).samples), "one part, the balanced one"
    assert dataset.description["mix"] == {}
    old, new = ShardDataset(str(copy)), ShardDataset(str(curated))
    assert list(old.parts) == list(new.parts) == ["balanced"] and (old.weights == new.weights).all()
    description = json.loads((copy / "dataset.json").read_text())
    description["digests"]["content"] = "0" * 64
    (copy / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="does not have the digest"):
        CuratedDataset.open(copy)


def test_training_reads_it(curated: Path) -> None:
    from training.data.shards import ShardDataset

    dataset = CuratedDataset.open(curated)
    reader = ShardDataset(str(curated))
    assert reader.digest == dataset.description["digests"]["content"]
    for row, digest in enumerate(dataset.samples["sha256"].to_pylist()):
        assert hashlib.sha256(reader.read(row)).hexdigest() == digest


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a curated dataset \(dataset.json is missing\)"):
        CuratedDataset.open(tmp_path)


def test_another_schema_is_refused(copy: Path) -> None:
    description = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**description, "schema": 3}))
    with pytest.raises(UserError, match="schema 3, this version reads 1 to 2"):
        CuratedDataset.open(copy)


def test_lost_rows_and_changed_rows_are_found(copy: Path) -> None:
    table = parquet.read_table(copy / "samples.parquet")
    parquet.write_table(table.slice(1), copy / "samples.parquet")
    with pytest.raises(UserError, match="rows, dataset.json says"):
        CuratedDataset.open(copy)
    weights = table["weight"].to_pylist()
    changed = table.set_column(table.schema.get_field_index("weight"), "weight", [[2.0, *weights[1:]]])
    parquet.write_table(changed, copy / "samples.parquet")
    with pytest.raises(UserError, match="does not have the digest"):
        CuratedDataset.open(copy)
    parquet.write_table(table.drop_columns(["cluster"]), copy / "samples.parquet")
    with pytest.raises(UserError, match="columns .* are not the contract's"):
        CuratedDataset.open(copy)


def test_a_damaged_shard_is_found(copy: Path) -> None:
    dataset = CuratedDataset.open(copy)
    row = dataset.samples.slice(3, 1).to_pylist()[0]
    with (copy / "shards" / row["shard"]).open("r+b") as shard:
        shard.seek(row["offset"] + row["length"] // 2)
        byte = shard.read(1)
        shard.seek(-1, 1)
        shard.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=f"image {row['key']} is damaged"):
        dataset.check_images()
