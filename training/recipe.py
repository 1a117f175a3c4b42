"""What a training run is: one typed, frozen object, read from ``training/recipes/`` or any YAML file.

A stage (pretraining, Gram anchoring, distillation) is data: the teachers, crops, loss weights and schedules below.
Every schedule counts optimiser steps. Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from foundry.errors import UserError
from foundry.settings import Settings, load_settings, merge, read_yaml
from training.probes.options import ProtocolName

RECIPES = Path(__file__).resolve().parent / "recipes"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Description = Annotated[dict[str, Any], AfterValidator(lambda given: dict(sorted(given.items())))]
"""A mapping whose order says nothing: what wrote it (YAML, JSON, a protocol buffer) never shows in a run folder."""


TRAINING_ONLY = ("drop_path", "rope_rescale", "rope_jitter", "rope_shift", "rope_jitter_scope")
"""Settings of an architecture that matter in training only, and that a later stage may change."""


class Schedule(Settings):
    """A value over optimiser steps: a rise (or fall) from ``start`` to ``peak``, then the shape from there to ``end``.

    At step t (0-based): t < warmup_steps: start + (peak - start) * t / warmup_steps, or half a cosine in its place;
    after it the chosen shape from ``peak`` to ``end`` over the remaining steps of the run.
    """

    peak: float
    """Value after the warm-up."""
    start: float | None = None
    """Value at step 0 of the warm-up; the peak where not given."""
    end: float | None = None
    """Value at the last step; the peak where not given."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of the warm-up."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the warm-up."""
    shape: Literal["constant", "cosine", "linear"] = "constant"
    """Shape from peak to end."""

    def at(self, step: int, steps: int) -> float:
        """The value at 0-based ``step`` of a run of ``steps`` steps."""

        start = self.peak if self.start is None else self.start
        end = self.peak if self.end is None else self.end
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            if self.warmup_shape == "cosine":
                share = 0.5 * (1.0 - math.cos(math.pi * share))
            return start + (self.peak - start) * share
        if self.shape == "constant":
            return self.peak
        done = min(max((step - self.warmup_steps) / max(steps - 1 - self.warmup_steps, 1), 0.0), 1.0)
        if self.shape == "linear":
            return self.peak + (end - self.peak) * done
        return end + (self.peak - end) * 0.5 * (1.0 + math.cos(math.pi * done))


def value_at(setting: float | Schedule, step: int, steps: int) -> float:
    """The value of a setting that is a number or a :class:`Schedule`, at 0-based ``step`` of ``steps``."""
    return setting.at(step, steps) if isinstance(setting, Schedule) else setting


class CropSizes(Settings):
    """One combination of crop sizes; a whole step uses one of them."""

    global_size: Count
    local_size: Count
    gram_size: Annotated[int, Field(ge=0)] = 0
    probability: Positive
    """Of being drawn, relative to the others'."""


