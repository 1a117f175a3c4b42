"""Settings of evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from foundry.settings import Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class GateSettings(Settings):
    """What a network must reach. Accuracies and recalls are fractions."""

    knn_margin: Share = 0.0
    """k-NN top-1 must exceed random weights, raw pixels and the colour histogram by more than this."""
    miou_margin: Share = 0.0
    """The same for mIoU against random weights, where only masks are given."""
    champion_tolerance: Share = 0.02
    """How far the headline measure may lie below the champion's."""
    retrieval_margin: Share = 0.0
    """Without labels: retrieval of augmented copies must exceed random weights by more than this."""
    rank_bound: Annotated[float, Field(ge=0.0)] = 8.0
    """Without labels: smallest feature rank (1 is full collapse)."""
    coherence_margin: Share = 0.0
    """Without labels: patch coherence must exceed random weights by more than this."""


class EvaluationConfig(Settings):
    """Section ``evaluation`` of params.yaml."""

    neighbours: Annotated[int, Field(ge=1)] = 10
    """k of the headline k-NN accuracy."""
    further_neighbours: tuple[Annotated[int, Field(ge=1)], ...] = (1, 20)
    """Further k, in metrics.json only."""
    linear_steps: Annotated[int, Field(ge=1)] = 400
    """SGD steps of the linear probe."""
    segmentation_steps: Annotated[int, Field(ge=1)] = 200
    """AdamW steps of the segmentation probe."""
    segmentation_size: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of the images of the segmentation probe; 0: what each network takes (see docs/evaluation.md)."""
    train_limit: Annotated[int, Field(ge=0)] = 20_000
    """Labelled train images used at most, spread evenly over the table; 0: all."""
    test_limit: Annotated[int, Field(ge=0)] = 10_000
    """Labelled test images used at most; 0: all."""
    mask_limit: Annotated[int, Field(ge=0)] = 1_000
    """Images with masks used at most, of each split; 0: all."""
    unlabelled_images: Annotated[int, Field(ge=16)] = 160
    """Images of the curated dataset for the label-free measures."""
    batch: Annotated[int, Field(ge=1)] = 64
    """Images a forward pass."""
    seed: int = 0
    """Of the probes' initial weights and orders, and of the augmented copies."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; the probes themselves run on the CPU."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Batches computed at once on a CPU, each on one core (0: as many as there are cores). Never changes a figure."""
    pictures: Annotated[int, Field(ge=1, le=16)] = 6
    """Images in the PCA, segmentation and nearest-neighbour pictures."""
    gates: GateSettings = GateSettings()
