"""Which format some bytes are in, decided by their content alone; and which formats are decoded."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A decoded format: the Pillow class that reads it and the file extension that shards use."""

    name: str
    plugin: str
    reader: str
    extension: str


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("jpeg", "JpegImagePlugin", "JpegImageFile", "jpg"),
        Format("png", "PngImagePlugin", "PngImageFile", "png"),
        Format("webp", "WebPImagePlugin", "WebPImageFile", "webp"),
        Format("gif", "GifImagePlugin", "GifImageFile", "gif"),
        Format("bmp", "BmpImagePlugin", "BmpImageFile", "bmp"),
        Format("tiff", "TiffImagePlugin", "TiffImageFile", "tif"),
        Format("jp2", "Jpeg2KImagePlugin", "Jpeg2KImageFile", "jp2"),
        Format("avif", "AvifImagePlugin", "AvifImageFile", "avif"),
        Format("ppm", "PpmImagePlugin", "PpmImageFile", "ppm"),
        Format("tga", "TgaImagePlugin", "TgaImageFile", "tga"),
        Format("psd", "PsdImagePlugin", "PsdImageFile", "psd"),
        Format("dds", "DdsImagePlugin", "DdsImageFile", "dds"),
        Format("ico", "IcoImagePlugin", "IcoImageFile", "ico"),
        Format("pcx", "PcxImagePlugin", "PcxImageFile", "pcx"),
        Format("qoi", "QoiImagePlugin", "QoiImageFile", "qoi"),
    )
}
"""The allow-list. Whatever is not here is never handed to Pillow."""

