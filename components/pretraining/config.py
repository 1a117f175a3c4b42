"""Settings of pretraining."""

from __future__ import annotations

from components.common.training_step import TrainingConfig


class PretrainingConfig(TrainingConfig):
    """Section ``pretraining`` of params.yaml."""

    recipe: str = "embedded"
    """Name of a recipe in training/recipes, or a YAML file."""
