"""What becomes of each file of a pool that grew, or of a dataset from which something is deleted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from components.curation.config import CurationConfig
from components.curation.index import SAMPLE, Concepts, Index
from components.curation.measured import Measured, PartOfPool
from components.curation.pool import Pool, PoolFile
from components.curation.rejections import Rejections, filter_images, undrawn
from components.curation.sampling import balanced_sample
from components.curation.shards import key_of
from foundry.errors import UserError

if TYPE_CHECKING:
    from pyarrow import Table

    from components.curation.scan import Scan

BALANCE = "balance"
COPIES = ("exact-duplicate", "same-pixels", "near-duplicate")
"""Verdicts of a picture's copies, which name it in ``of``."""
EVALUATION, DELETED = "evaluation-copy", "deleted"


@dataclass
class Files:
    """The files of the pool, ``present`` in number, then the samples whose file is gone; and what becomes of each.

    ``origin`` (n,): its row in the index of before, -1 for a new file. ``verdict`` is as in the index, empty while it
    is undecided. Of a picture, ``why`` says why it is kept of its copies. ``vectors``: of the rows with a cluster.
    ``described``: of all rows, not a number where there are none. ``undrawn``: why a picture is not drawn, by row.
    """

    measured: Measured
    present: int
    origin: np.ndarray
    verdict: list[str]
    why: list[str]
    of_key: list[str]
    cluster: list[str]
    vectors: np.ndarray
    described: np.ndarray
    undrawn: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, now: Measured, known: np.ndarray, index: Index) -> Files:
        """The files as they were judged before; those of ``known`` -1 are undecided."""
        there = set(known.tolist())
        absent = [row for row, verdict in enumerate(index.verdict) if verdict == SAMPLE and row not in there]
        origin = np.concatenate([known, np.array(absent, np.int64)])

        def before(values: list[str]) -> list[str]:
            return [values[row] if row >= 0 else "" for row in origin.tolist()]

        return cls(
            now.followed_by(index.images.select(np.array(absent, np.int64))) if absent else now,
            len(now),
            origin,
            before(index.verdict),
            before(index.why),
            before(index.of),
            before(index.cluster),
            index.vectors,
            np.append(index.described, np.full((1, index.described.shape[1]), np.nan, np.float32), axis=0)[origin],
        )

    def __len__(self) -> int:
        return len(self.origin)

    @property
    def scan(self) -> Scan:
        """The measurements."""
        return self.measured.scan

    def rows(self, *verdicts: str) -> np.ndarray:
        """The rows of these verdicts, in order."""
        return np.array([row for row, verdict in enumerate(self.verdict) if verdict in verdicts], dtype=np.int64)

    def key(self, row: int) -> str:
        """The key of an image."""
        return key_of(self.scan.sha256[row])

    def judge(self, row: int, verdict: str, why: str, of: str = "") -> None:
        """Set what becomes of a file."""
        self.verdict[row], self.why[row], self.of_key[row] = verdict, why, of

    def pictures(self) -> dict[str, int]:
        """The row of each picture by its key."""
        return {self.key(row): row for row in self.rows(SAMPLE, BALANCE).tolist()}

    def reconsider(self, held_out: Mapping[str, int]) -> None:
        """A known copy of what is neither a picture nor held out any more is judged like a new file."""
        pictures = self.pictures()
        for row, verdict in enumerate(self.verdict):
            lost = verdict in COPIES and self.of_key[row] not in pictures
            if lost or (verdict == EVALUATION and self.of_key[row] not in held_out):
                self.judge(row, "", "")

    def filter(self, config: CurationConfig) -> None:
        """Judge the undecided files that are no image, or of no use."""
        undecided = self.rows("")
        scan = self.scan.select(undecided)
        rejections = Rejections(scan)
        filter_images(scan, config.filters, rejections)
        for place, row in enumerate(undecided.tolist()):
            if (found := rejections.get(place)) is not None:
                reason, detail, *_ = found
                self.judge(row, reason, detail)

    def read(self, rows: Collection[int], pool: Pool, max_bytes: int) -> Iterator[PoolFile]:
        """The files ``rows``, of those that are present, in their order. Other stored files are not opened."""
        names = frozenset(self.measured.stored[row] for row in rows)
        there = (row for row, name in enumerate(self.measured.stored[: self.present]) if name in names)
        files = PartOfPool(pool.url, pool.kind, names).files(0, max_bytes)
        return (file for row, file in zip(there, files, strict=False) if row in rows)

    def place(self, index: Index, embed: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Give each new picture its cluster; ``embed`` makes the vectors (m, d) of rows (m,), ascending. Without it
        there must be no new picture."""
        pictures = self.rows(SAMPLE, BALANCE)
        known = np.array([bool(self.cluster[row]) for row in pictures.tolist()], dtype=bool)
        new = pictures[~known]
        vectors = np.zeros((len(pictures), index.vectors.shape[1]), np.float32)
        vectors[known] = index.vectors[index.vector_rows()[self.origin[pictures[known]]]]
        if len(new):
            assert embed is not None
            vectors[~known] = embed(new)
        for row, path in zip(new.tolist(), index.concepts.paths(vectors[~known]).tolist(), strict=True):
            self.cluster[row] = "/".join(map(str, path))
        for row in set(range(len(self))) - set(pictures.tolist()):
            self.cluster[row] = ""
        self.vectors = vectors

    def draw(self, samples: Table, config: CurationConfig) -> dict[str, float]:
        """Draw what the dataset lacks; returns the weight of each of its keys.

        The pictures are the samples by key, then the others in order.
        """
        weights = dict(zip(samples["key"].to_pylist(), samples["weight"].to_pylist(), strict=True))
        rows = sorted(self.rows(SAMPLE).tolist(), key=self.key)
        held = [int(weights[self.key(row)]) for row in rows]
        others = self.rows(BALANCE).tolist()
        rows, held = rows + others, held + [0] * len(others)
        if not rows:
            raise UserError("no image is left: all are copies of images that are held out or were deleted")
        balance, clusters = config.balance, [self.cluster[row] for row in rows]
        target = balance.size or max(1, round(balance.fraction * len(rows)))
        times = balanced_sample(
            np.array([[int(part) for part in name.split("/")] for name in clusters]),
            max(target, sum(held)),
            seed=config.seed,
            copies=balance.copies,
            held=np.array(held),
        )
        for row, count in zip(rows, times.tolist(), strict=True):
            if count:
                self.verdict[row] = SAMPLE
        self.mark_undrawn()
        return {self.key(row): float(count) for row, count in zip(rows, times.tolist(), strict=True) if count}

    def mark_undrawn(self) -> None:
        """Say of the pictures that are not drawn why."""
        rows = self.rows(SAMPLE, BALANCE).tolist()
        clusters = [self.cluster[row] for row in rows]
        self.undrawn = dict(undrawn(rows, clusters, [self.verdict[row] == SAMPLE for row in rows]))

    def rejected(self) -> Table:
        """``rejected.parquet`` in memory."""
        rejections = Rejections(self.scan)
        for row, verdict in enumerate(self.verdict):
            if verdict != SAMPLE:
                why = self.undrawn.get(row, self.why[row])
                rejections.add(row, verdict, why, self.of_key[row], self.cluster[row] or None)
        return rejections.table()

    def index(self, concepts: Concepts, held_out: Measured, held: np.ndarray) -> Index:
        """The index of the dataset; the arguments are its fields."""
        deleted = self.rows(DELETED)
        self.described[deleted] = np.nan
        return Index(
            images=self.measured.without_pixels(deleted),
            verdict=self.verdict,
            why=self.why,
            of=self.of_key,
            cluster=self.cluster,
            vectors=self.vectors,
            described=self.described,
            concepts=concepts,
            held_out=held_out,
            held=held,
        )
