"""What names a network in a folder of the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

from foundry.settings import digest_of
from foundry.storage import sha256_of_file

FILES = ("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json")
"""Patterns of the files that make a network; heads and other files do not count."""


def network_digest(folder: Path) -> str:
    """sha256 over the description, preprocessing and weights in ``folder``."""
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    return digest_of([[path.name, sha256_of_file(path)] for path in paths])
