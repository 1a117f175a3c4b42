"""The table of docs/pixels.md, each line against samples encoded by hand and arithmetic done here."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from foundry.images import ImageError, decode_image, inspect_image
from tests.foundry.images.encoders import chunk, gif, icc, png, saved, tiff

RANDOM = np.random.default_rng(7)
HEIGHT, WIDTH = 13, 19
GREY8 = RANDOM.integers(0, 256, (HEIGHT, WIDTH))
GREY16 = RANDOM.integers(0, 65536, (HEIGHT, WIDTH))
RGB8 = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3))
RGB16 = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3))
ALPHA8 = RANDOM.integers(0, 256, (HEIGHT, WIDTH))
ALPHA16 = RANDOM.integers(0, 65536, (HEIGHT, WIDTH))
PALETTE = RANDOM.integers(0, 256, (256, 3))


def scaled(values: np.ndarray, maximum: int = 65535) -> np.ndarray:
    return np.floor(values.astype(np.float64) * 255 / maximum + 0.5).astype(np.int64)


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return np.floor(colour * weight + 255 * (1 - weight) + 0.5).astype(np.int64)


def assert_pixels(data: bytes, expected: np.ndarray, tolerance: int = 0) -> None:
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    difference = np.abs(pixels.astype(np.int64) - expected)
    assert difference.max() <= tolerance, f"{difference.max()} levels at {np.argwhere(difference > tolerance)[:3]}"
    header = inspect_image(data)
    assert (header.height, header.width) == expected.shape[:2]


# ------------------------------------------------------------------------------------------------------- PNG


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_png_grey_of_every_depth(depth: int) -> None:
    samples = GREY16 >> (16 - depth)
    assert_pixels(png(samples, depth, 0), grey(scaled(samples, 2**depth - 1)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_png_grey_with_a_transparent_level(depth: int) -> None:
    samples = GREY16 >> (16 - depth)
    clear = int(samples[3, 4])
    expected = grey(scaled(samples, 2**depth - 1))
    expected[samples == clear] = 255
    assert_pixels(png(samples, depth, 0, [chunk(b"tRNS", struct.pack(">H", clear))]), expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_png_colour_is_scaled_not_cut(depth: int) -> None:
    samples = RGB16 >> (16 - depth)
    expected = scaled(samples, 2**depth - 1)
    assert_pixels(png(samples, depth, 2), expected)
    if depth == 16:
        assert (expected != samples >> 8).any(), "the case would not tell scaling from taking the high byte"


@pytest.mark.parametrize("depth", [8, 16])
def test_png_colour_with_a_transparent_colour(depth: int) -> None:
    samples = RGB16 >> (16 - depth)
    samples[5, 6] = samples[2, 3]
    if depth == 16:
        samples[7, 7] = samples[2, 3] ^ [0, 0, 1]  # differs in the low byte only: stays opaque
    expected = scaled(samples, 2**depth - 1)
    expected[(samples == samples[2, 3]).all(axis=-1)] = 255
    assert_pixels(png(samples, depth, 2, [chunk(b"tRNS", struct.pack(">3H", *samples[2, 3]))]), expected)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_with_alpha_lies_over_white(depth: int, channels: int) -> None:
    colour = (RGB16 if channels == 3 else GREY16[..., None]) >> (16 - depth)
    alpha = ALPHA16 >> (16 - depth)
    alpha[0], alpha[1] = 0, 2**depth - 1
    samples = np.concatenate([colour, alpha[..., None]], axis=-1)
    wide = np.broadcast_to(scaled(colour, 2**depth - 1), (HEIGHT, WIDTH, 3))
    expected = over_white(wide, scaled(alpha, 2**depth - 1))
    assert_pixels(png(samples, depth, 6 if channels == 3 else 4), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", ["none", "one", "levels"])
def test_png_palette(depth: int, transparency: str) -> None:
    count = 2**depth
    indexes = GREY16 >> (16 - depth)
    before = [chunk(b"PLTE", PALETTE[:count].astype(np.uint8).tobytes())]
    alpha = np.full(256, 255)
    if transparency == "one":
        alpha[1] = 0
        before.append(chunk(b"tRNS", b"\xff\0"))
    elif transparency == "levels":
        alpha[:2] = 90, 200
        before.append(chunk(b"tRNS", bytes([90, 200])))
    assert_pixels(png(indexes, depth, 3, before), over_white(PALETTE[indexes], alpha[indexes]))


def test_png_interlaced_equals_plain() -> None:
    # Adam7 by hand: seven reduced images one after another
    import zlib

    rows = b""
    for row, column, down, across in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
    ):  # fmt: skip
        part = RGB16[row::down, column::across].astype(">u2")
        rows += b"".join(b"\0" + line.tobytes() for line in part if line.size)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert_pixels(data, scaled(RGB16))


def test_apng_gives_the_default_image() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 20, 30)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert_pixels(data, np.full((8, 8, 3), 10))
    data = saved(frames[1], "PNG", save_all=True, append_images=[frames[2], frames[0]])
    assert_pixels(data, np.full((8, 8, 3), 20))
    assert inspect_image(data).frames == 3


# ------------------------------------------------------------------------------------------------------- GIF


def test_gif_shows_its_first_frame() -> None:
    second = (GREY8 + 1) % 256
    data = gif(GREY8, PALETTE, more=[second, GREY8])
    assert_pixels(data, PALETTE[GREY8])
    assert inspect_image(data).frames == 3


def test_gif_transparency_and_uncovered_canvas_are_white() -> None:
    expected = np.full((20, 30, 3), 255)
    expected[5 : 5 + HEIGHT, 8 : 8 + WIDTH] = PALETTE[GREY8]
    assert_pixels(gif(GREY8, PALETTE, canvas=(30, 20), offset=(8, 5)), expected)
    clear = int(GREY8[0, 0])
    expected[5 : 5 + HEIGHT, 8 : 8 + WIDTH][GREY8 == clear] = 255
    assert_pixels(gif(GREY8, PALETTE, canvas=(30, 20), offset=(8, 5), transparent=clear), expected)


def test_gif_with_a_grey_palette() -> None:
    expected = grey(np.where(GREY8 == 3, 255, GREY8))
    assert_pixels(gif(GREY8, grey(np.arange(256)), transparent=3), expected)


# ------------------------------------------------------------------------------------- JPEG, WebP, AVIF, JPEG 2000

SMOOTH = np.dstack([*np.meshgrid(np.linspace(40, 200, 64), np.linspace(20, 220, 48)), np.full((48, 64), 120.0)]).astype(
    np.uint8
)


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}, 3),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}, 3),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 100}, 6),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 3),
        ("JPEG2000", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("PPM", {}, 0),
        ("TGA", {"rle": True}, 0),
        ("PCX", {}, 0),
        ("DDS", {}, 0),
    ],
)
def test_colour_of_other_formats(format: str, options: dict[str, object], tolerance: int) -> None:
    assert_pixels(saved(SMOOTH, format, **options), SMOOTH.astype(np.int64), tolerance)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF", "JPEG2000", "BMP", "TIFF", "PPM", "TGA", "PCX"])
def test_grey_of_other_formats(format: str) -> None:
    options = {"quality": 100} if format in ("JPEG", "AVIF") else {"lossless": True} if format == "WEBP" else {}
    tolerance = {"JPEG": 2, "AVIF": 3}.get(format, 0)
    assert_pixels(saved(SMOOTH[..., 0], format, **options), grey(SMOOTH[..., 0].astype(np.int64)), tolerance)


@pytest.mark.parametrize(("format", "tolerance"), [("WEBP", 0), ("AVIF", 4), ("JPEG2000", 0), ("TIFF", 0), ("TGA", 0)])
def test_alpha_of_other_formats(format: str, tolerance: int) -> None:
    alpha = np.repeat(np.repeat([[0, 255, 128], [77, 200, 1]], 24, axis=0), 21, axis=1)
    colour = SMOOTH[:, :63]
    options = {"lossless": True, "exact": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    data = saved(np.dstack([colour, alpha]).astype(np.uint8), format, **options)
    assert_pixels(data, over_white(colour, alpha), tolerance)


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_jpeg_2000(channels: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the writer of this test")
    samples = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    stored = samples if channels == 1 else np.dstack([samples] * 3)
    _, data = cv2.imencode(".jp2", stored, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    if channels == 1:
        assert_pixels(data.tobytes(), grey(scaled(samples)))
    else:  # Pillow's colour would show white as black
        with pytest.raises(ImageError, match="more than 8 bits") as caught:
            decode_image(data.tobytes())
        assert caught.value.reason == "unsupported"


def test_deep_avif() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the writer of this test")
    if not hasattr(cv2, "IMWRITE_AVIF_DEPTH"):
        pytest.skip("this OpenCV writes no AVIF")
    ramp = np.linspace(0, 1023, 64).round().astype(np.uint16)
    samples = np.dstack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 1023, np.uint16)])
    options = [cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 100]
    done, data = cv2.imencode(".avif", samples[..., ::-1], options)
    assert done
    assert_pixels(data.tobytes(), scaled(samples, 1023), 3)


def test_animated_webp_shows_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (50, 100, 150)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert_pixels(data, np.full((16, 16, 3), 50))
    assert inspect_image(data).frames == 3


INKS = np.repeat(np.repeat(RANDOM.integers(0, 256, (3, 4, 4)), 16, axis=0), 16, axis=1)


def rgb_of_inks(inks: np.ndarray) -> np.ndarray:
    return np.floor((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255 + 0.5).astype(np.int64)


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def test_cmyk_jpeg_of_adobe_is_inverted() -> None:
    data = saved(Image.fromarray(INKS.astype(np.uint8), "CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    assert_pixels(data, rgb_of_inks(INKS), 3)


def test_cmyk_jpeg_without_the_marker_is_plain() -> None:
    # the stored samples of Pillow's file are the inverted inks
    data = saved(Image.fromarray((255 - INKS).astype(np.uint8), "CMYK"), "JPEG", quality=100, subsampling=0)
    assert_pixels(without_adobe_marker(data), rgb_of_inks(INKS), 3)


def test_ycck_jpeg() -> None:
    # libjpeg gives C = 255 - R(YCC) and leaves K; Adobe's inversion then makes the inks R(YCC) and 255 - K. So the
    # file holds the YCC of the ink triple taken as RGB, and 255 - black.
    cyan, magenta, yellow, black = np.moveaxis(INKS.astype(np.float64), -1, 0)
    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    stored = np.stack([luma, 128 + (yellow - luma) / 1.772, 128 + (cyan - luma) / 1.402, 255 - black], axis=-1)
    image = Image.fromarray(255 - stored.round().clip(0, 255).astype(np.uint8), "CMYK")  # Pillow writes 255 - value
    data = saved(image, "JPEG", quality=100, subsampling=0)
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    assert_pixels(data[:transform] + b"\x02" + data[transform + 1 :], rgb_of_inks(INKS), 5)


# ------------------------------------------------------------------------------------------------------ TIFF


def tiff_of(
    samples: np.ndarray, bits: int, photometric: int, order: str = "II", **tags: int | tuple[int, ...]
) -> bytes:
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    fields: dict[int, int | tuple[int, ...]] = {
        256: width, 257: height, 258: (bits,) * channels, 262: photometric, 277: channels, 278: height,
    }  # fmt: skip
    fields.update({int(name[1:]): value for name, value in tags.items()})
    kind = samples.dtype.newbyteorder("<" if order == "II" else ">")
    return tiff(fields, samples.astype(kind).tobytes(), order)


@pytest.mark.parametrize("order", ["II", "MM"])
def test_tiff_16_bit(order: str) -> None:
    assert_pixels(tiff_of(GREY16.astype(np.uint16), 16, 1, order), grey(scaled(GREY16)))
    assert_pixels(tiff_of(RGB16.astype(np.uint16), 16, 2, order), scaled(RGB16))
    rgba = np.dstack([RGB16, ALPHA16]).astype(np.uint16)
    assert_pixels(tiff_of(rgba, 16, 2, order, t338=(2,)), over_white(scaled(RGB16), scaled(ALPHA16)))
    assert_pixels(tiff_of(rgba, 16, 2, order, t338=(0,)), scaled(RGB16))
    assert_pixels(tiff_of(rgba, 16, 5, order), rgb_of_inks(scaled(rgba.astype(np.int64))))


def test_tiff_16_bit_premultiplied() -> None:
    alpha = np.where(ALPHA16 < 1000, 0, ALPHA16)
    stored = np.floor(RGB16 * (alpha[..., None] / 65535) + 0.5)
    data = tiff_of(np.dstack([stored, alpha]).astype(np.uint16), 16, 2, t338=(1,))
    assert_pixels(data, over_white(scaled(RGB16), scaled(alpha)), 1)


def test_tiff_12_bit() -> None:
    samples = GREY16[:, :18] >> 4
    bits = ((samples[..., None] >> np.arange(11, -1, -1)) & 1).reshape(HEIGHT, -1)
    strip = np.packbits(bits.astype(np.uint8), axis=1).tobytes()
    data = tiff({256: 18, 257: HEIGHT, 258: (12,), 262: 1, 278: HEIGHT}, strip)
    assert_pixels(data, grey(scaled(samples, 4095)))


def test_tiff_white_is_zero() -> None:
    assert_pixels(tiff_of(GREY8.astype(np.uint8), 8, 0), grey(255 - GREY8))
    assert_pixels(tiff_of(GREY16.astype(np.uint16), 16, 0), grey(255 - scaled(GREY16)))


def test_tiff_signed_samples_are_shifted_to_zero() -> None:
    assert_pixels(tiff_of((GREY8 - 128).astype(np.int8), 8, 1, t339=(2,)), grey(GREY8))
    assert_pixels(tiff_of((GREY16 - 32768).astype(np.int16), 16, 1, t339=(2,)), grey(scaled(GREY16)))


@pytest.mark.parametrize("kind", ["uint32", "int32", "float32"])
def test_tiff_32_bit_uses_its_own_range(kind: str) -> None:
    low, high = {"uint32": (2**31 - 5000, 2**31 + 90000), "int32": (-70000, 123456), "float32": (-0.25, 3.5)}[kind]
    values = (low + (high - low) * RANDOM.random((HEIGHT, WIDTH))).astype(kind)
    values[0, :2] = low, high
    expected = np.rint((values.astype(np.float64) - low) * 255 / (high - low)).astype(np.int64)
    sample_format = {"uint32": 1, "int32": 2, "float32": 3}[kind]
    assert_pixels(tiff_of(values, 32, 1, t339=(sample_format,)), grey(expected))


def test_tiff_float_that_is_not_finite() -> None:
    values = np.array([[0.0, 1.0, 2.0], [np.nan, np.inf, -np.inf]], np.float32)
    assert_pixels(tiff_of(values, 32, 1, t339=(3,)), grey(np.array([[0, 128, 255], [0, 255, 0]])))
    for constant in (np.nan, 7.0):
        assert_pixels(tiff_of(np.full((4, 5), constant, np.float32), 32, 1, t339=(3,)), np.zeros((4, 5, 3)))


def test_tiff_bilevel_palette_and_inks() -> None:
    bits = GREY8 & 1
    packed = np.packbits(bits.astype(np.uint8), axis=1)
    for photometric, expected in ((1, bits), (0, 1 - bits)):
        fields = {256: WIDTH, 257: HEIGHT, 258: (1,), 262: photometric, 278: HEIGHT}
        assert_pixels(tiff(fields, packed.tobytes()), grey(expected * 255))
    colours = tuple(int(v) * 257 for v in PALETTE.T.ravel())
    assert_pixels(tiff_of(GREY8.astype(np.uint8), 8, 3, t320=colours), PALETTE[GREY8])
    assert_pixels(tiff_of(INKS.astype(np.uint8), 8, 5), rgb_of_inks(INKS))


def test_tiff_grey_and_palette_with_alpha() -> None:
    pair = np.dstack([GREY8, ALPHA8])
    assert_pixels(tiff_of(pair.astype(np.uint8), 8, 1, t338=(2,)), over_white(grey(GREY8), ALPHA8))
    assert_pixels(tiff_of(pair.astype(np.uint8), 8, 1, t338=(0,)), grey(GREY8))
    premultiplied = np.dstack([np.floor(GREY8 * ALPHA8 / 255 + 0.5), ALPHA8]).astype(np.uint8)
    assert_pixels(tiff_of(premultiplied, 8, 1, t338=(1,)), over_white(grey(GREY8), ALPHA8), 1)
    colours = tuple(int(v) * 257 for v in PALETTE.T.ravel())
    data = tiff_of(pair.astype(np.uint8), 8, 3, t338=(2,), t320=colours)
    assert_pixels(data, over_white(PALETTE[GREY8], ALPHA8))


def test_tiff_colour_with_alpha_and_spare_samples() -> None:
    rgba = np.dstack([RGB8, ALPHA8]).astype(np.uint8)
    assert_pixels(tiff_of(rgba, 8, 2, t338=(2,)), over_white(RGB8, ALPHA8))
    assert_pixels(tiff_of(rgba, 8, 2, t338=(0,)), RGB8)
    stored = np.dstack([np.floor(RGB8 * (ALPHA8[..., None] / 255) + 0.5), ALPHA8]).astype(np.uint8)
    assert_pixels(tiff_of(stored, 8, 2, t338=(1,)), over_white(RGB8, ALPHA8), 1)
    assert_pixels(tiff_of(np.dstack([INKS, INKS[..., :1]]).astype(np.uint8), 8, 5, t338=(0,)), rgb_of_inks(INKS))


def test_tiff_lab() -> None:
    lightness = RANDOM.integers(0, 256, (HEIGHT, WIDTH))
    a, b = RANDOM.integers(-40, 41, (2, HEIGHT, WIDTH))
    data = tiff_of(np.dstack([lightness, a, b]).astype(np.int16).astype(np.uint8), 8, 8)
    fy = (lightness / 255 * 100 + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    srgb_of_d50 = np.linalg.inv([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = (xyz @ srgb_of_d50.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert_pixels(data, np.rint(encoded * 255).astype(np.int64), 3)


def test_tiff_ycbcr() -> None:
    luma, cb, cr = (part[..., None] for part in np.moveaxis(np.dstack([GREY8, ALPHA8, RGB8[..., 0]]), -1, 0))
    red, blue = luma + 1.402 * (cr - 128), luma + 1.772 * (cb - 128)
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    expected = np.concatenate([red, green, blue], axis=-1).round().clip(0, 255).astype(np.int64)
    samples = np.concatenate([luma, cb, cr], axis=-1).astype(np.uint8)
    assert_pixels(tiff_of(samples, 8, 6, t530=(1, 1)), expected, 1)
    with pytest.raises(ImageError) as caught:
        decode_image(tiff_of(samples[:, : WIDTH // 2], 8, 6, t256=WIDTH - 1, t530=(2, 1)))
    assert caught.value.reason == "unsupported"


def test_tiff_shows_its_first_page() -> None:
    pages = [Image.fromarray(np.full((6, 7), level, np.uint8)) for level in (11, 22, 33)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert_pixels(data, np.full((6, 7, 3), 11))
    assert inspect_image(data).frames == 3


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "planes"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_tiff_layouts_of_tifffile(compression: str | None, layout: str, order: str, kind: str) -> None:
    import io

    tifffile = pytest.importorskip("tifffile", reason="tifffile is the writer of this test")
    samples = RANDOM.integers(0, 2 ** (8 * np.dtype(kind).itemsize), (50, 70, 3)).astype(kind)
    options: dict[str, object] = {"rowsperstrip": 16} if layout == "strips" else {}
    if layout == "tiles":
        options["tile"] = (32, 16)
    if layout == "planes":
        options.update(planarconfig="separate", rowsperstrip=16)
    stored = samples.transpose(2, 0, 1) if layout == "planes" else samples
    file = io.BytesIO()
    tifffile.imwrite(file, stored, photometric="rgb", byteorder=order, compression=compression, **options)
    expected = scaled(samples) if kind == "uint16" else samples.astype(np.int64)
    # compressed planes of 16 bits: Pillow's reader gives the high byte alone, within one level
    tolerance = 1 if layout == "planes" and compression and kind == "uint16" else 0
    assert_pixels(file.getvalue(), expected, tolerance)


@pytest.mark.parametrize("extension", [".tif", ".png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_written_by_opencv(extension: str, channels: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the writer of this test")
    samples = np.dstack([RGB16, ALPHA16])[..., : max(channels, 1)].astype(np.uint16)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]  # OpenCV takes BGR
    expected = np.broadcast_to(scaled(samples[..., :3]), (HEIGHT, WIDTH, 3))
    if channels == 4:
        expected = over_white(expected, scaled(samples[..., 3]))
    _, data = cv2.imencode(extension, samples[..., order])
    assert_pixels(data.tobytes(), expected)


# ------------------------------------------------------------------------------------------- the simple formats


def test_ppm_of_any_maximum() -> None:
    for maximum in (255, 1000, 65535):
        values = GREY16 % (maximum + 1)
        binary = values.astype(np.uint8 if maximum < 256 else ">u2").tobytes()
        head = f"{WIDTH} {HEIGHT}\n{maximum}\n".encode()
        assert_pixels(b"P5\n# a comment\n" + head + binary, grey(scaled(values, maximum)), 0 if maximum != 1000 else 1)
        assert_pixels(b"P2\n" + head + " ".join(map(str, values.ravel())).encode(), grey(scaled(values, maximum)), 1)
    colour = RGB16.astype(">u2").tobytes()
    assert_pixels(f"P6 {WIDTH} {HEIGHT} 65535\n".encode() + colour, scaled(RGB16))
    bits = GREY8 & 1
    assert_pixels(f"P1 {WIDTH} {HEIGHT}\n".encode() + "".join(map(str, bits.ravel())).encode(), grey(255 * (1 - bits)))


def test_portable_float_map_uses_its_own_range() -> None:
    values = np.linspace(-1, 4, HEIGHT * WIDTH, dtype="<f4").reshape(HEIGHT, WIDTH)
    data = f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + values[::-1].tobytes()
    assert_pixels(data, grey(np.rint((values.astype(np.float64) + 1) * 51).astype(np.int64)), 1)


def test_qoi() -> None:
    body = b"".join(b"\xfe" + bytes(pixel) for pixel in RGB8.reshape(-1, 3).tolist())
    assert_pixels(b"qoif" + struct.pack(">IIBB", WIDTH, HEIGHT, 3, 0) + body + bytes(7) + b"\1", RGB8)


def test_icon_with_a_png_inside() -> None:
    inner = png(np.dstack([RGB8, ALPHA8]), 8, 6)
    data = struct.pack("<HHHBBBBHHII", 0, 1, 1, WIDTH, HEIGHT, 0, 0, 1, 32, len(inner), 22) + inner
    assert_pixels(data, over_white(RGB8, ALPHA8))


def test_targa_without_a_signature() -> None:
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, WIDTH, HEIGHT, 24, 0x20)
    assert_pixels(header + RGB8[..., ::-1].astype(np.uint8).tobytes(), RGB8)


# ------------------------------------------------------------------------------------------------------ colour

ADOBE_RGB = [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
SRGB = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]


def srgb_level(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.int64)


def matrix_profile(primaries: list[list[float]], exponent: float) -> bytes:
    from tests.foundry.images.encoders import gamma, xyz

    columns = list(zip(*primaries, strict=True))
    tags = {name + b"XYZ": xyz(*column) for name, column in zip((b"r", b"g", b"b"), columns, strict=True)}
    tags.update({name + b"TRC": gamma(exponent) for name in (b"r", b"g", b"b")})
    return icc(b"RGB ", tags)


def adobe_to_srgb(levels: np.ndarray) -> np.ndarray:
    linear = (levels / 255) ** (563 / 256)
    return srgb_level(linear @ np.array(ADOBE_RGB).T @ np.linalg.inv(SRGB).T)


@pytest.mark.parametrize("container", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG"])
def test_a_wide_profile_is_converted(container: str) -> None:
    # inside sRGB's range, where a level of the codec stays about a level
    levels = np.repeat(np.repeat(RANDOM.integers(90, 190, (3, 4, 3)), 16, axis=0), 16, axis=1)
    options: dict[str, object] = {"icc_profile": matrix_profile(ADOBE_RGB, 563 / 256)}
    lossy = {"quality": 100, "subsampling": "4:4:4"}
    options.update({"WEBP": {"lossless": True}, "AVIF": lossy, "JPEG": lossy}.get(container, {}))
    expected = adobe_to_srgb(levels)
    assert np.abs(expected - levels).max() > 15, "the profile would not show"
    assert_pixels(saved(levels.astype(np.uint8), container, **options), expected, 5 if "quality" in options else 2)


def test_a_profile_applies_before_transparency_and_to_palettes_and_16_bits() -> None:
    profile = matrix_profile(ADOBE_RGB, 563 / 256)
    import zlib

    before = [chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))]
    samples = np.dstack([RGB8, ALPHA8])
    assert_pixels(png(samples, 8, 6, before), over_white(adobe_to_srgb(RGB8), ALPHA8), 2)
    palette = chunk(b"PLTE", PALETTE.astype(np.uint8).tobytes())
    assert_pixels(png(GREY8, 8, 3, [*before, palette]), adobe_to_srgb(PALETTE)[GREY8], 2)
    assert_pixels(png(RGB16, 16, 2, before), adobe_to_srgb(scaled(RGB16)), 2)


def test_a_grey_profile_is_converted() -> None:
    from tests.foundry.images.encoders import gamma

    profile = icc(b"GRAY", {b"kTRC": gamma(1.0)})
    expected = grey(srgb_level(GREY8 / 255))
    assert_pixels(saved(GREY8.astype(np.uint8), "PNG", icc_profile=profile), expected, 2)


def test_an_ink_profile_is_converted() -> None:
    # A profile whose L* depends on black alone: nothing like the plain formula.
    corners = [[255 - 255 * black, 128, 128] for _ in range(8) for black in (0, 1)]
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut += identity * 4 + bytes(v for corner in corners for v in corner) + identity * 3
    profile = icc(b"CMYK", {b"A2B0": lut}, b"prtr", b"Lab ")
    lightness = 100 * (1 - INKS[..., 3] / 255)
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    image = Image.fromarray(INKS.astype(np.uint8), "CMYK")
    data = saved(image, "TIFF", icc_profile=profile)
    assert_pixels(data, grey(srgb_level(luminance)), 3)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile at all",
        matrix_profile(ADOBE_RGB, 2.2)[:200],
        icc(b"GRAY", {}),
        icc(b"CMYK", {}, b"prtr", b"Lab "),
        matrix_profile(ADOBE_RGB, 2.2).replace(b"mntr", b"link"),
        b"",
    ],
    ids=["text", "cut", "grey", "inks", "device link", "empty"],
)
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    assert_pixels(saved(RGB8.astype(np.uint8), "PNG", icc_profile=profile), RGB8)


def test_an_srgb_profile_changes_nothing() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_pixels(saved(RGB8.astype(np.uint8), "PNG", icc_profile=profile), RGB8)


def test_agrees_with_imagecms_itself() -> None:
    import io

    from PIL import ImageCms

    profile = matrix_profile(ADOBE_RGB, 1.8)
    image = Image.fromarray(RGB8.astype(np.uint8))
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    assert_pixels(saved(image, "PNG", icc_profile=profile), np.asarray(converted).astype(np.int64))
