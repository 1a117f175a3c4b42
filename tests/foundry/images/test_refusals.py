"""Whatever the bytes are, only ImageError comes out, with the reason that docs/pixels.md promises."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from foundry.errors import UserError
from foundry.images import FORMATS, REASONS, DecodeLimits, ImageError, decode_image, inspect_image, sniff, structure
from tests.foundry.images.encoders import chunk, gif, icc, png, saved, tiff

REPOSITORY = Path(__file__).resolve().parents[3]
PICTURE = np.random.default_rng(3).integers(0, 256, (40, 50, 3)).astype(np.uint8)


def samples() -> dict[str, bytes]:
    """A small file of each decoded format, incompressible enough that a cut shows."""
    result = {
        "jpeg": saved(PICTURE, "JPEG", quality=95),
        "progressive jpeg": saved(PICTURE, "JPEG", progressive=True),
        "cmyk jpeg": saved(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"),
        "png": saved(PICTURE, "PNG"),
        "png 16": png(PICTURE.astype(np.int64) * 257, 16, 2),
        "png palette": saved(Image.fromarray(PICTURE).quantize(), "PNG"),
        "webp": saved(PICTURE, "WEBP", lossless=True),
        "lossy webp": saved(PICTURE, "WEBP"),
        "gif": gif(PICTURE[..., 0].astype(np.int64), np.arange(768).reshape(256, 3) % 256),
        "bmp": saved(PICTURE, "BMP"),
        "tiff": saved(PICTURE, "TIFF"),
        "tiff lzw": saved(PICTURE, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": saved(PICTURE, "TIFF", compression="jpeg"),
        "tiff 16": tiff(
            {256: 50, 257: 40, 258: (16, 16, 16), 262: 2, 277: 3, 278: 40}, (PICTURE.astype("<u2") * 257).tobytes()
        ),
        "jp2": saved(PICTURE, "JPEG2000"),
        "avif": saved(PICTURE, "AVIF"),
        "ppm": saved(PICTURE, "PPM"),
        "tga": saved(PICTURE, "TGA"),
        "tga rle": saved(PICTURE, "TGA", rle=True),
        "dds": saved(PICTURE, "DDS"),
        "pcx": saved(PICTURE, "PCX"),
        "ico": saved(Image.fromarray(PICTURE), "ICO", sizes=[(32, 32)]),
        "qoi": b"qoif" + struct.pack(">IIBB", 50, 40, 3, 0)
        + b"".join(b"\xfe" + bytes(pixel) for pixel in PICTURE.reshape(-1, 3)),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 40, 50, 8, 3) + bytes(12) + b"\0\0"
        + PICTURE.transpose(2, 0, 1).tobytes(),
    }  # fmt: skip
    return result


SAMPLES = samples()


def reason_of(data: bytes, limits: DecodeLimits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, limits or DecodeLimits())
    assert caught.value.reason in REASONS
    assert "\n" not in str(caught.value)
    return caught.value.reason


def only_image_errors(data: bytes) -> str:
    """What decoding ends in; anything but pixels or an ImageError fails the test."""
    try:
        inspect_image(data)
    except ImageError as error:
        assert error.reason in REASONS
    try:
        pixels = decode_image(data)
    except ImageError as error:
        assert error.reason in REASONS
        return error.reason
    assert pixels.dtype == np.uint8 and pixels.ndim == 3
    return "decoded"


def test_the_samples_are_whole() -> None:
    assert {sniff(data) for data in SAMPLES.values()} == set(FORMATS)
    for name, data in SAMPLES.items():
        assert decode_image(data).shape == ((26, 32, 3) if name == "ico" else PICTURE.shape), name


def test_an_empty_file() -> None:
    assert reason_of(b"") == "empty"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html>\n<html><head>", "HTML"),
        (b"  <html lang=en>", "HTML"),
        (b"<?xml version='1.0'?><error/>", "HTML or XML"),
        (b"404 not found\n", "text"),
        ("Datei nicht gefunden: über\n".encode(), "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
        (b"PK\x03\x04" + bytes(50), "zip"),
        (bytes(500), "zero bytes"),
        (bytes(range(256)) * 4, "unknown"),
        (b"\0\0\0\x18ftypisom" + bytes(50), "video"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio"),
    ],
)
def test_content_that_is_no_image(data: bytes, words: str) -> None:
    assert reason_of(data) == "not-an-image"
    with pytest.raises(ImageError, match=words):
        inspect_image(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "metafile"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<svg width='1'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\2\0\1\0" + bytes(30), "cursor"),
        (b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};", "bitmap"),
    ],
)
def test_images_that_are_never_handed_to_a_decoder(data: bytes, words: str) -> None:
    assert sniff(data) not in FORMATS
    assert reason_of(data) == "unsupported"
    with pytest.raises(ImageError, match=words):
        decode_image(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_cut_file_is_truncated(name: str) -> None:
    data = SAMPLES[name]
    for part in (0.4, 0.7, 0.95):
        assert reason_of(data[: int(len(data) * part)]) == "truncated", part


@pytest.mark.parametrize("name", SAMPLES)
def test_every_cut_of_the_header_is_an_image_error(name: str) -> None:
    data = SAMPLES[name]
    for length in {*range(0, 80, 3), *range(80, min(len(data), 1200), 97)}:
        assert only_image_errors(data[:length]) != "decoded" or length >= len(data) - 4


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files_raise_nothing_else(name: str) -> None:
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    data = np.frombuffer(SAMPLES[name], np.uint8)
    for turn in range(60):
        damaged = data.copy()
        reach = len(data) if turn % 2 else min(len(data), 200)
        places = generator.integers(0, reach, generator.integers(1, 9))
        damaged[places] = generator.choice([0, 1, 0x7F, 0x80, 0xFF, int(generator.integers(256))], len(places))
        only_image_errors(damaged.tobytes())


@pytest.mark.parametrize("name", SAMPLES)
def test_the_walks_over_the_container_take_any_bytes(name: str) -> None:
    """Thousands of damaged headers for each: no decoder runs here."""
    generator = np.random.default_rng(zlib.crc32(name.encode()) + 1)
    data = np.frombuffer(SAMPLES[name], np.uint8)
    # the directory of a TIFF stands at its end as often as at its start
    edges = np.concatenate([np.arange(min(len(data), 250)), np.arange(max(0, len(data) - 250), len(data))])
    format = str(sniff(SAMPLES[name]))
    for _ in range(1500):
        damaged = data.copy()
        places = generator.choice(edges, generator.integers(1, 5))
        damaged[places] = generator.choice([0, 1, 2, 3, 4, 8, 0x7F, 0xFF, int(generator.integers(256))], len(places))
        content = damaged[: generator.integers(len(data))].tobytes() if generator.random() < 0.3 else damaged.tobytes()
        if sniff(content) != format:
            continue
        try:
            structure.check_cost(format, content, DecodeLimits())
        except ImageError as error:
            assert error.reason in ("too-costly", "too-many-pixels")
        assert structure.is_cut_short(format, content) in (True, False)
        assert structure.count_frames(format, content, 50) >= 1
        assert structure.exif_of_png(content) is None
        assert structure.bits_of_jp2(content) >= 0


def test_two_short_strip_offsets_stand_inside_the_directory() -> None:
    data = tiff({256: 5, 257: 4, 258: (8,), 262: 1, 278: 2}, bytes(20))
    entry = data.index(struct.pack("<HHI", 273, 4, 1))
    strip = int.from_bytes(data[entry + 8 : entry + 12], "little")
    for second, cut in ((strip + 10, False), (60_000, True)):
        packed = struct.pack("<HHIHH", 273, 3, 2, strip, second)
        sizes = data.index(struct.pack("<HHI", 279, 4, 1))
        damaged = bytearray(data)
        damaged[entry : entry + 12] = packed
        damaged[sizes : sizes + 12] = struct.pack("<HHIHH", 279, 3, 2, 10, 10)
        assert structure.is_cut_short("tiff", bytes(damaged)) is cut
        assert only_image_errors(bytes(damaged)) == ("truncated" if cut else "decoded")


def test_random_bytes_behind_every_signature() -> None:
    generator = np.random.default_rng(11)
    heads = {data[:size] for data in SAMPLES.values() for size in (4, 12, 30)}
    heads |= {b"", b"BM", b"P6\n", b"P3\n9 9\n255\n"}
    for head in sorted(heads):
        for length in (0, 5, 60, 900):
            only_image_errors(head + generator.bytes(length))


def test_png_chunks_that_contradict_the_header() -> None:
    small = np.zeros((2, 2), np.int64)
    for before in (
        [chunk(b"tRNS", b"")],
        [chunk(b"tRNS", bytes(300))],
        [chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2 * 10**6)))],
        [chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2 * 10**6)))],
        [chunk(b"acTL", bytes(8))],
        [chunk(b"fcTL", bytes(26))],
        [chunk(b"gAMA", b""), chunk(b"cHRM", b"1")],
    ):
        for colour_type in (0, 2, 3, 4, 6, 5):
            only_image_errors(png(np.repeat(small[..., None], 3, axis=2), 8, colour_type, before))


def test_damaged_profiles_raise_nothing() -> None:
    from tests.foundry.images.encoders import gamma, xyz

    generator = np.random.default_rng(5)
    tags = {name + b"XYZ": xyz(0.4, 0.3, 0.2) for name in (b"r", b"g", b"b")}
    tags |= {name + b"TRC": gamma(2.0) for name in (b"r", b"g", b"b")}
    profile = np.frombuffer(icc(b"RGB ", tags), np.uint8)
    for _ in range(150):
        damaged = profile.copy()
        damaged[generator.integers(128, len(profile), 6)] = generator.integers(0, 256, 6)
        assert decode_image(saved(PICTURE[:2, :2], "PNG", icc_profile=damaged.tobytes())).shape == (2, 2, 3)


# ------------------------------------------------------------------------------------------------------ limits


def test_sizes_are_refused_before_any_pixel_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    assert reason_of(bomb) == "too-many-pixels"
    with pytest.raises(ImageError, match="60000 x 60000"):
        inspect_image(bomb)
    canvas = gif(np.zeros((2, 2), np.int64), np.zeros((1, 3)), canvas=(60_000, 60_000))
    assert reason_of(canvas) == "too-many-pixels"
    animation = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\x0f\xff\x0f\0"
    assert only_image_errors(animation) != "decoded"


def test_limits_are_exact() -> None:
    data = saved(PICTURE, "PNG")
    assert decode_image(data, DecodeLimits(max_pixels=2000, max_bytes=len(data))).shape == PICTURE.shape
    assert reason_of(data, DecodeLimits(max_pixels=1999)) == "too-many-pixels"
    assert reason_of(data, DecodeLimits(max_bytes=len(data) - 1)) == "too-many-bytes"
    assert reason_of(SAMPLES["qoi"], DecodeLimits(max_python_pixels=1999)) == "too-costly"


def test_wrong_limits_are_refused() -> None:
    for values in ({"max_pixels": 0}, {"max_bytes": -1}, {"max_pixels": 2**30}, {"max_frames": 1.5}):
        with pytest.raises(UserError, match="image limit"):
            DecodeLimits(**values)


def many_scans() -> bytes:
    jpeg = bytearray(SAMPLES["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 8000, 8000)
    scan = bytes(jpeg[jpeg.index(b"\xff\xda") :])[:14]
    return bytes(jpeg[: jpeg.index(b"\xff\xda")]) + scan * 10**5


def many_strips() -> bytes:
    data = tiff({256: 1, 257: 10**6, 258: (8,), 262: 1, 278: 1}, bytes(100))
    return data.replace(struct.pack("<HHI", 279, 4, 1), struct.pack("<HHI", 279, 4, 10**6))


PNG_HEAD = SAMPLES["png"][:33]
HOSTILE: dict[str, Callable[[], bytes]] = {
    "jpeg scans": many_scans,
    "jpeg segments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 10**6,
    "jpeg junk": lambda: b"\xff\xd8\xff\xfe\0\2" + b"a" * 10**7,
    "jpeg empty markers": lambda: b"\xff\xd8\xff" + b"\0\xff" * 10**6,
    "png chunks": lambda: PNG_HEAD + chunk(b"tEXt", b"") * 10**6,
    "gif blocks": lambda: b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"!\xfe" + b"\1a" * 10**6,
    "tiff strips": many_strips,
    "tiff entries": lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 10**6) + bytes(20) * 10**6,
    "ppm comments": lambda: b"P3\n9 9\n255\n" + b"#\n" * 10**6,
    "ppm header comment": lambda: b"P6\n#" + b"a" * 10**7,
    "psd resources": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHHII", 3, 1, 1, 8, 3, 0, 12 * 10**6)
    + b"8BIM\0\0\0\0\0\0\0\0" * 10**6,
    "icon of one PNG many times": lambda: b"\0\0\1\0\xff\xff"
    + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 99, 6 + 16 * 65535) * 65535 + PNG_HEAD + chunk(b"tEXt", b"") * 1000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_files_made_to_cost_time_are_refused_at_once(name: str) -> None:
    data = HOSTILE[name]()
    start = time.process_time()
    assert reason_of(data) == "too-costly"
    # Pillow takes between seconds and many minutes for these; the walk in front takes milliseconds
    assert time.process_time() - start < 2


# --------------------------------------------------------------------------------------------- a good neighbour


def test_pillow_is_left_as_it_was() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    for data in SAMPLES.values():
        only_image_errors(data)
        only_image_errors(data[: len(data) // 2])
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def test_warnings_of_the_decoder_stay_inside(recwarn: pytest.WarningsRecorder) -> None:
    import io

    # a tag whose data lies far outside the file
    data = tiff({256: 5, 257: 4, 258: (8,), 262: 1, 278: 4, 700: (1, 2, 3, 4)}, bytes(20))
    data = data.replace(struct.pack("<HHI", 700, 3, 4), struct.pack("<HHI", 700, 3, 10**6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            Image.open(io.BytesIO(data)).load()
        assert decode_image(data).shape == (4, 5, 3)
    assert not [warning for warning in recwarn if "PIL" in str(warning.filename)]


def test_threads_get_the_same_pixels() -> None:
    profile = saved(PICTURE, "PNG", icc_profile=icc(b"GRAY", {}))
    files = [*SAMPLES.values(), profile, *(data[: len(data) // 2] for data in SAMPLES.values())]

    def digest(data: bytes) -> bytes | str:
        try:
            return decode_image(data).tobytes()
        except ImageError as error:
            return error.reason

    expected = [digest(data) for data in files]
    found: list[list[bytes | str]] = []
    filters = list(warnings.filters)

    def work(shift: int) -> None:
        order = [(i + shift) % len(files) for i in range(len(files))]
        results = {i: digest(files[i]) for i in order}
        found.append([results[i] for i in range(len(files))])

    threads = [threading.Thread(target=work, args=(7 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 6
    assert list(warnings.filters) == filters


def test_the_error_travels_between_processes() -> None:
    error = ImageError("truncated", "png: something\nover two lines")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.detail, str(copy)) == (error.reason, error.detail, str(error))
    assert isinstance(copy, UserError) and "\n" not in str(copy)


def test_bytes_like_input() -> None:
    data = SAMPLES["png"]
    for kind in (bytearray, memoryview):
        assert (decode_image(kind(data)) == PICTURE).all()


def test_runs_in_an_isolated_interpreter_with_ascii_as_its_encoding(tmp_path: Path) -> None:
    """Triton's Python backend: isolated mode, PYTHON* variables ignored, ASCII everywhere."""
    (tmp_path / "bild.png").write_bytes(SAMPLES["png 16"])
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "assert sys.flags.isolated and sys.getfilesystemencoding() == 'ascii'\n"
        "from foundry.images import Preprocessing, decode_image\n"
        f"pixels = decode_image(open({str(tmp_path / 'bild.png')!r}, 'rb').read())\n"
        "print(Preprocessing(32, 32)(pixels).shape)\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules\n"
    )
    command = [sys.executable, "-I", "-X", "utf8=0", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 32, 32)"


def test_importing_does_not_load_the_decoders() -> None:
    program = "import foundry.images, sys; print([name for name in sys.modules if name.split('.')[0] == 'PIL'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
