"""Linear classification of frozen features, a grid of learning rates at once (Oquab et al. 2023, appendix B.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

LEARNING_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
"""The grid; each is multiplied by batch / 256."""


@dataclass(frozen=True)
class LinearResult:
    """Accuracy as a fraction, and which classifier was chosen."""

    top1: float
    variant: str
    learning_rate: float
    validation: dict[str, float]
    """Best held-out accuracy of each variant."""
    predictions: np.ndarray = field(compare=False)
    """(M,) predicted class of each test image. Not compared: equality of results is that of their figures."""


def linear_probe(
    train: Mapping[str, np.ndarray],
    train_labels: np.ndarray,
    test: Mapping[str, np.ndarray],
    test_labels: np.ndarray,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = 400,
    batch: int = 128,
    held_out: float = 0.2,
    seed: int = 0,
) -> LinearResult:
    """Accuracy on ``test`` of the linear classifier that does best on a held-out part of ``train``.

    ``train`` and ``test`` map the name of a variant to its features (N, D): the class token of the last block or of the
    last four joined, each with and without the mean patch (``cls``, ``cls+patches``, ...). Features are
    standardised with the statistics of the fitted images, as a BatchNorm without affine parameters does (He et al.
    2022, appendix A.1), which makes one grid fit networks of any scale. For every variant all learning rates are
    fitted together: cross-entropy, SGD with momentum 0.9, no weight decay, cosine to zero, weights from N(0, 0.01),
    bias 0. The best (variant, rate) on the held-out part, drawn class by class, is fitted again on all of ``train``;
    ``test`` is looked at once. Equal seeds give equal results.
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    fitted, held = split_by_class(train_labels, held_out, seed)
    best: tuple[float, str, float] | None = None
    validation = {}
    for variant, features in train.items():
        weights = _fit(features[fitted], train_labels[fitted], classes, learning_rates, steps, batch, seed)
        accuracy = _accuracy(weights, features[held], train_labels[held])
        validation[variant] = float(accuracy.max())
        index = int(accuracy.argmax())  # the smallest of equally good rates
        if best is None or float(accuracy[index]) > best[0]:
            best = (float(accuracy[index]), variant, float(learning_rates[index]))
    assert best is not None
    _, variant, rate = best
    weights = _fit(train[variant], train_labels, classes, (rate,), steps, batch, seed)
    predictions = _predict(weights, test[variant])[0]
    return LinearResult(float((predictions == test_labels).mean()), variant, rate, validation, predictions)


@dataclass(frozen=True)
class _Classifiers:
    """C linear classifiers over K classes with the standardisation in front of them."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    """(C, D, K)."""
    bias: Tensor
    """(C, 1, K)."""


def _fit(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    learning_rates: Sequence[float],
    steps: int,
    batch: int,
    seed: int,
) -> _Classifiers:
    x = torch.from_numpy(np.asarray(features, np.float32))
    y = torch.from_numpy(np.asarray(labels, np.int64))
    mean, scale = x.mean(0), 1.0 / (x.var(0, unbiased=False) + 1e-6).sqrt()
    x = (x - mean) * scale
    batch = min(batch, len(x))
    generator = torch.Generator().manual_seed(seed)
    count, dim = len(learning_rates), x.shape[1]
    start = torch.empty(dim, classes).normal_(0.0, 0.01, generator=generator)
    weight, bias = start.repeat(count, 1, 1), torch.zeros(count, 1, classes)
    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    rates = torch.tensor(learning_rates, dtype=torch.float32).view(count, 1, 1) * (batch / 256)
    target = torch.nn.functional.one_hot(y, classes).float()
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator)
        chosen, order = order[:batch], order[batch:]
        error = torch.softmax(x[chosen] @ weight + bias, dim=-1) - target[chosen]  # (C, B, K): gradient of the logits
        error /= batch
        rate = rates * (0.5 * (1.0 + np.cos(np.pi * step / steps)))
        weight_speed = 0.9 * weight_speed + x[chosen].T @ error
        bias_speed = 0.9 * bias_speed + error.sum(1, keepdim=True)
        weight, bias = weight - rate * weight_speed, bias - rate * bias_speed
    return _Classifiers(mean, scale, weight, bias)


def _accuracy(classifiers: _Classifiers, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C,) accuracy of each classifier."""
    return (_predict(classifiers, features) == labels).mean(axis=1)


def _predict(classifiers: _Classifiers, features: np.ndarray) -> np.ndarray:
    """(C, M) class of each row of ``features`` (M, D) by each classifier."""
    x = (torch.from_numpy(np.asarray(features, np.float32)) - classifiers.mean) * classifiers.scale
    return (x @ classifiers.weight + classifiers.bias).argmax(-1).numpy()


def split_by_class(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices (fitted, held out): ``share`` of every class is held out; a class of one image is fitted only.

    Where every class has one image the held-out part is the fitted part: there is nothing else to select on.
    """
    rng = np.random.default_rng(seed)
    fitted, held = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        held.append(members[:count])
        fitted.append(members[count:])
    all_fitted, all_held = np.sort(np.concatenate(fitted)), np.sort(np.concatenate(held))
    return all_fitted, all_held if len(all_held) else all_fitted
