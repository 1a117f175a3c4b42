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
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from foundry.errors import UserError
from foundry.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

IGNORE = 255
"""Mask value of pixels that no score counts (the borders between the regions of a mosaic)."""

PHOTOGRAPHS: dict[str, str] = {
    "astronaut": "astronaut.png",
    "bricks": "brick.png",
    "cameraman": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "galaxies": "hubble_deep_field.jpg",
    "tissue": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "handwriting": "text.png",
}
"""Class name -> file below ``skimage/data``. Logos, phantoms, boards, colour wheels and tiny files are left out;
motorcycle_right shows the same scene as motorcycle_left."""


class SampleSettings(Settings):
    """How large the sample is. The defaults are what ``sample:`` means."""

    seed: int = 20251
    """Seed of every choice: places, scales, lights, formats, names."""
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


class Rectangle(NamedTuple):
    """A crop of a photograph in its pixels: ``left <= x < right``, ``top <= y < bottom``."""

    left: int
    top: int
    right: int
    bottom: int


def overlap(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels that each of ``some`` (N, 4) shares with each of ``others`` (M, 4): (N, M), rows as :class:`Rectangle`."""
    import numpy as np

    width = np.minimum(some[:, None, 2], others[None, :, 2]) - np.maximum(some[:, None, 0], others[None, :, 0])
    height = np.minimum(some[:, None, 3], others[None, :, 3]) - np.maximum(some[:, None, 1], others[None, :, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)


def intersection_over_union(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of rectangles (N, 4) and (M, 4), in [0, 1]."""
    common = overlap(some, others)
    return common / (_area(some)[:, None] + _area(others)[None, :] - common)


def _area(rectangles: np.ndarray) -> np.ndarray:
    return (rectangles[:, 2] - rectangles[:, 0]) * (rectangles[:, 3] - rectangles[:, 1])


_CELL = 128  # wanted side of a cell in pixels of a photograph
_LARGEST = 760  # photographs are first reduced to this longer side, so that a crop shows comparable detail everywhere
_MARGIN = 4  # pixels between test ground and any train crop, on each side
_FLAT = 9.0  # grey-level standard deviation below which a crop shows nothing
_UNIQUE_OVERLAP = 0.6  # intersection over union from which two pool crops show the same place


class Photograph:
    """One source: its pixels, and the division of its area into train ground and test ground."""

    def __init__(self, name: str, image: Image) -> None:
        from PIL import Image as pillow

        scale = _LARGEST / max(image.size)
        if scale < 1:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, pillow.Resampling.LANCZOS)
        self.name = name
        self.image = image.convert("RGB")
        self.columns = max(3, round(self.image.width / _CELL))
        self.rows = max(2, round(self.image.height / _CELL))
        self._grey = _array(self.image.convert("L"))

    @property
    def test_cells(self) -> list[Rectangle]:
        """The cells that belong to test ground: a diagonal pattern, a third of all."""
        return [
            self._cell(row, column)
            for row in range(self.rows)
            for column in range(self.columns)
            if (row + column) % 3 == 1
        ]

    def _cell(self, row: int, column: int) -> Rectangle:
        width, height = self.image.size
        return Rectangle(
            width * column // self.columns,
            height * row // self.rows,
            width * (column + 1) // self.columns,
            height * (row + 1) // self.rows,
        )

    def choose(
        self, rng: np.random.Generator, test: bool, taken: Sequence[Rectangle] = (), distinct: float = 1.0
    ) -> Rectangle:
        """A random rectangle of test ground or of train ground that is not flat and not one of ``taken``.

        ``distinct`` is the intersection over union from which two rectangles count as the same. Where no candidate is
        distinct the least overlapping one is returned.
        """
        import numpy as np

        candidates = self._candidates(rng, test, 200)
        worst = np.zeros(len(candidates))
        if taken:
            worst = intersection_over_union(candidates, np.array(taken)).max(axis=1)
        order = np.argsort(np.where(worst < distinct, 0.0, worst), kind="stable")  # the first distinct one comes first
        for index in order:
            left, top, right, bottom = (int(value) for value in candidates[index])
            if self._grey[top:bottom:2, left:right:2].std() >= _FLAT:
                break
        return Rectangle(left, top, right, bottom)

    def _candidates(self, rng: np.random.Generator, test: bool, count: int) -> np.ndarray:
        """Up to ``count`` (at least one) rectangles inside one test cell or clear of all of them: (N, 4) int."""
        import numpy as np

        cells = np.array(self.test_cells)
        side = min(int((cells[:, 2] - cells[:, 0]).min()), int((cells[:, 3] - cells[:, 1]).min()))
        while True:
            length = side * np.exp(rng.uniform(math.log(0.65), math.log(0.99), count))
            aspect = np.exp(rng.uniform(-0.2, 0.2, count))
            size = np.stack([length * np.minimum(1, aspect), length * np.minimum(1, 1 / aspect)], axis=1).astype(int)
            ground = np.array([[0, 0, *self.image.size]])
            if test:
                ground = cells
            ground = ground[rng.integers(len(ground), size=count)]
            corner = rng.integers(ground[:, :2], ground[:, 2:] - size + 1)
            found = np.concatenate([corner, corner + size], axis=1)
            if not test:
                found = found[overlap(found, cells + [-_MARGIN, -_MARGIN, _MARGIN, _MARGIN]).max(axis=1) == 0]
            if len(found):
                return found

    def cut(self, rectangle: Rectangle, size: tuple[int, int]) -> Image:
        """The pixels of ``rectangle`` rescaled to ``size`` = (width, height)."""
        from PIL import Image as pillow

        box = (rectangle.left, rectangle.top, rectangle.right, rectangle.bottom)
        return self.image.resize(size, pillow.Resampling.BICUBIC, box=box)


