"""Correspondence between two images by nearest patch features, scored by PCK.

The nearest-neighbour protocol of semantic correspondence (Amir et al. 2022; Min et al. 2019 for SPair-71k and PCK; El
Banani et al. 2024 and Siméoni et al. 2025 for frozen backbones). Where no keypoints are annotated,
:func:`warped_pairs` makes pairs of views with known homographies out of any images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.probes.features import grid_side, normalise_rows
from training.probes.outcome import Items

UPSAMPLE = 4
"""Places a patch and direction at which the target is looked at; 1: patch centres only."""
ALPHAS = (0.05, 0.1, 0.2)
"""Shares of the scale within which a found point is right."""
_ROWS = 16
"""Rows of the upsampled target in memory at once."""


def match(source: np.ndarray, target: np.ndarray, points: np.ndarray, *, upsample: int = UPSAMPLE) -> np.ndarray:
    """(n, 2) float64 points of the target image most like given points of the source image.

    ``source`` (h, w, D) and ``target`` (h2, w2, D) are patch features of the whole images; ``points`` (n, 2) and the
    result are (x, y) as fractions of width and height. Patch features are L2-normalised and stand at the patches'
    centres. The source is sampled bilinearly at each point; the target is upsampled bilinearly ``upsample`` times in
    each direction (beyond the outermost centres the outermost patch holds) and the centre of the cell of largest cosine
    is the answer, so places are told apart to 1 / upsample of a patch; the first row by row of equal ones.
    """
    if source.ndim != 3 or target.ndim != 3 or source.shape[2] != target.shape[2]:
        raise ValueError(f"patch features have shapes {source.shape} and {target.shape}, not (h, w, D) with equal D")
    points = np.asarray(points, np.float64).reshape(-1, 2)
    source, target = normalise_rows(source), normalise_rows(target)
    across, down = _sampling(points[:, 0], source.shape[1]), _sampling(points[:, 1], source.shape[0])
    rows = np.tensordot(down, source, axes=(1, 0))
    queries = normalise_rows(np.einsum("nw,nwd->nd", across, rows))
    # one patch holds at every place: its centre stands for all of them
    height, width = (cells * upsample if cells > 1 else 1 for cells in target.shape[:2])
    down = _sampling((np.arange(height) + 0.5) / height, target.shape[0])
    across = _sampling((np.arange(width) + 0.5) / width, target.shape[1])
    best = np.full(len(points), -np.inf, np.float32)
    place = np.zeros(len(points), np.int64)
    for start in range(0, height, _ROWS):
        some = np.tensordot(down[start : start + _ROWS], target, axes=(1, 0))
        cells = normalise_rows(np.einsum("vw,rwd->rvd", across, some, optimize=True).reshape(-1, target.shape[2]))
        similarity = queries @ cells.T
        found = similarity.argmax(1)
        value = np.take_along_axis(similarity, found[:, None], axis=1)[:, 0]
        better = value > best
        best[better], place[better] = value[better], found[better] + start * width
    return np.stack([(place % width + 0.5) / width, (place // width + 0.5) / height], axis=-1)


def _sampling(places: np.ndarray, cells: int) -> np.ndarray:
    """(n, cells) float32 weights of linear interpolation between the centres of ``cells`` cells at fractions (n,)."""
    x = np.clip(np.asarray(places) * cells - 0.5, 0, cells - 1)
    low = np.minimum(x.astype(int), max(cells - 2, 0))
    share = x - low
    weights = np.zeros((len(x), cells), np.float32)
    rows = np.arange(len(x))
    weights[rows, low] = 1 - share
    weights[rows, np.minimum(low + 1, cells - 1)] += share.astype(np.float32)
    return weights


@dataclass(frozen=True)
class PckResult:
    """Percentages of correct keypoints, as fractions, for each alpha."""

    per_point: dict[float, float]
    """Over all points of all pairs."""
    per_pair: dict[float, float]
    """Mean over the pairs of each pair's own share."""
    items: dict[float, Items]
    """Of ``per_pair``: a row an image pair."""
    point_items: dict[float, Items]
    """Of ``per_point``: a row an image pair, its right points over its points."""


def pck(
    found: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    scale: float | Sequence[float],
    alphas: Sequence[float] = ALPHAS,
) -> PckResult:
    """Share of points found within alpha times a scale of the true ones.

    ``found`` and ``truth`` hold an (n, 2) array of (x, y) for each image pair, in pixels of the target or any unit that
    is the same along x and y; ``scale`` is a length in that unit, for all or for each pair. SPair-71k takes the longer
    side of the object's box (or of the image); fractions of a square image go with a scale of 1. A pair without points
    does not count; a measure without any point is not a number. Raises :class:`ValueError` for lists that do not fit.
    """
    scales = np.broadcast_to(np.asarray(scale, np.float64), (len(found),))
    if any(np.shape(one) != np.shape(two) for one, two in zip(found, truth, strict=True)):
        raise ValueError("found and true points differ in number")
    distances = [
        np.linalg.norm(np.reshape(np.asarray(one, np.float64) - two, (-1, 2)), axis=1)
        for one, two in zip(found, truth, strict=True)
    ]
    counts = np.array([len(each) for each in distances], np.float64)
    points, pairs = {}, {}
    for alpha in alphas:
        right = np.array([(each <= alpha * s).sum() for each, s in zip(distances, scales, strict=True)], np.float64)
        points[alpha] = Items(np.stack([right, counts], axis=-1)[:, None, :])
        shares = np.stack([right / np.maximum(counts, 1), counts > 0], axis=-1)
        pairs[alpha] = Items(shares[:, None, :])
    return PckResult(
        {alpha: float(each.measure()[0]) for alpha, each in points.items()},
        {alpha: float(each.measure()[0]) for alpha, each in pairs.items()},
        pairs,
        points,
    )


