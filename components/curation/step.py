"""Raw pool -> deduplicated, balanced, versioned shards."""

from __future__ import annotations

import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.step import InputSpec, Step
from components.curation.config import TRANSIENT, CurationConfig, FilterConfig
from foundry.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from components.curation.config import DecodeConfig
    from components.curation.hierarchy import Hierarchy
    from components.curation.index import Concepts, Index
    from components.curation.measured import Measured
    from components.curation.pool import Pool
    from components.curation.scan import Scan
    from components.curation.selection import Selection
    from components.curation.shards import Sample
    from components.curation.sources import Source
    from components.curation.space import Space


@dataclass(frozen=True)
class Pictures:
    """Usable images that are compared with each other: ``rows`` (n,) of ``scan``, rising; row ``first`` of it is the
    first file of ``pool``."""

    scan: Scan
    rows: np.ndarray
    pool: Pool
    first: int = 0


def run(config: CurationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Curate ``inputs["pool"]`` into ``output``; returns counts and the content digest.

    With ``inputs["previous"]``, a curated dataset, what the pool has gained is added to it (:mod:`increment`), or the
    whole pool curated anew without measuring again and without what was deleted. Raises :class:`UserError` where the
    pool is absent, empty, damaged or holds no usable image, or the previous dataset cannot be used.
    """
    from itertools import chain

    import numpy as np

    from components.curation import dataset, shards
    from components.curation.held_out import held_out_rows
    from components.curation.index import Concepts
    from components.curation.measured import Measured
    from components.curation.previous import first_revision, open_previous
    from components.curation.report import write_report
    from components.curation.selection import BALANCED, RAW, RETRIEVED, part_names, select
    from components.curation.sources import joined, read_again, read_sources
    from components.curation.space import DescriptorSpace
    from foundry.settings import digest_of
    from training.data.mix import kinds_of

    part_names(config, inputs)
    work = output / "work"
    previous = None
    if url := inputs.get("previous"):
        if not config.anew:
            from components.curation.increment import run_increment

            return run_increment(config, inputs, output)
        previous = open_previous(url, work / "previous")
    started = time.monotonic()
    past, past_held_out = Measured.nothing(), Measured.nothing()
    lasting = lasting_settings(config)
    if previous and previous.dataset.description["curation"]["config"]["decode"] == lasting["decode"]:
        past, past_held_out = previous.index.images, previous.index.held_out
    source, files, _ = read_again(inputs["pool"], config, work, past)
    pool = source.pool
    raw = read_sources(inputs, "raw", config, work)
    scan = joined([source, *raw])
    scanned = time.monotonic()

    rejections = Rejections(scan)
    usable = filter_images(source.scan, config.filters, rejections)
    if not len(usable):
        most_first = sorted(rejections.counts().items(), key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{count} {reason}" for reason, count in most_first)
        raise UserError(f"{pool.url}: none of its {len(source.scan)} files is a usable image ({told})")
    compared = [Pictures(source.scan, usable, pool)]
    held_out, held = Measured.nothing(), np.zeros(0, np.int64)
    if url := inputs.get("evaluation"):
        measuring, held_out, _ = read_again(url, config, work, past_held_out, "evaluation")
        held = held_out_rows(held_out.scan, url, config.duplicates.held_out)
        compared.append(Pictures(held_out.scan, held, measuring.pool))
    deleted = previous.tombstones.scan() if previous else Measured.nothing().scan
    unique, because, described = _deduplicate(compared, deleted, config, rejections, work)
    if not len(unique):
        others = [*filter(None, [inputs.get("evaluation")]), *["deleted images"] * bool(len(deleted))]
        raise UserError(f"{pool.url}: all of its {len(usable)} usable images are copies of {' or '.join(others)}")

    space = _space(config, inputs, source, unique, work, output)
    vectors = space.vectors(source, unique)
    times, clusters, hierarchy = _balance(vectors, config, work)
    levels = [len(centroids) for centroids in hierarchy.centroids]
    members = {BALANCED: unique[times > 0]} if config.balance.enabled else {}
    seeds = read_sources(inputs, "seeds", config, work)
    found = _retrieve(space, vectors, seeds, config)
    members |= {f"{RETRIEVED}:{label}": unique[places] for label, places in found.items()}
    first = len(source.scan)
    for taken in raw:
        rows = _as_they_are(scan, taken, first, compared[1:], deleted, config, rejections, work)
        members[f"{RAW}:{taken.label}"] = rows
        first += len(taken.scan)
    chosen = select(members, scan.sha256)
    if not chosen.rows:
        raise UserError(f"{pool.url}: nothing was found for {', '.join(members)}; lower retrieval.min_hits")
    _reject_the_rest(scan, unique, clusters, chosen, rejections)

    drawn = {row: count for row, count in zip(unique.tolist(), times.tolist(), strict=True) if count}
    cluster_of = dict(zip(unique.tolist(), clusters, strict=True))
    weights = [float(drawn.get(row, 1)) for row in chosen.rows]
    parts = chosen.members(members)
    kinds_of(config.mix, {name: found for name, found in parts.items() if len(found)}, np.array(weights), "mix")
    samples = [as_sample(scan, row) for row in chosen.rows]
    places, sizes = shards.lay_out(samples, config.shard_mib << 20)
    shutil.rmtree(output / dataset.SHARDS, ignore_errors=True)
    encoded = chain.from_iterable(each.pool.files(0, config.decode.max_bytes) for each in (source, *raw))
    shards.write_shards(output / dataset.SHARDS, samples, places, sizes, encoded, pool.url)
    table = dataset.samples_table(
        samples,
        places,
        [cluster_of.get(row, "") for row in chosen.rows],
        weights,
        [because.get(row, "taken as it is") for row in chosen.rows],
        chosen.parts,
    )
    mix = config.mix.model_dump(mode="json")
    content = dataset.content_digest(table, mix)
    dataset.write_table(table, output / "samples.parquet")
    dataset.write_table(rejections.table(), output / "rejected.parquet")
    reasons = dict(sorted(rejections.counts().items()))
    counts = {
        "files": len(scan),
        "samples": len(samples),
        "rejected": sum(reasons.values()),
        "reasons": reasons,
        "unique": len(unique),
        "parts": {name: len(found) for name, found in parts.items()},
        "shards": len(sizes),
        "bytes": int(sum(sample.length for sample in samples)),
    }
    projection = space.projection if isinstance(space, DescriptorSpace) else None
    index = _index(
        files,
        rejections,
        because,
        cluster_of,
        vectors,
        described,
        Concepts(projection, hierarchy.centroids, hierarchy.parents[1:]),
        held_out,
        held,
    )
    sections = {
        "index": index.write(output),
        "tombstones": previous.tombstones.write(output) if previous else None,
        "revision": previous.revision("anew") if previous else first_revision(),
    }
    digests = {"pool": source.digest, "config": digest_of(lasting), "content": content}
    digests |= {f"{each.name}.{each.label}": each.digest for each in (*raw, *seeds)}
    made = {"config": lasting, "levels": levels, "embedding": space.facts}
    dataset.write_description(output, counts, digests, mix, made, **sections)
    shutil.rmtree(work)
    _check_accounting(scan, samples, rejections)
    write_report(output, output / "report.html", pool=pool, url=pool.url)
    return {
        **counts,
        "clusters": levels,
        "digest": content,
        "effective_clusters": round(effective_clusters([cluster_of[row] for row in drawn]), 2) if drawn else 0.0,
        "images_per_second": round(len(scan) / max(scanned - started, 1e-9), 1),
        "megapixels": round(float(np.sum(scan.width.astype(np.float64) * scan.height)) / 1e6, 3),
    }


def lasting_settings(config: CurationConfig) -> dict[str, Any]:
    """The settings that the result depends on, as ``dataset.json`` has them."""
    return config.model_dump(
        mode="json",
        exclude={
            "decode": {"workers"},
            "clusters": {"processes"},
            "embedding": {"processes", "fan_out"},
            "anew": True,
        },
    )


class Rejections:
    """Rows of rejected.parquet by their number in the pool; every file that is no sample gets exactly one."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._rows: dict[int, tuple[str, str, str, str | None]] = {}

    def add(self, row: int, reason: str, detail: str, of: str = "", cluster: str | None = None) -> None:
        """Reject a file: why, in words, the key of the image that is kept instead, and its cluster if it has one."""
        assert row not in self._rows
        self._rows[row] = (reason, detail, of, cluster)

    def of_reason(self, *reasons: str) -> dict[int, tuple[str, str, str, str | None]]:
        """(reason, detail, of, cluster) of the rows with one of these reasons."""
        return {row: told for row, told in self._rows.items() if told[0] in reasons}

    def get(self, row: int) -> tuple[str, str, str, str | None] | None:
        """(reason, detail, of, cluster) of a rejected file."""
        return self._rows.get(row)

    def counts(self) -> Counter[str]:
        """Files rejected for each reason."""
        return Counter(reason for reason, *_ in self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def table(self) -> Any:
        """``rejected.parquet`` in memory."""
        import pyarrow as arrow

        from components.curation.dataset import rejected_schema

        names = ("reason", "detail", "of", "cluster")
        rows = []
        for row in sorted(self._rows):
            known = {name: getattr(self._scan, name)[row] for name in ("path", "sha256")}
            size = {name: int(getattr(self._scan, name)[row]) or None for name in ("width", "height")}
            rows.append({**known, **size, **dict(zip(names, self._rows[row], strict=True))})
        return arrow.Table.from_pylist(rows, schema=rejected_schema())


def filter_images(scan: Scan, filters: FilterConfig, rejections: Rejections) -> np.ndarray:
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
    parts: Sequence[Pictures], deleted: Scan, config: CurationConfig, rejections: Rejections, work: Path
) -> tuple[np.ndarray, dict[int, str], np.ndarray]:
    """(rows of one image of each picture, why each of them is kept, descriptors of all rows of its scan), of the first
    of ``parts``; what the others show, which are held out, or the ``deleted``, is left out."""
    import numpy as np

    from components.curation.candidates import descriptors
    from components.curation.duplicates import Images, explain, find_duplicates, why_kept
    from components.curation.shards import key_of

    usable = parts[0].rows
    sizes = [len(usable), sum(len(part.rows) for part in parts[1:]), len(deleted)]
    images = Images.of(
        [*((part.scan, part.rows) for part in parts), (deleted, np.arange(len(deleted)))],
        work,
        evaluation=np.repeat([False, True, False], sizes),
        deleted=np.repeat([False, False, True], sizes),
    )
    found = descriptors(images.grey, images.colour)
    described = np.full((len(parts[0].scan), found.shape[1]), np.nan, np.float32)
    described[usable] = found[: len(usable)]
    images = replace(images, described=found)
    groups = find_duplicates(images, config.duplicates, lambda chosen: _closeups(parts, config.decode, chosen))
    because: dict[int, str] = {}
    for place, row in enumerate(usable.tolist()):
        keeper = int(groups.kept[place])
        if keeper == place:
            because[row] = why_kept(groups, place)
        else:
            rejections.add(row, *explain(images, groups, place), key_of(images.sha256[keeper]))
    return usable[groups.kept[: len(usable)] == range(len(usable))], because, described


def _space(
    config: CurationConfig, inputs: Mapping[str, str], source: Source, unique: np.ndarray, work: Path, output: Path
) -> Space:
    """What concepts are told apart by: what is given, else a backbone trained on the pool, else the descriptor."""
    from components.curation.bootstrap import train_backbone
    from components.curation.space import BackboneSpace, DescriptorSpace, given_space

    if (given := given_space(config, inputs, work)) is not None:
        return given
    if not config.embedding.bootstrap.enabled:
        return DescriptorSpace(config.clusters.components)
    samples = [as_sample(source.scan, row) for row in sorted(unique.tolist(), key=lambda row: source.scan.sha256[row])]
    files = source.pool.files(0, config.decode.max_bytes)
    shard_bytes = config.shard_mib << 20
    bootstrap = config.embedding.bootstrap
    network = train_backbone(bootstrap, samples, files, source.pool.url, shard_bytes, config.seed, work, output)
    return BackboneSpace(config, network, "bootstrap", work)


def _closeups(parts: Sequence[Pictures], config: DecodeConfig, chosen: Sequence[int]) -> Iterator[np.ndarray]:
    """Close-ups of the images of ``parts`` at rising positions ``chosen``, decoded from their pools once more."""
    from itertools import islice

    from components.curation.decoding import DecodeWorkers

    start, left = 0, deque(chosen)
    with DecodeWorkers(config, closeups=True) as workers:
        for part in parts:
            wanted = []
            while left and left[0] < start + len(part.rows):
                wanted.append(int(part.rows[left.popleft() - start]) - part.first)
            start += len(part.rows)
            if wanted:
                of_pool = set(wanted)
                files = islice(part.pool.files(0, config.max_bytes), wanted[-1] + 1)
                yield from workers.closeups(file for number, file in enumerate(files) if number in of_pool)


def _balance(vectors: np.ndarray, config: CurationConfig, work: Path) -> tuple[np.ndarray, list[str], Hierarchy]:
    """(how often each image is drawn, its cluster path 'top/.../finest', the clusters)."""
    import numpy as np

    from components.curation.clustering import cluster_here
    from components.curation.hierarchy import fitted
    from components.curation.sampling import balanced_sample

    clusters = config.clusters.model_copy(update={"levels": fitted(config.clusters.levels, len(vectors))})
    hierarchy = cluster_here(vectors, clusters, config.seed, work / "clusters")
    paths = hierarchy.paths()
    balance = config.balance
    if balance.enabled:
        target = balance.size or max(1, round(balance.fraction * len(vectors)))
        times = balanced_sample(paths, target, seed=config.seed, copies=balance.copies)
    else:
        times = np.zeros(len(vectors), np.int64)
    names = ["/".join(map(str, path)) for path in paths.tolist()]
    return times, names, hierarchy


def _retrieve(
    space: Space, vectors: np.ndarray, seeds: Sequence[Source], config: CurationConfig
) -> dict[str, np.ndarray]:
    """Places among ``vectors`` of the images retrieved by each seed set, by its label."""
    from components.curation.retrieval import retrieve
    from components.curation.sources import training_rows

    found = {}
    for number, source in enumerate(seeds):
        rows = training_rows(source)
        if not len(rows):
            raise UserError(f"{source.pool.url}: holds no image that could be a seed")
        settings = config.retrieval_of.get(source.label, config.retrieval)
        found[source.label] = retrieve(space.vectors(source, rows), vectors, settings, config.seed + number).images
    return found


def _as_they_are(
    scan: Scan,
    source: Source,
    first: int,
    held_out: Sequence[Pictures],
    deleted: Scan,
    config: CurationConfig,
    rejections: Rejections,
    work: Path,
) -> np.ndarray:
    """Rows of a dataset that is taken as it is: all its images but copies of images that measure or were deleted. Row
    ``first`` of ``scan`` is its first file."""
    import numpy as np

    files = range(first, first + len(source.scan))
    rows = np.array([row for row in files if not scan.reason[row]], np.int64)
    for row in sorted(set(files) - set(rows.tolist())):
        rejections.add(row, scan.reason[row], scan.detail[row])
    if not len(rows) or not len(deleted) + sum(len(part.rows) for part in held_out):
        return rows
    copies = Rejections(scan)
    _deduplicate([Pictures(scan, rows, source.pool, first), *held_out], deleted, config, copies, work)
    leaks = copies.of_reason("evaluation-copy", "deleted")
    for row, told in leaks.items():
        rejections.add(row, *told)
    return np.array([row for row in rows.tolist() if row not in leaks], np.int64)


def _reject_the_rest(
    scan: Scan, unique: np.ndarray, clusters: Sequence[str], chosen: Selection, rejections: Rejections
) -> None:
    """Say of each deduplicated image in no part, and of each that another of equal bytes stands for, why it is none."""
    from components.curation.shards import key_of

    samples = {*chosen.rows, *chosen.again}
    rows = unique.tolist()
    cluster_of = dict(zip(rows, clusters, strict=True))
    for row, detail in undrawn(rows, clusters, [row in samples for row in rows]):
        rejections.add(row, "balance", detail, cluster=cluster_of[row])
    for row, stands in chosen.again.items():
        rejections.add(row, "exact-duplicate", f"is in the dataset as {scan.path[stands]}", key_of(scan.sha256[row]))


def undrawn(rows: Sequence[int], clusters: Sequence[str], drawn: Sequence[bool]) -> list[tuple[int, str]]:
    """(row, why) of the pictures that are not ``drawn`` into any part; the arguments are of one order."""
    members = Counter(clusters)
    chosen = Counter(name for name, taken in zip(clusters, drawn, strict=True) if taken)
    return [
        (row, f"cluster {name}: {chosen[name]} of {members[name]} images drawn")
        for row, name, taken in zip(rows, clusters, drawn, strict=True)
        if not taken
    ]


def _index(
    files: Measured,
    rejections: Rejections,
    because: Mapping[int, str],
    clusters: Mapping[int, str],
    vectors: np.ndarray,
    described: np.ndarray,
    concepts: Concepts,
    held_out: Measured,
    held: np.ndarray,
) -> Index:
    """The index of a dataset of all ``files`` of a pool."""
    import numpy as np

    from components.curation.index import SAMPLE, Index

    verdicts = [rejections.get(row) or (SAMPLE, "", "", None) for row in range(len(files))]
    return Index(
        images=files,
        verdict=[verdict for verdict, *_ in verdicts],
        why=[because.get(row, detail) for row, (_, detail, *_) in enumerate(verdicts)],
        of=[of for _, _, of, _ in verdicts],
        cluster=[clusters.get(row, "") for row in range(len(files))],
        vectors=vectors,
        described=described,
        concepts=concepts,
        held_out=held_out,
        held=np.isin(np.arange(len(held_out)), held),
    )


def as_sample(scan: Scan, row: int) -> Sample:
    """The file ``row`` as a sample."""
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


def effective_clusters(clusters: list[str]) -> float:
    """Exponential of the entropy of the drawn images over finest clusters: how many equal clusters they are worth."""
    import numpy as np

    from components.curation.sampling import effective_number

    return effective_number(np.array(list(Counter(clusters).values())))


def _check_accounting(scan: Scan, samples: list[Sample], rejections: Rejections) -> None:
    keys = {sample.key for sample in samples}
    if len(samples) + len(rejections) != len(scan) or len(keys) != len(samples):
        raise AssertionError(f"{len(scan)} files, {len(samples)} samples, {len(keys)} keys, {len(rejections)} rejected")


def _environment(config: CurationConfig) -> dict[str, Any]:
    """Facts that decide pixels and floating-point results."""
    from importlib.metadata import version

    from components.common.accelerator import accelerator_name, default_device

    embedding = config.embedding
    facts: dict[str, Any] = {name: version(name) for name in ("numpy", "pillow", "opencv-python-headless", "torch")}
    facts["device"] = embedding.device if embedding.device != "auto" else default_device()
    facts["accelerator"] = accelerator_name() if facts["device"] != "cpu" else None
    if embedding.bootstrap.enabled:
        from components.common.fingerprint import code_digest

        facts["recipe"] = embedding.bootstrap.resolved_recipe().model_dump(mode="json", exclude={"name", "about"})
        facts["training"] = code_digest(["training.__main__"])
    return facts


def _disk_bytes(config: CurationConfig, inputs: Mapping[str, str]) -> int:
    """About the size of a local pool and of datasets taken as they are, the work files and the index."""
    from foundry.storage import files_under, is_local, local_path

    total = 64 << 20
    for name, url in inputs.items():
        if not name.startswith(("pool", "raw.")) or not is_local(url) or not local_path(url).exists():
            continue
        path = local_path(url)
        sizes = [file.stat().st_size for file in (files_under(path) if path.is_dir() else [path])]
        total += sum(sizes) * (2 if config.embedding.bootstrap.enabled else 1) + 21_000 * len(sizes)
    return total


def _embeddings_digest(folder: str) -> str:
    """What names given embeddings; the step reads them from a local folder."""
    from components.curation.embeddings import GivenEmbeddings
    from foundry.storage import local_path

    return GivenEmbeddings(local_path(folder)).digest()


def _pool_digest(url: str) -> str:
    """What names the pool: also its unreadable files, and what a list of URLs points to."""
    from components.curation.pool import pool_digest

    return pool_digest(url)


def _dataset_digest(url: str) -> str:
    """What names the previous dataset."""
    from components.curation.previous import dataset_digest

    return dataset_digest(url)


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
        InputSpec(
            "backbone",
            "network whose embeddings tell concepts apart: a training run, a Hugging Face folder, models:/NAME@ALIAS",
            required=False,
            kind="model",
        ),
        InputSpec(
            "embeddings",
            "embeddings in place of a backbone: folder with vectors.npy and keys.npy (docs/data.md)",
            required=False,
            kind="url",
            digest=_embeddings_digest,
        ),
        InputSpec(
            "seeds",
            "images whose like are retrieved from the pool: a URL as for pool, or NAME=URL;NAME=URL",
            required=False,
            kind="url",
            digest=_pool_digest,
            several=True,
        ),
        InputSpec(
            "raw",
            "datasets that are taken as they are: a URL as for pool, or NAME=URL;NAME=URL",
            required=False,
            kind="url",
            digest=_pool_digest,
            several=True,
        ),
        InputSpec(
            "previous",
            "curated dataset of an earlier state of the pool, to add to: a folder, URL, dvc:// or PATH@REVISION",
            required=False,
            kind="url",
            digest=_dataset_digest,
        ),
    ),
    run=run,
    code=("components.curation.step", "components.curation.decode_worker", "components.common.report"),
    transient=TRANSIENT,
    environment=_environment,
    disk_bytes=_disk_bytes,
    records=("report.html", "bootstrap/metrics.jsonl", "bootstrap/events.jsonl"),  # the dataset is the same without
)
