"""The curated dataset as files: its tables and description are written here, and opened and checked here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.shards import Place, Sample, shard_name
from foundry.errors import UserError
from foundry.settings import canonical_json
from foundry.storage import write_atomically

if TYPE_CHECKING:
    from pyarrow import Schema, Table

SCHEMA = 2
"""Version of the curated dataset's layout. Version 1, which has the balanced part only, is read too."""
SHARDS = "shards"


def samples_schema() -> Schema:
    """Columns of ``samples.parquet``."""
    import pyarrow as arrow

    return arrow.schema(
        [
            ("key", arrow.string()),
            ("shard", arrow.string()),
            ("offset", arrow.int64()),
            ("length", arrow.int64()),
            ("ext", arrow.string()),
            ("width", arrow.int32()),
            ("height", arrow.int32()),
            ("sha256", arrow.string()),
            ("source", arrow.string()),
            ("cluster", arrow.string()),
            ("weight", arrow.float64()),
            ("kept_because", arrow.string()),
            ("parts", arrow.list_(arrow.string())),
        ]
    )


def rejected_schema() -> Schema:
    """Columns of ``rejected.parquet``. ``width`` and ``height`` are null where nothing was decoded, ``cluster`` where
    the file was rejected before clusters were made."""
    import pyarrow as arrow

    texts = [(name, arrow.string()) for name in ("path", "reason", "detail", "of", "sha256")]
    return arrow.schema([*texts, ("width", arrow.int32()), ("height", arrow.int32()), ("cluster", arrow.string())])


def samples_table(
    samples: Sequence[Sample],
    places: Sequence[Place],
    clusters: Sequence[str],
    weights: Sequence[float],
    kept_because: Sequence[str],
    parts: Sequence[Sequence[str]],
) -> Table:
    """``samples.parquet`` in memory; all arguments in one order."""
    import pyarrow as arrow

    rows = [
        {
            "key": sample.key,
            "shard": shard_name(place.shard),
            "offset": place.offset,
            "length": sample.length,
            "ext": sample.extension,
            "width": sample.width,
            "height": sample.height,
            "sha256": sample.sha256,
            "source": sample.source,
            "cluster": cluster,
            "weight": weight,
            "kept_because": because,
            "parts": own,
        }
        for sample, place, cluster, weight, because, own in zip(
            samples, places, clusters, weights, kept_because, parts, strict=True
        )
    ]
    return arrow.Table.from_pylist(rows, schema=samples_schema())


def content_digest(samples: Table, mix: Mapping[str, Any] | None) -> str:
    """The digest that names a dataset: sha256 over the rows (key, image sha256, source, cluster, weight, parts) and the
    mix behind them as canonical JSON, one a line, rows sorted by key. Neither Parquet bytes nor shards' layout count.

    ``mix`` None: of a dataset of version 1, whose rows end with the weight.
    """
    names = ["key", "sha256", "source", "cluster", "weight", *([] if mix is None else ["parts"])]
    digest = hashlib.sha256()
    for row in sorted(zip(*(samples[name].to_pylist() for name in names), strict=True)):
        digest.update(canonical_json(list(row)).encode() + b"\n")
    if mix is not None:
        digest.update(canonical_json(dict(mix)).encode() + b"\n")
    return digest.hexdigest()


def write_table(table: Table, path: Path) -> None:
    """Write a Parquet file atomically; equal tables give equal bytes under one version of pyarrow."""
    from pyarrow import BufferOutputStream, parquet

    buffer = BufferOutputStream()
    parquet.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue().to_pybytes())


def write_description(
    folder: Path,
    counts: Mapping[str, Any],
    digests: Mapping[str, str],
    mix: Mapping[str, Any],
    curation: Mapping[str, Any],
    **sections: Any,
) -> None:
    """Write ``dataset.json``: what makes the folder a curated dataset, so it comes last. ``sections`` that are None are
    left out."""
    document = {"schema": SCHEMA, "counts": dict(counts), "digests": dict(digests), "mix": dict(mix)}
    document["curation"] = dict(curation)
    document |= {name: section for name, section in sections.items() if section is not None}
    write_atomically(folder / "dataset.json", json.dumps(document, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class CuratedDataset:
    """A curated dataset in a local folder, opened to be looked at or checked. Training reads with its own reader."""

    folder: Path
    description: dict[str, Any]
    samples: Table
    rejected: Table

    @classmethod
    def open(cls, folder: Path) -> CuratedDataset:
        """Read the tables and check them against ``dataset.json``: schema version, columns, counts and digest.

        A dataset of version 1 is given the parts and the mix that it has by its nature.

        Raises :class:`UserError` naming what does not fit.
        """
        from pyarrow import parquet

        try:
            description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            samples = parquet.read_table(folder / "samples.parquet")
            rejected = _with_later_columns(parquet.read_table(folder / "rejected.parquet"))
        except FileNotFoundError as error:
            raise UserError(f"{folder}: not a curated dataset ({Path(error.filename).name} is missing)") from None
        version = description.get("schema")
        if version not in (1, SCHEMA):
            raise UserError(f"{folder}/dataset.json: schema {version}, this version reads 1 to {SCHEMA}")
        columns = samples_schema().names
        for name, table, expected in (
            ("samples", samples, columns if version > 1 else [name for name in columns if name != "parts"]),
            ("rejected", rejected, rejected_schema().names),
        ):
            if table.schema.names != expected:
                found = ", ".join(table.schema.names)
                raise UserError(f"{folder}/{name}.parquet: columns {found} are not the contract's")
            if table.num_rows != description["counts"][name]:
                raise UserError(
                    f"{folder}/{name}.parquet: {table.num_rows} rows, dataset.json says {description['counts'][name]}"
                )
        mix = description.setdefault("mix", {}) if version == 1 else description["mix"]
        if content_digest(samples, None if version == 1 else mix) != description["digests"]["content"]:
            raise UserError(
                f"{folder}: samples.parquet does not have the digest in dataset.json; copy the dataset again"
            )
        if version == 1:
            samples = samples.append_column(samples_schema().field("parts"), [[["balanced"]] * len(samples)])
        return cls(folder, description, samples, rejected)

    def image(self, row: int) -> bytes:
        """The encoded bytes of sample number ``row``, by one range read."""
        values = self.samples.slice(row, 1).to_pylist()[0]
        with (self.folder / SHARDS / values["shard"]).open("rb") as shard:
            shard.seek(values["offset"])
            return shard.read(values["length"])

    def check_images(self) -> None:
        """Read every image and compare its sha256. Raises :class:`UserError` naming the first that differs."""
        for row, values in enumerate(self.samples.select(["key", "shard", "sha256"]).to_pylist()):
            if hashlib.sha256(self.image(row)).hexdigest() != values["sha256"]:
                shard = self.folder / SHARDS / values["shard"]
                raise UserError(f"{shard}: image {values['key']} is damaged; copy the shard again")


def _with_later_columns(rejected: Table) -> Table:
    """``rejected`` with the columns that datasets of earlier versions lack, as nulls."""
    import pyarrow as arrow

    for field in rejected_schema():
        if field.name in ("width", "height", "cluster") and field.name not in rejected.schema.names:
            rejected = rejected.append_column(field, arrow.nulls(rejected.num_rows, field.type))
    return rejected
