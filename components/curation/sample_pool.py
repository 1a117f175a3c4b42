"""The embedded sample: a pool of unlabelled images and a labelled evaluation set cut out of scikit-image's photographs.

Nothing is downloaded and nothing is kept in the repository: the pixels are the photographs that the scikit-image wheel
carries. Every photograph is one class. It is divided into cells; the cells of a diagonal pattern are *test* ground, all
others *train* ground. The pool and the labelled train images are cut from train ground only, test images from test
ground only, with a margin between the two. Every crop is taken at its own place, scale and light (exposure, gamma,
contrast, colour temperature, a lamp to one side, a monochrome camera), so that neither raw pixels nor a colour
histogram tell the classes apart well.

The same settings, Pillow and NumPy give the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from components.curation.photographs import (
    Photograph,
    Rectangle,
    encode,
    intersection_over_union,
    photographs,
    relight,
    to_array,
)
from foundry.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

IGNORE = 255
"""Mask value of pixels that no score counts (the borders between the regions of a mosaic)."""


class SampleSettings(Settings):
    """How large the sample is. The defaults are what ``sample:`` means."""

    seed: int = 20251
    """Seed of every choice: places, scales, lights, formats, names."""
    fold: int = Field(1, ge=0, le=2)
    """Which of the three diagonal patterns of cells is test ground. The others are for choosing recipes, so that what
    the sample reports stays unseen."""
    crops: int = Field(3000, ge=1)
    """Crops in the pool, each of its own place, scale and light; as many distinct places as the photographs give."""
    exact_duplicates: int = Field(150, ge=0)
    """Byte-for-byte copies in the pool, under other names."""
    near_duplicates: int = Field(300, ge=0)
    """Re-encoded, resized, slightly cropped, brightened or mirrored copies in the pool."""
    train_per_class: int = Field(40, ge=1)
    """Labelled train images of each class."""
    test_per_class: int = Field(25, ge=1)
    """Labelled test images of each class."""
    train_mosaics: int = Field(120, ge=0)
    """Mosaics with region masks cut from train ground."""
    test_mosaics: int = Field(60, ge=0)
    """Mosaics with region masks cut from test ground."""


_UNIQUE_OVERLAP = 0.6  # intersection over union from which two pool crops show the same place


def _picture(photograph: Photograph, rectangle: Rectangle, rng: np.random.Generator) -> Image:
    from PIL import Image as pillow

    width, height = rectangle.right - rectangle.left, rectangle.bottom - rectangle.top
    scale = rng.uniform(96, 160) / max(width, height)
    image = photograph.cut(rectangle, (max(round(width * scale), 64), max(round(height * scale), 64)))
    if rng.random() < 0.5:
        image = image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
    return relight(image, rng)


# ---------------------------------------------------------------- the pool


@dataclass(frozen=True)
class _Truth:
    path: str
    source: str
    kind: str
    of: str = ""


def _new_name(rng: np.random.Generator, extension: str) -> str:
    name = rng.bytes(6).hex()
    return f"{name[:2]}/{name[2:]}.{extension}"


def _build_pool(folder: Path, sources: Sequence[Photograph], settings: SampleSettings) -> list[_Truth]:
    import numpy as np
    from PIL import Image as pillow

    rng = np.random.default_rng([settings.seed, 1])
    truth: list[_Truth] = []
    content: dict[str, bytes] = {}

    def add(data: bytes, extension: str, source: str, kind: str, of: str = "") -> None:
        path = _new_name(rng, extension)
        content[path] = data
        truth.append(_Truth(path, source, kind, of))

    for photograph, count in zip(sources, _uneven(settings.crops, sources, rng), strict=True):
        taken: list[Rectangle] = []
        first = len(truth)
        for _ in range(count):
            rectangle = photograph.choose(rng, test=False, taken=taken, distinct=_UNIQUE_OVERLAP)
            kind, of = "unique", ""
            if taken:
                shared = intersection_over_union(np.array([rectangle]), np.array(taken))[0]
                if shared.max() >= _UNIQUE_OVERLAP:
                    kind, of = "overlap", truth[first + int(shared.argmax())].path
            taken.append(rectangle)
            add(*encode(_picture(photograph, rectangle, rng), rng), photograph.name, kind, of)
    originals = list(truth)
    for row in _draw(originals, settings.exact_duplicates, rng):
        add(content[row.path], row.path.rsplit(".", 1)[1], row.source, "exact", row.path)
    for row in _draw(originals, settings.near_duplicates, rng):
        with pillow.open(io.BytesIO(content[row.path])) as opened:
            kind, data, extension = _near_copy(opened.convert("RGB"), rng)
        add(data, extension, row.source, kind, row.path)
    for kind, data, extension in _broken(content[originals[0].path], rng):
        add(data, extension, "", kind)
    for path, data in content.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return truth


def _uneven(total: int, sources: Sequence[Photograph], rng: np.random.Generator) -> list[int]:
    """Counts that add up to ``total``: more from large photographs, and as uneven as a found pool is."""
    import numpy as np

    weights = np.array([math.sqrt(source.image.width * source.image.height) for source in sources])
    weights = weights * np.exp(rng.uniform(-0.5, 0.5, len(sources)))
    counts = np.floor(total * weights / weights.sum()).astype(int)
    counts[: total - counts.sum()] += 1
    return [int(count) for count in counts]


def _draw(rows: Sequence[_Truth], count: int, rng: np.random.Generator) -> list[_Truth]:
    chosen = rng.choice(len(rows), size=count, replace=count > len(rows))
    return [rows[int(index)] for index in chosen]


def _near_copy(image: Image, rng: np.random.Generator) -> tuple[str, bytes, str]:
    from PIL import Image as pillow
    from PIL import ImageEnhance

    kind = str(rng.choice(["reencode", "resize", "crop", "brightness", "mirror"]))
    width, height = image.size
    if kind == "resize":
        scale = rng.uniform(0.6, 0.9)
        image = image.resize((round(width * scale), round(height * scale)), pillow.Resampling.BICUBIC)
    elif kind == "crop":
        left, top = int(rng.integers(0, width // 20 + 1)), int(rng.integers(0, height // 20 + 1))
        image = image.crop((left, top, left + width - width // 20, top + height - height // 20))
    elif kind == "brightness":
        image = ImageEnhance.Brightness(image).enhance(float(rng.choice([0.85, 1.15])))
    elif kind == "mirror":
        image = image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(50, 90)))
    return f"near-{kind}", buffer.getvalue(), "jpg"


def _broken(jpeg: bytes, rng: np.random.Generator) -> list[tuple[str, bytes, str]]:
    """Files that are not images, or no longer are: what every found pool holds."""
    from PIL import Image as pillow

    buffer = io.BytesIO()
    pillow.new("RGB", (96, 96), (90, 120, 60)).save(buffer, "PNG")
    page = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
    whole = io.BytesIO()
    with pillow.open(io.BytesIO(jpeg)) as opened:
        opened.convert("RGB").save(whole, "JPEG", quality=90)
    data = whole.getvalue()
    return [
        ("broken-truncated", data[: len(data) // 2], "jpg"),
        ("broken-truncated", data[: len(data) // 3], "jpeg"),
        ("broken-truncated", data[:60], "jpg"),
        ("broken-empty", b"", "jpg"),
        ("broken-empty", b"", "png"),
        ("broken-html", page, "jpg"),
        ("broken-html", page, "webp"),
        ("broken-text", b"photo credits: see the list at the end of the album\n", "txt"),
        ("broken-text", b"photo credits: see the list at the end of the album\n", "png"),
        ("broken-header", buffer.getvalue()[:33], "png"),
        ("broken-noise", rng.bytes(900), "jpg"),
    ]


# ---------------------------------------------------------------- the labelled evaluation set


def _build_evaluation(folder: Path, sources: Sequence[Photograph], settings: SampleSettings) -> None:
    import numpy as np

    rng = np.random.default_rng([settings.seed, 2])
    (folder / "images").mkdir(parents=True)
    labels = []
    for split, count in (("train", settings.train_per_class), ("test", settings.test_per_class)):
        number = 0
        for photograph in sources:
            taken: list[Rectangle] = []
            for _ in range(count):
                rectangle = photograph.choose(rng, split == "test", taken, distinct=0.7)
                taken.append(rectangle)
                data, extension = encode(_picture(photograph, rectangle, rng), rng)
                name = f"images/{split}-{number:04d}.{extension}"
                (folder / name).write_bytes(data)
                labels.append((name, photograph.name, split))
                number += 1
    _write_csv(folder / "labels.csv", ("filename", "label", "split"), labels)
    _write_csv(folder / "classes.csv", ("id", "name"), [(id, source.name) for id, source in enumerate(sources)])
    if settings.train_mosaics and settings.test_mosaics:
        _build_mosaics(folder, sources, settings)


def _build_mosaics(folder: Path, sources: Sequence[Photograph], settings: SampleSettings) -> None:
    import numpy as np
    from PIL import Image as pillow

    rng = np.random.default_rng([settings.seed, 3])
    (folder / "masks").mkdir()
    rows = []
    for split, count in (("train", settings.train_mosaics), ("test", settings.test_mosaics)):
        for number in range(count):
            side = 160
            regions = _regions(side, int(rng.integers(2, 5)), rng)
            chosen = rng.permutation(len(sources))[: int(regions.max()) + 1]
            pixels = np.zeros((side, side, 3), np.uint8)
            for region, source in enumerate(chosen):
                rectangle = sources[source].choose(rng, split == "test")
                picture = relight(sources[source].cut(rectangle, (side, side)), rng)
                pixels[regions == region] = to_array(picture)[regions == region]
            mask = chosen.astype(np.uint8)[regions]
            mask[_borders(regions)] = IGNORE
            name = f"mosaic-{split}-{number:03d}"
            pillow.fromarray(pixels).save(folder / "images" / f"{name}.jpg", "JPEG", quality=92)
            pillow.fromarray(mask).save(folder / "masks" / f"{name}.png", "PNG")
            rows.append((f"images/{name}.jpg", f"masks/{name}.png", split))
    _write_csv(folder / "masks.csv", ("filename", "mask", "split"), rows)


def _regions(side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side) array of region numbers 0..count-1: Voronoi cells, rectangles, or bands with wavy borders."""
    import numpy as np

    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    form = rng.choice(["voronoi", "rectangles", "waves"])
    if form == "voronoi":
        centres = _spread_points(count, rng)
        distances = [(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centres]
        return np.argmin(np.stack(distances), axis=0)
    if form == "rectangles":
        cut_x, cut_y = rng.uniform(0.35, 0.65, 2)
        quadrant = (x > cut_x).astype(int) + 2 * (y > cut_y).astype(int)
        layout = {2: [0, 1, 0, 1], 3: [0, 1, 2, 2], 4: [0, 1, 2, 3]}[count]
        regions = np.array(layout)[quadrant]
        return regions.T if rng.random() < 0.5 else regions
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    along = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    across = (y - 0.5) * math.cos(angle) - (x - 0.5) * math.sin(angle)
    along = along + rng.uniform(0.03, 0.08) * np.sin(across * rng.uniform(8, 18) + phase)
    borders = np.quantile(along, np.arange(1, count) / count)
    return np.searchsorted(borders, along.ravel()).reshape(side, side)


def _spread_points(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) points of the unit square that keep away from one another."""
    import numpy as np

    best, best_distance = rng.uniform(0.15, 0.85, (count, 2)), -1.0
    for _ in range(12):
        points = rng.uniform(0.15, 0.85, (count, 2))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(count)
        if gaps.min() > best_distance:
            best, best_distance = points, float(gaps.min())
    return best


def _borders(regions: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels within one pixel of another region."""
    import numpy as np

    padded = np.pad(regions, 1, mode="edge")
    near = np.zeros(regions.shape, bool)
    height, width = regions.shape
    for dy in range(3):
        for dx in range(3):
            near |= padded[dy : dy + height, dx : dx + width] != regions
    return near


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def build(folder: Path, settings: SampleSettings | None = None) -> None:
    """Write the sample below ``folder`` (made where it is missing, emptied of an unfinished earlier try).

    ``pool/`` holds encoded images without labels under meaningless names, ``evaluation/`` a labelled set as
    :class:`training.data.evaluation_set.EvaluationSet` reads it, ``truth.csv`` (path, source, kind, of) what each pool
    file is: ``unique``; ``overlap``, another light on mostly the place of an earlier crop; ``exact`` or ``near-*`` copy
    of another file; or ``broken-*``.
    """
    import shutil

    settings = settings or SampleSettings()
    for part in ("pool", "evaluation"):
        shutil.rmtree(folder / part, ignore_errors=True)
    sources = photographs(settings.fold)
    truth = _build_pool(folder / "pool", sources, settings)
    _build_evaluation(folder / "evaluation", sources, settings)
    rows = sorted((row.path, row.source, row.kind, row.of) for row in truth)
    _write_csv(folder / "truth.csv", ("path", "source", "kind", "of"), rows)
