"""Retrieval: a gallery ranked by cosine similarity to each query, and how early the right images come.

Average precision under the easy, medium and hard protocols of the revisited Oxford and Paris sets (Radenović et al.
2018), by which DINO, DINOv2 and DINOv3 report instance retrieval, and recall at k (Jégou et al. 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foundry.errors import UserError

NEGATIVE, EASY, HARD, JUNK = 0, 1, 2, -1
"""What a gallery image is to a query. Junk is taken out of the ranking: neither right nor wrong."""

Convention = Literal["trapezoid", "plain"]
Protocol = Literal["easy", "medium", "hard"]

POSITIVES: dict[Protocol, tuple[int, ...]] = {"easy": (EASY,), "medium": (EASY, HARD), "hard": (HARD,)}
"""Relations that count as right; positives of the other kind are junk."""

_CHUNK = 256
"""Queries that are ranked at once."""
_DECIMALS = 12
"""Cosines are compared to this many: equal images get equal places even where a matrix product rounds them apart."""


@dataclass(frozen=True)
class ProtocolResult:
    """Scores of one protocol, as fractions, over the queries that have a positive in it."""

    mean_ap: float
    """Mean of :attr:`average_precision`; not a number where no query has a positive."""
    mean_ap_plain: float
    """Mean of :attr:`average_precision_plain`."""
    recall: dict[int, float]
    """k -> share of the queries with a positive among the first k images that are not junk."""
    queries: np.ndarray
    """(Q,) indices of the queries that count, ascending; the arrays below have their order."""
    average_precision: np.ndarray
    """(Q,) float64, by the trapezoid."""
    average_precision_plain: np.ndarray
    """(Q,) float64, mean of the precision at every positive."""
    first: np.ndarray
    """(Q,) place of the first positive, from 0: below k where a query counts for recall at k."""
    left_out: int
    """How many queries have no positive."""


@dataclass(frozen=True)
class RetrievalResult:
    """Scores of all three protocols on one ranking."""

    easy: ProtocolResult
    medium: ProtocolResult
    hard: ProtocolResult


def retrieval(
    queries: np.ndarray, gallery: np.ndarray, relations: np.ndarray, *, ks: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Rank ``gallery`` (N, D) for each of ``queries`` (M, D) and score the rankings.

    ``relations`` is (M, N) int8: :data:`NEGATIVE`, :data:`EASY`, :data:`HARD` or :data:`JUNK`. Easy: easy positives,
    hard ones are junk; medium: both; hard: hard positives, easy ones are junk. Raises
    :class:`~foundry.errors.UserError` for features that are not finite, other relations, and k below 1; and
    :class:`ValueError` for shapes that do not fit.
    """
    if relations.shape != (len(queries), len(gallery)):
        raise ValueError(f"relations {relations.shape} for {len(queries)} queries and {len(gallery)} gallery images")
    if not np.isin(relations, (NEGATIVE, EASY, HARD, JUNK)).all():
        raise UserError("relations of queries and gallery: use 0 negative, 1 easy positive, 2 hard positive, -1 junk")
    if not ks or min(ks) < 1:
        raise UserError(f"recall at {list(ks)}: use numbers from 1")
    found: dict[Protocol, list[tuple[int, np.ndarray]]] = {protocol: [] for protocol in POSITIVES}
    unit_queries, unit_gallery = _unit_rows(queries, "query"), _unit_rows(gallery, "gallery")
    for start in range(0, len(queries), _CHUNK):
        order = _order(unit_queries[start : start + _CHUNK], unit_gallery)
        ranked = np.take_along_axis(relations[start : start + _CHUNK], order, axis=1)
        for protocol, positives in POSITIVES.items():
            for index, row in enumerate(ranked, start):
                places = positive_places(row, positives)
                if len(places):
                    found[protocol].append((index, places))
    return RetrievalResult(**{protocol: _scores(each, len(queries), ks) for protocol, each in found.items()})


