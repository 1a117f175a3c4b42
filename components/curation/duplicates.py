"""Groups of images that are copies of one picture, and which of each group is kept.

Copies have equal bytes, equal pixels, or are near duplicates: candidates (:mod:`candidates`) that look alike in some
window (:mod:`windows`) and agree when laid on each other (:mod:`alignment`). Groups are the connected components.

What a thumbnail cannot settle is looked at more closely (:mod:`closeup`), but not what may be a copy of an evaluation
image: there the doubt counts against the copy. Of a deleted image nothing but the thumbnail is left, which decides.

Of a group the best image is kept: most pixels; then colour over grey; then most bytes; then first by path. Images of an
evaluation set come before all of these, so that nothing is kept of which they have a copy (Oquab et al. 2023, appendix
A.1: relative deduplication).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curation import alignment, closeup
from components.curation.candidates import candidate_pairs, descriptors
from components.curation.config import DuplicateConfig
from components.curation.frames import inner_pictures, within
from components.curation.windows import Hypotheses, best_windows

if TYPE_CHECKING:
    from components.curation.scan import Scan

MAX_STRETCH = 1.12
"""Ratio of scales along the two axes beyond which an alignment is no copy's."""
MIN_OVERLAP = 0.7
"""Share of the template that the aligned source must cover."""
PHOTO_FLATNESS, GRAPHIC_FLATNESS = 0.1, 0.5
"""Flatness up to which a pair is judged as photographs, and from which as graphics; between them the bounds slide."""
DOUBT = 0.12
"""By how much thumbnails may miss the bounds on similarity and agreement where close-ups decide."""
PHOTO_DIFFERENCE, STRICT_FLATNESS = 0.9, 0.4
"""Difference of close-ups that is allowed at ``PHOTO_FLATNESS``; from the other flatness on, the setting's is."""
SMALL, SMALL_SHARE = closeup.SIDE // 2, 2 / 3
"""Side of images (root of the area) up to which every pixel is drawn by hand: they are seen closely even where they
look like photographs, and graphics among them may differ by this share of the setting only."""
OTHER_TINT, SAME_LIGHT = 36.0, 1.06
"""Difference in colour of one place (levels) from which graphics, images flatter than ``TINT_FLATNESS``, are no copies
of each other, where neither contrast nor saturation differs by more than this factor: then nothing was relit."""
TINT_FLATNESS = 0.2
MAX_GAIN = 1.6
"""Contrast of one copy over that of the other, at most, where close-ups decide."""
ONE_SIDED, SPREAD = 0.9, 0.7
"""From where on differences are a watermark: nearly all brighter (or darker), all over the picture."""
COLOURED = 4.0
"""Root mean square of a colour map (levels) from which an image is coloured, for the keep-best rule."""

REASONS = {
    "exact-duplicate": "same bytes as another image",
    "same-pixels": "same pixels as another image, encoded differently",
    "near-duplicate": "a changed copy of another image",
    "evaluation-copy": "a copy of an image of the evaluation set, or of a copy of one",
    "deleted": "an image that was deleted from the dataset, or a copy of one",
}


Reader = Callable[[Sequence[int]], Iterator[np.ndarray]]
"""Gives the close-ups (128, 128, 3) uint8 (:func:`closeup.take`) of images named by rising positions, in that order."""


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


@dataclass(frozen=True)
class _Views:
    """Thumbnails to compare: of n images, and of what lies inside the frames of those that have one."""

    owner: np.ndarray
    """(n + f,) int64: the image of each."""
    whole: np.ndarray
    """(n + f,) bool: shows all of it."""
    box: np.ndarray
    """(n + f, 4): where it lies in the image; see :func:`frames.inner_pictures`."""
    grey: np.ndarray
    colour: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, images: Images) -> _Views:
        sizes = np.stack([images.width, images.height], axis=1).astype(np.float64)
        framed, grey, colour, inner_sizes, box = inner_pictures(images.grey, images.colour, sizes)
        count = len(sizes)
        return cls(
            np.concatenate([np.arange(count), framed]),
            np.repeat([True, False], [count, len(framed)]),
            np.concatenate([np.tile([0.0, 0.0, 1.0, 1.0], (count, 1)), box]),
            np.concatenate([images.grey, grey]),
            np.concatenate([images.colour, colour]),
            np.concatenate([sizes, inner_sizes]),
        )

    def at(self, chosen: np.ndarray) -> _Views:
        """The views ``chosen``."""
        return _Views(**{name: values[chosen] for name, values in vars(self).items()})

    def candidates(self, images: Images, config: DuplicateConfig) -> np.ndarray:
        """Pairs (m, 2) that may be copies; a view is as fresh as its image. None is of one image, and none of two
        frames: their insides are compared."""
        inner = ~self.whole
        described = images.described
        if described is None:
            described = descriptors(images.grey, images.colour)
        described = np.concatenate([described, descriptors(self.grey[inner], self.colour[inner])])
        fresh = None if images.fresh is None else images.fresh[self.owner]
        pairs = candidate_pairs(described, images.hash[self.owner], config.neighbours, fresh=fresh)
        framed = np.zeros(len(self.owner), bool)
        framed[self.owner[inner]] = True
        same = self.owner[pairs[:, 0]] == self.owner[pairs[:, 1]]
        return pairs[~same & ~framed[pairs].all(axis=1)]