class Crops(Settings):
    """Multi-crop views (Caron et al. 2021; Oquab et al. 2023, appendix B)."""

    global_size: Count = 224
    """Side of a global crop in pixels, as the teacher sees it."""
    global_scale: tuple[Fraction, Fraction] = (0.32, 1.0)
    """Area of a global crop as a share of the image."""
    local_size: Count = 96
    """Side of a local crop in pixels."""
    local_scale: tuple[Fraction, Fraction] = (0.05, 0.32)
    """Area of a local crop as a share of the image."""
    local_count: Annotated[int, Field(ge=0)] = 8
    """Local crops an image."""
    aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of width / height of the cropped area."""
    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    """For images without an upright, as from satellites and microscopes."""
    colour_jitter: Fraction = 0.8
    """Probability of brightness/contrast/saturation/hue jitter."""
    jitter_strength: tuple[Fraction, Fraction, Fraction, Annotated[float, Field(ge=0.0, le=0.5)]] = (0.4, 0.4, 0.2, 0.1)
    """Of brightness, contrast, saturation and hue."""
    greyscale: Fraction = 0.2
    blur: tuple[Fraction, Fraction, Fraction] = (0.0, 0.9, 0.5)
    """Probability of Gaussian blur for global crop 1, global crop 2 and local crops. The default is what the released
    DINOv2/DINOv3 code does in effect; the papers intend (1.0, 0.1, 0.5)."""
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels of the crop (kernel 9)."""
    solarise: Fraction = 0.2
    """Probability of solarisation of global crop 2 (threshold 128)."""
    gram_size: Annotated[int, Field(ge=0)] = 0
    """Side of the undistorted global crops that the Gram teacher sees; 0 where there is no Gram teacher."""
    made_at: Annotated[int, Field(ge=0)] = 0
    """Times their size at which crops are made, to be reduced for networks that need no more. 0: what the student with
    the largest stride needs; a student trained without that one sees the same pixels if this is set."""
    mixture: tuple[CropSizes, ...] = ()
    """Sizes of which each step draws one combination, in place of the three sizes above (high-resolution stage)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)

    def sizes(self) -> tuple[CropSizes, ...]:
        """Every combination of sizes that a step may have."""
        own = CropSizes(
            global_size=self.global_size, local_size=self.local_size, gram_size=self.gram_size, probability=1.0
        )
        return self.mixture or (own,)


class Masks(Settings):
    """Block masks of the iBOT objective (Zhou et al. 2022; dino-style stratified ratios)."""

    style: Literal["dinov3", "dinov2"] = "dinov3"
    """dinov3: ratios are the upper edges of their strata, and every mask has exactly its count. dinov2: ratios are
    drawn inside the strata, and a mask to which no block fits any more stays smaller."""

    share: Fraction = 0.5
    """Share of the global crops that are masked."""
    ratio: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Smallest and largest masked share of a masked crop's patches."""


class Head(Settings):
    """Projection head: three-layer MLP, L2-normalised bottleneck, linear prototypes."""

    prototypes: Count = 65536
    hidden: Count = 2048
    bottleneck: Count = 256
    layers: Count = 3
    """Linear layers before the prototypes."""
    weight_norm: bool = False
    """Prototypes of unit norm with a learned gain (DINO, DINOv2) instead of a plain linear layer (DINOv3). Scores then
    lie in [-1, 1] from the start, which short runs need."""
    trainable_gain: bool = True
    """Whether that gain learns; DINO keeps it at 1 (``norm_last_layer``), DINOv2 does not."""
    init: Literal["published", "fan_in"] = "published"
    """Standard deviation of the MLP's first weights: 0.02 as published, or, for a narrow one, 1 / sqrt(inputs)."""


class Heads(Settings):
    """The projection heads of the image-level and the patch-level objective."""

    dino: Head = Head()
    ibot: Head = Head()
    shared: bool = False
    """One head, ``dino``, for both objectives (DINOv2's short recipe)."""
    matching: Literal["scores", "features"] = "scores"
    """What students of a distillation learn. scores: the teacher's answers to prototypes. features: its features of the
    same crops themselves, through a linear map in place of each head (training/objectives/matching.py); then
    ``losses.dino`` weighs those of images and ``losses.ibot`` those of the patches that ``masks`` choose. The teacher
    needs no heads."""
    width: Annotated[int, Field(ge=0)] = 0
    """Of the teacher's features, where these are matched; 0: taken from the teacher."""

    def of_patches(self) -> Head:
        """The head that patches go through."""
        return self.dino if self.shared else self.ibot


