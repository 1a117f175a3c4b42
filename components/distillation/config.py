"""Settings of distillation."""

from __future__ import annotations

from typing import ClassVar

from components.common.training_step import TrainingConfig


class DistillationConfig(TrainingConfig):
    """Section ``distillation`` of params.yaml."""

    stage: ClassVar[str] = "distil"
    recipe: str = "embedded_distillation"
    """Name of a recipe in training/recipes, or a YAML file."""
