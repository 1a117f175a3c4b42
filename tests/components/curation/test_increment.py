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

import numpy as np
import pytest
from PIL import Image

from components.curation import closeup, increment, previous, shards
from components.curation import dataset as dataset_module
from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.decoding import DecodeWorkers
from components.curation.duplicates import Images, near_pairs
from components.curation.embedding import describe
from components.curation.measurement import measure
from components.curation.step import run
from foundry.errors import UserError
from foundry.images import ImageError, decode_image
from tests.components.curation.pictures import crops, encode, write_pool
from tests.components.curation.test_duplicates import icon
from tests.components.curation.test_step import files_of

REPOSITORY = Path(__file__).parents[3]
SETTINGS: dict[str, Any] = {
    "decode": {"workers": 1},
    "duplicates": {"neighbours": 400},  # all: every pair is a candidate
    "balance": {"fraction": 0.7},
}


def curate(pool: Path, output: Path, inputs: dict[str, Path] | None = None, **values: Any) -> CuratedDataset:
    output.mkdir(parents=True, exist_ok=True)
    config = CurationConfig.model_validate({**SETTINGS, **values})
    given = {name: str(path) for name, path in (inputs or {}).items()}
    metrics = run(config, {"pool": str(pool), **given}, output)
    found = CuratedDataset.open(output)
    found.check_images()
    assert metrics["digest"] == found.description["digests"]["content"]
    return found


def grow(pool: Path) -> None:
    """New pictures; copies of known ones, of a new one, and of a copy; files that are none; some files go."""
    (pool / "new").mkdir()
    pieces = crops(90, 48)
    for number, piece in enumerate(pieces[60:]):
        (pool / "new" / f"{number:02d}.png").write_bytes(encode(piece))
    for name, piece in {"large": pieces[3].repeat(2, 0).repeat(2, 1), "grey": pieces[4], "again": pieces[70]}.items():
        (pool / "new" / f"{name}.jpg").write_bytes(encode(piece, "JPEG", quality=80))
    (pool / "new" / "bytes.png").write_bytes((pool / "0" / "003.png").read_bytes())
    (pool / "new" / "page.html").write_bytes(b"<!doctype html><html></html>")
    (pool / "new" / "tiny.png").write_bytes(encode(pieces[0][:9, :9]))


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


# ---------------------------------------------------------------- the rule of docs/data.md, once more


def by_the_rule(base: CuratedDataset, pool: Path, config: CurationConfig) -> tuple[set[Any], set[Any]]:
    """(rows (source, cluster, weight) of the samples, rows (path, reason, of) of the rejected files)."""
    import hashlib

    was = {row["source"]: row for row in base.samples.to_pylist()}
    was_rejected = {row["path"]: row for row in base.rejected.to_pylist()}
    files = {path.relative_to(pool).as_posix(): path.read_bytes() for path in pool.rglob("*") if path.is_file()}
    order = sorted(files, key=lambda path: path.split("/"))  # that of a folder pool
    key = {path: hashlib.sha256(data).hexdigest()[:24] for path, data in files.items()}

    def is_known(path: str) -> bool:
        row = was.get(path) or was_rejected.get(path)
        return row is not None and (row["sha256"] or "")[:24] == key[path]

    index = base.folder / "index"
    path_of = {row["path"]: row["cluster"] for row in _table(index / "images.parquet") if row["cluster"]}
    pictures: dict[str, str] = {}  # key to path of the known ones, which stay
    for path, row in was.items():
        pictures[row["key"]] = path
    for path, row in was_rejected.items():
        if row["reason"] == "balance" and path in files and is_known(path):
            pictures[key[path]] = path
    rejected: dict[str, tuple[str, str]] = {}
    copies: dict[str, str] = {}
    new = []
    for path in order:
        if not is_known(path):
            new.append(path)
        elif path in was_rejected and was_rejected[path]["reason"] != "balance":
            row = was_rejected[path]
            if row["of"] and row["of"] not in pictures:
                new.append(path)
                continue
            rejected[path] = (row["reason"], row["of"])
            if row["of"]:
                copies[path] = row["of"]

    measured = {}
    stored = {path: (base.image(list(was).index(path)) if path in was else files[path]) for path in pictures.values()}
    for path in [*pictures.values(), *copies, *new]:
        try:
            measured[path] = measure(decode_image(stored.get(path) or files[path]))
        except ImageError as error:
            rejected[path] = (error.reason, "")
    for path in [path for path in new if path in measured]:
        short, long = sorted([measured[path].width, measured[path].height])
        if short < 16 or long > 10 * short or measured[path].contrast < 2:
            reason = "too-small" if short < 16 else "too-elongated" if long > 10 * short else "blank"
            rejected[path] = (reason, "")
    new = [path for path in new if path not in rejected]

    # groups: known copies with their picture; a new image with what has its bytes, its pixels or shows the same
    nodes = [*pictures.values(), *copies, *new]
    place = {path: number for number, path in enumerate(nodes)}
    joined = [(place[path], place[pictures[of]]) for path, of in copies.items()]
    pairs = [(i, j) for j in range(len(nodes)) for i in range(j) if nodes[j] in new]
    size = {path: len(files.get(path) or stored[path]) for path in nodes}
    images = Images(
        path=nodes,
        sha256=[""] * len(nodes),
        size=np.array([size[path] for path in nodes]),
        evaluation=np.zeros(len(nodes), bool),
        **{
            name: np.array([getattr(measured[path], name) for path in nodes])
            for name in ("pixels_sha256", "width", "height", "hash", "grey", "colour")
        },
    )
    pixels = [decode_image(stored.get(path) or files[path]) for path in nodes]
    near = near_pairs(images, config.duplicates, lambda chosen: (closeup.take(pixels[place]) for place in chosen))
    joined += sorted({*pairs} & {(min(pair), max(pair)) for pair in near.tolist()})
    joined += [(i, j) for i, j in pairs if measured[nodes[i]].pixels_sha256 == measured[nodes[j]].pixels_sha256]
    group = list(range(len(nodes)))
    for _ in nodes:
        for i, j in joined:
            group[i] = group[j] = min(group[i], group[j])
    known = len(pictures)

    def merit(path: str) -> tuple[Any, ...]:
        found = measured[path]
        levels = found.colour.astype(float) * 2
        return (
            place[path] >= known,
            -found.width * found.height,
            np.sqrt((levels**2).mean()) < 4,
            -size[path],
            path.encode(),
        )

    drawable = []
    for path in new:
        members = [other for other in nodes if group[place[other]] == group[place[path]]]
        best = min(members, key=merit)
        if best == path:
            drawable.append(path)
            continue
        best_key = next((k for k, p in pictures.items() if p == best), None) or key[best]
        same_pixels = measured[best].pixels_sha256 == measured[path].pixels_sha256
        reason = "exact-duplicate" if best_key == key[path] else "same-pixels" if same_pixels else "near-duplicate"
        rejected[path] = (reason, best_key)

    # clusters of the new pictures
    mean, directions = np.load(index / "mean.npy"), np.load(index / "directions.npy")
    finest, parents = np.load(index / "centroids-1.npy"), np.load(index / "parents-1.npy")
    for path in drawable:
        found = measured[path]
        vector = (describe(found.grey[None], found.colour[None])[0].astype(np.float64) - mean) @ directions
        vector /= np.linalg.norm(vector)
        cluster = int(((finest.astype(np.float64) - vector) ** 2).sum(axis=1).argmin())
        path_of[path] = f"{parents[cluster]}/{cluster}"

    # drawing: samples by key, then the others in the order of the pool
    held = sorted(was, key=lambda path: was[path]["key"])
    others = [path for path in order if path in drawable or (path in pictures.values() and path not in was)]
    rows = held + others
    taken = dict.fromkeys(held, 1)
    target = max(round(config.balance.fraction * len(rows)), len(held))
    clusters = {path: tuple(map(int, path_of[path].split("/"))) for path in rows}
    fill(rows, (), target, clusters, taken, config.seed)
    samples = {(path, path_of[path], 1.0) for path in taken}
    undrawn = {(path, "balance", "") for path in others if path not in taken}
    return samples, undrawn | {(path, *found) for path, found in rejected.items()}


