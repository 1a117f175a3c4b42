from __future__ import annotations

import numpy as np
import pytest

from components.curation import embedding
from components.curation.embedding import Descriptor, Projection, describe
from components.curation.measurement import measure
from tests.components.curation.pictures import crops


def thumbnails(count: int) -> tuple[np.ndarray, np.ndarray]:
    found = [measure(piece) for piece in crops(count)]
    return np.stack([item.grey for item in found]), np.stack([item.colour for item in found])


def test_principal_components_equal_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    monkeypatch.setattr(embedding, "SUM_BLOCK", 50)
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(230, 12)) * np.arange(1, 13) + 5).astype(np.float32)
    ours = Projection.fit(rows, 5)(rows)
    theirs = PCA(5, svd_solver="full").fit_transform(rows.astype(np.float64))
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-3)
    for threads in (1, 3):
        np.testing.assert_array_equal(ours, Projection.fit(rows, 5, threads)(rows, threads))


def test_vectors_are_of_unit_length_and_at_most_so_many() -> None:
    vectors = Descriptor(8)(*thumbnails(30))
    assert vectors.shape == (30, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_one_image_and_plain_images_have_vectors() -> None:
    assert np.isfinite(Descriptor(4)(*thumbnails(1))).all()
    grey, colour = np.full((3, 64, 64), 128, np.uint8), np.zeros((3, 16, 16, 2), np.int8)
    assert np.isfinite(describe(grey, colour)).all()


def test_pieces_of_one_photograph_are_nearer_than_pieces_of_others() -> None:
    vectors = Descriptor(32)(*thumbnails(60))
    source = np.arange(60) % 6
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    assert (source[similarity.argmax(axis=1)] == source).mean() > 0.6


def test_later_images_are_seen_in_the_components_of_the_first() -> None:
    grey, colour = thumbnails(40)
    descriptor = Descriptor(8)
    first = descriptor(grey, colour)
    np.testing.assert_allclose(descriptor(grey[5:9], colour[5:9]), first[5:9], atol=1e-6)
    found_before = Descriptor(8, descriptor.projection)
    np.testing.assert_array_equal(found_before(grey, colour), first)
