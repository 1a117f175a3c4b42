"""The graph of nearest neighbours: recall, time against brute force and faiss, and how it grows.

    python tests/benchmarks/neighbours.py [--points 200000] [--components 2000] [--spread 1] [--count 64] [--rounds 2]
    python tests/benchmarks/neighbours.py --components 0 --dimensions 64
    python tests/benchmarks/neighbours.py --peer PYTHON ...
    python tests/benchmarks/neighbours.py --growth 50000 100000 200000 400000 ...

Points of unit length: a mixture of Gaussians, or uniform on the sphere with ``--components 0``
(tests/benchmarks/points.py); or ``--file``, any .npy of unit vectors. Rounds of this project's graph with its default
settings, its brute force and, with ``--peer``, faiss's inverted lists (as many lists, and the fewest probes of 1, 2, 4,
... that reach the same recall; else its brute force) are interleaved. Recall is told against the true neighbours of
1,000 points, found by numpy, and against the brute force for all points. About 10 minutes on two cores, 2 GB. The last
line is one JSON object.
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

CHECKED = 1000


def truth(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Some rows and the similarity of their last true neighbour."""
    rows = np.sort(np.random.default_rng(7).choice(len(points), min(CHECKED, len(points)), replace=False))
    best = np.full((len(rows), count), -np.inf, dtype=np.float32)
    for start in range(0, len(points), 20_000):
        part = points[start : start + 20_000]
        scores = points[rows] @ part.T
        own = np.flatnonzero((rows >= start) & (rows < start + len(part)))
        scores[own, rows[own] - start] = -np.inf
        best = np.partition(np.concatenate([best, scores], axis=1), -count, axis=1)[:, -count:]
    return rows, best.min(axis=1)


def recall(points: np.ndarray, index: np.ndarray, rows: np.ndarray, last: np.ndarray, count: int) -> float:
    """Share of the ``count`` nearest among ``index`` (n, m) of ``rows``; a row's own number does not count."""
    found = index[rows]
    similarity = np.einsum("nd,nkd->nk", points[rows], points[np.maximum(found, 0)])
    hits = (similarity >= last[:, None] - 1e-6) & (found >= 0) & (found != rows[:, None])
    return float(np.minimum(hits.sum(axis=1), count).mean() / count)


def probes_for(faiss: Faiss, job: dict[str, object], points: np.ndarray, wanted: float, count: int) -> int:
    """The fewest probes of 1, 2, 4, ... with which faiss finds ``wanted``; 0, brute force, where that is half."""
    rows, last = truth(points, count)
    probes = 1
    while probes <= int(str(job["lists"])) // 2:
        faiss.do(**job, probes=probes)
        if recall(points, np.load(str(job["found"])), rows, last, count) >= wanted:
            return probes
        probes *= 2
    return 0


def compared(points: np.ndarray, path: Path, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """All in turns."""
    from components.curation.neighbours import neighbours

    rows, last = truth(points, options.count)
    seconds: dict[str, list[float]] = {"lists": [], "brute force": [], "faiss": []}
    recalls: list[float] = []
    of_all: list[float] = []
    share, faiss, probes = 1.0, None, 0
    job: dict[str, object] = {"job": "neighbours", "points": str(path), "rows": len(points), "count": options.count}
    job |= {"lists": int(2 * len(points) ** 0.5), "found": str(folder / "found.npy")}
    if options.peer:
        faiss = Faiss(options.peer, options.as_installed)
        probes = probes_for(faiss, job, points, 0.99, options.count)
    for seed in range(options.rounds):
        begun = time.perf_counter()
        found = neighbours(points, options.count, seed=seed)
        seconds["lists"].append(time.perf_counter() - begun)
        recalls.append(recall(points, found.index, rows, last, options.count))
        share = found.compared
        if options.brute_force:
            begun = time.perf_counter()
            exact = neighbours(points, options.count, recall=1)
            seconds["brute force"].append(time.perf_counter() - begun)
            of_all.append(float((found.similarity >= exact.similarity[:, -1:] - 1e-6).mean()))
        if faiss:
            seconds["faiss"].append(float(faiss.do(**job, probes=probes)["seconds"]))
        print({kind: round(each[-1], 2) for kind, each in seconds.items() if each}, recalls[-1], share, flush=True)
    result: dict[str, object] = {
        "recall": [round(value, 4) for value in (min(recalls), float(np.median(recalls)))],
        "recall_of_all": [round(value, 4) for value in of_all],
        "compared": round(share, 4),
        "seconds": {kind: round(float(np.median(each)), 2) for kind, each in seconds.items() if each},
    }
    for kind in ("brute force", "faiss"):
        if seconds[kind]:
            result[f"over {kind}"] = ratio_of_rounds(1 / np.array(seconds["lists"]), 1 / np.array(seconds[kind]))
    if faiss:
        result["faiss_probes"] = probes
        faiss.end()
    return result


def growth(points: np.ndarray, options: argparse.Namespace) -> dict[str, object]:
    """Seconds and recall by number of points."""
    from components.curation.neighbours import neighbours

    seconds, recalls, shares = [], [], []
    for size in options.growth:
        rows, last = truth(points[:size], options.count)
        taken = []
        for seed in range(options.rounds):
            begun = time.perf_counter()
            found = neighbours(points[:size], options.count, seed=seed)
            taken.append(time.perf_counter() - begun)
        seconds.append(float(np.median(taken)))
        recalls.append(recall(points[:size], found.index, rows, last, options.count))
        shares.append(found.compared)
        print(size, round(seconds[-1], 2), recalls[-1], shares[-1], flush=True)
    return {
        "sizes": options.growth,
        "seconds": [round(value, 2) for value in seconds],
        "recall": [round(value, 4) for value in recalls],
        "compared": [round(value, 4) for value in shares],
        "exponent": round(float(np.polyfit(np.log(options.growth), np.log(seconds), 1)[0]), 3),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python of an environment with faiss")
    parser.add_argument("--as-installed", action="store_true", help="leave faiss's choice of kernels")
    parser.add_argument("--growth", type=int, nargs="+", metavar="POINTS")
    parser.add_argument("--file", type=Path, help="points of unit length, .npy")
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--components", type=int, default=2_000)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--brute-force", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.file or write_points(
            folder / "points.npy",
            max(options.growth or [options.points]),
            options.dimensions,
            options.components,
            options.spread,
        )
        points = np.load(path, mmap_mode="r")[: max(options.growth or [options.points])]
        result = growth(points, options) if options.growth else compared(points, path, folder, options)
    described = {name: getattr(options, name) for name in ("components", "spread", "count", "rounds")}
    described |= {"points": len(points), "dimensions": points.shape[1], "file": options.file and options.file.name}
    print(json.dumps({"benchmark": "neighbours", **described, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
