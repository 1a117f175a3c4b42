"""The ``model.py`` of a version folder: hands over to the code that was published with the version."""

import locale
import sys
from pathlib import Path

# Triton's stub starts an interpreter whose default encoding is ASCII, whatever LANG says.
locale.setlocale(locale.LC_ALL, "C.UTF-8")
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))

from serving.triton_backend.model import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