def fill(
    rows: list[str], path: tuple[int, ...], target: int, clusters: dict[str, Any], taken: dict[str, int], seed: int
) -> None:
    """Draw from ``rows``, the members of the cluster ``path``, until ``target`` of them are drawn."""
    generator = np.random.default_rng([seed, len(path), *path])
    leaf = len(path) == 2
    names = sorted({clusters[row][len(path)] for row in rows}) if not leaf else list(range(len(rows)))
    members = [[row for row in rows if clusters[row][len(path)] == name] for name in names] if not leaf else None
    groups = members or [[row] for row in rows]
    share = [sum(row in taken for row in group) for group in groups]
    if sum(map(len, groups)) <= target:
        share = [len(group) for group in groups]
    level = 0
    while sum(share) < target:
        least = [i for i, group in enumerate(groups) if share[i] == level and len(group) > level]
        if sum(share) + len(least) <= target:
            for i in least:
                share[i] += 1
            level += 1
        else:
            for i in generator.choice(least, target - sum(share), replace=False).tolist():
                share[i] += 1
    for name, group, count in zip(names, groups, share, strict=True):
        if leaf:
            taken.update(dict.fromkeys(group[:count], 1))
        elif count:
            fill(group, (*path, name), count, clusters, taken, seed)


def _table(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pylist()


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
    program = f"""
import sys
from pathlib import Path
from components.curation import decoding, scan
from components.curation.config import CurationConfig
from components.curation.step import run
scan.PART_FILES, decoding.BATCH_FILES = 4, 1
inputs = {{"pool": {str(pool)!r}, "previous": {str(base / "dataset")!r}}}
run(CurationConfig.model_validate({SETTINGS!r}), inputs, Path({str(tmp_path / "killed")!r}))
"""
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed/work/scan/part-000001.parquet").exists():
        assert process.poll() is None, "it ended before it could be killed"
        threading.Event().wait(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "dataset.json").exists()
    curate(pool, tmp_path / "killed", {"previous": base / "dataset"})
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


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


def test_a_dataset_elsewhere_is_fetched(base: Path, tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.put(str(base / "dataset") + "/", "/increment-test/dataset/", recursive=True)
    url = "memory://increment-test/dataset"
    assert previous.dataset_digest(url) == previous.dataset_digest(str(base / "dataset"))
    opened = previous.open_previous(url, tmp_path / "fetched")
    assert files_of(opened.dataset.folder) == files_of(base / "dataset")
    with pytest.raises(UserError, match="no such folder"):
        previous.dataset_digest("memory://increment-test/nothing")


def test_a_path_at_a_revision_is_one_of_its_dvc_repository(tmp_path: Path) -> None:
    (tmp_path / "home" / ".dvc").mkdir(parents=True)
    url = str(tmp_path / "home" / "artifacts" / "curation")
    assert previous.resolve(f"{url}@v1.2") == f"dvc://artifacts/curation?repo={tmp_path / 'home'}&rev=v1.2"
    assert previous.resolve(url) == url
    (tmp_path / "a@b").mkdir()
    assert previous.resolve(str(tmp_path / "a@b")) == str(tmp_path / "a@b")
    with pytest.raises(UserError, match="PATH@REVISION"):
        previous.resolve(str(tmp_path / "other" / "curation@v1"))
