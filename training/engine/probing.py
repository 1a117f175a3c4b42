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
from training.probes.features import Pixels, squash
from training.probes.knn import KnnProbe
from training.probes.label_free import Views, label_free_measures, make_views
from training.probes.segmentation import SegmentationProbe
from training.recipe import Recipe

LIMIT = 2000
"""Labelled images of each split at most, evenly spread, so that the check stays short."""
MASKED, MASK_STEPS = 100, 100
"""Images with masks of each split at most, and steps of the head that is fitted to them."""


class Probing:
    """``probing(backbone, side)``: measures by name. The process that ``probes`` computes, the others wait.

    ``knn_top1`` of 10-NN and ``segmentation_miou`` of a linear head where ``evaluation`` names a set with labels or
    masks; ``patch_coherence`` and ``copy_retrieval`` on images of the dataset itself, without labels.
    """

    def __init__(
        self, recipe: Recipe, images: Images, evaluation: str | None, device: torch.device, probes: bool
    ) -> None:
        self._recipe, self._images, self._device, self._probing = recipe, images, device, probes
        self._evaluation = EvaluationSet.open(evaluation) if evaluation and probes else None
        self._probes: dict[int, KnnProbe] = {}
        self._scenes: dict[int, SegmentationProbe] = {}
        self._views: dict[int, Views | None] = {}

    def __call__(self, backbone: Backbone, side: int) -> dict[str, float]:
        """Measures of ``backbone`` on images of ``side`` pixels; empty on all other processes."""
        found: dict[str, float] = {}
        if self._probing:
            threads = torch.get_num_threads()
            torch.set_num_threads(os.cpu_count() or threads)
            try:
                found = {
                    **self._labelled(backbone, side),
                    **self._masked(backbone, side),
                    **self._label_free(backbone, side),
                }
            finally:
                torch.set_num_threads(threads)
        barrier()
        return found

    def _preprocessing(self, side: int) -> Preprocessing:
        crops = self._recipe.crops
        return Preprocessing(resize=side, crop=side, mean=crops.mean, std=crops.std)

    def _labelled(self, backbone: Backbone, side: int) -> dict[str, float]:
        if self._evaluation is None or not self._evaluation.has_labels:
            return {}
        if side not in self._probes:
            self._probes[side] = KnnProbe(
                self._evaluation, self._preprocessing(side), k=10, device=str(self._device), limit=LIMIT
            )
        return {"knn_top1": self._probes[side](backbone)["knn_top1"]}

    def _masked(self, backbone: Backbone, side: int) -> dict[str, float]:
        if self._evaluation is None or not self._evaluation.has_masks:
            return {}
        if side not in self._scenes:
            self._scenes[side] = SegmentationProbe(
                self._evaluation,
                squash(self._preprocessing(side)),
                steps=MASK_STEPS,
                limit=MASKED,
                device=str(self._device),
            )
        return {"segmentation_miou": self._scenes[side](backbone)}

    def _label_free(self, backbone: Backbone, side: int) -> dict[str, float]:
        if side not in self._views:
            images = self._some_images()
            self._views[side] = make_views(images, side, self._recipe.seed) if len(images) > 1 else None
        views = self._views[side]
        if views is None:
            return {}
        preprocessing = self._preprocessing(side)
        first, second = (Pixels(len(each), each.__getitem__, preprocessing) for each in (views.first, views.second))
        measures = label_free_measures(backbone, first, second, views.to_second, device=str(self._device))
        return {name: measures[name] for name in ("patch_coherence", "copy_retrieval")}

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
