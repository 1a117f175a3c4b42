"""The folder that a clustering leaves, after kills and by several processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from components.curation import clustering
from components.curation.clustering import cluster, cluster_here, load, main
from components.curation.compute import Compute
from components.curation.config import ClusterConfig, Level
from components.curation.hierarchy import Hierarchy, hierarchical_kmeans
from components.curation.rows import Rows
from foundry.errors import UserError
from tests.components.curation.mixtures import mixture

LEVELS = (Level(clusters=40, splits=5), Level(clusters=12, resampled=2, passes=2), Level(clusters=3))
CONFIG = ClusterConfig(levels=LEVELS, iterations=8)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return mixture(700, 60, 12, spread=0.5)[0]


@pytest.fixture(scope="module")
def expected(points: np.ndarray) -> Hierarchy:
    return hierarchical_kmeans(points, LEVELS, seed=3, iterations=8, spherical=True)


def assert_equal(found: Hierarchy, expected: Hierarchy) -> None:
    for ours, theirs in zip(found.parents + found.centroids, expected.parents + expected.centroids, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_folder_holds_every_level(tmp_path: Path, points: np.ndarray, expected: Hierarchy) -> None:
    assert_equal(cluster_here(points, CONFIG, 3, tmp_path), expected)
    for level, (parents, centroids) in enumerate(zip(expected.parents, expected.centroids, strict=True), start=1):
        np.testing.assert_array_equal(np.load(tmp_path / f"level-{level}" / "assignment.npy"), parents)
        np.testing.assert_array_equal(np.load(tmp_path / f"level-{level}" / "centroids.npy"), centroids)
    told = json.loads((tmp_path / "clusters.json").read_text())
    assert told["clusters"] == [40, 12, 3] and told["points"]["rows"] == 700
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "clusters.json",
        "level-1",
        "level-2",
        "level-3",
        "request.json",
    ]


@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_a_killed_clustering_goes_on_to_an_equal_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: np.ndarray, expected: Hierarchy, interval: float
) -> None:
    """Killed before each thing that it writes, and once more right after each start."""
    monkeypatch.setattr(clustering, "SAVE_SECONDS", interval)
    allowed, kills = 0, 0

    def counting(name: str) -> None:
        original = getattr(clustering, name)

        def writing(*arguments: object) -> None:
            nonlocal allowed
            if not allowed:
                raise KeyboardInterrupt
            allowed -= 1
            original(*arguments)

        monkeypatch.setattr(clustering, name, writing)

    counting("_save_unfinished")
    counting("_save_level")
    while True:
        allowed = 1
        try:
            found = cluster(Rows(points), CONFIG, 3, tmp_path, Compute(threads=1))
        except KeyboardInterrupt:
            kills += 1
            assert not (tmp_path / "clusters.json").exists()
        else:
            break
    assert kills >= (10 if not interval else 5)
    assert_equal(found, expected)
    assert_equal(load(tmp_path).whole, expected)


def test_two_processes_that_torchrun_starts_give_the_same(
    tmp_path: Path, points: np.ndarray, expected: Hierarchy
) -> None:
    found = cluster_here(points, CONFIG.model_copy(update={"processes": 2}), 3, tmp_path)
    assert_equal(found, expected)
    assert len(list(tmp_path.glob("logs/*/ranks/*/attempt_0/*"))) == 2


def run(tmp_path: Path, points: np.ndarray, *more: str) -> int:
    np.save(tmp_path / "points.npy", points)
    settings = ["--set", "levels=[8, {clusters: 3, resampled: 1}]", "--set", "iterations=5"]
    return main(["--points", str(tmp_path / "points.npy"), "--output", str(tmp_path / "out"), *settings, *more])


def test_the_command_clusters_chosen_rows_of_a_file(tmp_path: Path, points: np.ndarray) -> None:
    rows = np.arange(0, 700, 3)
    np.save(tmp_path / "rows.npy", rows)
    assert run(tmp_path, points, "--rows", str(tmp_path / "rows.npy"), "--seed", "4") == 0
    levels = [Level(clusters=8), Level(clusters=3, resampled=1)]
    expected = hierarchical_kmeans(points[rows], levels, seed=4, iterations=5, spherical=True)
    assert_equal(load(tmp_path / "out").whole, expected)
    with pytest.raises(UserError, match="begun with other points"):
        run(tmp_path, points, "--seed", "4")


def test_what_cannot_be_clustered_is_told_in_one_line(tmp_path: Path, points: np.ndarray) -> None:
    with pytest.raises(UserError, match="length 1, one has 2"):
        run(tmp_path, 2 * points)
    assert run(tmp_path, 2 * points, "--set", "spherical=false") == 0
    damaged = points.copy()
    damaged[333, 4] = np.nan
    with pytest.raises(UserError, match="not finite"):
        run(tmp_path, damaged, "--output", str(tmp_path / "other"), "--set", "spherical=false")
    with pytest.raises(UserError, match="floating-point"):
        run(tmp_path, np.ones((5, 2), np.int32))
    np.save(tmp_path / "rows.npy", np.array([0, 700]))
    with pytest.raises(UserError, match="0 to 699"):
        run(tmp_path, points, "--rows", str(tmp_path / "rows.npy"))
    (tmp_path / "points.npy").write_text("no")
    with pytest.raises(UserError, match="not a .npy"):
        main(["--points", str(tmp_path / "points.npy"), "--output", str(tmp_path / "out")])
