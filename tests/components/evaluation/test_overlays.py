from __future__ import annotations

import io

import numpy as np
from PIL import Image

from components.common.report.palette import CLASSES, heat_colours
from components.evaluation.overlays import (
    GAP,
    NOT_SCORED,
    DepthRow,
    depth_sheet,
    mask_over,
    plot_dense_against_global,
    tracking_strip,
)


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def frame(height: int = 30, width: int = 40, value: int = 120) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_depths_share_one_scale() -> None:
    """Two images, one near (1 m) and one far (9 m): equal depths have equal colours wherever they stand."""
    near, far = np.full((30, 40), 1.0), np.full((30, 40), 9.0)
    near[:5] = 0
    rows = [DepthRow(frame(), near, {"Network": far[::3, ::4]}), DepthRow(frame(), far, {"Network": near + 4})]
    drawn = pixels_of(depth_sheet(rows, height=60))
    width, colours = 80, heat_colours()
    top = 21
    centre = [(top + row * (60 + GAP) + 40, column * (width + GAP) + 40) for row in (0, 1) for column in (1, 2)]
    found = [drawn[place].tolist() for place in centre]
    assert found[0] == colours[-1].tolist(), "near is yellow"
    assert found[1] == found[2] == colours[0].tolist(), "far is dark, predicted or true"
    assert np.abs(np.array(found[3]) - colours[128]).max() <= 3, "5 m is in the middle"
    assert drawn[top + 3, width + GAP + 40].tolist() == list(NOT_SCORED)
    bar = drawn[top + 2 * (60 + GAP) + 6, : 3 * width]
    assert np.abs(bar[0] - colours[-1]).max() < 8 and (np.diff(bar.sum(-1)) <= 3).all(), "the bar goes from near to far"


def test_depth_without_any_truth() -> None:
    row = DepthRow(frame(), np.zeros((30, 40)), {"Network": np.full((3, 4), 2.0)})
    assert pixels_of(depth_sheet([row])).shape[1] == 3 * (149 + GAP) - GAP


def test_objects_are_coloured_and_outlined_and_the_rest_is_pale() -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 5:15], mask[5:15, 25:35], mask[20:, :] = 1, 2, 255
    shown = mask_over(frame(value=0), mask, (80, 60)).astype(int)
    for x, colour in ((20, CLASSES[0]), (60, CLASSES[1])):
        assert np.abs(shown[20, x] - 0.65 * colour).max() <= 1
        assert shown[9, x].tolist() == [0, 0, 0], "black outline"
    assert shown[50, 40].tolist() == shown[4, 4].tolist() == [64, 64, 64], "what is not scored is background"


def test_a_strip_shows_first_and_last_frames_above_the_truth() -> None:
    frames = [frame(value=10 * number) for number in range(11)]
    mask = np.zeros((30, 40), np.uint8)
    mask[10:20, 10:30] = 1
    empty = np.zeros_like(mask)
    strip = tracking_strip(frames, [mask] * 11, {"Network": [empty] * 10 + [mask]}, count=3, height=60)
    drawn = pixels_of(strip)
    assert drawn.shape == (2 * (60 + 20 + GAP) + 16, 3 * (80 + GAP) - GAP, 3)
    predicted, truth = 16 + 20, 16 + 20 + 60 + 20 + GAP
    for column, number in enumerate((0, 5, 10)):
        x = column * (80 + GAP)
        assert abs(drawn[predicted + 2, x + 2, 0] - (0.75 * 10 * number + 0.25 * 255)) <= 1, "first, middle and last"
        coloured = drawn[truth + 30, x + 40]
        assert coloured[2] - coloured[0] > 60, "blue of the first object"
        assert (drawn[predicted + 30, x + 40].tolist() == coloured.tolist()) == (number == 10)


def test_a_strip_of_fewer_frames_than_asked_for() -> None:
    mask = np.zeros((30, 40), np.uint8)
    assert pixels_of(tracking_strip([frame()] * 2, [mask] * 2, {}, height=60)).shape[1] == 2 * (80 + GAP) - GAP


def test_dense_against_global_needs_both_at_the_same_steps() -> None:
    steps = [10, 20, 30, 40]
    knn, coherence = (steps, [0.2, 0.4, 0.5, 0.6]), (steps, [0.6, 0.8, 0.7, 0.65])
    png = plot_dense_against_global({"knn_top1": knn, "patch_coherence": coherence})
    assert png is not None
    drawn = pixels_of(png)
    for colour in ([0, 114, 178], [213, 94, 0]):  # two lines of other colours on the left
        assert (np.abs(drawn[:, : drawn.shape[1] // 2] - colour).sum(-1) < 12).sum() > 200
    assert (np.abs(drawn[:, drawn.shape[1] // 2 :] - heat_colours()[-1]).sum(-1) < 12).any(), "the end of the path"
    masks = {"knn_top1": knn, "patch_coherence": coherence, "segmentation_miou": (steps, [0.1, 0.2, 0.3, 0.4])}
    assert plot_dense_against_global(masks) != png, "mIoU is preferred"
    assert plot_dense_against_global({"knn_top1": knn}) is None
    assert plot_dense_against_global({"patch_coherence": coherence}) is None
    assert plot_dense_against_global({"knn_top1": knn, "patch_coherence": ([40, 50], [0.1, 0.2])}) is None
