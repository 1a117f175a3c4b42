"""Copies found on a messy pool with known copies, and copies of an evaluation set in it. Minutes: make test-slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.curation.config import CurationConfig
from components.curation.measured import Measured
from components.curation.pool import open_pool
from components.curation.rejections import Rejections, filter_images
from components.curation.removal import Pictures, deduplicate
from components.curation.scan import scan_pool
from tests.components.curation.webpool import REPORTED, TUNED, Scores, Truth, checked_pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CONFIG = CurationConfig.model_validate({"duplicates": {"held_out": "all"}})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scans are kept from one test to the next."""
    return tmp_path_factory.mktemp("scans")


def rejected(work: Path, url: str, *evaluation: str) -> tuple[dict[str, int], list[dict[str, str]]]:
    """(usable file -> its group, rows of rejected.parquet after duplicates are removed)."""
    from components.curation.held_out import held_out_rows

    pools = [open_pool(each) for each in (url, *evaluation)]
    scans = [scan_pool(pool, pool.digest(), CONFIG.decode, work / str(place)) for place, pool in enumerate(pools)]
    rejections = Rejections(scans[0])
    usable = filter_images(scans[0], CONFIG.filters, rejections)
    rows_of = [usable, *(held_out_rows(scan, each, "all") for scan, each in zip(scans[1:], evaluation, strict=True))]
    parts = [Pictures(*part) for part in zip(scans, rows_of, pools, strict=True)]
    deduplicate(parts, Measured.nothing().scan, CONFIG, rejections, work)
    rows = rejections.table().to_pylist()
    key = {scans[0].path[row]: scans[0].sha256[row][:24] for row in usable.tolist()}
    keeper = {row["path"]: row["of"] for row in rows if row["of"]}
    names = {digest: number for number, digest in enumerate(sorted(set(key.values())))}
    return {path: names.get(keeper.get(path, key[path]), -1) for path in key}, rows


@pytest.fixture(scope="module")
def scores(work: Path, data_folder: Path) -> dict[int, Scores]:
    """Of both halves."""
    folder = data_folder / "webpool"
    truth, (group, _) = Truth(folder), rejected(work, str(folder / "webpool.tar.gz"))
    found = {half: truth.score(group, checked_pairs(), half) for half in (TUNED, REPORTED)}
    for half, each in found.items():
        table = {kind: f"{each.found[kind]}/{known}" for kind, known in sorted(each.known.items())}
        figures = {"recall": each.recall(False), "recall_geometric": each.recall(True), "precision": each.precision}
        figures |= {"joined": each.joined, "wrong": len(each.wrong)}
        print(json.dumps({"half": "tuned" if half == TUNED else "reported", **figures, **table}))
    return found


def test_copies_are_found(scores: dict[int, Scores]) -> None:
    assert scores[REPORTED].recall(False) >= 0.97
    assert scores[REPORTED].recall(True) >= 0.90


def test_look_alikes_are_kept_apart(scores: dict[int, Scores]) -> None:
    assert scores[REPORTED].precision >= 0.97


def test_hidden_copies_of_an_evaluation_set_are_found(work: Path, data_folder: Path) -> None:
    folder = data_folder / "webpool"
    _, rows = rejected(work, str(folder / "webpool.tar.gz"), str(data_folder / "caltech20"))
    hidden = {name for name, row in Truth(folder).rows.items() if row["eval_leak_of"]}
    found = {row["path"] for row in rows if row["reason"] == "evaluation-copy"}
    print(json.dumps({"hidden": len(hidden), "found": len(hidden & found), "others": len(found - hidden)}))
    assert len(hidden) == 27
    assert len(hidden & found) >= 26
