"""Teachers: what turns a batch into the targets that students learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from training.engine.checkpoint import module_state
from training.engine.division import Exchange
from training.engine.learner import Network, Targets
from training.engine.optimiser import move_average
from training.engine.views import Views
from training.objectives.gram import resize_patch_map
from training.objectives.matching import whitened
from training.objectives.targets import SoftmaxCentering, sinkhorn_knopp
from training.recipe import Recipe


class Teacher:
    """Makes targets with ``network``: an average that moves (self-distillation) or a frozen teacher (distillation).

    ``hides``: whether the student's view of the masked patches is hidden from it (iBOT) or not (distillation).
    ``group``: the processes that make targets of one batch together (default: all).
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        hides: bool,
        gram: Network | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.network, self.recipe, self.hides, self.gram, self.group = network, recipe, hides, gram, group
        self.centres: dict[str, SoftmaxCentering] = {}
        if recipe.teacher.centring == "softmax":
            device = next(network.parameters()).device
            for kind, head in (("dino", recipe.heads.dino), ("ibot", recipe.heads.of_patches())):
                centre = SoftmaxCentering(head.prototypes, recipe.teacher.centre_momentum, group)
                self.centres[kind] = centre.to(device)
        self._seen: dict[str, Tensor] = {}

    @torch.no_grad()
    def targets(self, views: Sequence[Views], step: int) -> list[Targets]:
        """Targets for each part of the batch at ``step``, from one pass over its global crops, unmasked.

        Assignments are made over all parts of all processes together.
        """
        patchwise = bool(self.recipe.losses.ibot)
        outputs = [
            self.network([part.global_crops()], None, part.batch.masked if patchwise else None) for part in views
        ]
        targets = self._assigned(
            views,
            torch.cat([output.cls for output in outputs]),
            torch.cat([output.patches for output in outputs if output.patches is not None]) if patchwise else None,
            step,
        )
        if self.gram is not None:
            for part, output, found in zip(views, outputs, targets, strict=True):
                found.gram = self._gram_features(part, output.features[0]["patches"].shape[1])
        return targets

    @torch.no_grad()
    def divided_targets(
        self, held: Sequence[Views], views: Sequence[Views], exchange: Exchange, step: int
    ) -> list[Targets]:
        """Targets for each part of ``views``, the images that this process learns from, after one pass over the parts
        of ``held``, those that it has. What travels is the bottleneck."""
        patchwise = bool(self.recipe.losses.ibot)
        outputs = [
            self.network([part.global_crops()], None, part.batch.masked if patchwise else None, only="bottleneck")
            for part in held
        ]
        cls = exchange.crops(_crop_major([output.cls for output in outputs]))
        cls = _in_parts(cls, [len(part.batch.global_) // 2 for part in views])
        patches = None
        if patchwise:
            own, wanted = (_masks_of(each) for each in (held, views))
            found = [output.patches for output in outputs if output.patches is not None]
            patches = exchange.patches(_patches_crop_major(found, held), own, wanted)
            patches = self.network.ibot_head(_patches_in_parts(patches, views), only="prototypes")
        return self._assigned(views, self.network.dino_head(cls, only="prototypes"), patches, step)

    def _assigned(self, views: Sequence[Views], cls: Tensor, patches: Tensor | None, step: int) -> list[Targets]:
        """Targets for each part of ``views`` from its scores, part after part."""
        temperature = self.recipe.teacher.temperature.at(step, self.recipe.steps)
        of_images = self._assign("dino", cls, temperature)
        of_patches = [of_images[:0]] * len(views)
        if patches is not None:
            assigned = self._assign("ibot", patches, temperature)
            of_patches = list(assigned.split([len(part.batch.masked) for part in views]))
        split = of_images.split([len(part.batch.global_) for part in views])
        return [
            Targets(
                images.unflatten(0, (2, -1)),
                masked,
                part.batch.masked,
                part.batch.mask_weights,
                part.batch.masks if self.hides and patches is not None else None,
            )
            for part, images, masked in zip(views, split, of_patches, strict=True)
        ]

    def _assign(self, kind: str, scores: Tensor, temperature: float) -> Tensor:
        if self.recipe.heads.matching == "features":
            return whitened(scores)
        if self.centres:
            self._seen[kind] = scores
            return self.centres[kind](scores, temperature)
        return sinkhorn_knopp(scores, temperature, iterations=self.recipe.teacher.iterations, group=self.group)

    def move_centres(self) -> None:
        """Move the running centres towards the scores of this step; called after a step that was applied."""
        for kind, scores in self._seen.items():
            self.centres[kind].update(scores)
        self._seen = {}

    def refresh_gram(self, done: int) -> bool:
        """Make the Gram teacher a copy of the teacher where that is due after ``done`` steps; whether it was."""
        settings = self.recipe.teacher
        every, times = settings.gram_refresh_every, settings.gram_refreshes
        if self.gram is None or not every or done % every or done // every > times:
            return False
        move_average(self.gram.backbone, self.network.backbone, momentum=0.0)
        return True

    def state(self) -> dict[str, object]:
        """The running centres, and a Gram teacher that changes, for a checkpoint."""
        state: dict[str, object] = {kind: centre.center for kind, centre in self.centres.items()}
        if self.gram is not None and self.recipe.teacher.gram_refresh_every:
            state["gram"] = module_state(self.gram.backbone)
        return state

    def _gram_features(self, views: Views, patches: int) -> Tensor | None:
        if self.gram is None:
            return None
        features = self.gram.backbone.forward_crops([views.gram_crops()])[0]["patches"]
        grid, target = round(features.shape[1] ** 0.5), round(patches**0.5)
        return resize_patch_map(features, (grid, grid), (target, target))


def _crop_major(parts: Sequence[Tensor]) -> Tensor:
    """(2 * b, ...) of consecutive images as one (2 * B, ...): first crops of all, then second ones."""
    return torch.cat([part.unflatten(0, (2, -1)) for part in parts], dim=1).flatten(0, 1)


def _in_parts(rows: Tensor, images: Sequence[int]) -> Tensor:
    """The inverse of :func:`_crop_major`, part after part, of so many images each."""
    return torch.cat([part.flatten(0, 1) for part in rows.unflatten(0, (2, -1)).split(list(images), dim=1)])


def _masks_of(views: Sequence[Views]) -> Tensor:
    return _crop_major([part.batch.masks for part in views])


def _of_crops(views: Sequence[Views]) -> list[list[int]]:
    """Masked patches of the first and of the second crops of each part."""
    counts = [part.batch.masks.sum(dim=1).unflatten(0, (2, -1)).sum(dim=1) for part in views]
    return [count.tolist() for count in counts]


def _patches_crop_major(patches: Sequence[Tensor], views: Sequence[Views]) -> Tensor:
    """Rows of the masked patches of each part as rows of all first crops, then of all second ones."""
    split = [rows.split(counts) for rows, counts in zip(patches, _of_crops(views), strict=True)]
    return torch.cat([rows[crop] for crop in range(2) for rows in split])


def _patches_in_parts(patches: Tensor, views: Sequence[Views]) -> Tensor:
    """The inverse of :func:`_patches_crop_major`, part after part."""
    counts = _of_crops(views)
    pieces = patches.split([count[crop] for crop in range(2) for count in counts])
    return torch.cat([pieces[crop * len(views) + part] for part in range(len(views)) for crop in range(2)])
