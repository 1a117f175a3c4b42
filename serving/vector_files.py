"""The finished output of a bulk run: Parquet, NPY or JSON, written a part at a time and renamed when it is whole."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from foundry.errors import UserError
from serving.parts import Parts

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = "1"
FORMATS = (".parquet", ".npy", ".json")


def check_format(output: Path) -> None:
    """Raise :class:`UserError` where the name's ending is none of :data:`FORMATS`, or names a folder."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"{output}: name a file that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name a file")


def rows_file(output: Path) -> Path:
    """Where the paths, versions and refusals stand that a .npy ``output`` has no place for."""
    return output.with_suffix(".rows.parquet")


def write_output(parts: Parts, output: Path, model: str, patch_features: bool) -> str:
    """Put the rows of ``parts`` into ``output``, by the format of its name, and say in a line what is there."""
    count = parts.done
    size, patches = shape_of(parts)
    kind = output.suffix.lower()
    with _renamed(parts.folder / "output", output) as file:
        if kind == ".npy":
            shape = (count, patches, size) if patch_features else (count, size)
            with _renamed(parts.folder / "rows", rows_file(output)) as rows:
                _write_parquet(parts, rows, model, size, 0, ["path", "version", "digest", "error"])
            _write_npy(parts, file, shape)
            return f"{output}: float32 {list(shape)}"
        if kind == ".json":
            text = io.TextIOWrapper(file, encoding="utf-8")
            write_json(parts, text, model)
            text.flush()
            text.detach()
        else:
            columns = ["path", "embedding", "version", "digest", "error"]
            _write_parquet(parts, file, model, size, patches, columns + ["patch_features"] * patch_features)
    return f"{output}: {count - parts.errors} embeddings of {size} numbers, {parts.errors} refused images"


def write_json(parts: Parts, file: TextIO, model: str) -> None:
    """A JSON list with an object for each row: image, model, version, digest, embedding; or image, error."""
    separator = "["
    for table in parts.tables():
        for row in table.to_pylist():
            entry: dict[str, Any] = {"image": row["path"]}
            if row["error"] is not None:
                entry["error"] = row["error"]
            else:
                entry |= {"model": model, "version": row["version"], "digest": row["digest"]}
                entry["embedding"] = row["embedding"]
                if (flat := row["patch_features"]) is not None:
                    size = len(row["embedding"])
                    entry["patch_features"] = [flat[start : start + size] for start in range(0, len(flat), size)]
            file.write(separator + json.dumps(entry))
            separator = ", "
    file.write("]\n" if separator != "[" else "[]\n")


def shape_of(parts: Parts) -> tuple[int, int]:
    """(D, N) of the first answered row: numbers of an embedding, patches (0 without); (0, 0) where none is answered."""
    for table in parts.tables():
        for index, error in enumerate(table.column("error").to_pylist()):
            if error is None:
                size = len(table.column("embedding")[index])
                flat = table.column("patch_features")[index]
                return size, len(flat) // size if flat.is_valid else 0
    return 0, 0


class _renamed:
    """A file at ``temporary`` that becomes ``final`` at the end of the block; after an error it is as it was."""

    def __init__(self, temporary: Path, final: Path) -> None:
        self._temporary, self._final = temporary, final

    def __enter__(self) -> BinaryIO:
        self._file: BinaryIO = self._temporary.open("wb")
        return self._file

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if exception_type is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        if exception_type is None:
            os.replace(self._temporary, self._final)


def _write_parquet(parts: Parts, file: BinaryIO, model: str, size: int, patches: int, columns: list[str]) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    # Where every image is refused nobody knows the size.
    vector = arrow.list_(arrow.float32(), size) if size else arrow.list_(arrow.float32())
    types = {
        "path": arrow.string(),
        "embedding": vector,
        "version": arrow.int64(),
        "digest": arrow.string(),
        "error": arrow.string(),
        "patch_features": arrow.list_(vector, patches) if patches else arrow.list_(arrow.float32()),
    }
    metadata = {"schema_version": SCHEMA_VERSION, "model": model}
    schema = arrow.schema([arrow.field(name, types[name]) for name in columns], metadata=metadata)
    with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=["digest"]) as writer:
        for table in parts.tables():
            arrays = []
            for name in columns:
                column = table.column(name).combine_chunks()
                if name == "embedding" and size:
                    column = _fixed(column, (size,))
                elif name == "patch_features" and patches:
                    column = _fixed(column, (patches, size))
                arrays.append(column)
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


def _fixed(column: Any, shape: tuple[int, ...]) -> Any:
    """A column of lists as one of fixed size. Rows without a vector hold NaN: pyarrow cannot read null ones back."""
    import pyarrow as arrow

    values: Any = arrow.array(_dense(column, shape).reshape(-1))
    for size in reversed(shape):
        values = arrow.FixedSizeListArray.from_arrays(values, size)
    return values


def _dense(column: Any, shape: tuple[int, ...]) -> np.ndarray:
    """float32 (rows, *shape) of a column of lists; NaN for rows without one."""
    import numpy as np

    rows = np.full((len(column), *shape), np.nan, np.float32)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    if there.any():
        rows[there] = column.drop_null().flatten().to_numpy().reshape(-1, *shape)
    return rows


def _write_npy(parts: Parts, file: BinaryIO, shape: tuple[int, ...]) -> None:
    import numpy as np

    name = "patch_features" if len(shape) == 3 else "embedding"
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for table in parts.tables():
        file.write(_dense(table.column(name).combine_chunks(), shape[1:]).astype("<f4").tobytes())
