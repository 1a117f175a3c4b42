"""Where a network looks: attention of its last block, and which patches it finds alike, as heat over the picture.

Attention maps show the row of the CLS token in the softmax of the last block, the mean over heads (Caron et al. 2021,
figure 1). Similarity maps show the cosine of one patch's features to those of every patch of the same image (Siméoni et
al. 2025, figure 3). The explorer does the latter in the reader's browser, for any patch that is clicked: the page holds
the features of a few images, reduced and quantised (:func:`encode_patches`), and some lines of script.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from components.common.report.html import Markup, figure, join, paragraph, text
from components.common.report.palette import heat_colours
from components.evaluation.pictures import TILE, sheet, tile
from foundry.images import Preprocessing
from training.models.vit import VisionTransformer
from training.probes.features import grid_side, normalise_rows

POINTS = ((1 / 2, 1 / 2), (1 / 3, 1 / 3), (2 / 3, 2 / 3))
"""(x, y) of the patches whose similarity maps are drawn, as fractions of the picture: its centre, a third and two
thirds of the way along the diagonal."""
DIMENSIONS = 32
"""Of a patch's features in the page, at most."""
CODE_BYTES = 128 << 10
"""Bytes of one image's features in the page, at most (a third more in base64): 64 x 64 patches of 32 dimensions."""
IMAGE_SIDE = 320
"""Side in pixels of an explorer's picture, at most."""
MOST_EXPLORERS = 6
"""Images of an explorer, at most: together they add less than 1.5 MB to a page."""
ATTENTION_NOTE = (
    "How much the CLS token of the last block attends to each patch, the mean over heads: little is dark violet, much "
    "is yellow, scaled for each picture. Networks see images at twice their usual side; a ConvNeXt has no attention."
)
"""What stands over the tiles of :func:`attention_tiles`."""
SIMILARITY_SCRIPT = (Path(__file__).parent / "similarity.js").read_text(encoding="utf-8")
"""For ``Section(..., scripts=(SIMILARITY_SCRIPT,))`` of the section that holds :func:`explorers`."""


def cls_attention(model: VisionTransformer, pixels: torch.Tensor) -> np.ndarray:
    """(B, h, H / P, W / P) float32: how the last block's CLS token attends to the patches of ``pixels`` (B, 3, H, W).

    Rows sum to at most 1; the rest goes to the CLS token itself and to registers.
    """
    size = model.config.patch_size
    with torch.inference_mode():
        weights = model.attention_map(pixels)[:, :, 0, model.prefix :].float().cpu().numpy()
    return weights.reshape(*weights.shape[:2], pixels.shape[-2] // size, pixels.shape[-1] // size)


def attention_tiles(
    model: object, preprocessing: Preprocessing, images: Sequence[np.ndarray], device: str, side: int = TILE
) -> list[np.ndarray] | None:
    """Tiles of ``images`` under the attention of ``model`` (the mean over heads), at twice the side that it takes, as
    the PCA pictures are. None for a network without attention.

    Each map goes from its 2nd to its 98th percentile.
    """
    if not isinstance(model, VisionTransformer):
        return None
    tiles = []
    for image in images:
        square = tile(image, 2 * preprocessing.crop)
        pixels = torch.from_numpy(np.ascontiguousarray(preprocessing.normalise(square))).float()[None].to(device)
        heat = cls_attention(model, pixels)[0].mean(axis=0)
        low, high = np.percentile(heat, [2, 98])
        tiles.append(heat_over(square, heat, float(low), float(high), side))
    return tiles


def patch_at(point: tuple[float, float], side: int) -> int:
    """Number of the patch at ``point`` (x, y as fractions) of a ``side`` x ``side`` grid, row by row."""
    column, row = (min(int(place * side), side - 1) for place in point)
    return row * side + column


def similarities(patches: np.ndarray, index: int) -> np.ndarray:
    """(side, side) float32: cosines of patch ``index`` of ``patches`` (P, D) to all patches of the square grid."""
    rows = normalise_rows(patches)
    return (rows @ rows[index]).reshape(grid_side(len(rows)), -1)


def similarity_tiles(
    image: np.ndarray,
    patches: np.ndarray,
    points: Sequence[tuple[float, float]] = POINTS,
    side: int = TILE,
) -> list[np.ndarray]:
    """Tiles of ``image`` (S, S, 3) uint8 under the similarity map of each point, from its smallest cosine to 1; the
    patch is marked. ``patches`` (P, D) are the features of the whole of ``image``."""
    grid = grid_side(len(patches))
    tiles = []
    for point in points:
        index = patch_at(point, grid)
        heat = similarities(patches, index)
        drawn = Image.fromarray(heat_over(image, heat, float(heat.min()), 1.0, side))
        row, column = divmod(index, grid)
        centre = ((column + 0.5) * side / grid, (row + 0.5) * side / grid)
        pen = ImageDraw.Draw(drawn)
        for radius, colour in ((6, "black"), (5, "white"), (3, "black")):
            pen.ellipse([place - radius for place in centre] + [place + radius for place in centre], fill=colour)
        tiles.append(np.asarray(drawn))
    return tiles


def similarity_sheet(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], side: int = TILE) -> bytes:
    """PNG: for each (title, image (S, S, 3), patches (P, D)) a column of the picture and its similarity maps."""
    return sheet(
        [(title, [tile(image, side), *similarity_tiles(image, patches, side=side)]) for title, image, patches in rows]
    )


