"""Register the students in MLflow, with golden images, model card and lineage; the verdict moves ``champion``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.step import InputSpec, Step
from components.registration.config import RegistrationConfig


def run(config: RegistrationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Register every student and write ``registration.json``; registering the same network again changes no version."""
    from components.registration.register import register_students

    return register_students(config, inputs, output)


STEP = Step(
    name="registration",
    summary="Register the students in MLflow; the verdict of the report moves the champion.",
    config=RegistrationConfig,
    inputs=(
        InputSpec("students", "students to register: the result of distillation"),
        InputSpec("report", "verdict and scores of these students: the result of evaluation"),
        InputSpec("dataset", "curated dataset the golden images come from: the result of curation"),
        InputSpec("refined", "teacher the students learnt from: the result of refinement, or of adoption"),
    ),
    run=run,
    code=("components.registration", "foundry"),
    pure=False,
)
