"""Teachers: what turns a batch into the targets that students learn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from foundry.errors import UserError
from training.engine.checkpoint import latest_checkpoint, load_checkpoint, module_state
from training.engine.learner import Network, Targets, build_network
from training.engine.views import Views
from training.models.architectures import Architecture, architecture
from training.objectives.gram import resize_patch_map
from training.objectives.ibot import mask_weights
from training.objectives.targets import sinkhorn_knopp
from training.recipe import Recipe, load_recipe


class Teacher:
    """Makes targets with ``network``: an average that moves (self-distillation) or a frozen teacher (distillation).

    ``hides``: whether the student's view of the masked patches is hidden from it (iBOT) or not (distillation).
    """

    def __init__(self, network: Network, recipe: Recipe, hides: bool, gram: Network | None = None) -> None:
        self.network, self.recipe, self.hides, self.gram = network, recipe, hides, gram

    @torch.no_grad()
    def targets(self, views: Views, masks: Tensor, step: int) -> Targets:
        """Targets for the batch at ``step``, from one pass over its global crops, unmasked."""
        temperature = self.recipe.teacher.temperature.at(step, self.recipe.steps)
        features = self.network.backbone(views.global_crops())
        cls = sinkhorn_knopp(self.network.dino_head(features["cls"]), temperature)
        masked = masks.flatten().nonzero().squeeze(1)
        patches = cls[:0]
        if self.recipe.losses.ibot:
            scores = self.network.ibot_head(features["patches"].flatten(0, 1).index_select(0, masked))
            patches = sinkhorn_knopp(scores, temperature)
        return Targets(
            cls.unflatten(0, (2, -1)),
            patches,
            masked,
            mask_weights(masks),
            masks if self.hides else None,
            self._gram_features(views, features["patches"].shape[1]),
        )

    def _gram_features(self, views: Views, patches: int) -> Tensor | None:
        if self.gram is None:
            return None
        features = self.gram.backbone(views.gram_crops())["patches"]
        grid, target = round(features.shape[1] ** 0.5), round(patches**0.5)
        return resize_patch_map(features, (grid, grid), (target, target))


def trained_architecture(run: Path) -> Architecture:
    """The architecture of the network that ``run`` trained. Raises :class:`UserError` where that is no run folder."""
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: not a training run (recipe.yaml is missing)")
    recipe = load_recipe(run / "recipe.yaml")
    if recipe.students:
        raise UserError(f"{run}: a distillation; give a pretraining or refinement run as teacher")
    if recipe.model is None:
        raise UserError(f"{run}/recipe.yaml: does not name the model")
    return architecture(recipe.model)


def load_trained(run: Path, device: torch.device) -> Network:
    """The trained average (backbone and heads) of the newest checkpoint of ``run``, frozen, in evaluation mode."""
    spec = trained_architecture(run)
    recipe = load_recipe(run / "recipe.yaml")
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run}: has no finished checkpoint to start from")
    network = build_network(spec, recipe.heads, recipe.seed, torch.device("cpu"))
    load_checkpoint(checkpoint, {"learners": {"teacher": {"average": module_state(network)}}})
    return network.eval().requires_grad_(False).to(device)
