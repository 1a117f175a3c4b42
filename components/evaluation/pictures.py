"""Pictures of a report: what networks see in the same images. All are PNG bytes or uint8 arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from components.common.report.palette import CLASSES, RIGHT, WRONG
from foundry.images import Preprocessing
from training.data.evaluation_set import IGNORE
from training.probes.features import Backbone, Pixels, extract, squash
from training.probes.pca import pca_colours
from training.probes.retrieval import nearest

TILE = 112
"""Side of a tile in pixels."""
_GAP = 6
_TEXT = (31, 41, 55)


def to_png(image: np.ndarray | Image.Image) -> bytes:
    """PNG of an image or of a (H, W, 3) uint8 array."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def tile(image: np.ndarray, side: int = TILE, smooth: bool = True) -> np.ndarray:
    """The central square of (H, W, 3) uint8 at ``side`` x ``side``."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + short, left : left + short]))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST))


def sheet(columns: Sequence[tuple[str, Sequence[np.ndarray]]]) -> bytes:
    """PNG of titled columns of equal square tiles."""
    side = columns[0][1][0].shape[0]
    rows = max(len(tiles) for _, tiles in columns)
    font = ImageFont.load_default(size=13)
    titles = [_wrapped(title, side, font) for title, _ in columns]
    head = 17 * max(len(lines) for lines in titles) + 4
    width = len(columns) * (side + _GAP) - _GAP
    canvas = Image.new("RGB", (width, head + rows * (side + _GAP) - _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for column, ((_, tiles), lines) in enumerate(zip(columns, titles, strict=True)):
        x = column * (side + _GAP)
        for number, line in enumerate(lines):
            draw.text((x + 1, head - 4 - 17 * (len(lines) - number)), line, fill=_TEXT, font=font)
        for row, pixels in enumerate(tiles):
            canvas.paste(Image.fromarray(pixels), (x, head + row * (side + _GAP)))
    return to_png(canvas)


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def pca_tiles(
    model: Backbone, preprocessing: Preprocessing, images: Sequence[np.ndarray], device: str
) -> list[np.ndarray]:
    """Tiles of the patch features of ``images`` as colours, at twice the side (and patch grid) that the model takes."""
    squares = [tile(image, 2 * preprocessing.crop) for image in images]
    pixels = Pixels(len(squares), squares.__getitem__, preprocessing, show=squash(2 * preprocessing.crop))
    patches = extract(model, pixels, patches=True, device=device).patches
    assert patches is not None
    return [tile(picture, smooth=False) for picture in pca_colours(patches)]


def overlay(scene: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A tile of ``scene`` under the classes of ``mask`` (H, W) in :data:`CLASSES`; pixels not scored are white."""
    size = (mask.shape[1], mask.shape[0])
    scene = np.asarray(Image.fromarray(scene).resize(size, Image.Resampling.BICUBIC))
    colours = CLASSES[mask % len(CLASSES)].astype(np.float32)
    grey = scene.mean(axis=2, keepdims=True, dtype=np.float32)
    mixed = 0.3 * grey + 0.7 * colours
    mixed[mask == IGNORE] = 255
    return tile(mixed.astype(np.uint8))


@dataclass(frozen=True)
class Neighbours:
    """Queries and where their neighbours come from, the same for every network."""

    queries: np.ndarray
    """(Q,) indices of query images."""
    query_labels: np.ndarray | None
    gallery_labels: np.ndarray | None
    read_query: Callable[[int], np.ndarray]
    read_gallery: Callable[[int], np.ndarray]
    same: bool
    """Whether queries are themselves part of the gallery (and no neighbours of their own)."""

    def sheet(self, query_embeddings: np.ndarray, gallery_embeddings: np.ndarray, count: int = 5) -> bytes:
        """PNG: each query, then its ``count`` nearest images by one network, framed by whether the class is right
        (blue, or vermillion with a cross).

        Embeddings are (N, D) of all possible queries and of the whole gallery.
        """
        exclude = self.queries if self.same else None
        order, _ = nearest(query_embeddings[self.queries], gallery_embeddings, count, exclude)
        columns: list[tuple[str, list[np.ndarray]]] = [
            ("query", [framed(self.read_query(int(query)), None) for query in self.queries])
        ]
        for rank in range(order.shape[1]):
            tiles = []
            for row, query in enumerate(self.queries):
                found = int(order[row, rank])
                colour = None
                if self.query_labels is not None and self.gallery_labels is not None:
                    colour = RIGHT if self.query_labels[query] == self.gallery_labels[found] else WRONG
                tiles.append(framed(self.read_gallery(found), colour))
            columns.append((str(rank + 1), tiles))
        return sheet(columns)


def framed(image: np.ndarray, colour: tuple[int, int, int] | None, side: int = 76) -> np.ndarray:
    """A tile with a frame of 4 pixels; white where ``colour`` is None, with a cross in a corner for :data:`WRONG`."""
    canvas = np.full((side, side, 3), 255, np.uint8)
    if colour is not None:
        canvas[:] = colour
    canvas[4:-4, 4:-4] = tile(image, side - 8)
    if colour == WRONG:
        marked = Image.fromarray(canvas)
        draw = ImageDraw.Draw(marked)
        draw.rectangle((side - 20, 4, side - 5, 19), fill=WRONG)
        for line in ((side - 17, 7, side - 8, 16), (side - 17, 16, side - 8, 7)):
            draw.line(line, fill=(255, 255, 255), width=2)
        canvas = np.asarray(marked)
    return canvas
