"""Reading a curated dataset: one byte range an image, from a local folder or any object store."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foundry.errors import UserError
from foundry.settings import load_settings
from foundry.storage import filesystem, is_local, local_path
from training.data.mix import BALANCED, part_weights
from training.recipe import Mix

SCHEMAS = (1, 2)
"""Versions of a dataset's layout that are read. Datasets of version 1 have the balanced part only."""
OPEN_SHARDS = 256
"""Files that a process keeps open; the one opened first is closed for another."""


class ShardDataset:
    """The images of a curated dataset, by position.

    ``folder`` is a local path or an fsspec URL of a folder with ``dataset.json``, ``samples.parquet`` and ``shards/``.
    Safe to hand to loader workers: files and clients are opened inside the process that reads. ``cache``: folder on a
    local disk for up to ``cache_bytes`` of images read from elsewhere.
    """

    def __init__(self, folder: str, cache: Path | None = None, cache_bytes: int = 0) -> None:
        self.folder = str(folder).rstrip("/")
        self._local = is_local(self.folder)
        description = json.loads(self._read_whole("dataset.json"))
        if description.get("schema") not in SCHEMAS:
            raise UserError(
                f"{self.folder}/dataset.json: schema {description.get('schema')} is none that this version reads "
                f"({', '.join(map(str, SCHEMAS))}); curate the pool again"
            )
        self.digest: str = description["digests"]["content"]
        self.mix = load_settings(Mix, description.get("mix", {}), f"{self.folder}/dataset.json, mix")
        parted = description["schema"] > 1
        columns = ["key", "shard", "offset", "length", "weight", *(["parts"] if parted else [])]
        table = self._table(columns)
        if table.num_rows == 0:
            raise UserError(f"{self.folder}: the dataset holds no image")
        # columns stay Arrow and NumPy arrays: a million Python strings would be copied into every loader worker
        self._keys = table["key"]
        named = table["shard"].dictionary_encode().unify_dictionaries()
        names: list[str] = named.chunk(0).dictionary.to_pylist()
        self.shards = sorted(names)
        position = {name: number for number, name in enumerate(self.shards)}
        places = np.array([position[name] for name in names], dtype=np.int32)
        self._shard = places[np.concatenate([chunk.indices.to_numpy() for chunk in named.chunks])]
        self._offset = table["offset"].to_numpy().astype(np.int64)
        self._length = table["length"].to_numpy().astype(np.int64)
        self.draws: np.ndarray = table["weight"].to_numpy().astype(np.float64)
        self.parts = _members(table["parts"]) if parted else {BALANCED: np.arange(len(self._offset))}
        self._handles: dict[int, int] = {}
        self._owner = os.getpid()
        self._system: Any = None
        self._cache: ShardCache | None = None
        if cache is not None and cache_bytes and not self._local:
            kept = np.cumsum(self._length) <= cache_bytes
            self._cache = ShardCache(cache / self.digest, kept)

    def __len__(self) -> int:
        return len(self._offset)

    @property
    def weights(self) -> np.ndarray:
        """How often each image is seen relative to the others, (n,) float64, where all steps are of one kind."""
        return part_weights(self.parts, self.draws, self.mix.weights)

    def _table(self, columns: list[str]) -> Any:
        """These columns of ``samples.parquet``."""
        import pyarrow.parquet as parquet

        if self._local:
            return parquet.read_table(local_path(self.folder) / "samples.parquet", columns=columns)
        system, path = filesystem(f"{self.folder}/samples.parquet")
        return parquet.read_table(path, columns=columns, filesystem=system)

    def shorter_sides(self) -> np.ndarray:
        """The shorter side of each image in pixels, (n,) int32."""
        table = self._table(["width", "height"])
        return np.asarray(np.minimum(table["width"].to_numpy(), table["height"].to_numpy()))

    def key(self, index: int) -> str:
        """The name of image ``index``."""
        return self._keys[index].as_py()

    def read(self, index: int) -> bytes:
        """The encoded bytes of image ``index``. Raises :class:`UserError` where the shard is short."""
        if self._owner != os.getpid():
            self._owner, self._handles, self._system = os.getpid(), {}, None
        shard, offset, length = int(self._shard[index]), int(self._offset[index]), int(self._length[index])
        if self._cache is not None and (found := self._cache.read(index, shard, offset, length)) is not None:
            return found
        data = self._range(shard, offset, length)
        if len(data) != length:
            raise UserError(f"{self._name(shard)}: ends before image '{self.key(index)}' does; the shard is damaged")
        if self._cache is not None:
            self._cache.write(index, shard, offset, data)
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
            if len(self._handles) == OPEN_SHARDS:
                os.close(self._handles.pop(next(iter(self._handles))))
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