def heat_over(image: np.ndarray, heat: np.ndarray, low: float, high: float, side: int = TILE) -> np.ndarray:
    """A tile of ``image`` (S, S, 3) uint8 in grey under the colours of ``heat`` (h, w), from ``low`` to ``high``."""
    colours = heat_colours()
    scaled = (heat - low) / max(high - low, 1e-12)
    painted = colours[np.rint(255 * np.clip(scaled, 0, 1)).astype(int)]
    over = np.asarray(Image.fromarray(painted).resize((side, side), Image.Resampling.NEAREST), np.float32)
    grey = tile(image, side).mean(axis=2, keepdims=True, dtype=np.float32)
    return (0.4 * grey + 0.6 * over).astype(np.uint8)


@dataclass(frozen=True)
class PatchCodes:
    """Patch features of one image, small enough for a page."""

    values: np.ndarray
    """(side * side, k) int8: cosines of its rows are about those of the features."""
    side: int


def encode_patches(patches: np.ndarray, dimensions: int = DIMENSIONS, limit: int = CODE_BYTES) -> PatchCodes:
    """``patches`` (P, D) of a square grid in at most ``limit`` bytes.

    Rows of unit length are projected on their leading right singular vectors, without centring, which keeps their inner
    products best (Eckart and Young 1936), and scaled together to int8. Where eight dimensions of every patch are more
    than ``limit``, 2 x 2 patches (an odd last row and column left out) are averaged until they are not.
    """
    rows = normalise_rows(patches)
    side = grid_side(len(rows))
    while side * side * min(8, dimensions) > limit:
        half = side // 2
        grid = rows.reshape(side, side, -1)[: 2 * half, : 2 * half].reshape(half, 2, half, 2, -1)
        rows, side = normalise_rows(grid.mean(axis=(1, 3)).reshape(half * half, -1)), half
    kept = min(dimensions, limit // len(rows), rows.shape[1])
    values, vectors = np.linalg.eigh(rows.T.astype(np.float64) @ rows)
    axes = vectors[:, np.argsort(-values)[:kept]]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    reduced = normalise_rows(rows @ axes)
    scale = 127 / max(float(np.abs(reduced).max()), 1e-12)
    return PatchCodes(np.rint(reduced * scale).astype(np.int8), side)


def explorers(shown: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Markup:
    """Pictures in which a click on a patch (or the arrow keys) shows its similarity map, under their static maps.

    ``shown`` are (title, image (S, S, 3) uint8, patches (P, D) of the whole image), :data:`MOST_EXPLORERS` at most.

    Without scripts only the static maps are seen. The section that holds it needs :data:`SIMILARITY_SCRIPT`. Raises
    :class:`ValueError` for more images.
    """
    if len(shown) > MOST_EXPLORERS:
        raise ValueError(f"{len(shown)} images are more than the {MOST_EXPLORERS} of an explorer")
    if not shown:
        return Markup("")
    note = (
        "How alike the features of one patch (marked) are to those of every other patch of its image: cosine, from the "
        "smallest of the map (dark violet) to 1 (yellow). The patches are those at the centre, at a third and at two "
        "thirds of the diagonal."
    )
    boxes = "".join(_explorer(title, image, patches) for title, image, patches in shown)
    return join(
        [
            paragraph(note, "note"),
            figure(similarity_sheet(shown), "similarity maps of three patches of each image", scrolls=True),
            Markup(f'<div class="explorers">{boxes}</div>'),
        ]
    )


def _explorer(title: str, image: np.ndarray, patches: np.ndarray) -> str:
    codes = encode_patches(patches)
    side = min(IMAGE_SIDE, image.shape[0])
    start = patch_at(POINTS[0], codes.side)
    return (
        f'<div class="explorer" hidden data-side="{codes.side}" data-dimensions="{codes.values.shape[1]}" '
        f'data-start="{start}" data-codes="{_base64(codes.values.tobytes())}" '
        f'data-colours="{_base64(heat_colours().tobytes())}"><b>{text(title)}</b><div class="pair">'
        f'<img alt="{escape(title)}" width="{side}" height="{side}" src="data:image/jpeg;base64,'
        f'{_base64(_jpeg(tile(image, side)))}"></div><p></p></div>'
    )


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
