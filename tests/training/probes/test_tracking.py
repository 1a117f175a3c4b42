import io
import math
import os
import tarfile
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from foundry.errors import UserError
from training.probes.tracking import (
    SequenceScores,
    boundary_accuracy,
    propagate,
    region_similarity,
    sequence_scores,
    tracking_result,
)

DATA = os.environ.get("FOUNDRY_DATA")


def slow_propagate(features, first_mask, context, radius, shape, k, temperature):
    """One patch, one key, one pixel at a time, in float64."""
    ids = np.unique(first_mask)
    height, width = features[0].shape[:2]
    units = [frame / np.linalg.norm(frame.astype(np.float64), axis=-1, keepdims=True) for frame in features]
    fine = np.kron(first_mask, np.ones((height, width), int))  # every patch is whole pixels of this
    tall, wide = first_mask.shape
    labels = [
        np.array(
            [
                [
                    [(fine[y * tall : (y + 1) * tall, x * wide : (x + 1) * wide] == i).mean() for i in ids]
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )
    ]
    masks = [first_mask]
    for t in range(1, len(features)):
        used = [0, *[s for s in range(t - context, t) if s > 0]]
        carried = np.zeros((height, width, len(ids)))
        for y in range(height):
            for x in range(width):
                keys = []
                for s in used:
                    for v in range(height):
                        for u in range(width):
                            far = math.hypot(v - y, u - x) if shape == "circle" else max(abs(v - y), abs(u - x))
                            if far <= radius:
                                keys.append((float(units[t][y, x] @ units[s][v, u]), s, v, u))
                keys = sorted(keys, reverse=True)[:k]
                total = sum(math.exp(key[0] / temperature) for key in keys)
                for similarity, s, v, u in keys:
                    carried[y, x] += math.exp(similarity / temperature) / total * labels[s][v, u]
        labels.append(carried)
        masks.append(ids[slow_winners(carried, first_mask.shape)])
    return masks


def slow_winners(labels, size):
    height, width, classes = labels.shape
    maps = np.zeros((*size, classes))
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * height / size[0] - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(v), int(u)
            down, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = labels[top, left] * (1 - u + left) + labels[top, right] * (u - left)
            below = labels[down, left] * (1 - u + left) + labels[down, right] * (u - left)
            maps[y, x] = above * (1 - v + top) + below * (v - top)
    for c in range(classes):
        low, high = maps[..., c].min(), maps[..., c].max()
        if high - low > 1e-9:
            maps[..., c] = (maps[..., c] - low) / (high - low)
    return maps.argmax(-1)


@pytest.mark.parametrize(
    ("context", "radius", "shape", "k", "temperature"),
    [(2, 2, "square", 4, 0.2), (1, 2, "circle", 3, 0.07), (7, 9, "square", 5, 0.2), (0, 1, "circle", 9, 0.5)],
)
@pytest.mark.parametrize("size", [(20, 24), (13, 31)])
def test_propagation_equals_a_slow_loop(monkeypatch, context, radius, shape, k, temperature, size):
    monkeypatch.setattr("training.probes.tracking._BLOCK", (2, 4))  # several blocks, not all of them full
    rng = np.random.default_rng(size[0] + k)
    features = [rng.normal(size=(5, 6, 3)).astype(np.float32) for _ in range(5)]
    first = np.zeros(size, np.int32)
    first[3:9, 2:12], first[8:13, 10:20] = 7, 200
    settings = {"context": context, "radius": radius, "shape": shape, "k": k, "temperature": temperature}
    found = list(propagate(iter(features), first, **settings))
    expected = slow_propagate(features, first, **settings)
    assert all(mask.dtype == np.uint8 and mask.shape == size for mask in found)
    assert [int((mask != truth).sum()) for mask, truth in zip(found, expected, strict=True)] == [0] * 5
    assert len(np.unique(expected[-1])) == 3  # there is something to be wrong about


def planted_video(frames=8, grid=(20, 26), side=6, noise=0.05):
    """A square whose patches are told apart moves over patches that are told apart; masks of 8 pixels a patch."""
    rng = np.random.default_rng(3)
    scene, thing = rng.normal(size=(*grid, 16)), rng.normal(size=(side, side, 16))
    features, masks = [], []
    for t in range(frames):
        place = slice(3 + t, 3 + t + side), slice(4 + 2 * t, 4 + 2 * t + side)
        frame, mask = scene + noise * rng.normal(size=scene.shape), np.zeros(grid, np.uint8)
        frame[place] = thing + noise * rng.normal(size=thing.shape)
        mask[place] = 9
        features.append(frame.astype(np.float32))
        masks.append(np.kron(mask, np.ones((8, 8), np.uint8)))
    return features, masks


def test_a_planted_object_is_followed_and_an_unmoved_mask_is_not():
    features, masks = planted_video()
    found = list(propagate(features, masks[0]))
    centres = np.stack(found)[:, 4::8, 4::8], np.stack(masks)[:, 4::8, 4::8]
    assert (centres[0] != centres[1]).mean() < 0.002
    followed = sequence_scores(found, masks, [9])
    copied = sequence_scores([masks[0]] * len(masks), masks, [9])
    assert followed.j[0] > 0.93 and followed.f[0] > 0.93  # bilinear corners are round
    assert copied.j[0] < 0.35
    again = list(propagate([3.0 * frame for frame in features], masks[0]))  # length says nothing
    assert all((a == b).mean() > 0.999 for a, b in zip(again, found, strict=True))


def test_an_object_beyond_the_neighbourhood_is_lost():
    features, masks = planted_video(frames=3)
    moved = [np.roll(frame, (9, 12), (0, 1)) if t else frame for t, frame in enumerate(features)]
    truth = [np.roll(mask, (72, 96), (0, 1)) if t else mask for t, mask in enumerate(masks)]
    near = sequence_scores(propagate(moved, masks[0], radius=4), truth, [9])
    far = sequence_scores(propagate(moved, masks[0], radius=20), truth, [9])
    assert near.j[0] < 0.1 and far.j[0] > 0.9


def test_frames_are_read_one_at_a_time_and_few_are_held(monkeypatch):
    made, read = [], 0
    normalize = torch.nn.functional.normalize

    def recorded(*args, **kwargs):
        out = normalize(*args, **kwargs)
        made.append(weakref.ref(out))
        return out

    def stream():
        nonlocal read
        for frame in planted_video(frames=9)[0]:
            read += 1
            yield frame

    monkeypatch.setattr("training.probes.tracking.functional.normalize", recorded)
    masks = propagate(stream(), planted_video(frames=1)[1][0], context=2, radius=2)
    assert read == 0
    for number, _ in enumerate(masks, start=1):
        assert read == number == len(made)
        assert sum(part() is not None for part in made) <= 3
    assert number == 9


def test_an_only_object_and_one_that_fills_the_frame():
    features, _ = planted_video(frames=3, grid=(8, 11), side=2)
    assert all((mask == 4).all() for mask in propagate(features, np.full((30, 33), 4)))
    none = [np.asarray(mask) for mask in propagate(features, np.zeros((30, 33), np.uint8))]
    assert all((mask == 0).all() for mask in none)


def blobs(rng, size=(60, 83)):
    smooth = ndimage.gaussian_filter(rng.normal(size=size), 5)
    return smooth > np.quantile(smooth, rng.uniform(0.3, 0.95))


def slow_boundary(mask):
    """Places of the pixels that are unlike one of the three pixels right and below that exist."""
    height, width = mask.shape
    edge = []
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(v < height and u < width and mask[v, u] != mask[y, x] for v, u in others):
                edge.append((y, x))
    return np.array(edge, float).reshape(-1, 2)


def slow_f(said, true):
    a, b = slow_boundary(said), slow_boundary(true)
    if len(a) == 0 or len(b) == 0:
        return float(len(a) == len(b))
    reach = math.ceil(0.008 * math.sqrt(said.shape[0] ** 2 + said.shape[1] ** 2))
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    precision, recall = (distance.min(1) <= reach).mean(), (distance.min(0) <= reach).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_measure_equals_brute_force():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(12):
        true = blobs(rng)
        said = np.roll(true, rng.integers(0, 2, 2), (0, 1)) if rng.random() < 0.5 else blobs(rng)
        values.append(slow_f(said, true))
        assert boundary_accuracy(said, true) == pytest.approx(values[-1], abs=1e-12)
    assert min(values) < 0.5 < 0.8 < max(values)
    large = np.zeros((480, 854), bool)  # 0.008 of this diagonal is 7.84 pixels: 8 count, 9 do not
    line, near, far = (np.roll(large, 0) for _ in range(3))
    line[:, 400:], near[:, 408:], far[:, 409:] = True, True, True
    assert boundary_accuracy(near, line) == 1.0 and boundary_accuracy(far, line) == 0.0


def test_region_measure_equals_loops():
    rng = np.random.default_rng(1)
    for _ in range(5):
        said, true = rng.random((9, 11)) < 0.4, rng.random((9, 11)) < 0.3
        pairs = list(zip(said.ravel().tolist(), true.ravel().tolist(), strict=True))
        both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
        assert region_similarity(said, true) == both / either


def test_empty_masks():
    empty, some = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    some[5:15, 5:15] = True
    assert region_similarity(empty, empty) == boundary_accuracy(empty, empty) == 1.0
    for said, true in ((empty, some), (some, empty)):
        assert region_similarity(said, true) == boundary_accuracy(said, true) == 0.0


def test_a_sequence_is_scored_without_its_first_and_last_frame():
    rng = np.random.default_rng(2)
    truth = [blobs(rng).astype(np.uint8) + 2 * blobs(rng).astype(np.uint8) for _ in range(5)]
    said = [np.roll(mask, 2, 1) for mask in truth]
    scores = sequence_scores(iter(said), iter(truth), [1, 2])
    assert scores.objects == (1, 2)
    for index, label in enumerate((1, 2)):
        middle = [(a == label, b == label) for a, b in zip(said[1:4], truth[1:4], strict=True)]
        assert scores.j[index] == pytest.approx(np.mean([(a & b).sum() / (a | b).sum() for a, b in middle]))
        assert scores.f[index] == pytest.approx(np.mean([slow_f(a, b) for a, b in middle]))


def test_the_result_is_the_mean_over_objects_and_its_items_are_videos():
    one = SequenceScores((1,), np.array([0.9]), np.array([0.7]))
    three = SequenceScores((1, 2, 3), np.array([0.1, 0.2, 0.6]), np.array([0.3, 0.4, 0.5]))
    result = tracking_result({"a": one, "b": three, "none": SequenceScores((), np.empty(0), np.empty(0))})
    assert (result.j, result.f) == pytest.approx(((0.9 + 0.1 + 0.2 + 0.6) / 4, (0.7 + 0.3 + 0.4 + 0.5) / 4))
    assert result.j_and_f == pytest.approx((result.j + result.f) / 2)
    assert list(result.sequences) == ["a", "b", "none"] and all(len(items) == 3 for items in result.items.values())
    assert result.items["j"].measure(np.array([[2, 1, 5], [0, 1, 0]])) == pytest.approx([(1.8 + 0.9) / 5, 0.3])
    with pytest.raises(UserError, match="no video has an object"):
        tracking_result({})


def test_what_does_not_fit_is_refused():
    mask, frame = np.zeros((8, 8), np.uint8), np.ones((2, 2, 3), np.float32)
    with pytest.raises(ValueError, match="integers of 0 to 255"):
        propagate([frame], mask.astype(float))
    with pytest.raises(ValueError, match="integers of 0 to 255"):
        propagate([frame], np.full((8, 8), 256))
    with pytest.raises(ValueError, match="shape='disc'"):
        propagate([frame], mask, shape="disc")
    with pytest.raises(ValueError, match="features of frame 1"):
        list(propagate([frame, frame[:1]], mask))
    with pytest.raises(UserError, match="frame 2 of the video has a mask and no prediction"):
        sequence_scores([mask] * 2, [mask] * 3, [0])
    with pytest.raises(UserError, match="frame 1 of the video has a mask of"):
        sequence_scores([mask, mask[:4]], [mask] * 2, [0])
    with pytest.raises(UserError, match="fewer than three frames"):
        sequence_scores([mask] * 2, [mask] * 2, [0])


@pytest.mark.skipif(not DATA, reason="FOUNDRY_DATA is not set")
def test_floor_on_real_videos():
    expected = {"blackswan": 0.545, "horsejump-high": 0.141, "libby": 0.304, "scooter-black": 0.092}
    found = {}
    for name in expected:
        with tarfile.open(f"{DATA}/davis16/{name}.tar") as archive:
            files = sorted(file for file in archive.getnames() if file.endswith(".png"))
            masks = [
                np.asarray(Image.open(io.BytesIO(archive.extractfile(file).read())).convert("L")) for file in files
            ]
        found[name] = sequence_scores([masks[0]] * len(masks), masks, [255])
    result = tracking_result(found)
    assert {name: float(scores.j[0]) for name, scores in found.items()} == pytest.approx(expected, abs=5e-4)
    assert result.j == pytest.approx(np.mean(list(expected.values())), abs=5e-4)
