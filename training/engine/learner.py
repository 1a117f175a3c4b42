"""A network that learns: student, its exponential average and its optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.engine.checkpoint import module_state, optimiser_state
from training.engine.optimiser import build_optimiser, clip_gradients, move_average, set_schedules
from training.engine.views import Views
from training.models.architectures import Architecture
from training.models.build import Backbone, build_backbone, build_head
from training.models.draws import StepDraws
from training.models.heads import ProjectionHead
from training.objectives.dino import dino_loss, pair_shares
from training.objectives.gram import gram_loss
from training.objectives.ibot import ibot_loss
from training.objectives.koleo import koleo_loss
from training.recipe import Head, Heads, Recipe


class Network(nn.Module):
    """A backbone with the two projection heads."""

    def __init__(self, backbone: Backbone, heads: Heads, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = _head(backbone, heads.dino, seed + 1)
        self.ibot_head = _head(backbone, heads.ibot, seed + 2)


def _head(backbone: Backbone, head: Head, seed: int) -> ProjectionHead:
    return build_head(
        backbone.config.dim, head.hidden, head.bottleneck, head.prototypes, weight_norm=head.weight_norm, seed=seed
    )


def build_network(spec: Architecture, heads: Heads, seed: int, device: torch.device) -> Network:
    """A network with the weights that ``seed`` gives, in float32 on ``device``."""
    return Network(build_backbone(spec, seed=seed), heads, seed).to(device)


def frozen_copy(network: Network) -> Network:
    """A copy in evaluation mode whose parameters take no gradient."""
    import copy

    return copy.deepcopy(network).eval().requires_grad_(False)


@dataclass
class Targets:
    """What a teacher says of a batch: ``cls`` (2, B, K), ``patches`` (n, K') at the n masked patches; probabilities."""

    cls: Tensor
    patches: Tensor
    masked: Tensor
    """(n,) int64 flat positions of the masked patches among the (2B * N)."""
    weights: Tensor
    """(n,) 1 / masked patches of the same crop."""
    masks: Tensor | None
    """(2B, N) bool: the patches that the student does not see; None where it sees all (distillation)."""
    gram: Tensor | None = None
    """(2B, N, D) patch features of the Gram teacher on the student's grid."""


class Learner:
    """One student with everything that belongs to it.

    ``scale``: crop size relative to the recipe's. ``rate``: factor on its learning rate.
    """

    def __init__(
        self,
        name: str,
        spec: Architecture,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        scale: int = 1,
        rate: float = 1.0,
    ) -> None:
        self.name, self.spec, self.recipe, self.scale, self.rate = name, spec, recipe, scale, rate
        self.network = build_network(spec, recipe.heads, seed, device).train()
        self.average = frozen_copy(self.network)
        self.parts = {"backbone": self.network.backbone, "dino_head": self.network.dino_head}
        if recipe.losses.ibot:
            self.parts["ibot_head"] = self.network.ibot_head
        else:
            self.network.ibot_head.requires_grad_(False)
        self.optimiser = build_optimiser(self.parts, recipe.optimiser)

    @property
    def prefix(self) -> str:
        """What this learner's metric names start with."""
        return f"{self.name}/" if self.name else ""

    def losses(self, views: Views, targets: Targets, draws: StepDraws) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(total, parts, CLS features (2B, D)): this process's share of the losses of the whole batch."""
        weights = self.recipe.losses
        crops = [views.global_crops(self.scale)]
        locals_ = views.local_crops(self.scale)
        if len(locals_):
            crops.append(locals_)
        masks = [targets.masks, *[None] * (len(crops) - 1)]
        features = self.network.backbone.forward_crops(crops, masks, draws=draws)
        global_ = features[0]
        images = targets.cls.shape[1]

        scores = self.network.dino_head(torch.cat([feature["cls"] for feature in features]))
        same = weights.dino_same_crop
        local_share, global_share = pair_shares(2, self.recipe.crops.local_count, same)
        parts = {"dino_global": dino_loss(scores[: 2 * images], targets.cls, ignore_diagonal=not same)}
        total = weights.dino * global_share * parts["dino_global"]
        if len(locals_):
            parts["dino_local"] = dino_loss(scores[2 * images :], targets.cls)
            total = total + weights.dino * weights.dino_local * local_share * parts["dino_local"]
        if weights.ibot:
            masked = global_["patches"].flatten(0, 1).index_select(0, targets.masked)
            patch_scores = self.network.ibot_head(masked)
            parts["ibot"] = ibot_loss(patch_scores, targets.patches, targets.weights, 2 * images)
            total = total + weights.ibot * parts["ibot"]
        if weights.koleo:
            first, second = global_["cls"].chunk(2)
            parts["koleo"] = koleo_loss(first, weights.koleo_group) + koleo_loss(second, weights.koleo_group)
            total = total + weights.koleo * parts["koleo"]
        if targets.gram is not None:
            parts["gram"] = gram_loss(global_["patches"], targets.gram)
            total = total + weights.gram * parts["gram"]
        parts["loss"] = total
        return total, {name: part.detach() for name, part in parts.items()}, global_["cls"].detach()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters, in a fixed order."""
        for part in self.parts.values():
            yield from part.parameters()

    def clip(self) -> dict[str, Tensor]:
        """Clip the gradients of each part; their norms before."""
        return {
            name: clip_gradients(part.parameters(), self.recipe.optimiser.clip) for name, part in self.parts.items()
        }

    def update(self, step: int, rate_factor: float) -> None:
        """One optimiser step and one step of the average, with the schedules' values at ``step``."""
        recipe, settings = self.recipe, self.recipe.optimiser
        set_schedules(
            self.optimiser,
            settings.learning_rate.at(step, recipe.steps) * rate_factor * self.rate,
            settings.weight_decay.at(step, recipe.steps),
            freeze_prototypes=step < settings.freeze_prototypes_steps,
        )
        self.optimiser.step()
        move_average(self.average, self.network, recipe.teacher.momentum.at(step, recipe.steps))

    def state(self) -> dict[str, object]:
        """Everything a checkpoint keeps of this learner, as its own tensors."""
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        return {
            "student": module_state(self.network),
            "average": module_state(self.average),
            "optimiser": optimiser_state(self.optimiser, names),
        }
