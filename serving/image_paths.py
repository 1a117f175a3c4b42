"""Which images a command means: files, folders, patterns and lists of paths, in the same order every time."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foundry.errors import UserError
from foundry.images.formats import FORMATS

STANDARD_INPUT = "-"
ENDINGS = frozenset(
    {format.extension for format in FORMATS.values()}
    | {"jpeg", "jpe", "jfif", "tiff", "j2k", "pgm", "pbm", "pnm"}
    | {"heic", "heif", "jxl"}  # refused by the server with a reason, which is better than silence
)
"""Endings of the files that are taken from a folder, in lower case."""


@dataclass(frozen=True)
class ImagePaths:
    """The images of a run, in order."""

    paths: list[str]
    """As a person would write them; the same one may come twice. '-' stands for ``standard_input``."""
    left_out: int = 0
    """Files of folders whose ending is no image's."""
    standard_input: bytes = field(default=b"", repr=False)

    def digest(self) -> str:
        """sha256 over the paths in their order (and over what came from the standard input)."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.fsencode(path) + b"\0")
        digest.update(self.standard_input)
        return digest.hexdigest()

    def read(self, path: str) -> bytes:
        """The content of one of ``paths``. Raises OSError where it cannot be read."""
        return self.standard_input if path == STANDARD_INPUT else Path(path).read_bytes()


def find_images(arguments: Sequence[str], list_file: str | None = None) -> ImagePaths:
    """The images that ``arguments`` name, then those of ``list_file``.

    An argument is a file, '-' (the standard input), a folder (every file below it with an image's ending, sorted by
    path; hidden ones are passed over) or a pattern ('photos/**/*.jpg', sorted). A list has one path a line, relative
    to the working directory; its files are looked at when their turn comes. Raises :class:`UserError` for an argument
    that names nothing.
    """
    paths: list[str] = []
    left_out = 0
    for argument in arguments:
        path = Path(argument)
        if argument == STANDARD_INPUT:
            paths.append(argument)
        elif path.is_dir():
            found, others = _below(path)
            if not found:
                raise UserError(f"{argument}: no file below this folder has an image's ending (.jpg, .png, ...)")
            paths += found
            left_out += others
        elif path.exists():
            paths.append(argument)
        elif glob.has_magic(argument):
            matches = sorted(match for match in glob.glob(argument, recursive=True) if os.path.isfile(match))
            if not matches:
                raise UserError(f"{argument}: no file matches this pattern")
            paths += matches
        else:
            raise UserError(f"{argument}: cannot be read (no such file or folder)")
    if list_file is not None:
        paths += _listed(list_file)
    if not paths:
        raise UserError("no images: name files, folders or patterns, or a list of paths by --from LIST")
    reads_images = STANDARD_INPUT in paths
    if reads_images and list_file == STANDARD_INPUT:
        raise UserError("the standard input cannot be both an image and the list of --from")
    return ImagePaths(paths, left_out, sys.stdin.buffer.read() if reads_images else b"")


def _below(folder: Path) -> tuple[list[str], int]:
    found: list[str] = []
    others = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if name.rpartition(".")[2].lower() in ENDINGS and "." in name:
                found.append(os.path.join(parent, name))
            else:
                others += 1
    return sorted(found, key=lambda path: Path(path).as_posix()), others


def _listed(list_file: str) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if list_file == STANDARD_INPUT else Path(list_file).read_bytes()
    except OSError as error:
        raise UserError(f"{list_file}: cannot be read ({(error.strerror or 'error').lower()})") from None
    paths = [os.fsdecode(line.rstrip(b"\r")) for line in data.split(b"\n") if line.strip()]
    if STANDARD_INPUT in paths:
        raise UserError(f"{list_file}: '-' is no path of a file; a list names files")
    if not paths:
        raise UserError(f"{list_file}: the list is empty; write one path a line")
    return paths
