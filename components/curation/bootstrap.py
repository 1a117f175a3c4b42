"""A small backbone trained on the pool itself, for pools of which no backbone knows anything yet."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curation import dataset, shards
from components.curation.config import BootstrapConfig
from components.curation.pool import PoolFile
from foundry.settings import digest_of, merge
from foundry.storage import write_atomically

if TYPE_CHECKING:
    from components.curation.shards import Sample
    from training.recipe import Recipe

FOLDER = "bootstrap"
"""Run folder beside the dataset."""
KEPT = ("recipe.yaml", "metrics.jsonl", "events.jsonl", "plan")
LARGEST_CROP = 224


def fitted_recipe(config: BootstrapConfig, shorter_sides: np.ndarray, seed: int) -> Recipe:
    """The recipe of ``config`` for images of these ``shorter_sides`` in pixels.

    Crops and patches are doubled together (a step costs the same) while global crops are at most half the median side,
    and at most 224 pixels. No labels, so nothing is measured in between. ``config.overrides`` overrule this.
    """
    from training.recipe import load_recipe

    plain = config.resolved_recipe()
    factor, side, median = 1, plain.crops.global_size, float(np.median(shorter_sides))
    while 4 * side * factor <= median and 2 * side * factor <= LARGEST_CROP:
        factor *= 2
    crops = {name: getattr(plain.crops, name) * factor for name in ("global_size", "local_size")}
    fitted: dict[str, Any] = {"seed": seed, "crops": crops, "cadence": {"evaluate": 0}}
    if plain.model and "patch_size" in plain.model:
        fitted["model"] = {"patch_size": plain.model["patch_size"] * factor}
    return load_recipe(config.recipe, merge(fitted, config.overrides))


def train_backbone(
    config: BootstrapConfig,
    samples: Sequence[Sample],
    files: Iterable[PoolFile],
    pool: str,
    shard_bytes: int,
    seed: int,
    work: Path,
    output: Path,
) -> Path:
    """Train on ``samples`` of the pool into ``output/bootstrap``; returns the folder of the trained network.

    A killed run goes on from its last checkpoint. What stays is the recipe, the curves and the last export.
    """
    from components.common.launcher import launch_training
    from training.recipe import dump_recipe

    run, data = output / FOLDER, work / "bootstrap-data"
    recipe = fitted_recipe(config, np.array([min(sample.width, sample.height) for sample in samples]), seed)
    text = dump_recipe(recipe)
    plan = digest_of([text, [sample.sha256 for sample in samples]])
    final = run / "export" / f"step-{recipe.steps:09d}"
    if not (run / "plan").is_file() or (run / "plan").read_text(encoding="utf-8") != plan:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
        write_atomically(run / "plan", plan)
    if not (run / "export" / "latest").is_file():
        if not (data / "dataset.json").is_file():
            _write_dataset(data, samples, files, pool, shard_bytes)
        write_atomically(run / "recipe.yaml", text)
        launch_training(run / "recipe.yaml", str(data), run, 1, name=FOLDER)
    for path in [*run.iterdir(), *(run / "export").iterdir()]:
        if path.name in (*KEPT, "export", "latest", final.name):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(data, ignore_errors=True)
    return final


def _write_dataset(
    folder: Path, samples: Sequence[Sample], files: Iterable[PoolFile], pool: str, shard_bytes: int
) -> None:
    """A dataset of all ``samples``, each as often as the others."""
    places, sizes = shards.lay_out(samples, shard_bytes)
    shards.write_shards(folder / dataset.SHARDS, samples, places, sizes, files, pool)
    count = len(samples)
    table = dataset.samples_table(
        samples, places, [""] * count, [1.0] * count, ["unique"] * count, [["balanced"]] * count
    )
    dataset.write_table(table, folder / "samples.parquet")
    content = dataset.content_digest(table, {})
    dataset.write_description(folder, {"samples": count}, {"content": content}, {}, {})
