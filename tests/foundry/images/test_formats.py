"""Formats are told apart by content alone, the same way from a whole file and from its first bytes."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from foundry.images import FORMATS, Preprocessing, inspect_image, sniff
from foundry.images.formats import REFUSED_FORMATS, describe_content
from tests.foundry.images.encoders import saved

PICTURE = np.random.default_rng(2).integers(0, 256, (30, 60, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("pillow", "name"),
    [
        ("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tiff"),
        ("JPEG2000", "jp2"), ("AVIF", "avif"), ("PPM", "ppm"), ("TGA", "tga"), ("DDS", "dds"), ("ICO", "ico"),
        ("PCX", "pcx"),
    ],
)  # fmt: skip
def test_knows_what_pillow_writes(pillow: str, name: str) -> None:
    data = saved(PICTURE, pillow)
    assert sniff(data) == sniff(data[:4096]) == name
    header = inspect_image(data)
    assert (header.format, header.frames, header.orientation) == (name, 1, 1)
    if name != "ico":
        assert (header.width, header.height) == (60, 30)


def test_every_format_has_its_reader() -> None:
    for format in FORMATS.values():
        assert hasattr(importlib.import_module(f"PIL.{format.plugin}"), format.reader)
    assert len({format.extension for format in FORMATS.values()}) == len(FORMATS)
    assert not set(FORMATS) & set(REFUSED_FORMATS)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "heic"),
        (b"\0\0\0\x1cftypmp42\0\0\0\0mp42isom", None),
        (b"II+\0\x08\0\0\0", "tiff"),
        (b"MM\0*" + bytes(4), "tiff"),
        (b"BM plain text that begins like a bitmap", None),
        (b"P7\nWIDTH 3", None),
        (b"P6 3 3 255\n", "ppm"),
        (b"Price list\n", None),
        (b"\0\0\2\0" + bytes(8) + b"\x09\0\x07\0\x18\0", "tga"),
        (b"\0\0\2\0\3\0" + bytes(40), "cur"),
        (bytes(18), None),
        (b"8BPS\0\2" + bytes(20), "psb"),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_borderline_heads(head: bytes, name: str | None) -> None:
    assert sniff(head) == name


def test_random_bytes_are_hardly_ever_an_image() -> None:
    generator = np.random.default_rng(0)
    found = [sniff(generator.bytes(200)) for _ in range(3000)]
    assert sum(name is not None for name in found) < 3


def test_content_is_described_for_people() -> None:
    assert describe_content(b"<html>") == "HTML or XML"
    assert describe_content("Größe\n".encode() * 2000) == "text"  # the 4 KiB read may cut a character
    assert describe_content("wide".encode("utf-16")) == "text"


def test_frames_are_counted_up_to_a_limit() -> None:
    from PIL import Image

    from foundry.images import DecodeLimits

    pages = [Image.fromarray(PICTURE + i) for i in range(6)]
    for format in ("GIF", "TIFF", "WEBP", "PNG", "AVIF"):
        data = saved(pages[0], format, save_all=True, append_images=pages[1:])
        assert inspect_image(data).frames == 6, format
        assert inspect_image(data, DecodeLimits(max_frames=4)).frames == 4, format


def test_the_public_names() -> None:
    import foundry.images

    assert all(hasattr(foundry.images, name) for name in foundry.images.__all__)
    assert Preprocessing().crop == 224
