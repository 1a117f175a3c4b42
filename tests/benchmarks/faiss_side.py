"""faiss in an environment of its own: one JSON job a line on stdin, one JSON answer a line on stdout.

The environment needs faiss-cpu and numpy. Jobs: ``{"job": "kmeans", "points": PATH, "rows": N, "clusters": K,
"iterations": T, "seed": S, "centroids": PATH}`` and ``{"job": "neighbours", "points": PATH, "rows": N, "count": K,
"lists": L, "probes": P}``; P of 0 is brute force. Both answer ``{"seconds": ...}``.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import faiss  # type: ignore[import-not-found]
import numpy as np


def kmeans(points: np.ndarray, job: dict[str, Any]) -> dict[str, float]:
    """k-means on all points, and the assignment of all points to the result."""
    begun = time.perf_counter()
    found = faiss.Kmeans(
        points.shape[1],
        job["clusters"],
        niter=job["iterations"],
        seed=job["seed"],
        max_points_per_centroid=len(points),
        min_points_per_centroid=1,
    )
    found.train(points)
    found.index.search(points, 1)
    seconds = time.perf_counter() - begun
    np.save(job["centroids"], found.centroids)
    return {"seconds": seconds}


def neighbours(points: np.ndarray, job: dict[str, Any]) -> dict[str, float]:
    """The nearest others of all points, from nothing."""
    begun = time.perf_counter()
    dimensions = points.shape[1]
    if job["probes"]:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimensions), dimensions, job["lists"], faiss.METRIC_INNER_PRODUCT)
        index.train(points)
        index.nprobe = job["probes"]
    else:
        index = faiss.IndexFlatIP(dimensions)
    index.add(points)
    _, found = index.search(points, job["count"] + 1)
    seconds = time.perf_counter() - begun
    np.save(job["found"], found)
    return {"seconds": seconds}


def main() -> None:
    """Answer jobs until stdin ends."""
    print(json.dumps({"faiss": faiss.__version__, "threads": faiss.omp_get_max_threads()}), flush=True)
    jobs, path, points = {"kmeans": kmeans, "neighbours": neighbours}, None, None
    for line in sys.stdin:
        job = json.loads(line)
        if path != (job["points"], job["rows"]):
            path = (job["points"], job["rows"])
            points = np.ascontiguousarray(np.load(job["points"], mmap_mode="r")[: job["rows"]])
        print(json.dumps(jobs[job["job"]](points, job)), flush=True)


if __name__ == "__main__":
    main()
