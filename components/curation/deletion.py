"""Deleting an image, and its copies, from a curated dataset: by key, or by showing it. See docs/data.md."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.step import InputSpec, Step
from components.curation.inputs import dataset_at_url
from foundry.errors import UserError
from foundry.settings import Settings
from foundry.storage import write_atomically

if TYPE_CHECKING:
    from pyarrow import Table

    from components.curation.config import CurationConfig
    from components.curation.index import Index
    from components.curation.pool import Pool
    from components.curation.previous import Previous
    from components.curation.scan import Scan


class DeletionConfig(Settings):
    """What is deleted and why."""

    keys: tuple[str, ...] = ()
    """Keys, or sha256 digests, of images of the dataset or of its rejected files."""
    reason: str
    """Kept in the tombstone."""
    digests_only: bool = False
    """Keep no thumbnail of what is deleted: equal bytes and pixels are told later, near copies are not."""


def run(config: DeletionConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Write the dataset ``inputs["dataset"]`` without the images of ``config.keys``, and without those that show what
    ``inputs["image"]`` shows, into ``output``; returns counts and the content digest.

    Raises :class:`UserError` where a key is not in the dataset, the dataset has a part that is taken as it is, nothing
    would change or nothing would be left.
    """
    import numpy as np

    from components.curation.config import CurationConfig
    from components.curation.index import SAMPLE
    from components.curation.measured import Measured
    from components.curation.outcome import Outcome
    from components.curation.previous import carry_over, open_previous
    from components.curation.scan import scan_pool
    from components.curation.selection import RAW
    from components.curation.tombstones import Tombstones
    from components.curation.verdicts import BALANCE, DELETED, Files
    from training.data.mix import kinds_of
    from training.recipe import Mix

    work = output / "work"
    when = _begun(output)
    previous = open_previous(inputs["dataset"], work / "previous")
    index, description = previous.index, previous.dataset.description
    for part in previous.parts:
        if part.startswith(f"{RAW}:"):
            raise UserError(
                f"{inputs['dataset']}: has the part {part}, whose images the index does not know; take the image out "
                "of the dataset that is taken as it is and curate again"
            )
    curation = CurationConfig.model_validate(description["curation"]["config"])
    shown = Measured.nothing().scan
    if url := inputs.get("image"):
        pool = open_images(url)
        shown = scan_pool(pool, pool.digest(), curation.decode, work / "scan")
    rows = _rows_of_keys(index, config.keys, inputs["dataset"]) | _rows_that_show(index, shown, curation, work)
    rows = {row for row in _with_copies(index, rows) if index.verdict[row] != DELETED}
    tombstones = _tombstones(previous, sorted(rows), shown, when, config)
    if not rows and len(tombstones) == len(previous.tombstones):
        raise UserError(f"{inputs['dataset']}: all of it is deleted already; nothing changes")

    files = Files.of(index.images, np.arange(len(index.images)), index)
    for row in rows:
        files.judge(row, DELETED, f"deleted on {when[:10]}: {config.reason}", files.key(row))
    files.place(index)
    left = {files.key(row) for row in files.rows(SAMPLE).tolist()}
    if not left:
        raise UserError(f"{inputs['dataset']}: no image would be left; remove the dataset itself")
    table = carry_over(previous, set(previous.dataset.samples["key"].to_pylist()) - left, output, work)
    files.mark_undrawn()
    rejected = files.rejected()
    parts = table["parts"].to_pylist()
    members = {name: np.flatnonzero([name in own for own in parts]) for name in previous.parts}
    kinds = {name: found for name, found in members.items() if len(found)}
    mix = Mix.model_validate(description["mix"])
    kinds_of(mix, kinds, table["weight"].to_numpy(), f"{inputs['dataset']}: mix")
    removed = len(previous.dataset.samples) - len(table)
    counts = Outcome(
        files=len(files),
        samples=table,
        rejected=rejected,
        parts=previous.parts,
        mix=description["mix"],
        curation=description["curation"],
        counts={
            "files": description["counts"]["files"],
            "unique": len(table) + rejected["reason"].to_pylist().count(BALANCE),
            "removed_samples": removed,
        },
        digests=description["digests"],
        index=files.index(index.concepts, index.held_out, index.held),
        tombstones=Tombstones(tombstones),
        revision=previous.revision("deletion"),
    ).write(output)
    return {
        "deleted_samples": removed,
        "deleted_files": len(rows),
        "samples": len(table),
        "digest": counts["digest"],
        "previous": previous.digest,
    }


