from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.selection import part_names, select
from components.curation.shards import key_of
from components.curation.step import run
from foundry.errors import UserError
from tests.components.curation.pictures import crops, encode, write_pool


def config(**values: Any) -> CurationConfig:
    return CurationConfig.model_validate({"decode": {"workers": 1}, **values})


def test_rows_of_equal_bytes_are_one_image_of_all_their_parts() -> None:
    members = {"balanced": np.array([0, 2]), "retrieved:s": np.array([2, 3]), "raw:r": np.array([5, 6, 7])}
    chosen = select(members, ["a", "b", "c", "d", "e", "c", "f", "f"])
    assert chosen.rows == [0, 2, 3, 6]
    assert chosen.parts == [["balanced"], ["balanced", "retrieved:s", "raw:r"], ["retrieved:s"], ["raw:r"]]
    assert chosen.again == {5: 2, 7: 6}
    places = {name: found.tolist() for name, found in chosen.members(members).items()}
    assert places == {"balanced": [0, 1], "retrieved:s": [1, 2], "raw:r": [1, 3]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"balance": {"enabled": False}}, "without a balanced part"),
        ({"mix": {"weights": {"raw:y": 1}}}, r"no part 'raw:y'; there are: balanced, retrieved:s, raw:x"),
        ({"retrieval_of": {"t": {}}}, "no seed set 't'; there are: s"),
    ],
)
def test_settings_that_name_nothing_are_errors(values: dict[str, Any], message: str) -> None:
    inputs = {} if "balance" in values else {"seeds.s": "/s", "raw.x": "/x"}
    with pytest.raises(UserError, match=message):
        part_names(config(**values), inputs)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, a labelled set whose train images are seeds and whose test image measures, and a dataset as it is."""
    folder = tmp_path_factory.mktemp("inputs")
    pool = write_pool(folder / "pool", 36)
    (folder / "labelled").mkdir()
    for name, source in {"train": "1/001.png", "test": "2/002.png"}.items():
        Image.open(folder / "pool" / source).resize((44, 44)).save(folder / "labelled" / f"{name}.png")
    (folder / "labelled" / "labels.csv").write_text("filename,label,split\ntrain.png,x,train\ntest.png,x,test\n")
    (folder / "clean").mkdir()
    files = {f"{number}.png": encode(piece) for number, piece in enumerate(crops(42, 48)[36:])}
    files |= {"twin.png": files["0.png"], "known.png": pool["0/003.png"], "broken.png": b"no image"}
    files["leak.png"] = encode(np.asarray(Image.open(folder / "labelled" / "test.png")))
    for name, data in files.items():
        (folder / "clean" / name).write_bytes(data)
    return folder


def curate(folders: Path, output: Path, **values: Any) -> tuple[dict[str, Any], CuratedDataset]:
    output.mkdir()
    inputs = {"pool": str(folders / "pool"), "evaluation": str(folders / "labelled")}
    inputs |= {"seeds.few": str(folders / "labelled"), "raw.clean": str(folders / "clean")}
    metrics = run(config(**values), inputs, output)
    return metrics, CuratedDataset.open(output)


def test_a_dataset_of_three_parts(folders: Path, tmp_path: Path) -> None:
    mix = {"weights": {"balanced": 2, "retrieved:few": 1}, "homogeneous": {"raw:clean": 0.1}}
    values = {"balance": {"size": 12}, "retrieval": {"neighbours": 5}, "mix": mix}
    metrics, dataset = curate(folders, tmp_path / "out", **values)
    dataset.check_images()
    rows = {row["source"]: row for row in dataset.samples.to_pylist()}
    counts = Counter(part for row in rows.values() for part in row["parts"])
    assert counts == metrics["parts"] == {"balanced": 12, "retrieved:few": 5, "raw:clean": 7}
    assert "1/001.png" in {name for name, row in rows.items() if "retrieved:few" in row["parts"]}, (
        "the seed's own source"
    )
    raw = {name for name, row in rows.items() if row["parts"] == ["raw:clean"]}
    known = "0/003.png" if "0/003.png" in rows else "raw:clean/known.png"
    assert raw | {known} == {f"raw:clean/{number}.png" for number in range(6)} | {known}
    assert "raw:clean" in rows[known]["parts"]
    assert {rows[name]["kept_because"] for name in raw - {known}} == {"taken as it is"}
    assert {rows[name]["cluster"] for name in raw - {known}} == {""}

    rejected = {row["path"]: row for row in dataset.rejected.to_pylist()}
    assert rejected["raw:clean/broken.png"]["reason"] == "not-an-image"
    assert rejected["raw:clean/leak.png"]["reason"] == "evaluation-copy"
    twin = rejected["raw:clean/twin.png"]
    assert twin["reason"] == "exact-duplicate" and twin["of"] == key_of(rows["raw:clean/0.png"]["sha256"])
    assert len(rows) + len(rejected) == metrics["files"] == 36 + 9 + 10
    document = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert set(document["digests"]) == {"pool", "config", "content", "seeds.few", "raw.clean"}
    assert document["mix"] == mix and document["curation"]["embedding"]["kind"] == "descriptor"

    _, again = curate(folders, tmp_path / "again", **values)
    assert again.description["digests"] == dataset.description["digests"]
    _, other = curate(folders, tmp_path / "other", **{**values, "mix": {}})
    assert other.samples.equals(dataset.samples)
    assert other.description["digests"]["content"] != dataset.description["digests"]["content"]


def test_a_dataset_without_a_balanced_part(folders: Path, tmp_path: Path) -> None:
    few = {"mode": "cluster", "clusters": 4, "min_hits": 1, "images": 6}
    metrics, dataset = curate(folders, tmp_path / "out", balance={"enabled": False}, retrieval_of={"few": few})
    assert set(metrics["parts"]) == {"retrieved:few", "raw:clean"} and metrics["parts"]["retrieved:few"] == 6
    assert set(dataset.samples["weight"].to_pylist()) == {1.0}
    nothing = {**few, "min_hits": 9}
    metrics, _ = curate(folders, tmp_path / "none", retrieval_of={"few": nothing})
    assert metrics["parts"]["retrieved:few"] == 0
    with pytest.raises(UserError, match="the mix names a part 'retrieved:few'"):
        curate(folders, tmp_path / "x", retrieval_of={"few": nothing}, mix={"weights": {"retrieved:few": 1}})
