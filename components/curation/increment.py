"""Adding to a curated dataset what its pool has gained. The rule is written out in docs/data.md.

Of a file of known path and bytes nothing is done again: it keeps its verdict, a sample its row. New files are filtered,
compared with all known pictures and each other, put into the clusters that are there, and drawn where these have least.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.common.model_inputs import network_folder
from components.curation import dataset, shards
from components.curation.bootstrap import FOLDER as BOOTSTRAP
from components.curation.candidates import descriptors
from components.curation.config import CurationConfig, DecodeConfig
from components.curation.dataset import CuratedDataset
from components.curation.decoding import DecodeWorkers
from components.curation.duplicates import Images, explain, find_duplicates, why_kept
from components.curation.held_out import held_out_rows
from components.curation.index import SAMPLE, Concepts, Index
from components.curation.measured import Measured, PartOfPool
from components.curation.outcome import Outcome
from components.curation.pool import Pool, PoolFile
from components.curation.previous import Previous, carry_over
from components.curation.rejections import Rejections, filter_images, undrawn
from components.curation.sampling import balanced_sample, effective_clusters
from components.curation.selection import BALANCED
from components.curation.shards import Sample, key_of
from components.curation.sources import labels_of, read_again
from components.curation.space import BackboneSpace, DescriptorSpace, Space, given_space
from foundry.errors import UserError
from foundry.settings import digest_of

if TYPE_CHECKING:
    from pyarrow import Table

    from components.curation.scan import Scan

BALANCE = "balance"
COPIES = ("exact-duplicate", "same-pixels", "near-duplicate")
"""Verdicts of a picture's copies, which name it in ``of``."""
EVALUATION, DELETED = "evaluation-copy", "deleted"
MAY_DIFFER = ("balance", "shard_mib")
"""Settings in which an increment may differ from the dataset that it adds to."""


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
    _check_parts(inputs, previous)
    _check_settings(config, previous, inputs["previous"])
    space = _space(config, inputs, previous, work)
    source, now, known = read_again(inputs["pool"], config, work, previous.index.images)
    held_out = _HeldOut.of(inputs.get("evaluation"), config, previous.index, work)
    scanned = time.monotonic()

    files = Files.of(now, known, previous.index)
    files.reconsider(held_out.keys())
    files.filter(config)
    closeups = _Closeups(files, previous.dataset, source.pool, config.decode)
    files.deduplicate(held_out, previous.tombstones.scan(), closeups, config, work)
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


def _check_parts(inputs: Mapping[str, str], previous: Previous) -> None:
    """Raise :class:`UserError` where the dataset has, or would get, a part that an increment cannot add to."""
    url, others = inputs["previous"], [name for name in previous.parts if name != BALANCED]
    if others:
        raise UserError(
            f"{url}: has the part {others[0]}; an increment adds to the balanced part alone; set curation.anew=true to "
            "curate the whole pool"
        )
    for name in ("seeds", "raw"):
        if labels_of(inputs, name):
            raise UserError(
                f"--input {name}: an increment adds to the balanced part alone; set curation.anew=true to curate the "
                "whole pool"
            )


def _space(config: CurationConfig, inputs: Mapping[str, str], previous: Previous, work: Path) -> Space:
    """The space of the vectors of ``previous``; of a network, only what is asked for is embedded.

    Raises :class:`UserError` where the inputs name another.
    """
    was = previous.embedding
    space = given_space(config, inputs, work, whole=False)
    if space is None and was["kind"] == BOOTSTRAP:
        network = network_folder(str(previous.dataset.folder / BOOTSTRAP))
        space = BackboneSpace(config, network, BOOTSTRAP, work, whole=False)
    elif space is None:
        space = DescriptorSpace(config.clusters.components, previous.index.concepts.projection)
    if {**space.facts, "kind": ""} != {**was, "kind": ""}:  # a network is the same, however it is named
        raise UserError(
            f"{inputs['previous']}: was curated by {_told(was)}, here it is {_told(space.facts)}; give what it was "
            "curated by, or set curation.anew=true to curate the whole pool"
        )
    return space


def _told(facts: Mapping[str, Any]) -> str:
    """What the vectors of a dataset are, in words."""
    if "network" in facts:
        return f"the {facts['kind']} {facts['network'][:12]}"
    return f"the embeddings {facts['embeddings'][:12]}" if "embeddings" in facts else "the descriptor made by hand"


