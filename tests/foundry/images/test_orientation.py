"""EXIF orientation: every value in every container, against the wording of the standard."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from foundry.images import decode_image, inspect_image
from foundry.images.orientation import orientation_of
from tests.foundry.images.encoders import chunk, exif, png, saved

# EXIF 2.32, tag 0x0112: which side of the scene the stored first row and first column are.
FIRST_ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
SCENE = np.random.default_rng(1).integers(30, 220, (5, 7, 3)).astype(np.uint8)


def stored(scene: np.ndarray, orientation: int) -> np.ndarray:
    """The samples a camera stores for ``scene``, pixel by pixel."""
    height, width = scene.shape[:2]
    row_side, column_side = FIRST_ROW_AND_COLUMN[orientation]
    along_rows = {"top": range(height), "bottom": range(height - 1, -1, -1)}
    along_rows |= {"left": range(width), "right": range(width - 1, -1, -1)}
    rows, columns = along_rows[row_side], along_rows[column_side]
    result = np.empty((len(rows), len(columns), 3), np.uint8)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            result[i, j] = scene[a, b] if row_side in ("top", "bottom") else scene[b, a]
    return result


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("container", ["PNG", "PNG after", "WEBP", "TIFF", "TIFF raw", "JPEG", "AVIF"])
def test_the_scene_stands_upright(container: str, orientation: int) -> None:
    samples, block, tolerance = stored(SCENE, orientation), exif(orientation, "MM"), 0
    expected = SCENE
    if container.startswith("PNG"):
        tag = [chunk(b"eXIf", block)]
        late = container == "PNG after"
        data = png(samples.astype(np.int64), 8, 2, before=[] if late else tag, after=tag if late else [])
    elif container.startswith("TIFF"):
        compression = None if container == "TIFF raw" else "tiff_lzw"
        data = saved(samples, "TIFF", tiffinfo={0x0112: orientation}, compression=compression)
    elif container == "WEBP":
        data = saved(samples, "WEBP", lossless=True, exif=b"Exif\0\0" + block)
    else:
        # lossy: blocks that the codec keeps
        expected = SCENE.repeat(16, axis=0).repeat(16, axis=1)
        options = {"quality": 100, "subsampling": "4:4:4", "exif": b"Exif\0\0" + block}
        data, tolerance = saved(stored(expected, orientation), container, **options), 6
    pixels = decode_image(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance
    header = inspect_image(data)
    assert (header.height, header.width) == expected.shape[:2]
    if container != "AVIF":  # turned by its own boxes; the EXIF is Pillow's summary of them
        assert header.orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_agrees_with_pillow(orientation: int) -> None:
    image = Image.fromarray(stored(SCENE, orientation))
    image.getexif()[0x0112] = orientation
    data = saved(image, "PNG", exif=image.getexif())
    assert (decode_image(data) == np.asarray(ImageOps.exif_transpose(image))).all()


def test_16_bit_tiff_is_turned_once() -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is the writer of this test")
    import io

    for orientation in (3, 6):
        file = io.BytesIO()
        wide = stored(SCENE, orientation).astype(np.uint16) * 257
        tifffile.imwrite(file, wide, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
        assert (decode_image(file.getvalue()) == SCENE).all()


def test_reads_both_byte_orders_and_number_sizes() -> None:
    for order in ("II", "MM"):
        for kind in (3, 4):
            assert orientation_of(exif(6, order, kind)) == 6
            assert orientation_of(b"Exif\0\0" + exif(8, order, kind)) == 8


@pytest.mark.parametrize(
    "block",
    [
        None,
        b"",
        b"Exif\0\0",
        b"II*\0",
        exif(0),
        exif(9),
        exif(65535),
        exif(6)[:20],
        b"XX" + exif(6)[2:],
        exif(6).replace(b"\x03\0\x01\0", b"\x02\0\x01\0"),
        b"II*\0" + struct.pack("<I", 2**32 - 1),
        b"II*\0" + struct.pack("<IH", 8, 65535),
    ],
)
def test_a_broken_block_means_upright(block: bytes | None) -> None:
    assert orientation_of(block) == 1


def test_a_broken_block_does_not_stop_the_decoding() -> None:
    for block in (b"junk", exif(6)[:18], b"II*\0" + struct.pack("<IH", 8, 65535) + b"\x12\x01" * 40):
        data = png(SCENE.astype(np.int64), 8, 2, before=[chunk(b"eXIf", block)])
        assert (decode_image(data) == SCENE).all()
