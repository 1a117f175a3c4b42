"""Exports of a run: networks in the Hugging Face layout, whole or not there at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from foundry.errors import UserError
from foundry.images import Preprocessing
from foundry.storage import write_atomically
from training.engine.checkpoint import checkpoint_name
from training.engine.learner import Learner, Network
from training.models.heads import ProjectionHead
from training.models.interchange import save_export
from training.recipe import Recipe


def export_root(run: Path, student: str = "") -> Path:
    """The folder of a run's exports: ``export``, or ``students/NAME/export`` in a distillation."""
    return run / "students" / student / "export" if student else run / "export"


def latest_export(run: Path, student: str = "") -> Path:
    """The newest export of ``run``. Raises :class:`UserError` where there is none."""
    root = export_root(run, student)
    try:
        return root / (root / "latest").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UserError(f"{root}: no export yet") from None


def export_learner(learner: Learner, average: Network, run: Path, done: int, recipe: Recipe, latest: bool) -> Path:
    """Write the whole ``average`` of ``learner`` after ``done`` steps; with ``latest`` it is what later steps take.

    An export that is already there is kept: it would be the same.
    """
    root = export_root(run, learner.name)
    final = root / checkpoint_name(done)
    if not final.is_dir():
        side = (recipe.export_size or recipe.crops.global_size) * learner.scale
        preprocessing = Preprocessing(resize=side, crop=side, mean=recipe.crops.mean, std=recipe.crops.std)
        temporary = root / f".{final.name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        given = {"dino": average.dino_head, "ibot": average.ibot_head}
        heads = {name: head for name, head in given.items() if isinstance(head, ProjectionHead)}
        save_export(average.backbone, temporary, preprocessing, heads)
        os.rename(temporary, final)
    if latest:
        write_atomically(root / "latest", final.name + "\n")
    return final
