"""What an evaluation set says: every task's rows, taken from its tables or its layout, and what names it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from foundry.errors import UserError
from training.data.evaluation_layouts import davis, recognise
from training.data.evaluation_relations import (
    BoxedImage,
    ImagePair,
    Retrieval,
    Sequence_,
    boxed_images,
    image_pairs,
    retrieval_of,
    sequences_of,
)
from training.data.evaluation_rows import (
    DepthImage,
    LabelledImage,
    MaskedImage,
    depth_images,
    labelled_images,
    masked_images,
)
from training.data.evaluation_source import Source
from training.data.evaluation_tables import (
    BOXES,
    DEPTH,
    LABELS,
    MASKS,
    NO_IDS,
    PAIRS,
    RELATIONS,
    RETRIEVAL,
    TABLES,
    TRACKING,
    MaskIds,
    Table,
    read_classes,
    read_table,
)


@dataclass
class Contents:
    """The rows of every task; empty for a task that the set does not have."""

    source: Source
    """Where the files named in the rows are."""
    ids: MaskIds = NO_IDS
    classes: tuple[str, ...] = ()
    labels: dict[str, list[LabelledImage]] = field(default_factory=dict)
    masks: dict[str, list[MaskedImage]] = field(default_factory=dict)
    depth: dict[str, list[DepthImage]] = field(default_factory=dict)
    retrieval: Retrieval = field(default_factory=lambda: Retrieval((), (), {}))
    sequences: tuple[Sequence_, ...] = ()
    boxes: tuple[BoxedImage, ...] = ()
    pairs: tuple[ImagePair, ...] = ()
    tables: dict[str, str] = field(default_factory=dict)
    """Task -> the file that its rows are from."""

    def tasks(self) -> dict[str, bool]:
        """Every task there is -> whether the set has it."""
        return {
            "labels": bool(self.labels),
            "masks": bool(self.masks),
            "depth": bool(self.depth),
            "retrieval": bool(self.retrieval.queries),
            "tracking": bool(self.sequences),
            "boxes": bool(self.boxes),
            "pairs": bool(self.pairs),
        }

    def images(self) -> dict[str, set[str]]:
        """Names of the images of every split. Tasks that fit nothing have only test images."""
        found: dict[str, set[str]] = {}
        for split in {*self.labels, *self.masks, *self.depth}:
            found[split] = {row.name for row in self.labels.get(split, ())}
            found[split].update(row.name for row in self.masks.get(split, ()))
            found[split].update(row.name for row in self.depth.get(split, ()))
        test = {image.name for image in (*self.retrieval.queries, *self.retrieval.gallery)}
        test.update(image.name for image in self.boxes)
        test.update(frame for sequence in self.sequences for frame in sequence.frames)
        test.update(name for pair in self.pairs for name in (pair.source, pair.target))
        if test:
            found.setdefault("test", set()).update(test)
        return found

    def files(self) -> dict[str, str]:
        """Every file that a row names -> the table that does."""
        files: dict[str, str] = {}

        def take(task: str, names: Iterable[str | None]) -> None:
            for name in names:
                if name is not None:
                    files.setdefault(name, self.tables.get(task, "its layout"))

        for labelled in self.labels.values():
            take("labels", (row.name for row in labelled))
        for masked in self.masks.values():
            take("masks", (name for row in masked for name in (row.name, row.mask)))
        for measured in self.depth.values():
            take("depth", (name for row in measured for name in (row.name, row.depth)))
        take("retrieval", (image.name for image in (*self.retrieval.queries, *self.retrieval.gallery)))
        take("tracking", (name for sequence in self.sequences for name in (*sequence.frames, *sequence.masks)))
        take("boxes", (image.name for image in self.boxes))
        take("pairs", (name for pair in self.pairs for name in (pair.source, pair.target)))
        return files

    def lines(self) -> Iterable[tuple[Any, ...]]:
        """Every row in one order that does not depend on that of the tables: what a digest is taken of."""
        # past reports name sets of labels and masks by these lines: their form and order stay
        for id, name in sorted(self.ids.names.items()):
            yield "class", id, name, id in self.ids.ignored
        for split in sorted({*self.labels, *self.masks}):
            for image in sorted(self.labels.get(split, ()), key=lambda row: row.name):
                yield "label", split, image.name, self.classes[image.label]
            for row in sorted(self.masks.get(split, ()), key=lambda row: row.name):
                yield "mask", split, row.name, row.mask
        for split, rows in sorted(self.depth.items()):
            for item in sorted(rows, key=lambda row: row.name):
                yield "depth", split, item.name, item.depth, item.scale, item.offset
        for role, found in (("query", self.retrieval.queries), ("db", self.retrieval.gallery)):
            yield from sorted((role, each.name, each.label or "") for each in found)
        yield from sorted(("relation", *pair, word) for pair, word in self.retrieval.given.items())
        for sequence in self.sequences:
            for frame, mask in zip(sequence.frames, sequence.masks, strict=True):
                yield "frame", sequence.name, frame, mask or ""
        yield from sorted(
            ("box", boxed.name, box.left, box.top, box.right, box.bottom) for boxed in self.boxes for box in boxed.boxes
        )
        yield from sorted(
            ("pair", pair.source, pair.target, *source, *target, pair.scale or 0.0)
            for pair in self.pairs
            for source, target in zip(pair.source_points, pair.target_points, strict=True)
        )


def read_contents(url: str, source: Source) -> Contents:
    """What the tables of a set say; without any table what its layout says. DAVIS sequences may lie beside either.

    Raises :class:`UserError` where a table is wrong, a file that it names is not there, or there is nothing at all.
    """
    tables = {name: table for name in TABLES if (table := read_table(source, url, name)) is not None}
    contents = _of_tables(url, source, tables) if tables else _of_layout(url, source)
    if TRACKING not in tables and (sequences := davis(url, contents.source)) is not None:
        contents.sequences = sequences_of(url, sequences)
    if not any(contents.tasks().values()):
        raise UserError(
            f"{url}: holds neither {LABELS} nor {MASKS}, nor another table ({', '.join(TABLES[2:])}), nor a layout "
            "that is read without one (train/CLASS/*.jpg, images/train with annotations/train, train/images with "
            "train/labels, shards train-*.tar with labels, DAVIS); without labels leave the set out"
        )
    _check_files(url, contents)
    return contents


def _of_tables(url: str, source: Source, tables: Mapping[str, Table]) -> Contents:
    found = Contents(source)
    labels, retrieval = tables.get(LABELS), tables.get(RETRIEVAL)
    masks, mask_column = tables.get(MASKS), "mask"
    depth, depth_column = tables.get(DEPTH), "depth"
    partial = False
    if labels is not None and "role" in labels.columns and "split" not in labels.columns:
        if retrieval is not None:
            raise UserError(f"{url}: {retrieval.name} and {labels.name} both have a column role; keep one of them")
        labels, retrieval = None, labels
    if labels is not None:
        with_masks = masks is None and "label_file" in labels.columns
        with_depth = depth is None and "depth_file" in labels.columns
        # then a row may have one kind of truth and not the other
        partial = with_masks + with_depth + ("label" in labels.columns) > 1
        if with_masks and (labels.fills("label_file") or not partial):
            masks, mask_column = labels, "label_file"
        if with_depth and (labels.fills("depth_file") or not partial):
            depth, depth_column = labels, "depth_file"
        if (with_masks or with_depth) and not labels.fills("label"):
            labels = None
    if labels is not None or masks is not None:
        found.ids = read_classes(source, url) or found.ids
    if labels is not None:
        _take_labels(url, found, labels, partial=partial)
    if masks is not None:
        found.masks = masked_images(url, masks, mask_column, partial=partial and mask_column == "label_file")
    if depth is not None:
        found.depth = depth_images(url, depth, depth_column, partial=partial and depth_column == "depth_file")
    if retrieval is not None:
        found.retrieval = retrieval_of(url, retrieval, read_table(source, url, RELATIONS))
    tracking, boxes, pairs = tables.get(TRACKING), tables.get(BOXES), tables.get(PAIRS)
    if tracking is not None:
        found.sequences = sequences_of(url, tracking)
    if boxes is not None:
        found.boxes = boxed_images(url, boxes)
    if pairs is not None:
        found.pairs = image_pairs(url, pairs)
    of_tasks = (labels, masks, depth, retrieval, tracking, boxes, pairs)
    found.tables = {task: table.name for task, table in zip(found.tasks(), of_tasks, strict=True) if table is not None}
    return found


def _of_layout(url: str, source: Source) -> Contents:
    inside = [name for name in source.names() if posixpath.basename(name).removesuffix(".gz") in TABLES]
    if inside:
        raise UserError(
            f"{url}: holds neither {LABELS} nor {MASKS} nor another table itself, but {min(inside)}; "
            "give the folder of one set"
        )
    layout = recognise(url, source)
    if layout is None:
        return Contents(source)
    found = Contents(layout.source, read_classes(layout.source, url) or layout.ids)
    if layout.labels is not None:
        _take_labels(url, found, layout.labels, partial=False)
    if layout.masks is not None:
        found.masks = masked_images(url, layout.masks, "mask", partial=False)
    return found


def _take_labels(url: str, found: Contents, table: Table, partial: bool) -> None:
    listed = list(found.ids.scored().values())
    found.classes, found.labels = labelled_images(url, table, listed, partial=partial)


def _check_files(url: str, contents: Contents) -> None:
    files = contents.files()
    missing = [name for name in files if name not in contents.source]
    if missing:
        raise UserError(
            f"{url}: {files[missing[0]]} names '{missing[0]}', which is not there"
            + (f" ({len(missing)} of {len(files)} files are missing)" if len(missing) > 1 else "")
        )