def _members(column: Any) -> dict[str, np.ndarray]:
    """The numbers of the images of each part, (m,) int64, from a column of lists of part names."""
    import pyarrow.compute as compute

    column = column.combine_chunks()
    image, names = compute.list_parent_indices(column).to_numpy(), compute.list_flatten(column).dictionary_encode()
    places = names.indices.to_numpy()
    return {name: image[places == number] for number, name in enumerate(names.dictionary.to_pylist())}


class ShardCache:
    """Images of a dataset that lies elsewhere, on a local disk: sparse copies of its shards and one byte an image.

    Which images are kept is decided beforehand (``kept``, (n,) bool): of an endless shuffled order any fixed part is as
    good as another, and nothing is ever thrown out again. Any number of processes may read and write: they write the
    same bytes, an image counts once its byte in ``present`` is set, and that is set last.
    """

    def __init__(self, folder: Path, kept: np.ndarray) -> None:
        self.folder, self.kept = folder, kept
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "present").open("ab") as file:
            file.truncate(len(kept))
        self._files: dict[str, int] = {}
        self._owner = os.getpid()

    def read(self, index: int, shard: int, offset: int, length: int) -> bytes | None:
        """The bytes of image ``index``, or None where it is not here."""
        if not self.kept[index] or os.pread(self._file("present"), 1, index) != b"\x01":
            return None
        data = os.pread(self._file(f"{shard:06d}"), length, offset)
        return data if len(data) == length else None

    def write(self, index: int, shard: int, offset: int, data: bytes) -> None:
        """Keep the bytes of image ``index`` where it is one of those to keep."""
        if self.kept[index]:
            os.pwrite(self._file(f"{shard:06d}"), data, offset)
            os.pwrite(self._file("present"), b"\x01", index)

    def _file(self, name: str) -> int:
        if self._owner != os.getpid():
            self._owner, self._files = os.getpid(), {}
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        return self._files[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_owner": -1}


class JointDataset:
    """Several datasets under each other: image ``i`` of the second follows the last of the first."""

    def __init__(self, parts: Sequence[ShardDataset]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.weights = np.concatenate([part.weights for part in self.parts])
        self.folder = " + ".join(part.folder for part in self.parts)
        self.digest = "+".join(part.digest for part in self.parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def shorter_sides(self) -> np.ndarray:
        """The shorter side of each image in pixels, (n,) int32."""
        return np.concatenate([part.shorter_sides() for part in self.parts])

    def key(self, index: int) -> str:
        """The name of image ``index``."""
        part, own = self._place(index)
        return part.key(own)

    def read(self, index: int) -> bytes:
        """The encoded bytes of image ``index``."""
        part, own = self._place(index)
        return part.read(own)

    def _place(self, index: int) -> tuple[ShardDataset, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part], index - int(self._starts[part])

    def members(self, part: int) -> np.ndarray:
        """The numbers of the images of dataset ``part``, (n,) int64."""
        return np.arange(self._starts[part], self._starts[part + 1])


Images = ShardDataset | JointDataset
