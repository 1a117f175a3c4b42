"""Every protocol on one network after another, over the same images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from components.evaluation.config import EvaluationConfig
from foundry.images import Preprocessing, decode_image
from training.data.evaluation_set import EvaluationSet
from training.data.shards import ShardDataset
from training.probes.features import Backbone
from training.probes.material import IMAGES, Material
from training.probes.measures import MEASURES, Measure
from training.probes.outcome import Items, Outcome
from training.probes.passes import BaselinePasses, NetworkPasses, Passes, PixelStore, Request, patch_size
from training.probes.protocols.base import Protocol, run
from training.probes.protocols.registry import make

__all__ = ["MEASURES", "Examination", "Examiner", "Measure", "Measures", "material_of"]

LONGEST_SIDE = 640
"""Pixels of an unlabelled image's shorter side that are kept in memory."""

Measures = dict[str, float]
"""Name of a measure -> value; names are those of :data:`MEASURES`."""


@dataclass
class Examination:
    """What was found out about one network (or about raw pixels, or colours)."""

    measures: Measures
    items: dict[str, Items] = field(default_factory=dict)
    """The parts of measures image by image."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further figures, for metrics.json."""
    shown: dict[str, Any] = field(default_factory=dict)
    """Predictions for pictures, and ``per_class``: the k-NN recall of each class."""
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)
    """``train`` and ``test`` (N, D) of the first labelled set, else ``images`` (N, D)."""
    forwards: int = 0
    """Images that went through the network."""

    @property
    def per_class(self) -> dict[str, float]:
        """k-NN recall of each class of the first labelled set."""
        found: dict[str, float] = self.shown.get("per_class", {})
        return found


def material_of(config: EvaluationConfig, dataset: ShardDataset, sets: Mapping[str, EvaluationSet]) -> Material:
    """The labelled ``sets`` and some images of the curated dataset, the shorter side at most :data:`LONGEST_SIDE`."""
    count = min(config.unlabelled_images, len(dataset))
    images = [_bounded(decode_image(dataset.read(index * len(dataset) // count))) for index in range(count)]
    return Material(config, images, sets)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bounded(image: np.ndarray) -> np.ndarray:
    scale = LONGEST_SIDE / min(image.shape[:2])
    if scale >= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


class Examiner:
    """Measures networks on one :class:`Material`. Preprocessed pixels are kept from one network to the next as long as
    both want the same preprocessing."""

    def __init__(self, config: EvaluationConfig, material: Material, device: str) -> None:
        self.material, self._device, self._config = material, device, config
        self._pixels = PixelStore(material.lists)

    def examine(self, model: Backbone, preprocessing: Preprocessing) -> Examination:
        """Every protocol that the material allows, on one network."""
        protocols = self._protocols(preprocessing.crop)
        passes = NetworkPasses(
            model,
            preprocessing,
            self.material.lists,
            [*self._embedded(), *(request for protocol in protocols for request in protocol.requests())],
            pixels=self._pixels,
            batch=self._config.batch,
            device=self._device,
            workers=(self._config.workers or _cores()) if self._device == "cpu" else 1,
        )
        found = self._measured(protocols, passes)
        found.forwards = passes.forwards.total()
        return found

    def examine_baseline(self, name: str, preprocessing: Preprocessing, patch: int) -> Examination:
        """The same protocols on ``raw pixels`` or ``colour histogram``; dense ones in as many cells as a network that
        takes such pixels in patches of ``patch`` has patches."""
        protocols = self._protocols(preprocessing.crop)
        requests = [*self._embedded(), *(request for protocol in protocols for request in protocol.requests())]
        passes = BaselinePasses(name, self.material.lists, requests, crop=preprocessing.crop, patch=patch)
        return self._measured(protocols, passes)

    def _protocols(self, crop: int) -> list[Protocol]:
        self.material.views(crop)
        return make(self._config.protocols, self.material)

    def _embedded(self) -> tuple[Request, ...]:
        """What pictures of nearest neighbours are drawn from."""
        if self.material.classification:
            task = self.material.classification[0]
            return Request(task.train.images), Request(task.test.images)
        return (Request(IMAGES),)

    def _measured(self, protocols: list[Protocol], passes: Passes) -> Examination:
        found: Outcome = run(protocols, passes)
        embedded = self._embedded()
        names = ("train", "test") if len(embedded) == 2 else ("images",)
        vectors = {name: passes.features(request.images).cls for name, request in zip(names, embedded, strict=True)}
        return Examination(found.measures, found.items, found.details, found.shown, vectors)


def patch_of(model: Any) -> int:
    """Side of a network's patches in pixels."""
    return patch_size(model)
