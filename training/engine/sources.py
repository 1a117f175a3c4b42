"""Networks that a run begins with: to continue, to be anchored to, to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.images import Preprocessing
from foundry.storage import local_path
from training.engine.checkpoint import latest_checkpoint, load_checkpoint, module_state
from training.engine.exports import latest_export
from training.engine.learner import Network, build_network
from training.models.architectures import Architecture, ViTConfig, architecture
from training.models.build import Backbone, build_backbone
from training.models.interchange import (
    CONFIG_FILE,
    HEADS_FILE,
    PREPROCESSOR_FILE,
    inflate_channels,
    load_heads,
    load_hugging_face,
    load_official,
    read_architecture,
    read_preprocessing,
)
from training.recipe import Crops, Recipe, WarmStart, load_recipe

HEADS = "teacher"
"""Folder, in the run folder of a distillation, of the run that gives heads to a teacher without."""


def teacher_folder(path: Path) -> Path:
    """Where the teacher at ``path`` lies: ``path`` itself (a run folder, or an export), or the newest export in it of a
    folder that holds exports and no run."""
    alone = (path / "export" / "latest").is_file() and not (path / "recipe.yaml").is_file()
    return latest_export(path) if alone else path


def trained_architecture(path: Path) -> Architecture:
    """The architecture of the network that the run ``path`` trained, of an export or of an official file; of an export
    only its description is read.

    Raises :class:`UserError` where it is none of them.
    """
    path = teacher_folder(path)
    if path.is_file():
        return load_official(path).config
    if (path / CONFIG_FILE).is_file():
        return read_architecture(path)
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"{path}: not a training run (recipe.yaml is missing)")
    recipe = load_recipe(path / "recipe.yaml")
    if recipe.students:
        raise UserError(f"{path}: a distillation; give a pretraining or refinement run as teacher")
    if recipe.own_model is None:
        raise UserError(f"{path}/recipe.yaml: does not name the model")
    return architecture(recipe.own_model)


def check_statistics(path: Path, recipe: Recipe) -> None:
    """Raise :class:`UserError` where the teacher at ``path`` says that its pixels are scaled by other statistics than
    those of ``recipe``, which both it and its students would be given."""
    path, crops = teacher_folder(path), recipe.crops
    wanted: Crops | Preprocessing
    if (path / "recipe.yaml").is_file():
        wanted = load_recipe(path / "recipe.yaml").crops
    elif (path / PREPROCESSOR_FILE).is_file():
        wanted = read_preprocessing(path)
    else:
        return
    if any(abs(a - b) > 1e-4 for a, b in zip((*wanted.mean, *wanted.std), (*crops.mean, *crops.std), strict=True)):
        raise UserError(
            f"{path}: the teacher's pixels are scaled by mean {list(wanted.mean)} and std {list(wanted.std)}, "
            "those of the recipe by others; set crops.mean and crops.std to the teacher's"
        )


def continued_model(trained: Architecture, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Description of the network with which a Gram stage continues: ``trained`` with the recipe's ``changes``, or what
    these describe where they are a whole description."""
    if changes and "arch" in changes:
        return dict(changes)
    return architecture({**trained.model_dump(mode="json"), **(changes or {})}).model_dump(mode="json")


def load_trained(run: Path) -> Network:
    """The trained average (backbone and heads) of the newest checkpoint of ``run``, frozen, in evaluation mode."""
    spec = trained_architecture(run)
    recipe = load_recipe(run / "recipe.yaml")
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run}: has no finished checkpoint to start from")
    network = build_network(spec, recipe.heads, recipe.seed, "cpu")
    load_checkpoint(checkpoint, {"learners": {"teacher": {"average": module_state(network)}}})
    return network.eval().requires_grad_(False)


def has_heads(path: Path) -> bool:
    """Whether the network at ``path`` (see :func:`teacher_folder`) comes with its projection heads."""
    path = teacher_folder(path)
    return (path / "recipe.yaml").is_file() or (path / HEADS_FILE).is_file()


def load_teacher(path: Path, heads: bool = True) -> Network:
    """The teacher of a distillation, frozen, in evaluation mode: of a run folder its trained average, of an export with
    heads that network. Without ``heads`` it gives features. See :func:`teacher_folder`."""
    path = teacher_folder(path)
    if (path / "recipe.yaml").is_file():
        trained = load_trained(path)
        return trained if heads else Network.bare(trained.backbone).eval().requires_grad_(False)
    if not heads:
        bare = load_official(path) if path.is_file() else load_hugging_face(path)
        return Network.bare(bare).eval().requires_grad_(False)
    stored = load_heads(path)
    network = Network.with_heads(load_hugging_face(path), stored["dino"], stored.get("ibot", stored["dino"]))
    return network.eval().requires_grad_(False)


def head_recipe(recipe: Recipe) -> Recipe:
    """The run that makes heads for the teacher of the distillation ``recipe``: its backbone rests, the heads learn from
    each other's averages as in pretraining, with the same crops, masks, heads and schedules."""
    steps = recipe.teacher.head_steps
    values = recipe.model_dump(mode="json", exclude={"students", "about", "name", "stage", "steps", "losses"})
    losses = {**recipe.losses.model_dump(mode="json"), "dino_same_crop": False, "koleo": 0.0}
    cadence = {**values["cadence"], "evaluate": 0}
    return Recipe.model_validate(
        {
            **values,
            "name": f"{recipe.name}-heads",
            "stage": "pretrain",
            "steps": steps,
            "losses": losses,
            "cadence": cadence,
            "warm_start": WarmStart(freeze_steps=steps, ramp_steps=0).model_dump(mode="json"),
        }
    )


def load_start(path: str, recipe: Recipe) -> Backbone:
    """The backbone of a warm start: a run folder's newest export, a Hugging Face folder, or an official file.

    Training-only settings of the recipe's model (stochastic depth, position jitter) are taken over. Raises
    :class:`UserError` where the recipe names another architecture.
    """
    given = teacher_folder(local_path(path))
    if given.is_file():
        backbone = load_official(given)
    elif (given / "recipe.yaml").is_file():
        backbone = load_hugging_face(latest_export(given))
    else:
        backbone = load_hugging_face(given)
    if recipe.model is None:
        return backbone
    wanted = architecture(recipe.model)
    fitting = build_backbone(wanted, seed=recipe.seed)
    state = backbone.state_dict()
    if isinstance(wanted, ViTConfig) and wanted.in_channels != backbone.config.in_channels:
        state = inflate_channels(state, wanted.in_channels)
    for extra in ("local_cls_norm.weight", "local_cls_norm.bias"):  # no public file carries it
        if extra in fitting.state_dict() and extra not in state:
            state[extra] = state[extra.removeprefix("local_cls_")]
    try:
        fitting.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path}: is not the architecture that the recipe's 'model' describes ({reason})") from None
    return fitting