REFUSED_FORMATS: dict[str, str] = {
    "heic": "HEIC/HEIF photograph; convert it to JPEG, PNG or AVIF",
    "jxl": "JPEG XL; convert it to JPEG or PNG",
    "svg": "SVG drawing; render it to PNG",
    "pdf": "PDF document; render its pages to PNG",
    "eps": "PostScript, which needs an external program",
    "wmf": "Windows metafile, which needs an external program",
    "emf": "Windows metafile, which needs an external program",
    "psb": "large Photoshop document",
    "cur": "Windows cursor",
    "icns": "Apple icon",
    "exr": "OpenEXR; convert it to TIFF or PNG",
    "hdr": "Radiance HDR; convert it to TIFF or PNG",
    "fits": "FITS; convert it to TIFF",
    "sgi": "SGI image; convert it to PNG",
    "xcf": "GIMP document; export it to PNG",
    "xpm": "X pixmap; convert it to PNG",
    "xbm": "X bitmap; convert it to PNG",
    "djvu": "DjVu document",
    "hdf5": "HDF5 data",
    "dicom": "DICOM; convert it to PNG or TIFF",
}
"""Images and documents that are recognised, so that the refusal can say what they are (reason ``unsupported``)."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"8BPS\0\1", "psd"),
    (b"8BPS\0\2", "psb"),
    (b"DDS ", "dds"),
    (b"qoif", "qoi"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (b"%PDF-", "pdf"),
    (b"%!PS", "eps"),
    (b"\xc5\xd0\xd3\xc6", "eps"),
    (b"\xd7\xcd\xc6\x9a", "wmf"),
    (b"icns", "icns"),
    (b"\x76\x2f\x31\x01", "exr"),
    (b"#?RADIANCE", "hdr"),
    (b"#?RGBE", "hdr"),
    (b"SIMPLE  =", "fits"),
    (b"\x01\xda\0\1", "sgi"),
    (b"\x01\xda\1\1", "sgi"),
    (b"gimp xcf", "xcf"),
    (b"/* XPM */", "xpm"),
    (b"AT&TFORM", "djvu"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
)

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_DIB_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
_PPM = re.compile(rb"P(?:[1-6f]|0CMYK)[ \t\r\n\v\f]")
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_MARKUP = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body|\?xml|svg|!--)", re.IGNORECASE)
_XBM = re.compile(rb"\s*#define[ \t]+\w*_width\b|\s*#define[ \t]+width\b")

_OTHER_CONTENT: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"\xfd7zXZ", "xz data"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"ID3", "an audio file"),
    (b"OggS", "an audio file"),
    (b"fLaC", "an audio file"),
    (b"\x1aE\xdf\xa3", "a video file"),
    (b"RIFF", "an audio or video file"),
    (b"SQLite format 3", "a database"),
    (b"version https://git-lfs.github.com/spec", "a Git LFS pointer: the picture itself was not downloaded"),
)

_TEXT_BYTES = bytes(range(0x20, 0x7F)) + b"\t\n\r\f\v\x1b"


def sniff(data: bytes) -> str | None:
    """Format name of encoded bytes (a key of :data:`FORMATS` or :data:`REFUSED_FORMATS`), or None for anything else.

    Reads the content, never a file name. A name in :data:`FORMATS` promises that the header looks like that format,
    not that the rest decodes. The whole file or its first 4 KiB give the same answer.
    """
    head = bytes(data[:4096])
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _sniff_iso_media(head)
    if head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and head[4:6] not in (b"", b"\0\0"):  # zero pictures: a Targa
        return "ico" if head[2] == 1 else "cur"
    if head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _DIB_HEADERS:
        return "bmp"
    if head[:4] == b"\1\0\0\0" and head[40:44] == b" EMF":
        return "emf"
    if head[128:132] == b"DICM":
        return "dicom"
    if _PPM.match(head):
        return "ppm"
    if _XBM.match(head):
        return "xbm"
    if _is_text(head):
        return "svg" if _MARKUP.match(head) and _SVG.search(head) else None
    if _is_pcx(head):
        return "pcx"
    return "tga" if _is_tga(head) else None


def describe_content(data: bytes) -> str:
    """What bytes that :func:`sniff` does not know are, in words for a person ('HTML or XML', 'a zip archive')."""
    head = bytes(data[:4096])
    for magic, name in _OTHER_CONTENT:
        if head.startswith(magic):
            return name
    if head[4:8] == b"ftyp":
        return "a video file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if _is_text(head):
        return "HTML or XML" if _MARKUP.match(head) else "text"
    if not any(head):
        return "only zero bytes"
    return "unknown content"


def _sniff_iso_media(head: bytes) -> str | None:
    size = min(struct.unpack_from(">I", head)[0], len(head))
    brands = {head[8:12]} | {head[start : start + 4] for start in range(16, size - 3, 4)}
    if brands & _AVIF_BRANDS:
        return "avif"
    return "heic" if brands & _HEIC_BRANDS else None


def _is_text(head: bytes) -> bool:
    """Whether the bytes are ASCII or UTF-8/UTF-16 text (at most a cut character at the end)."""
    if not head:
        return False
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    if not head.translate(None, _TEXT_BYTES):
        return True
    if b"\0" in head:
        return False
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return not any(ord(character) < 32 and character not in "\t\n\r\f\v\x1b" for character in text)


def _is_pcx(head: bytes) -> bool:
    return len(head) >= 128 and head[0] == 10 and head[1] in (0, 2, 3, 5) and head[2] == 1 and head[3] in (1, 2, 4, 8)


def _is_tga(head: bytes) -> bool:
    """Targa has no signature: every header field has to make sense."""
    if len(head) < 18:
        return False
    map_type, image_type, map_depth, depth = head[1], head[2], head[7], head[16]
    width, height = struct.unpack_from("<HH", head, 12)
    mapped = image_type in (1, 9)
    return (
        image_type in (1, 2, 3, 9, 10, 11)
        and (map_type == 1 if mapped else map_type in (0, 1))
        and (map_type == 0 or map_depth in (15, 16, 24, 32))
        and depth in ((8,) if mapped else (1, 8, 16) if image_type in (3, 11) else (16, 24, 32))
        and width > 0
        and height > 0
        and head[17] & 0xC0 == 0
    )
