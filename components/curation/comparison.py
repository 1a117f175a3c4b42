"""New files of a pool, compared with all that is known: its pictures, what is held out, what was deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.curation.candidates import descriptors
from components.curation.config import CurationConfig, DecodeConfig
from components.curation.dataset import CuratedDataset
from components.curation.decoding import DecodeWorkers
from components.curation.duplicates import Images, explain, find_duplicates, why_kept
from components.curation.held_out import held_out_rows
from components.curation.index import SAMPLE, Index
from components.curation.measured import Measured
from components.curation.pool import Pool, PoolFile
from components.curation.shards import key_of
from components.curation.sources import read_again
from components.curation.verdicts import BALANCE, COPIES, EVALUATION, Files

if TYPE_CHECKING:
    from components.curation.scan import Scan


@dataclass(frozen=True)
class HeldOut:
    """The evaluation set: all its ``files``, which of them are held out (``rows``), and which of these were not before
    (``fresh``, of the length of ``rows``)."""

    files: Measured
    rows: np.ndarray
    fresh: np.ndarray

    @classmethod
    def of(cls, url: str | None, config: CurationConfig, index: Index, work: Path) -> HeldOut:
        """That of the set at ``url``; nothing where there is none."""
        if url is None:
            return cls(Measured.nothing(), np.zeros(0, np.int64), np.zeros(0, bool))
        _, files, known = read_again(url, config, work, index.held_out, "evaluation")
        rows = held_out_rows(files.scan, url, config.duplicates.held_out)
        before = np.append(index.held, False)[known]  # of -1 the last
        return cls(files, rows, ~before[rows])

    def keys(self) -> dict[str, int]:
        """The place in ``rows`` of each image that is held out."""
        return {key_of(self.files.scan.sha256[row]): place for place, row in enumerate(self.rows.tolist())}


@dataclass(frozen=True)
class Closeups:
    """Close-ups of images: the samples lie in the dataset that is added to, all others in the pool."""

    files: Files
    dataset: CuratedDataset
    pool: Pool
    config: DecodeConfig

    def of(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Those of ``rows``: of some that rise, then of some that rise again."""
        with DecodeWorkers(self.config, closeups=True) as workers:
            for rising in np.split(rows, np.flatnonzero(np.diff(rows) < 0) + 1):
                yield from workers.closeups(self._read(rising.tolist()))

    def _read(self, rows: Sequence[int]) -> Iterator[PoolFile]:
        samples = {key: number for number, key in enumerate(self.dataset.samples["key"].to_pylist())}
        wanted = {row for row in rows if self.files.key(row) not in samples}
        found = self.files.read(wanted, self.pool, self.config.max_bytes)
        for row in rows:
            number = samples.get(self.files.key(row))
            if number is None:
                yield next(found)
            else:
                yield PoolFile(self.files.scan.path[row], self.dataset.image(number))


def deduplicate(
    files: Files, held_out: HeldOut, deleted: Scan, closeups: Closeups, config: CurationConfig, work: Path
) -> None:
    """Judge the undecided images that are copies; what remains of them are pictures, not drawn yet.

    Of the known, those are judged again whose group has gained an image that is held out.
    """
    known, undecided = files.rows(SAMPLE, BALANCE, EVALUATION, *COPIES), files.rows("")
    outside = len(held_out.rows), len(deleted)
    sizes = [len(known), *outside, len(undecided)]
    settled = np.array([files.verdict[row] in (SAMPLE, BALANCE) for row in known.tolist()], dtype=bool)
    images = Images.of(
        [
            (files.scan, known),
            (held_out.files.scan, held_out.rows),
            (deleted, np.arange(len(deleted))),
            (files.scan, undecided),
        ],
        work,
        evaluation=np.repeat([False, True, False, False], sizes),
        deleted=np.repeat([False, False, True, False], sizes),
        settled=np.concatenate([settled, np.zeros(sum(sizes[1:]), bool)]),
        fresh=np.concatenate(
            [np.zeros(sizes[0], bool), held_out.fresh, np.zeros(sizes[2], bool), np.ones(sizes[3], bool)]
        ),
        joined=_known_copies(files, known, held_out),
    )
    described = files.described[np.concatenate([known, np.zeros(sum(outside), np.int64), undecided])]
    described[len(known) : len(known) + sum(outside)] = np.nan
    unknown = np.flatnonzero(np.isnan(described[:, 0]))
    described[unknown] = descriptors(images.grey[unknown], images.colour[unknown])
    files.described[undecided] = described[len(described) - len(undecided) :]
    images = replace(images, described=described)
    nowhere = np.full(sum(outside), -1)  # nobody looks closely at what is held out or was deleted
    rows = np.concatenate([known, nowhere, undecided])
    groups = find_duplicates(images, config.duplicates, lambda chosen: closeups.of(rows[chosen]))
    last = len(known) + sum(outside)
    for place, row in enumerate(known.tolist()):
        keeper = int(groups.kept[place])
        if len(known) <= keeper < last and files.verdict[row] != EVALUATION:
            files.judge(row, *explain(images, groups, place), key_of(images.sha256[keeper]))
    for place, row in enumerate(undecided.tolist(), start=last):
        keeper = int(groups.kept[place])
        if keeper == place:
            files.judge(row, BALANCE, why_kept(groups, place))
        else:
            files.judge(row, *explain(images, groups, place), key_of(images.sha256[keeper]))


def _known_copies(files: Files, known: np.ndarray, held_out: HeldOut) -> np.ndarray:
    """Pairs (m, 2) of places: known copies, and the pictures or held out images that they are copies of."""
    places = {row: place for place, row in enumerate(known.tolist())}
    pictures = {key: places[row] for key, row in files.pictures().items()}
    images = {key: len(known) + place for key, place in held_out.keys().items()}
    pairs = [
        (place, (images if files.verdict[row] == EVALUATION else pictures)[files.of_key[row]])
        for row, place in places.items()
        if files.verdict[row] not in (SAMPLE, BALANCE)
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
