"""What pretraining, refinement and distillation share: a recipe, run by TorchX in its own processes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from components.common.accelerator import accelerator_name, default_device
from components.common.manifest import read_manifest
from foundry.errors import UserError
from foundry.settings import Settings
from foundry.storage import local_path

if TYPE_CHECKING:
    from training.recipe import Head, Recipe

RECORDS = ("metrics.jsonl", "events.jsonl", "logs/*", "checkpoints/*/.metadata")
"""Files of a training run that hold times, or (torch.distributed.checkpoint's index) an id drawn anew at each save."""
TRANSIENT = ("recipe", "overrides")
"""The resolved recipe stands in the fingerprint instead, whatever its name and however it was written."""
CODE = ("training.__main__", "components.common.training_results")
"""What the processes run and what is kept of it. How they are launched does not change what is learned."""


class TrainingConfig(Settings):
    """Settings of a step that trains."""

    stage: ClassVar[str]
    """The stage of the recipes that the step takes."""

    recipe: str
    """Name of a recipe in training/recipes, or a YAML file."""
    processes: Annotated[int, Field(ge=1)] = 2
    """Training processes (one for each GPU; on a CPU, a few)."""
    overrides: dict[str, Any] = {}
    """Changes to the recipe, nested as in its file: ``{steps: 200, optimiser: {clip: 1.0}}``."""

    @model_validator(mode="after")
    def _recipe_is_valid(self) -> TrainingConfig:
        recipe = self.resolved_recipe()
        if recipe.stage != self.stage:
            raise UserError(f"recipe {self.recipe}: is for stage {recipe.stage}, and this step is stage {self.stage}")
        if recipe.batch < self.processes * recipe.accumulate:
            raise UserError(
                f"recipe {self.recipe}: batch {recipe.batch} is too small for {self.processes} processes"
                + (f" in {recipe.accumulate} parts each" if recipe.accumulate > 1 else "")
            )
        return self

    def resolved_recipe(self) -> Recipe:
        """The recipe with the overrides. Raises :class:`UserError` naming the nearest valid name."""
        from training.recipe import load_recipe

        return load_recipe(self.recipe, self.overrides)


def training_environment(config: TrainingConfig) -> dict[str, Any]:
    """Fingerprint facts of a training step: what is run, on what, by which PyTorch."""
    recipe = config.resolved_recipe()
    values = recipe.model_dump(mode="json", exclude={"name", "about", "workers", "device"})
    return {
        "recipe": values,
        "device": recipe.device if recipe.device != "auto" else default_device(),
        "accelerator": accelerator_name() if recipe.device != "cpu" else None,
        "world_size": config.processes,
        "torch": importlib.metadata.version("torch"),
    }


def run_training(
    config: TrainingConfig, inputs: Mapping[str, str], output: Path, recipe: Recipe | None = None
) -> dict[str, Any]:
    """Train ``recipe`` (default: that of ``config``) into ``output``, continuing from its checkpoints, and return the
    run's last figures."""
    from components.common.launcher import launch_training
    from components.common.training_results import discard_old_checkpoints, last_figures
    from foundry.storage import write_atomically
    from training.recipe import dump_recipe

    recipe = recipe or config.resolved_recipe()
    recipe_file = output / "recipe.yaml"
    write_atomically(recipe_file, dump_recipe(recipe))
    launch_training(
        recipe_file,
        inputs["dataset"],
        output,
        config.processes,
        teacher=inputs.get("teacher"),
        evaluation=inputs.get("evaluation"),
    )
    discard_old_checkpoints(output)
    return {"steps": recipe.steps, **last_figures(output)}


def training_disk_bytes(config: TrainingConfig, inputs: Mapping[str, str]) -> int:
    """About what a run writes: its checkpoints at their most, its exports and its logs."""
    recipe = config.resolved_recipe()
    specs = [recipe.own_model] if recipe.own_model else [student.model for student in recipe.students]
    heads = () if recipe.heads.matching == "features" else (recipe.heads.dino, recipe.heads.ibot)
    exports = 2 + (recipe.steps // recipe.cadence.evaluate if recipe.cadence.evaluate else 0)
    # Four-byte numbers: student, average and two moments of AdamW; an export holds the average.
    numbers = 4 * (recipe.cadence.keep_checkpoints + 1) + exports
    total = 64 << 20
    for spec in specs:
        total += 4 * numbers * network_size(spec, heads)
    if not specs:  # continues the teacher's network
        teacher = read_manifest(local_path(inputs["teacher"]))
        total += teacher.size() * (recipe.cadence.keep_checkpoints + 1) if teacher else 0
    return total


def network_size(spec: Mapping[str, Any], heads: Sequence[Head]) -> int:
    """Parameters of a network with its projection heads, to about a tenth (embeddings, norms and biases left out)."""
    from training.models.architectures import ViTConfig, architecture

    network = architecture(spec)
    if isinstance(network, ViTConfig):
        gates = 3 if network.ffn == "swiglu" else 2
        backbone = network.depth * network.dim * (4 * network.dim + gates * network.hidden)
        backbone += network.dim * network.in_channels * network.patch_size**2
    else:
        backbone = sum(depth * 8 * dim**2 for depth, dim in zip(network.depths, network.dims, strict=True))
        backbone += sum(4 * a * b for a, b in zip(network.dims, network.dims[1:], strict=False))
    return backbone + sum(
        head.hidden * (network.dim + head.hidden) + head.bottleneck * (head.hidden + head.prototypes) for head in heads
    )