def _begun(output: Path) -> str:
    """When this deletion was begun: one that was killed ends with the same tombstones."""
    from pyarrow import parquet

    from components.curation.tombstones import FILE

    file = output / "work" / "begun"
    if not file.exists():
        if (output / FILE).exists():  # killed when it was all but finished
            return str(parquet.read_table(output / FILE)["when"][-1].as_py())
        write_atomically(file, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    return file.read_text(encoding="utf-8")


def open_images(url: str) -> Pool:
    """What ``--image`` names: an image file, or a pool of such.

    Raises :class:`UserError` where nothing is there.
    """
    from components.curation.pool import Pool, open_pool
    from components.curation.pool.archives import is_archive
    from components.curation.pool.stored import Location, StoredFile

    @dataclass(frozen=True)
    class Single(Pool):
        def stored(self) -> Iterator[StoredFile]:
            yield Location.of(self.url).file()

    tables = (".parquet", ".txt", ".csv", ".tsv")
    if Location.of(url).kind() != "file" or is_archive(url) or url.lower().endswith(tables):
        return open_pool(url)
    return Single(url, "folder")


def _rows_of_keys(index: Index, keys: tuple[str, ...], name: str) -> set[int]:
    from components.curation.shards import key_of

    wanted = {key_of(key.lower()): key for key in keys}
    rows = {row for row, digest in enumerate(index.images.scan.sha256) if digest and key_of(digest) in wanted}
    missing = set(wanted) - {key_of(index.images.scan.sha256[row]) for row in rows}
    if missing:
        raise UserError(f"{name}: neither its samples nor its rejected files have the key {wanted[min(missing)]}")
    return rows


def _rows_that_show(index: Index, shown: Scan, config: CurationConfig, work: Path) -> set[int]:
    """Rows of the images that are copies of one of ``shown``, by their thumbnails."""
    import numpy as np

    from components.curation.duplicates import Images, find_duplicates

    scan = index.images.scan
    digests = set(shown.sha256) - {""}
    rows = {row for row, digest in enumerate(scan.sha256) if digest in digests}
    seen = np.flatnonzero([bool(digest) for digest in shown.pixels_sha256])
    known = np.flatnonzero([bool(digest) for digest in scan.pixels_sha256])
    if len(seen) and len(known):
        given = np.repeat([False, True], [len(known), len(seen)])
        images = Images.of([(scan, known), (shown, seen)], work, np.zeros(len(given), bool), deleted=given, fresh=given)
        kept = find_duplicates(images, config.duplicates).kept
        rows |= set(known[kept[: len(known)] >= len(known)].tolist())
    return rows


def _with_copies(index: Index, rows: set[int]) -> set[int]:
    """``rows`` and all files that are copies of the same pictures."""
    from components.curation.shards import key_of
    from components.curation.verdicts import COPIES

    def picture(row: int) -> str:
        return index.of[row] if index.verdict[row] in COPIES else key_of(index.images.scan.sha256[row])

    pictures = {picture(row) for row in rows}
    digests = index.images.scan.sha256
    return {row for row in range(len(digests)) if digests[row] and picture(row) in pictures}


def _tombstones(previous: Previous, rows: list[int], shown: Scan, when: str, config: DeletionConfig) -> Table:
    """``tombstones.parquet`` with rows for the images of ``rows`` and for those of ``shown``, one for each sha256."""
    import pyarrow as arrow

    from components.curation.shards import key_of
    from components.curation.tombstones import tombstones_schema

    def row_of(scan: Scan, row: int) -> dict[str, Any]:
        plain = config.digests_only or not scan.pixels_sha256[row]
        return {
            "key": key_of(scan.sha256[row]),
            "sha256": scan.sha256[row],
            "pixels_sha256": scan.pixels_sha256[row],
            "when": when,
            "why": config.reason,
            "dataset": previous.digest,
            "size": int(scan.size[row]),
            "width": int(scan.width[row]),
            "height": int(scan.height[row]),
            "hash": 0 if plain else int(scan.hash[row]),
            "grey": None if plain else scan.grey[row].tobytes(),
            "colour": None if plain else scan.colour[row].tobytes(),
        }

    scan = previous.index.images.scan
    new = [row_of(scan, row) for row in rows] + [row_of(shown, row) for row in range(len(shown)) if shown.sha256[row]]
    known = set(previous.tombstones.table["sha256"].to_pylist())
    added = {row["sha256"]: row for row in reversed(new) if row["sha256"] not in known}
    told = [added[digest] for digest in sorted(added)]
    return arrow.concat_tables(
        [previous.tombstones.table, arrow.Table.from_pylist(told, schema=tombstones_schema())]
    ).combine_chunks()


def _image_digest(url: str) -> str:
    return open_images(url).digest()


STEP = Step(
    name="deletion",
    summary="Delete an image and its copies from a curated dataset.",
    config=DeletionConfig,
    inputs=(
        dataset_at_url("dataset", "curated dataset"),
        InputSpec("image", "the image that is deleted, or a pool of such", False, kind="url", digest=_image_digest),
    ),
    run=run,
    code=("components.curation.deletion", "components.curation.decode_worker", "components.common.report"),
    records=("report.html",),
)
