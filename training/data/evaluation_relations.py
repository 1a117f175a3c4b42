"""What the tables of retrieval, tracking, object discovery and correspondence say: images that belong together.

Relations are those of the revisited Oxford and Paris sets (Radenovic et al. 2018): easy and hard positives, and junk
that counts neither way. Sequences are those of DAVIS (Perazzi et al. 2016, Pont-Tuset et al. 2017).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry.errors import UserError
from training.data.evaluation_rows import one_of, refuse_twice
from training.data.evaluation_tables import Table, file_of, number_of, require, text_of

if TYPE_CHECKING:
    import numpy as np

RELATION_VALUES = {"easy": 1, "hard": 2, "junk": -1}
"""Word in ``relations.csv`` -> entry of :meth:`EvaluationSet.relations`."""


@dataclass(frozen=True)
class RetrievalImage:
    """A query or an image of the gallery. Without a label (None) ``relations.csv`` alone says what is right."""

    name: str
    label: str | None


@dataclass(frozen=True)
class Retrieval:
    """Queries, gallery, and the relations that a file gives: {(query, image): word}."""

    queries: tuple[RetrievalImage, ...]
    gallery: tuple[RetrievalImage, ...]
    given: Mapping[tuple[str, str], str]

    def without_positive(self) -> list[RetrievalImage]:
        """Queries that have nothing to find (counted without the matrix, which may be large)."""
        count = Counter(image.label for image in self.gallery if image.label is not None)
        labels = {image.name: image.label for image in self.gallery}
        of_query = {image.name: image.label for image in self.queries}
        found = {
            name: count[label] - (labels.get(name) == label) if label is not None else 0
            for name, label in of_query.items()
        }
        for (query, name), word in self.given.items():
            by_label = name != query and of_query[query] is not None and of_query[query] == labels[name]
            found[query] += (word != "junk") - by_label
        return [image for image in self.queries if not found[image.name]]

    def matrix(self) -> np.ndarray:
        """(M, N) int8 relations of M queries to N gallery images; see :meth:`EvaluationSet.relations`."""
        import numpy as np

        numbers: dict[str | None, int] = {None: -1}
        for image in (*self.gallery, *self.queries):
            numbers.setdefault(image.label, len(numbers))
        query_labels = np.array([numbers[image.label] for image in self.queries])
        gallery_labels = np.array([numbers[image.label] for image in self.gallery])
        relations = (query_labels[:, None] == gallery_labels[None, :]).astype(np.int8)
        relations[query_labels < 0] = 0
        row = {image.name: index for index, image in enumerate(self.queries)}
        column = {image.name: index for index, image in enumerate(self.gallery)}
        for name in row.keys() & column.keys():
            relations[row[name], column[name]] = RELATION_VALUES["junk"]
        for (query, name), word in self.given.items():
            relations[row[query], column[name]] = RELATION_VALUES[word]
        return relations


@dataclass(frozen=True)
class Sequence_:
    """A video: names of its frames in their order and, for each, the name of its mask or None. The first has one."""

    name: str
    frames: tuple[str, ...]
    masks: tuple[str | None, ...]


@dataclass(frozen=True)
class Box:
    """A box in pixels of the image: left < right, top < bottom."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class BoxedImage:
    """An image and the boxes of its objects, at least one."""

    name: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class ImagePair:
    """Two images and points that show the same: ``source_points[i]`` in one is ``target_points[i]`` in the other,
    each (x, y) in pixels."""

    source: str
    target: str
    source_points: tuple[tuple[float, float], ...]
    target_points: tuple[tuple[float, float], ...]
    scale: float | None = None
    """Pixels of the target that PCK's alpha multiplies; None: the longer side of the target image."""


def retrieval_of(url: str, table: Table, relations: Table | None) -> Retrieval:
    """Queries and gallery of a table with ``filename,role`` and ``label``, which ``relations`` makes optional.

    Raises :class:`UserError` where a role is unknown or nobody's, an image has one role twice, a relation names an
    image that the table does not, or a query has nothing to find.
    """
    require(url, table, ("filename", "role") if relations is not None else ("filename", "label", "role"))
    found: dict[str, list[RetrievalImage]] = {"db": [], "query": []}
    seen: dict[str, set[str]] = {"db": set(), "query": set()}
    for row in table.rows:
        role = one_of(url, table, row, "role", tuple(found))
        name = file_of(url, table, row, "filename")
        refuse_twice(url, table, name, seen[role], f" with role {role}")
        label = row.get("label") or None
        if label is None and relations is None:
            text_of(url, table, row, "label")
        found[role].append(RetrievalImage(name, label))
    for role, images in found.items():
        if not images:
            raise UserError(f"{url}: {table.name} has no row with role '{role}'; retrieval needs query and db images")
    given = _given_relations(url, table, relations, seen) if relations is not None else {}
    result = Retrieval(tuple(found["query"]), tuple(found["db"]), given)
    for query in result.without_positive():
        raise UserError(
            f"{url}: {table.name} has query '{query.name}' of which no db image shows the same; "
            "add one or leave the query out"
        )
    return result


