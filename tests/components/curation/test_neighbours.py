from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.curation import neighbours as module
from components.curation.compute import Compute
from components.curation.neighbours import Neighbours, neighbours
from tests.components.curation.mixtures import mixture


def by_sorting(points: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The true neighbours of ``rows`` in float64, and their similarities."""
    similarity = points[rows].astype(np.float64) @ points.T.astype(np.float64)
    similarity[np.arange(len(rows)), rows] = -np.inf
    order = np.argsort(-similarity, axis=1)[:, :count]
    return order, np.take_along_axis(similarity, order, axis=1)


def recall(found: Neighbours, points: np.ndarray, rows: np.ndarray) -> float:
    """By similarity, so that of equally near ones any will do."""
    _, similarity = by_sorting(points, rows, found.index.shape[1])
    return float((found.similarity[rows] >= similarity[:, -1:] - 1e-6).mean())


def test_brute_force_equals_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(module, "COLUMNS", 64)
    monkeypatch.setattr(module, "ROWS", 32)
    points, _ = mixture(500, 200, 20, spread=1.5)
    away, expected = NearestNeighbors(n_neighbors=8, metric="cosine").fit(points).kneighbors()
    for threads in (1, 3):
        found = neighbours(points, 8, compute=Compute(threads=threads))
        np.testing.assert_array_equal(found.index, expected)
        np.testing.assert_allclose(found.similarity, 1 - away, atol=1e-6)
        assert found.compared == 1


def test_few_points() -> None:
    points, _ = mixture(3, 3, 4)
    assert neighbours(points[:1], 8).index.shape == (1, 0)
    found = neighbours(points, 8)
    assert found.index.shape == (3, 2)
    np.testing.assert_array_equal(np.sort(found.index, axis=1), [[1, 2], [0, 2], [0, 1]])
    with pytest.raises(ValueError, match="recall"):
        neighbours(points, 1, recall=0)


@pytest.mark.parametrize(("centres", "count"), [(150, 20), (1000, 10)])
def test_lists_find_what_brute_force_finds(monkeypatch: pytest.MonkeyPatch, centres: int, count: int) -> None:
    """Of concepts with more members than neighbours are asked for, and with about as many."""
    monkeypatch.setattr(module, "EXACT", 1000)
    points, _ = mixture(10_000, centres, 24, spread=0.6)
    rows = np.random.default_rng(5).choice(len(points), 1000, replace=False)
    found = neighbours(points, count, seed=1)
    assert found.compared < 0.4
    assert recall(found, points, rows) >= 0.99
    assert (found.index != np.arange(len(points))[:, None]).all()
    assert all(len(set(row)) == count for row in found.index[rows].tolist())
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    similarity = np.einsum("nd,nkd->nk", points[rows], points[found.index[rows]])
    np.testing.assert_allclose(found.similarity[rows], similarity, atol=1e-6)


def test_points_without_structure_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", 1000)
    points = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = neighbours(points, 10)
    assert found.compared == 1
    assert recall(found, points, np.arange(0, 4000, 7)) == 1


def test_only_neighbours_that_are_similar_enough_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", 1000)
    points, _ = mixture(6000, 1500, 32, spread=0.5)
    rows = np.arange(0, 6000, 11)
    order, similarity = by_sorting(points, rows, 12)
    for exact in (1.0, 0.99):
        found = neighbours(points, 12, least=0.6, recall=exact)
        wanted = similarity >= 0.6
        assert 0.05 < wanted.mean() < 0.6
        np.testing.assert_array_equal(found.index >= 0, np.isfinite(found.similarity))
        assert (found.similarity[found.index >= 0] >= 0.6).all()
        hits = [len(set(a[w]) & set(b)) for a, b, w in zip(order, found.index[rows].tolist(), wanted, strict=True)]
        assert sum(hits) >= exact * wanted.sum()
        assert (found.index[rows] >= 0).sum() <= wanted.sum()
    assert found.compared < 0.5, "neighbours that do not count need no lists"


def test_many_copies_of_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", 1000)
    points, _ = mixture(5000, 100, 16, spread=0.4)
    points[1000:3000] = points[0]
    found = neighbours(points, 10)
    np.testing.assert_allclose(found.similarity[1000:3000], 1, atol=1e-6)
    assert recall(found, points, np.arange(3000, 5000, 9)) >= 0.99


def test_memory_bounds_groups_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "EXACT", 1000)
    points, _ = mixture(8000, 150, 16, spread=0.5)
    np.save(tmp_path / "points.npy", points)
    expected = neighbours(points, 12)
    alone = neighbours(points, 12, compute=Compute(threads=1, memory=1 << 20))
    groups: list[int] = []
    begun = module._Group.__init__

    def counting(self: module._Group, ids: np.ndarray, *rest: float) -> None:
        groups.append(len(ids))
        begun(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Group, "__init__", counting)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    found = neighbours(mapped, 12, compute=Compute(threads=3, memory=1 << 20))
    assert max(groups) * (4 * 16 + 64 * 12) < 1 << 20
    np.testing.assert_array_equal(found.index, alone.index)
    np.testing.assert_array_equal(found.similarity, alone.similarity)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-6)  # other shapes of matrix products
