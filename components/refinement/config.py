"""Settings of refinement."""

from __future__ import annotations

from typing import ClassVar

from components.common.training_step import TrainingConfig


class RefinementConfig(TrainingConfig):
    """Section ``refinement`` of params.yaml."""

    stage: ClassVar[str] = "gram"
    recipe: str = "embedded_gram"
    """Name of a recipe in training/recipes, or a YAML file."""
