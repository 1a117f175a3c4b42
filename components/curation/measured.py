"""A measured pool with the origin of its files; and measuring it again when it has grown, without what is known."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.curation.config import DecodeConfig
from components.curation.decoding import Decoded
from components.curation.measurement import Measurement
from components.curation.pool import Pool, PoolFile
from components.curation.pool.stored import StoredFile
from components.curation.scan import Scan, joined, scan_of, scan_pool, scan_schema, scan_table
from foundry.settings import digest_of

if TYPE_CHECKING:
    from pyarrow import Table


@dataclass(frozen=True)
class Measured:
    """Files of a pool and their origin: ``stored`` names the stored file of each (an archive, or itself), ``stamp``
    what that held (:func:`pool.digests.content_digest`), empty where it is not to be taken as known."""

    scan: Scan
    stored: list[str]
    stamp: list[str]

    def __len__(self) -> int:
        return len(self.scan)

    def select(self, rows: np.ndarray) -> Measured:
        """The files ``rows`` (m,), in that order."""
        chosen = rows.tolist()
        return Measured(
            self.scan.select(rows), [self.stored[row] for row in chosen], [self.stamp[row] for row in chosen]
        )

    def followed_by(self, other: Measured) -> Measured:
        """These files and then the ``other``."""
        rows = np.arange(len(self) + len(other))
        return Measured(joined([self.scan, other.scan], rows), self.stored + other.stored, self.stamp + other.stamp)

    def without_pixels(self, rows: np.ndarray) -> Measured:
        """These files, nothing of the look of the images ``rows`` left; they will be read again."""
        if not len(rows):
            return self
        scan, chosen = self.scan, set(rows.tolist())
        unseen = {}
        for name in ("hash", "grey", "colour"):
            unseen[name] = getattr(scan, name).copy()
            unseen[name][rows] = 0
        pixels = ["" if row in chosen else digest for row, digest in enumerate(scan.pixels_sha256)]
        again = {self.stored[row] for row in chosen}
        stamps = ["" if name in again else stamp for name, stamp in zip(self.stored, self.stamp, strict=True)]
        return Measured(replace(scan, pixels_sha256=pixels, **unseen), self.stored, stamps)

    def table(self) -> Table:
        """As a table; the other way round: :meth:`of`."""
        table = scan_table(self.scan)
        return table.append_column("stored", [self.stored]).append_column("stamp", [self.stamp])

    @classmethod
    def of(cls, table: Table) -> Measured:
        """The files of such a table, which may have more columns."""
        return cls(scan_of(table), table["stored"].to_pylist(), table["stamp"].to_pylist())

    @classmethod
    def nothing(cls) -> Measured:
        """No file."""
        return cls(scan_of(scan_schema().empty_table()), [], [])


def measured(stored: Sequence[tuple[str, str]], scan: Scan) -> Measured:
    """``scan``, that of all files of a pool with the contents ``stored``, with their origin."""
    found = _origins(scan.path, stored)
    stamps = {name: "" if stamp.startswith("unreadable") else stamp for name, stamp in stored}
    for name, count in Counter(name for name, _ in stored).items():
        if count > 1:
            stamps[name] = ""
    for name, reason in zip(found, scan.reason, strict=True):
        if reason == "unreadable":  # the next time it may be readable
            stamps[name] = ""
    return Measured(scan, found, [stamps.get(name, "") for name in found])


def _origins(paths: Sequence[str], stored: Sequence[tuple[str, str]]) -> list[str]:
    """The stored file of each of ``paths``: the longest beginning, up to a slash, that is the name of one."""
    names = {name for name, _ in stored}

    def origin(path: str) -> str:
        name = path
        while name not in names:
            name = name.rpartition("/")[0]
            if not name:
                return ""
        return name

    return [origin(path) for path in paths]


@dataclass(frozen=True)
class PartOfPool(Pool):
    """The stored files ``names`` of a pool, or all but these."""

    names: frozenset[str] = frozenset()
    others: bool = False

    def stored(self) -> Iterator[StoredFile]:
        """As :meth:`Pool.stored`."""
        return (file for file in super().stored() if (file.path in self.names) != self.others)


class Recall:
    """Known bytes, for :func:`scan.scan_pool`."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._rows = {
            digest: row
            for row, digest in enumerate(scan.sha256)
            if digest and (scan.reason[row] or scan.pixels_sha256[row])  # see Measured.without_pixels
        }

    def recall(self, file: PoolFile) -> int | None:
        """The row of the file with the same bytes."""
        return None if file.data is None else self._rows.get(hashlib.sha256(file.data).hexdigest())

    def decoded(self, number: int, path: str) -> Decoded:
        """That row, under the name ``path``."""
        scan, row = self._scan, number
        values = (path, int(scan.size[row]), scan.sha256[row], scan.reason[row], scan.detail[row], scan.extension[row])
        if scan.reason[row]:
            return Decoded(*values)
        return Decoded(
            *values,
            Measurement(
                width=int(scan.width[row]),
                height=int(scan.height[row]),
                pixels_sha256=scan.pixels_sha256[row],
                contrast=float(scan.contrast[row]),
                hash=int(scan.hash[row]),
                grey=scan.grey[row],
                colour=scan.colour[row],
            ),
        )


