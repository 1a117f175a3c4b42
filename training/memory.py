"""How much memory a training process needs for what it keeps and for its scores, without training.

Activations of the backbone, which depend on the kernels, are not counted. Sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from foundry.errors import UserError
from training.engine.learner import build_network
from training.models.architectures import architecture
from training.recipe import Recipe

FLOAT = 4
CHUNK = 1 << 24
"""Elements of a temporary of the cross-entropy (:mod:`training.objectives.cross_entropy`)."""


@dataclass(frozen=True)
class Memory:
    """Of one process."""

    student: int
    """Parameters, float32."""
    gradients: int
    """Of the parameters that learn, float32."""
    optimiser: int
    """Both moments of AdamW, float32."""
    average: int
    """The exponential average of the student."""
    teachers: int
    """Frozen teachers beside it: the Gram teacher, or the teacher of a distillation."""
    scores: int
    """What is as wide as the prototypes, at its peak: targets, the student's scores, one gradient, temporaries."""

    @property
    def state(self) -> int:
        """All but the scores."""
        return self.student + self.gradients + self.optimiser + self.average + self.teachers


def parameters(recipe: Recipe) -> tuple[int, int]:
    """(parameters of backbone and heads, those of them that learn) of the student of a pretraining or Gram stage.

    Raises :class:`UserError` where the recipe leaves the network to its teacher or its students.
    """
    if recipe.own_model is None:
        raise UserError(f"recipe {recipe.name}: names no model; give one, as model: {{arch: NAME}}")
    network = build_network(architecture(recipe.own_model), recipe.heads, recipe.seed, "meta")
    if not recipe.losses.ibot and not recipe.heads.shared:
        network.ibot_head.requires_grad_(False)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def memory(recipe: Recipe, processes: int = 1, masked: int | None = None) -> Memory:
    """Memory of each of ``processes``. ``masked``: masked patches of its part of a batch; by default their expectation.

    State is divided among the processes under FSDP and whole in each otherwise; a batch is divided, and goes through in
    ``recipe.accumulate`` parts. Source of the state's share: 20 bytes a parameter, Siméoni et al. 2025's set-up.
    """
    total, learning = parameters(recipe)
    share = processes if recipe.parallel == "fsdp" else 1
    return Memory(
        student=FLOAT * total // share,
        gradients=FLOAT * learning // share,
        optimiser=2 * FLOAT * learning // share,
        average=FLOAT * total // share,
        teachers=FLOAT * total // share if recipe.stage == "gram" else 0,
        scores=_scores(recipe, processes, masked),
    )


def _scores(recipe: Recipe, processes: int, masked: int | None) -> int:
    images = recipe.batch / (processes * recipe.accumulate)
    width = FLOAT if recipe.precision == "fp32" else 2
    dino, ibot = recipe.heads.dino.prototypes, recipe.heads.of_patches().prototypes
    if masked is None:
        masked = round(2 * images * recipe.masks.share * sum(recipe.masks.ratio) / 2 * _patches(recipe))
    patches = masked if recipe.losses.ibot else 0
    crops = (2 + recipe.crops.local_count) * images
    targets = FLOAT * (2 * images * dino + patches * ibot) * recipe.accumulate  # of all parts at once
    own = width * (crops * dino + patches * ibot)
    largest = max(patches * ibot, max(2, recipe.crops.local_count) * images * dino)
    temporary = FLOAT * min(largest, CHUNK)
    # the forward pass of the largest cross-entropy has two temporaries, its backward pass one and the gradient
    return round(targets + own + temporary + max(temporary, width * largest))


def _patches(recipe: Recipe) -> int:
    assert recipe.own_model is not None
    return (recipe.crops.global_size // architecture(recipe.own_model).stride) ** 2
