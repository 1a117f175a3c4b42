"""What was deleted from a dataset, kept so that it does not come back.

``tombstones.parquet`` has a row for each deleted image: its key and digests, when and why it was deleted and from which
dataset. Its measurement tells near copies; where it is left out, only equal bytes and equal pixels are told.
``dataset.json`` names the number of rows and the sha256 of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curation.dataset import write_table
from components.curation.measurement import COLOUR_SIDE, SIDE
from components.curation.scan import Scan
from foundry.errors import UserError
from foundry.storage import sha256_of_file

if TYPE_CHECKING:
    from pyarrow import Schema, Table

FILE = "tombstones.parquet"
DELETED = "deleted"
"""Reason in rejected.parquet."""


def tombstones_schema() -> Schema:
    """Columns of ``tombstones.parquet``: ``when`` in UTC (ISO 8601), ``dataset`` by its content digest."""
    import pyarrow as arrow

    texts = ("key", "sha256", "pixels_sha256", "when", "why", "dataset")
    return arrow.schema(
        [(name, arrow.string()) for name in texts]
        + [("size", arrow.int64()), ("width", arrow.int32()), ("height", arrow.int32()), ("hash", arrow.uint64())]
        + [("grey", arrow.binary(SIDE * SIDE)), ("colour", arrow.binary(2 * COLOUR_SIDE * COLOUR_SIDE))]
    )


@dataclass(frozen=True)
class Tombstones:
    """The rows of ``tombstones.parquet``, oldest first."""

    table: Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @classmethod
    def read(cls, folder: Path, description: Mapping[str, Any]) -> Tombstones:
        """Those of the dataset in ``folder`` of which ``description`` is the ``dataset.json``.

        Raises :class:`UserError` where the file is not the one that is described.
        """
        from pyarrow import parquet

        told = description.get("tombstones")
        if told is None:
            return cls(tombstones_schema().empty_table())
        path = folder / FILE
        if not path.is_file() or sha256_of_file(path) != told["sha256"]:
            raise UserError(f"{path}: {'damaged' if path.exists() else 'missing'}; copy the dataset again")
        return cls(parquet.read_table(path))

    def write(self, folder: Path) -> dict[str, Any] | None:
        """Write them below ``folder``; returns what ``dataset.json`` says of them, None where there are none."""
        if not len(self):
            return None
        write_table(self.table, folder / FILE)
        return {"count": len(self), "sha256": sha256_of_file(folder / FILE)}

    def scan(self) -> Scan:
        """The deleted images as files that are called 'deleted on DAY: WHY'."""
        rows = self.table.to_pylist()
        count = len(rows)

        def numbers(name: str, kind: type) -> np.ndarray:
            return np.array([row[name] for row in rows], dtype=kind)

        def pixels(name: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
            size = int(np.prod(shape))
            parts = [row[name] if row[name] is not None else bytes(size) for row in rows]
            return np.frombuffer(b"".join(parts), kind).reshape(count, *shape)

        return Scan(
            path=[f"deleted on {row['when'][:10]}: {row['why']}" for row in rows],
            reason=[""] * count,
            detail=[""] * count,
            sha256=[row["sha256"] for row in rows],
            pixels_sha256=[row["pixels_sha256"] for row in rows],
            extension=[""] * count,
            size=numbers("size", np.int64),
            width=numbers("width", np.int32),
            height=numbers("height", np.int32),
            contrast=np.zeros(count, np.float32),
            hash=numbers("hash", np.uint64),
            grey=pixels("grey", np.uint8, (SIDE, SIDE)),
            colour=pixels("colour", np.int8, (COLOUR_SIDE, COLOUR_SIDE, 2)),
        )
