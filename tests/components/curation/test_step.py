from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.pool import open_pool
from components.curation.step import STEP, run
from foundry.errors import UserError
from foundry.images import REASONS
from foundry.settings import load_settings
from tests.components.curation.pictures import crops, encode, write_pool

REPOSITORY = Path(__file__).parents[3]
OWN_REASONS = {
    "unreadable",
    "timeout",
    "crashed",
    "too-small",
    "too-elongated",
    "blank",
    "exact-duplicate",
    "same-pixels",
    "near-duplicate",
    "evaluation-copy",
    "deleted",
    "balance",
}


def config(**values: Any) -> CurationConfig:
    return CurationConfig.model_validate({"decode": {"workers": 1}, **values})


def curate(
    pool: Path | str, output: Path, evaluation: Path | None = None, **values: Any
) -> tuple[dict[str, Any], CuratedDataset]:
    output.mkdir(parents=True, exist_ok=True)
    inputs = {"pool": str(pool)} | ({"evaluation": str(evaluation)} if evaluation else {})
    metrics = run(config(**values), inputs, output)
    return metrics, CuratedDataset.open(output)


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_all_accounted_for(dataset: CuratedDataset, pool: Path | str) -> None:
    """Each file of the pool, counted as often as it occurs, is a sample or rejected; reasons are known ones."""
    accounted = Counter(dataset.samples["source"].to_pylist()) + Counter(dataset.rejected["path"].to_pylist())
    assert accounted == Counter(file.path for file in open_pool(str(pool)).files())
    assert set(dataset.rejected["reason"].to_pylist()) <= OWN_REASONS | set(REASONS)
    counts = dataset.description["counts"]
    assert counts["files"] == accounted.total()
    assert counts["reasons"] == Counter(dataset.rejected["reason"].to_pylist())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 30)
    return folder


def test_a_messy_pool_becomes_a_dataset(pool: Path, tmp_path: Path) -> None:
    metrics, dataset = curate(pool, tmp_path)
    assert_all_accounted_for(dataset, pool)
    dataset.check_images()
    reasons = {row["path"]: row["reason"] for row in dataset.rejected.to_pylist()}
    assert (
        reasons.items()
        >= {
            "broken/empty.jpg": "empty",
            "broken/page.jpg": "not-an-image",
            "broken/notes.txt": "not-an-image",
            "broken/short.png": "truncated",
            "plain/white.png": "blank",
            "plain/tiny.png": "too-small",
            "plain/strip.png": "too-elongated",
            "again/copy.png": "exact-duplicate",
            "again/named.jpg": "exact-duplicate",
        }.items()
    )
    assert metrics["samples"] == round(0.9 * metrics["unique"]) == len(dataset.samples)
    assert metrics["digest"] == dataset.description["digests"]["content"]
    assert not (tmp_path / "work").exists()
    shards = set(dataset.samples["shard"].to_pylist())
    tables = {"dataset.json", "samples.parquet", "rejected.parquet", "report.html"}
    expected = {*tables, *(f"shards/{name}" for name in shards)}
    expected |= {f"index/{name}" for name in dataset.description["index"]["files"]}
    assert set(files_of(tmp_path)) == expected


def test_duplicates_name_what_they_are_copies_of(pool: Path, tmp_path: Path) -> None:
    _, dataset = curate(pool, tmp_path, balance={"fraction": 1})
    (kept,) = [row for row in dataset.samples.to_pylist() if row["kept_because"] != "unique"]
    assert kept["kept_because"] == "best of 3 copies by name"
    copies = [row for row in dataset.rejected.to_pylist() if row["reason"] == "exact-duplicate"]
    assert len(copies) == 2 and {row["of"] for row in copies} == {kept["key"]}
    assert all(row["sha256"] == kept["sha256"] and kept["source"] in row["detail"] for row in copies)


def test_copies_of_an_evaluation_set_are_left_out(pool: Path, tmp_path: Path) -> None:
    held_out, names = tmp_path / "evaluation", {"test": "1/001.png", "train": "2/002.png"}
    held_out.mkdir()
    rows = "".join(f"{split}.png,thing,{split}\n" for split in names)
    (held_out / "labels.csv").write_text(f"filename,label,split\n{rows}")
    for split, name in names.items():
        Image.open(pool / name).save(held_out / f"{split}.png", compress_level=0)

    def copies(**settings: str) -> dict[str, dict[str, str]]:
        output = tmp_path / "-".join(["out", *settings.values()])
        _, dataset = curate(pool, output, held_out, balance={"fraction": 1}, duplicates=settings)
        assert_all_accounted_for(dataset, pool)
        return {row["path"]: row for row in dataset.rejected.to_pylist() if row["reason"] == "evaluation-copy"}

    (row,) = copies().values()
    assert row["path"] == names["test"] and row["detail"] == "copy of test.png of the evaluation set"
    assert row["of"] == hashlib.sha256((held_out / "test.png").read_bytes()).hexdigest()[:24]
    assert set(copies(held_out="all")) == set(names.values())
    with pytest.raises(UserError, match="all of its .* are copies of"):  # a set without tables is held out whole
        curate(pool, tmp_path / "none", pool)


