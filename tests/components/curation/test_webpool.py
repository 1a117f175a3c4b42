"""Copies found on a messy pool with known copies, and copies of an evaluation set in it. Minutes: make test-slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.curation import step
from components.curation.config import CurationConfig
from components.curation.pool import open_pool
from components.curation.scan import scan_pool
from tests.components.curation.webpool import REPORTED, TUNED, Truth, checked_pairs

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
    rejections = step._Rejections(scans[0])
    usable = step._filter(scans[0], CONFIG.filters, rejections)
    parts = [(scans[0], usable)]
    parts += [(scan, held_out_rows(scan, each, "all")) for scan, each in zip(scans[1:], evaluation, strict=True)]
    step._deduplicate(parts, pools, CONFIG, rejections)
    rows = rejections.table().to_pylist()
    key = {scans[0].path[row]: scans[0].sha256[row][:24] for row in usable.tolist()}
    keeper = {row["path"]: row["of"] for row in rows if row["of"]}
    names = {digest: number for number, digest in enumerate(sorted(set(key.values())))}
    return {path: names.get(keeper.get(path, key[path]), -1) for path in key}, rows


def test_copies_are_found_and_look_alikes_kept_apart(work: Path, data_folder: Path) -> None:
    folder = data_folder / "webpool"
    truth, (group, _) = Truth(folder), rejected(work, str(folder / "webpool.tar.gz"))
    reported = {}
    for name, half in (("tuned", TUNED), ("reported", REPORTED)):
        scores = truth.score(group, checked_pairs(), half)
        table = {kind: f"{scores.found[kind]}/{known}" for kind, known in sorted(scores.known.items())}
        figures = {"recall": scores.recall(False), "recall_geometric": scores.recall(True)}
        reported[name] = {**figures, "precision": scores.precision, "joined": scores.joined, **table}
        print(json.dumps({name: reported[name]}))
    assert reported["reported"]["recall"] >= 0.97
    assert reported["reported"]["recall_geometric"] >= 0.90
    assert reported["reported"]["precision"] >= 0.97


def test_hidden_copies_of_an_evaluation_set_are_found(work: Path, data_folder: Path) -> None:
    folder = data_folder / "webpool"
    _, rows = rejected(work, str(folder / "webpool.tar.gz"), str(data_folder / "caltech20"))
    hidden = {name for name, row in Truth(folder).rows.items() if row["eval_leak_of"]}
    found = {row["path"] for row in rows if row["reason"] == "evaluation-copy"}
    print(json.dumps({"hidden": len(hidden), "found": len(hidden & found), "others": len(found - hidden)}))
    assert len(hidden) == 27
    assert len(hidden & found) >= 26
