"""What the report says about the curated dataset: counts, why files were rejected, a look at its clusters."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.common.manifest import read_manifest
from components.evaluation.pictures import sheet, tile
from foundry.images import decode_image
from training.data.shards import ShardDataset


@dataclass(frozen=True)
class CuratedFacts:
    """Read from the files of a curated dataset."""

    description: dict[str, Any]
    """dataset.json."""
    kept: int
    rejected: dict[str, int]
    """Reason -> files, most frequent first."""
    clusters: list[tuple[str, list[int]]]
    """(cluster, positions of its samples), largest first; empty where samples name no cluster."""
    page: Path | None
    """The dataset's own page, where it has one."""
    curated: tuple[float, float] | None
    """(seconds that curation took, files it decoded a second), where a manifest tells."""

    @property
    def found(self) -> int:
        """Files of the pool."""
        return self.kept + sum(self.rejected.values())


def read_facts(folder: Path) -> CuratedFacts:
    """The facts of the dataset in ``folder``, which :class:`ShardDataset` has checked."""
    import pyarrow.parquet as parquet

    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    rejected: Counter[str] = Counter()
    if (folder / "rejected.parquet").is_file():
        rejected.update(parquet.read_table(folder / "rejected.parquet", columns=["reason"])["reason"].to_pylist())
    samples = folder / "samples.parquet"
    groups: dict[str, list[int]] = {}
    if "cluster" in parquet.read_schema(samples).names:
        for index, cluster in enumerate(parquet.read_table(samples, columns=["cluster"])["cluster"].to_pylist()):
            if cluster:  # datasets taken as they are have none
                groups.setdefault(_path(cluster), []).append(index)
    kept = parquet.read_metadata(samples).num_rows
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    page = folder / "report.html"
    made = read_manifest(folder)
    rate = made.metrics.get("images_per_second") if made else None
    return CuratedFacts(
        description,
        kept,
        dict(rejected.most_common()),
        ordered,
        page if page.is_file() else None,
        (made.seconds, float(rate)) if made and rate else None,
    )


def _path(cluster: Any) -> str:
    return "/".join(str(part) for part in cluster) if isinstance(cluster, (list, tuple)) else str(cluster)


def cluster_sheet(dataset: ShardDataset, facts: CuratedFacts, clusters: int = 10, samples: int = 6) -> bytes | None:
    """PNG: a column for each of ``clusters`` clusters, spread over all by size, with some of its images."""
    groups = [group for group in facts.clusters if len(group[1]) >= samples] or facts.clusters
    if not groups:
        return None
    count = min(clusters, len(groups))
    chosen = [groups[index * len(groups) // count] for index in range(count)]
    columns: list[tuple[str, list[np.ndarray]]] = []
    for _, members in chosen:
        picked = [members[index * len(members) // samples] for index in range(min(samples, len(members)))]
        tiles = [tile(decode_image(dataset.read(index)), 88) for index in picked]
        columns.append((f"{len(members)} images", tiles))
    return sheet(columns)
