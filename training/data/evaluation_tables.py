"""The CSV tables of an evaluation set: reading them, and what every one of them must have."""

from __future__ import annotations

import csv
import gzip
import io
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from foundry.errors import UserError
from training.data.evaluation_source import Source

IGNORE = 255
"""Class index of pixels that no score counts."""

LABELS, MASKS, DEPTH, RETRIEVAL = "labels.csv", "masks.csv", "depth.csv", "retrieval.csv"
TRACKING, BOXES, PAIRS = "tracking.csv", "boxes.csv", "pairs.csv"
TABLES = (LABELS, MASKS, DEPTH, RETRIEVAL, TRACKING, BOXES, PAIRS)
"""The tables of which each makes a folder an evaluation set."""
RELATIONS, CLASSES = "relations.csv", "classes.csv"

VALIDATION = ("val", "validation", "valid")
"""Splits of which the first that is there serves as ``test`` where no row says ``test``."""

_Rows = TypeVar("_Rows")


Row = Mapping[str, str]
"""One row of a table: text by column."""


@dataclass(frozen=True)
class Table:
    """Rows of text by column."""

    name: str
    """The file; of a layout without one, what the layout is called in messages."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    layout: bool = False
    """Whether folders said it, not a file."""

    def fills(self, column: str) -> bool:
        """Whether any row has a value in that column."""
        return any(row.get(column) for row in self.rows)


def read_table(source: Source, url: str, file: str) -> Table | None:
    """The table ``file`` or ``file.gz``, values without spaces around them; None where there is none."""
    for name in (file, f"{file}.gz"):
        if name in source:
            break
    else:
        return None
    data = source.read(name)
    try:
        text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
        rows = tuple({key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader)
    except (UnicodeDecodeError, csv.Error, EOFError, OSError) as error:
        raise UserError(f"{url}: {name} is not a readable CSV file ({error})") from None
    return Table(name, tuple(reader.fieldnames or ()), rows)


def require(url: str, table: Table, columns: Sequence[str]) -> None:
    """Raise :class:`UserError` unless the table has these columns and a row."""
    for column in columns:
        if column not in table.columns:
            hint = "; say train or test for each image" if column == "split" else ""
            if len(table.columns) == 1 and re.search(r"[;\t]", table.columns[0]):
                hint = "; separate the columns by commas"
            raise UserError(
                f"{url}: {table.name} has no column '{column}' (it has {', '.join(table.columns) or 'none'}){hint}"
            )
    if not table.rows:
        raise UserError(f"{url}: {table.name} has no rows")


def text_of(url: str, table: Table, row: Row, column: str) -> str:
    """The value of a column that may not be empty."""
    if not row[column]:
        raise UserError(
            f"{url}: {table.name} has a row without a {column} ({_shown(row)}); fill it in or leave the row out"
        )
    return row[column]


def file_of(url: str, table: Table, row: Row, column: str) -> str:
    """The file that a column names, below the set."""
    name = text_of(url, table, row, column)
    clean = posixpath.normpath(name.replace("\\", "/"))
    if clean.startswith(("/", "../")) or clean in ("..", "."):
        raise UserError(f"{url}: {table.name} names '{name}', which does not lie inside the set")
    return clean


def number_of(url: str, table: Table, row: Row, column: str) -> float:
    """The finite number in a column."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{url}: {table.name} has {column} '{row[column]}', which is not a number ({_shown(row)})")
    return value


def _shown(row: Row) -> str:
    return next((f"{column} '{value}'" for column, value in row.items() if value), "an empty row")


def complete_splits(url: str, table: Table, splits: Mapping[str, _Rows]) -> dict[str, _Rows]:
    """``splits`` with ``train`` and ``test``; see :data:`VALIDATION`. Raises :class:`UserError` without either."""
    found = dict(splits)
    serves = next((name for name in VALIDATION if name in found), None)
    if "test" not in found and serves is not None:
        found["test"] = found.pop(serves)
    for split in ("train", "test"):
        if split not in found:
            shown = ", ".join(f"'{name}'" for name in sorted(splits)) or "none"
            if table.layout:
                raise UserError(f"{url}: {table.name} has nothing for '{split}' (it has {shown}); add it")
            raise UserError(f"{url}: {table.name} has no row with split '{split}' (it has {shown})")
    return found


@dataclass(frozen=True)
class MaskIds:
    """What ``classes.csv`` says of the ids in masks: their names, and those that are not scored."""

    names: Mapping[int, str]
    ignored: frozenset[int] = frozenset()
    origin: str = CLASSES
    """The file that says so."""

    def scored(self) -> dict[int, str]:
        """Ids that are scored, ascending, with their names."""
        return {id: name for id, name in sorted(self.names.items()) if id not in self.ignored}


NO_IDS = MaskIds({})


def read_classes(source: Source, url: str) -> MaskIds | None:
    """``classes.csv`` of a set, None without one.

    Columns are ``id,name`` and, where wanted, ``ignore``. A table of several class lists with one suffix each, such as
    ``id40,name40,id13,name13``, is read by the only pair whose ids are all different; there a name that ends in
    ``(ignore)`` is not scored.
    """
    table = read_table(source, url, CLASSES)
    if table is None:
        return None
    suffix = _class_list(table)
    require(url, table, (f"id{suffix}", f"name{suffix}"))
    names: dict[int, str] = {}
    ignored = set()
    for row in table.rows:
        id, name = row[f"id{suffix}"], row[f"name{suffix}"]
        if not (id.isascii() and id.isdigit()) or int(id) > 65535:
            raise UserError(f"{url}: {table.name} has id '{id}', which is not a whole number from 0 up to 65535")
        names[int(id)] = name
        if row.get("ignore", "0") not in ("", "0") or (suffix and name.endswith("(ignore)")):
            ignored.add(int(id))
    if len(names) - len(ignored) > IGNORE:
        raise UserError(f"{url}: {table.name} has more than {IGNORE} classes")
    return MaskIds(names, frozenset(ignored))


def _class_list(table: Table) -> str:
    """Suffix of the columns to read; empty for ``id,name`` and where no pair, or more than one, can be meant."""
    if "id" in table.columns or "name" in table.columns:
        return ""
    suffixes = [
        column[2:] for column in table.columns if column.startswith("id") and f"name{column[2:]}" in table.columns
    ]
    found = [suffix for suffix in suffixes if len({row[f"id{suffix}"] for row in table.rows}) == len(table.rows)]
    return found[0] if len(found) == 1 else ""
