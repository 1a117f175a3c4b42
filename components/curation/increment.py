"""Adding to a curated dataset what its pool has gained. The rule is written out in docs/data.md.

Of a file of known path and bytes nothing is done again: it keeps its verdict, a sample its row. New files are filtered,
compared with all known pictures and each other, put into the clusters that are there, and drawn where these have least.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curation import dataset, shards
from components.curation.comparison import Closeups, HeldOut, deduplicate
from components.curation.compatibility import check_parts, check_settings, same_space
from components.curation.config import CurationConfig
from components.curation.index import SAMPLE
from components.curation.outcome import Outcome
from components.curation.pool import Pool
from components.curation.previous import Previous, carry_over
from components.curation.sampling import effective_clusters
from components.curation.selection import BALANCED
from components.curation.shards import Sample
from components.curation.sources import read_again
from components.curation.verdicts import BALANCE, Files
from foundry.settings import digest_of

if TYPE_CHECKING:
    from pyarrow import Table


def run_increment(
    config: CurationConfig, inputs: Mapping[str, str], output: Path, previous: Previous
) -> dict[str, Any]:
    """Add what ``inputs["pool"]`` has gained to ``previous``, the dataset at ``inputs["previous"]``; returns what
    :func:`step.run` returns.

    Raises :class:`UserError` where that has other parts than the balanced one, or was made with other settings or
    other embeddings.
    """
    started = time.monotonic()
    work = output / "work"
    check_parts(inputs, previous)
    check_settings(config, previous, inputs["previous"])
    space = same_space(config, inputs, previous, work)
    source, now, known = read_again(inputs["pool"], config, work, previous.index.images)
    held_out = HeldOut.of(inputs.get("evaluation"), config, previous.index, work)
    scanned = time.monotonic()

    files = Files.of(now, known, previous.index)
    files.reconsider(held_out.keys())
    files.filter(config)
    closeups = Closeups(files, previous.dataset, source.pool, config.decode)
    deduplicate(files, held_out, previous.tombstones.scan(), closeups, config, work)
    files.place(previous.index, lambda rows: space.vectors(source, rows))
    weights = files.draw(previous.dataset.samples, config)
    table = _write_samples(files, weights, previous, source.pool, config, output)

    before = set(previous.dataset.samples["key"].to_pylist())
    after = set(table["key"].to_pylist())
    rejected = files.rejected()
    concepts = previous.index.concepts
    held = np.isin(np.arange(len(held_out.files)), held_out.rows)
    levels = [len(centroids) for centroids in concepts.centroids]
    lasting = config.lasting()
    counts = Outcome(
        files=len(files),
        samples=table,
        rejected=rejected,
        parts=[BALANCED],
        mix=previous.dataset.description["mix"],
        curation={"config": lasting, "levels": levels, "embedding": previous.embedding},
        counts={
            "files": len(now),
            "unique": len(table) + rejected["reason"].to_pylist().count(BALANCE),
            "new_files": int((known < 0).sum()),
            "new_samples": len(after - before),
            "removed_samples": len(before - after),
            "absent_files": len(files) - len(now),
        },
        digests={"pool": source.digest, "config": digest_of(lasting)},
        index=files.index(concepts, held_out.files, held),
        tombstones=previous.tombstones,
        revision=previous.revision("increment"),
    ).write(output, source.pool, inputs["pool"])
    return {
        **counts,
        "clusters": levels,
        "effective_clusters": round(effective_clusters(table["cluster"].to_pylist()), 2),
        **now.scan.rates(scanned - started),
    }


def _write_samples(
    files: Files, weights: Mapping[str, float], previous: Previous, pool: Pool, config: CurationConfig, output: Path
) -> Table:
    """Carry the samples of before over and write the new ones into shards of their own; returns ``samples.parquet``."""
    import pyarrow as arrow

    before = set(previous.dataset.samples["key"].to_pylist())
    old = carry_over(previous, before - set(weights), output, output / "work")
    place = old.schema.get_field_index("weight")
    old = old.set_column(place, "weight", [[weights[key] for key in old["key"].to_pylist()]])
    new = sorted((row for row in files.rows(SAMPLE).tolist() if files.key(row) not in before), key=files.key)
    if not new:
        return old
    number = {row: position for position, row in enumerate(sorted(new))}
    samples = [replace(Sample.of(files.scan, row), row=number[row]) for row in new]
    places, sizes = shards.lay_out(samples, config.shard_mib << 20)
    folder = output / "work" / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    found = files.read(set(new), pool, config.decode.max_bytes)
    shards.write_shards(folder, samples, places, sizes, found, pool.url)
    first = 1 + max(shards.shard_number(name) for name in set(previous.dataset.samples["shard"].to_pylist()))
    for written in range(len(sizes)):
        target = output / dataset.SHARDS / shards.shard_name(first + written)
        os.rename(folder / shards.shard_name(written), target)
    added = dataset.samples_table(
        samples,
        [replace(place, shard=first + place.shard) for place in places],
        [files.cluster[row] for row in new],
        [weights[files.key(row)] for row in new],
        [files.why[row] for row in new],
        [[BALANCED]] * len(new),
    )
    return arrow.concat_tables([old, added]).sort_by("key")
