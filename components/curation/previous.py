"""The dataset that an increment or a deletion starts from: found, checked, and carried over."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.links import link_file
from components.curation.bootstrap import FOLDER as BOOTSTRAP
from components.curation.dataset import SHARDS, CuratedDataset
from components.curation.pool import PoolFile
from components.curation.pool.stored import Location
from components.curation.shards import Sample, lay_out, write_shards
from components.curation.tombstones import Tombstones
from foundry.errors import UserError
from foundry.storage import is_local, local_path

if TYPE_CHECKING:
    from pyarrow import Table

    from components.curation.index import Index

DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class Previous:
    """A curated dataset that another is made from."""

    dataset: CuratedDataset
    index: Index
    tombstones: Tombstones

    @property
    def digest(self) -> str:
        """Its content digest."""
        return str(self.dataset.description["digests"]["content"])

    @property
    def embedding(self) -> dict[str, Any]:
        """What its vectors are (:attr:`space.Space.facts`)."""
        return dict(self.dataset.description["curation"]["embedding"])

    @property
    def parts(self) -> list[str]:
        """Names of its parts."""
        return list(self.dataset.description["counts"]["parts"])

    def revision(self, how: str) -> dict[str, Any]:
        """What the ``dataset.json`` of a dataset says that was made from this one by ``how``."""
        number = self.dataset.description.get("revision", {}).get("number", 1)
        return {"number": number + 1, "previous": self.digest, "how": how}


def first_revision() -> dict[str, Any]:
    """What the ``dataset.json`` of a dataset says that was made from none."""
    return {"number": 1, "previous": None, "how": "full"}


def resolve(url: str) -> str:
    """``url`` of a dataset, ``PATH@REVISION`` as the ``dvc://`` URL it stands for.

    Raises :class:`UserError` where such a path lies in no DVC repository.
    """
    if not is_local(url) or local_path(url).exists() or "@" not in url:
        return url
    name, _, revision = url.rpartition("@")
    path = local_path(name).absolute()
    root = next((folder for folder in path.parents if (folder / ".dvc").is_dir()), None)
    if root is None or not revision:
        raise UserError(f"{url}: no such folder; PATH@REVISION names one of a DVC repository at a Git revision")
    return f"dvc://{path.relative_to(root).as_posix()}?repo={root}&rev={revision}"


def dataset_digest(url: str) -> str:
    """sha256 of the ``dataset.json`` at ``url``, which names what the dataset holds.

    Raises :class:`UserError` where there is none.
    """
    found = _files(resolve(url), url)
    if DESCRIPTION not in found:
        raise UserError(f"{url}: not a curated dataset ({DESCRIPTION} is missing)")
    with found[DESCRIPTION].open() as file:
        return hashlib.sha256(file.read()).hexdigest()


def _files(url: str, shown: str) -> dict[str, Any]:
    location = Location.of(url)
    if location.kind() != "folder":
        raise UserError(f"{shown}: no such folder")
    return {file.path: file for file in location.tree()}


def open_previous(url: str, folder: Path) -> Previous:
    """The dataset at ``url``, copied into ``folder`` where it is not on this machine.

    Raises :class:`UserError` where it is none, is damaged or was made without an index.
    """
    from components.curation.index import Index

    resolved = resolve(url)
    if is_local(resolved):
        folder = local_path(resolved)
    else:
        for name, file in _files(resolved, url).items():
            target = folder / name
            if target.is_file() and target.stat().st_size == file.size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f".{target.name}.unfinished")
            with file.open() as source, unfinished.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            os.replace(unfinished, target)
    dataset = CuratedDataset.open(folder)
    description = dataset.description
    return Previous(dataset, Index.read(folder, description), Tombstones.read(folder, description))


def carry_over(previous: Previous, removed: set[str], output: Path, work: Path) -> Table:
    """Put the shards of ``previous``, without the images of the keys ``removed``, below ``output``, and its bootstrap,
    where it has one; returns the rows of ``samples.parquet`` that remain, with their places.

    A shard that keeps all its images is the same file where the disk allows it; one that loses some is written anew,
    under its name; one that loses all is left out.
    """
    import pyarrow as arrow
    import pyarrow.compute as compute

    samples = previous.dataset.samples
    shutil.rmtree(output / BOOTSTRAP, ignore_errors=True)
    if (previous.dataset.folder / BOOTSTRAP).is_dir():
        shutil.copytree(previous.dataset.folder / BOOTSTRAP, output / BOOTSTRAP, copy_function=_link)
    source, target = previous.dataset.folder / SHARDS, output / SHARDS
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    changed = set(
        samples.filter(compute.is_in(samples["key"], arrow.array(sorted(removed), arrow.string())))["shard"].to_pylist()
    )
    for name in sorted(set(samples["shard"].to_pylist()) - changed):
        if not (source / name).is_file():
            raise UserError(f"{source / name}: missing; copy the dataset again")
        link_file(source / name, target / name)
    if not changed:
        return samples
    rows = samples.to_pylist()
    for name in sorted(changed):
        members = sorted((row for row in rows if row["shard"] == name), key=lambda row: row["offset"])
        kept = [row for row in members if row["key"] not in removed]
        if kept:
            for row, offset in zip(kept, _rewrite(source / name, target / name, kept, work / "shard"), strict=True):
                row["offset"] = offset
    return arrow.Table.from_pylist([row for row in rows if row["key"] not in removed], schema=samples.schema)


def _link(source: str, target: str) -> None:
    link_file(Path(source), Path(target))


def _rewrite(source: Path, target: Path, rows: list[dict[str, Any]], work: Path) -> list[int]:
    """Write the shard ``target`` of the images ``rows`` of the shard ``source``; returns their offsets."""
    samples = [
        Sample(number, row["key"], row["ext"], row["sha256"], row["length"], row["width"], row["height"], row["source"])
        for number, row in enumerate(rows)
    ]

    def images() -> Iterator[PoolFile]:
        with source.open("rb") as shard:
            for row in rows:
                shard.seek(row["offset"])
                yield PoolFile(row["source"], shard.read(row["length"]))

    places, sizes = lay_out(samples, 1 << 62)  # one shard
    shutil.rmtree(work, ignore_errors=True)
    write_shards(work, samples, places, sizes, images(), str(source))
    (written,) = work.iterdir()
    os.replace(written, target)
    return [place.offset for place in places]
