"""Pictures of dense predictions: depth beside the truth, tracked objects along a sequence, dense against global quality
along a training. All are PNG bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from components.common.report.palette import CLASSES, GREYS, heat_colours
from components.evaluation.curves import Curve, dress, line_style, new_figure, png_of
from components.evaluation.pictures import TILE, to_png

GAP = 6
INK = (31, 41, 55)
NOT_SCORED = (229, 231, 235)
"""Of pixels without a true depth: a light grey that the map does not have."""


@dataclass(frozen=True)
class DepthRow:
    """One image of a depth picture."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    truth: np.ndarray
    """(H, W) depths; 0 or not finite where there is none."""
    predicted: Mapping[str, np.ndarray]
    """Title of a network -> (h, w) depths of the same field of view; the same titles in every row."""


def depth_sheet(rows: Sequence[DepthRow], unit: str = "m", height: int = TILE) -> bytes:
    """PNG: each row's image, true depth and what networks predict, on one scale that the bar below tells.

    The scale goes from the 2nd to the 98th percentile of all true depths; near is yellow, far is dark violet, light
    grey has no true depth. Everything is shown whole, in the shape of the first image.
    """
    valid = np.concatenate([row.truth[_known(row.truth)] for row in rows])
    low, high = (float(each) for each in np.percentile(valid, [2, 98])) if len(valid) else (0.0, 1.0)
    width = round(height * rows[0].image.shape[1] / rows[0].image.shape[0])
    font = ImageFont.load_default(size=13)
    titles = ["Image", "True depth", *rows[0].predicted]
    heads = [textwrap.wrap(title, max(width // 7, 1)) for title in titles]
    top = 17 * max(map(len, heads)) + 4
    bottom = top + len(rows) * (height + GAP)
    canvas = Image.new("RGB", (len(titles) * (width + GAP) - GAP, bottom + 34), "white")
    pen = ImageDraw.Draw(canvas)
    for column, lines in enumerate(heads):
        for number, line in enumerate(lines):
            place = (column * (width + GAP) + 1, top - 4 - 17 * (len(lines) - number))
            pen.text(place, line, fill=INK, font=font)
    for number, row in enumerate(rows):
        depths = [row.truth, *row.predicted.values()]
        panels = [_resized(row.image, width, height, Image.Resampling.BICUBIC)]
        panels += [_resized(_painted(each, low, high), width, height, Image.Resampling.NEAREST) for each in depths]
        for column, panel in enumerate(panels):
            canvas.paste(panel, (column * (width + GAP), top + number * (height + GAP)))
    _bar(canvas, bottom, low, high, unit)
    return to_png(canvas)


def _known(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)


def _painted(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    near = 1 - (np.nan_to_num(depth.astype(np.float64)) - low) / max(high - low, 1e-12)
    painted = heat_colours()[np.rint(255 * np.clip(near, 0, 1)).astype(int)]
    painted[~_known(depth)] = NOT_SCORED
    return painted


def _resized(image: np.ndarray, width: int, height: int, how: Image.Resampling) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize((width, height), how)


def _bar(canvas: Image.Image, top: int, low: float, high: float, unit: str) -> None:
    width = min(canvas.width, 3 * TILE)
    ramp = np.repeat(heat_colours(width)[::-1][None], 12, axis=0)
    canvas.paste(Image.fromarray(ramp), (0, top))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for place, value in ((0.0, low), (0.5, (low + high) / 2), (1.0, high)):
        words = f"{value:.2f} {unit}"
        length = font.getlength(words)
        pen.text((min(max(place * width - length / 2, 0), width - length), top + 15), words, fill=INK, font=font)


def tracking_strip(
    frames: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predicted: Mapping[str, Sequence[np.ndarray]],
    count: int = 6,
    height: int = TILE,
) -> bytes:
    """PNG: ``count`` evenly spaced frames of one sequence, the first and the last among them, the objects coloured.

    ``frames`` are (H, W, 3) uint8, ``truth`` and each network's ``predicted`` (title -> masks) (h, w) integers: 0 is
    the background, 255 not scored, others objects. A row for each network, the true masks below.
    """
    places = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    rows = [*predicted.items(), ("Truth", truth)]
    width = round(height * frames[0].shape[1] / frames[0].shape[0])
    font = ImageFont.load_default(size=13)
    size = (len(places) * (width + GAP) - GAP, len(rows) * (height + 20 + GAP) + 16)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, place in enumerate(places):
        words = f"frame {place + 1}"
        pen.text((column * (width + GAP) + 1, 0), words, fill=INK, font=font)
        for number, (title, masks) in enumerate(rows):
            top = 16 + number * (height + 20 + GAP)
            if column == 0:
                pen.text((1, top + 2), title, fill=INK, font=font)
            painted = mask_over(frames[place], masks[place], (width, height))
            canvas.paste(Image.fromarray(painted), (column * (width + GAP), top + 20))
    return to_png(canvas)


def mask_over(frame: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) uint8: ``frame`` at ``size`` (width, height) under the objects of ``mask``, each in a colour
    of its own with a black outline; the background is greyed and lightened."""
    scene = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC), np.float32)
    objects = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    shown = 0.55 * scene.mean(axis=2, keepdims=True) + 0.45 * scene
    shown = 0.75 * shown + 0.25 * 255
    for label in np.unique(objects[(objects > 0) & (objects < 255)]):
        area = objects == label
        shown[area] = 0.35 * scene[area] + 0.65 * CLASSES[(int(label) - 1) % len(CLASSES)]
        shown[binary_dilation(area) & (objects == 0)] = 0
    return np.rint(shown).clip(0, 255).astype(np.uint8)


def plot_dense_against_global(curves: Mapping[str, Curve]) -> bytes | None:
    """Dense against global quality along a training: both over steps, and the one over the other.

    ``curves`` are those of a run (:func:`components.evaluation.curves.read_curves`): k-NN top-1 with segmentation mIoU,
    or with patch coherence where there is no mIoU. None where they have fewer than two steps in common. A path that
    turns downwards while it still goes to the right is the decay of dense features (Siméoni et al. 2025, section 4).
    """
    found = [(name, title) for name, title in _DENSE if name in curves]
    if "knn_top1" not in curves or not found:
        return None
    name, title = found[0]
    whole, dense = (dict(zip(*curves[each], strict=True)) for each in ("knn_top1", name))
    steps = sorted(set(whole) & set(dense))
    if len(steps) < 2:
        return None
    across, up = ([100 * each[step] for step in steps] for each in (whole, dense))
    figure = new_figure(8.6, 2.9)
    left, right = figure.subplots(1, 2)
    for index, (words, values) in enumerate((("k-NN top-1", across), (title, up))):
        left.plot(steps, values, label=words, **line_style(index, len(steps)))
    dress(left, "Along the training (%)", "step")
    left.legend(fontsize=7, frameon=False)
    right.plot(across, up, color=GREYS[2], linewidth=1.2, zorder=1)
    dots = right.scatter(across, up, c=steps, cmap="viridis", s=30, zorder=2, edgecolor="white", linewidth=0.5)
    for place, words in ((0, "start"), (len(steps) - 1, "end")):
        spot = (across[place], up[place])
        right.annotate(words, spot, xytext=(5, 5), textcoords="offset points", fontsize=8, color=GREYS[0])
    dress(right, f"{title[0].upper()}{title[1:]} (%) against k-NN top-1 (%)", "k-NN top-1 (%)")
    bar = figure.colorbar(dots, ax=right, label="step")
    bar.ax.tick_params(labelsize=7)
    bar.set_label("step", fontsize=8, color=GREYS[0])
    return png_of(figure)


_DENSE = (("segmentation_miou", "segmentation mIoU"), ("patch_coherence", "patch coherence"))
