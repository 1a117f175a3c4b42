"""k-NN of the averaged networks on a labelled set, now and then during training."""

from __future__ import annotations

import os

import torch

from foundry.images import Preprocessing
from training.data.evaluation_set import EvaluationSet
from training.distributed import barrier, rank
from training.probes.knn import KnnProbe
from training.recipe import Crops

LIMIT = 2000
"""Images of each split at most, evenly spread, so that the check stays short."""


class PeriodicKnn:
    """``knn(backbone, side, crops) -> top-1`` fraction. The first process computes, the others wait."""

    def __init__(self, url: str, device: torch.device) -> None:
        self._device = device
        self._evaluation = EvaluationSet.open(url) if rank() == 0 else None
        self._probes: dict[int, KnnProbe] = {}

    def __call__(self, backbone: torch.nn.Module, side: int, crops: Crops) -> float:
        """Top-1 of 10-NN on images of ``side`` pixels; NaN without class labels and on other processes."""
        score = float("nan")
        if self._evaluation is not None and self._evaluation.has_labels:
            if side not in self._probes:
                preprocessing = Preprocessing(resize=side, crop=side, mean=crops.mean, std=crops.std)
                self._probes[side] = KnnProbe(
                    self._evaluation, preprocessing, k=10, device=str(self._device), limit=LIMIT
                )
            threads = torch.get_num_threads()
            torch.set_num_threads(os.cpu_count() or threads)
            score = self._probes[side](backbone)["knn_top1"]
            torch.set_num_threads(threads)
        barrier()
        return score
