import io
import math
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from foundry.errors import UserError
from training.probes.depth import depth_measures, depth_probe, mean_depth_map, score_depths, sig_loss

DATA = os.environ.get("FOUNDRY_DATA")


def rooms(seed, count=12, grid=4, size=(24, 24), noise=0.05, dim=6):
    """Patch features with the depth along one direction, and smooth maps of 1 to 8 m."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(7).normal(size=dim)
    cells = rng.uniform(1.0, 8.0, (count, grid, grid))
    features = cells.reshape(count, grid * grid, 1) * direction + noise * rng.normal(size=(count, grid * grid, dim))
    up = torch.nn.functional.interpolate(torch.from_numpy(cells)[:, None], size=size, mode="bilinear")
    return features.astype(np.float32), [depth.numpy() for depth in up[:, 0].float()]


def plain_measures(prediction, truth, nearest, farthest):
    """Pixel by pixel, in Python's own floats."""
    pairs = [
        (min(max(float(p), nearest), farthest), float(t))
        for p, t in zip(prediction.ravel(), truth.ravel(), strict=True)
        if not math.isnan(t) and t != 0 and nearest <= t <= farthest
    ]

    def mean(values):
        values = list(values)
        return math.fsum(values) / len(values)

    logs = [math.log(p) - math.log(t) for p, t in pairs]
    return {
        "delta1": mean(max(p / t, t / p) < 1.25 for p, t in pairs),
        "delta2": mean(max(p / t, t / p) < 1.5625 for p, t in pairs),
        "delta3": mean(max(p / t, t / p) < 1.953125 for p, t in pairs),
        "abs_rel": mean(abs(p - t) / t for p, t in pairs),
        "sq_rel": mean((p - t) ** 2 / t for p, t in pairs),
        "rmse": math.sqrt(mean((p - t) ** 2 for p, t in pairs)),
        "log10": mean(abs(math.log10(p) - math.log10(t)) for p, t in pairs),
        "rmse_log": math.sqrt(mean(g * g for g in logs)),
        "silog": 100 * math.sqrt(mean(g * g for g in logs) - mean(logs) ** 2),
        "mae": mean(abs(p - t) for p, t in pairs),
    }


def test_measures_equal_their_formulas():
    rng = np.random.default_rng(0)
    for _ in range(5):
        truth = rng.uniform(0.2, 12.0, (7, 9)).astype(np.float32)  # some beyond the range
        truth[0, :3], truth[1, :3] = 0.0, np.nan
        prediction = (truth * rng.lognormal(0.1, 0.3, truth.shape)).astype(np.float32)
        prediction[0], prediction[2, 0], prediction[2, 1] = 4.0, -1.0, 50.0
        prediction[1] = 3.0
        expected = plain_measures(prediction, truth, 0.5, 10.0)
        assert depth_measures(prediction, truth, nearest=0.5, farthest=10.0) == pytest.approx(expected, rel=1e-9)
    assert depth_measures(truth, np.zeros_like(truth)) == {}


def test_scores_are_means_over_images_and_items_give_them_back():
    rng = np.random.default_rng(1)
    truths = [rng.uniform(1, 9, size).astype(np.float32) for size in ((5, 6), (3, 4), (8, 2), (4, 4))]
    said = [truth + rng.normal(0, 0.5, truth.shape).astype(np.float32) for truth in truths]
    truths[3][:] = 0
    result = score_depths(said, truths, keep=2)
    rows = [plain_measures(p, t, 0.001, 10.0) for p, t in zip(said[:3], truths[:3], strict=True)]
    for name, value in result.measures.items():
        assert value == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-6)
    for name, items in result.items.items():
        assert len(items) == 4  # the image without a measured pixel keeps its place
        assert items.measure()[0] == pytest.approx(result.measures[name])
        twice = items.measure(np.array([[2.0, 0.0, 1.0, 3.0]]))[0]
        assert twice == pytest.approx((2 * rows[0][name] + rows[2][name]) / 3, rel=1e-6)
    assert set(result.items) == {"rmse", "abs_rel", "delta1"}
    assert len(result.predictions) == 2 and (result.predictions[0] == said[0]).all()


def test_loss_equals_its_formula_and_has_a_slope_at_zero():
    g = np.random.default_rng(2).normal(0.3, 0.5, 40)
    mean = g.sum() / 40
    variance = ((g - mean) ** 2).sum() / 40
    assert float(sig_loss(torch.from_numpy(g))) == pytest.approx(math.sqrt(variance + 0.15 * mean**2))
    assert float(sig_loss(torch.from_numpy(g), variance=False)) == pytest.approx(math.sqrt(0.15) * abs(mean))
    zero = torch.zeros(3, requires_grad=True)
    sig_loss(zero).backward()
    assert torch.isfinite(zero.grad).all()


def test_planted_depth_is_read_back_and_noise_gives_no_more_than_the_floor():
    train, train_depths = rooms(2, count=24)
    test, test_depths = rooms(3)
    floor = score_depths([mean_depth_map(train_depths, (24, 24))] * len(test), test_depths).measures
    good = depth_probe(train, train_depths, test, test_depths, steps=120, bins=32).measures
    rng = np.random.default_rng(0)
    noise, other = rng.normal(size=train.shape).astype(np.float32), rng.normal(size=test.shape).astype(np.float32)
    bad = depth_probe(noise, train_depths, other, test_depths, steps=120, bins=32).measures
    assert good["rmse"] < 0.25 * floor["rmse"]
    assert good["abs_rel"] < 0.25 * floor["abs_rel"]
    assert good["delta1"] > 0.95 > 1.5 * floor["delta1"]
    assert bad["rmse"] > 0.95 * floor["rmse"]
    assert bad["delta1"] < floor["delta1"] + 0.03


