"""Settings of pretraining."""

from __future__ import annotations

from typing import ClassVar

from components.common.training_step import TrainingConfig


class PretrainingConfig(TrainingConfig):
    """Section ``pretraining`` of params.yaml."""

    stage: ClassVar[str] = "pretrain"
    recipe: str = "embedded"
    """Name of a recipe in training/recipes, or a YAML file."""
