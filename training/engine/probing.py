"""What is measured of the averaged networks now and then during training."""

from __future__ import annotations

import os

import numpy as np
import torch

from foundry.errors import UserError
from foundry.images import Preprocessing, decode_image
from training.data.evaluation_set import EvaluationSet
from training.data.shards import Images
from training.distributed import barrier
from training.models.build import Backbone
from training.probes.material import Material
from training.probes.options import DepthOptions, ProbeOptions
from training.probes.passes import NetworkPasses, PixelStore
from training.probes.protocols.base import run
from training.probes.protocols.registry import make
from training.recipe import Recipe

NAMES = {"miou": "segmentation_miou", "feature_rank": "embedding_rank"}
"""Measures whose curves have another name: ``feature_rank`` is the student's own, of every step."""


class Probing:
    """``probing(backbone, side)``: measures by name. The process that ``probes`` computes, the others wait.

    The protocols of ``cadence.protocols`` on a cheap part of the set at ``evaluation``, where it has what they measure,
    and on images of the dataset itself: ``knn_top1``, ``segmentation_miou``, ``patch_coherence``, ``copy_retrieval``.
    """

    LIMIT = 2000
    """Labelled images of each split at most, evenly spread, so that the check stays short."""
    MASKED, MASK_STEPS = 100, 100
    """Images with masks or depths of each split at most, and steps of the head that is fitted to them."""

    def __init__(
        self, recipe: Recipe, images: Images, evaluation: str | None, device: torch.device, probes: bool
    ) -> None:
        self._recipe, self._images, self._device, self._probing = recipe, images, device, probes
        self._sets = {"evaluation": EvaluationSet.open(evaluation)} if evaluation and probes else {}
        self._material: Material | None = None
        self._pixels: PixelStore | None = None

    def __call__(self, backbone: Backbone, side: int) -> dict[str, float]:
        """Measures of ``backbone`` on images of ``side`` pixels; empty on all other processes."""
        found: dict[str, float] = {}
        if self._probing:
            threads = torch.get_num_threads()
            torch.set_num_threads(os.cpu_count() or threads)
            try:
                found = self._measures(backbone, side)
            finally:
                torch.set_num_threads(threads)
        barrier()
        return found

    def _measures(self, backbone: Backbone, side: int) -> dict[str, float]:
        if self._material is None or self._pixels is None:
            self._material = Material(self._options(), self._some_images(), self._sets)
            self._pixels = PixelStore(self._material.lists)
        crops = self._recipe.crops
        preprocessing = Preprocessing(resize=side, crop=side, mean=crops.mean, std=crops.std)
        self._material.views(side)
        protocols = make(self._recipe.cadence.protocols, self._material)
        passes = NetworkPasses(
            backbone,
            preprocessing,
            self._material.lists,
            [request for protocol in protocols for request in protocol.requests()],
            pixels=self._pixels,
            device=self._device,
        )
        found = run(protocols, passes).measures
        return {NAMES.get(name, name): value for name, value in found.items()}

    def _options(self) -> ProbeOptions:
        return ProbeOptions(
            train_limit=self.LIMIT,
            test_limit=self.LIMIT,
            mask_limit=self.MASKED,
            segmentation_steps=self.MASK_STEPS,
            depth=DepthOptions(steps=self.MASK_STEPS),
            seed=self._recipe.seed,
        )

    def _some_images(self) -> list[np.ndarray]:
        """Readable images of the dataset, evenly spread over it."""
        count = min(self._recipe.cadence.coherence_images, len(self._images))
        found = []
        for number in range(count):
            try:
                found.append(decode_image(self._images.read(number * len(self._images) // count)))
            except UserError:
                continue
        return found
