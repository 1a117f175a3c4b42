from __future__ import annotations

import math

import numpy as np
import pytest

from components.curation import neighbours
from components.curation.candidates import (
    candidate_pairs,
    descriptors,
    gradient_histograms,
    palette_descriptor,
    shape_descriptor,
)
from components.curation.measurement import measure
from tests.components.curation.pictures import crops


def measured(pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = [measure(piece) for piece in pieces]
    hashes = np.array([item.hash for item in found], dtype=np.uint64)
    return np.stack([item.grey for item in found]), np.stack([item.colour for item in found]), hashes


def pairs_of(pieces: list[np.ndarray], neighbours: int, fresh: np.ndarray | None = None) -> np.ndarray:
    grey, colour, hashes = measured(pieces)
    return candidate_pairs(descriptors(grey, colour), hashes, neighbours, fresh=fresh)


def test_gradient_histograms_pixel_by_pixel() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (1, 64, 64)).astype(np.uint8)
    image = grey[0].astype(np.float64) / 255
    expected = np.zeros((2, 2, 8))
    for y in range(64):
        for x in range(64):
            dy = image[y + 1, x] - image[y - 1, x] if 0 < y < 63 else 0.0
            dx = image[y, x + 1] - image[y, x - 1] if 0 < x < 63 else 0.0
            place = math.atan2(dy, dx) / math.pi % 1 * 8
            low = int(place)
            expected[y // 32, x // 32, low % 8] += math.hypot(dx, dy) * (1 - (place - low))
            expected[y // 32, x // 32, (low + 1) % 8] += math.hypot(dx, dy) * (place - low)
    np.testing.assert_allclose(gradient_histograms(grey, 2)[0], expected, rtol=1e-4, atol=1e-3)


def test_a_mirror_image_has_the_same_descriptors() -> None:
    grey, colour, _ = measured(crops(12))
    np.testing.assert_allclose(shape_descriptor(grey), shape_descriptor(grey[:, :, ::-1]), atol=1e-4)
    np.testing.assert_allclose(
        palette_descriptor(grey, colour), palette_descriptor(grey[:, :, ::-1], colour[:, :, ::-1]), atol=1e-5
    )


def test_pairs_are_sorted_unique_and_hold_every_kind_of_copy() -> None:
    pieces = crops(40)
    grey_copy = np.repeat(pieces[0].mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    framed = np.pad(pieces[1], ((8, 8), (8, 8), (0, 0)), constant_values=255)
    mirrored = np.ascontiguousarray(pieces[2][:, ::-1])
    pairs = pairs_of([*pieces, grey_copy, framed, mirrored], 5)
    codes = list(map(tuple, pairs.tolist()))
    assert codes == sorted(set(codes)) and all(i < j for i, j in codes)
    assert {(0, 40), (1, 41), (2, 42)} <= set(codes)


def test_candidates_are_the_nearest_by_both_descriptors() -> None:
    from sklearn.neighbors import NearestNeighbors

    grey, colour, hashes = measured(crops(60))
    shape, palette = shape_descriptor(grey), palette_descriptor(grey, colour)
    expected = set()
    for rows in (shape, np.concatenate([shape, palette], axis=1)):
        index = NearestNeighbors(n_neighbors=6, metric="cosine").fit(rows).kneighbors(return_distance=False)
        expected |= {(min(i, j), max(i, j)) for i, others in enumerate(index.tolist()) for j in others}
    for threads in (1, 3):
        found = candidate_pairs(descriptors(grey, colour, threads), hashes, 6, threads)
        assert set(map(tuple, found.tolist())) == expected


def test_of_a_large_pool_almost_all_candidates_are_found_without_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    concepts = generator.integers(0, 256, (60, 8, 8, 3))
    pieces = [
        np.clip(np.kron(concept, np.ones((8, 8, 1))) + generator.normal(size=(64, 64, 3)) * 40, 0, 255).astype(np.uint8)
        for concept in np.repeat(concepts, 12, axis=0)
    ]
    exact = set(map(tuple, pairs_of(pieces, 8).tolist()))
    monkeypatch.setattr(neighbours, "EXACT", 500)
    monkeypatch.setattr(neighbours, "FIRST", 32)
    searched, compared = neighbours.neighbours, []

    def counting(rows: np.ndarray, *arguments: object, **options: object) -> neighbours.Neighbours:
        found = searched(rows, *arguments, **options)  # type: ignore[arg-type]
        compared.append(found.compared)
        return found

    monkeypatch.setattr(neighbours, "neighbours", counting)
    found = set(map(tuple, pairs_of(pieces, 8).tolist()))
    assert len(compared) == 2 and max(compared) < 0.7
    assert len(found & exact) >= 0.98 * len(exact)


def test_plain_copies_are_tied_together_even_beyond_the_neighbours() -> None:
    from components.curation.duplicates import connected_components

    pieces = [crops(1)[0]] * 12
    pairs = pairs_of(pieces, 1)
    assert len(set(connected_components(12, pairs).tolist())) == 1


def test_nothing_to_compare() -> None:
    assert pairs_of(crops(1), 5).shape == (0, 2)


def test_only_pairs_with_a_fresh_image_are_found_and_all_those_that_it_has_near_it() -> None:
    pieces = [*crops(30), crops(1)[0]]
    fresh = np.arange(31) >= 28
    found = pairs_of(pieces, 4, fresh)
    assert fresh[found].any(axis=1).all() and (0, 30) in set(map(tuple, found.tolist()))
    described = descriptors(*measured(pieces)[:2])
    both = described / np.linalg.norm(described, axis=1, keepdims=True)
    expected = {(0, 30)}  # of equal difference hash
    for rows in (described[:, :64], both):
        for number in np.flatnonzero(fresh):
            order = np.argsort(-(rows @ rows[number]))
            expected |= {tuple(sorted((number, other))) for other in order[order != number][:4].tolist()}
    assert set(map(tuple, found.tolist())) == expected
    assert pairs_of(pieces, 4, np.zeros(31, bool)).shape == (0, 2)
