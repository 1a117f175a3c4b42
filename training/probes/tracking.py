"""Video object segmentation by label propagation, nothing trained (Jabri et al. 2020; Siméoni et al. 2025, 6.1.5).

The masks of the first frame are carried from frame to frame by the similarity of patch features, and scored by the
region and boundary measures of DAVIS (Perazzi et al. 2016; Pont-Tuset et al. 2017).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foundry.errors import UserError
from training.probes.outcome import Items

BOUNDARY_TOLERANCE = 0.008
"""Of the image diagonal: how far apart two boundary pixels may lie and still match (DAVIS)."""
_BLOCK = (8, 18)
"""Patches of a frame that are compared at once: small, so that few of their keys lie outside the neighbourhood."""
_CONSTANT = 1e-6
"""A map of labels that varies by no more is constant: upsampling alone makes such differences."""


def propagate(
    features: Iterable[np.ndarray],
    first_mask: np.ndarray,
    *,
    context: int = 7,
    radius: int = 12,
    shape: Literal["square", "circle"] = "square",
    k: int = 5,
    temperature: float = 0.2,
) -> Iterator[np.ndarray]:
    """(H, W) uint8 mask of each frame, in order; the first is ``first_mask`` (H, W) itself, object ids of 0 to 255.

    ``features``: (h, w, D) floats of each frame, of one size, L2-normalised here. A patch takes the mean label of the
    ``k`` most similar patches, weighted by softmax(cosine / temperature), among those within ``radius`` patches of its
    place (``square``: in each direction; ``circle``: in distance) in the first frame and the last ``context`` ones.
    Labels are soft, at first the share of each id in the patch. They are upsampled bilinearly, each id's map is
    stretched to 0 to 1 unless it is constant, and the largest wins. Frames are read one at a time and no more than
    these ``context`` + 1 are held. Raises :class:`ValueError` for settings or shapes that do not fit.
    """
    first_mask = np.asarray(first_mask)
    ids = np.unique(first_mask)
    if first_mask.ndim != 2 or not np.issubdtype(first_mask.dtype, np.integer) or ids[0] < 0 or ids[-1] > 255:
        raise ValueError("the first mask must be (H, W) integers of 0 to 255")
    if context < 0 or radius < 0 or k < 1 or temperature <= 0 or shape not in ("square", "circle"):
        raise ValueError(f"cannot propagate with {context=}, {radius=}, {k=}, {temperature=}, {shape=}")
    return _propagate(features, first_mask, ids, context, radius, shape == "circle", k, temperature)


def _propagate(
    features: Iterable[np.ndarray],
    first_mask: np.ndarray,
    ids: np.ndarray,
    context: int,
    radius: int,
    circle: bool,
    k: int,
    temperature: float,
) -> Iterator[np.ndarray]:
    size = (first_mask.shape[0], first_mask.shape[1])
    first: tuple[Tensor, Tensor] | None = None
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=context)
    for number, frame in enumerate(features):
        if np.ndim(frame) != 3 or (first is not None and np.shape(frame) != first[0].shape):
            raise ValueError(f"the features of frame {number} are {np.shape(frame)}, not (h, w, D) as those before")
        queries = functional.normalize(torch.as_tensor(np.asarray(frame, np.float32)), dim=-1)
        if first is None:
            first = queries, _patch_labels(first_mask, ids, (queries.shape[0], queries.shape[1]))
            yield first_mask.astype(np.uint8)
            continue
        labels = _carried(queries, [first, *recent], radius, circle, k, temperature)
        recent.append((queries, labels))
        yield ids[_winners(labels, size)].astype(np.uint8)


def _patch_labels(mask: np.ndarray, ids: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """(h, w, C) float32: the share of each patch's area that has each of the ``ids``."""
    rows, columns = _overlap(grid[0], mask.shape[0]), _overlap(grid[1], mask.shape[1])
    shares = [rows @ (mask == label).astype(np.float64) @ columns.T for label in ids]
    return torch.from_numpy(np.stack(shares, axis=-1).astype(np.float32))


