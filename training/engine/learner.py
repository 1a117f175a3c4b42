"""A network that learns: student, its exponential average and its optimiser."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from training.data.sampler import share
from training.engine.checkpoint import module_state, optimiser_state
from training.engine.low_rank import add_low_rank
from training.engine.optimiser import build_optimiser, clip_gradients, move_average, set_schedules
from training.engine.parallel import Parallel
from training.engine.views import Views
from training.models.architectures import Architecture
from training.models.build import Backbone, build_backbone, build_feature_map, build_head
from training.models.draws import StepDraws
from training.models.features import Features
from training.models.heads import FeatureMap, ProjectionHead
from training.objectives.dino import dino_loss, pair_shares
from training.objectives.gram import gram_loss
from training.objectives.ibot import ibot_loss
from training.objectives.koleo import koleo_loss
from training.objectives.matching import matching_loss
from training.recipe import Head, Heads, Recipe, value_at


class Output(NamedTuple):
    """What a network says of a list of crop groups."""

    features: list[Features]
    """Of each group."""
    cls: Tensor
    """(S, K) image-level scores of all crops, group after group."""
    patches: Tensor | None
    """(n, K') patch-level scores at the wanted patches of the first group; None where none were wanted."""


class Network(nn.Module):
    """A backbone with the two projection heads (one head twice, where they share it)."""

    def __init__(self, backbone: Backbone, heads: Heads, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head: ProjectionHead | FeatureMap
        self.ibot_head: ProjectionHead | FeatureMap
        if heads.matching == "features":
            dim, width = backbone.config.dim, heads.width
            self.dino_head = build_feature_map(dim, width, seed=seed + 1, device=device)
            self.ibot_head = build_feature_map(dim, width, seed=seed + 2, device=device)
        else:
            self.dino_head = _head(backbone, heads.dino, seed + 1, device)
            self.ibot_head = self.dino_head if heads.shared else _head(backbone, heads.ibot, seed + 2, device)

    @classmethod
    def bare(cls, backbone: Backbone) -> Network:
        """A network that gives its features in place of scores."""
        dim = backbone.config.dim
        return cls.with_heads(backbone, FeatureMap(dim), FeatureMap(dim))

    @classmethod
    def with_heads(
        cls, backbone: Backbone, dino: ProjectionHead | FeatureMap, ibot: ProjectionHead | FeatureMap
    ) -> Network:
        """A network of parts that are there already."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.backbone, network.dino_head, network.ibot_head = backbone, dino, ibot
        return network

    def forward(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        wanted: Tensor | None = None,
        draws: StepDraws | None = None,
        only: Literal["bottleneck"] | None = None,
    ) -> Output:
        """Features and scores of ``crops``, a list of (B, C, H, W).

        ``wanted``: (n,) flat positions among the patches of the first group, whose patch-level scores are given too.
        ``only="bottleneck"``: in place of scores what the prototypes are compared with, see :class:`ProjectionHead`.
        """
        features = self.backbone.forward_crops(crops, masks, draws=draws)
        cls = torch.cat([group["cls"] for group in features])
        if wanted is None:
            return Output(features, self.dino_head(cls, only=only), None)
        patches = features[0]["patches"].flatten(0, 1).index_select(0, wanted)
        if only or self.ibot_head is not self.dino_head:
            return Output(features, self.dino_head(cls, only=only), self.ibot_head(patches, only=only))
        shared = self.dino_head
        assert isinstance(shared, ProjectionHead)
        return Output(features, *shared(torch.cat((cls, patches)), rows=(len(cls), len(patches))))


def _head(backbone: Backbone, head: Head, seed: int, device: torch.device | str) -> ProjectionHead:
    return build_head(
        backbone.config.dim,
        head.hidden,
        head.bottleneck,
        head.prototypes,
        layers=head.layers,
        weight_norm=head.weight_norm,
        trainable_gain=head.trainable_gain,
        init=head.init,
        seed=seed,
        device=device,
    )


def build_network(spec: Architecture, heads: Heads, seed: int, device: torch.device | str) -> Network:
    """A network with the weights that ``seed`` gives, in float32 on ``device`` (``meta``: shapes only)."""
    return Network(build_backbone(spec, seed=seed, device=device), heads, seed, device)


def frozen_copy(network: Network) -> Network:
    """A copy in evaluation mode whose parameters take no gradient."""
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


@dataclass
class Measured:
    """What a learner found in one step, of this process's share: losses by name and CLS features (2B, D)."""

    losses: dict[str, Tensor]
    features: Tensor


class Learner:
    """One student with everything that belongs to it.

    ``scale``: crop size relative to the recipe's. ``rate``: factor on its learning rate. ``start``: a backbone to begin
    with instead of the weights that ``seed`` gives.
    """

    def __init__(
        self,
        name: str,
        spec: Architecture,
        recipe: Recipe,
        seed: int,
        parallel: Parallel,
        scale: int = 1,
        rate: float = 1.0,
        start: Backbone | None = None,
    ) -> None:
        self.name, self.spec, self.recipe, self.scale, self.rate = name, spec, recipe, scale, rate
        network = build_network(spec, recipe.heads, seed, "cpu")
        if start is not None:
            network.backbone.load_state_dict(start.state_dict())
            if recipe.warm_start is not None and recipe.warm_start.lora_rank:
                add_low_rank(network.backbone, recipe.warm_start.lora_rank, recipe.warm_start.lora_alpha, seed + 3)
        network = network.to(parallel.device).train()
        for head, settings in ((network.dino_head, recipe.heads.dino), (network.ibot_head, recipe.heads.of_patches())):
            if isinstance(head, ProjectionHead) and settings.weight_norm and not settings.trainable_gain:
                head.last_layer.weight_g.requires_grad_(False)
        if not recipe.losses.ibot and not recipe.heads.shared:
            network.ibot_head.requires_grad_(False)
        _rest(network.backbone, recipe)
        self.average = parallel.inference(frozen_copy(network))
        self.parallel = parallel
        self.network, self.module = parallel.training(network)
        self.parts: dict[str, nn.Module] = {"backbone": self.network.backbone, "dino_head": self.network.dino_head}
        if recipe.losses.ibot and not recipe.heads.shared:
            self.parts["ibot_head"] = self.network.ibot_head
        self.optimiser = build_optimiser(self.parts, recipe.optimiser)

    @property
    def prefix(self) -> str:
        """What this learner's metric names start with."""
        return f"{self.name}/" if self.name else ""

    def backward(
        self, views: Sequence[Views], targets: Sequence[Targets], draws: Sequence[StepDraws], autocast: torch.autocast
    ) -> Measured:
        """Gradients of this process's share of the losses of the whole batch, given in one or more parts."""
        spread = self._spread_gradients(views, targets, draws, autocast) if len(views) > 1 else None
        found: list[tuple[dict[str, Tensor], Tensor]] = []
        for number, (part, wanted, drawn) in enumerate(zip(views, targets, draws, strict=True)):
            with self.parallel.synchronised(self.module, last=number + 1 == len(views)):
                with autocast:
                    total, losses, features = self.losses(part, wanted, drawn, koleo=spread is None)
                if spread is not None:
                    total = total + (features * spread[1][number]).sum() * len(views)
                (total / len(views)).backward()
            found.append((losses, features.detach()))
        losses = {name: torch.stack([each[name] for each, _ in found]).mean(dim=0) for name in found[0][0]}
        if spread is not None:
            losses["koleo"] = spread[0]
            losses["loss"] = losses["loss"] + self.recipe.losses.koleo * spread[0]
        by_crop = torch.cat([features.unflatten(0, (2, -1)) for _, features in found], dim=1)
        return Measured(losses, by_crop.flatten(0, 1))

    def losses(
        self, views: Views, targets: Targets, draws: StepDraws, koleo: bool = True
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(total, parts, CLS features (2B, D) with their gradient): the share of ``views`` in the losses."""
        recipe, weights, step = self.recipe, self.recipe.losses, draws.step
        crops = [views.global_crops(self.scale)]
        locals_ = views.local_crops(self.scale)
        if len(locals_):
            crops.append(locals_)
        masks = [targets.masks, *[None] * (len(crops) - 1)]
        output: Output = self.module(crops, masks, targets.masked if weights.ibot else None, draws)
        global_ = output.features[0]
        usual = recipe.batch / (self.parallel.world * recipe.accumulate)  # images of a part, averaged over all
        terms = self._scores_learnt if recipe.heads.matching == "scores" else self._features_learnt
        total, parts = terms(output, targets, usual, step)
        if weights.koleo and koleo:
            held = self._held() if recipe.accumulate == 1 else None
            parts["koleo"] = self._koleo(global_["cls"], held, usual)
            total = total + weights.koleo * parts["koleo"]
        if targets.gram is not None:
            parts["gram"] = gram_loss(
                global_["patches"], targets.gram, images=2 * usual, negatives=weights.gram_negatives
            )
            total = total + value_at(weights.gram, step, recipe.steps) * parts["gram"]
        parts["loss"] = total
        return total, {name: part.detach() for name, part in parts.items()}, global_["cls"]

    def _scores_learnt(
        self, output: Output, targets: Targets, usual: float, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(sum, parts) of the losses on scores; ``usual`` images of a part of a process."""
        recipe, weights, crops = self.recipe, self.recipe.losses, 2 * targets.cls.shape[1]
        same = weights.dino_same_crop
        local_share, global_share = pair_shares(2, recipe.crops.local_count, same)
        parts = {"dino_global": dino_loss(output.cls[:crops], targets.cls, ignore_diagonal=not same, images=usual)}
        total = weights.dino * global_share * parts["dino_global"]
        if len(output.cls) > crops:
            parts["dino_local"] = dino_loss(output.cls[crops:], targets.cls, images=usual)
            local_weight = value_at(weights.dino_local, step, recipe.steps)
            total = total + weights.dino * local_weight * local_share * parts["dino_local"]
        if weights.ibot:
            assert output.patches is not None
            parts["ibot"] = ibot_loss(output.patches, targets.patches, targets.weights, 2 * usual)
            total = total + weights.ibot * parts["ibot"]
        return total, parts

    def _features_learnt(
        self, output: Output, targets: Targets, usual: float, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of the losses on features, which no schedule weighs."""
        weights = self.recipe.losses
        parts = {"match_images": matching_loss(output.cls, targets.cls.flatten(0, 1), images=2 * usual)}
        total = weights.dino * parts["match_images"]
        if weights.ibot:
            assert output.patches is not None
            found = matching_loss(output.patches, targets.patches, targets.weights, images=2 * usual)
            parts["match_patches"] = found
            total = total + weights.ibot * found
        return total, parts

    def _held(self) -> list[int]:
        """Images of each process that trains this student."""
        world = self.parallel.world
        return [len(share(self.recipe.batch, number, world)) for number in range(world)]

    def _koleo(self, cls: Tensor, held: Sequence[int] | None, images: float) -> Tensor:
        group = self.recipe.losses.koleo_group
        processes = self.parallel.group
        return sum(
            (koleo_loss(crop, group, counts=held, images=images, group=processes) for crop in cls.chunk(2)),
            start=cls.new_zeros((), dtype=torch.float32),
        )

    def _spread_gradients(
        self, views: Sequence[Views], targets: Sequence[Targets], draws: Sequence[StepDraws], autocast: torch.autocast
    ) -> tuple[Tensor, list[Tensor]] | None:
        """KoLeo of a batch in parts whose groups reach over several: its value, and its gradient at each part's CLS.

        None where every group lies within a part. Costs one more forward pass over the global crops: draws depend on
        places alone, so the second pass gives the same features.
        """
        recipe, held = self.recipe, self._held()
        sizes = {len(share(count, number, recipe.accumulate)) for count in held for number in range(recipe.accumulate)}
        if not recipe.losses.koleo or all(size % recipe.losses.koleo_group == 0 for size in sizes):
            return None
        with torch.no_grad(), autocast:
            seen = [
                self.module([part.global_crops(self.scale)], [wanted.masks], None, drawn).features[0]["cls"]
                for part, wanted, drawn in zip(views, targets, draws, strict=True)
            ]
        whole = torch.cat([cls.unflatten(0, (2, -1)) for cls in seen], dim=1).float().requires_grad_()
        value = self._koleo(whole.flatten(0, 1), held, recipe.batch / len(held))
        (gradient,) = torch.autograd.grad(recipe.losses.koleo * value, whole)
        return value.detach(), [part.flatten(0, 1) for part in gradient.tensor_split(len(views), dim=1)]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters, in a fixed order."""
        for part in self.parts.values():
            yield from part.parameters()

    def clip(self) -> dict[str, Tensor]:
        """Clip the gradients of each part; their norms before."""
        settings = self.recipe.optimiser
        return {
            name: clip_gradients(part.parameters(), settings.clip, each=settings.clip_each == "tensor")
            for name, part in self.parts.items()
        }

    def update(self, step: int, rate_factor: float) -> None:
        """One optimiser step and one step of the average, with the schedules' values at ``step``."""
        recipe, settings = self.recipe, self.recipe.optimiser
        set_schedules(
            self.optimiser,
            settings.learning_rate.at(step, recipe.steps) * rate_factor * self.rate,
            settings.weight_decay.at(step, recipe.steps),
            freeze_prototypes=step < settings.freeze_prototypes_steps,
            backbone=backbone_factor(recipe, step),
            patch_embedding=recipe.warm_start is not None and recipe.warm_start.train_patch_embedding,
        )
        self.optimiser.step()
        move_average(self.average, self.network, recipe.teacher.momentum.at(step, recipe.steps))

    def forget_gradients(self) -> None:
        """Drop all gradients."""
        self.optimiser.zero_grad(set_to_none=True)

    def whole_average(self) -> Network:
        """The average as one ordinary network with merged low-rank updates.

        Every process calls it; the result is of use on the first.
        """
        return self.parallel.whole(self.average, self.spec)

    def state(self) -> dict[str, object]:
        """Everything a checkpoint keeps of this learner, as its own tensors."""
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        return {
            "student": module_state(self.network),
            "average": module_state(self.average),
            "optimiser": optimiser_state(self.optimiser, names),
        }


def backbone_factor(recipe: Recipe, step: int) -> float:
    """Factor on the backbone's learning rate and weight decay: below 1 in the first steps of a warm start."""
    start = recipe.warm_start
    if start is None or step >= start.freeze_steps + start.ramp_steps:
        return 1.0
    return max(step - start.freeze_steps, 0) / max(start.ramp_steps, 1)


def _rest(backbone: Backbone, recipe: Recipe) -> None:
    """Take the gradient from the parameters that a warm start lets rest for good."""
    start = recipe.warm_start
    if start is None:
        return
    blocks = len(getattr(backbone, "blocks", ()))
    learning = tuple(f"blocks.{number}." for number in range(blocks - start.last_blocks, blocks))
    for name, parameter in backbone.named_parameters():
        low_rank = ".parametrizations.weight.0." in name
        embedding = "patch_embed" in name and start.train_patch_embedding
        if start.lora_rank:
            parameter.requires_grad_(low_rank or embedding)
        elif start.last_blocks:
            parameter.requires_grad_(name.startswith((*learning, "norm.")) or embedding)
