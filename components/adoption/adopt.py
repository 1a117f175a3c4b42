"""From a folder with a network to a result that distillation and evaluation take."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components.adoption.config import AdoptionConfig
from components.common.networks import FILES, network_digest
from foundry.settings import digest_of
from foundry.storage import sha256_of_file, write_atomically
from training.engine.checkpoint import checkpoint_name
from training.engine.exports import export_root
from training.models.build import build_backbone
from training.models.interchange import HEADS_FILE, WEIGHTS_FILE, load_export, load_heads, save_export

ADOPTED = "adopted"
"""Name of the network among the exports of the result."""
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "README.md")
"""Patterns of files beside weights that say who may do what with them."""


def adopt(config: AdoptionConfig, source: Path, output: Path) -> dict[str, Any]:
    """Write the network of the folder ``source`` into ``output`` as a run would have: ``export/adopted`` with its heads
    and its terms, and ``export/step-000000000``, the same architecture with random weights, which evaluation compares
    with.

    Its files are taken as they are; weights in several files become one. Returns its size and whether it has heads.
    Raises :class:`UserError` where it cannot be read or is of a kind that the project does not know.
    """
    backbone, preprocessing = load_export(source)
    spec, parameters = backbone.config, sum(each.numel() for each in backbone.parameters())
    heads = config.heads == "keep" and (source / HEADS_FILE).is_file()
    root = export_root(output)
    for name in (ADOPTED, checkpoint_name(0)):
        shutil.rmtree(root / name, ignore_errors=True)  # of a call that was killed
        (root / name).mkdir(parents=True)
    if heads:
        load_heads(source)
    whole = (source / WEIGHTS_FILE).is_file()
    if not whole:
        save_export(backbone, root / ADOPTED, preprocessing)
    del backbone
    gc.collect()  # a large network is in memory once
    for path in (*(_files(source, FILES) if whole else ()), *_files(source, TERMS)):
        shutil.copyfile(path, root / ADOPTED / path.name)
    if heads:
        shutil.copyfile(source / HEADS_FILE, root / ADOPTED / HEADS_FILE)
    save_export(build_backbone(spec), root / checkpoint_name(0), preprocessing)
    write_atomically(root / "latest", f"{ADOPTED}\n")
    return {"parameters": parameters, "heads": heads}


def digest_with_terms(folder: Path) -> str:
    """What names the network in ``folder``, its heads and its terms included."""
    others = [path for pattern in (HEADS_FILE, *TERMS) for path in _files(folder, [pattern])]
    return digest_of([network_digest(folder), [[path.name, sha256_of_file(path)] for path in others]])


def needed_bytes(folder: Path) -> int:
    """About what :func:`adopt` writes of the network in ``folder``, weights of two bytes counted as four."""
    return 4 * sum(path.stat().st_size for path in _files(folder, [*FILES, HEADS_FILE])) + (16 << 20)


def _files(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(filter(Path.is_file, folder.glob(pattern)))
