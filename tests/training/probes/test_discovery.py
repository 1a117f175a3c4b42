import numpy as np
import pytest
from scipy import ndimage

from foundry.errors import UserError
from training.probes import discovery
from training.probes.discovery import Box, corloc, lost, second_eigenvector, tokencut


def mosaic(rng, grid=(14, 18), dim=32, noise=0.5):
    """A rectangle of one direction before a background of another, opposite enough for LOST, and noise on both."""
    h, w = grid
    height, width = rng.integers(3, 8, size=2)
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    thing, stuff = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    features = np.tile(stuff - 0.3 * thing, (h, w, 1))
    features[top : top + height, left : left + width] = thing - 0.3 * stuff
    features = features + noise / np.sqrt(dim) * rng.normal(size=features.shape)
    return features.astype(np.float32), np.array([[top, left, top + height, left + width]])


@pytest.mark.parametrize("find", [lost, tokencut])
def test_planted_objects_are_found(find):
    rng = np.random.default_rng(0)
    cases = [mosaic(rng) for _ in range(40)]
    overlaps = [find(features).overlaps(truth)[0] for features, truth in cases]
    assert np.mean(np.array(overlaps) >= 0.5) >= 0.95


@pytest.mark.parametrize("find", [lost, tokencut])
def test_noise_alone_hides_the_object(find):
    rng = np.random.default_rng(1)
    cases = [mosaic(rng, noise=20.0) for _ in range(20)]
    overlaps = [find(features).overlaps(truth)[0] for features, truth in cases]
    assert np.mean(np.array(overlaps) >= 0.5) <= 0.3


@pytest.mark.parametrize("find", [lost, tokencut])
def test_nothing_to_tell_apart(find):
    assert find(np.ones((5, 7, 3), np.float32)) == Box(0, 0, 5, 7)
    assert find(np.ones((1, 1, 4), np.float32)) == Box(0, 0, 1, 1)
    assert find(np.eye(2, dtype=np.float32)[None]).bottom == 1
    box = find(np.zeros((3, 4, 2), np.float32))
    assert 0 <= box.top < box.bottom <= 3 and 0 <= box.left < box.right <= 4


@pytest.mark.parametrize("find", [lost, tokencut])
def test_length_of_features_does_not_matter(find):
    rng = np.random.default_rng(2)
    features, _ = mosaic(rng)
    assert find(features) == find(features * rng.uniform(0.1, 9, size=(14, 18, 1)))