def _check_settings(config: CurationConfig, previous: Previous, url: str) -> None:
    """Raise :class:`UserError` where a setting differs that an increment cannot change."""
    was, now = previous.dataset.description["curation"]["config"], config.lasting()
    for name in sorted({*was, *now} - set(MAY_DIFFER)):
        if was.get(name) != now.get(name):
            raise UserError(
                f"{url}: was curated with other settings in 'curation.{name}' "
                f"({_difference(was.get(name), now.get(name))}); set them back, or set curation.anew=true to curate "
                "the whole pool with these"
            )
    if was["balance"]["copies"] > config.balance.copies:
        raise UserError(
            f"{url}: was curated with balance.copies={was['balance']['copies']}; an increment cannot have fewer"
        )


def _difference(was: Any, now: Any) -> str:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        name = next(name for name in sorted({*was, *now}) if was.get(name) != now.get(name))
        return f"{name}: {_difference(was.get(name), now.get(name))}"
    return f"{was} there, {now} here"


@dataclass(frozen=True)
class _HeldOut:
    """The evaluation set: all its ``files``, which of them are held out (``rows``), and which of these were not before
    (``fresh``, of the length of ``rows``)."""

    files: Measured
    rows: np.ndarray
    fresh: np.ndarray

    @classmethod
    def of(cls, url: str | None, config: CurationConfig, index: Index, work: Path) -> _HeldOut:
        """That of the set at ``url``; nothing where there is none."""
        if url is None:
            return cls(Measured.nothing(), np.zeros(0, np.int64), np.zeros(0, bool))
        _, files, known = read_again(url, config, work, index.held_out, "evaluation")
        rows = held_out_rows(files.scan, url, config.duplicates.held_out)
        before = np.append(index.held, False)[known]  # of -1 the last
        return cls(files, rows, ~before[rows])

    def keys(self) -> dict[str, int]:
        """The place in ``rows`` of each image that is held out."""
        return {key_of(self.files.scan.sha256[row]): place for place, row in enumerate(self.rows.tolist())}


