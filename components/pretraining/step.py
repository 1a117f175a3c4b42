"""Train a backbone on unlabelled images by self-distillation (DINO, iBOT, KoLeo)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.inputs import DATASET, EVALUATION
from components.common.step import Step
from components.common.training_step import (
    CODE,
    RECORDS,
    TRANSIENT,
    run_training,
    training_disk_bytes,
    training_environment,
)
from components.pretraining.config import PretrainingConfig


def run(config: PretrainingConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Train the teacher from random weights."""
    return run_training(config, inputs, output)


STEP = Step(
    name="pretraining",
    summary="Train a backbone on unlabelled images by self-distillation (DINO, iBOT, KoLeo).",
    config=PretrainingConfig,
    inputs=(DATASET, EVALUATION),
    run=run,
    code=CODE,
    transient=TRANSIENT,
    environment=training_environment,
    disk_bytes=training_disk_bytes,
    records=RECORDS,
)
