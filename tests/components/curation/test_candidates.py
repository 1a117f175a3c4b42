from __future__ import annotations

import math

import numpy as np
import pytest

from components.curation import candidates
from components.curation.candidates import (
    candidate_pairs,
    gradient_histograms,
    nearest_neighbours,
    palette_descriptor,
    shape_descriptor,
)
from components.curation.measurement import measure
from tests.components.curation.pictures import crops


def measured(pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = [measure(piece) for piece in pieces]
    hashes = np.array([item.hash for item in found], dtype=np.uint64)
    return np.stack([item.grey for item in found]), np.stack([item.colour for item in found]), hashes


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


def test_neighbours_equal_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(candidates, "BLOCK", 32)
    rows = np.random.default_rng(1).normal(size=(150, 20)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = NearestNeighbors(n_neighbors=8, metric="cosine").fit(rows).kneighbors(return_distance=False)
    for threads in (1, 3):
        found = nearest_neighbours(rows, 8, threads)
        assert [set(row) for row in found.tolist()] == [set(row) for row in expected.tolist()]
    assert nearest_neighbours(rows[:1], 8).shape == (1, 0)
    assert nearest_neighbours(rows[:3], 8).shape == (3, 2)


def test_pairs_are_sorted_unique_and_hold_every_kind_of_copy() -> None:
    pieces = crops(40)
    grey_copy = np.repeat(pieces[0].mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    framed = np.pad(pieces[1], ((8, 8), (8, 8), (0, 0)), constant_values=255)
    mirrored = np.ascontiguousarray(pieces[2][:, ::-1])
    pairs = candidate_pairs(*measured([*pieces, grey_copy, framed, mirrored]), neighbours=5)
    codes = list(map(tuple, pairs.tolist()))
    assert codes == sorted(set(codes)) and all(i < j for i, j in codes)
    assert {(0, 40), (1, 41), (2, 42)} <= set(codes)


def test_plain_copies_are_tied_together_even_beyond_the_neighbours() -> None:
    from components.curation.duplicates import connected_components

    pieces = [crops(1)[0]] * 12
    pairs = candidate_pairs(*measured(pieces), neighbours=1)
    assert len(set(connected_components(12, pairs).tolist())) == 1


def test_nothing_to_compare() -> None:
    assert candidate_pairs(*measured(crops(1)), neighbours=5).shape == (0, 2)