class Losses(Settings):
    """Weights of the objectives (Siméoni et al. 2025, equations 1 and 3)."""

    dino: float = 1.0
    dino_local: float | Schedule = 1.0
    """Weight of the local-crop part inside the DINO term; a number or a schedule."""
    dino_same_crop: bool = False
    """Whether a student's global crop also learns the teacher's answer to the same crop. Only when distilling: in
    self-distillation it would be trivial."""
    ibot: float = 1.0
    koleo: float = 0.1
    """Weight of KoLeo for each global crop."""
    koleo_group: Count = 16
    """Neighbours are searched among this many consecutive samples of the global batch."""
    gram: float | Schedule = 0.0
    """Weight of Gram anchoring; a number or a schedule."""
    gram_negatives: Literal["keep", "remove", "remove_teacher"] = "keep"
    """Similarities below zero in the Gram matrices: kept, set to zero in both, or in the teacher's (and the student's
    where both are negative)."""


class Optimiser(Settings):
    """AdamW and its schedules."""

    learning_rate: Schedule = Schedule(peak=1e-3, start=0.0, end=1e-6, shape="cosine")
    """For ``reference_batch``; another batch is scaled by ``batch_rule``."""
    reference_batch: Count = 1024
    """The batch that the learning rate was written for."""
    batch_rule: Literal["sqrt", "linear"] = "sqrt"
    """How the learning rate grows with the batch: its square root (DINOv2, DINOv3) or the batch itself (DINO)."""
    weight_decay: Schedule = Schedule(peak=0.04)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    decay_tokens: bool = True
    """Whether CLS, register and mask tokens and learned positions decay like weights, as in the released code."""
    clip: Positive = 3.0
    """Largest gradient norm."""
    clip_each: Literal["part", "tensor"] = "part"
    """What is clipped by itself: the backbone and each head (DINOv2, DINOv3), or every parameter (DINO)."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Learning-rate factor from a block to the one below it."""
    patch_embedding_rate: Positive = 1.0
    """Extra learning-rate factor of the patch embedding."""
    freeze_prototypes_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which the prototype layers stay as they are."""


class Teacher(Settings):
    """Where targets come from."""

    momentum: Schedule = Schedule(peak=0.994)
    """EMA momentum of the teacher (of each student's released average when distilling)."""
    temperature: Schedule = Schedule(peak=0.07, start=0.04)
    """Sharpening of the targets."""
    centring: Literal["sinkhorn", "softmax"] = "sinkhorn"
    """How targets are balanced over prototypes: Sinkhorn-Knopp over the batch, or softmax with a running centre."""
    centre_momentum: Fraction = 0.9
    """Of that running centre."""
    iterations: Count = 3
    """Sinkhorn-Knopp iterations."""
    head_steps: Count = 1000
    """Distillation from a backbone without heads, as public weights are: steps in which heads are trained on it first,
    while it rests."""
    gram_from: Literal["newest", "auto"] | Count = "newest"
    """State of the pretraining that the Gram teacher is made of. newest: its newest checkpoint, with which the student
    continues. A number: its export after so many steps. auto: its export where dense features were at their best; the
    stage starts when their decay is established, and waits for it where the pretraining still runs
    (training/engine/decay.py has the rule)."""
    gram_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.03
    """auto: share of its peak's height above chance by which dense quality must have fallen."""
    gram_patience: Count = 3
    """auto: measurements in a row that must have."""
    gram_refresh_every: Annotated[int, Field(ge=0)] = 0
    """Steps after which the Gram teacher becomes a copy of the teacher of then; 0: it stays as it came."""
    gram_refreshes: Annotated[int, Field(ge=0)] = 0
    """How often at most."""


class WarmStart(Settings):
    """Continued pretraining from a backbone that comes without heads, in two stages.

    First the new heads learn under a resting backbone, then its learning rate and weight decay rise from zero.
    """

    freeze_steps: Annotated[int, Field(ge=0)] = 1000
    """Steps in which the backbone rests."""
    ramp_steps: Annotated[int, Field(ge=0)] = 1000
    """Steps of the linear rise after them."""
    train_patch_embedding: bool = False
    """Whether the patch embedding learns from the first step (new kinds of pixels)."""
    last_blocks: Annotated[int, Field(ge=0)] = 0
    """Blocks that learn, counted from the last; the earlier ones, embeddings included, rest for good. 0: all learn."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of low-rank updates of the blocks' linear layers, which then learn in place of the backbone's own weights;
    0: none. Exports hold the merged weights."""
    lora_alpha: Positive = 16.0
    """The updates are multiplied by this over the rank."""


class Mix(Settings):
    """How the parts of one dataset fill the steps. Parts are ``balanced``, ``retrieved:NAME`` and ``raw:NAME``."""

    weights: dict[str, Annotated[float, Field(ge=0.0)]] = {}
    """Share of the images of a step that each part gives, relative to the others (part: number). Empty: every part that
    has no steps of its own, by its size."""
    homogeneous: dict[str, Fraction] = {}
    """Share of the steps that hold images of this part only (part: number). The others are drawn by the weights."""

    @model_validator(mode="after")
    def _leaves_steps(self) -> Mix:
        if sum(self.homogeneous.values()) > 1 + 1e-9:
            raise ValueError("the shares of homogeneous steps are more than 1 together")
        if self.weights and not any(self.weights.values()):
            raise ValueError("all weights are 0")
        return self


class Mixed(Settings):
    """One kind of step in a run over several datasets."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the datasets whose images, taken together, fill such a step."""
    share: Positive
    """How often steps are of this kind, relative to the others."""


class Student(Settings):
    """One student of a distillation."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Names the registered and the served model."""
    model: Description
    """Architecture, as ``model`` of the recipe."""
    learning_rate_factor: Positive = 1.0
    """Times the recipe's learning rate."""
    processes: Annotated[int, Field(ge=0)] = 0
    """Processes that train this student alone, while all share the teacher's pass; together as many as the run has. 0,
    for all students: every process trains all of them in turn."""


class Cadence(Settings):
    """What happens every so many steps."""

    log: Count = 10
    checkpoint: Count = 100
    keep_checkpoints: Count = 2
    """Newest checkpoints that stay."""
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Checkpoints at multiples of this many steps stay too; 0: none."""
    evaluate: Annotated[int, Field(ge=0)] = 100
    """An export, its patch coherence, and its k-NN on the labelled set where one is given; 0 only at the end."""
    coherence_images: Annotated[int, Field(ge=0)] = 48
    """Images of the dataset whose patch coherence is measured then; 0: none."""
    protocols: tuple[ProtocolName, ...] = ("knn", "segmentation", "copies")
    """What else is measured then, where its data is there: protocols of the evaluation, on a cheap part of the set."""


class Guards(Settings):
    """When a run protects itself."""

    nonfinite_limit: Count = 10
    """Consecutive steps with a non-finite loss or gradient (each is skipped) after which the run stops."""
    collapse_rank: Positive = 1.5
    """Effective rank of the student's CLS features below which an alarm is recorded."""
    collapse_entropy: Fraction = 0.999
    """Mean entropy of a target over ln K above which targets count as uniform; an alarm after ``grace_steps``."""
    collapse_use: Annotated[float, Field(ge=0.0, le=1.0)] = 0.005
    """Share of prototypes in use (perplexity of the mean target over K) below which an alarm is recorded. A batch of B
    images cannot use more than 2B of K. A perplexity below 1.5, all images having one prototype, always is an alarm."""
    grace_steps: Annotated[int, Field(ge=0)] = 100
    """Steps at the start in which entropy and use raise no alarm: random networks answer alike everywhere."""
    stop_on_collapse: bool = False
    """Whether such an alarm ends the run."""
    small_batch: Count = 16
    """Below this global batch the learning rate is scaled linearly instead of by the square root."""


class Recipe(Settings):
    """A complete training run."""

    name: str
    about: str = ""
    """Hardware, expected time and result."""
    stage: Literal["pretrain", "gram", "distil"]
    """pretrain: EMA teacher. gram: continues a run, with Gram anchoring. distil: students of a frozen teacher."""
    seed: int = 0
    steps: Count
    """Optimiser steps."""
    batch: Annotated[int, Field(ge=2)]
    """Images a step, over all processes."""
    accumulate: Count = 1
    """Parts of a process's share of the batch that are computed one after the other, to save memory. Targets, masks and
    KoLeo are those of the whole batch all the same."""
    mixture: tuple[Mixed, ...] = ()
    """Kinds of steps where the run reads several datasets; empty: one dataset, mixed as ``mix`` says."""
    mix: Mix | None = None
    """How the parts of the dataset fill the steps; as its own dataset.json says where not given."""
    model: Description | None = None
    """Architecture; taken from the teacher's run (stage gram) or the warm start's backbone where not given. Stage gram
    may change what concerns training alone (:data:`TRAINING_ONLY`): ``{rope_rescale: 2.0}``."""
    warm_start: WarmStart | None = None
    """Start from a given backbone instead of random weights (stage pretrain)."""
    students: tuple[Student, ...] = ()
    """Stage distil: the networks trained together from one teacher pass."""
    crops: Crops = Crops()
    masks: Masks = Masks()
    heads: Heads = Heads()
    losses: Losses = Losses()
    optimiser: Optimiser = Optimiser()
    teacher: Teacher = Teacher()
    cadence: Cadence = Cadence()
    guards: Guards = Guards()
    precision: Literal["fp32", "bf16", "bf16-emulated"] = "fp32"
    """Data type of the forward and backward matrix products; master weights and losses stay fp32. bf16: where every
    process has arithmetic for it, otherwise fp32, which is several times faster than emulating it. bf16-emulated: bf16
    everywhere."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds the whole network. fsdp: parameters, gradients, averages and optimiser state are divided
    among the processes (FSDP2). auto: ddp."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that are computed again in the backward pass: none, all but matrix products and attention, or all
    inside each block."""
    compile: bool = False
    """Whether torch.compile works on each block."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes over the whole machine (never changes what is learned)."""
    distort_on: Literal["auto", "loader", "device"] = "auto"
    """Who works on the colours of the crops: the loader's processes, or the device. auto: the device where it is a GPU.
    Both draw the same and agree within a few levels of 255."""
    cache_gib: Annotated[float, Field(ge=0)] = 0.0
    """Local disk for images of datasets that are read over a network; the first ones that fit are kept. 0: none."""
    export_size: Annotated[int, Field(ge=0)] = 0
    """Side of the images that exported models take; 0: the global crop size."""

    @property
    def own_model(self) -> dict[str, Any] | None:
        """``model`` where it describes a whole network, None where that is the teacher's or the warm start's."""
        return self.model if self.model is not None and "arch" in self.model else None

    @model_validator(mode="after")
    def _stage_is_complete(self) -> Recipe:
        from training.models.architectures import check_expressible

        if self.stage == "pretrain" and self.model is None and self.warm_start is None:
            raise ValueError("stage pretrain needs 'model'")
        if self.warm_start is not None and self.stage != "pretrain":
            raise ValueError("warm_start belongs to stage pretrain")
        if self.stage == "distil" and not self.students:
            raise ValueError("stage distil needs at least one entry in 'students'")
        if self.stage != "distil" and self.students:
            raise ValueError(f"'students' belong to stage distil, not to {self.stage}")
        if any(student.processes for student in self.students) and not all(each.processes for each in self.students):
            raise ValueError("students: give each of them processes, or none")
        if any(self.batch < student.processes * self.accumulate for student in self.students):
            raise ValueError(f"batch {self.batch} is too small for the processes of a student")
        if len({student.name for student in self.students}) != len(self.students):
            raise ValueError("two students have the same name")
        if self.heads.matching == "features":
            if self.stage != "distil":
                raise ValueError("heads.matching 'features' belongs to stage distil")
            if self.crops.local_count:
                raise ValueError("heads.matching 'features': a crop matches itself; set crops.local_count to 0")
            if self.heads.shared or self.teacher.centring != "sinkhorn":
                raise ValueError("heads.matching 'features' has no prototypes to share or to centre")
        if self.losses.dino_same_crop and self.stage != "distil":
            raise ValueError("losses.dino_same_crop belongs to stage distil")
        anchored = isinstance(self.losses.gram, Schedule) or self.losses.gram > 0
        if self.stage == "gram" and not (anchored and all(sizes.gram_size for sizes in self.crops.sizes())):
            raise ValueError("stage gram needs losses.gram > 0 and crops.gram_size > 0")
        if self.mixture and self.mix is not None:
            raise ValueError("mix is for the parts of one dataset; with 'mixture' each gives by its own weights")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        if self.batch % self.losses.koleo_group and self.losses.koleo:
            raise ValueError(f"batch {self.batch} is not a multiple of losses.koleo_group {self.losses.koleo_group}")
        if self.stage == "gram" and self.model is not None and self.own_model is None:
            if others := sorted(set(self.model) - set(TRAINING_ONLY)):
                raise ValueError(
                    f"model.{others[0]}: stage gram continues the teacher's network; what concerns training alone may "
                    f"differ: {', '.join(TRAINING_ONLY)}"
                )
        elif self.model is not None:
            check_expressible(self.model)
        for student in self.students:
            check_expressible(student.model)
        return self


def matched_to(recipe: Recipe, width: int) -> Recipe:
    """``recipe`` with the width of a teacher's features where students match these; else as it is.

    Raises :class:`UserError` where the recipe says another.
    """
    heads = recipe.heads
    if heads.matching == "scores" or heads.width == width:
        return recipe
    if heads.width:
        raise UserError(f"heads.width is {heads.width}, and the teacher's features are {width} wide")
    return recipe.model_copy(update={"heads": heads.model_copy(update={"width": width})})


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_file: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name in ``training/recipes`` or in a YAML file, with nested ``overrides`` laid over it.

    Raises :class:`UserError` for an unknown name (naming the nearest), an unknown key or a wrong value.
    """
    import difflib

    text = str(name_or_file)
    path = Path(text)
    if not text.endswith((".yaml", ".yml")):
        path = RECIPES / f"{text}.yaml"
        if not path.is_file():
            near = difflib.get_close_matches(text, recipe_names(), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(recipe_names())}"
            raise UserError(f"recipe '{text}': no such recipe; {hint}")
    values = read_yaml(path)
    source = str(name_or_file) if path.parent == RECIPES else str(path)
    return load_settings(Recipe, merge(values, overrides or {}), f"recipe {source}")


def dump_recipe(recipe: Recipe) -> str:
    """The fully resolved recipe as YAML, loadable by :func:`load_recipe`."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def scaled_learning_rate(optimiser: Optimiser, guards: Guards, batch: int) -> tuple[float, str]:
    """(factor on the learning rate, one sentence why) for a global ``batch``.

    sqrt(batch / reference) as for Adam-like optimisers; below ``guards.small_batch`` the rest of the way is linear,
    since there the square-root rule over-estimates and small runs diverge.
    """
    reference = optimiser.reference_batch
    if batch == reference:
        return 1.0, f"batch {batch} is the one the learning rate was written for"
    if optimiser.batch_rule == "linear":
        return batch / reference, f"learning rate x {batch}/{reference}"
    if batch >= guards.small_batch or reference <= guards.small_batch:
        return (batch / reference) ** 0.5, f"learning rate x sqrt({batch}/{reference})"
    factor = (guards.small_batch / reference) ** 0.5 * (batch / guards.small_batch)
    return factor, (
        f"learning rate x sqrt({guards.small_batch}/{reference}) x {batch}/{guards.small_batch}: "
        f"below batch {guards.small_batch} the rule is linear"
    )
