"""The rule of increments of docs/data.md, written once more and simply: for pools of less than a hundred images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from components.curation import closeup
from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.duplicates import Images, near_pairs
from components.curation.embedding import describe
from components.curation.measurement import measure
from foundry.images import ImageError, decode_image


def by_the_rule(base: CuratedDataset, pool: Path, config: CurationConfig) -> tuple[set[Any], set[Any]]:
    """(rows (source, cluster, weight) of the samples, rows (path, reason, of) of the rejected files)."""
    was = {row["source"]: row for row in base.samples.to_pylist()}
    was_rejected = {row["path"]: row for row in base.rejected.to_pylist()}
    files = {path.relative_to(pool).as_posix(): path.read_bytes() for path in pool.rglob("*") if path.is_file()}
    order = sorted(files, key=lambda path: path.split("/"))  # that of a folder pool
    key = {path: hashlib.sha256(data).hexdigest()[:24] for path, data in files.items()}

    def is_known(path: str) -> bool:
        row = was.get(path) or was_rejected.get(path)
        return row is not None and (row["sha256"] or "")[:24] == key[path]

    index = base.folder / "index"
    path_of = {row["path"]: row["cluster"] for row in _table(index / "images.parquet") if row["cluster"]}
    pictures: dict[str, str] = {}  # key to path of the known ones, which stay
    for path, row in was.items():
        pictures[row["key"]] = path
    for path, row in was_rejected.items():
        if row["reason"] == "balance" and path in files and is_known(path):
            pictures[key[path]] = path
    rejected: dict[str, tuple[str, str]] = {}
    copies: dict[str, str] = {}
    new = []
    for path in order:
        if not is_known(path):
            new.append(path)
        elif path in was_rejected and was_rejected[path]["reason"] != "balance":
            row = was_rejected[path]
            if row["of"] and row["of"] not in pictures:
                new.append(path)
                continue
            rejected[path] = (row["reason"], row["of"])
            if row["of"]:
                copies[path] = row["of"]

    measured = {}
    stored = {path: (base.image(list(was).index(path)) if path in was else files[path]) for path in pictures.values()}
    for path in [*pictures.values(), *copies, *new]:
        try:
            measured[path] = measure(decode_image(stored.get(path) or files[path]))
        except ImageError as error:
            rejected[path] = (error.reason, "")
    for path in [path for path in new if path in measured]:
        short, long = sorted([measured[path].width, measured[path].height])
        if short < 16 or long > 10 * short or measured[path].contrast < 2:
            reason = "too-small" if short < 16 else "too-elongated" if long > 10 * short else "blank"
            rejected[path] = (reason, "")
    new = [path for path in new if path not in rejected]

    # groups: known copies with their picture; a new image with what has its bytes, its pixels or shows the same
    nodes = [*pictures.values(), *copies, *new]
    place = {path: number for number, path in enumerate(nodes)}
    joined = [(place[path], place[pictures[of]]) for path, of in copies.items()]
    pairs = [(i, j) for j in range(len(nodes)) for i in range(j) if nodes[j] in new]
    size = {path: len(files.get(path) or stored[path]) for path in nodes}
    images = Images(
        path=nodes,
        sha256=[""] * len(nodes),
        size=np.array([size[path] for path in nodes]),
        evaluation=np.zeros(len(nodes), bool),
        **{
            name: np.array([getattr(measured[path], name) for path in nodes])
            for name in ("pixels_sha256", "width", "height", "hash", "grey", "colour")
        },
    )
    pixels = [decode_image(stored.get(path) or files[path]) for path in nodes]
    near = near_pairs(images, config.duplicates, lambda chosen: (closeup.take(pixels[place]) for place in chosen))
    joined += sorted({*pairs} & {(min(pair), max(pair)) for pair in near.tolist()})
    joined += [(i, j) for i, j in pairs if measured[nodes[i]].pixels_sha256 == measured[nodes[j]].pixels_sha256]
    group = list(range(len(nodes)))
    for _ in nodes:
        for i, j in joined:
            group[i] = group[j] = min(group[i], group[j])
    known = len(pictures)

    def merit(path: str) -> tuple[Any, ...]:
        found = measured[path]
        levels = found.colour.astype(float) * 2
        return (
            place[path] >= known,
            -found.width * found.height,
            np.sqrt((levels**2).mean()) < 4,
            -size[path],
            path.encode(),
        )

    drawable = []
    for path in new:
        members = [other for other in nodes if group[place[other]] == group[place[path]]]
        best = min(members, key=merit)
        if best == path:
            drawable.append(path)
            continue
        best_key = next((k for k, p in pictures.items() if p == best), None) or key[best]
        same_pixels = measured[best].pixels_sha256 == measured[path].pixels_sha256
        reason = "exact-duplicate" if best_key == key[path] else "same-pixels" if same_pixels else "near-duplicate"
        rejected[path] = (reason, best_key)

    # clusters of the new pictures
    mean, directions = np.load(index / "mean.npy"), np.load(index / "directions.npy")
    finest, parents = np.load(index / "centroids-1.npy"), np.load(index / "parents-1.npy")
    for path in drawable:
        found = measured[path]
        vector = (describe(found.grey[None], found.colour[None])[0].astype(np.float64) - mean) @ directions
        vector /= np.linalg.norm(vector)
        cluster = int(((finest.astype(np.float64) - vector) ** 2).sum(axis=1).argmin())
        path_of[path] = f"{parents[cluster]}/{cluster}"

    # drawing: samples by key, then the others in the order of the pool
    held = sorted(was, key=lambda path: was[path]["key"])
    others = [path for path in order if path in drawable or (path in pictures.values() and path not in was)]
    rows = held + others
    taken = dict.fromkeys(held, 1)
    target = max(round(config.balance.fraction * len(rows)), len(held))
    clusters = {path: tuple(map(int, path_of[path].split("/"))) for path in rows}
    fill(rows, (), target, clusters, taken, config.seed)
    samples = {(path, path_of[path], 1.0) for path in taken}
    undrawn = {(path, "balance", "") for path in others if path not in taken}
    return samples, undrawn | {(path, *found) for path, found in rejected.items()}


def fill(
    rows: list[str], path: tuple[int, ...], target: int, clusters: dict[str, Any], taken: dict[str, int], seed: int
) -> None:
    """Draw from ``rows``, the members of the cluster ``path``, until ``target`` of them are drawn."""
    generator = np.random.default_rng([seed, len(path), *path])
    leaf = len(path) == 2
    names = sorted({clusters[row][len(path)] for row in rows}) if not leaf else list(range(len(rows)))
    members = [[row for row in rows if clusters[row][len(path)] == name] for name in names] if not leaf else None
    groups = members or [[row] for row in rows]
    share = [sum(row in taken for row in group) for group in groups]
    if sum(map(len, groups)) <= target:
        share = [len(group) for group in groups]
    level = 0
    while sum(share) < target:
        least = [i for i, group in enumerate(groups) if share[i] == level and len(group) > level]
        if sum(share) + len(least) <= target:
            for i in least:
                share[i] += 1
            level += 1
        else:
            for i in generator.choice(least, target - sum(share), replace=False).tolist():
                share[i] += 1
    for name, group, count in zip(names, groups, share, strict=True):
        if leaf:
            taken.update(dict.fromkeys(group[:count], 1))
        elif count:
            fill(group, (*path, name), count, clusters, taken, seed)


def _table(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path).to_pylist()
