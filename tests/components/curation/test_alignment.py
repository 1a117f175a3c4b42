from __future__ import annotations

import numpy as np
import pytest

from components.curation.alignment import Comparison, compare, flatness
from components.curation.measurement import measure
from components.curation.windows import Hypotheses, best_windows
from tests.components.curation.pictures import crops, photograph


def judged(one: np.ndarray, other: np.ndarray) -> Comparison:
    found = [measure(np.ascontiguousarray(piece)) for piece in (one, other)]
    grey = np.stack([item.grey for item in found])
    sizes = np.array([[item.width, item.height] for item in found])
    pairs = best_windows(grey, np.array([[0, 1]]))
    return compare(grey, np.stack([item.colour for item in found]), sizes, pairs)


def rotated(pixels: np.ndarray, degrees: float) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).rotate(degrees, Image.Resampling.BICUBIC))


PHOTO = np.ascontiguousarray(photograph("chelsea.png")[:, :400])
COPIES = {
    "itself": PHOTO,
    "mirror": PHOTO[:, ::-1],
    "darker": (PHOTO * 0.6).astype(np.uint8),
    "crop off the grid": PHOTO[17:271, 41:379],
    "rotated": rotated(PHOTO, 5),
    "grey": np.repeat(PHOTO.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
    "caption": np.concatenate([PHOTO, np.full((40, 400, 3), 255, np.uint8)]),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_agree_once_aligned(name: str) -> None:
    found = judged(PHOTO, COPIES[name])
    assert found.similarity[0] > 0.85
    assert found.agreement[0] > 0.85
    assert found.colour[0] > 0.85
    assert found.stretch[0] < 1.06
    assert found.overlap[0] > 0.85


def test_other_pictures_do_not() -> None:
    pieces = crops(12)
    compared = [judged(pieces[i], pieces[j]) for i in range(12) for j in range(i)]
    both = np.array([(found.similarity[0], found.agreement[0]) for found in compared])
    assert np.quantile(both, 0.95, axis=0).max() < 0.6
    assert not ((both[:, 0] > 0.75) & (both[:, 1] > 0.75)).any()


def test_a_change_of_part_of_a_picture_costs_that_part() -> None:
    changed = PHOTO.copy()
    changed[200:, 300:] = PHOTO[:100, 300:]
    found = judged(PHOTO, changed)
    assert 0.75 < found.agreement[0] < 0.97, "a twelfth of the picture shows something else"


def test_pairs_that_differ_all_over_are_given_up_early() -> None:
    changed = PHOTO.copy()
    changed[:, 200:] = photograph("coffee.png")[:300, :200]
    found = judged(PHOTO, changed)
    assert (found.similarity[0], found.agreement[0], found.overlap[0]) == (0, 0, 0)


def test_squeezed_pictures_show_their_stretch() -> None:
    squeezed = np.ascontiguousarray(PHOTO[:, ::2])
    np.testing.assert_allclose(judged(PHOTO, squeezed).stretch, 2, rtol=0.02)


def test_colours_are_compared_where_both_have_some() -> None:
    swapped = np.ascontiguousarray(PHOTO[:, :, ::-1])
    assert judged(PHOTO, swapped).colour[0] < 0.5
    assert judged(PHOTO, COPIES["grey"]).colour[0] == 1


def test_a_known_map_is_recovered_from_a_rough_start() -> None:
    from components.curation import alignment

    image = measure(photograph("astronaut.png")).grey.astype(np.float32)[None] / 255
    smooth = alignment.blur(image, 1.5)
    points = alignment._points(64)
    truth = np.array([[[0.86, 0.05, 0.06], [-0.05, 0.88, -0.04]]], np.float32)
    warped = alignment._Sampling.at(np.array([0]), alignment._map(truth, points), 64).of(smooth).reshape(1, 64, 64)
    both = np.concatenate([smooth, 0.7 * warped + 0.1])
    start = np.array([[[0.9, 0, 0], [0, 0.9, 0]]], np.float32)
    pair = (np.array([0]), np.array([1]), np.array([False]))
    found = alignment.refine(both, alignment.gradients(both), *pair, start, 24, 12)
    np.testing.assert_allclose(found, truth, atol=0.01)


def test_nothing_to_compare() -> None:
    none = np.zeros(0, np.int64)
    empty = Hypotheses(none, none, none > 0, np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    shapes = np.zeros((0, 64, 64), np.uint8), np.zeros((0, 16, 16, 2), np.int8), np.zeros((0, 2))
    assert compare(*shapes, empty).similarity.shape == (0,)


def test_flatness_equals_that_of_scipys_filters() -> None:
    from scipy.ndimage import maximum_filter, minimum_filter

    grey = np.stack([measure(piece).grey for piece in crops(5)])
    grey[1, 20:50] = 9
    spread = maximum_filter(grey, (1, 3, 3)).astype(int) - minimum_filter(grey, (1, 3, 3))
    np.testing.assert_allclose(flatness(grey), (spread <= 3).mean(axis=(1, 2)))
