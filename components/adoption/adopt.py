"""From a folder with a network to a result that distillation and evaluation take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from components.adoption.config import AdoptionConfig
from components.common.networks import network_digest
from foundry.settings import digest_of
from foundry.storage import sha256_of_file, write_atomically
from training.engine.checkpoint import checkpoint_name
from training.engine.exports import export_root
from training.models.build import build_backbone
from training.models.interchange import HEADS_FILE, load_export, load_heads, save_export

ADOPTED = "adopted"
"""Name of the network among the exports of the result."""
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "README.md")
"""Patterns of files beside weights that say who may do what with them."""


def adopt(config: AdoptionConfig, source: Path, output: Path) -> dict[str, Any]:
    """Write the network of the folder ``source`` into ``output`` as a run would have: ``export/adopted`` with its heads
    and its terms, and ``export/step-000000000``, the same architecture with random weights, which evaluation compares
    with.

    Returns its size and whether it has heads. Raises :class:`UserError` where it cannot be read or is of a kind that
    the project does not know.
    """
    backbone, preprocessing = load_export(source)
    heads = load_heads(source) if config.heads == "keep" and (source / HEADS_FILE).is_file() else {}
    root = export_root(output)
    untrained = build_backbone(backbone.config)
    for name, network, own in ((ADOPTED, backbone, heads), (checkpoint_name(0), untrained, {})):
        shutil.rmtree(root / name, ignore_errors=True)  # of a call that was killed
        save_export(network, root / name, preprocessing, own)
    for pattern in TERMS:
        for path in filter(Path.is_file, source.glob(pattern)):
            shutil.copyfile(path, root / ADOPTED / path.name)
    write_atomically(root / "latest", f"{ADOPTED}\n")
    return {"parameters": sum(each.numel() for each in backbone.parameters()), "heads": bool(heads)}


def digest_with_heads(folder: Path) -> str:
    """What names the network in ``folder``, its heads included."""
    heads = folder / HEADS_FILE
    return digest_of([network_digest(folder), sha256_of_file(heads) if heads.is_file() else ""])
