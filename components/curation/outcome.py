"""A curated dataset whose shards are written: its tables, index, description and page."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation import dataset
from components.curation.index import Index
from components.curation.pool import Pool
from components.curation.report import write_report
from components.curation.tombstones import Tombstones

if TYPE_CHECKING:
    from pyarrow import Table


@dataclass(frozen=True)
class Outcome:
    """What the files of a dataset say beside its shards.

    ``files``: how many there are, each a row of ``samples`` or ``rejected``. ``parts``: names of all parts. ``counts``
    and ``digests``: what only the maker knows. ``curation``: the settings, and what the vectors are.
    """

    files: int
    samples: Table
    rejected: Table
    parts: Sequence[str]
    mix: Mapping[str, Any]
    curation: Mapping[str, Any]
    counts: Mapping[str, Any]
    digests: Mapping[str, str]
    index: Index
    tombstones: Tombstones | None
    revision: Mapping[str, Any]

    def write(self, output: Path, pool: Pool | None = None, url: str = "") -> dict[str, Any]:
        """Write all of it below ``output``, ``dataset.json`` last but for the page, and remove ``output/work``; returns
        the counts and the content digest, as ``digest``."""
        keys = set(self.samples["key"].to_pylist())
        if len(self.samples) + len(self.rejected) != self.files or len(keys) != len(self.samples):
            found = f"{len(self.samples)} samples, {len(keys)} keys, {len(self.rejected)} rejected"
            raise AssertionError(f"{self.files} files, {found}")
        dataset.write_table(self.samples, output / "samples.parquet")
        dataset.write_table(self.rejected, output / "rejected.parquet")
        members = Counter(part for own in self.samples["parts"].to_pylist() for part in own)
        counts = {
            "files": self.files,
            "samples": len(self.samples),
            "rejected": len(self.rejected),
            "reasons": dict(sorted(Counter(self.rejected["reason"].to_pylist()).items())),
            "parts": {name: members[name] for name in self.parts},
            "shards": len(set(self.samples["shard"].to_pylist())),
            "bytes": int(self.samples["length"].to_numpy().sum()),
            **self.counts,
        }
        content = dataset.content_digest(self.samples, self.mix)
        sections = {
            "index": self.index.write(output),
            "tombstones": self.tombstones.write(output) if self.tombstones else None,
            "revision": self.revision,
        }
        digests = {**self.digests, "content": content}
        dataset.write_description(output, counts, digests, self.mix, self.curation, **sections)
        shutil.rmtree(output / "work")
        write_report(output, output / "report.html", pool=pool, url=url)
        return {**counts, "digest": content}
