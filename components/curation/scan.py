"""The one pass that decodes a pool: every file measured once, kept in part files so that a killed run goes on."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from components.curation.config import DecodeConfig
from components.curation.decoding import Decoded, DecodeWorkers
from components.curation.measurement import COLOUR_SIDE, SIDE
from components.curation.pool import Pool, PoolFile
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

    def select(self, rows: np.ndarray) -> Scan:
        """The files ``rows`` (m,), in that order."""
        return joined([self], rows)

    def rates(self, seconds: float) -> dict[str, float]:
        """What a step tells of looking through the files in so many ``seconds``."""
        pixels = float(np.sum(self.width.astype(np.float64) * self.height))
        return {"images_per_second": round(len(self) / max(seconds, 1e-9), 1), "megapixels": round(pixels / 1e6, 3)}


def joined(scans: list[Scan], rows: np.ndarray) -> Scan:
    """The files ``rows`` (m,) of ``scans`` laid end to end, in that order."""
    values: dict[str, Any] = {}
    for field in fields(Scan):
        columns = [getattr(scan, field.name) for scan in scans]
        if isinstance(columns[0], list):
            whole = [value for column in columns for value in column]
            values[field.name] = [whole[row] for row in rows.tolist()]
        else:
            values[field.name] = (columns[0] if len(columns) == 1 else np.concatenate(columns))[rows]
    return Scan(**values)


class Known(Protocol):
    """Files that were measured before."""

    def recall(self, file: PoolFile) -> int | None:
        """A number for a file of known bytes, else None."""
        ...

    def decoded(self, number: int, path: str) -> Decoded:
        """What is known of that file, under the name ``path``."""
        ...


def scan_pool(pool: Pool, pool_digest: str, config: DecodeConfig, folder: Path, known: Known | None = None) -> Scan:
    """Decode and measure every file of ``pool``, resuming from the parts in ``folder``. What is ``known`` is not
    decoded again."""
    _prepare(folder, pool_digest, config)
    done = sum(table.num_rows for table in _finished(folder))
    finished = folder / "finished"
    if not finished.exists():
        with Progress("decode", None, "images", done=done) as progress, DecodeWorkers(config) as workers:
            files = pool.files(done, config.max_bytes)
            results = workers.decode(files) if known is None else _decode_unknown(workers, files, known)
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


def _decode_unknown(workers: DecodeWorkers, files: Iterable[PoolFile], known: Known) -> Iterator[Decoded]:
    """As ``workers.decode(files)``, in the same order, but the workers get no known file."""
    passed: deque[tuple[int, str] | None] = deque()  # None: a file that the workers have

    def unknown() -> Iterator[PoolFile]:
        for file in files:
            number = known.recall(file)
            passed.append(None if number is None else (number, file.path))
            if number is None:
                yield file

    for result in workers.decode(unknown()):
        while (entry := passed.popleft()) is not None:
            yield known.decoded(*entry)
        yield result
    for entry in passed:
        assert entry is not None
        yield known.decoded(*entry)


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
    """Columns of a part."""
    import pyarrow as arrow

    texts = ("path", "reason", "detail", "sha256", "pixels_sha256", "extension")
    return arrow.schema(
        [(name, arrow.string()) for name in texts]
        + [("size", arrow.int64()), ("width", arrow.int32()), ("height", arrow.int32())]
        + [("contrast", arrow.float32()), ("hash", arrow.uint64())]
    )


def _table(rows: list[Decoded]) -> Table:
    import pyarrow as arrow

    values: dict[str, list[Any]] = {name: [] for name in scan_schema().names}
    for row in rows:
        found = row.measurement
        for name in ("path", "reason", "detail", "sha256", "extension", "size"):
            values[name].append(getattr(row, name))
        values["pixels_sha256"].append(found.pixels_sha256 if found else "")
        for name in ("width", "height", "contrast", "hash"):
            values[name].append(getattr(found, name) if found else 0)
    return arrow.table(values, schema=_schema())


def scan_schema() -> Schema:
    """Columns of a scan as a table: those of a part and :data:`ARRAYS`, as bytes."""
    import pyarrow as arrow

    widths = {name: int(np.prod(shape)) * np.dtype(kind).itemsize for name, (kind, shape) in ARRAYS.items()}
    return arrow.schema([*_schema(), *((name, arrow.binary(width)) for name, width in widths.items())])


def scan_table(scan: Scan) -> Table:
    """A scan as a table; the other way round: :func:`scan_of`."""
    import pyarrow as arrow

    columns = []
    for field in scan_schema():
        values = getattr(scan, field.name)
        if field.name in ARRAYS:
            buffer = arrow.py_buffer(np.ascontiguousarray(values))
            columns.append(arrow.FixedSizeBinaryArray.from_buffers(field.type, len(scan), [None, buffer]))
        else:
            columns.append(arrow.array(values, field.type))
    return arrow.Table.from_arrays(columns, schema=scan_schema())


def scan_of(table: Table) -> Scan:
    """The scan whose rows are those of ``table``, in memory."""
    values = _figures(table)
    for name, (kind, shape) in ARRAYS.items():
        cells = int(np.prod(shape))
        width = cells * np.dtype(kind).itemsize
        blocks = [
            np.frombuffer(chunk.buffers()[1], kind, len(chunk) * cells, chunk.offset * width).reshape(-1, *shape)
            for chunk in table[name].chunks
            if len(chunk)
        ]
        values[name] = np.concatenate(blocks) if blocks else np.zeros((0, *shape), kind)
    return Scan(**values)


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

    values = _figures(arrow.concat_tables([_schema().empty_table(), *_finished(folder)]))
    for name, (kind, shape) in ARRAYS.items():
        size = (count, *shape)
        values[name] = np.memmap(_array(folder, name), kind, "r", shape=size) if count else np.zeros(size, kind)
    return Scan(**values)


def _figures(table: Table) -> dict[str, Any]:
    """The columns of a :class:`Scan` that parts have."""
    import pyarrow as arrow

    values: dict[str, Any] = {}
    for field in _schema():
        column = table[field.name]
        values[field.name] = column.to_pylist() if arrow.types.is_string(field.type) else column.to_numpy()
    return values
