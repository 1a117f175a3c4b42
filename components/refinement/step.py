"""Continue a backbone's training with Gram anchoring, for better dense features."""

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
from components.refinement.config import RefinementConfig


def run(config: RefinementConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Continue from the last checkpoint of the teacher's run."""
    return run_training(config, inputs, output)


STEP = Step(
    name="refinement",
    summary="Continue a backbone's training with Gram anchoring, for better dense features.",
    config=RefinementConfig,
    inputs=(DATASET, InputSpec("teacher", "training run to continue: the result of pretraining"), EVALUATION),
    run=run,
    code=CODE,
    transient=TRANSIENT,
    environment=training_environment,
    disk_bytes=training_disk_bytes,
    records=RECORDS,
)
