"""k-means against faiss, and how its cost grows.

    python tests/benchmarks/kmeans.py faiss --peer PYTHON [--points 1000000] [--clusters 1000] [--spread 1] [--rounds 4]
    python tests/benchmarks/kmeans.py growth [--sizes 100000 200000 500000 1000000 2000000] [--rounds 2]

The points are 384 numbers of unit length, a mixture of 10,000 Gaussians (tests/benchmarks/points.py).

``faiss``: ``PYTHON`` is the interpreter of an environment with faiss-cpu and numpy. Both make 10 iterations of Lloyd on
all points, from seeds of their own, and then assign all points; rounds are interleaved and differ in the seed. Inertia
is measured by a third piece of code, outside the clock. ``--as-installed``: see tests/benchmarks/faiss_peer.py. About 8
minutes on two cores, 4 GB.

``growth``: seconds for these numbers of points (the best of the rounds), with 1,000 clusters, and with a hundredth as
many clusters as points, made by splits of the square root of their number; of each the exponent and the cost of the
largest over what the smallest predicts. About 7 minutes on two cores, 4 GB.

``--data`` keeps the points in a folder. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.faiss_peer import Faiss  # noqa: E402
from tests.benchmarks.points import write_points  # noqa: E402
from tests.benchmarks.ratios import ratio_of_rounds  # noqa: E402

DIMENSIONS = 384


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of squared distances of unit vectors to the nearest centroid."""
    total, halves = 0.0, (centroids.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    for start in range(0, len(points), 8192):
        scores = points[start : start + 8192] @ centroids.T - halves
        total += float((1 - 2 * scores.max(axis=1).astype(np.float64)).sum())
    return total


def ours(points: np.ndarray, clusters: int, options: argparse.Namespace, seed: int) -> tuple[float, np.ndarray]:
    """Seconds and centroids of this project's k-means."""
    from components.curation.kmeans import kmeans

    begun = time.perf_counter()
    found = kmeans(points, clusters, seed=seed, iterations=options.iterations)
    return time.perf_counter() - begun, found.centroids


def against_faiss(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Both in turns."""
    path = data(folder, options.points, options)
    points = np.load(path, mmap_mode="r")
    faiss = Faiss(options.peer, options.as_installed)
    job = {"job": "kmeans", "points": str(path), "rows": options.points, "clusters": options.clusters}
    job |= {"iterations": options.iterations, "centroids": str(folder / "centroids.npy")}
    faiss.do(**{**job, "iterations": 1}, seed=0)
    warm = min(options.points, 20 * options.clusters)
    ours(points[:warm], options.clusters, options, 0)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    inertias: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(options.rounds):
        taken, centroids = ours(points, options.clusters, options, seed)
        seconds["ours"].append(taken)
        inertias["ours"].append(inertia(points, centroids))
        seconds["theirs"].append(faiss.do(**job, seed=seed)["seconds"])
        inertias["theirs"].append(inertia(points, np.load(job["centroids"])))
        print({kind: round(each[-1], 2) for kind, each in seconds.items()}, flush=True)
    faiss.end()
    rates = {kind: 1 / np.array(each) for kind, each in seconds.items()}
    worse = np.array(inertias["ours"]) / np.array(inertias["theirs"])
    return {
        "faiss": faiss.described["faiss"],
        "points": options.points,
        "clusters": options.clusters,
        "iterations": options.iterations,
        "spread": options.spread,
        "rounds": options.rounds,
        "ours_seconds": round(float(np.median(seconds["ours"])), 2),
        "theirs_seconds": round(float(np.median(seconds["theirs"])), 2),
        **ratio_of_rounds(rates["ours"], rates["theirs"], digits=3),
        "inertia_over_theirs": [round(float(value), 5) for value in (worse.min(), np.median(worse), worse.max())],
    }


def by_splits(points: np.ndarray, options: argparse.Namespace, seed: int) -> float:
    """Seconds for a cluster for every hundred points."""
    from components.curation.config import Level
    from components.curation.hierarchy import hierarchical_kmeans

    clusters = len(points) // 100
    level = Level(clusters=clusters, splits=round(clusters**0.5))
    begun = time.perf_counter()
    hierarchical_kmeans(points, [level], seed=seed, iterations=options.iterations)
    return time.perf_counter() - begun


def growth(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Seconds by number of points."""
    points = np.load(data(folder, max(options.sizes), options), mmap_mode="r")
    seconds: dict[str, dict[int, float]] = {"fixed": {}, "splits": {}}
    ours(points[: 20 * options.clusters], options.clusters, options, 0)
    for seed in range(options.rounds):
        for size in options.sizes:
            taken = {
                "fixed": ours(points[:size], options.clusters, options, seed)[0],
                "splits": by_splits(points[:size], options, seed),
            }
            for kind, value in taken.items():
                seconds[kind][size] = min(value, seconds[kind].get(size, np.inf))
            print(size, {kind: round(value, 2) for kind, value in taken.items()}, flush=True)
    return {"clusters": options.clusters, "rounds": options.rounds} | {
        kind: {
            "seconds": {str(size): round(value, 3) for size, value in each.items()},
            "exponent": round(float(np.polyfit(np.log(list(each)), np.log(list(each.values())), 1)[0]), 3),
            "over_linear": round(each[max(each)] / each[min(each)] * min(each) / max(each), 3),
        }
        for kind, each in seconds.items()
    }


def data(folder: Path, count: int, options: argparse.Namespace) -> Path:
    """The file of points, made if it is not there."""
    path = (options.data or folder) / f"points-{count}-{options.components}-{options.spread:g}.npy"
    if not path.exists():
        write_points(path.with_suffix(".part"), count, DIMENSIONS, options.components, options.spread).rename(path)
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    faiss = kinds.add_parser("faiss")
    faiss.add_argument("--peer", required=True, help="Python of an environment with faiss")
    faiss.add_argument("--as-installed", action="store_true", help="leave faiss's choice of kernels")
    faiss.add_argument("--points", type=int, default=1_000_000)
    faiss.add_argument("--rounds", type=int, default=4)
    grown = kinds.add_parser("growth")
    grown.add_argument("--sizes", type=int, nargs="+", default=[100_000, 200_000, 500_000, 1_000_000, 2_000_000])
    grown.add_argument("--rounds", type=int, default=2)
    for each in (faiss, grown):
        each.add_argument("--clusters", type=int, default=1000)
        each.add_argument("--components", type=int, default=10_000)
        each.add_argument("--spread", type=float, default=1.0)
        each.add_argument("--iterations", type=int, default=10)
        each.add_argument("--data", type=Path, help="folder that keeps the points")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        chosen = against_faiss if options.kind == "faiss" else growth
        result = chosen(Path(name), options)
    print(json.dumps({"benchmark": f"kmeans-{options.kind}", **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
