import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from training.probes.correspondence import apply_homography, match, pair_scores, pck, warped_pairs


def coded(height, width, wave=2.0):
    """(h, w, 8) features that tell every place from every other: products of waves along x and y."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    parts = [f(wave * place) for place in (x, y) for f in (np.cos, np.sin)]
    return np.stack([*parts, *[0.5 * f(2 * wave * place) for place in (x, y) for f in (np.cos, np.sin)]], axis=-1)


def by_torch(source, target, points, upsample):
    """The same by torch's own bilinear sampling in float64, one point at a time."""
    one, two = (functional.normalize(torch.from_numpy(each).double(), dim=2) for each in (source, target))
    grid = torch.from_numpy(points * 2 - 1)[None, None]
    sampled = functional.grid_sample(
        one.permute(2, 0, 1)[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0, :, 0].T
    size = tuple(cells * upsample if cells > 1 else 1 for cells in target.shape[:2])
    up = functional.interpolate(two.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
    found = []
    for query in sampled:
        cosine = functional.cosine_similarity(up, query[:, None, None], dim=0)
        row, column = divmod(int(cosine.argmax()), size[1])
        found.append(((column + 0.5) / size[1], (row + 0.5) / size[0]))
    return np.array(found)


@pytest.mark.parametrize("upsample", [1, 4])
@pytest.mark.parametrize("shapes", [((5, 7), (6, 4)), ((9, 9), (9, 9)), ((1, 1), (3, 1)), ((4, 1), (1, 5))])
def test_match_equals_torch(shapes, upsample):
    rng = np.random.default_rng(0)
    source, target = (rng.normal(size=(*shape, 6)).astype(np.float32) for shape in shapes)
    points = np.concatenate([rng.uniform(size=(25, 2)), [[0, 0], [1, 1], [0.5, 1]]])
    found = match(source, target, points, upsample=upsample)
    assert found.shape == (28, 2) and found.dtype == np.float64
    assert found == pytest.approx(by_torch(source, target, points, upsample), abs=1e-9)


def test_the_same_image_gives_the_same_points():
    features = coded(12, 16)
    y, x = np.mgrid[0:12, 0:16]
    centres = np.stack([(x.ravel() + 0.5) / 16, (y.ravel() + 0.5) / 12], axis=-1)
    assert match(features, features, centres, upsample=1) == pytest.approx(centres)
    points = np.random.default_rng(1).uniform(0.1, 0.9, size=(50, 2))
    away = np.abs(match(features, features, points) - points)
    assert (away <= 0.6 / np.array([16, 12])).all() and away.mean() < 0.25 / 12
    result = pck([match(features, features, points)], [points], 1.0)
    assert result.per_point == result.per_pair == {0.05: 1.0, 0.1: 1.0, 0.2: 1.0}


def test_match_follows_a_mirror_and_other_sizes():
    source, target = coded(10, 10), coded(14, 20)[:, ::-1]
    points = np.random.default_rng(2).uniform(0.1, 0.9, size=(30, 2))
    found = match(source, target, points)
    assert np.abs(found - np.stack([1 - points[:, 0], points[:, 1]], axis=-1)).max() < 0.05


def test_no_points_and_unlike_features():
    assert match(coded(3, 3), coded(3, 3), np.zeros((0, 2))).shape == (0, 2)
    for bad in (np.ones((3, 3, 5)), np.ones((9, 8))):
        with pytest.raises(ValueError, match="equal D"):
            match(coded(3, 3), bad, np.zeros((1, 2)))


def test_pck_equals_loops():
    rng = np.random.default_rng(3)
    counts, scales = [5, 1, 0, 9], [50.0, 80.0, 10.0, 120.0]
    truth = [rng.uniform(0, 100, size=(n, 2)) for n in counts]
    found = [each + rng.normal(0, 9, size=each.shape) for each in truth]
    result = pck(found, truth, scales, alphas=(0.05, 0.1, 0.2))
    for alpha in (0.05, 0.1, 0.2):
        right, shares = 0, []
        for one, two, scale in zip(found, truth, scales, strict=True):
            hits = [np.hypot(*(a - b)) <= alpha * scale for a, b in zip(one, two, strict=True)]
            right += sum(hits)
            if hits:
                shares.append(sum(hits) / len(hits))
        assert result.per_point[alpha] == pytest.approx(right / 15)
        assert result.per_pair[alpha] == pytest.approx(np.mean(shares))
        assert len(result.items[alpha]) == 4
        assert result.items[alpha].measure()[0] == result.per_pair[alpha]
        assert result.point_items[alpha].measure()[0] == result.per_point[alpha]
    assert 0 < result.per_point[0.05] < result.per_point[0.2] < 1


def test_pck_borders_and_refusals():
    one = pck([np.array([[5.0, 0.0], [5.1, 0.0]])], [np.zeros((2, 2))], 100.0, alphas=(0.05,))
    assert one.per_point == {0.05: 0.5}
    assert np.isnan(pck([np.zeros((0, 2))], [np.zeros((0, 2))], 1.0).per_pair[0.1])
    with pytest.raises(ValueError, match="differ"):
        pck([np.zeros((3, 2))], [np.zeros((1, 2))], 1.0)
    with pytest.raises(ValueError):
        pck([np.zeros((3, 2))], [], 1.0)


def coordinates(height, width):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


def test_views_show_what_their_homography_says():
    """A picture whose colours are coordinates shows where each pixel of a view comes from."""
    pairs = warped_pairs([coordinates(200, 240)] * 10, seed=1, size=96, colours=False)
    assert pairs.first.shape == pairs.second.shape == (10, 96, 96, 3) and pairs.first.dtype == np.uint8
    bent = 0
    for index in range(10):
        first, second = pairs.first[index].astype(float), pairs.second[index].astype(float)
        assert first[..., 2].max() <= 8 and second[..., 2].max() <= 8
        points, truth = pairs.points[index], pairs.truth[index]
        assert len(points) >= 10 and (truth > 0).all() and (truth < 1).all()
        for (x, y), (tx, ty) in zip(points, truth, strict=True):
            values = [
                cv2.getRectSubPix(view.astype(np.float32), (1, 1), (a * 96 - 0.5, b * 96 - 0.5))[0, 0, :2]
                for view, a, b in ((first, x, y), (second, tx, ty))
            ]
            assert np.abs(values[0] - values[1]).max() <= 1.5
            mapped = pairs.to_second[index] @ np.array([x, y, 1])
            assert mapped[:2] / mapped[2] == pytest.approx([tx, ty])
        # within the central square, 200 wide
        assert second[..., 0].min() >= 19 and second[..., 0].max() <= 221
        bent += np.abs(pairs.to_second[index][2, :2]).max() > 0.02
    assert bent >= 5


def test_pairs_depend_on_seed_and_position_only():
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (50, 60 + 9 * n, 3)).astype(np.uint8) for n in range(3)]
    three, two, other = (
        warped_pairs(each, seed, size=32) for each, seed in ((images, 0), (images[:2], 0), (images, 1))
    )
    assert (three.first[:2] == two.first).all() and (three.second[:2] == two.second).all()
    assert (three.to_second[:2] == two.to_second).all()
    assert (three.to_second != other.to_second).any(axis=(1, 2)).all()
    plain = warped_pairs(images, 0, size=32, colours=False)
    assert (plain.to_second == three.to_second).all() and (plain.first == three.first).all()
    assert (plain.second != three.second).any()


