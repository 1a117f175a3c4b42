"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018; Caron et al. 2021, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foundry.images import Preprocessing
from training.data.evaluation_set import EvaluationSet
from training.probes.features import Backbone, Pixels, extract, normalise_rows

TEMPERATURE = 0.07
"""Of the vote exp(similarity / T); the value of every DINO paper."""


@dataclass(frozen=True)
class KnnResult:
    """Accuracies as fractions, for each number of neighbours."""

    top1: dict[int, float]
    top5: dict[int, float]
    predictions: np.ndarray
    """(M,) predicted class of each test image, with the first number of neighbours."""
    hits5: np.ndarray
    """(M,) bool: whether its class is among the five with most votes, with the first number of neighbours."""


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int] = (10, 20),
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> KnnResult:
    """Classify ``test`` (M, D) by the labels of its nearest neighbours in ``train`` (N, D).

    Features are L2-normalised; of the k most similar train images each votes exp(cosine / T) for its class. k is at
    most N. Labels are integers from 0. Top-5 counts the test images whose class is among the five with most votes.
    """
    bank, queries = normalise_rows(train), normalise_rows(test)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    ks = list(dict.fromkeys(min(k, len(bank)) for k in ks))
    hits1, hits5 = dict.fromkeys(ks, 0), dict.fromkeys(ks, 0)
    predictions, among_five = [], []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ bank.T
        truth = test_labels[start : start + chunk]
        order = _most_similar(similarity, max(ks))
        near = np.take_along_axis(similarity, order, axis=1).astype(np.float64)
        votes = np.exp((near - 1.0) / temperature)
        for k in ks:
            scores = np.zeros((len(truth), classes))
            rows = np.repeat(np.arange(len(truth)), k)
            np.add.at(scores, (rows, train_labels[order[:, :k]].ravel()), votes[:, :k].ravel())
            best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
            hits1[k] += int((best[:, 0] == truth).sum())
            voted = np.take_along_axis(scores, best, axis=1) > 0
            found = ((best == truth[:, None]) & voted).any(axis=1)
            hits5[k] += int(found.sum())
            if k == ks[0]:
                predictions.append(best[:, 0])
                among_five.append(found)
    count = len(queries)
    return KnnResult(
        {k: hits1[k] / count for k in ks},
        {k: hits5[k] / count for k in ks},
        np.concatenate(predictions),
        np.concatenate(among_five),
    )


def _most_similar(similarity: np.ndarray, k: int) -> np.ndarray:
    """(M, k) indices of the largest entries of each row, largest first; equal ones by index."""
    if k < similarity.shape[1]:
        part = np.sort(np.argpartition(-similarity, k - 1, axis=1)[:, :k], axis=1)
        least = np.take_along_axis(similarity, part, axis=1).min(axis=1)
        for row in np.flatnonzero((similarity >= least[:, None]).sum(axis=1) > k):  # a tie for the last place
            above = np.flatnonzero(similarity[row] > least[row])
            equal = np.flatnonzero(similarity[row] == least[row])
            part[row] = np.sort(np.concatenate([above, equal[: k - len(above)]]))
    else:
        part = np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
    inner = np.argsort(-np.take_along_axis(similarity, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, inner, axis=1)


class KnnProbe:
    """k-NN of one model after another on the same labelled set: ``probe(model) -> {"knn_top1": ..., ...}``.

    Images are decoded and preprocessed once (see :class:`Pixels`). Accuracies are fractions.
    """

    def __init__(
        self,
        evaluation: EvaluationSet,
        preprocessing: Preprocessing,
        *,
        k: int = 10,
        batch: int = 64,
        device: str = "cpu",
        limit: int = 0,
    ) -> None:
        self._k, self._batch, self._device = k, batch, device
        self._pixels, self._labels = {}, {}
        for split in ("train", "test"):
            images = evaluation.classification(split)
            if limit and len(images) > limit:
                images = [images[index * len(images) // limit] for index in range(limit)]
            self._labels[split] = np.array([image.label for image in images])
            self._pixels[split] = Pixels.of_files([image.name for image in images], evaluation.read, preprocessing)

    def __call__(self, model: Backbone) -> dict[str, float]:
        """Top-1 and top-5 accuracy of ``model``'s embeddings."""
        features = {
            split: extract(model, pixels, batch=self._batch, device=self._device).cls
            for split, pixels in self._pixels.items()
        }
        result = knn(features["train"], self._labels["train"], features["test"], self._labels["test"], ks=(self._k,))
        (top1,), (top5,) = result.top1.values(), result.top5.values()
        return {"knn_top1": top1, "knn_top5": top5}
