"""The one pass that decodes a pool: every file measured once, kept in part files so that a killed run goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curation.config import DecodeConfig
from components.curation.decoding import Decoded, DecodeWorkers
from components.curation.measurement import COLOUR_SIDE, SIDE
from components.curation.pool import Pool
from foundry.progress import Progress
from foundry.settings import canonical_json
from foundry.storage import write_atomically

if TYPE_CHECKING:
    from pyarrow import Schema, Table

SCHEMA = 2
"""Of the part files. A folder with parts of another schema, pool or limits is started afresh."""
PART_FILES = 512
"""Pool files in one part: what a kill costs at most."""
ARRAYS = {"grey": (np.uint8, (SIDE, SIDE)), "colour": (np.int8, (COLOUR_SIDE, COLOUR_SIDE, 2))}
"""Columns beside the parts, type and shape of a row: each lies in one file, which is mapped and never read whole."""
GATHER_ROWS = 4096
"""Rows of such a column that are copied at a time."""


@dataclass(frozen=True)
class Scan:
    """Every file of a pool, in pool order, as columns of length n; ``grey`` and ``colour`` lie in files.

    ``reason`` is empty for a decoded image; its figures are those of :class:`measurement.Measurement` (zeros
    elsewhere). ``sha256`` is empty where the bytes could not be read.
    """

    path: list[str]
    reason: list[str]
    detail: list[str]
    sha256: list[str]
    pixels_sha256: list[str]
    extension: list[str]
    size: np.ndarray
    width: np.ndarray
    height: np.ndarray
    contrast: np.ndarray
    hash: np.ndarray
    grey: np.ndarray
    """(n, 64, 64) uint8."""
    colour: np.ndarray
    """(n, 16, 16, 2) int8."""

    def __len__(self) -> int:
        return len(self.path)


def scan_pool(pool: Pool, pool_digest: str, config: DecodeConfig, folder: Path) -> Scan:
    """Decode and measure every file of ``pool``, resuming from the parts in ``folder``."""
    _prepare(folder, pool_digest, config)
    done = sum(table.num_rows for table in _finished(folder))
    finished = folder / "finished"
    if not finished.exists():
        with Progress("decode", None, "images", done=done) as progress, DecodeWorkers(config) as workers:
            results = workers.decode(pool.files(done, config.max_bytes))
            while rows := list(_advance(islice(results, PART_FILES), progress)):
                _write(rows, folder, done)
                done += len(rows)
                if len(rows) < PART_FILES:
                    break
        write_atomically(finished, "")
    return _columns(folder, done)


def gather(columns: Sequence[np.ndarray], rows: Sequence[np.ndarray], file: Path) -> np.ndarray:
    """The ``rows`` of each of ``columns``, one after the other, as an array that lies in ``file`` and not in memory."""
    count = sum(map(len, rows))
    if not count:
        return columns[0][:0]
    gathered = np.lib.format.open_memmap(file, "w+", columns[0].dtype, (count, *columns[0].shape[1:]))
    place = 0
    for column, chosen in zip(columns, rows, strict=True):
        for start in range(0, len(chosen), GATHER_ROWS):
            part = column[chosen[start : start + GATHER_ROWS]]
            gathered[place : place + len(part)] = part
            place += len(part)
    gathered.flush()
    return gathered


def _advance(results: Iterator[Decoded], progress: Progress) -> Iterator[Decoded]:
    for result in results:
        yield result
        progress.advance()


def _prepare(folder: Path, pool_digest: str, config: DecodeConfig) -> None:
    from PIL import __version__ as pillow

    plan = canonical_json(
        {
            "schema": SCHEMA,
            "pool": pool_digest,
            "limits": config.model_dump(mode="json", exclude={"workers"}),
            "pillow": pillow,
            "part_files": PART_FILES,
        }
    )
    file = folder / "plan.json"
    if not file.exists() or file.read_text(encoding="utf-8") != plan:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomically(file, plan)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _finished(folder: Path) -> Iterator[Table]:
    """The parts that an earlier run completed. Only the last part of a finished scan is shorter than the others."""
    import pyarrow as arrow
    from pyarrow import parquet

    finished = folder / "finished"
    number = 0
    while (path := _part(folder, number)).exists():
        try:
            table = parquet.read_table(path)
        except (OSError, arrow.ArrowException):
            table = None
        if table is None or (table.num_rows < PART_FILES and not finished.exists()):
            path.unlink()
            finished.unlink(missing_ok=True)
            return
        yield table
        number += 1


def _schema() -> Schema:
    import pyarrow as arrow

    texts = ("path", "reason", "detail", "sha256", "pixels_sha256", "extension")
    return arrow.schema(
        [(name, arrow.string()) for name in texts]
        + [("size", arrow.int64()), ("width", arrow.int32()), ("height", arrow.int32())]
        + [("contrast", arrow.float32()), ("hash", arrow.uint64())]
    )


def _table(rows: list[Decoded]) -> Table:
    import pyarrow as arrow

    values: dict[str, list[Any]] = {name: [] for name in _schema().names}
    for row in rows:
        found = row.measurement
        for name in ("path", "reason", "detail", "sha256", "extension", "size"):
            values[name].append(getattr(row, name))
        values["pixels_sha256"].append(found.pixels_sha256 if found else "")
        for name in ("width", "height", "contrast", "hash"):
            values[name].append(getattr(found, name) if found else 0)
    return arrow.table(values, schema=_schema())


def _write(rows: list[Decoded], folder: Path, start: int) -> None:
    """Keep the part that begins with row ``start``. Its table comes last: rows without it do not count."""
    from pyarrow import BufferOutputStream, parquet

    for name, (kind, shape) in ARRAYS.items():
        blank = np.zeros(shape, kind)
        block = np.stack([getattr(row.measurement, name) if row.measurement else blank for row in rows])
        with open(os.open(_array(folder, name), os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
            file.seek(start * blank.nbytes)
            file.write(block.data)
            file.flush()
            os.fsync(file.fileno())
    buffer = BufferOutputStream()
    parquet.write_table(_table(rows), buffer, compression="zstd")
    write_atomically(_part(folder, start // PART_FILES), buffer.getvalue().to_pybytes())


def _array(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _columns(folder: Path, count: int) -> Scan:
    import pyarrow as arrow

    table = arrow.concat_tables([_schema().empty_table(), *_finished(folder)])
    values: dict[str, Any] = {}
    for name, (kind, shape) in ARRAYS.items():
        size = (count, *shape)
        values[name] = np.memmap(_array(folder, name), kind, "r", shape=size) if count else np.zeros(size, kind)
    for name in table.schema.names:
        text = arrow.types.is_string(table.schema.field(name).type)
        values[name] = table[name].to_pylist() if text else table[name].to_numpy()
    return Scan(**values)