def test_the_dataset_is_the_same_for_any_number_of_workers_and_any_packing(pool: Path, tmp_path: Path) -> None:
    made = {}
    for workers in (1, 2, 4):
        curate(pool, tmp_path / str(workers), decode={"workers": workers})
        made[workers] = files_of(tmp_path / str(workers))
    assert made[1] == made[2] == made[4]
    curate(pool, tmp_path / "shared", clusters={"processes": 2})
    assert files_of(tmp_path / "shared") == made[1]
    archive = tmp_path / "pool.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(pool.rglob("*"), reverse=True):
            if path.is_file():
                tar.add(path, path.relative_to(pool).as_posix())
    metrics, _ = curate(archive, tmp_path / "packed")
    first = json.loads((tmp_path / "1" / "dataset.json").read_text())
    assert metrics["files"] == first["counts"]["files"]
    again, _ = curate(archive, tmp_path / "packed again")
    assert again["digest"] == metrics["digest"]


def test_files_of_one_path_are_each_accounted_for(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pool.tar", "w") as tar:
        for data in [*(encode(piece) for piece in crops(5, 40)), b"no image", b""]:
            entry = tarfile.TarInfo("same.png")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    _, dataset = curate(tmp_path / "pool.tar", tmp_path / "out", balance={"fraction": 1})
    assert_all_accounted_for(dataset, tmp_path / "pool.tar")
    assert len(dataset.samples) == 5


def test_settings_reach_what_they_name(pool: Path, tmp_path: Path) -> None:
    few, dataset = curate(pool, tmp_path / "few", balance={"size": 7}, clusters={"levels": [5]})
    assert few["samples"] == 7
    assert few["clusters"] == [3], "30 images make three clusters of at least eight"
    assert {len(path.split("/")) for path in dataset.samples["cluster"].to_pylist()} == {1}
    many, dataset = curate(pool, tmp_path / "many", balance={"fraction": 1.5, "copies": 2})
    weights = dataset.samples["weight"].to_pylist()
    assert set(weights) <= {1.0, 2.0} and sum(weights) == round(1.5 * many["unique"])
    kept, _ = curate(pool, tmp_path / "kept", filters={"min_contrast": 0, "min_side": 8, "max_aspect": 12})
    assert not {"blank", "too-small", "too-elongated"} & set(kept["reasons"])
    seeds = [curate(pool, tmp_path / f"seed-{seed}", seed=seed)[0]["digest"] for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_one_image_is_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "only.png").write_bytes(encode(crops(1)[0]))
    metrics, dataset = curate(tmp_path / "pool", tmp_path / "out")
    assert (metrics["samples"], metrics["rejected"]) == (1, 0)
    dataset.check_images()


def test_pools_that_cannot_be_curated_are_errors_of_people(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for url, message in {
        tmp_path / "absent": "no such folder or file",
        tmp_path / "empty": "the folder is empty",
        pool / "broken": r"none of its 4 files is a usable image \(2 not-an-image, 1 empty, 1 truncated\)",
        pool / "plain": r"none of its 3 files is a usable image \(1 blank, 1 too-elongated, 1 too-small\)",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            curate(url, tmp_path / "out")
        assert str(url) in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filter": {}}, "unknown setting 'filter'; did you mean 'filters'"),
        ({"balance": {"fraction": 0}}, "balance.fraction"),
        ({"clusters": {"levels": [4, 9]}}, "finest"),
        ({"decode": {"max_pixels": 10**12}}, "decode.max_pixels"),
    ],
)
def test_wrong_settings_are_errors_of_people(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings(CurationConfig, values, "params.yaml")


def test_a_killed_run_goes_on_and_leaves_no_process(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 60)
    whole, _ = curate(tmp_path / "pool", tmp_path / "whole")
    program = f"""
import sys
from pathlib import Path
from components.curation import decoding, scan
from components.curation.config import CurationConfig
from components.curation.step import run
scan.PART_FILES, decoding.BATCH_FILES = 8, 1
run(CurationConfig.model_validate({{"decode": {{"workers": 2}}}}), {{"pool": {str(tmp_path / "pool")!r}}},
    Path({str(tmp_path / "killed")!r}))
"""
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed" / "work" / "scan"
    while not (parts / "part-000001.parquet").exists():
        assert process.poll() is None, "it ended before it could be killed"
        threading.Event().wait(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert not (tmp_path / "killed" / "dataset.json").exists()
    resumed = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "decode: " in resumed.stderr
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


KILLED_AT = {
    "evaluation": "components.curation.scan._write",
    "gathering": "components.curation.scan.gather",
    "duplicates": "components.curation.duplicates.near_pairs",
    "clusters": "components.curation.clustering.cluster_here",
    "drawing": "components.curation.sampling.balanced_sample",
    "shards": "components.curation.shards._write_at",
    "tables": "components.curation.dataset.write_table",
    "description": "components.curation.dataset.write_description",
}
"""Phases of the step, and a function that is called in each."""


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    for number, piece in enumerate(crops(3, 80, seed=3)):
        (folder / f"{number}.png").write_bytes(encode(piece))
    return folder


@pytest.mark.parametrize("phase", KILLED_AT)
def test_a_run_killed_in_any_phase_ends_with_the_same_dataset(
    phase: str, pool: Path, held_out: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL at a call of a function of the phase, chosen at random by the name of the phase, in the middle of it."""
    calls = {"evaluation": 6, "gathering": 2, "shards": 20, "tables": 2}.get(phase, 1)
    at = random.Random(phase).randint(1, calls)
    program = f"""
import importlib, os, signal, sys
from pathlib import Path
from components.curation import scan
from components.curation.config import CurationConfig
from components.curation.step import run
scan.PART_FILES = 8
module, name = {KILLED_AT[phase]!r}.rsplit(".", 1)
module = importlib.import_module(module)
called, calls = getattr(module, name), 0
def dying(*arguments, **more):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return called(*arguments, **more)
if sys.argv[1:]:
    setattr(module, name, dying)
run(CurationConfig.model_validate({{"decode": {{"workers": 4}}}}),
    {{"pool": {str(pool)!r}, "evaluation": {str(held_out)!r}}}, Path({str(tmp_path)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program, "die"], cwd=REPOSITORY, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "dataset.json").exists()
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=True)
    assert files_of(tmp_path) == whole


@pytest.fixture(scope="module")
def whole(pool: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the dataset that one worker makes undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    curate(pool, folder, held_out)
    return files_of(folder)


def test_the_step_says_what_it_is() -> None:
    assert STEP.name == "curation" and STEP.config is CurationConfig and STEP.pure
    assert [(spec.name, spec.required) for spec in STEP.inputs] == [
        ("pool", True),
        *((name, False) for name in ("evaluation", "backbone", "embeddings", "seeds", "raw", "previous")),
    ]


def test_the_command_line_and_the_step_import_nothing_heavy() -> None:
    program = (
        "import sys, components.curation.step, components.curation.config;"
        "heavy = {'torch', 'mlflow', 'kfp', 'pandas', 'pyarrow', 'scipy', 'cv2', 'numpy', 'PIL', 'sklearn'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_web_pool_is_accounted_for(data_folder: Path, tmp_path: Path) -> None:
    """Bombs, hangs, truncated and mislabelled files of a real pool, unpacked: 2,385 files."""
    with tarfile.open(data_folder / "webpool" / "webpool.tar.gz") as archive:
        archive.extractall(tmp_path / "pool", filter="data")
    held_out = data_folder / "caltech20"
    metrics, dataset = curate(
        tmp_path / "pool", tmp_path / "out", held_out, decode={"workers": 2}, duplicates={"held_out": "all"}
    )
    assert metrics["files"] == 2385
    assert_all_accounted_for(dataset, tmp_path / "pool")
    dataset.check_images()
    import csv

    with (data_folder / "webpool" / "truth.csv").open() as file:
        truth = {row["filename"]: row for row in csv.DictReader(file)}
    undecoded = {
        row["path"] for row in dataset.rejected.to_pylist() if row["reason"] in {*REASONS, "timeout", "crashed"}
    }
    assert undecoded == {name for name, row in truth.items() if row["decode"] != "ok"}
    of = {row["path"]: row["of"] for row in dataset.rejected.to_pylist()}
    key = {row["source"]: row["key"] for row in dataset.samples.to_pylist()}
    key |= {row["path"]: row["sha256"][:24] for row in dataset.rejected.to_pylist() if not row["of"]}
    usable = {name for name in truth if name not in undecoded}
    usable -= {
        row["path"] for row in dataset.rejected.to_pylist() if row["reason"] in ("blank", "too-small", "too-elongated")
    }
    same = [
        (of.get(name) or key[name]) == (of.get(row["near_dup_of"]) or key[row["near_dup_of"]])
        for name, row in truth.items()
        if row["near_dup_of"] in usable and name in usable
    ]
    assert sum(same) / len(same) > 0.95
    leaks = {name for name, row in truth.items() if row["eval_leak_of"]}
    found = {row["path"] for row in dataset.rejected.to_pylist() if row["reason"] == "evaluation-copy"}
    assert len(leaks) == 27 and len(leaks & found) >= 26, sorted(leaks - found)
