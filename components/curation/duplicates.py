"""Groups of images that are copies of one picture, and which of each group is kept.

Copies have equal bytes, equal pixels, or are near duplicates: candidates (:mod:`candidates`) that look alike in some
window (:mod:`windows`) and agree when laid on each other (:mod:`alignment`). Groups are the connected components.

Of a group the best image is kept: most pixels; then colour over grey; then most bytes; then first by path. Images of an
evaluation set come before all of these, so that nothing is kept of which they have a copy (Oquab et al. 2023, appendix
A.1: relative deduplication).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.curation import alignment
from components.curation.candidates import candidate_pairs
from components.curation.config import DuplicateConfig
from components.curation.windows import Hypotheses, best_windows

MAX_STRETCH = 1.12
"""Ratio of scales along the two axes beyond which an alignment is no copy's."""
MIN_OVERLAP = 0.7
"""Share of the template that the aligned source must cover."""
PHOTO_FLATNESS, GRAPHIC_FLATNESS = 0.1, 0.5
"""Flatness up to which a pair is judged as photographs, and from which as graphics; between them the bounds slide."""
COLOURED = 4.0
"""Root mean square of a colour map (levels) from which an image is coloured, for the keep-best rule."""

REASONS = {
    "exact-duplicate": "same bytes as another image",
    "same-pixels": "same pixels as another image, encoded differently",
    "near-duplicate": "a changed copy of another image",
    "evaluation-copy": "a copy of an image of the evaluation set, or of a copy of one",
}


@dataclass(frozen=True)
class Groups:
    """What was found for each of n images.

    ``kept`` (n,) int64: the one that is kept of its group, itself where it is. ``reason``: why it is dropped (a key of
    ``REASONS``), or empty. ``advantage``: in which of ``MERITS`` the kept one is better; of a kept image, better than
    the next best (empty where it is alone). ``sizes`` (n,): members of its group.
    """

    kept: np.ndarray
    reason: list[str]
    advantage: list[str]
    sizes: np.ndarray


def connected_components(count: int, pairs: np.ndarray) -> np.ndarray:
    """The component of each of ``count`` nodes joined by ``pairs`` (m, 2), as its smallest member, (count,) int64."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as scipy_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    number, labels = scipy_components(graph, directed=False)
    smallest = np.full(number, count, np.int64)
    np.minimum.at(smallest, labels, np.arange(count))
    return smallest[labels]


def equal_pairs(values: Sequence[str]) -> np.ndarray:
    """Pairs (m, 2) that join all positions of equal ``values``."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(value, place), place) for place, value in enumerate(values)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)


def near_pairs(
    grey: np.ndarray, colour: np.ndarray, hashes: np.ndarray, sizes: np.ndarray, config: DuplicateConfig
) -> np.ndarray:
    """Pairs (m, 2) of near duplicates among n thumbnails ``grey``, colour maps, difference hashes and image ``sizes``
    (n, 2) width, height."""
    pairs = candidate_pairs(grey, colour, hashes, config.neighbours)
    found = best_windows(grey, pairs)
    alike = found.similarity >= config.candidate_similarity
    found = Hypotheses(**{name: values[alike] for name, values in vars(found).items()})
    judged = alignment.compare(grey, colour, sizes, found)
    flat = alignment.flatness(grey)
    graphic = np.maximum(flat[found.source], flat[found.template])
    return np.stack([found.source, found.template], axis=1)[same_picture(judged, graphic, config)]


def same_picture(judged: alignment.Comparison, flat: np.ndarray, config: DuplicateConfig) -> np.ndarray:
    """Which aligned pairs are copies, (m,) bool; ``flat`` (m,) is the flatness of the flatter of the two."""
    slide = np.clip((flat - PHOTO_FLATNESS) / (GRAPHIC_FLATNESS - PHOTO_FLATNESS), 0, 1)
    similarity = config.photo_similarity + slide * (config.graphic_similarity - config.photo_similarity)
    agreement = config.photo_agreement + slide * (config.graphic_agreement - config.photo_agreement)
    return (
        (judged.similarity >= similarity)
        & (judged.agreement >= agreement)
        & (judged.middle >= config.middle_similarity)
        & (judged.colour >= config.colour_similarity)
        & (judged.stretch <= MAX_STRETCH)
        & (judged.overlap >= MIN_OVERLAP)
    )


