"""Settings of distillation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from components.common.training_step import TrainingConfig
from foundry.errors import UserError


class DistillationConfig(TrainingConfig):
    """Section ``distillation`` of params.yaml."""

    stage: ClassVar[str] = "distil"
    recipe: str = "embedded_distillation"
    """Name of a recipe in training/recipes, or a YAML file."""
    divide: bool = False
    """Whether the processes are divided among the students, by what each costs when measured here; all share the
    teacher's pass. Otherwise every process trains all students in turn, unless the recipe gives them processes."""

    @model_validator(mode="after")
    def _can_be_divided(self) -> DistillationConfig:
        students = self.resolved_recipe().students
        if self.divide and self.processes < len(students):
            raise UserError(
                f"distillation.divide: {len(students)} students cannot be divided among {self.processes} processes; "
                "raise distillation.processes, or leave them in turn"
            )
        return self
