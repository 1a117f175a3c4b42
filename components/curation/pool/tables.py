"""Pools in tables: Parquet with a column of encoded images, and text or CSV manifests of URLs."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO

from components.curation.pool.files import Member, printable
from components.curation.pool.stored import Location, StoredFile
from foundry.errors import UserError
from foundry.storage import is_local

IMAGE_COLUMNS = ("image", "img", "image_bytes", "bytes", "data", "content", "jpg", "jpeg", "png", "webp")
NAME_COLUMNS = ("path", "filename", "file_name", "name", "key", "id", "url")
URL_COLUMNS = ("url", "image_url", "path", "filename", "file_name", "file", "image", "uri")


def parquet_columns(file: BinaryIO) -> tuple[str, bool, str | None] | None:
    """(image column, whether it is a struct with ``bytes``, name column) of a Parquet file, or None without images.

    The image column is binary, or a struct with a binary field ``bytes`` (as Hugging Face datasets write it): one with
    a usual name, else the only such column.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    schema = parquet.ParquetFile(file).schema_arrow

    def binary(kind: Any) -> bool:
        return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))

    def struct(kind: Any) -> bool:
        return bool(
            arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and binary(kind.field("bytes").type)
        )

    fields = {field.name: field.type for field in schema if binary(field.type) or struct(field.type)}
    named = [name for name in IMAGE_COLUMNS if name in fields]
    column = named[0] if named else next(iter(fields)) if len(fields) == 1 else None
    if column is None:
        return None
    texts = [name for name in NAME_COLUMNS if name in schema.names and arrow.types.is_string(schema.field(name).type)]
    return column, struct(fields[column]), texts[0] if texts else None


def parquet_members(file: BinaryIO, columns: tuple[str, bool, str | None]) -> Iterator[Member]:
    """The images of a Parquet file row by row. A row is named by its own name column, else ``row-000000000``."""
    from pyarrow import parquet

    column, is_struct, name_column = columns
    wanted = [column] if name_column is None else [column, name_column]
    row = 0
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=64, columns=wanted):
        values = batch.column(batch.schema.get_field_index(column))
        names = batch.column(batch.schema.get_field_index(name_column)) if name_column else None
        for place in range(batch.num_rows):
            value = values[place].as_py()
            name = names[place].as_py() if names is not None else None
            if is_struct and value is not None:
                name = name or value.get("path")
                value = value["bytes"]
            data = value or b""
            yield Member(printable(name or f"row-{row:09d}"), len(data), lambda limit, data=data: data[:limit])  # type: ignore[misc]
            row += 1


def manifest_rows(stored: StoredFile, url: str) -> Iterator[str]:
    """The URLs in a manifest: one a line in ``.txt`` (``#`` begins a comment), a column in ``.csv`` and ``.tsv``."""
    with (
        stored.open() as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        if not url.lower().endswith((".csv", ".tsv")):
            for line in text:
                if line.strip() and not line.lstrip().startswith("#"):
                    yield line.strip()
            return
        reader = csv.DictReader(text, delimiter="\t" if url.lower().endswith(".tsv") else ",")
        columns = [name for name in URL_COLUMNS if name in (reader.fieldnames or ())]
        if not columns:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise UserError(f"{url}: no column of image URLs; name one of its columns (now: {found}) 'url' or 'path'")
        for values in reader:
            if values[columns[0]]:
                yield values[columns[0]].strip()


def manifest_files(stored: StoredFile, url: str) -> Iterator[StoredFile]:
    """The files that a manifest lists. Relative paths start at the manifest's own folder."""
    folder = url.rpartition("/")[0] if "/" in url else "."
    for row in manifest_rows(stored, url):
        absolute = "://" in row or row.startswith("/")
        target = row if absolute else f"{folder}/{row}" if not is_local(url) else posixpath.join(folder, row)
        yield _listed(printable(row), target)


def _listed(name: str, url: str) -> StoredFile:
    if is_local(url):
        found = Location.of(url).file()
        return StoredFile(name, found.size, found.open, local=found.local, problem=found.problem)

    def open_it() -> BinaryIO:
        location = Location.of(url)
        return location.system.open(location.path, "rb")

    return StoredFile(name, None, open_it, (url,))
