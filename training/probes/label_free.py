"""What can be measured without labels: retrieval of augmented copies, feature rank, patch coherence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.probes.features import grid_side, normalise_rows
from training.probes.outcome import Items


def copy_retrieval(first: np.ndarray, second: np.ndarray) -> float:
    """Recall@1: share of the rows i of ``first`` (N, D) whose most similar row of ``second`` (N, D) is row i.

    Rows i of both are two views of image i (crop, mirror, colour and blur changes), compared by cosine; instance
    retrieval as in Wu et al. 2018. A tie counts as a miss unless row i comes first.
    """
    return float(copy_hits(first, second).mean())


def copy_hits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) bool: of which rows :func:`copy_retrieval` is the share."""
    similarity = normalise_rows(first) @ normalise_rows(second).T
    return similarity.argmax(1) == np.arange(len(first))


def feature_rank(features: np.ndarray) -> float:
    """RankMe of the L2-normalised ``features`` (N, D): between 1 and min(N, D).

    exp(H(p)) with p the singular values divided by their sum (Garrido et al. 2023, equation 1; the effective rank of
    Roy and Vetterli 2007). Nothing is centred, so features that are all alike have rank 1, however their small
    differences are spread.
    """
    x = normalise_rows(features).astype(np.float64)
    values = np.linalg.svd(x, compute_uv=False)
    p = values / max(values.sum(), 1e-12)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


@dataclass(frozen=True)
class Views:
    """Two views of each of N images for :func:`copy_retrieval` and :func:`patch_coherence`."""

    first: np.ndarray
    """(N, S, S, 3) uint8."""
    second: np.ndarray
    """(N, S, S, 3) uint8."""
    to_second: np.ndarray
    """(N, 2, 3) float64: (x, y, 1) in ``first`` (fractions of its side) -> (x, y) in ``second``."""


def make_views(images: Sequence[np.ndarray], size: int, seed: int = 0) -> Views:
    """Two views a side ``size`` of each (H, W, 3) uint8 image: independent crops of 40 to 100 % of the area, mirrored
    half of the time, with the colour jitter, greyscale and blur that the networks are trained with.

    Image i's views depend on ``seed`` and i only.
    """
    from training.data.augment import random_area, resize
    from training.data.distortion import Distortion
    from training.recipe import Crops

    crops = Crops(blur=(0.0, 0.0, 0.3), solarise=0.0)
    views: list[list[np.ndarray]] = [[], []]
    maps = []
    for index, image in enumerate(images):
        rng = np.random.default_rng([seed, index])
        frames = []
        for side in views:
            top, left, h, w = random_area(image.shape[0], image.shape[1], (0.4, 1.0), crops.aspect, rng)
            view = resize(np.ascontiguousarray(image[top : top + h, left : left + w]), size)
            mirrored = rng.random() < 0.5
            if mirrored:
                view = np.ascontiguousarray(view[:, ::-1])
            side.append(Distortion.draw(crops, crops.blur[2], 0.0, rng)(view))
            # (x, y) of the view -> pixels of the image
            frame = np.array([[w, 0.0, left], [0.0, h, top], [0.0, 0.0, 1.0]])
            if mirrored:
                frame = frame @ np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
            frames.append(frame)
        maps.append((np.linalg.inv(frames[1]) @ frames[0])[:2])
    return Views(np.stack(views[0]), np.stack(views[1]), np.stack(maps))


def patch_coherence(first: np.ndarray, second: np.ndarray, to_second: np.ndarray) -> float:
    """Probability that a patch is more like its true counterpart in another view than like another patch there.

    ``first`` and ``second`` (N, P, D) are patch features of square grids of two views of N images, ``to_second``
    (N, 2, 3) the known map between them (:class:`Views`). The counterpart of a patch of the first view is the patch of
    the second one that its centre falls into; patches that fall outside do not count. Over all other patches of the
    second view the share with a smaller cosine is averaged, ties counting half: the area under the ROC curve of
    "same place" by similarity, 0.5 by chance, 1 at best. Dense correspondence between views (El Banani et al. 2024, the
    protocol of DINOv3's NAVI scores) with geometry known by construction; an average of ranks instead of recall,
    because a small network on a coarse grid rarely ranks the counterpart first. Patch features that lose their place
    (all alike, or noise), as dense features do in long training (Siméoni et al. 2025, section 4), fall to 0.5. Since
    the views overlap, features of nothing but the position in a view reach a little more (about 0.58).
    """
    found = float(coherence_items(first, second, to_second).measure()[0])
    return found if np.isfinite(found) else 0.5


def coherence_items(first: np.ndarray, second: np.ndarray, to_second: np.ndarray) -> Items:
    """What :func:`patch_coherence` is made of, image by image; nothing where no patch of an image counts."""
    side = grid_side(first.shape[1])
    if side < 2:
        return Items(np.zeros((len(first), 1, 2)))
    centres = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) + 0.5) / side
    target = np.einsum("nij,pj->npi", to_second[:, :, :2], centres) + to_second[:, None, :, 2]
    inside = ((target > 0) & (target < 1)).all(-1)
    column, row = np.moveaxis((target * side).astype(int).clip(0, side - 1), -1, 0)
    counterpart = (row * side + column)[..., None]
    similarity = np.einsum("npd,nqd->npq", normalise_rows(first), normalise_rows(second))
    true = np.take_along_axis(similarity, counterpart, axis=2)
    below = (similarity < true).sum(-1) + 0.5 * ((similarity == true).sum(-1) - 1)
    shares = np.where(inside, below / (side * side - 1), 0.0)
    return Items(np.stack([shares.sum(1), inside.sum(1)], axis=-1)[:, None, :].astype(np.float64))
