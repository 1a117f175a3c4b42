"""A small curated dataset of made images, in the contract's layout, written independently of the curation step."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image


def encoded(number: int, side: int = 40) -> bytes:
    """A PNG of coloured stripes and noise, another for every ``number``."""
    rng = np.random.default_rng(number)
    stripes = np.sin(np.arange(side)[:, None] * rng.uniform(0.2, 1.5) + np.arange(side)[None] * rng.uniform(-1, 1))
    image = 127 + 60 * stripes[..., None] * rng.uniform(-1, 1, 3) + rng.normal(0, 12, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_dataset(
    folder: Path, count: int = 24, shards: int = 2, weights: list[float] | None = None, side: int = 40
) -> Path:
    """``count`` images of ``side`` pixels in ``shards`` tar files under ``folder``."""
    (folder / "shards").mkdir(parents=True)
    rows = []
    for shard in range(shards):
        name = f"shards/shard-{shard:06d}.tar"
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard, count, shards):
                data = encoded(number, side)
                member = tarfile.TarInfo(f"image{number:04d}.png")
                member.size = len(data)
                offset = tar.offset + 512
                tar.addfile(member, io.BytesIO(data))
                rows.append(
                    {
                        "key": f"image{number:04d}",
                        "shard": name,
                        "offset": offset,
                        "length": len(data),
                        "width": side,
                        "height": side,
                        "sha256": hashlib.sha256(data).hexdigest(),
                        "weight": 1.0 if weights is None else weights[number],
                    }
                )
    parquet.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    description = {"schema": 1, "counts": {"samples": count}, "digests": {"content": "made"}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
