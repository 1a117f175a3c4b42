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


def run(config: DistillationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Train every student of the recipe from the teacher's last network."""
    return run_training(config, inputs, output)


STEP = Step(
    name="distillation",
    summary="Train small students from one shared pass of the frozen teacher.",
    config=DistillationConfig,
    inputs=(DATASET, InputSpec("teacher", "training run to learn from: the result of refinement"), EVALUATION),
    run=run,
    code=CODE,
    transient=TRANSIENT,
    environment=training_environment,
    disk_bytes=training_disk_bytes,
    records=RECORDS,
)
