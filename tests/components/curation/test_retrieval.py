from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from components.curation import retrieval
from components.curation.config import RetrievalConfig
from components.curation.retrieval import by_cluster, by_sample, nearest, retrieve


def unit_rows(count: int, dimensions: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def greedy(seeds: np.ndarray, pool: np.ndarray, count: int) -> dict[int, int]:
    """{image: seed} by the rule as it is written: all pairs by falling similarity."""
    similarity = seeds.astype(np.float64) @ pool.astype(np.float64).T
    pairs = sorted(np.ndindex(similarity.shape), key=lambda pair: -similarity[pair])
    owner: dict[int, int] = {}
    having: Counter[int] = Counter()
    for seed, image in pairs:
        if image not in owner and having[seed] < count:
            owner[image] = seed
            having[seed] += 1
    return owner


@pytest.mark.parametrize("count", [1, 5, 400])
def test_nearest_is_exact_in_any_blocks_and_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(retrieval, "QUERIES", 7)
    monkeypatch.setattr(retrieval, "IMAGES", 30)
    queries, pool = unit_rows(40, 6, 0), unit_rows(200, 6, 1)
    places, similarities = nearest(queries, pool, count, threads=1)
    expected = queries.astype(np.float64) @ pool.astype(np.float64).T
    np.testing.assert_array_equal(places, np.argsort(-expected, axis=1)[:, :count])
    np.testing.assert_allclose(similarities, np.take_along_axis(expected, places, 1), atol=1e-6)
    again = nearest(queries, pool, count, threads=3)
    assert (places == again[0]).all() and (similarities == again[1]).all()


def test_of_equal_images_the_first_are_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "IMAGES", 4)
    pool = np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 2, 1, 1, 0]]
    assert nearest(pool[1:2], pool, 3)[0].tolist() == [[1, 2, 3]]
    assert nearest(pool[1:2], pool, 6)[0].tolist() == [[1, 2, 3, 5, 6, 0]]


@pytest.mark.parametrize(("seeds", "images", "count"), [(12, 300, 4), (30, 60, 3), (9, 20, 8), (1, 5, 2), (4, 3, 2)])
def test_by_sample_follows_its_rule(seeds: int, images: int, count: int) -> None:
    queries, pool = unit_rows(seeds, 3, 2), unit_rows(images, 3, 3)
    found = by_sample(queries, pool, count, limit=10**6)
    assert dict(zip(found.images.tolist(), found.seeds.tolist(), strict=True)) == greedy(queries, pool, count)
    assert len(found.images) == min(seeds * count, images)
    assert (np.diff(found.images) > 0).all()


def test_seeds_that_collide_get_their_next_nearest() -> None:
    pool = unit_rows(50, 4, 4)
    found = by_sample(np.repeat(pool[:1], 3, axis=0), pool, 2, limit=100)
    assert set(found.images) == set(nearest(pool[:1], pool, 6)[0][0])
    assert Counter(found.seeds.tolist()) == {0: 2, 1: 2, 2: 2}


def test_the_limit_keeps_the_most_similar() -> None:
    queries, pool = unit_rows(10, 3, 5), unit_rows(80, 3, 6)
    whole, few = by_sample(queries, pool, 3, 1000), by_sample(queries, pool, 3, 7)
    likeness = {image: queries[seed] @ pool[image] for image, seed in zip(whole.images, whole.seeds, strict=True)}
    assert set(few.images) == set(sorted(likeness, key=lambda image: -likeness[image])[:7])


def test_by_cluster_keeps_clusters_with_enough_hits_and_caps_them() -> None:
    assignment = np.repeat([0, 1, 2, 3], [5, 40, 10, 7])
    hits = np.repeat([0, 1, 2], [4, 6, 3])
    images, kept = by_cluster(assignment, hits, 4, 12, 1000, np.random.default_rng(0))
    assert kept == 2 and Counter(assignment[images].tolist()) == {0: 5, 1: 12}
    assert len(set(images.tolist())) == len(images) == 17
    assert by_cluster(assignment, hits, 3, 12, 1000, np.random.default_rng(0))[1] == 3
    few, _ = by_cluster(assignment, hits, 4, 12, 6, np.random.default_rng(0))
    assert len(few) == 6 and set(few) <= set(images)
    none, kept = by_cluster(assignment, hits, 7, 12, 6, np.random.default_rng(0))
    assert kept == 0 and not len(none)


def test_cluster_mode_finds_the_blobs_that_seeds_fall_into() -> None:
    centres = unit_rows(6, 16, 7)
    generator = np.random.default_rng(8)
    blob = generator.integers(0, 6, 600)
    pool = centres[blob] + 0.03 * generator.normal(size=(600, 16)).astype(np.float32)
    pool = (pool / np.linalg.norm(pool, axis=1, keepdims=True)).astype(np.float32)
    config = RetrievalConfig(mode="cluster", clusters=6, min_hits=3, images=20)
    queries = np.concatenate([pool[blob == 2][:5], pool[blob == 4][:5], pool[blob == 0][:2]])
    found = retrieve(queries, pool, config, seed=0)
    assert found.clusters == 2 and Counter(blob[found.images].tolist()) == {2: 20, 4: 20}
    assert (retrieve(queries, pool, config, seed=0).images == found.images).all()
    assert (retrieve(queries, pool, config, seed=1).images != found.images).any()
