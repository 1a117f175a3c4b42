"""Class ids, object ids and depths out of the files of an evaluation set."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from foundry.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from training.data.evaluation_rows import DepthImage

MILLIMETRES = 0.001
"""Metres a unit of a 16-bit depth PNG whose table gives no scale."""


def decode_ids(url: str, what: str, name: str, data: bytes) -> np.ndarray:
    """(H, W) int64 values of a one-channel PNG, of a palette PNG the indices. ``what`` is the kind of file."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            ids = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{url}: {what} {name} is not a readable PNG ({error})") from None
    if ids.ndim != 2:
        raise UserError(f"{url}: {what} {name} has {ids.shape[2]} channels, not one channel of {_MEANT[what]}")
    return ids.astype(np.int64)


_MEANT = {"mask": "class ids", "object mask": "object ids", "depth": "depths"}


def check_size(
    url: str, what: str, name: str, image: str, found: tuple[int, ...], size: tuple[int, int] | None
) -> None:
    """Raise :class:`UserError` where the shape ``found`` is not ``size``, the (height, width) of the image."""
    if size is not None and tuple(found) != tuple(size):
        raise UserError(
            f"{url}: {what} {name} is {found[1]}x{found[0]}, its image {image} {size[1]}x{size[0]}; they must be equal"
        )


def decode_depth(url: str, row: DepthImage, data: bytes) -> np.ndarray:
    """(H, W) float32 metres, 0 where not measured: where the value is 0 (unless the offset is above 0), not a finite
    number, or does not give more than 0 metres."""
    import numpy as np

    values, scale = _npy(url, row, data) if row.depth.lower().endswith(".npy") else _png(url, row, data)
    with np.errstate(invalid="ignore", over="ignore"):
        metres = values * scale + row.offset
    # a value of 0 gives the offset: it is measured only where that is above 0
    return np.where(np.isfinite(metres) & (metres > 0), metres, 0.0).astype(np.float32)


def _npy(url: str, row: DepthImage, data: bytes) -> tuple[np.ndarray, float]:
    import numpy as np

    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
        kind = values.dtype.kind
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise UserError(f"{url}: depth {row.depth} is not a readable .npy file ({error})") from None
    if values.ndim != 2 or kind not in "fiu":
        shape = "x".join(map(str, values.shape)) or "one number"
        raise UserError(f"{url}: depth {row.depth} is {shape} of {values.dtype}, not height x width of float metres")
    if kind != "f" and row.scale is None:
        raise UserError(
            f"{url}: depth {row.depth} holds whole numbers ({values.dtype}), whose unit nobody can know; {_ADD_SCALE}"
        )
    return values.astype(np.float64), 1.0 if row.scale is None else row.scale


_ADD_SCALE = "add a column scale (metres a unit, and offset where value 0 is not 0 metres) to its table"


def _png(url: str, row: DepthImage, data: bytes) -> tuple[np.ndarray, float]:
    import numpy as np

    values = decode_ids(url, "depth", row.depth, data)
    # of the header: width, height, then bits a sample and kind of colour
    bits, colour = data[24], data[25]
    if colour == 3 or bits < 8:
        raise UserError(
            f"{url}: depth {row.depth} has colours or too few bits; depth is an 8- or 16-bit grey PNG or .npy"
        )
    if bits == 8 and row.scale is None:
        raise UserError(f"{url}: depth {row.depth} is an 8-bit PNG, whose unit nobody can know; {_ADD_SCALE}")
    return values.astype(np.float64), MILLIMETRES if row.scale is None else row.scale
