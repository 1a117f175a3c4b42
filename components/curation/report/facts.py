"""What a page says of a curated dataset, read from its tables: counts, copies, concepts and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as compute

from components.curation.dataset import CuratedDataset
from components.curation.report.reasons import BALANCE, COPIES, DELETED, HELD_OUT, UNFIT, group_of
from components.curation.sampling import effective_number
from components.curation.shards import KEY_DIGITS

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, Table

UNIFORM_DRAWS = 20
"""Random samples whose effective number of concepts is averaged."""
_DRAWN_EXACTLY = 10**9
"""Above this many images numpy draws no hypergeometric sample, and a uniform sample has the shares of all of them."""

_HELD_OUT = next(iter(HELD_OUT.reasons))
_DECODED = (UNFIT, COPIES, HELD_OUT, DELETED, BALANCE)
"""Reasons of files that were decoded, whose size is known therefore."""


@dataclass(frozen=True)
class Concepts:
    """Images of each finest cluster, largest first before balancing. All arrays are (k,)."""

    names: Sequence[str]
    before: np.ndarray
    """Unique images."""
    after: np.ndarray
    """Images drawn, each as often as its weight says."""

    @cached_property
    def uniform(self) -> float:
        """Effective number of concepts of a uniform random sample as large as the dataset, the mean of some."""
        total, wanted = int(self.before.sum()), round(float(self.after.sum()))
        if total >= _DRAWN_EXACTLY or not total:
            return effective_number(self.before)
        whole, rest = divmod(wanted, total)
        generator = np.random.default_rng(0)
        draws = [
            generator.multivariate_hypergeometric(self.before, rest, method="marginals") for _ in range(UNIFORM_DRAWS)
        ]
        return float(np.mean([effective_number(whole * self.before + drawn) for drawn in draws]))


@dataclass(frozen=True)
class Copies:
    """Groups of files that show one picture, the largest first."""

    keys: Sequence[str]
    """(g,) key of each group's kept image."""
    sizes: np.ndarray
    """(g,) files in each group, the kept one among them."""


@dataclass(frozen=True)
class Facts:
    """See the functions that find them."""

    dataset: CuratedDataset
    reasons: dict[str, int]
    """Reason -> files, most frequent first."""
    copies: Copies
    concepts: Concepts | None
    """None where the dataset does not say which clusters the images had that were not drawn."""
    sizes_before: np.ndarray | None
    """(n, 2) width and height of every decoded file; None where the dataset does not tell them."""
    sizes_after: np.ndarray
    """(m, 2) of every image kept."""

    @property
    def kept(self) -> int:
        """Images of the dataset."""
        return int(self.dataset.samples.num_rows)

    @property
    def files(self) -> int:
        """Files of the pool."""
        return self.kept + int(self.dataset.rejected.num_rows)

    def rejected(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """These rows of rejected.parquet by column name."""
        values: list[dict[str, Any]] = self.dataset.rejected.take(np.array(rows, dtype=np.int64)).to_pylist()
        return values

    def samples(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """These rows of samples.parquet by column name."""
        values: list[dict[str, Any]] = self.dataset.samples.take(np.array(rows, dtype=np.int64)).to_pylist()
        return values

    def rejected_rows(self, reason: str) -> np.ndarray:
        """Rows of rejected.parquet with ``reason``, in its order."""
        return np.flatnonzero(compute.equal(self.dataset.rejected["reason"], reason).to_numpy())

    def copies_of(self, key: str) -> np.ndarray:
        """Rows of rejected.parquet that are copies of the image ``key``."""
        rejected = self.dataset.rejected
        same = compute.and_(compute.equal(rejected["of"], key), compute.not_equal(rejected["reason"], _HELD_OUT))
        return np.flatnonzero(same.to_numpy())

    def sample_row(self, key: str) -> int | None:
        """Row of samples.parquet with ``key``, if there is one."""
        row = compute.index(self.dataset.samples["key"], key).as_py()
        return None if row < 0 else int(row)

    def undrawn_row(self, key: str) -> int | None:
        """Row of rejected.parquet of the image ``key`` that is no copy but was not drawn, if there is one."""
        rejected = self.dataset.rejected
        same = compute.and_(compute.starts_with(rejected["sha256"], key), compute.equal(rejected["of"], ""))
        rows = np.flatnonzero(same.to_numpy())
        return int(rows[0]) if len(rows) and len(key) == KEY_DIGITS else None

    def members(self, concept: str) -> np.ndarray:
        """Rows of samples.parquet in ``concept``."""
        return np.flatnonzero(compute.equal(self.dataset.samples["cluster"], concept).to_numpy())


def read_facts(dataset: CuratedDataset) -> Facts:
    """The facts of ``dataset``. Its tables are read by column; no row becomes a Python object."""
    counted = dataset.rejected["reason"].value_counts().to_pylist()
    reasons = {row["values"]: row["counts"] for row in sorted(counted, key=lambda row: (-row["counts"], row["values"]))}
    kept, decoded = _sizes(dataset.samples), _sizes(dataset.rejected)
    told = len(decoded) or not any(group_of(reason) in _DECODED for reason in reasons)
    return Facts(
        dataset, reasons, _copies(dataset), _concepts(dataset), np.concatenate([kept, decoded]) if told else None, kept
    )


def _copies(dataset: CuratedDataset) -> Copies:
    rejected = dataset.rejected
    is_copy = compute.and_(compute.not_equal(rejected["of"], ""), compute.not_equal(rejected["reason"], _HELD_OUT))
    keys, counts = _counted(compute.filter(rejected["of"], is_copy))
    return Copies(keys, 1 + counts)


def _concepts(dataset: CuratedDataset) -> Concepts | None:
    import pyarrow as arrow

    samples = dataset.samples.filter(compute.field("cluster") != "")  # raw parts have none
    undrawn = compute.drop_null(dataset.rejected["cluster"])
    if not len(undrawn) and BALANCE.reasons.keys() & set(dataset.rejected["reason"].unique().to_pylist()):
        return None
    names, before = _counted(arrow.chunked_array([*samples["cluster"].chunks, *undrawn.chunks], arrow.string()))
    drawn = samples.group_by("cluster").aggregate([("weight", "sum")])
    weights = dict(zip(drawn["cluster"].to_pylist(), drawn["weight_sum"].to_pylist(), strict=True))
    return Concepts(names, before, np.array([weights.get(name, 0.0) for name in names], dtype=np.float64))


def _counted(values: ChunkedArray) -> tuple[list[str], np.ndarray]:
    """(distinct values, how often each occurs), the most frequent first, then by value."""
    import pyarrow as arrow

    counted = values.value_counts()
    table = arrow.table({"value": counted.field("values"), "count": counted.field("counts")})
    table = table.sort_by([("count", "descending"), ("value", "ascending")])
    return table["value"].to_pylist(), table["count"].to_numpy()


def _sizes(table: Table) -> np.ndarray:
    """(n, 2) int64 width and height of the rows that have them."""
    known = table.select(["width", "height"]).drop_null()
    return np.stack([known[name].to_numpy() for name in ("width", "height")], axis=1).astype(np.int64)
