from __future__ import annotations

import hashlib

import numpy as np
import pytest

from components.curation.measurement import COLOUR_SIDE, SIDE, measure, mirror_free_hash
from tests.components.curation.pictures import photograph

PHOTO = photograph("chelsea.png")


def luminance(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_thumbnail_and_colour_map_are_area_means() -> None:
    pixels = np.ascontiguousarray(PHOTO[:256, :384])
    found = measure(pixels)
    cells = pixels.reshape(SIDE, 4, SIDE, 6, 3).mean(axis=(1, 3))
    assert np.abs(found.grey - luminance(cells)).max() <= 1.5
    red, green, blue = np.moveaxis(pixels.reshape(COLOUR_SIDE, 16, COLOUR_SIDE, 24, 3).mean(axis=(1, 3)), 2, 0)
    expected = np.stack([(red - green) / 2, ((red + green) / 2 - blue) / 2], axis=-1)
    assert np.abs(found.colour - expected).max() <= 2


def test_figures_of_an_image() -> None:
    found = measure(PHOTO)
    assert (found.height, found.width) == PHOTO.shape[:2]
    assert found.contrast == pytest.approx(PHOTO.reshape(-1, 3).astype(np.float64).std(axis=0).max(), abs=1e-3)
    assert found.pixels_sha256 == hashlib.sha256(b"%d %d\n" % PHOTO.shape[:2] + PHOTO.tobytes()).hexdigest()
    assert measure(PHOTO[:, ::-1]).pixels_sha256 != found.pixels_sha256


def test_pixels_of_another_shape_have_another_digest() -> None:
    flat = np.zeros((20, 30, 3), np.uint8)
    assert measure(flat).pixels_sha256 != measure(np.zeros((30, 20, 3), np.uint8)).pixels_sha256


def test_the_hash_survives_mirror_scale_and_light() -> None:
    from PIL import Image

    found = measure(PHOTO).hash
    assert measure(np.ascontiguousarray(PHOTO[:, ::-1])).hash == found
    smaller = np.asarray(Image.fromarray(PHOTO).resize((200, 133), Image.Resampling.LANCZOS))
    darker = (PHOTO * 0.6).astype(np.uint8)
    for changed in (smaller, darker):
        assert (measure(changed).hash ^ found).bit_count() <= 6
    assert (measure(photograph("coffee.png")).hash ^ found).bit_count() > 12


def test_the_hash_bit_by_bit() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (8, 9)).astype(np.uint8)

    def plain(levels: np.ndarray) -> int:
        bits = [str(int(levels[y, x + 1] > levels[y, x])) for y in range(8) for x in range(8)]
        return int("".join(bits), 2)

    assert mirror_free_hash(grey) == min(plain(grey.astype(int)), plain(grey[:, ::-1].astype(int)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64)])
def test_small_and_odd_shapes_are_measured(shape: tuple[int, int]) -> None:
    found = measure(np.full((*shape, 3), 90, np.uint8))
    assert (found.height, found.width, found.contrast) == (*shape, 0)
    assert (found.grey == 90).all() and (found.colour == 0).all()