def _overlap(cells: int, pixels: int) -> np.ndarray:
    """(cells, pixels) the share of each of ``cells`` equal parts of a line that each of its ``pixels`` covers."""
    edges, marks = np.arange(cells + 1) * (pixels / cells), np.arange(pixels + 1)
    low, high = np.maximum(edges[:-1, None], marks[:-1]), np.minimum(edges[1:, None], marks[1:])
    return np.maximum(high - low, 0.0) * (cells / pixels)


def _carried(
    queries: Tensor, held: Sequence[tuple[Tensor, Tensor]], radius: int, circle: bool, k: int, temperature: float
) -> Tensor:
    """(h, w, C) labels of ``queries`` (h, w, D) from ``held`` frames' features (h, w, D) and labels (h, w, C)."""
    height, width, dim = queries.shape
    classes = held[0][1].shape[-1]
    carried = queries.new_empty(height, width, classes)
    for top in range(0, height, _BLOCK[0]):
        for left in range(0, width, _BLOCK[1]):
            rows = torch.arange(top, min(top + _BLOCK[0], height))
            columns = torch.arange(left, min(left + _BLOCK[1], width))
            window = (
                slice(max(top - radius, 0), int(rows[-1]) + radius + 1),
                slice(max(left - radius, 0), int(columns[-1]) + radius + 1),
            )
            keys = torch.cat([features[window].reshape(-1, dim) for features, _ in held])
            near = _near(rows, columns, torch.arange(height)[window[0]], torch.arange(width)[window[1]], radius, circle)
            block = queries[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].reshape(-1, dim)
            similarity = (block @ keys.T).view(len(block), len(held), -1)
            similarity.masked_fill_(~near[:, None], -torch.inf)
            best, found = similarity.flatten(1).topk(min(k, len(keys)), dim=1)
            weights = torch.softmax(best / temperature, dim=1)
            labels = torch.cat([labels[window].reshape(-1, classes) for _, labels in held])
            mean = torch.einsum("qk,qkc->qc", weights, labels[found])
            carried[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = mean.view(len(rows), len(columns), classes)
    return carried


def _near(rows: Tensor, columns: Tensor, key_rows: Tensor, key_columns: Tensor, radius: int, circle: bool) -> Tensor:
    """(queries, keys) whether a key's place lies in the neighbourhood of a query's, both row by row."""
    down = (rows[:, None, None, None] - key_rows[:, None]).abs()
    across = (columns[:, None, None] - key_columns).abs()
    near = down**2 + across**2 <= radius**2 if circle else (down <= radius) & (across <= radius)
    return near.reshape(len(rows) * len(columns), -1)


def _winners(labels: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(H, W) index of the label that wins at each pixel of ``labels`` (h, w, C)."""
    maps = functional.interpolate(labels.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    varies = high - low > _CONSTANT
    winners: np.ndarray = torch.where(varies, (maps - low) / (high - low), maps).argmax(0).numpy()
    return winners


def region_similarity(predicted: np.ndarray, truth: np.ndarray) -> float:
    """J, intersection over union of two (H, W) bool masks; 1 where both are empty."""
    union = int(np.count_nonzero(predicted | truth))
    return int(np.count_nonzero(predicted & truth)) / union if union else 1.0


def boundary_accuracy(predicted: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F, the harmonic mean of precision and recall of the boundary pixels of two (H, W) bool masks.

    A boundary pixel is right when the other mask has one within ``tolerance`` of the diagonal, rounded up to whole
    pixels: the matching of pairs is approximated by widening (Perazzi et al. 2016, section 5.1). Where neither mask has
    a boundary F is 1, where one has none it is 0.
    """
    said, true = boundary(predicted), boundary(truth)
    if not said.any() or not true.any():
        return float(said.any() == true.any())
    reach = math.ceil(tolerance * math.hypot(*predicted.shape))
    precision = np.count_nonzero(said & _widened(true, reach)) / np.count_nonzero(said)
    recall = np.count_nonzero(true & _widened(said, reach)) / np.count_nonzero(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from the one to the right, below, or below to the right of it."""
    next_ = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge: np.ndarray = (mask ^ next_[:-1, 1:]) | (mask ^ next_[1:, :-1]) | (mask ^ next_[1:, 1:])
    return edge


def _widened(edge: np.ndarray, reach: int) -> np.ndarray:
    """Pixels within ``reach`` of a pixel of ``edge``."""
    import cv2

    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= reach**2).astype(np.uint8)
    wide: np.ndarray = cv2.dilate(edge.astype(np.uint8), disk) > 0
    return wide


@dataclass(frozen=True)
class SequenceScores:
    """J and F of one video, by object."""

    objects: tuple[int, ...]
    j: np.ndarray
    """(O,) float64 mean over the scored frames."""
    f: np.ndarray
    """(O,) float64 mean over the scored frames."""


def sequence_scores(
    predicted: Iterable[np.ndarray], truth: Iterable[np.ndarray], objects: Sequence[int]
) -> SequenceScores:
    """J and F of ``objects`` (ids) in masks (H, W), frame by frame; both may be streams.

    The first frame, which is given, and the last one are left out, as in the semi-supervised task of DAVIS 2017
    (Pont-Tuset et al. 2017). Raises :class:`UserError` for fewer than three frames, and where masks do not fit.
    """
    rows: list[list[tuple[float, float]]] = []
    pending: tuple[np.ndarray, np.ndarray] | None = None
    for number, (said, true) in enumerate(zip_longest(predicted, truth)):
        if said is None or true is None:
            have, lack = ("mask", "prediction") if said is None else ("prediction", "mask")
            raise UserError(f"frame {number} of the video has a {have} and no {lack}; give one of each for every frame")
        if np.shape(said) != np.shape(true):
            raise UserError(
                f"frame {number} of the video has a mask of {np.shape(true)} and a prediction of {np.shape(said)}; "
                "all masks of a video must be of one size"
            )
        if pending is not None:
            rows.append([_object_scores(*pending, label) for label in objects])
        pending = (np.asarray(said), np.asarray(true)) if number else None
    if not rows:
        raise UserError(
            "the video has fewer than three frames, of which the first and last are not scored; leave it out"
        )
    means = np.asarray(rows, np.float64).reshape(len(rows), len(objects), 2).mean(0)
    return SequenceScores(tuple(int(label) for label in objects), means[:, 0], means[:, 1])


def _object_scores(predicted: np.ndarray, truth: np.ndarray, label: int) -> tuple[float, float]:
    said, true = predicted == label, truth == label
    return region_similarity(said, true), boundary_accuracy(said, true)


@dataclass(frozen=True)
class TrackingResult:
    """J, F and their mean over all objects of all videos, fractions."""

    j: float
    f: float
    j_and_f: float
    items: dict[str, Items]
    """Of ``j``, ``f`` and ``j_and_f``, a row a video: the sum over its objects and their number. The measure is DAVIS's
    mean over objects; what is resampled is the video, for its frames and its objects share a scene and are not
    independent."""
    sequences: dict[str, SequenceScores]


def tracking_result(sequences: Mapping[str, SequenceScores]) -> TrackingResult:
    """The mean over the objects of all ``sequences`` (by name). Raises :class:`UserError` where there is no object."""
    if not any(scores.objects for scores in sequences.values()):
        raise UserError("no video has an object to follow; give first masks with ids above 0")
    parts = {
        "j": [scores.j for scores in sequences.values()],
        "f": [scores.f for scores in sequences.values()],
        "j_and_f": [(scores.j + scores.f) / 2 for scores in sequences.values()],
    }
    items = {
        name: Items(np.array([[[values.sum(), len(values)]] for values in rows], np.float64))
        for name, rows in parts.items()
    }
    means = {name: float(part.measure()[0]) for name, part in items.items()}
    return TrackingResult(means["j"], means["f"], means["j_and_f"], items, dict(sequences))
