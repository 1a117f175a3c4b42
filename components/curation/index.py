"""What a curated dataset knows of the pool that it was made from, kept with it: an increment decodes nothing again.

``index/images.parquet`` has a row for each file of the pool, in pool order, and then for each sample whose file is no
longer there: its measurement (:class:`scan.Scan`); the stored file it came from and what that held (``stored``,
``stamp``); and what became of it: ``verdict``, ``sample`` or a reason of rejected.parquet; ``why``, of a picture why it
is kept of its copies; ``of``; ``cluster``, which pictures have, samples and those that were not drawn.
``index/held-out.parquet`` has the same of the evaluation set. ``index/vectors.npy`` has the vectors of the rows with a
cluster, in row order, ``index/described.npy`` of all rows the descriptors by which candidates for copies are found
(:func:`candidates.descriptors`), not a number where there are none. The other arrays make a cluster's path from a
vector, and a vector from an image where they are those of the descriptor made by hand (:class:`Concepts`).
``dataset.json`` names the files with their sha256, which are checked when they are read. The content digest does not
cover the index. Files of datasets that are taken as they are stand in no index.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from components.curation.blocks import by_blocks
from components.curation.embedding import Projection
from components.curation.measured import Measured
from foundry.errors import UserError
from foundry.storage import sha256_of_file

SCHEMA = 2
"""Version of the index's layout and of the measurements in it."""
FOLDER = "index"
ROW_GROUP = 4096
"""Rows that are compressed together."""
SAMPLE = "sample"
"""Verdict of an image of the dataset."""
BLOCK = 8192
"""Vectors whose clusters are found at a time."""


@dataclass(frozen=True)
class Concepts:
    """Where pictures lie and how that is divided: the projection of the descriptor, None where something else made the
    vectors; ``centroids`` of each level (k, d), finest first; ``parents`` (k,): the cluster of the next level that each
    cluster of a level but the last is in."""

    projection: Projection | None
    centroids: tuple[np.ndarray, ...]
    parents: tuple[np.ndarray, ...]

    def paths(self, vectors: np.ndarray) -> np.ndarray:
        """(n, levels) int64, top level first: the parents of the cluster of the nearest finest centroid, and this."""
        columns = [nearest_centroids(vectors, self.centroids[0])]
        for parents in self.parents:
            columns.append(parents[columns[-1]])
        return np.stack(columns[::-1], axis=1)


def nearest_centroids(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest of ``centroids`` (k, d) by Euclidean distance for each of ``vectors`` (n, d), the first where several
    are: (n,) int64."""
    if not len(vectors):
        return np.zeros(0, np.int64)
    squared = np.einsum("kd,kd->k", centroids, centroids)
    return by_blocks(lambda span: (squared - 2 * (vectors[span] @ centroids.T)).argmin(axis=1), len(vectors), BLOCK)


@dataclass(frozen=True)
class Index:
    """The index of a dataset; see the module."""

    images: Measured
    verdict: list[str]
    why: list[str]
    of: list[str]
    cluster: list[str]
    vectors: np.ndarray
    described: np.ndarray
    concepts: Concepts
    held_out: Measured = field(default_factory=Measured.nothing)
    held: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(files of the evaluation set,): whether each is held out."""

    def __post_init__(self) -> None:
        assert len(self.vectors) == sum(map(bool, self.cluster))

    def vector_rows(self) -> np.ndarray:
        """The number of the vector of each row, -1 where it has none."""
        has = np.array([bool(name) for name in self.cluster], dtype=bool)
        return np.where(has, np.cumsum(has) - 1, -1)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write it below the dataset's ``folder``; returns what ``dataset.json`` says of it."""
        from pyarrow import parquet

        target = folder / FOLDER
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        images = self.images.table()
        for name in ("verdict", "why", "of", "cluster"):
            images = images.append_column(name, [getattr(self, name)])
        tables = {"images.parquet": images}
        if len(self.held_out):
            tables["held-out.parquet"] = self.held_out.table().append_column("held", [self.held])
        for name, table in tables.items():
            parquet.write_table(table, target / name, compression="zstd", row_group_size=ROW_GROUP)
        concepts = self.concepts
        arrays = {"vectors": self.vectors, "described": self.described}
        if concepts.projection is not None:
            arrays |= {"mean": concepts.projection.mean, "directions": concepts.projection.directions}
        for level, centroids in enumerate(concepts.centroids, start=1):
            arrays[f"centroids-{level}"] = centroids
        for level, parents in enumerate(concepts.parents, start=1):
            arrays[f"parents-{level}"] = parents
        for name, array in arrays.items():
            np.save(target / f"{name}.npy", array, allow_pickle=False)
        files = {path.name: sha256_of_file(path) for path in sorted(target.iterdir())}
        return {
            "schema": SCHEMA,
            "levels": len(concepts.centroids),
            "rows": len(self.images),
            "files": files,
        }

    @classmethod
    def read(cls, folder: Path, description: Mapping[str, Any]) -> Index:
        """The index of the dataset in ``folder`` of which ``description`` is the ``dataset.json``.

        Raises :class:`UserError` where it has none, or not the one that is described.
        """
        told = description.get("index")
        if told is None:
            raise UserError(f"{folder}: the dataset has no index, so nothing can be added to it; curate the pool again")
        if told["schema"] != SCHEMA:
            raise UserError(
                f"{folder}: its index has schema {told['schema']}, this version reads {SCHEMA}; curate the pool again"
            )
        for name, digest in told["files"].items():
            path = folder / FOLDER / name
            if not path.is_file() or sha256_of_file(path) != digest:
                what = "damaged" if path.exists() else "missing"
                raise UserError(f"{path}: {what}; copy the dataset again")
        from pyarrow import parquet

        def array(name: str) -> np.ndarray:
            found: np.ndarray = np.load(folder / FOLDER / f"{name}.npy", allow_pickle=False)
            return found

        images = parquet.read_table(folder / FOLDER / "images.parquet")
        held_out: dict[str, Any] = {}
        if "held-out.parquet" in told["files"]:
            table = parquet.read_table(folder / FOLDER / "held-out.parquet")
            held_out = {"held_out": Measured.of(table), "held": table["held"].to_numpy()}
        levels = range(1, told["levels"] + 1)
        projection = Projection(array("mean"), array("directions")) if "mean.npy" in told["files"] else None
        return cls(
            images=Measured.of(images),
            **{name: images[name].to_pylist() for name in ("verdict", "why", "of", "cluster")},
            vectors=array("vectors"),
            described=array("described"),
            concepts=Concepts(
                projection,
                tuple(array(f"centroids-{level}") for level in levels),
                tuple(array(f"parents-{level}") for level in levels[:-1]),
            ),
            **held_out,
        )