def relations_from_labels(
    labels: np.ndarray, gallery_labels: np.ndarray | None = None, same: np.ndarray | None = None
) -> np.ndarray:
    """(M, N) relations where gallery images of a query's label are easy positives and the query itself is junk.

    ``labels`` (M,) are those of the queries. Without ``gallery_labels`` (N,) the queries are the gallery, each junk to
    itself; else ``same`` (M,) names the gallery row that is the query's own image, -1 for none.
    """
    if gallery_labels is None:
        gallery_labels = labels
        same = np.arange(len(labels)) if same is None else same
    relations = np.where(labels[:, None] == gallery_labels[None, :], EASY, NEGATIVE).astype(np.int8)
    if same is not None:
        rows = np.flatnonzero(same >= 0)
        relations[rows, same[rows]] = JUNK
    return relations


def rank(queries: np.ndarray, gallery: np.ndarray, exclude: np.ndarray | None = None) -> np.ndarray:
    """(M, N) indices of the ``gallery`` (N, D) rows for each query (M, D): highest cosine first, ties by index.

    ``exclude`` (M,) names one gallery row for each query that does not count, usually the query itself, -1 for none:
    it comes last. Cosines are float64, equal to twelve decimals is a tie, and a row of zeros has cosine 0 with all.
    Raises :class:`~foundry.errors.UserError` for features that are not finite.
    """
    return _order(_unit_rows(queries, "query"), _unit_rows(gallery, "gallery"), exclude)


def _order(queries: np.ndarray, gallery: np.ndarray, exclude: np.ndarray | None = None) -> np.ndarray:
    similarity = np.round(queries @ gallery.T, _DECIMALS)
    if exclude is not None:
        rows = np.flatnonzero(exclude >= 0)
        similarity[rows, exclude[rows]] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")


def _unit_rows(features: np.ndarray, name: str) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        raise UserError(f"{name} features are not all finite numbers: look for the step at which the network diverged")
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def positive_places(ranked: np.ndarray, positives: Sequence[int]) -> np.ndarray:
    """Ascending places (from 0) of the positives in one ranking once junk is taken out.

    ``ranked`` (N,) are the relations in order of rank; ``positives`` those that count as right
    (:data:`POSITIVES`).
    """
    right = np.isin(ranked, positives)
    return np.flatnonzero(right[right | (ranked == NEGATIVE)])


def average_precision(places: np.ndarray, convention: Convention = "trapezoid") -> float:
    """Average precision of one query whose n >= 1 positives, all of them ranked, stand at ``places`` (from 0).

    The i-th positive (from 0) at place r is reached with precision (i + 1) / (r + 1). ``plain`` is the mean of that
    over the positives, the area under the steps of precision over recall. ``trapezoid`` (Philbin et al. 2007, and the
    revisited Oxford and Paris sets) averages it with the precision just before, i / r (1 at r = 0): the area under
    straight lines. It is never larger. Raises :class:`ValueError` without positives.
    """
    if not len(places):
        raise ValueError("average precision needs at least one positive")
    places, number = np.asarray(places, np.float64), np.arange(len(places))
    reached = (number + 1) / (places + 1)
    if convention == "plain":
        return float(reached.mean())
    before = np.where(places > 0, number / np.maximum(places, 1), 1.0)
    return float((reached + before).mean() / 2)


def _scores(found: Sequence[tuple[int, np.ndarray]], queries: int, ks: Sequence[int]) -> ProtocolResult:
    counted = np.array([index for index, _ in found], np.int64)
    curves = np.array([average_precision(places) for _, places in found], np.float64)
    steps = np.array([average_precision(places, "plain") for _, places in found], np.float64)
    first = np.array([places[0] for _, places in found], np.int64)
    return ProtocolResult(
        mean_ap=_mean(curves),
        mean_ap_plain=_mean(steps),
        recall={k: _mean(first < k) for k in ks},
        queries=counted,
        average_precision=curves,
        average_precision_plain=steps,
        first=first,
        left_out=queries - len(counted),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
