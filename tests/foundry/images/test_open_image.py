"""JPEG files decoded by libjpeg-turbo itself, whole and shrunk, against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from foundry.images import ImageError, decode_image, open_image
from foundry.images import decode as decoding


def jpeg(width: int, height: int, **options) -> bytes:
    small = np.random.default_rng(width).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def oriented(data: bytes, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", exif=exif, quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("sides", [(512, 512), (257, 333), (9, 17), (64, 8), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"keep_rgb": True}, {"progressive": True}],
    ids=str,
)
def test_the_pixels_are_those_of_pillow(monkeypatch: pytest.MonkeyPatch, sides, options) -> None:
    data = jpeg(*sides, quality=80, **options)
    assert decoding._turbo is not None
    quick = decode_image(data)
    monkeypatch.setattr(decoding, "_turbo", None)
    assert np.array_equal(quick, decode_image(data))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_shrunk_image_is_upright_and_of_the_sides_that_were_said(orientation: int, factor: int) -> None:
    odd = open_image(oriented(jpeg(203, 118), orientation))
    assert (odd.height, odd.width) == ((203, 118) if orientation in (6, 8) else (118, 203))
    assert odd.pixels(factor).shape == (-(-odd.height // factor), -(-odd.width // factor), 3)
    encoded = open_image(oriented(jpeg(208, 120), orientation))
    whole, shrunk = encoded.pixels(), encoded.pixels(factor)
    box = Image.fromarray(whole).resize((shrunk.shape[1], shrunk.shape[0]), Image.Resampling.BOX)
    assert np.abs(np.asarray(box).astype(int) - shrunk).mean() < 4


def test_other_formats_come_back_whole() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (1, 2, 3)).save(buffer, "PNG")
    assert open_image(buffer.getvalue()).pixels(4).shape == (30, 40, 3)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_a_truncated_file_is_refused_at_any_scale(factor: int) -> None:
    data = jpeg(300, 200)
    with pytest.raises(ImageError):
        open_image(data[: len(data) // 2]).pixels(factor)
