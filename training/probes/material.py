"""The images and truths that every network is measured on, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foundry.images import decode_image
from training.data.evaluation_relations import Sequence_
from training.data.evaluation_set import EvaluationSet
from training.probes.label_free import Views, make_views
from training.probes.options import ProbeOptions
from training.probes.passes import ImageList
from training.probes.segmentation import scaled_mask

FIRST, SECOND = "views/first", "views/second"
IMAGES = "images"
"""Lists of the two views of unlabelled images, and of these images themselves."""


@dataclass(frozen=True)
class Split:
    """One half of a task: a list of images (:attr:`Material.lists`) and what is known of each."""

    images: str
    names: Sequence[str]
    truth: Any
    """Class labels as an array, or a list of masks or of depths."""


@dataclass(frozen=True)
class Task:
    """Train and test images of one kind of truth in one set."""

    owner: str
    """The set."""
    prefix: str
    """What its measures' names begin with: nothing for the first set with such a truth, else ``SET/``."""
    train: Split
    test: Split
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, a gallery and which of it is right for which query."""

    prefix: str
    queries: str
    gallery: str
    relations: np.ndarray
    """(M, N) int8: 0 another, 1 an easy positive, 2 a hard one, -1 not counted."""


@dataclass(frozen=True)
class Clip:
    """A video: its frames are a list of images; ``masks`` reads the objects of a frame, None where it has no mask."""

    name: str
    frames: str
    masks: Sequence[Callable[[], np.ndarray] | None]


@dataclass(frozen=True)
class TrackingTask:
    """Videos of one set."""

    prefix: str
    clips: Sequence[Clip]


@dataclass(frozen=True)
class BoxTask:
    """Images with the boxes of their objects, (n, 4) top, left, bottom, right in pixels."""

    prefix: str
    images: str
    boxes: Sequence[np.ndarray]


@dataclass(frozen=True)
class PairTask:
    """Pairs of images with points that show the same.

    Pair i is images 2i and 2i + 1 of the list; points are (n, 2) x, y in fractions of the image, scales in fractions of
    the second image's sides (x, y): what PCK's threshold is a part of.
    """

    prefix: str
    images: str
    source: Sequence[np.ndarray]
    target: Sequence[np.ndarray]
    scale: Sequence[np.ndarray]


@dataclass
class Material:
    """Everything that protocols look at. Images are read when a list is first looked through."""

    options: ProbeOptions
    images: Sequence[np.ndarray]
    """Unlabelled images of the dataset, (H, W, 3) uint8."""
    sets: Mapping[str, EvaluationSet] = field(default_factory=dict)
    lists: dict[str, ImageList] = field(default_factory=dict)
    classification: list[Task] = field(default_factory=list)
    segmentation: list[Task] = field(default_factory=list)
    depth: list[Task] = field(default_factory=list)
    retrieval: list[RetrievalTask] = field(default_factory=list)
    tracking: list[TrackingTask] = field(default_factory=list)
    boxes: list[BoxTask] = field(default_factory=list)
    pairs: list[PairTask] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen: Views | None = None
        """What :meth:`views` gave last."""
        self._side = 0
        if len(self.images):
            self.lists[IMAGES] = ImageList(len(self.images), self.images.__getitem__)
        for name, found in self.sets.items():
            self._take(name, found)

    def views(self, side: int) -> Views | None:
        """Two views of each unlabelled image at ``side`` pixels; from now on they are :data:`FIRST` and
        :data:`SECOND`. None for fewer than two images."""
        if len(self.images) < 2:
            return None
        if side != self._side:
            self.seen, self._side = make_views(self.images, side, self.options.seed), side
            for name, pixels in ((FIRST, self.seen.first), (SECOND, self.seen.second)):
                self.lists[name] = ImageList(len(pixels), pixels.__getitem__)
        return self.seen

    def read(self, images: str, index: int) -> np.ndarray:
        """Image ``index`` of a list, (H, W, 3) uint8."""
        return self.lists[images].load(index)

    def _list(self, name: str, found: EvaluationSet, names: Sequence[str]) -> str:
        """The list of these images: equal ones, which several tasks have, are one."""
        key = f"{name}/{hashlib.sha256(chr(0).join(names).encode()).hexdigest()[:12]}"
        self.lists[key] = ImageList(len(names), lambda index: decode_image(found.read(names[index])))
        return key

    def _take(self, name: str, found: EvaluationSet) -> None:
        options = self.options
        if found.has_labels:
            splits = []
            for split, limit in (("train", options.train_limit), ("test", options.test_limit)):
                rows = spread(found.classification(split), limit)
                names = [row.name for row in rows]
                labels = np.array([row.label for row in rows])
                splits.append(Split(self._list(name, found, names), names, labels))
            self.classification.append(
                Task(name, self._prefix(self.classification, name), splits[0], splits[1], found.classes)
            )
        if found.has_masks:
            splits = []
            for split in ("train", "test"):
                scenes = spread(found.segmentation(split), options.mask_limit)
                names = [row.name for row in scenes]
                masks = [scaled_mask(found, row) for row in scenes]
                splits.append(Split(self._list(name, found, names), names, masks))
            classes = tuple(found.mask_classes.values())
            self.segmentation.append(Task(name, self._prefix(self.segmentation, name), splits[0], splits[1], classes))

        if found.has_depth:
            splits = []
            for split in ("train", "test"):
                rooms = spread(found.depth(split), options.mask_limit)
                names = [row.name for row in rooms]
                splits.append(Split(self._list(name, found, names), names, [found.read_depth(row) for row in rooms]))
            self.depth.append(Task(name, self._prefix(self.depth, name), splits[0], splits[1]))
        if found.has_retrieval:
            queries, gallery = (
                self._list(name, found, [row.name for row in rows]) for rows in (found.queries, found.gallery)
            )
            self.retrieval.append(
                RetrievalTask(self._prefix(self.retrieval, name), queries, gallery, found.relations())
            )
        if found.has_tracking:
            self.tracking.append(
                TrackingTask(
                    self._prefix(self.tracking, name), [self._clip(name, found, each) for each in found.sequences]
                )
            )
        if found.has_boxes:
            names = [row.name for row in found.boxes]
            boxes = [
                np.array([[box.top, box.left, box.bottom, box.right] for box in row.boxes], np.float64)
                for row in found.boxes
            ]
            self.boxes.append(BoxTask(self._prefix(self.boxes, name), self._list(name, found, names), boxes))
        if found.has_pairs:
            self._take_pairs(name, found)

    def _clip(self, name: str, found: EvaluationSet, clip: Sequence_) -> Clip:
        def reader(mask: str) -> Callable[[], np.ndarray]:
            return lambda: found.read_objects(mask)

        masks = [None if mask is None else reader(mask) for mask in clip.masks]
        return Clip(clip.name, self._list(name, found, clip.frames), masks)

    def _take_pairs(self, name: str, found: EvaluationSet) -> None:
        names = [part for pair in found.pairs for part in (pair.source, pair.target)]
        images = self._list(name, found, names)
        sides = [np.array(image.shape[1::-1], np.float64) for image in self.lists[images]]
        self.pairs.append(
            PairTask(
                self._prefix(self.pairs, name),
                images,
                [np.array(pair.source_points) / side for pair, side in zip(found.pairs, sides[::2], strict=True)],
                [np.array(pair.target_points) / side for pair, side in zip(found.pairs, sides[1::2], strict=True)],
                [found.pck_scale(pair) / side for pair, side in zip(found.pairs, sides[1::2], strict=True)],
            )
        )

    def _prefix(self, tasks: Sequence[Any], name: str) -> str:
        return f"{name}/" if tasks else ""


def spread(rows: Sequence[Any], limit: int) -> list[Any]:
    """At most ``limit`` of ``rows``, evenly spread; 0: all."""
    if not limit or len(rows) <= limit:
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]
