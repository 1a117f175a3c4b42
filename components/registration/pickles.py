"""Nothing that is published may need unpickling: a check of a folder's files by content and by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

from foundry.storage import files_under

SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".cloudpickle", ".pyc"})
"""Names under which pickles (and compiled Python) travel."""


def find_pickles(folder: Path) -> list[str]:
    """Relative names of files below ``folder`` that hold, or by their name promise, pickled data.

    Recognised: a pickle of protocol 2 or above by its first bytes, a zip with a pickle inside (torch.save), a NumPy
    file of objects, and the usual suffixes.
    """
    return [path.relative_to(folder).as_posix() for path in files_under(folder) if _is_pickle(path)]


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(512)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        # A safetensors file starts with the length of its header, which may look the same; its header is JSON.
        return not (path.suffix == ".safetensors" and head[8:9] == b"{")
    if head[:6] == b"\x93NUMPY":
        return b"'descr': '|O'" in head
    if head[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).suffix in SUFFIXES for name in archive.namelist())
    return False
