import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.probes.label_free import (
    coherence_items,
    copy_hits,
    copy_retrieval,
    feature_rank,
    make_views,
    patch_coherence,
)


def test_copy_retrieval_counts_rows_that_find_themselves():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 12))
    assert copy_retrieval(features, 5 * features) == 1.0
    swapped = features.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert copy_retrieval(features, swapped) == pytest.approx(38 / 40)
    assert copy_retrieval(features, np.ones_like(features)) == pytest.approx(1 / 40)


def test_feature_rank_of_known_spectra():
    assert feature_rank(np.eye(9)) == pytest.approx(9)
    assert feature_rank(np.ones((20, 5))) == pytest.approx(1)
    assert feature_rank(np.repeat(np.eye(4), 6, axis=0)) == pytest.approx(4)
    nearly = np.ones((50, 8)) + 1e-4 * np.random.default_rng(0).normal(size=(50, 8))
    assert feature_rank(nearly) < 1.05  # collapse, although its small differences have full rank


def test_feature_rank_equals_the_formula_by_eigenvalues():
    x = np.random.default_rng(1).normal(size=(30, 6)) * np.array([5, 3, 1, 1, 0.5, 0.1])
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.sqrt(np.linalg.eigvalsh(x.T @ x))
    p = values / values.sum()
    assert feature_rank(x * 7) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-5)


def identity(count):
    return np.repeat(np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), count, axis=0)


def test_patch_coherence_of_perfect_constant_and_random_features():
    rng = np.random.default_rng(2)
    first = rng.normal(size=(5, 16, 32))
    assert patch_coherence(first, first, identity(5)) == 1.0
    assert patch_coherence(np.ones_like(first), np.ones_like(first), identity(5)) == pytest.approx(0.5)
    many = rng.normal(size=(60, 16, 8)), rng.normal(size=(60, 16, 8))
    assert patch_coherence(*many, identity(60)) == pytest.approx(0.5, abs=0.03)
    assert patch_coherence(first, -first, identity(5)) == 0.0


def test_patch_coherence_follows_the_map():
    side = 4
    first = np.random.default_rng(3).normal(size=(3, side * side, 16))
    mirrored = first.reshape(3, side, side, 16)[:, :, ::-1].reshape(3, side * side, 16)
    flip = np.repeat(np.array([[[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]), 3, axis=0)
    assert patch_coherence(first, mirrored, flip) == 1.0
    assert patch_coherence(first, mirrored, identity(3)) < 0.8
    # the second view shows the left half only: its columns 0..3 are the first view's columns 0, 0, 1, 1
    half = first.reshape(3, side, side, 16)[:, :, [0, 0, 1, 1]].reshape(3, side * side, 16)
    zoom = np.repeat(np.array([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), 3, axis=0)
    # a patch has one counterpart and a twin beside it: 14 of 15 others are less alike, the twin counts half
    assert patch_coherence(first, half, zoom) == pytest.approx((14 + 0.5) / 15)


def test_patch_coherence_equals_areas_under_roc_curves():
    rng = np.random.default_rng(4)
    side, count = 5, 4
    first, second = rng.normal(size=(count, side * side, 6)), rng.normal(size=(count, side * side, 6))
    second += 0.5 * first
    angle = np.array([[0.8, 0.1, 0.07], [-0.1, 0.9, 0.2]])
    areas = []
    for one, two in zip(first, second, strict=True):
        for patch in range(side * side):
            x, y = (patch % side + 0.5) / side, (patch // side + 0.5) / side
            tx, ty = angle @ np.array([x, y, 1.0])
            if not (0 < tx < 1 and 0 < ty < 1):
                continue
            truth = np.zeros(side * side)
            truth[int(ty * side) * side + int(tx * side)] = 1
            cosine = two @ one[patch] / np.linalg.norm(two, axis=1) / np.linalg.norm(one[patch])
            areas.append(roc_auc_score(truth, cosine))
    assert len(areas) < count * side * side
    result = patch_coherence(first, second, np.repeat(angle[None], count, axis=0))
    assert result == pytest.approx(np.mean(areas), abs=1e-6)


def test_nothing_in_common_is_chance():
    away = np.repeat(np.array([[[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]]]), 2, axis=0)
    features = np.random.default_rng(5).normal(size=(2, 9, 4))
    assert patch_coherence(features, features, away) == 0.5


def test_views_show_what_their_map_says(monkeypatch):
    """Without colour changes, a picture whose colours are coordinates shows where each pixel of a view comes from."""
    monkeypatch.setattr("training.data.distortion.Distortion.__call__", lambda self, image: image)
    y, x = np.mgrid[0:160, 0:240]
    picture = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    views = make_views([picture] * 8, 80, seed=3)
    assert views.first.shape == views.second.shape == (8, 80, 80, 3)
    mirrored = 0
    for first, second, to_second in zip(views.first, views.second, views.to_second, strict=True):
        checked = 0
        for row in range(4, 80, 9):
            for column in range(4, 80, 9):
                tx, ty = to_second @ np.array([(column + 0.5) / 80, (row + 0.5) / 80, 1.0])
                if not (0.05 < tx < 0.95 and 0.05 < ty < 0.95):
                    continue
                there = second[int(ty * 80), int(tx * 80)].astype(float)
                assert np.abs(there - first[row, column]).max() <= 5
                checked += 1
        assert checked > 10
        mirrored += to_second[0, 0] < 0
    assert 0 < mirrored < 8


def test_views_of_an_image_depend_on_seed_and_position_only():
    rng = np.random.default_rng(6)
    images = [rng.integers(0, 256, (50, 60, 3)).astype(np.uint8) for _ in range(3)]
    three, two, other = make_views(images, 32), make_views(images[:2], 32), make_views(images, 32, seed=1)
    assert (three.first[:2] == two.first).all() and (three.second[:2] == two.second).all()
    assert (three.first != other.first).any()
    assert (three.first != three.second).any()


def test_the_parts_of_patch_coherence_make_it_up():
    rng = np.random.default_rng(7)
    images = [rng.integers(0, 256, (48, 48, 3)).astype(np.uint8) for _ in range(12)]
    views = make_views(images, 32)
    cells = [side.reshape(12, 4, 8, 4, 8, 3).swapaxes(2, 3).reshape(12, 16, -1) for side in (views.first, views.second)]
    parts = coherence_items(*cells, views.to_second)
    assert parts.values.shape == (12, 1, 2)
    assert parts.measure()[0] == patch_coherence(*cells, views.to_second)
    alone = [patch_coherence(*(side[i : i + 1] for side in cells), views.to_second[i : i + 1]) for i in range(12)]
    for i in np.flatnonzero(parts.values[:, 0, 1]):
        assert parts.measure(np.eye(12)[i : i + 1])[0] == pytest.approx(alone[i])


def test_the_hits_of_copy_retrieval_make_it_up():
    rng = np.random.default_rng(8)
    first = rng.normal(size=(20, 5))
    second = first + rng.normal(0, 0.8, first.shape)
    hits = copy_hits(first, second)
    assert 0 < hits.sum() < 20 and hits.mean() == copy_retrieval(first, second)
