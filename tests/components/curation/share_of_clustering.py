"""One process's part in clustering and searching, which test_clustering_processes.py starts several times.

The first, the first two and all processes do the same work, each number in a group of its own.
"""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.distributed as dist

from components.curation import neighbours as search
from components.curation.compute import Compute
from components.curation.config import Level
from components.curation.hierarchy import hierarchical_kmeans
from components.curation.kmeans import kmeans

CLUSTERS, COUNT, BLOCK = 40, 6, 512


def results(points: np.ndarray, compute: Compute) -> dict[str, np.ndarray]:
    """What every process gets."""
    others = np.array(points)
    own = compute.own_rows(len(points))
    others[: own.start] = np.nan
    others[own.stop :] = np.nan
    found = {}
    for spherical in (False, True):  # it sees only its own rows
        each = kmeans(others, CLUSTERS, seed=1, iterations=12, spherical=spherical, compute=compute)
        found |= {f"{name} {spherical}": np.asarray(value) for name, value in vars(each).items()}
    levels = [Level(clusters=60, splits=6), Level(clusters=20, resampled=2, passes=2), Level(clusters=4)]
    hierarchy = hierarchical_kmeans(points, levels, seed=2, iterations=10, compute=compute)
    found |= {f"parents {number}": array for number, array in enumerate(hierarchy.parents)}
    found |= {f"centroids {number}": array for number, array in enumerate(hierarchy.centroids)}
    level = Level(clusters=30, resampled=40, passes=2)  # more members than a block
    resampled = hierarchical_kmeans(points, [level], seed=3, iterations=5, compute=compute)
    found |= {"resampled parents": resampled.parents[0], "resampled centroids": resampled.centroids[0]}
    graph = search.neighbours(points, COUNT, compute=compute)
    found |= {f"graph {name}": np.asarray(value) for name, value in vars(graph).items()}
    exact = search.neighbours(points[:700], COUNT, compute=compute)
    return found | {"exact graph": exact.index, "exact similarity": exact.similarity}


def main(rank: int, processes: int, rendezvous: str, points: str, output: str) -> None:
    """Do the work in groups of one, two and all processes, and write what this process got."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    search.EXACT, search.FIRST = 1000, 64
    mapped = np.load(points, mmap_mode="r")
    for count in (1, 2, processes):
        group = dist.new_group(list(range(count)))
        if rank < count:
            torch.set_num_threads(1 + rank % 2)
            compute = Compute(threads=1 + (rank + count) % 2, block_rows=BLOCK, group=group)
            np.savez(f"{output}-{count}-{rank}.npz", **results(mapped, compute))
    dist.destroy_process_group()