def photographs() -> list[Photograph]:
    """The sources, read from the installed scikit-image. Raises :class:`UserError` where a file is missing."""
    from importlib.util import find_spec

    from PIL import Image as pillow

    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UserError("the embedded sample needs scikit-image, which is not installed; give your own images instead")
    folder = Path(spec.origin).parent / "data"
    sources = []
    for name, file in PHOTOGRAPHS.items():
        if not (folder / file).is_file():
            raise UserError(f"{folder / file}: this scikit-image does not carry the photograph; install 0.24 or later")
        with pillow.open(folder / file) as image:
            sources.append(Photograph(name, image.convert("RGB")))
    return sources


def _array(image: Image) -> np.ndarray:
    import numpy as np

    return np.asarray(image)


def relight(image: Image, rng: np.random.Generator) -> Image:
    """The picture as another camera under another lamp would have taken it.

    Gamma and contrast of the sensor, exposure, gains of red and blue (colour temperature) and green (tint), saturation
    down to monochrome, a lamp to one side (a linear fall of light), a little sensor noise.
    """
    import numpy as np
    from PIL import Image as pillow

    pixels = _array(image)
    height, width = pixels.shape[:2]
    curve = (np.arange(256, dtype=np.float32) / 255) ** np.float32(math.exp(rng.normal(0, 0.25)))
    light = curve[pixels]
    keep = 0.0 if rng.random() < 0.15 else float(rng.uniform(0.5, 1.15))
    grey = light @ np.array([0.299, 0.587, 0.114], np.float32)
    light = grey[..., None] + np.float32(keep) * (light - grey[..., None])
    warmth, tint = rng.normal(0, 0.1), rng.normal(0, 0.03)
    light *= np.exp(np.array([warmth, tint, -warmth], np.float32))
    angle, fall = rng.uniform(0, 2 * math.pi), abs(rng.normal(0, 0.2))
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * math.cos(angle)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(angle)
    light *= np.exp(np.float32(fall) * (across + down))[..., None]
    exposure, contrast = math.exp(rng.normal(0, 0.2)), math.exp(rng.normal(-0.05, 0.2))
    middle = float(light.mean())
    light = (light - middle) * contrast + min(max(middle * exposure, 0.12), 0.88)
    if rng.random() < 0.4:
        light += rng.normal(0, rng.uniform(0.005, 0.03), (height, width, 1)).astype(np.float32)
    return pillow.fromarray(np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8))


def encode(image: Image, rng: np.random.Generator) -> tuple[bytes, str]:
    """(file content, extension) in a random common format: JPEG of some quality, PNG or WebP."""
    kind = rng.choice(["jpg", "png", "webp"], p=[0.7, 0.15, 0.15])
    buffer = io.BytesIO()
    if kind == "jpg":
        image.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    elif kind == "png":
        image.save(buffer, "PNG", compress_level=3)
    else:
        image.save(buffer, "WEBP", quality=int(rng.integers(60, 96)), method=1)
    return buffer.getvalue(), str(kind)


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
                pixels[regions == region] = _array(picture)[regions == region]
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
    sources = photographs()
    truth = _build_pool(folder / "pool", sources, settings)
    _build_evaluation(folder / "evaluation", sources, settings)
    rows = sorted((row.path, row.source, row.kind, row.of) for row in truth)
    _write_csv(folder / "truth.csv", ("path", "source", "kind", "of"), rows)