def near_pairs(images: Images, config: DuplicateConfig, read: Reader | None) -> np.ndarray:
    """Pairs (m, 2) of near duplicates among n images of different pixels, of those that are ``fresh`` with all."""
    views = _Views.of(images)
    pairs = views.candidates(images, config)
    if images.fresh is not None:  # only what is in a pair is looked at
        used, place = np.unique(pairs, return_inverse=True)
        views, pairs = views.at(used), place.reshape(-1, 2)
    if not len(pairs):
        return np.zeros((0, 2), np.int64)
    found = best_windows(views.grey, pairs)
    found = _of(found, found.similarity >= config.candidate_similarity)
    judged = alignment.compare(views.grey, views.colour, views.sizes, found)
    flat = alignment.flatness(views.grey)
    graphic = np.maximum(flat[found.source], flat[found.template])
    alike = same_picture(judged, graphic, config)
    joined = views.owner[np.stack([found.source, found.template], axis=1)]
    if read is None:
        return joined[alike]
    perhaps = same_picture(judged, graphic, config, DOUBT)
    photographs = graphic <= PHOTO_FLATNESS
    small = np.minimum(*(views.sizes[side].prod(axis=1) for side in (found.source, found.template))) <= SMALL**2
    sure = np.where(images.evaluation[joined].any(axis=1), perhaps, alike & photographs & ~small)
    doubtful = perhaps & ~sure
    if images.deleted is not None:  # of these there is no file
        deleted = images.deleted[joined].any(axis=1)
        sure, doubtful = np.where(deleted, alike, sure), doubtful & ~deleted
    group = connected_components(len(images.path), joined[sure])
    doubtful &= group[joined[:, 0]] != group[joined[:, 1]]
    chosen = np.flatnonzero(doubtful)
    seen = _close_differences(views, read, _of(found, chosen), judged.maps[chosen])
    slide = np.clip((graphic[chosen] - PHOTO_FLATNESS) / (STRICT_FLATNESS - PHOTO_FLATNESS), 0, 1)
    slide = np.where(alike[chosen] & (photographs | ~small)[chosen], slide, 1)
    strict = np.where(small[chosen], SMALL_SHARE, 1) * config.close_difference
    limit = PHOTO_DIFFERENCE + slide * (strict - PHOTO_DIFFERENCE)
    chosen = chosen[same_closely(seen, limit, graphic[chosen])]
    return np.concatenate([joined[sure], joined[chosen]])


