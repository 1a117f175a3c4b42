"""Where the project keeps its own files on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from foundry.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout this code runs from."""


def home() -> Path:
    """The folder of everything the project writes by default: ``FOUNDRY_HOME``, else ``.foundry`` in the checkout."""
    return Path(os.environ.get("FOUNDRY_HOME") or REPOSITORY / ".foundry").expanduser().absolute()


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise :class:`UserError` unless the disk under ``folder`` has ``needed_bytes`` free."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UserError(
            f"{folder}: {purpose} needs {needed_bytes / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; "
            "free some space or set FOUNDRY_HOME to another disk"
        )
