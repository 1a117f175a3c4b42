"""Every protocol on one network after another, over the same images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from components.evaluation.config import EvaluationConfig
from foundry.images import Preprocessing, decode_image
from training.data.evaluation_set import EvaluationSet, MaskedImage
from training.data.shards import ShardDataset
from training.probes.baselines import BASELINES, patch_baseline
from training.probes.features import Backbone, Features, Pixels, extract, squash
from training.probes.knn import knn
from training.probes.label_free import Views, copy_retrieval, feature_rank, make_views, patch_coherence
from training.probes.linear import linear_probe
from training.probes.segmentation import scaled_mask, segmentation_probe

LONGEST_SIDE = 640
"""Pixels of an unlabelled image's shorter side that are kept in memory."""

Measures = dict[str, float]
"""Name of a measure -> value; names are those of :data:`MEASURES`."""


@dataclass(frozen=True)
class Measure:
    """How one measure is called in the table and in sentences."""

    title: str
    sentence: str
    share: bool = True
    """A fraction, shown in per cent."""
    labelled: bool = True


MEASURES: dict[str, Measure] = {
    "knn_top1": Measure("k-NN top-1", "k-NN top-1"),
    "linear_top1": Measure("Linear top-1", "linear probe top-1"),
    "miou": Measure("Segm. mIoU", "segmentation mIoU"),
    "copy_retrieval": Measure("Copy retrieval", "retrieval of augmented copies", labelled=False),
    "feature_rank": Measure("Feature rank", "feature rank", share=False, labelled=False),
    "patch_coherence": Measure("Patch coherence", "patch coherence", labelled=False),
}
"""The columns of the table, in order."""


@dataclass
class Examination:
    """What was found out about one network (or about raw pixels, or colours)."""

    measures: Measures
    details: dict[str, Any] = field(default_factory=dict)
    """Further figures, for metrics.json."""
    per_class: dict[str, float] = field(default_factory=dict)
    """k-NN recall of each class."""
    segmentations: list[np.ndarray] = field(default_factory=list)
    """(H, W) predicted classes of the first test images with masks."""
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)
    """``train`` and ``test`` (N, D) with labels, else ``images`` (N, D)."""


