"""Golden images: encoded images and the embeddings they must give, kept with every version.

They come from the curated dataset, spread over its clusters, so that they look like what the model is for; variants of
the first one cover every kind of file a server meets. A server publishes a version only if it reproduces them.

A folder of golden images holds ``images/<name>.<suffix>``, ``golden.json`` and ``embeddings.npy`` (float32, one row an
image, in the order of golden.json).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foundry.errors import UserError
from foundry.settings import Settings
from foundry.storage import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SCHEMA = 1
VARIANT_SIDE = 320
"""Longer side, in pixels, of the image that the variants show."""
CANDIDATES = 20_000
"""Samples looked at, evenly over the table, when golden images are chosen from a large dataset."""
AGREEMENT = 1e-4
"""Largest difference allowed between two implementations of one network in fp32, relative to the largest value."""


@dataclass(frozen=True)
class EncodedImage:
    """One encoded image."""

    name: str
    """Also names its file, without suffix."""
    format: str
    """jpeg, png, webp...: what a person would call the file."""
    suffix: str
    """Of its file, with the dot."""
    data: bytes
    source: str
    """Key of the sample in the curated dataset that it is, or that it was made from."""


class GoldenImage(Settings):
    """One entry of golden.json."""

    file: str
    """Relative to the folder."""
    format: str
    source: str
    """Key of the sample in the curated dataset."""
    sha256: str
    """Of the file."""
    decoded_sha256: str
    """Of its decoded pixels (uint8 RGB rows, top to bottom): tells a difference in decoding from one in the network."""
    width: int
    """Of the decoded image, pixels."""
    height: int
    """Of the decoded image, pixels."""


class GoldenSet(Settings):
    """Content of golden.json."""

    schema_version: Literal[1] = 1
    embedding_size: int
    """Columns of embeddings.npy."""
    preprocessing: dict[str, Any]
    """As in preprocessor_config.json."""
    made_with: dict[str, str]
    """Versions of the packages that decide pixels and numbers."""
    images: tuple[GoldenImage, ...]
    """In the order of the rows of embeddings.npy."""


def choose_samples(dataset: Path, count: int, max_bytes: int) -> list[EncodedImage]:
    """``count`` images of a curated dataset (fewer where it is smaller), from as many clusters as there are.

    The same dataset gives the same images. Clusters are visited evenly; in a cluster the first key is taken whose
    encoded size is within ``max_bytes``, or the smallest where all are larger.
    """
    import numpy as np
    import pyarrow.parquet as parquet

    from training.data.shards import ShardDataset

    shards = ShardDataset(str(dataset))
    positions = np.linspace(0, len(shards) - 1, min(len(shards), CANDIDATES)).astype(np.int64)
    table = parquet.read_table(dataset / "samples.parquet", columns=["key", "length", "ext", "cluster"]).take(positions)
    rows = [{**row, "position": int(place)} for row, place in zip(table.to_pylist(), positions, strict=True)]
    rows.sort(key=lambda row: (max(row["length"] - max_bytes, 0), row["key"]))
    clusters: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        clusters.setdefault(json.dumps(row["cluster"]), []).append(row)
    names = sorted(clusters)
    if len(names) > count:
        names = [names[index * len(names) // count] for index in range(count)]
    rounds = itertools.zip_longest(*(clusters[name] for name in names))
    from_clusters = [row for row in itertools.chain.from_iterable(rounds) if row is not None]
    taken = {row["key"] for row in from_clusters}
    chosen = [*from_clusters, *(row for row in rows if row["key"] not in taken)][:count]
    return [
        EncodedImage(f"sample-{index:02d}", row["ext"], f".{row['ext']}", shards.read(row["position"]), row["key"])
        for index, row in enumerate(chosen)
    ]


def make_variants(data: bytes, source: str) -> list[EncodedImage]:
    """One image in every kind of file that must be served alike: JPEG, PNG, WebP, grey, RGBA, CMYK, EXIF, 16 bit."""
    import numpy as np
    from PIL import Image

    from foundry.images import decode_image

    image = Image.fromarray(decode_image(data))
    image.thumbnail((VARIANT_SIDE, VARIANT_SIDE), Image.Resampling.BICUBIC)
    grey = image.convert("L")
    width, height = image.size
    alpha = np.linspace(0, 255, width, dtype=np.float64).round().astype(np.uint8)
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.fromarray(np.tile(alpha, (height, 1))))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise to show
    # Values that 8 bits cannot hold, over the whole 16-bit range.
    low = (np.arange(width * height) % 256).astype(np.uint16).reshape(height, width)
    fine = (np.asarray(grey, np.uint16) << 8) | low
    files = [
        ("jpeg", ".jpg", _encode(image, "JPEG", quality=90)),
        ("png", ".png", _encode(image, "PNG")),
        ("webp", ".webp", _encode(image, "WEBP", quality=90)),
        ("grey", ".png", _encode(grey, "PNG")),
        ("rgba", ".png", _encode(transparent, "PNG")),
        ("cmyk", ".jpg", _encode(image.convert("CMYK"), "JPEG", quality=90)),
        ("exif-rotated", ".jpg", _encode(image, "JPEG", quality=90, exif=exif)),
        ("16-bit", ".png", _encode(Image.fromarray(fine), "PNG")),
    ]
    return [EncodedImage(f"variant-{name}", name, suffix, data, source) for name, suffix, data in files]


def _encode(image: Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def write_golden(folder: Path, images: Callable[[], list[EncodedImage]], export: Path) -> GoldenSet:
    """Write the golden folder of ``images()`` for the network in ``export``: its embeddings in fp32 on the CPU.

    They are computed by transformers and, independently, by ``training.models.interchange``; a difference above
    :data:`AGREEMENT` is an error of the program (:class:`RuntimeError`): such an export must not be published.
    """
    import numpy as np

    from foundry.images import Preprocessing, decode_image

    preprocessing = Preprocessing.from_config(json.loads((export / "preprocessor_config.json").read_text()))
    entries, pixels = [], []
    for image in images():
        decoded = decode_image(image.data)
        pixels.append(preprocessing(decoded))
        file = f"images/{image.name}{image.suffix}"
        write_atomically(folder / file, image.data)
        entries.append(
            GoldenImage(
                file=file,
                format=image.format,
                source=image.source,
                sha256=hashlib.sha256(image.data).hexdigest(),
                decoded_sha256=hashlib.sha256(np.ascontiguousarray(decoded).tobytes()).hexdigest(),
                width=decoded.shape[1],
                height=decoded.shape[0],
            )
        )
    batch = np.stack(pixels)
    embeddings = transformers_embeddings(export, batch)
    difference = largest_difference(training_embeddings(export, batch), embeddings)
    if not difference <= AGREEMENT:
        raise RuntimeError(f"{export}: transformers and training.models disagree on its embeddings by {difference:.2e}")
    golden = GoldenSet(
        embedding_size=embeddings.shape[1],
        preprocessing=preprocessing.to_config(),
        made_with={name: importlib.metadata.version(name) for name in ("torch", "transformers", "pillow", "numpy")},
        images=tuple(entries),
    )
    np.save(folder / "embeddings.npy", embeddings, allow_pickle=False)
    document = golden.model_dump(mode="json")
    document = {"schema": document.pop("schema_version"), **document}
    write_atomically(folder / "golden.json", json.dumps(document, indent=1) + "\n")
    return golden


def read_golden(folder: Path) -> tuple[GoldenSet, list[bytes], np.ndarray]:
    """(description, encoded images, embeddings float32 (N, D)) of a golden folder.

    Raises :class:`UserError` where it is incomplete, changed or of another schema.
    """
    import numpy as np

    try:
        document = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        if document.get("schema") != SCHEMA:
            raise UserError(f"{folder}: golden images of schema {document.get('schema')}; supported is {SCHEMA}")
        golden = GoldenSet.model_validate({**{k: v for k, v in document.items() if k != "schema"}, "schema_version": 1})
        data = [(folder / image.file).read_bytes() for image in golden.images]
        embeddings = np.load(folder / "embeddings.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a readable set of golden images ({error})") from None
    for image, content in zip(golden.images, data, strict=True):
        if hashlib.sha256(content).hexdigest() != image.sha256:
            raise UserError(f"{folder}/{image.file}: the golden image was changed (its sha256 differs)")
    if embeddings.dtype != np.float32 or embeddings.shape != (len(data), golden.embedding_size):
        raise UserError(f"{folder}/embeddings.npy: {embeddings.dtype} {embeddings.shape} does not fit golden.json")
    return golden, data, embeddings


def transformers_embeddings(export: Path, pixels: np.ndarray) -> np.ndarray:
    """Embeddings (``pooler_output``) by transformers' own network, fp32 on the CPU: (B, 3, H, W) -> float32 (B, D)."""
    import numpy as np
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    from foundry.vector_math import settle_vector_math

    settle_vector_math(torch)
    logging.disable_progress_bar()
    network = AutoModel.from_pretrained(export, local_files_only=True, use_safetensors=True, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [network(pixel_values=torch.from_numpy(part)).pooler_output.numpy() for part in _parts(pixels)]
    return np.concatenate(rows).astype(np.float32)


def training_embeddings(export: Path, pixels: np.ndarray) -> np.ndarray:
    """Embeddings by our own network, fp32 on the CPU: (B, 3, H, W) -> float32 (B, D)."""
    import numpy as np
    import torch

    from training.models.interchange import load_export

    network, _ = load_export(export)
    with torch.inference_mode():
        rows = [network(torch.from_numpy(part))["cls"].float().numpy() for part in _parts(pixels)]
    return np.concatenate(rows).astype(np.float32)


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest value of ``second`` (at least 1); inf for other shapes."""
    import numpy as np

    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(first - second).max() / max(float(np.abs(second).max()), 1.0))


def _parts(pixels: np.ndarray, size: int = 8) -> list[np.ndarray]:
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]
