"""Curating a whole pool."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from components.curation import dataset, shards
from components.curation.bootstrap import train_backbone
from components.curation.clustering import cluster_here
from components.curation.config import CurationConfig
from components.curation.held_out import held_out_rows
from components.curation.hierarchy import Hierarchy, fitted
from components.curation.index import SAMPLE, Concepts, Index
from components.curation.measured import Measured
from components.curation.outcome import Outcome
from components.curation.previous import Previous, first_revision
from components.curation.rejections import Rejections, filter_images, undrawn
from components.curation.removal import Pictures, deduplicate, without_held_out
from components.curation.retrieval import retrieve
from components.curation.sampling import balanced_sample, effective_clusters
from components.curation.scan import Scan
from components.curation.selection import BALANCED, RAW, RETRIEVED, Selection, select
from components.curation.shards import Sample, key_of
from components.curation.sources import Source, joined, read_again, read_sources, training_rows
from components.curation.space import BackboneSpace, DescriptorSpace, Space, given_space
from foundry.errors import UserError
from foundry.settings import digest_of
from training.data.mix import kinds_of


def run_full(
    config: CurationConfig, inputs: Mapping[str, str], output: Path, previous: Previous | None
) -> dict[str, Any]:
    """Curate all of ``inputs["pool"]`` into ``output``; returns what :func:`step.run` returns.

    Of ``previous``, an earlier dataset, measurements are taken over, and what was deleted from it is left out.
    """
    work = output / "work"
    started = time.monotonic()
    past, past_held_out = Measured.nothing(), Measured.nothing()
    lasting = config.lasting()
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
    unique, because, described = deduplicate(compared, deleted, config, rejections, work)
    if not len(unique):
        others = [*filter(None, [inputs.get("evaluation")]), *["deleted images"] * bool(len(deleted))]
        raise UserError(f"{pool.url}: all of its {len(usable)} usable images are copies of {' or '.join(others)}")

    space = _space(config, inputs, source, unique, work, output)
    vectors = space.vectors(source, unique)
    times, clusters, hierarchy = balance(vectors, config, work)
    members = {BALANCED: unique[times > 0]} if config.balance.enabled else {}
    seeds = read_sources(inputs, "seeds", config, work)
    found = _retrieve(space, vectors, seeds, config)
    members |= {f"{RETRIEVED}:{label}": unique[places] for label, places in found.items()}
    first = len(source.scan)
    for taken in raw:
        rows = without_held_out(scan, taken, first, compared[1:], deleted, config, rejections, work)
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
    samples = [Sample.of(scan, row) for row in chosen.rows]
    places, sizes = shards.lay_out(samples, config.shard_mib << 20)
    shutil.rmtree(output / dataset.SHARDS, ignore_errors=True)
    encoded = chain.from_iterable(each.pool.files(0, config.decode.max_bytes) for each in (source, *raw))
    shards.write_shards(output / dataset.SHARDS, samples, places, sizes, encoded, pool.url)
    projection = space.projection if isinstance(space, DescriptorSpace) else None
    concepts = Concepts(projection, hierarchy.centroids, hierarchy.parents[1:])
    levels = [len(centroids) for centroids in hierarchy.centroids]
    counts = Outcome(
        files=len(scan),
        samples=dataset.samples_table(
            samples,
            places,
            [cluster_of.get(row, "") for row in chosen.rows],
            weights,
            [because.get(row, "taken as it is") for row in chosen.rows],
            chosen.parts,
        ),
        rejected=rejections.table(),
        parts=list(parts),
        mix=config.mix.model_dump(mode="json"),
        curation={"config": lasting, "levels": levels, "embedding": space.facts},
        counts={"unique": len(unique)},
        digests={
            "pool": source.digest,
            "config": digest_of(lasting),
            **{f"{each.name}.{each.label}": each.digest for each in (*raw, *seeds)},
        },
        index=_index(files, rejections, because, cluster_of, vectors, described, concepts, held_out, held),
        tombstones=previous.tombstones if previous else None,
        revision=previous.revision("anew") if previous else first_revision(),
    ).write(output, pool, pool.url)
    return {
        **counts,
        "clusters": levels,
        "effective_clusters": round(effective_clusters([cluster_of[row] for row in drawn]), 2) if drawn else 0.0,
        **scan.rates(scanned - started),
    }


def _space(
    config: CurationConfig, inputs: Mapping[str, str], source: Source, unique: np.ndarray, work: Path, output: Path
) -> Space:
    """What concepts are told apart by: what is given, else a backbone trained on the pool, else the descriptor."""
    if (given := given_space(config, inputs, work)) is not None:
        return given
    if not config.embedding.bootstrap.enabled:
        return DescriptorSpace(config.clusters.components)
    samples = [Sample.of(source.scan, row) for row in sorted(unique.tolist(), key=lambda row: source.scan.sha256[row])]
    files = source.pool.files(0, config.decode.max_bytes)
    shard_bytes = config.shard_mib << 20
    bootstrap = config.embedding.bootstrap
    network = train_backbone(bootstrap, samples, files, source.pool.url, shard_bytes, config.seed, work, output)
    return BackboneSpace(config, network, "bootstrap", work)


def balance(vectors: np.ndarray, config: CurationConfig, work: Path) -> tuple[np.ndarray, list[str], Hierarchy]:
    """(how often each image is drawn, its cluster path 'top/.../finest', the clusters)."""
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
    found = {}
    for number, source in enumerate(seeds):
        rows = training_rows(source)
        if not len(rows):
            raise UserError(f"{source.pool.url}: holds no image that could be a seed")
        settings = config.retrieval_of.get(source.label, config.retrieval)
        found[source.label] = retrieve(space.vectors(source, rows), vectors, settings, config.seed + number).images
    return found


def _reject_the_rest(
    scan: Scan, unique: np.ndarray, clusters: Sequence[str], chosen: Selection, rejections: Rejections
) -> None:
    """Say of each deduplicated image in no part, and of each that another of equal bytes stands for, why it is none."""
    samples = {*chosen.rows, *chosen.again}
    rows = unique.tolist()
    cluster_of = dict(zip(rows, clusters, strict=True))
    for row, detail in undrawn(rows, clusters, [row in samples for row in rows]):
        rejections.add(row, "balance", detail, cluster=cluster_of[row])
    for row, stands in chosen.again.items():
        rejections.add(row, "exact-duplicate", f"is in the dataset as {scan.path[stands]}", key_of(scan.sha256[row]))


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
