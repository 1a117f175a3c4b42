"""First look at candidate pairs: at 12 x 12 pixels, does the whole of one image look like some window of the other?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from components.curation.blocks import by_blocks, fixed_blocks

GRID = 12
"""Side of a window's description in pixels."""
BLOCK = 256
"""Images whose windows are held at a time."""
MARGIN_LEVELS = 8
"""Grey levels within which an outer row or column counts as one plain margin."""
SCALE = np.float32(1 / 255)


@lru_cache(maxsize=1)
def fixed_windows() -> np.ndarray:
    """(k, 4) float64 rows (centre x, centre y, half width, half height) in a frame of -1..1.

    The whole; crops of 85 % and 75 % at several places; the middle (a frame cut off); all but a strip above or below
    (a caption cut off).
    """
    rows = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.9, 0.9), (0.0, 0.0, 0.8, 0.8)]
    for size, places in ((0.85, 3), (0.75, 4)):
        offsets = np.linspace(size - 1, 1 - size, places)
        rows += [(x, y, size, size) for x in offsets for y in offsets]
    for height in (0.9, 0.82):
        rows += [(0.0, height - 1, 1.0, height), (0.0, 1 - height, 1.0, height)]
    return np.array(rows)


@dataclass(frozen=True)
class Hypotheses:
    """The best alignment found for each pair: ``template`` pixels (-1..1, mirrored first where ``mirrored``) times
    ``scale`` (m, 2) plus ``offset`` (m, 2) are pixels of ``source``; ``similarity`` (m,) is their correlation."""

    source: np.ndarray
    template: np.ndarray
    mirrored: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    similarity: np.ndarray


def content_boxes(grey: np.ndarray) -> np.ndarray:
    """(n, 4) rows like :func:`fixed_windows`: each image (n, 64, 64) without its plain margins, at least half of it."""
    side = grey.shape[1]
    edges = []
    for lines in (grey.transpose(0, 2, 1), grey):  # columns, then rows
        low, high = lines.min(axis=2).astype(np.int16), lines.max(axis=2).astype(np.int16)
        spans = []
        for first, last in ((low, high), (low[:, ::-1], high[:, ::-1])):
            smallest = np.minimum.accumulate(first, axis=1)
            largest = np.maximum.accumulate(last, axis=1)
            spans.append(np.minimum((largest - smallest <= MARGIN_LEVELS).sum(axis=1), side // 4))
        edges.append((spans[0] / side * 2 - 1, 1 - spans[1] / side * 2))
    (left, right), (top, bottom) = edges
    return np.stack([(left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2], axis=1)


def describe(grey: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Area averages of all ``windows`` (k, 4) of all images ``grey`` (n, 64, 64): (n, k, 144) float32 of zero mean and
    unit length; plain windows are zero."""
    image = grey.astype(np.float32) * SCALE
    across, down = _overlaps(windows[:, 0], windows[:, 2], grey), _overlaps(windows[:, 1], windows[:, 3], grey)
    pixels = np.stack([np.matmul(np.matmul(down[k], image), across[k].T) for k in range(len(windows))], axis=1)
    return _standard(pixels.reshape(len(grey), len(windows), -1))


def describe_each(grey: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """The same of one window for each image: ``windows`` (n, 4) to (n, 144)."""
    image = grey.astype(np.float32) * SCALE
    across, down = _overlaps(windows[:, 0], windows[:, 2], grey), _overlaps(windows[:, 1], windows[:, 3], grey)
    return _standard(np.matmul(np.matmul(down, image), across.transpose(0, 2, 1)).reshape(len(grey), -1))


def _overlaps(centre: np.ndarray, half: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """(k, 12, 64) share that each pixel of ``grey`` has in each cell of windows along one axis."""
    side = grey.shape[1]
    steps = np.linspace(-1, 1, GRID + 1)
    edges = (centre[:, None] + half[:, None] * steps + 1) / 2 * side
    first, last = edges[:, :-1, None], edges[:, 1:, None]
    pixel = np.arange(side)
    overlap = np.clip(np.minimum(last, pixel + 1) - np.maximum(first, pixel), 0, 1)
    return (overlap / np.maximum(overlap.sum(axis=2, keepdims=True), 1e-9)).astype(np.float32)


def _standard(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.where(length > 1e-2, rows / np.maximum(length, 1e-2), 0).astype(np.float32)


def best_windows(grey: np.ndarray, pairs: np.ndarray, threads: int | None = None) -> Hypotheses:
    """For each of ``pairs`` (m, 2) the alignment of highest correlation, either way round, mirrored or not."""
    windows, count = fixed_windows(), len(grey)
    boxes = by_blocks(lambda span: content_boxes(grey[span]), count, BLOCK, threads)
    whole = by_blocks(lambda span: describe(grey[span], windows[:1])[:, 0], count, BLOCK, threads)
    boxed = by_blocks(lambda span: describe_each(grey[span], boxes[span]), count, BLOCK, threads)
    flipped, boxed_flipped = _mirror(whole), _mirror(boxed)
    sources = np.concatenate([pairs[:, 0], pairs[:, 1]])
    templates = np.concatenate([pairs[:, 1], pairs[:, 0]])
    order = np.argsort(sources, kind="stable")
    starts = np.searchsorted(sources[order], np.arange(count + 1))
    best = np.zeros((len(sources), 3), np.float32)  # similarity, window (the last two: see _placing), mirrored

    def look(span: slice) -> None:
        described = describe(grey[span], windows)
        for image in range(span.start, span.stop):
            rows = order[starts[image] : starts[image + 1]]
            if not len(rows):
                continue
            others = templates[rows]
            scores = np.empty((2, len(windows) + 2, len(rows)), np.float32)
            for way, (full, box) in enumerate(((whole, boxed), (flipped, boxed_flipped))):
                scores[way, :-2] = described[image - span.start] @ full[others].T
                scores[way, -2] = full[others] @ boxed[image]
                scores[way, -1] = box[others] @ boxed[image]
            flat = scores.reshape(-1, len(rows))
            chosen = flat.argmax(axis=0)
            way, window = np.divmod(chosen, len(windows) + 2)
            best[rows] = np.stack([flat[chosen, np.arange(len(rows))], window, way], axis=1)

    with fixed_blocks(count, BLOCK, threads) as blocks:
        for _ in blocks(look):
            pass
    half = len(pairs)
    forward = best[:half, 0] >= best[half:, 0]
    similarity, window, mirrored = np.where(forward[:, None], best[:half], best[half:]).T
    source, template = np.where(forward, pairs.T, pairs.T[::-1])
    return Hypotheses(
        source, template, mirrored > 0, *_placing(windows, boxes, source, template, mirrored > 0, window), similarity
    )


def _mirror(described: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(described.reshape(-1, GRID, GRID)[:, :, ::-1]).reshape(len(described), -1)


def _placing(
    windows: np.ndarray,
    boxes: np.ndarray,
    source: np.ndarray,
    template: np.ndarray,
    mirrored: np.ndarray,
    window: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), each (m, 2), of the chosen windows: a fixed one, the box of the source on the whole template, or
    box on box."""
    fixed = windows[np.minimum(window, len(windows) - 1).astype(np.int64)]
    mine, other = boxes[source], boxes[template].copy()
    other[mirrored, 0] *= -1
    other[window == len(windows)] = windows[0]
    ratio = mine[:, 2:] / other[:, 2:]
    by_box = (window >= len(windows))[:, None]
    scale = np.where(by_box, ratio, fixed[:, 2:])
    offset = np.where(by_box, mine[:, :2] - ratio * other[:, :2], fixed[:, :2])
    return scale, offset