@dataclass(frozen=True)
class WarpedPairs:
    """Two views of each of N images and the known map between them."""

    first: np.ndarray
    """(N, S, S, 3) uint8."""
    second: np.ndarray
    """(N, S, S, 3) uint8."""
    to_second: np.ndarray
    """(N, 3, 3) float64 homography: (x, y, 1) in ``first`` (fractions of its side) -> the same in ``second``."""
    points: tuple[np.ndarray, ...]
    """N arrays (n, 2): the places of a regular grid in ``first`` that ``second`` shows too."""
    truth: tuple[np.ndarray, ...]
    """N arrays (n, 2): where ``second`` shows them."""


def warped_pairs(
    images: Sequence[np.ndarray], seed: int = 0, *, size: int = 224, grid: int = 10, colours: bool = True
) -> WarpedPairs:
    """Pairs of views a side ``size`` of each (H, W, 3) uint8 image, with a known homography between them.

    The first view is an upright square of 0.8 of the image's shorter side; the second is a turned (up to 30 degrees),
    stretched, sheared quadrilateral with a little perspective. Both lie within the central square of the image, so that
    no view shows a border or invented pixels. With ``colours`` the second goes through the colour jitter, greyscale and
    blur of training. Points are the centres of a ``grid`` x ``grid`` division of the first view that fall into the
    second. Image i's pair depends on ``seed`` and i only.
    """
    from training.data.distortion import Distortion
    from training.recipe import Crops

    crops = Crops(blur=(0.0, 0.0, 0.3), solarise=0.0)
    middle = (np.arange(grid) + 0.5) / grid
    places = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    firsts, seconds, maps, points, truth = [], [], [], [], []
    for index, image in enumerate(images):
        rng = np.random.default_rng([seed, index])
        square = _central_square(image, round(1.25 * size))
        corner = rng.uniform(0.0, 0.2, size=2)
        upright = np.array([[0.8, 0.0, corner[0]], [0.0, 0.8, corner[1]], [0.0, 0.0, 1.0]])
        turned = _random_view(rng)
        firsts.append(_show(square, upright, size))
        second = _show(square, turned, size)
        seconds.append(Distortion.draw(crops, crops.blur[2], 0.0, rng)(second) if colours else second)
        to_second = np.linalg.inv(turned) @ upright
        maps.append(to_second / to_second[2, 2])
        there = apply_homography(maps[-1], places)
        inside = ((there > 0) & (there < 1)).all(-1)
        points.append(places[inside])
        truth.append(there[inside])
    return WarpedPairs(np.stack(firsts), np.stack(seconds), np.stack(maps), tuple(points), tuple(truth))


def apply_homography(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``points`` (n, 2) mapped by the homography ``matrix`` (3, 3)."""
    x = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return x[:, :2] / x[:, 2:]


def _random_view(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) map from fractions of a view to fractions of the square that it is taken from, inside that square."""
    angle = rng.uniform(-np.pi / 6, np.pi / 6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    shape = turn @ np.array([[stretch, rng.uniform(-0.15, 0.15)], [0.0, 1 / stretch]])
    view = np.eye(3)
    view[:2, :2] = shape
    view[2, :2] = rng.uniform(-0.15, 0.15, size=2)
    view = view @ np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    corners = apply_homography(view, np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    low, high = corners.min(0), corners.max(0)
    zoom = rng.uniform(0.75, 1.0) / (high - low).max()
    left, top = rng.uniform(0, 1 - zoom * (high - low)) - zoom * low
    placed: np.ndarray = np.array([[zoom, 0.0, left], [0.0, zoom, top], [0.0, 0.0, 1.0]]) @ view
    return placed


def _central_square(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of (H, W, 3) at ``side`` x ``side``, as fine as the views that are taken from it."""
    from training.data.augment import resize

    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return resize(np.ascontiguousarray(image[top : top + short, left : left + short]), side)


def _show(square: np.ndarray, view: np.ndarray, size: int) -> np.ndarray:
    """What ``view`` (fractions of the view -> fractions of ``square``) shows, at ``size`` x ``size``, bilinearly."""
    import cv2

    # fractions <-> indices of pixels, whose centres are half a pixel in
    to_fraction = np.array([[1 / size, 0.0, 0.5 / size], [0.0, 1 / size, 0.5 / size], [0.0, 0.0, 1.0]])
    side = len(square)
    to_index = np.array([[side, 0.0, -0.5], [0.0, side, -0.5], [0.0, 0.0, 1.0]])
    matrix = to_index @ view @ to_fraction
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shown: np.ndarray = cv2.warpPerspective(square, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return shown


def pair_scores(
    first: np.ndarray, second: np.ndarray, pairs: WarpedPairs, alphas: Sequence[float] = ALPHAS
) -> PckResult:
    """PCK of patch features ``first`` and ``second`` (N, P, D) of square grids of the two views of ``pairs``.

    Distances are in sides of a view. A place drawn evenly is right about pi alpha^2 of the time, a little less near
    borders. The same place of the second view (features of nothing but the position) is right 8, 27 and 67 % of the
    time at :data:`ALPHAS`, so that 0.05 tells most.
    """
    side = grid_side(first.shape[1])
    found = [
        match(one.reshape(side, side, -1), two.reshape(side, side, -1), points)
        for one, two, points in zip(first, second, pairs.points, strict=True)
    ]
    return pck(found, pairs.truth, 1.0, alphas)
