"""The one pass that decodes a pool: every file measured once, kept in part files so that a killed run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
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

SCHEMA = 1
"""Of the part files. A folder with parts of another schema, pool or limits is started afresh."""
PART_FILES = 512
"""Pool files in one part: what a kill costs at most."""


@dataclass(frozen=True)
class Scan:
    """Every file of a pool, in pool order, as columns of length n.

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
    parts = list(_finished(folder))
    finished = folder / "finished"
    if not finished.exists():
        done = len(parts) * PART_FILES
        with Progress("decode", None, "images", done=done) as progress, DecodeWorkers(config) as workers:
            results = workers.decode(pool.files(done, config.max_bytes))
            while rows := list(_advance(islice(results, PART_FILES), progress)):
                parts.append(_table(rows))
                _write(parts[-1], _part(folder, len(parts) - 1))
                if len(rows) < PART_FILES:
                    break
        write_atomically(finished, "")
    return _columns(parts)


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

    number = 0
    while (path := _part(folder, number)).exists():
        try:
            table = parquet.read_table(path)
        except (OSError, arrow.ArrowException):
            path.unlink()
            return
        if table.num_rows < PART_FILES and not (folder / "finished").exists():
            path.unlink()
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
        + [("grey", arrow.binary(SIDE * SIDE)), ("colour", arrow.binary(2 * COLOUR_SIDE * COLOUR_SIDE))]
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
        values["grey"].append(found.grey.tobytes() if found else bytes(SIDE * SIDE))
        values["colour"].append(found.colour.tobytes() if found else bytes(2 * COLOUR_SIDE * COLOUR_SIDE))
    return arrow.table(values, schema=_schema())


def _write(table: Table, path: Path) -> None:
    from pyarrow import BufferOutputStream, parquet

    buffer = BufferOutputStream()
    parquet.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue().to_pybytes())


def _columns(parts: list[Table]) -> Scan:
    import pyarrow as arrow

    table = arrow.concat_tables(parts) if parts else _schema().empty_table()
    values: dict[str, Any] = {}
    for name in table.schema.names:
        if name in ("grey", "colour"):
            kind = np.uint8 if name == "grey" else np.int8
            blocks = [np.frombuffer(b"".join(chunk.to_pylist()), kind) for chunk in table[name].chunks]
            flat = np.concatenate(blocks) if blocks else np.zeros(0, kind)
            shape = (-1, SIDE, SIDE) if name == "grey" else (-1, COLOUR_SIDE, COLOUR_SIDE, 2)
            values[name] = flat.reshape(shape)
        elif arrow.types.is_string(table.schema.field(name).type):
            values[name] = table[name].to_pylist()
        else:
            values[name] = table[name].to_numpy()
    return Scan(**values)
