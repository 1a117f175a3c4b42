"""Increments and deletions of datasets that were curated by a network, and of those with further parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.common import launcher
from components.curation import deletion
from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.deletion import DeletionConfig
from components.curation.embeddings import Embedder
from components.curation.step import run
from foundry.errors import UserError
from foundry.images import Preprocessing
from tests.components.curation.pictures import crops, encode, write_pool
from tests.training.small_runs import small_recipe

SETTINGS: dict[str, Any] = {"decode": {"workers": 1}, "balance": {"fraction": 0.8}, "embedding": {"processes": 1}}


def curate(output: Path, inputs: dict[str, str], **values: Any) -> CuratedDataset:
    output.mkdir(exist_ok=True)
    run(CurationConfig.model_validate({**SETTINGS, **values}), inputs, output)
    found = CuratedDataset.open(output)
    found.check_images()
    return found


def delete(dataset: Path, output: Path, *keys: str) -> CuratedDataset:
    output.mkdir(exist_ok=True)
    deletion.run(DeletionConfig(keys=keys, reason="withdrawn"), {"dataset": str(dataset)}, output)
    found = CuratedDataset.open(output)
    found.check_images()
    return found


def save_network(folder: Path, seed: int) -> str:
    from training.models.build import build_backbone
    from training.models.interchange import save_export

    model = build_backbone({"arch": "vit", "dim": 24, "depth": 1, "heads": 2, "patch_size": 8}, seed=seed)
    save_export(model.eval(), folder, Preprocessing(resize=32, crop=32))
    return str(folder)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_pool(tmp_path / "pool", 20)
    return tmp_path / "pool"


def add(pool: Path) -> None:
    for number, piece in enumerate(crops(24, 48)[20:]):
        (pool / f"{number}.png").write_bytes(encode(piece))


def cluster_vectors(folder: Path) -> dict[str, np.ndarray]:
    """The vector of each picture by its path."""
    import pyarrow.parquet as parquet

    rows = parquet.read_table(folder / "index" / "images.parquet").to_pylist()
    names = [row["path"] for row in rows if row["cluster"]]
    return dict(zip(names, np.load(folder / "index" / "vectors.npy"), strict=True))


@pytest.mark.usefixtures("fresh_home")
def test_new_images_are_embedded_by_the_network_of_before(pool: Path, tmp_path: Path) -> None:
    network, other = (save_network(tmp_path / f"network-{seed}", seed) for seed in (1, 2))
    inputs = {"pool": str(pool), "backbone": network}
    before = curate(tmp_path / "before", inputs)
    add(pool)
    inputs["previous"] = str(tmp_path / "before")
    with pytest.raises(UserError, match="was curated by the backbone .*, here it is the backbone .*curation.anew=true"):
        curate(tmp_path / "other", {**inputs, "backbone": other})
    with pytest.raises(UserError, match="was curated by the backbone .*, here it is the descriptor"):
        curate(tmp_path / "none", {name: url for name, url in inputs.items() if name != "backbone"})
    curate(tmp_path / "plain", {"pool": str(pool)})
    with pytest.raises(UserError, match="was curated by the descriptor.*, here it is the backbone"):
        curate(tmp_path / "out", {**inputs, "previous": str(tmp_path / "plain")})

    moved = Path(shutil.copytree(network, tmp_path / "moved"))
    found = curate(tmp_path / "grown", {**inputs, "backbone": str(moved)})
    assert found.description["curation"]["embedding"] == before.description["curation"]["embedding"]
    was, now = cluster_vectors(tmp_path / "before"), cluster_vectors(tmp_path / "grown")
    new = [f"{number}.png" for number in range(4)]
    assert set(now) == {*was, *new}
    assert all((was[path] == now[path]).all() for path in was)
    config = CurationConfig.model_validate(SETTINGS)
    expected = Embedder(Path(network), "cpu", config).vectors([(pool / path).read_bytes() for path in new])
    np.testing.assert_allclose(np.stack([now[path] for path in new]), expected, atol=1e-3)

    less = delete(tmp_path / "grown", tmp_path / "less", found.samples["key"].to_pylist()[0])
    assert less.description["counts"]["parts"] == {"balanced": len(found.samples) - 1}
    again = curate(tmp_path / "again", {**inputs, "previous": str(tmp_path / "less")})
    assert again.samples["key"].to_pylist() == less.samples["key"].to_pylist()


@pytest.mark.usefixtures("fresh_home")
def test_only_what_is_new_is_embedded(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.curation import embeddings

    inputs = {"pool": str(pool), "backbone": save_network(tmp_path / "network", 1)}
    curate(tmp_path / "before", inputs)
    add(pool)
    asked = []
    real = embeddings.embed_pool

    def watched(config: Any, source: Any, network: Path, files: Any, work: Path) -> Any:
        asked.append(int(files.decoded.sum()))
        return real(config, source, network, files, work)

    monkeypatch.setattr(embeddings, "embed_pool", watched)
    curate(tmp_path / "grown", {**inputs, "previous": str(tmp_path / "before")})
    curate(tmp_path / "same", {**inputs, "previous": str(tmp_path / "grown")})
    assert asked == [4]


@pytest.mark.usefixtures("fresh_home")
def test_a_network_trained_on_the_pool_stays_with_it(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {key: value for key, value in small_recipe().items() if key not in ("name", "stage")}
    overrides = {**small, "steps": 2, "workers": 0, "model": {**small["model"], "patch_size": 8}}
    settings = {"embedding": {"bootstrap": {"enabled": True, "overrides": overrides}, "processes": 1}}
    inputs = {"pool": str(pool)}
    before = curate(tmp_path / "before", inputs, **settings)
    monkeypatch.setattr(launcher, "launch_training", lambda *_, **__: pytest.fail("it was trained already"))
    less = delete(tmp_path / "before", tmp_path / "less", before.samples["key"].to_pylist()[0])
    add(pool)
    inputs["previous"] = str(less.folder)
    found = curate(tmp_path / "grown", inputs, **settings)
    assert found.description["curation"]["embedding"] == before.description["curation"]["embedding"]
    assert found.description["counts"]["new_samples"] > 0
    latest = "bootstrap/export/step-000000002/model.safetensors"
    assert (tmp_path / "grown" / latest).read_bytes() == (tmp_path / "before" / latest).read_bytes()
    inputs = {"pool": str(pool), "previous": str(found.folder), "backbone": str(found.folder / Path(latest).parent)}
    same = curate(tmp_path / "same", inputs, **settings)
    assert same.description["digests"]["content"] == found.description["digests"]["content"]


def test_an_increment_adds_to_the_balanced_part_alone(pool: Path, tmp_path: Path) -> None:
    seeds = {"seeds.few": str(pool / "0")}
    curate(tmp_path / "before", {"pool": str(pool), **seeds})
    inputs = {"pool": str(pool), "previous": str(tmp_path / "before"), **seeds}
    with pytest.raises(UserError, match="has the part retrieved:few; .*curation.anew=true"):
        curate(tmp_path / "out", inputs)
    curate(tmp_path / "plain", {"pool": str(pool)})
    with pytest.raises(UserError, match="--input seeds: an increment adds to the balanced part alone"):
        curate(tmp_path / "out", {**inputs, "previous": str(tmp_path / "plain")})
    anew = curate(tmp_path / "anew", inputs, anew=True)
    before = CuratedDataset.open(tmp_path / "before")
    assert anew.samples.equals(before.samples) and anew.rejected.equals(before.rejected)


def test_a_deletion_keeps_parts_and_mix(pool: Path, tmp_path: Path) -> None:
    inputs = {"pool": str(pool), "seeds.few": str(pool / "0")}
    before = curate(tmp_path / "before", inputs, mix={"weights": {"balanced": 2, "retrieved:few": 1}})
    key = next(row["key"] for row in before.samples.to_pylist() if "retrieved:few" in row["parts"])
    found = delete(tmp_path / "before", tmp_path / "less", key)
    rows = {row["key"]: row["parts"] for row in found.samples.to_pylist()}
    assert rows == {row["key"]: row["parts"] for row in before.samples.to_pylist() if row["key"] != key}
    counts = {name: sum(name in own for own in rows.values()) for name in ("balanced", "retrieved:few")}
    assert found.description["counts"]["parts"] == counts
    assert found.description["mix"] == before.description["mix"]
    untouched = {row["path"]: row for row in before.rejected.to_pylist() if row["reason"] != "balance"}
    assert untouched.items() <= {row["path"]: row for row in found.rejected.to_pylist()}.items()


def test_what_was_deleted_comes_in_no_dataset_that_is_taken_as_it_is(pool: Path, tmp_path: Path) -> None:
    before = curate(tmp_path / "before", {"pool": str(pool)})
    row = before.samples.to_pylist()[0]
    delete(tmp_path / "before", tmp_path / "less", row["key"])
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "bytes.png").write_bytes((pool / row["source"]).read_bytes())
    (tmp_path / "raw" / "good.png").write_bytes(encode(crops(21, 48)[20]))
    inputs = {"pool": str(pool), "previous": str(tmp_path / "less"), "raw.few": str(tmp_path / "raw")}
    found = curate(tmp_path / "anew", inputs, anew=True)
    parts = {row["source"]: row["parts"] for row in found.samples.to_pylist()}
    assert parts["raw:few/good.png"] == ["raw:few"] and row["key"] not in found.samples["key"].to_pylist()
    deleted = {row["path"] for row in found.rejected.to_pylist() if row["reason"] == "deleted"}
    assert deleted == {row["source"], "raw:few/bytes.png"}
    assert json.loads((tmp_path / "anew" / "dataset.json").read_text())["revision"]["how"] == "anew"
    with pytest.raises(UserError, match="has the part raw:few, whose images the index does not know"):
        delete(tmp_path / "anew", tmp_path / "out", found.samples["key"].to_pylist()[0])