@dataclass
class Files:
    """The files of the pool, ``present`` in number, then the samples whose file is gone; and what becomes of each.

    ``origin`` (n,): its row in the index of before, -1 for a new file. ``verdict`` is as in the index, empty while it
    is undecided. Of a picture, ``why`` says why it is kept of its copies. ``vectors``: of the rows with a cluster.
    ``described``: of all rows, not a number where there are none. ``undrawn``: why a picture is not drawn, by row.
    """

    measured: Measured
    present: int
    origin: np.ndarray
    verdict: list[str]
    why: list[str]
    of_key: list[str]
    cluster: list[str]
    vectors: np.ndarray
    described: np.ndarray
    undrawn: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, now: Measured, known: np.ndarray, index: Index) -> Files:
        """The files as they were judged before; those of ``known`` -1 are undecided."""
        there = set(known.tolist())
        absent = [row for row, verdict in enumerate(index.verdict) if verdict == SAMPLE and row not in there]
        origin = np.concatenate([known, np.array(absent, np.int64)])

        def before(values: list[str]) -> list[str]:
            return [values[row] if row >= 0 else "" for row in origin.tolist()]

        return cls(
            now.followed_by(index.images.select(np.array(absent, np.int64))) if absent else now,
            len(now),
            origin,
            before(index.verdict),
            before(index.why),
            before(index.of),
            before(index.cluster),
            index.vectors,
            np.append(index.described, np.full((1, index.described.shape[1]), np.nan, np.float32), axis=0)[origin],
        )

    def __len__(self) -> int:
        return len(self.origin)

    @property
    def scan(self) -> Scan:
        """The measurements."""
        return self.measured.scan

    def rows(self, *verdicts: str) -> np.ndarray:
        """The rows of these verdicts, in order."""
        return np.array([row for row, verdict in enumerate(self.verdict) if verdict in verdicts], dtype=np.int64)

    def key(self, row: int) -> str:
        """The key of an image."""
        return key_of(self.scan.sha256[row])

    def judge(self, row: int, verdict: str, why: str, of: str = "") -> None:
        """Set what becomes of a file."""
        self.verdict[row], self.why[row], self.of_key[row] = verdict, why, of

    def pictures(self) -> dict[str, int]:
        """The row of each picture by its key."""
        return {self.key(row): row for row in self.rows(SAMPLE, BALANCE).tolist()}

    def reconsider(self, held_out: Mapping[str, int]) -> None:
        """A known copy of what is neither a picture nor held out any more is judged like a new file."""
        pictures = self.pictures()
        for row, verdict in enumerate(self.verdict):
            lost = verdict in COPIES and self.of_key[row] not in pictures
            if lost or (verdict == EVALUATION and self.of_key[row] not in held_out):
                self.judge(row, "", "")

    def filter(self, config: CurationConfig) -> None:
        """Judge the undecided files that are no image, or of no use."""
        undecided = self.rows("")
        scan = self.scan.select(undecided)
        rejections = Rejections(scan)
        filter_images(scan, config.filters, rejections)
        for place, row in enumerate(undecided.tolist()):
            if (found := rejections.get(place)) is not None:
                reason, detail, *_ = found
                self.judge(row, reason, detail)

    def deduplicate(
        self, held_out: _HeldOut, deleted: Scan, closeups: _Closeups, config: CurationConfig, work: Path
    ) -> None:
        """Judge the undecided images that are copies; what remains of them are pictures, not drawn yet.

        Of the known, those are judged again whose group has gained an image that is held out.
        """
        known, undecided = self.rows(SAMPLE, BALANCE, EVALUATION, *COPIES), self.rows("")
        outside = len(held_out.rows), len(deleted)
        sizes = [len(known), *outside, len(undecided)]
        settled = np.array([self.verdict[row] in (SAMPLE, BALANCE) for row in known.tolist()], dtype=bool)
        images = Images.of(
            [
                (self.scan, known),
                (held_out.files.scan, held_out.rows),
                (deleted, np.arange(len(deleted))),
                (self.scan, undecided),
            ],
            work,
            evaluation=np.repeat([False, True, False, False], sizes),
            deleted=np.repeat([False, False, True, False], sizes),
            settled=np.concatenate([settled, np.zeros(sum(sizes[1:]), bool)]),
            fresh=np.concatenate(
                [np.zeros(sizes[0], bool), held_out.fresh, np.zeros(sizes[2], bool), np.ones(sizes[3], bool)]
            ),
            joined=self._known_copies(known, held_out),
        )
        described = self.described[np.concatenate([known, np.zeros(sum(outside), np.int64), undecided])]
        described[len(known) : len(known) + sum(outside)] = np.nan
        unknown = np.flatnonzero(np.isnan(described[:, 0]))
        described[unknown] = descriptors(images.grey[unknown], images.colour[unknown])
        self.described[undecided] = described[len(described) - len(undecided) :]
        images = replace(images, described=described)
        nowhere = np.full(sum(outside), -1)  # nobody looks closely at what is held out or was deleted
        rows = np.concatenate([known, nowhere, undecided])
        groups = find_duplicates(images, config.duplicates, lambda chosen: closeups.of(rows[chosen]))
        last = len(known) + sum(outside)
        for place, row in enumerate(known.tolist()):
            keeper = int(groups.kept[place])
            if len(known) <= keeper < last and self.verdict[row] != EVALUATION:
                self.judge(row, *explain(images, groups, place), key_of(images.sha256[keeper]))
        for place, row in enumerate(undecided.tolist(), start=last):
            keeper = int(groups.kept[place])
            if keeper == place:
                self.judge(row, BALANCE, why_kept(groups, place))
            else:
                self.judge(row, *explain(images, groups, place), key_of(images.sha256[keeper]))

    def _known_copies(self, known: np.ndarray, held_out: _HeldOut) -> np.ndarray:
        """Pairs (m, 2) of places: known copies, and the pictures or held out images that they are copies of."""
        places = {row: place for place, row in enumerate(known.tolist())}
        pictures = {key: places[row] for key, row in self.pictures().items()}
        images = {key: len(known) + place for key, place in held_out.keys().items()}
        pairs = [
            (place, (images if self.verdict[row] == EVALUATION else pictures)[self.of_key[row]])
            for row, place in places.items()
            if self.verdict[row] not in (SAMPLE, BALANCE)
        ]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def read(self, rows: Collection[int], pool: Pool, max_bytes: int) -> Iterator[PoolFile]:
        """The files ``rows``, of those that are present, in their order. Other stored files are not opened."""
        names = frozenset(self.measured.stored[row] for row in rows)
        there = (row for row, name in enumerate(self.measured.stored[: self.present]) if name in names)
        files = PartOfPool(pool.url, pool.kind, names).files(0, max_bytes)
        return (file for row, file in zip(there, files, strict=False) if row in rows)

    def place(self, index: Index, embed: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Give each new picture its cluster; ``embed`` makes the vectors (m, d) of rows (m,), ascending. Without it
        there must be no new picture."""
        pictures = self.rows(SAMPLE, BALANCE)
        known = np.array([bool(self.cluster[row]) for row in pictures.tolist()], dtype=bool)
        new = pictures[~known]
        vectors = np.zeros((len(pictures), index.vectors.shape[1]), np.float32)
        vectors[known] = index.vectors[index.vector_rows()[self.origin[pictures[known]]]]
        if len(new):
            assert embed is not None
            vectors[~known] = embed(new)
        for row, path in zip(new.tolist(), index.concepts.paths(vectors[~known]).tolist(), strict=True):
            self.cluster[row] = "/".join(map(str, path))
        for row in set(range(len(self))) - set(pictures.tolist()):
            self.cluster[row] = ""
        self.vectors = vectors

    def draw(self, samples: Table, config: CurationConfig) -> dict[str, float]:
        """Draw what the dataset lacks; returns the weight of each of its keys.

        The pictures are the samples by key, then the others in order.
        """
        weights = dict(zip(samples["key"].to_pylist(), samples["weight"].to_pylist(), strict=True))
        rows = sorted(self.rows(SAMPLE).tolist(), key=self.key)
        held = [int(weights[self.key(row)]) for row in rows]
        others = self.rows(BALANCE).tolist()
        rows, held = rows + others, held + [0] * len(others)
        if not rows:
            raise UserError("no image is left: all are copies of images that are held out or were deleted")
        balance, clusters = config.balance, [self.cluster[row] for row in rows]
        target = balance.size or max(1, round(balance.fraction * len(rows)))
        times = balanced_sample(
            np.array([[int(part) for part in name.split("/")] for name in clusters]),
            max(target, sum(held)),
            seed=config.seed,
            copies=balance.copies,
            held=np.array(held),
        )
        for row, count in zip(rows, times.tolist(), strict=True):
            if count:
                self.verdict[row] = SAMPLE
        self.mark_undrawn()
        return {self.key(row): float(count) for row, count in zip(rows, times.tolist(), strict=True) if count}

    def mark_undrawn(self) -> None:
        """Say of the pictures that are not drawn why."""
        rows = self.rows(SAMPLE, BALANCE).tolist()
        clusters = [self.cluster[row] for row in rows]
        self.undrawn = dict(undrawn(rows, clusters, [self.verdict[row] == SAMPLE for row in rows]))

    def rejected(self) -> Table:
        """``rejected.parquet`` in memory."""
        rejections = Rejections(self.scan)
        for row, verdict in enumerate(self.verdict):
            if verdict != SAMPLE:
                why = self.undrawn.get(row, self.why[row])
                rejections.add(row, verdict, why, self.of_key[row], self.cluster[row] or None)
        return rejections.table()

    def index(self, concepts: Concepts, held_out: Measured, held: np.ndarray) -> Index:
        """The index of the dataset; the arguments are its fields."""
        deleted = self.rows(DELETED)
        self.described[deleted] = np.nan
        return Index(
            images=self.measured.without_pixels(deleted),
            verdict=self.verdict,
            why=self.why,
            of=self.of_key,
            cluster=self.cluster,
            vectors=self.vectors,
            described=self.described,
            concepts=concepts,
            held_out=held_out,
            held=held,
        )


@dataclass(frozen=True)
class _Closeups:
    """Close-ups of images: the samples lie in the dataset that is added to, all others in the pool."""

    files: Files
    dataset: CuratedDataset
    pool: Pool
    config: DecodeConfig

    def of(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Those of ``rows``: of some that rise, then of some that rise again."""
        with DecodeWorkers(self.config, closeups=True) as workers:
            for rising in np.split(rows, np.flatnonzero(np.diff(rows) < 0) + 1):
                yield from workers.closeups(self._read(rising.tolist()))

    def _read(self, rows: Sequence[int]) -> Iterator[PoolFile]:
        samples = {key: number for number, key in enumerate(self.dataset.samples["key"].to_pylist())}
        wanted = {row for row in rows if self.files.key(row) not in samples}
        found = self.files.read(wanted, self.pool, self.config.max_bytes)
        for row in rows:
            number = samples.get(self.files.key(row))
            if number is None:
                yield next(found)
            else:
                yield PoolFile(self.files.scan.path[row], self.dataset.image(number))


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
