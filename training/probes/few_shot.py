"""Classification from a few labelled images of each class, over several draws of them.

Frozen features and a logistic regression, as in the low-shot evaluations of Caron et al. 2021 (appendix) and Assran et
al. 2022 (section 4); shots are images a class, in the sense of Vinyals et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foundry.errors import UserError
from training.probes.features import normalise_rows
from training.probes.logistic import Problem, check_features

STRENGTH = 100.0
"""C of every fit: a few images leave nothing to select it on. Features of norm 1 need weights of some freedom: on
planted classes 100 beat 1 by up to 20 points and 10 by up to 5, and 1000 gained at most 3 more in several times the
time."""


@dataclass(frozen=True)
class FewShotResult:
    """Top-1 accuracies as fractions, by number of shots."""

    mean: dict[int, float]
    """Over the draws."""
    std: dict[int, float]
    """Standard deviation over the draws (of the sample: n - 1; 0 for a single draw)."""
    hits: dict[int, np.ndarray]
    """(tries, M) bool: which test images each draw's classifier has right."""
    short_classes: dict[int, int]
    """How many classes have fewer train images than that: they gave all they have, in every draw."""


def few_shot(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: Sequence[int] = (1, 2, 5, 10),
    tries: int = 5,
    seed: int = 0,
    strength: float = STRENGTH,
    iterations: int = 1000,
) -> FewShotResult:
    """Accuracy on ``test`` (M, D) of classifiers fitted to a few images a class of ``train`` (N, D).

    Features are L2-normalised; the classifier is a multinomial logistic regression with an L2 penalty at C =
    ``strength`` (see :mod:`training.probes.logistic`). Every draw takes ``shots`` images of each class without
    replacement, all of a class that has fewer. A draw depends on (seed, shots, try) and the labels only, so that two
    networks are shown the same images. Labels are integers from 0. Raises :class:`~foundry.errors.UserError` for
    features that are not finite or do not fit their labels, and for numbers below 1.
    """
    from threadpoolctl import threadpool_limits

    if not shots or min(shots) < 1 or tries < 1 or not strength > 0:
        raise UserError("few-shot probe: shots, tries and strength must be positive, with at least one number of shots")
    check_features(train, train_labels, "train")
    check_features(test, test_labels, "test")
    bank, queries = normalise_rows(train), normalise_rows(test)
    hits: dict[int, np.ndarray] = {}
    with threadpool_limits(1, user_api="blas"):
        for count in shots:
            hits[count] = np.empty((tries, len(queries)), bool)
            for number in range(tries):
                chosen = draw(train_labels, count, seed, number)
                classifier = Problem(bank[chosen], train_labels[chosen]).fit(strength, iterations)
                hits[count][number] = classifier.predict(queries) == test_labels
    accuracies = {count: each.mean(1) for count, each in hits.items()}
    sizes = np.unique(train_labels, return_counts=True)[1]
    return FewShotResult(
        {count: float(each.mean()) for count, each in accuracies.items()},
        {count: float(each.std(ddof=1)) if tries > 1 else 0.0 for count, each in accuracies.items()},
        hits,
        {count: int((sizes < count).sum()) for count in hits},
    )


def draw(labels: np.ndarray, shots: int, seed: int, number: int) -> np.ndarray:
    """Ascending indices of ``shots`` images of each class of ``labels`` (N,), fewer where a class has fewer.

    Draw ``number`` of (seed, shots); the images taken of a class do not depend on the other classes.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rng = np.random.default_rng([seed, shots, number, int(label)])
        chosen.append(rng.permutation(members)[:shots])
    return np.sort(np.concatenate(chosen))