def test_what_is_not_measured_has_no_influence():
    train, train_depths = rooms(4)
    test, test_depths = rooms(5)
    for mark in (0.0, np.nan, 99.0):  # 99 m lies outside the range
        for depth in train_depths:
            depth[:9] = mark
        result = depth_probe(train, train_depths, test, test_depths, steps=12, bins=16, keep=1)
        if mark == 0.0:
            first = result
        assert (result.predictions[0] == first.predictions[0]).all() and result.measures == first.measures
    cut = [np.where(np.arange(24)[:, None] < 12, 0.0, depth).astype(np.float32) for depth in test_depths]
    half = depth_probe(train, train_depths, test, cut, steps=12, bins=16, keep=1)
    assert (half.predictions[0] == first.predictions[0]).all()
    expected = [plain_measures(first.predictions[0][12:], test_depths[0][12:], 0.001, 10.0)["rmse"]]
    assert half.items["rmse"].values[0, 0, 0] == pytest.approx(expected[0], rel=1e-9)


def test_maps_of_different_sizes_stay_in_the_range():
    train, train_depths = rooms(6)
    more, more_depths = rooms(7, size=(7, 40))
    test, test_depths = rooms(8, size=(20, 31))
    result = depth_probe(
        np.concatenate([train, more]),
        [*train_depths, *more_depths],
        test,
        test_depths,
        nearest=2.0,
        farthest=4.0,
        steps=20,
        bins=16,
        keep=3,
    )
    assert [part.shape for part in result.predictions] == [(20, 31)] * 3
    assert all(part.dtype == np.float32 and 2.0 <= part.min() <= part.max() <= 4.0 for part in result.predictions)


def test_equal_seeds_give_equal_results_whatever_the_keep():
    train, depths = rooms(9, noise=1.0)
    first, second, other = (
        depth_probe(train, depths, train, depths, steps=15, bins=16, batch=4, seed=seed, keep=keep).measures
        for seed, keep in ((4, 0), (4, 2), (5, 0))
    )
    assert first == second != other


def test_mean_depth_map_leaves_out_what_is_not_measured():
    maps = [np.array([[1.0, 0.0], [np.nan, 0.0]]), np.array([[3.0, 5.0], [4.0, 0.0]])]
    expected = np.array([[2.0, 5.0], [4.0, (1 + 3 + 5 + 4) / 4]])
    assert mean_depth_map(maps, (2, 2)) == pytest.approx(expected)
    large = np.repeat(np.repeat(maps[1], 3, 0), 5, 1)
    assert mean_depth_map([maps[0], large], (2, 2)) == pytest.approx(expected)
    with pytest.raises(UserError, match="no pixel of the train depth maps is measured"):
        mean_depth_map([np.zeros((2, 2))], (2, 2))


def test_depths_in_other_units_are_refused_by_name():
    train, depths = rooms(10)
    millimetres = [1000 * depth for depth in depths]
    with pytest.raises(UserError, match="no pixel of the train depth maps is measured within 0.001 to 10 m"):
        depth_probe(train, millimetres, train, depths, steps=1)
    with pytest.raises(UserError, match="no pixel of the test depth maps"):
        depth_probe(train, depths, train, millimetres, steps=1, bins=8)
    with pytest.raises(UserError, match="range of 3 to 2 m is empty"):
        depth_probe(train, depths, train, depths, nearest=3, farthest=2)


@pytest.mark.skipif(not DATA, reason="FOUNDRY_DATA is not set")
def test_floor_on_real_rooms():
    depths = {}
    for split in ("train", "test"):
        with tarfile.open(f"{DATA}/nyuv2/nyuv2_{split}.tar") as archive:
            names = sorted(name for name in archive.getnames() if "/depth/" in name)
            # every second pixel each way, for speed
            coded = [np.asarray(Image.open(io.BytesIO(archive.extractfile(name).read())))[::2, ::2] for name in names]
        depths[split] = [((depth + 0.5) / 25.5).astype(np.float32) for depth in coded]
    mean = mean_depth_map(depths["train"], (240, 320))
    truth = np.stack(depths["test"])
    over_pixels = depth_measures(np.broadcast_to(mean, truth.shape), truth)
    assert over_pixels["rmse"] == pytest.approx(1.212, abs=2e-3)  # the README's figures are over all pixels
    assert over_pixels["abs_rel"] == pytest.approx(0.451, abs=1e-3)
    assert over_pixels["delta1"] == pytest.approx(0.391, abs=2e-3)
    images = score_depths([mean] * len(truth), depths["test"]).measures
    assert images["abs_rel"] == pytest.approx(over_pixels["abs_rel"])  # all maps have the same number of pixels
    assert images["rmse"] == pytest.approx(np.sqrt(((mean - truth) ** 2).mean((1, 2), dtype=np.float64)).mean())
    assert images["rmse"] == pytest.approx(1.118, abs=2e-3)
