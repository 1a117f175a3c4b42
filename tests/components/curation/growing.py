"""Pools that grow, and the datasets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.step import run
from tests.components.curation.pictures import crops, encode

SETTINGS: dict[str, Any] = {
    "decode": {"workers": 1},
    "duplicates": {"neighbours": 400},  # all: every pair is a candidate
    "balance": {"fraction": 0.7},
}


def curate(pool: Path, output: Path, inputs: dict[str, Path] | None = None, **values: Any) -> CuratedDataset:
    output.mkdir(parents=True, exist_ok=True)
    config = CurationConfig.model_validate({**SETTINGS, **values})
    given = {name: str(path) for name, path in (inputs or {}).items()}
    metrics = run(config, {"pool": str(pool), **given}, output)
    found = CuratedDataset.open(output)
    found.check_images()
    assert metrics["digest"] == found.description["digests"]["content"]
    return found


def grow(pool: Path) -> None:
    """New pictures; copies of known ones, of a new one, and of a copy; files that are none; some files go."""
    (pool / "new").mkdir()
    pieces = crops(90, 48)
    for number, piece in enumerate(pieces[60:]):
        (pool / "new" / f"{number:02d}.png").write_bytes(encode(piece))
    for name, piece in {"large": pieces[3].repeat(2, 0).repeat(2, 1), "grey": pieces[4], "again": pieces[70]}.items():
        (pool / "new" / f"{name}.jpg").write_bytes(encode(piece, "JPEG", quality=80))
    (pool / "new" / "bytes.png").write_bytes((pool / "0" / "003.png").read_bytes())
    (pool / "new" / "page.html").write_bytes(b"<!doctype html><html></html>")
    (pool / "new" / "tiny.png").write_bytes(encode(pieces[0][:9, :9]))
