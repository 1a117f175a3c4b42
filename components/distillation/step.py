"""Train small students from one shared pass of the frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.inputs import DATASET, EVALUATION
from components.common.step import InputSpec, Step
from components.common.training_step import (
    CODE,
    RECORDS,
    TRANSIENT,
    run_training,
    training_disk_bytes,
    training_environment,
)
from components.distillation.config import DistillationConfig
from components.distillation.division import RECORD, divided
from foundry.storage import local_path


def run(config: DistillationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Train every student of the recipe from the teacher's last network."""
    recipe = config.resolved_recipe()
    if config.divide:
        recipe = divided(recipe, local_path(inputs["teacher"]), config.processes, output)
    return run_training(config, inputs, output, recipe)


STEP = Step(
    name="distillation",
    summary="Train small students from one shared pass of the frozen teacher.",
    config=DistillationConfig,
    inputs=(
        DATASET,
        InputSpec("teacher", "network to learn from: the result of refinement, pretraining or adoption"),
        EVALUATION,
    ),
    run=run,
    code=CODE,
    transient=TRANSIENT,
    environment=training_environment,
    disk_bytes=training_disk_bytes,
    records=(*RECORDS, RECORD),
)
