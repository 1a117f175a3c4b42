"""What a finished training run is boiled down to: its last checkpoint and its last figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from components.common.follow import RowReader


def discard_old_checkpoints(run: Path) -> None:
    """Leave the checkpoint that ``checkpoints/latest`` names (the next stage starts from it) and no other."""
    latest = run / "checkpoints" / "latest"
    if not latest.is_file():
        return
    name = latest.read_text(encoding="utf-8").strip()
    for folder in (run / "checkpoints").iterdir():
        if folder.is_dir() and folder.name != name:
            shutil.rmtree(folder)


def last_figures(run: Path) -> dict[str, Any]:
    """The last value of every number in ``metrics.jsonl``, under its own name."""
    figures: dict[str, Any] = {}
    for row in RowReader(run / "metrics.jsonl").new_rows():
        figures.update({name: value for name, value in row.items() if isinstance(value, (int, float))})
    return {name: value for name, value in figures.items() if name not in ("step", "time")}