def test_scores_of_perfect_and_of_useless_features():
    """Features of the place in the image are perfect; those of the place in the view see no warp; noise is chance."""
    pairs = warped_pairs([np.zeros((64, 64, 3), np.uint8)] * 12, seed=2, size=32, colours=False)
    side = 24
    x, y = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side)
    centres = np.stack([x.ravel(), y.ravel()], axis=-1)

    def code(places):
        waves = [f(wave * places[:, axis]) for axis in (0, 1) for wave in (2.0, 5.0) for f in (np.cos, np.sin)]
        return np.stack(waves, axis=-1)

    first = np.stack([code(apply_homography(each, centres)) for each in pairs.to_second])
    second = np.stack([code(centres)] * 12)
    perfect = pair_scores(first, second, pairs)
    assert perfect.per_point[0.05] > 0.97 and perfect.per_pair[0.1] > 0.99
    still = pair_scores(second, second, pairs)
    expected = pck(pairs.points, pairs.truth, 1.0)
    assert still.per_point[0.1] == pytest.approx(expected.per_point[0.1], abs=0.06) and still.per_point[0.1] < 0.7
    rng = np.random.default_rng(5)
    noise = pair_scores(rng.normal(size=first.shape), rng.normal(size=first.shape), pairs)
    assert noise.per_point[0.1] < 0.06


def test_homography_of_points_equals_opencv():
    rng = np.random.default_rng(6)
    matrix = np.eye(3) + 0.2 * rng.normal(size=(3, 3))
    points = rng.uniform(size=(9, 2))
    assert apply_homography(matrix, points) == pytest.approx(cv2.perspectiveTransform(points[None], matrix)[0])
