"""Reading a curated dataset: one byte range an image, from a local folder or any object store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from foundry.errors import UserError
from foundry.storage import filesystem, is_local, local_path

SCHEMA = 1


class ShardDataset:
    """The images of a curated dataset, by position.

    ``folder`` is a local path or an fsspec URL of a folder with ``dataset.json``, ``samples.parquet`` and ``shards/``.
    Safe to hand to loader workers: files and clients are opened inside the process that reads.
    """

    def __init__(self, folder: str) -> None:
        import pyarrow.parquet as parquet

        self.folder = str(folder).rstrip("/")
        self._local = is_local(self.folder)
        description = json.loads(self._read_whole("dataset.json"))
        if description.get("schema") != SCHEMA:
            raise UserError(
                f"{self.folder}/dataset.json: schema {description.get('schema')} is not the one this version reads "
                f"({SCHEMA}); curate the pool again"
            )
        self.digest: str = description["digests"]["content"]
        columns = ["key", "shard", "offset", "length", "weight"]
        if self._local:
            table = parquet.read_table(local_path(self.folder) / "samples.parquet", columns=columns)
        else:
            system, path = filesystem(f"{self.folder}/samples.parquet")
            table = parquet.read_table(path, columns=columns, filesystem=system)
        if table.num_rows == 0:
            raise UserError(f"{self.folder}: the dataset holds no image")
        self.keys: list[str] = table["key"].to_pylist()
        shards = table["shard"].to_pylist()
        self.shards = sorted(set(shards))
        position = {name: number for number, name in enumerate(self.shards)}
        self._shard = np.array([position[name] for name in shards], dtype=np.int32)
        self._offset = table["offset"].to_numpy().astype(np.int64)
        self._length = table["length"].to_numpy().astype(np.int64)
        self.weights: np.ndarray = table["weight"].to_numpy().astype(np.float64)
        self._handles: dict[int, int] = {}
        self._owner = os.getpid()
        self._system: Any = None

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        """The encoded bytes of image ``index``. Raises :class:`UserError` where the shard is short."""
        if self._owner != os.getpid():
            self._owner, self._handles, self._system = os.getpid(), {}, None
        shard, offset, length = int(self._shard[index]), int(self._offset[index]), int(self._length[index])
        data = self._range(shard, offset, length)
        if len(data) != length:
            raise UserError(f"{self._name(shard)}: ends before image '{self.keys[index]}' does; the shard is damaged")
        return data

    def _name(self, shard: int) -> str:
        name = self.shards[shard]
        return f"{self.folder}/{name}" if "/" in name else f"{self.folder}/shards/{name}"

    def _range(self, shard: int, offset: int, length: int) -> bytes:
        if not self._local:
            if self._system is None:
                self._system, _ = filesystem(self.folder)
            return self._system.cat_file(self._name(shard), start=offset, end=offset + length)
        if shard not in self._handles:
            path = local_path(self._name(shard))
            try:
                self._handles[shard] = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise UserError(f"{path}: the dataset's shard is missing") from None
        return os.pread(self._handles[shard], length, offset)

    def _read_whole(self, name: str) -> bytes:
        try:
            if self._local:
                return (Path(local_path(self.folder)) / name).read_bytes()
            system, path = filesystem(f"{self.folder}/{name}")
            return system.cat_file(path)
        except FileNotFoundError:
            raise UserError(f"{self.folder}: not a curated dataset ({name} is missing)") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}, "_system": None, "_owner": -1}