class Material:
    """The images that every network is shown, decoded once."""

    def __init__(self, config: EvaluationConfig, dataset: ShardDataset, evaluation: EvaluationSet | None) -> None:
        self.config, self.evaluation = config, evaluation
        count = min(config.unlabelled_images, len(dataset))
        self.images = [_bounded(decode_image(dataset.read(index * len(dataset) // count))) for index in range(count)]
        """Images of the dataset, the shorter side at most :data:`LONGEST_SIDE` pixels."""
        self.classes: tuple[str, ...] = ()
        self.names: dict[str, list[str]] = {}
        self.labels: dict[str, np.ndarray] = {}
        if evaluation is not None and evaluation.has_labels:
            self.classes = evaluation.classes
            for split, limit in (("train", config.train_limit), ("test", config.test_limit)):
                rows = _spread(evaluation.classification(split), limit)
                self.names[split] = [row.name for row in rows]
                self.labels[split] = np.array([row.label for row in rows])
        self.scenes: dict[str, list[MaskedImage]] = {}
        self.masks: dict[str, list[np.ndarray]] = {}
        """(H, W) uint8 class indices, scaled (:func:`scaled_mask`)."""
        if evaluation is not None and evaluation.has_masks:
            for split in ("train", "test"):
                self.scenes[split] = _spread(evaluation.segmentation(split), config.mask_limit)
                self.masks[split] = [scaled_mask(evaluation, row) for row in self.scenes[split]]

    def read(self, split: str, index: int) -> np.ndarray:
        """Labelled image ``index`` of ``split``, (H, W, 3) uint8."""
        assert self.evaluation is not None
        return decode_image(self.evaluation.read(self.names[split][index]))

    def read_scene(self, split: str, index: int) -> np.ndarray:
        """Image ``index`` with a mask of ``split``, (H, W, 3) uint8."""
        assert self.evaluation is not None
        return decode_image(self.evaluation.read(self.scenes[split][index].name))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bounded(image: np.ndarray) -> np.ndarray:
    scale = LONGEST_SIDE / min(image.shape[:2])
    if scale >= 1:
        return image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _spread(rows: Sequence[Any], limit: int) -> list[Any]:
    if not limit or len(rows) <= limit:
        return list(rows)
    return [rows[index * len(rows) // limit] for index in range(limit)]


class Examiner:
    """Measures networks on one :class:`Material`. Preprocessed pixels are kept from one network to the next as long as
    both want the same preprocessing."""

    def __init__(self, material: Material, device: str) -> None:
        self.material, self._device = material, device
        self._config = material.config
        self._shown: tuple[Preprocessing, dict[str, Pixels], Views] | None = None

    def _pixels(self, preprocessing: Preprocessing) -> tuple[dict[str, Pixels], Views]:
        if self._shown is None or self._shown[0] != preprocessing:
            material = self.material
            pixels = {
                split: Pixels(len(names), _reader(material.read, split), preprocessing)
                for split, names in material.names.items()
            }
            whole = squash(preprocessing, self._config.segmentation_size or None)
            for split, scenes in material.scenes.items():
                pixels[f"scenes-{split}"] = Pixels(len(scenes), _reader(material.read_scene, split), whole)
            views = make_views(material.images, preprocessing.crop, self._config.seed)
            pixels["first"] = Pixels(len(views.first), views.first.__getitem__, preprocessing)
            pixels["second"] = Pixels(len(views.second), views.second.__getitem__, preprocessing)
            pixels["images"] = Pixels(len(material.images), material.images.__getitem__, preprocessing)
            self._shown = (preprocessing, pixels, views)
        return self._shown[1], self._shown[2]

    def examine(self, model: Backbone, preprocessing: Preprocessing) -> Examination:
        """Every protocol that the material allows, on one network."""
        pixels, views = self._pixels(preprocessing)

        def features(name: str, patches: bool) -> Features:
            workers = (self._config.workers or _cores()) if self._device == "cpu" else 1
            batch = self._config.batch
            return extract(model, pixels[name], patches=patches, batch=batch, device=self._device, workers=workers)

        found = Examination({})
        if self.material.names:
            embedded = {split: features(split, patches=False) for split in ("train", "test")}
            variants = {
                split: {"cls": each.cls, "cls+patches": np.concatenate([each.cls, each.mean_patch], axis=1)}
                for split, each in embedded.items()
            }
            found.embeddings = {split: each.cls for split, each in embedded.items()}
            self._classify(found, variants, headline="cls")
        else:
            found.embeddings = {"images": features("images", patches=False).cls}
        if self.material.masks:
            dense = {split: features(f"scenes-{split}", patches=True).patches for split in ("train", "test")}
            self._segment(found, dense["train"], dense["test"])
        first, second = features("first", patches=True), features("second", patches=True)
        assert first.patches is not None and second.patches is not None
        found.measures |= {
            "copy_retrieval": copy_retrieval(first.cls, second.cls),
            "feature_rank": feature_rank(first.cls),
            "patch_coherence": patch_coherence(first.patches, second.patches, views.to_second),
        }
        found.details["patch_grid"] = first.grid
        return found

    def examine_baseline(self, name: str, preprocessing: Preprocessing, grid: int) -> Examination:
        """The same protocols on ``raw pixels`` or ``colour histogram``, dense ones in ``grid`` x ``grid`` cells."""
        of_image = BASELINES[name]
        found = Examination({})
        material = self.material
        if material.names:
            vectors = {
                split: np.stack([of_image(material.read(split, index)) for index in range(len(names))])
                for split, names in material.names.items()
            }
            self._classify(found, {split: {"cls": each} for split, each in vectors.items()}, headline="cls")
            found.embeddings = vectors
        if material.masks:
            dense = {
                split: np.stack(
                    [patch_baseline(name, material.read_scene(split, index), grid) for index in range(len(scenes))]
                )
                for split, scenes in material.scenes.items()
            }
            self._segment(found, dense["train"], dense["test"])
        _, views = self._pixels(preprocessing)
        first, second = (np.stack([of_image(view) for view in side]) for side in (views.first, views.second))
        dense_first, dense_second = (
            np.stack([patch_baseline(name, view, grid) for view in side]) for side in (views.first, views.second)
        )
        found.measures |= {
            "copy_retrieval": copy_retrieval(first, second),
            "feature_rank": feature_rank(first),
            "patch_coherence": patch_coherence(dense_first, dense_second, views.to_second),
        }
        found.details["patch_grid"] = grid
        return found

    def _classify(self, found: Examination, variants: dict[str, dict[str, np.ndarray]], headline: str) -> None:
        train, test = variants["train"], variants["test"]
        labels, truth = self.material.labels["train"], self.material.labels["test"]
        ks = list(dict.fromkeys([self._config.neighbours, *self._config.further_neighbours]))
        near = knn(train[headline], labels, test[headline], truth, ks=ks)
        linear = linear_probe(train, labels, test, truth, steps=self._config.linear_steps, seed=self._config.seed)
        found.measures |= {"knn_top1": next(iter(near.top1.values())), "linear_top1": linear.top1}
        found.details["knn"] = {str(k): {"top1": near.top1[k], "top5": near.top5[k]} for k in near.top1}
        found.details["linear"] = {
            "features": linear.variant,
            "learning_rate": linear.learning_rate,
            "held_out_top1": linear.validation,
        }
        found.per_class = {
            name: float((near.predictions[truth == label] == label).mean())
            for label, name in enumerate(self.material.classes)
            if (truth == label).any()
        }

    def _segment(self, found: Examination, train: np.ndarray | None, test: np.ndarray | None) -> None:
        assert train is not None and test is not None and self.material.evaluation is not None
        names = list(self.material.evaluation.mask_classes.values())
        result = segmentation_probe(
            train,
            self.material.masks["train"],
            test,
            self.material.masks["test"],
            classes=len(names),
            steps=self._config.segmentation_steps,
            seed=self._config.seed,
            keep=self._config.pictures,
        )
        found.measures["miou"] = result.miou
        found.details["segmentation"] = {
            "pixel_accuracy": result.pixel_accuracy,
            "iou": {names[label]: value for label, value in result.iou.items()},
        }
        found.segmentations = result.predictions


def _reader(read: Callable[[str, int], np.ndarray], split: str) -> Callable[[int], np.ndarray]:
    return lambda index: read(split, index)
