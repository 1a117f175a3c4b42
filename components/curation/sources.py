"""The pools that curation reads: the pool itself, seed sets, datasets taken as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.curation.config import CurationConfig
from components.curation.measured import Measured, measure_again
from components.curation.pool import Pool, open_pool
from components.curation.scan import Scan, scan_pool

POOL = "pool"


@dataclass(frozen=True)
class Source:
    """A pool that was looked through, with the name of its input and, where there are several, its label."""

    name: str
    label: str
    pool: Pool
    digest: str
    scan: Scan


def read_source(url: str, config: CurationConfig, work: Path, name: str = POOL, label: str = "") -> Source:
    """Open the pool at ``url`` and look through it; work that a killed run left below ``work`` is gone on with."""
    pool = open_pool(url)
    digest = pool.digest()
    return Source(name, label, pool, digest, scan_pool(pool, digest, config.decode, _folder(work, name, label)))


def read_again(
    url: str, config: CurationConfig, work: Path, past: Measured, name: str = POOL
) -> tuple[Source, Measured, np.ndarray]:
    """As :func:`read_source`, of a pool whose files were ``past``: also the files with their origin, and of each its
    row in ``past`` or -1 (:func:`measured.measure_again`)."""
    pool = open_pool(url)
    contents = list(pool.contents())
    digest = pool.digest(contents)
    files, known = measure_again(pool, contents, digest, config.decode, past, _folder(work, name))
    return Source(name, "", pool, digest, files.scan), files, known


def _folder(work: Path, name: str, label: str = "") -> Path:
    return work / "-".join(filter(None, ["scan", "" if name == POOL else name, label]))


def read_sources(inputs: Mapping[str, str], name: str, config: CurationConfig, work: Path) -> list[Source]:
    """The sources of an input of which there may be several, in the order of their labels."""
    labels = labels_of(inputs, name)
    return [read_source(inputs[f"{name}.{label}"], config, work, name, label) for label in labels]


def labels_of(inputs: Mapping[str, str], name: str) -> list[str]:
    """Sorted labels of an input of which there may be several."""
    return sorted(key.removeprefix(f"{name}.") for key in inputs if key.startswith(f"{name}."))


def joined(sources: Sequence[Source]) -> Scan:
    """The files of all sources under each other; those of datasets taken as they are called ``raw:LABEL/path``."""
    if len(sources) == 1:
        return sources[0].scan
    columns: dict[str, list[str] | np.ndarray] = {}
    for field in dataclasses.fields(Scan):
        values = [getattr(source.scan, field.name) for source in sources]
        if field.name == "path":
            values = [
                [f"{source.name}:{source.label}/{path}" if source.label else path for path in paths]
                for source, paths in zip(sources, values, strict=True)
            ]
        lists = isinstance(values[0], list)
        columns[field.name] = [item for value in values for item in value] if lists else np.concatenate(values)
    return Scan(**columns)  # type: ignore[arg-type]


def training_rows(source: Source) -> np.ndarray:
    """Rows of a seed set that are seeds, (m,) int64: the images that its tables list as ``train``, without tables all.

    Images that measure are no seeds: a dataset chosen by them would be judged by what it was made for.
    """
    from components.curation.held_out import listed_rows

    decoded = np.flatnonzero(np.array([not reason for reason in source.scan.reason], bool))
    listed = listed_rows(source.scan, source.pool.url, lambda split: split == "train")
    return decoded if listed is None else listed
