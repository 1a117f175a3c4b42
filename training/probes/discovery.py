"""Single-object discovery without labels on the patch features of one image.

LOST (Siméoni et al. 2021, "Localizing Objects with Self-Supervised Transformers and no Labels") and TokenCut (Wang et
al. 2022, "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut"), scored by CorLoc
(Deselaers et al. 2010). Both were published on the keys of the last attention layer of a DINO network. Output features
work too where their cosines tell object from background; where all of them are positive (features that share a large
mean), LOST sees one object that fills the image, and TokenCut needs a higher threshold: the DINOv3 paper tries 0 to 0.4
in steps of 0.05 and keeps the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foundry.errors import UserError
from training.probes.outcome import Items

DENSE_PATCHES = 2000
"""TokenCut takes a dense solver up to this many patches (seconds), Lanczos steps above."""
_WEAK = 1e-5
"""Weight of an edge between unlike patches (Wang et al. 2022, equation 5): keeps the graph connected."""
_TIE = 1e-6
"""Entries of an eigenvector this close to the largest, relative to it, count as equal: the first patch wins."""


@dataclass(frozen=True)
class Box:
    """A half-open box: rows ``top`` to ``bottom``, columns ``left`` to ``right``, in patches or in pixels."""

    top: float
    left: float
    bottom: float
    right: float

    def scaled(self, grid: tuple[int, int], size: tuple[int, int]) -> Box:
        """A box of a patch grid (h, w) in pixels of the image (H, W) which that grid covers from edge to edge."""
        rows, columns = size[0] / grid[0], size[1] / grid[1]
        return Box(self.top * rows, self.left * columns, self.bottom * rows, self.right * columns)

    def overlaps(self, truth: np.ndarray) -> np.ndarray:
        """(n,) intersection over union with each half-open box (top, left, bottom, right) of ``truth`` (n, 4)."""
        truth = np.asarray(truth, np.float64).reshape(-1, 4)
        top, left, bottom, right = truth.T
        height = np.minimum(self.bottom, bottom) - np.maximum(self.top, top)
        width = np.minimum(self.right, right) - np.maximum(self.left, left)
        shared = np.maximum(height, 0) * np.maximum(width, 0)
        own = (self.bottom - self.top) * (self.right - self.left)
        return shared / np.maximum(own + (bottom - top) * (right - left) - shared, 1e-12)


def lost(features: np.ndarray, k: int = 100) -> Box:
    """The object that LOST finds in patch features (h, w, D), as a box in patches.

    Similarities are cosines. The degree of a patch is the number of patches with a similarity of 0 or more; the seed is
    the patch of smallest degree (objects are smaller than their background). Those of the ``k`` patches of smallest
    degree that are not unlike the seed join it; patches whose summed similarity to them is 0 or more are the mask, and
    the box holds the 4-connected part of it that the seed is in. Equal degrees are ordered row by row.
    """
    similarity, shape = _cosines(features)
    degree = (similarity >= 0).sum(1)
    order = np.argsort(degree, kind="stable")
    seed = int(order[0])
    lowest = order[:k]
    alike = lowest[similarity[seed, lowest] >= 0]
    # a sum of zero must not hang on the order of its terms
    mask = similarity[:, alike].sum(1) >= -1e-9
    mask[seed] = True
    return _box_around(mask.reshape(shape), seed)


def tokencut(features: np.ndarray, threshold: float = 0.2) -> Box:
    """The object that TokenCut finds in patch features (h, w, D), as a box in patches.

    Patches with a cosine of ``threshold`` or more are joined by an edge of weight 1, others by one of 1e-5. The
    normalised cut (Shi and Malik 2000) is the eigenvector of the second smallest eigenvalue of (D - E) y = lambda D y,
    split at its mean; the object is the side of the patch with the largest absolute entry, and the box holds the
    4-connected part that this patch is in. An image in which all patches are joined, or none, is one object as large
    as the image.
    """
    similarity, shape = _cosines(features)
    joined = similarity >= threshold
    np.fill_diagonal(joined, True)
    # nothing can be told apart by a graph in which all patches stand alike
    off_diagonal = int(joined.sum()) - len(joined)
    if off_diagonal in (0, len(joined) * (len(joined) - 1)):
        return Box(0, 0, *shape)
    y = second_eigenvector(np.where(joined, 1.0, _WEAK))
    size = np.abs(y)
    seed = int(np.argmax(size >= size.max() * (1 - _TIE)))
    side = y > y.mean()
    return _box_around((side == side[seed]).reshape(shape), seed)


def second_eigenvector(weights: np.ndarray) -> np.ndarray:
    """(N,) eigenvector y of the second smallest eigenvalue of (D - W) y = lambda D y, of any sign and unit length.

    ``weights`` W is (N, N), symmetric, not negative, with row sums D above zero; N is 2 or more. With z = D^(1/2) y it
    is the eigenvector of the second largest eigenvalue of D^(-1/2) W D^(-1/2), found densely (LAPACK) up to
    :data:`DENSE_PATCHES` rows. Above, the largest one, whose eigenvector D^(1/2) 1 is known, is moved below all others
    and the next found by Lanczos steps from a fixed start; where these do not converge, densely after all.
    """
    from scipy.linalg import eigh
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    count = len(weights)
    root = np.sqrt(weights.sum(1))
    balanced = weights / root[:, None] / root[None, :]
    z = None
    if count > DENSE_PATCHES:
        first = root / np.linalg.norm(root)
        start = np.random.default_rng(0).normal(size=count)
        # no eigenvalue is below -1
        operator = LinearOperator(
            (count, count), matvec=lambda x: balanced @ x - 2 * first * (first @ x), dtype=balanced.dtype
        )
        try:
            z = eigsh(operator, k=1, which="LA", v0=start - first * (first @ start), tol=1e-9)[1][:, 0]
        except ArpackNoConvergence:
            pass
    if z is None:
        z = eigh(balanced, subset_by_index=(count - 2, count - 2), check_finite=False)[1][:, 0]
    y = z / root
    return y / np.linalg.norm(y)


def _cosines(features: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """(h * w, h * w) float64 cosines of the patches of (h, w, D), and (h, w)."""
    if features.ndim != 3 or not features.size:
        raise ValueError(f"patch features have shape {features.shape}, not (h, w, D)")
    x = features.reshape(-1, features.shape[2]).astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("patch features hold values that are not finite")
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return x @ x.T, (features.shape[0], features.shape[1])


def _box_around(mask: np.ndarray, seed: int) -> Box:
    """Box of the 4-connected part of ``mask`` (h, w) in which the patch ``seed`` (counted row by row) lies."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    rows, columns = ndimage.find_objects(parts)[parts.ravel()[seed] - 1]
    return Box(rows.start, columns.start, rows.stop, columns.stop)


