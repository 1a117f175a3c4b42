"""What the tables of labels, masks and depth say, row by row, one frozen record an image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from foundry.errors import UserError
from training.data.evaluation_tables import Row, Table, complete_splits, file_of, number_of, require, text_of


@dataclass(frozen=True)
class LabelledImage:
    """One row of the classification task: ``label`` indexes :attr:`EvaluationSet.classes`."""

    name: str
    label: int


@dataclass(frozen=True)
class MaskedImage:
    """One row of the segmentation task: image name and name of its mask file."""

    name: str
    mask: str


@dataclass(frozen=True)
class DepthImage:
    """One row of the depth task: metres are ``value * scale + offset`` of the values in the file ``depth``."""

    name: str
    depth: str
    scale: float | None = None
    """None: what the kind of file says (16-bit PNG millimetres, .npy metres)."""
    offset: float = 0.0


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=_Named)


def labelled_images(
    url: str, table: Table, listed: Sequence[str], *, partial: bool
) -> tuple[tuple[str, ...], dict[str, list[LabelledImage]]]:
    """(class names, rows by split) of a table with ``filename,label,split``.

    The classes are ``listed`` where every label is among them, else the sorted labels. With ``partial`` a row without a
    label is left out.
    """
    require(url, table, ("filename", "label", "split"))
    rows = [row for row in table.rows if row["label"] or not partial]
    names = {text_of(url, table, row, "label") for row in rows}
    classes = tuple(listed) if names <= set(listed) else tuple(sorted(names))
    index = {name: number for number, name in enumerate(classes)}
    splits = _by_split(
        url,
        table,
        "label",
        partial,
        lambda row: LabelledImage(file_of(url, table, row, "filename"), index[row["label"]]),
    )
    known = {image.label for image in splits["train"]}
    for image in splits["test"]:
        if image.label not in known:
            raise UserError(
                f"{url}: {table.name} has test images of class '{classes[image.label]}' but no train image of it"
            )
    return classes, splits


def masked_images(url: str, table: Table, column: str, *, partial: bool) -> dict[str, list[MaskedImage]]:
    """Rows by split of a table with ``filename``, ``split`` and the mask file in ``column``."""
    require(url, table, ("filename", column, "split"))
    return _by_split(
        url,
        table,
        column,
        partial,
        lambda row: MaskedImage(file_of(url, table, row, "filename"), file_of(url, table, row, column)),
    )


def depth_images(url: str, table: Table, column: str, *, partial: bool) -> dict[str, list[DepthImage]]:
    """Rows by split of a table with ``filename``, ``split``, the depth file in ``column`` and where wanted ``scale``
    (metres a unit) and ``offset`` (metres)."""
    require(url, table, ("filename", column, "split"))

    def take(row: Row) -> DepthImage:
        scale = number_of(url, table, row, "scale") if row.get("scale") else None
        if scale is not None and scale <= 0:
            raise UserError(f"{url}: {table.name} has scale '{row['scale']}'; metres a unit are above 0")
        offset = number_of(url, table, row, "offset") if row.get("offset") else 0.0
        return DepthImage(file_of(url, table, row, "filename"), file_of(url, table, row, column), scale, offset)

    return _by_split(url, table, column, partial, take)


def _by_split(url: str, table: Table, column: str, partial: bool, take: Callable[[Row], _Row]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = {}
    seen: set[str] = set()
    for each in table.rows:
        if partial and not each[column]:
            continue
        row = take(each)
        refuse_twice(url, table, row.name, seen)
        found.setdefault(each["split"], []).append(row)
    return complete_splits(url, table, found)


def refuse_twice(url: str, table: Table, name: str, seen: set[str], what: str = "") -> None:
    """Add ``name`` to ``seen``, or raise :class:`UserError` where it is there."""
    if name in seen:
        raise UserError(f"{url}: {table.name} lists '{name}' twice{what}")
    seen.add(name)


def one_of(url: str, table: Table, row: Row, column: str, known: Collection[str]) -> str:
    """The value of a column that takes only ``known`` values."""
    value = text_of(url, table, row, column)
    if value not in known:
        raise UserError(f"{url}: {table.name} has {column} '{value}'; it is one of {', '.join(known)}")
    return value
