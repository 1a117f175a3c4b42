"""Which pictures a page shows, chosen by rule, and where each comes from: shards, or the pool while it can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.common.report.html import Picture
from components.curation.pool import Pool
from components.curation.report.facts import Facts
from components.curation.report.reasons import DELETED
from components.curation.report.thumbnails import Album, find_files
from foundry.errors import UserError
from foundry.images import DecodeLimits

REASONS_SHOWN, EXAMPLES = 24, 6
GROUPS_SHOWN, COPIES_SHOWN = 12, 7
CONCEPTS_SHOWN, MEMBERS = 12, 9


@dataclass(frozen=True)
class Copied:
    """A group of copies: rows of rejected.parquet, of which the page shows some."""

    key: str
    files: int
    """The kept image among them."""
    kept: int | None
    """Row of samples.parquet of the kept image, where it is in the dataset."""
    undrawn: int | None
    """Row of rejected.parquet of the kept image, where balance did not draw it."""
    copies: Sequence[int]
    """Rows of some copies in rejected.parquet."""


@dataclass(frozen=True)
class Gallery:
    """What a page shows. Pictures are missing where nothing decodes, the pool is out of reach or the page is full."""

    examples: Mapping[str, Sequence[int]]
    """Reason -> rows of rejected.parquet."""
    copied: Sequence[Copied]
    concepts: Mapping[int, Sequence[int]]
    """Number of the concept in :class:`Concepts` -> rows of samples.parquet."""
    kept: Mapping[int, Picture]
    """Row of samples.parquet -> picture."""
    rejected: Mapping[int, Picture]
    """Row of rejected.parquet -> picture."""


def make_gallery(facts: Facts, limits: DecodeLimits, pool: Pool | None) -> Gallery:
    """Choose, read and shrink the pictures of a page. The same dataset and pool give the same bytes."""
    examples = {
        reason: _spread(facts.rejected_rows(reason), EXAMPLES) for reason in list(facts.reasons)[:REASONS_SHOWN]
    }
    copied = [_copied(facts, number) for number in _ends_and_between(len(facts.copies.sizes), GROUPS_SHOWN)]
    concepts: dict[int, Sequence[int]] = {}
    if facts.concepts is not None:
        chosen = _large_middle_small(len(facts.concepts.names), CONCEPTS_SHOWN)
        concepts = {number: _spread(facts.members(facts.concepts.names[number]), MEMBERS) for number in chosen}
    album = Album(limits)
    kept: dict[int, Picture] = {}
    originals = [row for reason in examples for row in _originals(facts, examples[reason])]
    for row in [*(row for rows in concepts.values() for row in rows), *(group.kept for group in copied), *originals]:
        if row is not None and row not in kept and (picture := album.add(facts.dataset.image(row))):
            kept[row] = picture
    wanted = [*(row for rows in examples.values() for row in rows), *(row for group in copied for row in group.copies)]
    wanted += [group.undrawn for group in copied if group.undrawn is not None]
    rejected = _from_pool(facts, wanted, album, limits, pool) if pool is not None else {}
    return Gallery(examples, copied, concepts, kept, rejected)


def _originals(facts: Facts, rows: Sequence[int]) -> list[int]:
    """Rows of samples.parquet of the images that rejected ``rows`` are copies of."""
    keys = [values["of"] for values in facts.rejected(rows) if values["of"]]
    return [row for key in keys if (row := facts.sample_row(key)) is not None]


def _copied(facts: Facts, number: int) -> Copied:
    key = facts.copies.keys[number]
    kept = facts.sample_row(key)
    undrawn = facts.undrawn_row(key) if kept is None else None
    copies = facts.copies_of(key)[:COPIES_SHOWN].tolist()
    return Copied(key, int(facts.copies.sizes[number]), kept, undrawn, copies)


def _from_pool(
    facts: Facts, wanted: Sequence[int], album: Album, limits: DecodeLimits, pool: Pool
) -> dict[int, Picture]:
    """Pictures of those rejected files that were decoded once and can be had, and were not deleted."""
    rows = sorted(set(wanted))
    files: dict[tuple[str, str], list[int]] = {}
    for row, values in zip(rows, facts.rejected(rows), strict=True):
        if values["width"] is not None and values["reason"] not in DELETED.reasons:
            files.setdefault((values["path"], values["sha256"]), []).append(row)
    pictures: dict[int, Picture] = {}
    try:
        for file, data in find_files(pool, files, limits.max_bytes):
            if picture := album.add(data):
                pictures |= dict.fromkeys(files[file], picture)
    except (UserError, OSError):
        pass  # a pool that can no longer be read: what it gave until then is shown
    return pictures


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """At most ``count`` of ``rows``, evenly over their order."""
    return [int(rows[place * len(rows) // count]) for place in range(count)] if len(rows) > count else rows.tolist()


def _ends_and_between(total: int, count: int) -> list[int]:
    """Two thirds of ``count`` numbers from the beginning of ``range(total)``, the others spread over the rest."""
    first = min(total, 2 * count // 3)
    return [*range(first), *_spread(np.arange(first, total), count - first)]


def _large_middle_small(total: int, count: int) -> list[int]:
    """Of ``range(total)`` the first, the middle and the last, a third of ``count`` each; all where there are few."""
    third = count // 3
    if total <= count:
        return list(range(total))
    middle = (total - third) // 2
    return [*range(third), *range(middle, middle + third), *range(total - third, total)]