def measure_again(
    pool: Pool,
    contents: Sequence[tuple[str, str]],
    pool_digest: str,
    config: DecodeConfig,
    past: Measured,
    folder: Path,
) -> tuple[Measured, np.ndarray]:
    """(the files of ``pool`` now, for each of them its row in ``past``: that of the same path and bytes, or -1).
    ``contents`` and ``pool_digest`` are the pool's.

    A stored file of the name and content of before is not opened; of the others, files of known bytes are not
    decoded.
    """
    if not len(past):
        found = measured(contents, scan_pool(pool, pool_digest, config, folder))
        return found, np.full(len(found), -1)
    stored = contents
    times = Counter(name for name, _ in stored)
    before: dict[tuple[str, str], list[int]] = {}
    for row, (name, stamp) in enumerate(zip(past.stored, past.stamp, strict=True)):
        if stamp:
            before.setdefault((name, stamp), []).append(row)
    same = frozenset(name for name, stamp in stored if times[name] == 1 and (name, stamp) in before)
    if pool.kind == "files" and len(times) < len(stored):  # archives of one name: only the order tells their members
        same = frozenset()
    rest = PartOfPool(pool.url, pool.kind, same, others=True)
    of_rest = [(name, stamp) for name, stamp in stored if name not in same]
    fresh = measured(
        of_rest, scan_pool(rest, digest_of([pool_digest, sorted(same)]), config, folder, Recall(past.scan))
    )
    order: list[int] = []
    passed = 0
    for name, stamp in stored:
        if name in same:
            order += before[name, stamp]
            continue
        single = pool.kind == "manifest"
        while passed < len(fresh) and fresh.stored[passed] == name:
            order.append(len(past) + passed)
            passed += 1
            if single:
                break
    chosen = np.array(order, dtype=np.int64)
    stored_names, stamps = past.stored + fresh.stored, past.stamp + fresh.stamp
    now = Measured(
        joined([past.scan, fresh.scan], chosen),
        [stored_names[row] for row in order],
        [stamps[row] for row in order],
    )
    waiting: dict[tuple[str, str], deque[int]] = {}
    reused = set(order)
    for row, (path, digest) in enumerate(zip(past.scan.path, past.scan.sha256, strict=True)):
        if digest and row not in reused:
            waiting.setdefault((path, digest), deque()).append(row)
    known = np.where(chosen < len(past), chosen, -1)
    for place in np.flatnonzero(known < 0).tolist():
        rows = waiting.get((now.scan.path[place], now.scan.sha256[place]))
        if rows:
            known[place] = rows.popleft()
    return now, known