@dataclass(frozen=True)
class Images:
    """What telling copies apart needs of n decoded images, in one order."""

    path: Sequence[str]
    sha256: Sequence[str]
    pixels_sha256: Sequence[str]
    size: np.ndarray
    width: np.ndarray
    height: np.ndarray
    hash: np.ndarray
    grey: np.ndarray
    colour: np.ndarray
    evaluation: np.ndarray
    """(n,) bool: belongs to an evaluation set, not to the pool."""

    def coloured(self) -> np.ndarray:
        """(n,) bool: whether the image has colour worth the name."""
        levels = self.colour.reshape(len(self.path), -1).astype(np.float32) * 2
        coloured: np.ndarray = np.sqrt((levels**2).mean(axis=1)) >= COLOURED
        return coloured

    def ranks(self) -> np.ndarray:
        """(n,) int64: 0 for the image that would be kept of all, and so on; see the module."""
        order = sorted(range(len(self.path)), key=self.merits().__getitem__)
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        return ranks

    def merits(self) -> list[tuple[bool, int, bool, int, bytes, int]]:
        """What the keep-best rule sorts by, best first: see ``MERITS``; the position decides between equal paths."""
        coloured = self.coloured()
        return [
            (
                not self.evaluation[i],
                -int(self.width[i]) * int(self.height[i]),
                not coloured[i],
                -int(self.size[i]),
                self.path[i].encode(),
                i,
            )
            for i in range(len(self.path))
        ]


MERITS = ("evaluation", "resolution", "colour", "bytes", "name", "name")
"""Names of the entries of :meth:`Images.merits`."""


def find_duplicates(images: Images, config: DuplicateConfig) -> Groups:
    """Group n images by picture and choose which of each group is kept."""
    count = len(images.path)
    equal_bytes = connected_components(count, equal_pairs(images.sha256))
    equal_pixels = connected_components(count, equal_pairs(images.pixels_sha256))
    joined = [np.stack([np.arange(count), equal_bytes], 1), np.stack([np.arange(count), equal_pixels], 1)]
    if config.near:
        first = np.flatnonzero(equal_pixels == np.arange(count))  # one of each set of equal pixels is compared
        sizes = np.stack([images.width[first], images.height[first]], axis=1)
        near = near_pairs(images.grey[first], images.colour[first], images.hash[first], sizes, config)
        joined.append(first[near])
    group = connected_components(count, np.concatenate(joined))
    ranks = images.ranks()
    best = np.full(count, count, np.int64)
    np.minimum.at(best, group, ranks)
    by_rank = np.argsort(ranks)
    kept = by_rank[best[group]]
    merits = images.merits()
    second = np.full(count, count, np.int64)
    others = np.flatnonzero(kept != np.arange(count))
    np.minimum.at(second, group[others], ranks[others])
    reason, advantage = [], []
    for place, keeper in enumerate(kept.tolist()):
        if keeper == place:
            reason.append("")
            runner_up = second[group[place]]
            advantage.append(_advantage(merits[place], merits[by_rank[runner_up]]) if runner_up < count else "")
            continue
        advantage.append(_advantage(merits[keeper], merits[place]))
        if images.evaluation[keeper]:
            reason.append("evaluation-copy")
        elif equal_bytes[place] == equal_bytes[keeper]:
            reason.append("exact-duplicate")
        else:
            reason.append("same-pixels" if equal_pixels[place] == equal_pixels[keeper] else "near-duplicate")
    return Groups(kept, reason, advantage, np.bincount(group, minlength=count)[group])


def _advantage(better: tuple[object, ...], worse: tuple[object, ...]) -> str:
    return next(name for name, mine, other in zip(MERITS, better, worse, strict=True) if mine != other)
