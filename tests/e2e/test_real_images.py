"""The line on real images that nobody cleaned, and with and without labels. Minutes each: make test-slow."""

from __future__ import annotations

import csv
import tarfile
import time
from pathlib import Path

import pytest

from tests.e2e.checkout import ACTING, Checkout, PeakMemory, make_checkout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_every_file_of_a_messy_pool_is_accounted_for(tmp_path: Path, data_folder: Path) -> None:
    import pyarrow.parquet

    pool = tmp_path / "webpool"
    with tarfile.open(data_folder / "webpool" / "webpool.tar.gz") as archive:
        archive.extractall(pool, filter="data")
    with (data_folder / "webpool" / "truth.csv").open(newline="") as file:
        truth = list(csv.DictReader(file))
    checkout = make_checkout(tmp_path / "checkout", {"images": str(pool), "evaluation": "none"})
    start = time.monotonic()
    with PeakMemory() as memory:
        run = checkout.run()
    print(run.printed)

    result = Path(run.step("curation")["path"])
    samples = pyarrow.parquet.read_table(result / "samples.parquet").to_pylist()
    rejected = pyarrow.parquet.read_table(result / "rejected.parquet").to_pylist()
    assert len(samples) + len(rejected) == len(truth) == 2385
    told = [row["source"] for row in samples] + [row["path"] for row in rejected]
    assert len({Path(name).name for name in told}) == len({Path(row["filename"]).name for row in truth})
    assert all(row["reason"] for row in rejected)
    assert run.summary["protocol"] == "label-free"
    assert all("knn_top1" not in row["measures"] for row in run.summary["scores"])
    assert run.made() >= set(ACTING)
    assert memory.peak < 6 << 30
    assert time.monotonic() - start < 3000


def test_labels_of_another_set_measure_a_run_without_repeating_curation(tmp_path: Path, checkout: Checkout) -> None:
    first = checkout.run("--evaluation", "none", "--no-dvc")
    assert first.summary["protocol"] == "label-free"
    assert first.summary["dataset"]["dvc"] is None and "no labels were given" in first.printed
    second = checkout.run("--no-dvc")
    assert second.summary["protocol"] == "classification"
    assert second.step("curation")["reused"]