def lost_by_loops(features, k):
    h, w, _ = features.shape
    f = [each.astype(np.float64) / np.linalg.norm(each) for each in features.reshape(h * w, -1)]
    degrees = [sum(1 for other in f if float(np.dot(each, other)) >= 0) for each in f]
    order = sorted(range(h * w), key=lambda patch: (degrees[patch], patch))
    seed = order[0]
    group = [patch for patch in order[:k] if np.dot(f[patch], f[seed]) >= 0]
    mask = [sum(np.dot(each, f[other]) for other in group) >= 0 for each in f]
    found, todo = set(), [seed]
    while todo:
        patch = todo.pop()
        if patch in found or not mask[patch]:
            continue
        found.add(patch)
        row, column = divmod(patch, w)
        todo += [patch - w] * (row > 0) + [patch + w] * (row < h - 1)
        todo += [patch - 1] * (column > 0) + [patch + 1] * (column < w - 1)
    rows, columns = [patch // w for patch in found], [patch % w for patch in found]
    return Box(min(rows), min(columns), max(rows) + 1, max(columns) + 1)


def test_lost_equals_loops():
    rng = np.random.default_rng(3)
    boxes = set()
    for trial in range(30):
        noise = ndimage.gaussian_filter(rng.normal(size=(7, 6, 5)), (1, 1, 0))
        k = (1, 4, 12, 100)[trial % 4]
        assert lost(noise.astype(np.float32), k) == lost_by_loops(noise.astype(np.float32), k)
        boxes.add(lost(noise.astype(np.float32), k))
    assert len(boxes) > 10


def by_general_solver(weights):
    """The second eigenvector of D^-1 (D - W) by numpy's solver for any matrix."""
    degrees = np.diag(weights.sum(1))
    values, vectors = np.linalg.eig(np.linalg.inv(degrees) @ (degrees - weights))
    return np.real(vectors[:, np.argsort(np.real(values))[1]])


def test_second_eigenvector_of_a_small_graph(monkeypatch):
    rng = np.random.default_rng(4)
    weights = rng.uniform(size=(9, 9))
    weights = np.where(weights + weights.T > 1, 1.0, 1e-5)
    expected = by_general_solver(weights)
    for limit in (2000, 3):
        monkeypatch.setattr(discovery, "DENSE_PATCHES", limit)
        y = second_eigenvector(weights)
        assert np.linalg.norm(y) == pytest.approx(1)
        assert abs(y @ expected) == pytest.approx(np.linalg.norm(expected), rel=1e-6)


def test_second_eigenvector_of_two_groups_by_hand():
    """Two equal groups with all within joined and weak edges between: +1 on one, -1 on the other."""
    weights = np.full((6, 6), 1e-5)
    weights[:3, :3] = weights[3:, 3:] = 1
    y = second_eigenvector(weights)
    assert y * np.sign(y[0]) == pytest.approx(np.array([1, 1, 1, -1, -1, -1]) / np.sqrt(6), abs=1e-9)
    assert second_eigenvector(np.ones((2, 2))) @ np.ones(2) == pytest.approx(0, abs=1e-9)


def test_large_grids_find_the_same_box(monkeypatch):
    features, truth = mosaic(np.random.default_rng(5), grid=(24, 24))
    dense = tokencut(features)
    monkeypatch.setattr(discovery, "DENSE_PATCHES", 100)
    assert tokencut(features) == dense
    assert dense.overlaps(truth)[0] >= 0.5


def test_tokencut_threshold_decides_what_is_alike():
    """An object at a cosine of 0.62 from its background is one with it below that threshold only."""
    features = np.zeros((6, 9, 2), np.float32)
    features[:] = [1, 0]
    features[1:4, 2:5] = [np.cos(0.9), np.sin(0.9)]
    assert tokencut(features, threshold=0.6) == Box(0, 0, 6, 9)
    assert tokencut(features, threshold=0.64) == Box(1, 2, 4, 5)


def test_tokencut_equals_its_definition():
    """Graph, eigenvector, split and box once more, patch by patch."""
    rng = np.random.default_rng(7)
    boxes = set()
    for _ in range(15):
        features = ndimage.gaussian_filter(rng.normal(size=(6, 7, 5)), (1, 1, 0))
        f = [each / np.linalg.norm(each) for each in features.reshape(42, 5)]
        weights = np.array([[1.0 if i == j or f[i] @ f[j] >= 0.2 else 1e-5 for i in range(42)] for j in range(42)])
        y = by_general_solver(weights)
        seed = int(np.abs(y).argmax())
        side = (y > y.mean()) == (y[seed] > y.mean())
        parts, _ = ndimage.label(side.reshape(6, 7))
        rows, columns = np.nonzero(parts == parts.ravel()[seed])
        expected = Box(rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert tokencut(features) == expected
        boxes.add(expected)
    assert len(boxes) > 5


def test_what_is_refused():
    for find in (lost, tokencut):
        with pytest.raises(ValueError, match="not \\(h, w, D\\)"):
            find(np.ones((4, 5)))
        with pytest.raises(ValueError, match="finite"):
            find(np.full((2, 2, 2), np.nan))


def test_boxes_in_pixels():
    assert Box(1, 2, 3, 5).scaled((4, 10), (64, 200)) == Box(16, 40, 48, 100)


def test_overlaps_equal_counting_pixels():
    rng = np.random.default_rng(6)
    for _ in range(50):
        masks, boxes = [], []
        for _ in range(2):
            top, left = rng.integers(0, 8, size=2)
            bottom, right = top + rng.integers(1, 8), left + rng.integers(1, 8)
            mask = np.zeros((20, 20), bool)
            mask[top:bottom, left:right] = True
            masks.append(mask)
            boxes.append((top, left, bottom, right))
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert Box(*boxes[0]).overlaps(np.array([boxes[1]]))[0] == pytest.approx(expected)


def test_corloc_by_hand():
    found = [Box(0, 0, 10, 10), Box(0, 0, 10, 10), Box(0, 0, 10, 10), Box(0, 0, 10, 10)]
    truths = [
        np.array([[50, 50, 60, 60], [0, 0, 10, 20]]),  # half of the union: just enough
        np.array([[0, 0, 10, 21]]),
        np.zeros((0, 4)),
        np.array([[0, 0, 10, 10]]),
    ]
    result = corloc(found, truths)
    assert result.hits.tolist() == [True, False, False, True]
    assert result.overlaps == pytest.approx([0.5, 10 / 21, 0, 1])
    assert result.corloc == pytest.approx(2 / 3)  # one image has no box
    assert result.items.measure()[0] == result.corloc and len(result.items) == 4
    assert corloc(found, truths, iou=0.4).corloc == 1
    with pytest.raises(UserError, match="no image has a true box"):
        corloc(found[:1], truths[2:3])
    with pytest.raises(ValueError):
        corloc(found, truths[:2])
