"""Real pixels for the tests of curation: cut out of the photographs that scikit-image carries."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")


def photograph(name: str) -> np.ndarray:
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    return np.asarray(Image.open(folder / name).convert("RGB"))


def crops(count: int, side: int = 96, seed: int = 0) -> list[np.ndarray]:
    """``count`` different (side, side, 3) uint8 pieces of the photographs, no two at the same place."""
    generator = np.random.default_rng(seed)
    sources = [photograph(name) for name in PHOTOGRAPHS]
    pieces = []
    for number in range(count):
        source = sources[number % len(sources)]
        rows, columns = source.shape[0] // side, source.shape[1] // side
        cell = (number // len(sources)) % (rows * columns)
        top, left = cell // columns * side, cell % columns * side
        size = side if number < len(sources) * rows * columns else int(generator.integers(side // 2, side))
        pieces.append(np.ascontiguousarray(source[top : top + size, left : left + size]))
    return pieces


def encode(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def write_pool(folder: Path, count: int, side: int = 48) -> dict[str, bytes]:
    """A pool of ``count`` different photographs with a few broken and doubled files; {path: bytes}."""
    files = {f"{number % 3}/{number:03d}.png": encode(piece) for number, piece in enumerate(crops(count, side))}
    first = next(iter(files.values()))
    files["again/copy.png"] = first
    files["again/named.jpg"] = first
    files["broken/empty.jpg"] = b""
    files["broken/page.jpg"] = b"<!doctype html><html><body>not found</body></html>"
    files["broken/short.png"] = first[: len(first) // 2]
    files["broken/notes.txt"] = b"taken in 1999"
    files["plain/white.png"] = encode(np.full((40, 40, 3), 255, np.uint8))
    files["plain/tiny.png"] = encode(crops(1, 8)[0])
    files["plain/strip.png"] = encode(np.tile(crops(1, 32)[0], (12, 1, 1)))
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return files
