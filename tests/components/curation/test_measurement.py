from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from components.curation.config import FilterConfig
from components.curation.measurement import (
    CLEAR_CONTRAST,
    COLOUR_SIDE,
    SIDE,
    Measurement,
    measure,
    measurements,
    mirror_free_hashes,
    sketch,
    thumbnail,
)
from foundry.errors import UserError
from foundry.settings import load_settings
from tests.components.curation.pictures import crops, photograph

PHOTO = photograph("chelsea.png")


def luminance(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float64) @ [0.299, 0.587, 0.114]


def opponents(cells: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(cells, 2, 0)
    return np.stack([(red - green) / 2, ((red + green) / 2 - blue) / 2], axis=-1)


def area_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Mean colour of each cell of a ``side`` x ``side`` grid, a pixel on a border shared: (side, side, 3) float64."""

    def weights(length: int) -> np.ndarray:
        edges = np.arange(side + 1) * length / side
        low, high = np.arange(length), np.arange(1, length + 1)
        covered = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
        return np.clip(covered, 0, None) * side / length

    down, across = weights(pixels.shape[0]), weights(pixels.shape[1])
    return np.einsum("yh,hwc,xw->yxc", down, pixels.astype(np.float64), across, optimize=True)


def test_where_sides_halve_to_64_the_maps_are_area_means() -> None:
    pixels = np.ascontiguousarray(PHOTO[:256, 30:286])
    found = measure(pixels)
    assert np.abs(found.grey - luminance(area_means(pixels, SIDE))).max() <= 1.5
    assert np.abs(found.colour - opponents(area_means(pixels, COLOUR_SIDE))).max() <= 2


@pytest.mark.parametrize("shape", [(300, 451), (129, 257), (300, 90), (70, 140), (255, 255), (259, 64)])
def test_elsewhere_they_are_close_to_area_means_and_lie_in_place(shape: tuple[int, int]) -> None:
    pixels = np.ascontiguousarray(PHOTO[: shape[0], : shape[1]])
    expected = area_means(pixels, SIDE)
    error = thumbnail(pixels) - expected
    assert np.sqrt((error**2).mean()) < 4
    assert abs(error.mean()) < 0.5
    moved = np.roll(expected, 1, axis=0) - expected, np.roll(expected, 1, axis=1) - expected
    assert all((error**2).mean() < 0.2 * (step**2).mean() for step in moved), "less than what a shift by a cell does"
    assert np.abs(measure(pixels).colour - opponents(area_means(pixels, COLOUR_SIDE))).mean() < 1


@pytest.mark.parametrize("length", [257, 515, 1023, 1031, 2047, 4095])
def test_sides_that_are_odd_again_and_again_stay_in_place(length: int) -> None:
    ramp = (np.arange(length) * 255 / (length - 1)).round().astype(np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(ramp[:, None, None], (length, 64, 3)))
    middle = (np.arange(SIDE) + 0.5) * length / SIDE - 0.5  # centre of each cell in pixels
    assert np.abs(thumbnail(pixels)[:, 5, 0] - middle * 255 / (length - 1)).max() <= 2
    turned = thumbnail(np.ascontiguousarray(pixels.swapaxes(0, 1))).swapaxes(0, 1)
    assert np.abs(thumbnail(pixels) - turned.astype(int)).max() <= 1


def test_small_images_are_stretched_linearly() -> None:
    ramp = np.repeat(np.linspace(0, 240, 31)[None, :, None], 20, axis=0).repeat(3, axis=2).astype(np.uint8)
    places = np.clip((np.arange(SIDE) + 0.5) * 31 / SIDE - 0.5, 0, 30)
    assert np.abs(thumbnail(ramp)[..., 0] - np.interp(places, np.arange(31), ramp[0, :, 0])).max() <= 1


def test_an_image_has_the_same_figures_in_any_company() -> None:
    pictures = [PHOTO, *crops(4, 33), *crops(3, 70), PHOTO[:, :77]]
    together = measurements([sketch(pixels) for pixels in pictures])
    for pixels, found in zip(pictures, together, strict=True):
        alone = measure(pixels)
        for field in fields(Measurement):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(alone, field.name), field.name)


def test_contrast_is_exact_where_it_can_decide() -> None:
    def exact(pixels: np.ndarray) -> float:
        return float(pixels.reshape(-1, 3).astype(np.float64).std(axis=0).max())

    small = crops(1, 40)[0]
    faint = (PHOTO // 16 + 100).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    for pixels in (small, faint, noise):
        assert measure(pixels).contrast == pytest.approx(exact(pixels), abs=1e-3)
    assert CLEAR_CONTRAST <= measure(PHOTO).contrast <= exact(PHOTO) + 0.5
    assert load_settings(FilterConfig, {"min_contrast": CLEAR_CONTRAST}, "x").min_contrast == CLEAR_CONTRAST
    with pytest.raises(UserError, match="min_contrast"):
        load_settings(FilterConfig, {"min_contrast": CLEAR_CONTRAST + 0.1}, "x")


def test_pixels_that_differ_anywhere_have_another_digest() -> None:
    digests = {measure(PHOTO).pixels_sha256}
    assert measure(np.array(PHOTO)).pixels_sha256 in digests
    height, width = PHOTO.shape[:2]
    for y, x, channel in ((0, 0, 0), (height - 1, width - 1, 2), (height // 2, 7, 1)):
        changed = np.array(PHOTO)
        changed[y, x, channel] ^= 1
        digests.add(measure(changed).pixels_sha256)
    swapped = np.array(PHOTO)
    swapped[5], swapped[6] = PHOTO[6], PHOTO[5]
    digests |= {measure(swapped).pixels_sha256, measure(PHOTO[:, ::-1]).pixels_sha256}
    assert len(digests) == 6


def test_the_code_of_the_pixels_is_gmac() -> None:
    """By its definition: GHASH of the pixels as associated data, encrypted (NIST SP 800-38D, sections 6.4 and 7.1)."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    aes = Cipher(algorithms.AES(b"dino-foundry pix"), modes.ECB()).encryptor()
    key = int.from_bytes(aes.update(bytes(16)), "big")

    def times_key(value: int) -> int:
        product, factor = 0, key
        for bit in range(127, -1, -1):
            if value >> bit & 1:
                product ^= factor
            factor = factor >> 1 ^ (0xE1 << 120 if factor & 1 else 0)
        return product

    data = crops(1, 33)[0].tobytes()
    blocks = data + bytes(-len(data) % 16) + (8 * len(data)).to_bytes(8, "big") + bytes(8)
    state = 0
    for start in range(0, len(blocks), 16):
        state = times_key(state ^ int.from_bytes(blocks[start : start + 16], "big"))
    expected = state ^ int.from_bytes(aes.update(bytes(15) + b"\1"), "big")
    assert sketch(crops(1, 33)[0]).code == expected.to_bytes(16, "big")


def test_pixels_of_another_shape_have_another_digest() -> None:
    flat = np.zeros((20, 30, 3), np.uint8)
    assert measure(flat).pixels_sha256 != measure(np.zeros((30, 20, 3), np.uint8)).pixels_sha256


def test_the_hash_survives_mirror_scale_and_light() -> None:
    from PIL import Image

    found = measure(PHOTO).hash
    assert (measure(PHOTO[:, ::-1]).hash ^ found).bit_count() <= 2
    smaller = np.asarray(Image.fromarray(PHOTO).resize((200, 133), Image.Resampling.LANCZOS))
    darker = (PHOTO * 0.6).astype(np.uint8)
    for changed in (smaller, darker):
        assert (measure(changed).hash ^ found).bit_count() <= 6
    assert (measure(photograph("coffee.png")).hash ^ found).bit_count() > 12


def test_the_hash_bit_by_bit() -> None:
    greys = np.random.default_rng(0).integers(0, 256, (5, 8, 9)).astype(np.uint8)

    def plain(levels: np.ndarray) -> int:
        bits = [str(int(levels[y, x + 1] > levels[y, x])) for y in range(8) for x in range(8)]
        return int("".join(bits), 2)

    expected = [min(plain(grey.astype(int)), plain(grey[:, ::-1].astype(int))) for grey in greys]
    assert mirror_free_hashes(greys).tolist() == expected


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64), (2, 5000), (700, 600)])
def test_small_and_odd_shapes_are_measured(shape: tuple[int, int]) -> None:
    found = measure(np.full((*shape, 3), 90, np.uint8))
    assert (found.height, found.width, found.contrast) == (*shape, 0)
    assert (found.grey == 90).all() and (found.colour == 0).all()