def _given_relations(
    url: str, images: Table, relations: Table, seen: Mapping[str, set[str]]
) -> dict[tuple[str, str], str]:
    require(url, relations, ("query", "image", "relation"))
    found: dict[tuple[str, str], str] = {}
    for row in relations.rows:
        pair = (file_of(url, relations, row, "query"), file_of(url, relations, row, "image"))
        for name, role in zip(pair, ("query", "db"), strict=True):
            if name not in seen[role]:
                raise UserError(f"{url}: {relations.name} names '{name}', which {images.name} does not list as {role}")
        if pair in found:
            raise UserError(f"{url}: {relations.name} lists query '{pair[0]}' with image '{pair[1]}' twice")
        found[pair] = one_of(url, relations, row, "relation", tuple(RELATION_VALUES))
    return found


def sequences_of(url: str, table: Table) -> tuple[Sequence_, ...]:
    """Sequences by name of a table with ``sequence,frame,filename,mask``, frames by their number.

    Raises :class:`UserError` where a frame number is there twice or is none, a sequence has one frame only, its first
    frame has no mask, or no sequence has a mask that could be scored.
    """
    require(url, table, ("sequence", "frame", "filename", "mask"))
    found: dict[str, dict[int, tuple[str, str | None]]] = {}
    for row in table.rows:
        sequence, frame = text_of(url, table, row, "sequence"), row["frame"]
        if not (frame.isascii() and frame.isdigit()):
            raise UserError(f"{url}: {table.name} has frame '{frame}' in sequence '{sequence}'; number the frames")
        frames = found.setdefault(sequence, {})
        if int(frame) in frames:
            raise UserError(f"{url}: {table.name} lists frame {int(frame)} of sequence '{sequence}' twice")
        mask = file_of(url, table, row, "mask") if row["mask"] else None
        frames[int(frame)] = (file_of(url, table, row, "filename"), mask)
    sequences = []
    for name, frames in sorted(found.items()):
        names, masks = zip(*(frames[number] for number in sorted(frames)), strict=True)
        if len(names) < 2:
            raise UserError(f"{url}: {table.name} has one frame only of sequence '{name}'; there is nothing to follow")
        if masks[0] is None:
            raise UserError(
                f"{url}: {table.name} has no mask of '{names[0]}', the first frame of sequence '{name}', "
                "where tracking starts; add it"
            )
        sequences.append(Sequence_(name, names, masks))
    if not any(mask for sequence in sequences for mask in sequence.masks[1:]):
        raise UserError(f"{url}: {table.name} has masks of first frames only, so that nothing can be scored; add more")
    return tuple(sequences)


def boxed_images(url: str, table: Table) -> tuple[BoxedImage, ...]:
    """Images in the order of the table with all their rows of ``filename,left,top,right,bottom``."""
    sides = ("left", "top", "right", "bottom")
    require(url, table, ("filename", *sides))
    found: dict[str, list[Box]] = {}
    for row in table.rows:
        name = file_of(url, table, row, "filename")
        box = Box(*(number_of(url, table, row, side) for side in sides))
        if min(box.left, box.top) < 0 or box.left >= box.right or box.top >= box.bottom:
            shown = ", ".join(row[side] for side in sides)
            raise UserError(
                f"{url}: {table.name} has box {shown} of '{name}'; left, top, right, bottom are pixels from 0 on, "
                "left below right, top below bottom in number"
            )
        found.setdefault(name, []).append(box)
    return tuple(BoxedImage(name, tuple(boxes)) for name, boxes in found.items())


def image_pairs(url: str, table: Table) -> tuple[ImagePair, ...]:
    """Pairs in the order of the table with all their rows of ``source,target,source_x,source_y,target_x,target_y`` and
    where wanted ``scale``, which is one number a pair."""
    places = ("source_x", "source_y", "target_x", "target_y")
    require(url, table, ("source", "target", *places))
    points: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    scales: dict[tuple[str, str], float | None] = {}
    for row in table.rows:
        pair = (file_of(url, table, row, "source"), file_of(url, table, row, "target"))
        place = tuple(number_of(url, table, row, column) for column in places)
        if min(place) < 0:
            raise UserError(f"{url}: {table.name} has a point left of or above an image of pair {' and '.join(pair)}")
        scale = number_of(url, table, row, "scale") if row.get("scale") else None
        if scale is not None and scale <= 0:
            raise UserError(
                f"{url}: {table.name} has scale '{row['scale']}' of pair {' and '.join(pair)}; it is pixels"
            )
        if scales.setdefault(pair, scale) != scale:
            raise UserError(f"{url}: {table.name} has two scales of pair {' and '.join(pair)}; a pair has one")
        points.setdefault(pair, []).append(place)
    return tuple(
        ImagePair(*pair, tuple((x, y) for x, y, _, _ in rows), tuple((x, y) for _, _, x, y in rows), scales[pair])
        for pair, rows in points.items()
    )