def without_bridges(pairs: np.ndarray, coloured: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """``pairs`` (m, 2) of copies without those by which images without colour would join coloured ones that are no
    copies of each other: pictures that differ in colour alone have the same grey one.

    ``coloured`` (n,) bool. Grey copies of each other join one group of coloured copies: that with which they share most
    pairs, then the one with the first image. Those that are joined with coloured images by ``before`` (k, 2), pairs of
    earlier copies, join no others.
    """
    before = np.zeros((0, 2), np.int64) if before is None else before
    mixed = coloured[pairs[:, 0]] != coloured[pairs[:, 1]]
    group = connected_components(len(coloured), np.concatenate([pairs[~mixed], before]))
    across = pairs[mixed]
    grey = group[np.where(coloured[across[:, 0]], across[:, 1], across[:, 0])]
    free = ~np.isin(grey, group[coloured])
    across, grey = across[free], grey[free]
    colour = group[np.where(coloured[across[:, 0]], across[:, 0], across[:, 1])]
    links, place, shared = np.unique(np.stack([grey, colour], 1), axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((links[:, 1], -shared, links[:, 0]))
    strongest = np.zeros(len(links), bool)
    strongest[order[np.unique(links[order, 0], return_index=True)[1]]] = True
    return np.concatenate([pairs[~mixed], across[strongest[place.reshape(-1)]]])


def _close_differences(views: _Views, read: Reader, found: Hypotheses, maps: np.ndarray) -> closeup.Difference:
    """The pairs ``found`` of ``views`` seen closely. Close-ups lie in a file that has no name: they may be many."""
    used, place = np.unique(np.concatenate([found.source, found.template]), return_inverse=True)
    shape = (max(1, len(used)), closeup.SIDE, closeup.SIDE, 3)
    with tempfile.TemporaryFile() as file:
        pictures = np.memmap(file, np.uint8, "w+", shape=shape)
        owners, count = np.unique(views.owner[used], return_counts=True)
        order = np.argsort(views.owner[used], kind="stable")
        start = 0
        for picture, number in zip(read(owners.tolist()), count, strict=True):
            for view in order[start : start + number]:
                whole = views.whole[used[view]]
                pictures[view] = picture if whole else within(picture, views.box[used[view]])
            start += number
        source, template = place[: len(maps)], place[len(maps) :]
        return closeup.differences(pictures, views.sizes[used], source, template, found.mirrored, maps)


def same_picture(
    judged: alignment.Comparison, flat: np.ndarray, config: DuplicateConfig, doubt: float = 0.0
) -> np.ndarray:
    """Which aligned pairs are copies, (m,) bool; ``flat`` (m,) is the flatness of the flatter of the two. The bounds on
    similarity and agreement are lowered by ``doubt``."""
    slide = np.clip((flat - PHOTO_FLATNESS) / (GRAPHIC_FLATNESS - PHOTO_FLATNESS), 0, 1)
    similarity = config.photo_similarity + slide * (config.graphic_similarity - config.photo_similarity)
    agreement = config.photo_agreement + slide * (config.graphic_agreement - config.photo_agreement)
    return (
        (judged.similarity >= similarity - doubt)
        & (judged.agreement >= agreement - doubt)
        & (judged.middle >= config.middle_similarity)
        & (judged.colour >= config.colour_similarity)
        & (judged.stretch <= MAX_STRETCH)
        & (judged.overlap >= MIN_OVERLAP)
    )


def same_closely(seen: closeup.Difference, limit: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Which pairs seen closely are copies, (m,) bool: nothing differs by more than ``limit`` (m,), or a watermark.
    ``flat`` (m,) is the flatness of the flatter of the two."""
    watermark = (seen.one_sided >= ONE_SIDED) & (seen.spread >= SPREAD)
    relit = _either_way(seen.gain)
    as_lit = np.maximum(relit, _either_way(seen.tint_gain)) <= SAME_LIGHT
    other_tint = (seen.tint > OTHER_TINT) & (flat > TINT_FLATNESS) & as_lit
    return np.asarray((relit <= MAX_GAIN) & ((seen.largest <= limit) & ~other_tint | watermark))


def _either_way(factor: np.ndarray) -> np.ndarray:
    """``factor`` or its inverse, whichever is above 1."""
    return np.maximum(factor, 1 / np.maximum(factor, 1e-9))


def _of(found: Hypotheses, chosen: np.ndarray) -> Hypotheses:
    return Hypotheses(**{name: values[chosen] for name, values in vars(found).items()})


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
    deleted: np.ndarray | None = None
    """(n,) bool: was deleted, and is of the pool no more."""
    settled: np.ndarray | None = None
    """(n,) bool: a picture that was kept before, and comes before all that were not."""
    fresh: np.ndarray | None = None
    """(n,) bool: was not compared with the others before. Near duplicates of these only are looked for."""
    joined: np.ndarray | None = None
    """(m, 2): pairs known to be copies."""
    described: np.ndarray | None = None
    """(n, 120): their :func:`candidates.descriptors`."""

    @classmethod
    def of(
        cls,
        parts: Sequence[tuple[Scan, np.ndarray]],
        folder: Path,
        evaluation: np.ndarray,
        deleted: np.ndarray | None = None,
        **known: np.ndarray,
    ) -> Images:
        """The decoded images of ``parts``, scans and rows of these, laid end to end; their thumbnails and colour maps
        lie in files of ``folder``. ``known``: the other fields."""
        from components.curation.scan import gather

        def texts(name: str) -> list[str]:
            return [getattr(scan, name)[row] for scan, rows in parts for row in rows]

        def numbers(name: str) -> np.ndarray:
            return np.concatenate([getattr(scan, name)[rows] for scan, rows in parts])

        def arrays(name: str) -> np.ndarray:
            columns = [getattr(scan, name) for scan, _ in parts]
            return gather(columns, [rows for _, rows in parts], folder / f"{name}.npy")

        return cls(
            path=texts("path"),
            sha256=texts("sha256"),
            pixels_sha256=texts("pixels_sha256"),
            size=numbers("size"),
            width=numbers("width"),
            height=numbers("height"),
            hash=numbers("hash"),
            grey=arrays("grey"),
            colour=arrays("colour"),
            evaluation=evaluation,
            deleted=deleted,
            **known,
        )

    def at(self, rows: np.ndarray) -> Images:
        """The images ``rows``, without what is known of pairs."""

        def chosen(values: Any) -> Any:
            return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]

        given = {name: values for name, values in vars(self).items() if values is not None and name != "joined"}
        return Images(**{name: chosen(values) for name, values in given.items()})

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

    def merits(self) -> list[tuple[bool, bool, bool, int, bool, int, bytes, int]]:
        """What the keep-best rule sorts by, best first: see ``MERITS``; the position decides between equal paths."""
        coloured = self.coloured()
        none = np.zeros(len(self.path), bool)
        deleted = none if self.deleted is None else self.deleted
        settled = none if self.settled is None else self.settled
        return [
            (
                not deleted[i],
                not self.evaluation[i],
                not settled[i],
                -int(self.width[i]) * int(self.height[i]),
                not coloured[i],
                -int(self.size[i]),
                self.path[i].encode(),
                i,
            )
            for i in range(len(self.path))
        ]


MERITS = ("deletion", "evaluation", "place in the dataset", "resolution", "colour", "bytes", "name", "name")
"""Names of the entries of :meth:`Images.merits`."""


def find_duplicates(images: Images, config: DuplicateConfig, read: Reader | None = None) -> Groups:
    """Group n images by picture and choose which of each group is kept. Without ``read`` pairs that thumbnails cannot
    settle are judged by them all the same."""
    count = len(images.path)
    equal_bytes = connected_components(count, equal_pairs(images.sha256))
    equal_pixels = connected_components(count, equal_pairs(images.pixels_sha256))
    joined = [np.stack([np.arange(count), equal_bytes], 1), np.stack([np.arange(count), equal_pixels], 1)]
    if config.near:
        first = np.flatnonzero(equal_pixels == np.arange(count))  # one of each set of equal pixels is compared
        of_first = None if read is None else lambda chosen: read(first[chosen].tolist())
        near = first[near_pairs(images.at(first), config, of_first)]
        before = None if images.joined is None else equal_pixels[images.joined]
        joined.append(without_bridges(near, images.coloured(), before))
    if images.joined is not None:
        joined.append(images.joined)
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
        if images.deleted is not None and images.deleted[keeper]:
            reason.append("deleted")
        elif images.evaluation[keeper]:
            reason.append("evaluation-copy")
        elif equal_bytes[place] == equal_bytes[keeper]:
            reason.append("exact-duplicate")
        else:
            reason.append("same-pixels" if equal_pixels[place] == equal_pixels[keeper] else "near-duplicate")
    return Groups(kept, reason, advantage, np.bincount(group, minlength=count)[group])


def explain(images: Images, groups: Groups, place: int) -> tuple[str, str]:
    """(reason, detail) of the dropped image ``place``."""
    reason, path = groups.reason[place], images.path[int(groups.kept[place])]
    if reason == "deleted":
        return reason, f"copy of an image {path}"
    if reason == "evaluation-copy":
        return reason, f"copy of {path} of the evaluation set"
    return reason, f"copy of {path}, kept for its {groups.advantage[place]}"


def why_kept(groups: Groups, place: int) -> str:
    """In words, of the kept image ``place``."""
    size = int(groups.sizes[place])
    return f"best of {size} copies by {groups.advantage[place]}" if size > 1 else "unique"


def _advantage(better: tuple[object, ...], worse: tuple[object, ...]) -> str:
    return next(name for name, mine, other in zip(MERITS, better, worse, strict=True) if mine != other)
