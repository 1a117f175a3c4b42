"""Leaving out copies: of other images of the pool, of images that measure, of deleted ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from components.curation.candidates import descriptors
from components.curation.config import CurationConfig, DecodeConfig
from components.curation.decoding import DecodeWorkers
from components.curation.duplicates import Images, explain, find_duplicates, why_kept
from components.curation.pool import Pool
from components.curation.rejections import Rejections
from components.curation.scan import Scan
from components.curation.shards import key_of
from components.curation.sources import Source


@dataclass(frozen=True)
class Pictures:
    """Usable images that are compared with each other: ``rows`` (n,) of ``scan``, rising; row ``first`` of it is the
    first file of ``pool``."""

    scan: Scan
    rows: np.ndarray
    pool: Pool
    first: int = 0


def deduplicate(
    parts: Sequence[Pictures], deleted: Scan, config: CurationConfig, rejections: Rejections, work: Path
) -> tuple[np.ndarray, dict[int, str], np.ndarray]:
    """(rows of one image of each picture, why each of them is kept, descriptors of all rows of its scan), of the first
    of ``parts``; what the others show, which are held out, or the ``deleted``, is left out."""
    usable = parts[0].rows
    sizes = [len(usable), sum(len(part.rows) for part in parts[1:]), len(deleted)]
    images = Images.of(
        [*((part.scan, part.rows) for part in parts), (deleted, np.arange(len(deleted)))],
        work,
        evaluation=np.repeat([False, True, False], sizes),
        deleted=np.repeat([False, False, True], sizes),
    )
    found = descriptors(images.grey, images.colour)
    described = np.full((len(parts[0].scan), found.shape[1]), np.nan, np.float32)
    described[usable] = found[: len(usable)]
    images = replace(images, described=found)
    groups = find_duplicates(images, config.duplicates, lambda chosen: _closeups(parts, config.decode, chosen))
    because: dict[int, str] = {}
    for place, row in enumerate(usable.tolist()):
        keeper = int(groups.kept[place])
        if keeper == place:
            because[row] = why_kept(groups, place)
        else:
            rejections.add(row, *explain(images, groups, place), key_of(images.sha256[keeper]))
    return usable[groups.kept[: len(usable)] == range(len(usable))], because, described


def _closeups(parts: Sequence[Pictures], config: DecodeConfig, chosen: Sequence[int]) -> Iterator[np.ndarray]:
    """Close-ups of the images of ``parts`` at rising positions ``chosen``, decoded from their pools once more."""
    start, left = 0, deque(chosen)
    with DecodeWorkers(config, closeups=True) as workers:
        for part in parts:
            wanted = []
            while left and left[0] < start + len(part.rows):
                wanted.append(int(part.rows[left.popleft() - start]) - part.first)
            start += len(part.rows)
            if wanted:
                of_pool = set(wanted)
                files = islice(part.pool.files(0, config.max_bytes), wanted[-1] + 1)
                yield from workers.closeups(file for number, file in enumerate(files) if number in of_pool)


def without_held_out(
    scan: Scan,
    source: Source,
    first: int,
    held_out: Sequence[Pictures],
    deleted: Scan,
    config: CurationConfig,
    rejections: Rejections,
    work: Path,
) -> np.ndarray:
    """Rows of a dataset that is taken as it is: all its images but copies of images that measure or were deleted. Row
    ``first`` of ``scan`` is its first file."""
    files = range(first, first + len(source.scan))
    rows = np.array([row for row in files if not scan.reason[row]], np.int64)
    for row in sorted(set(files) - set(rows.tolist())):
        rejections.add(row, scan.reason[row], scan.detail[row])
    if not len(rows) or not len(deleted) + sum(len(part.rows) for part in held_out):
        return rows
    copies = Rejections(scan)
    deduplicate([Pictures(scan, rows, source.pool, first), *held_out], deleted, config, copies, work)
    leaks = copies.of_reason("evaluation-copy", "deleted")
    for row, told in leaks.items():
        rejections.add(row, *told)
    return np.array([row for row in rows.tolist() if row not in leaks], np.int64)
