"""The photographs that the scikit-image wheel carries: train ground, test ground, crops in another light."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foundry.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

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


class Photograph:
    """One source: its pixels, and the division of its area into train ground and test ground."""

    def __init__(self, name: str, image: Image, fold: int = 1) -> None:
        from PIL import Image as pillow

        scale = _LARGEST / max(image.size)
        if scale < 1:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, pillow.Resampling.LANCZOS)
        self.name, self.fold = name, fold
        self.image = image.convert("RGB")
        self.columns = max(3, round(self.image.width / _CELL))
        self.rows = max(2, round(self.image.height / _CELL))
        self._grey = to_array(self.image.convert("L"))

    @property
    def test_cells(self) -> list[Rectangle]:
        """The cells that belong to test ground: one of three diagonal patterns (``fold``), a third of all."""
        return [
            self._cell(row, column)
            for row in range(self.rows)
            for column in range(self.columns)
            if (row + column) % 3 == self.fold
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


def photographs(fold: int = 1) -> list[Photograph]:
    """The sources, read from the installed scikit-image, the test ground being the diagonal ``fold`` (0, 1 or 2).

    Raises :class:`UserError` where a file is missing.
    """
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
            sources.append(Photograph(name, image.convert("RGB"), fold))
    return sources


def to_array(image: Image) -> np.ndarray:
    """The pixels of ``image``, read-only."""
    import numpy as np

    return np.asarray(image)


def relight(image: Image, rng: np.random.Generator) -> Image:
    """The picture as another camera under another lamp would have taken it.

    Gamma and contrast of the sensor, exposure, gains of red and blue (colour temperature) and green (tint), saturation
    down to monochrome, a lamp to one side (a linear fall of light), a little sensor noise.
    """
    import numpy as np
    from PIL import Image as pillow

    pixels = to_array(image)
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