@dataclass(frozen=True)
class CorLocResult:
    """Correct localisation of N images."""

    corloc: float
    """Share of the scored images whose box overlaps one of their true boxes enough."""
    hits: np.ndarray
    """(N,) bool."""
    overlaps: np.ndarray
    """(N,) float64 intersection over union with the nearest true box; 0 where an image has none."""
    items: Items
    """Image by image; those without a true box do not count."""


def corloc(boxes: Sequence[Box], truths: Sequence[np.ndarray], iou: float = 0.5) -> CorLocResult:
    """CorLoc of one found box an image, in pixels, against its true boxes.

    ``truths`` holds an (n, 4) array of half-open (top, left, bottom, right) pixels for each image (note that Pascal
    VOC's files count from 1, put x first and include the last pixel). An image is a hit where the intersection over
    union with any of them is ``iou`` or more. Images without a true box are left out, as in the benchmarks. Raises
    :class:`UserError` if that leaves none, :class:`ValueError` if the two lists differ in length.
    """
    best = [found.overlaps(truth).max(initial=0.0) for found, truth in zip(boxes, truths, strict=True)]
    scored = np.array([np.asarray(truth).size > 0 for truth in truths], bool)
    if not scored.any():
        raise UserError("object discovery: no image has a true box; give an evaluation set with boxes")
    overlaps = np.array(best, np.float64)
    hits = scored & (overlaps >= iou)
    items = Items(np.stack([hits, scored], axis=-1).astype(np.float64)[:, None, :])
    return CorLocResult(float(items.measure()[0]), hits, overlaps, items)
