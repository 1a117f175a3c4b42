"""Settings of the protocols."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from foundry.settings import Settings

Count = Annotated[int, Field(ge=1)]
UpTo = Annotated[int, Field(ge=0)]
"""A limit; 0: none."""


ProtocolName = Literal[
    "knn",
    "linear",
    "logistic",
    "few_shot",
    "segmentation",
    "depth",
    "retrieval",
    "tracking",
    "discovery",
    "correspondence",
    "robustness",
    "copies",
    "health",
    "warps",
    "planted",
]
"""What :data:`training.probes.protocols.registry.MAKERS` makes."""


class FewShotOptions(Settings):
    """Of few-shot classification."""

    shots: tuple[Count, ...] = (1, 5)
    """Labelled images a class; the last number is the table's."""
    tries: Count = 5
    """Draws of those images; figures are means over them."""


class DepthOptions(Settings):
    """Of the depth probe, in metres."""

    nearest: Annotated[float, Field(gt=0.0)] = 0.001
    """Depth of the first bin's edge."""
    farthest: Annotated[float, Field(gt=0.0)] = 10.0
    """Depth of the last bin's edge."""
    steps: Count = 300
    """AdamW steps."""


class TrackingOptions(Settings):
    """Of label propagation."""

    grid: Count = 30
    """Shorter side of a frame in patches (30: 480 pixels of patches of 16)."""
    context: Count = 7
    """Earlier frames that a frame takes labels from, beside the first."""
    radius: Count = 12
    """Half the side, in patches, of the neighbourhood that it takes them from."""
    neighbours: Count = 5
    """Patches that each patch takes its label from."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.1
    """Of the softmax over their similarities."""


class RobustnessOptions(Settings):
    """Of classification under corruptions."""

    images: UpTo = 200
    """Test images used at most, spread evenly; 0: all."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 3, 5)
    """Strengths of the corruptions, of 5."""


class ProbeOptions(Settings):
    """What protocols are told."""

    protocols: tuple[ProtocolName, ...] = (
        "knn",
        "linear",
        "segmentation",
        "depth",
        "retrieval",
        "tracking",
        "discovery",
        "correspondence",
        "copies",
        "health",
    )
    """Protocols that run where their data is there (docs/evaluation.md). There are also logistic, few_shot, robustness,
    warps and planted, which take longer or need no labels."""
    neighbours: Count = 10
    """k of the headline k-NN accuracy."""
    further_neighbours: tuple[Count, ...] = (1, 20)
    """Further k, in metrics.json only."""
    linear_steps: Count = 400
    """SGD steps of the linear probe."""
    linear_layers: Count = 4
    """The linear probe may take the embeddings of so many last layers, or of the last alone."""
    few_shot: FewShotOptions = FewShotOptions()
    segmentation_steps: Count = 200
    """AdamW steps of the segmentation probe."""
    segmentation_size: UpTo = 0
    """Side in pixels of the images of the dense probes; 0: as dense_grid says."""
    dense_grid: UpTo = 0
    """The same in patches of each network (the papers' tables: 32); 0: the side that each network takes."""
    depth: DepthOptions = DepthOptions()
    tracking: TrackingOptions = TrackingOptions()
    discovery_grid: Count = 28
    """Shorter side, in patches, of the images that objects are looked for in."""
    correspondence_grid: Count = 28
    """Shorter side, in patches, of the images that points are matched in."""
    robustness: RobustnessOptions = RobustnessOptions()
    train_limit: UpTo = 20_000
    """Labelled train images used at most, spread evenly over the table; 0: all."""
    test_limit: UpTo = 10_000
    """Labelled test images used at most; 0: all."""
    mask_limit: UpTo = 1_000
    """Images with masks (or depths) used at most, of each split; 0: all."""
    unlabelled_images: Annotated[int, Field(ge=16)] = 160
    """Images of the curated dataset for the label-free measures."""
    batch: Count = 64
    """Images a forward pass."""
    seed: int = 0
    """Of the probes' initial weights and orders, and of the augmented copies."""
    pictures: Annotated[int, Field(ge=1, le=16)] = 6
    """Images in the pictures of the report."""
