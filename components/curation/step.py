"""Raw pool -> deduplicated, balanced, versioned shards."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.step import InputSpec, Step
from components.curation.config import TRANSIENT, CurationConfig, FilterConfig
from foundry.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from components.curation.scan import Scan
    from components.curation.shards import Sample


def run(config: CurationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Curate ``inputs["pool"]`` into ``output``; returns counts and the content digest.

    Raises :class:`UserError` where the pool is absent, empty, damaged or holds no usable image.
    """
    import numpy as np

    from components.curation import dataset, shards
    from components.curation.held_out import held_out_rows
    from components.curation.pool import open_pool
    from components.curation.scan import scan_pool
    from foundry.settings import digest_of

    started = time.monotonic()
    pool = open_pool(inputs["pool"])
    pool_digest = pool.digest()
    work = output / "work"
    scan = scan_pool(pool, pool_digest, config.decode, work / "scan")
    scanned = time.monotonic()

    rejections = _Rejections(scan)
    usable = _filter(scan, config.filters, rejections)
    if not len(usable):
        most_first = sorted(rejections.counts().items(), key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{count} {reason}" for reason, count in most_first)
        raise UserError(f"{pool.url}: none of its {len(scan)} files is a usable image ({told})")
    parts = [(scan, usable)]
    if url := inputs.get("evaluation"):
        known = open_pool(url)
        measured = scan_pool(known, known.digest(), config.decode, work / "evaluation")
        parts.append((measured, held_out_rows(measured, url, config.duplicates.held_out)))
    unique, because = _deduplicate(parts, config, rejections)
    if not len(unique):
        raise UserError(f"{pool.url}: all of its {len(usable)} usable images are copies of {inputs['evaluation']}")
    drawn, weights, clusters, levels = _balance(scan, unique, config, rejections, work)

    rows = sorted(range(len(drawn)), key=lambda place: scan.sha256[drawn[place]])
    samples = [_sample(scan, int(drawn[place])) for place in rows]
    places, sizes = shards.lay_out(samples, config.shard_mib << 20)
    shutil.rmtree(output / dataset.SHARDS, ignore_errors=True)
    shards.write_shards(
        output / dataset.SHARDS, samples, places, sizes, pool.files(0, config.decode.max_bytes), pool.url
    )
    table = dataset.samples_table(
        samples,
        places,
        [clusters[place] for place in rows],
        [float(weights[place]) for place in rows],
        [because[int(drawn[place])] for place in rows],
    )
    content = dataset.content_digest(table)
    dataset.write_table(table, output / "samples.parquet")
    dataset.write_table(rejections.table(), output / "rejected.parquet")
    reasons = dict(sorted(rejections.counts().items()))
    counts = {
        "files": len(scan),
        "samples": len(samples),
        "rejected": sum(reasons.values()),
        "reasons": reasons,
        "unique": len(unique),
        "shards": len(sizes),
        "bytes": int(sum(sample.length for sample in samples)),
    }
    lasting = config.model_dump(mode="json", exclude={"decode": {"workers"}, "clusters": {"processes"}})
    digests = {"pool": pool_digest, "config": digest_of(lasting), "content": content}
    dataset.write_description(output, counts, digests, {"config": lasting, "levels": levels})
    shutil.rmtree(work)
    _check_accounting(scan, samples, rejections)
    return {
        **counts,
        "clusters": levels,
        "digest": content,
        "effective_clusters": round(_effective(clusters), 2),
        "images_per_second": round(len(scan) / max(scanned - started, 1e-9), 1),
        "megapixels": round(float(np.sum(scan.width.astype(np.float64) * scan.height)) / 1e6, 3),
    }


class _Rejections:
    """Rows of rejected.parquet by their number in the pool; every file that is no sample gets exactly one."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._rows: dict[int, tuple[str, str, str]] = {}

    def add(self, row: int, reason: str, detail: str, of: str = "") -> None:
        assert row not in self._rows
        self._rows[row] = (reason, detail, of)

    def counts(self) -> Counter[str]:
        return Counter(reason for reason, _, _ in self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def table(self) -> Any:
        import pyarrow as arrow

        from components.curation.dataset import rejected_schema

        names = ("path", "reason", "detail", "of", "sha256")
        rows = [(self._scan.path[row], *self._rows[row], self._scan.sha256[row]) for row in sorted(self._rows)]
        return arrow.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=rejected_schema())


def _filter(scan: Scan, filters: FilterConfig, rejections: _Rejections) -> np.ndarray:
    """Pool rows of the images that are decoded and of use, in pool order."""
    import numpy as np

    usable = []
    for row, reason in enumerate(scan.reason):
        width, height = int(scan.width[row]), int(scan.height[row])
        if reason:
            rejections.add(row, reason, scan.detail[row])
        elif min(width, height) < filters.min_side:
            rejections.add(row, "too-small", f"{width} x {height}, the shorter side is below {filters.min_side}")
        elif max(width, height) > filters.max_aspect * min(width, height):
            limit = f"longer than {filters.max_aspect:g} times its side"
            rejections.add(row, "too-elongated", f"{width} x {height}, {limit}")
        elif scan.contrast[row] < filters.min_contrast:
            rejections.add(row, "blank", f"its pixels vary by {scan.contrast[row]:.2f} levels")
        else:
            usable.append(row)
    return np.array(usable, dtype=np.int64)


def _deduplicate(
    parts: Sequence[tuple[Scan, np.ndarray]], config: CurationConfig, rejections: _Rejections
) -> tuple[np.ndarray, dict[int, str]]:
    """(rows of one image of each picture, why each of them is kept), of the first of ``parts``: scans and usable rows.

    What the other parts show is held out.
    """
    import numpy as np

    from components.curation.duplicates import Images, find_duplicates
    from components.curation.shards import key_of

    usable = parts[0][1]

    def texts(name: str) -> list[str]:
        return [getattr(scan, name)[row] for scan, rows in parts for row in rows]

    def numbers(name: str) -> np.ndarray:
        return np.concatenate([getattr(scan, name)[rows] for scan, rows in parts])

    images = Images(
        path=texts("path"),
        sha256=texts("sha256"),
        pixels_sha256=texts("pixels_sha256"),
        size=numbers("size"),
        width=numbers("width"),
        height=numbers("height"),
        hash=numbers("hash"),
        grey=numbers("grey"),
        colour=numbers("colour"),
        evaluation=np.repeat([False, True], [len(usable), sum(len(rows) for _, rows in parts[1:])]),
    )
    groups = find_duplicates(images, config.duplicates)
    because: dict[int, str] = {}
    for place, row in enumerate(usable.tolist()):
        keeper = int(groups.kept[place])
        if keeper == place:
            size, merit = int(groups.sizes[place]), groups.advantage[place]
            because[row] = f"best of {size} copies by {merit}" if size > 1 else "unique"
            continue
        detail = f"copy of {images.path[keeper]}, kept for its {groups.advantage[place]}"
        if images.evaluation[keeper]:
            detail = f"copy of {images.path[keeper]} of the evaluation set"
        rejections.add(row, groups.reason[place], detail, key_of(images.sha256[keeper]))
    return usable[groups.kept[: len(usable)] == range(len(usable))], because


def _balance(
    scan: Scan, unique: np.ndarray, config: CurationConfig, rejections: _Rejections, work: Path
) -> tuple[np.ndarray, np.ndarray, list[str], list[int]]:
    """(pool rows drawn, how often each, its cluster path 'top/.../finest', clusters of each level, finest first)."""
    import numpy as np

    from components.curation.clustering import cluster_here
    from components.curation.embedding import embed
    from components.curation.hierarchy import fitted
    from components.curation.sampling import balanced_sample

    clusters = config.clusters.model_copy(update={"levels": fitted(config.clusters.levels, len(unique))})
    vectors = embed(scan.grey[unique], scan.colour[unique], clusters.components)
    hierarchy = cluster_here(vectors, clusters, config.seed, work / "clusters")
    paths = hierarchy.paths()
    balance = config.balance
    target = balance.size or max(1, round(balance.fraction * len(unique)))
    times = balanced_sample(paths, target, seed=config.seed, copies=balance.copies)
    names = ["/".join(map(str, path)) for path in paths.tolist()]
    members, chosen = Counter(names), Counter(name for name, count in zip(names, times, strict=True) if count)
    for row, name, count in zip(unique.tolist(), names, times.tolist(), strict=True):
        if not count:
            rejections.add(row, "balance", f"cluster {name}: {chosen[name]} of {members[name]} images drawn")
    drawn = np.flatnonzero(times)
    levels = [len(centroids) for centroids in hierarchy.centroids]
    return unique[drawn], times[drawn], [names[place] for place in drawn], levels


def _sample(scan: Scan, row: int) -> Sample:
    from components.curation.shards import Sample, key_of

    return Sample(
        row=row,
        key=key_of(scan.sha256[row]),
        extension=scan.extension[row],
        sha256=scan.sha256[row],
        length=int(scan.size[row]),
        width=int(scan.width[row]),
        height=int(scan.height[row]),
        source=scan.path[row],
    )


def _effective(clusters: list[str]) -> float:
    """Exponential of the entropy of the drawn images over finest clusters: how many equal clusters they are worth."""
    import numpy as np

    shares = np.array(list(Counter(clusters).values()), dtype=np.float64) / len(clusters)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _check_accounting(scan: Scan, samples: list[Sample], rejections: _Rejections) -> None:
    keys = {sample.key for sample in samples}
    if len(samples) + len(rejections) != len(scan) or len(keys) != len(samples):
        raise AssertionError(f"{len(scan)} files, {len(samples)} samples, {len(keys)} keys, {len(rejections)} rejected")


def _environment(config: CurationConfig) -> dict[str, Any]:
    """Facts that decide pixels and floating-point results."""
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "torch", "pillow", "opencv-python-headless")}


def _disk_bytes(config: CurationConfig, inputs: Mapping[str, str]) -> int:
    """About the size of a local pool, and the work files."""
    from foundry.storage import files_under, is_local, local_path

    spare = 64 << 20
    url = inputs["pool"]
    if not is_local(url) or not local_path(url).exists():
        return spare
    path = local_path(url)
    files = files_under(path) if path.is_dir() else [path]
    sizes = [file.stat().st_size for file in files]
    return spare + sum(sizes) + 5000 * len(sizes)


def _pool_digest(url: str) -> str:
    """What names the pool: also its unreadable files, and what a list of URLs points to."""
    from components.curation.pool import pool_digest

    return pool_digest(url)


STEP = Step(
    name="curation",
    summary="Turn a raw pool of images into a deduplicated, balanced, versioned dataset of shards.",
    config=CurationConfig,
    inputs=(
        InputSpec(
            "pool",
            "images without labels: a folder, archive, WebDataset shards, Parquet or list of URLs; sample: is embedded",
            kind="url",
            digest=_pool_digest,
        ),
        InputSpec(
            "evaluation",
            "images that will measure the models (a labelled set or any pool), of which no copy is kept",
            required=False,
            kind="url",
            digest=_pool_digest,
        ),
    ),
    run=run,
    code=("components.curation.step", "components.curation.decode_worker"),
    transient=TRANSIENT,
    environment=_environment,
    disk_bytes=_disk_bytes,
)
