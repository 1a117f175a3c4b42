"""Nearest neighbours of images by cosine similarity of their embeddings."""

from __future__ import annotations

import numpy as np

from training.probes.features import normalise_rows


def nearest(
    queries: np.ndarray, gallery: np.ndarray, count: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(indices, similarities), each (M, count): the ``gallery`` (N, D) rows most similar to each query (M, D).

    Most similar first, equal ones by index. ``exclude`` (M,) names one gallery row for each query that does not count,
    usually the query itself; -1 for none. ``count`` is at most the number of rows left.
    """
    similarity = normalise_rows(queries) @ normalise_rows(gallery).T
    left = similarity.shape[1]
    if exclude is not None:
        rows = np.flatnonzero(exclude >= 0)
        similarity[rows, exclude[rows]] = -np.inf
        left -= 1
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(count, left)]
    return order, np.take_along_axis(similarity, order, axis=1)
