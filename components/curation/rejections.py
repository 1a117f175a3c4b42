"""Why files of a pool are no samples: one reason each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from components.curation.config import FilterConfig
from components.curation.dataset import rejected_schema

if TYPE_CHECKING:
    from pyarrow import Table

    from components.curation.scan import Scan


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

    def table(self) -> Table:
        """``rejected.parquet`` in memory."""
        import pyarrow as arrow

        names = ("reason", "detail", "of", "cluster")
        rows = []
        for row in sorted(self._rows):
            known = {name: getattr(self._scan, name)[row] for name in ("path", "sha256")}
            size = {name: int(getattr(self._scan, name)[row]) or None for name in ("width", "height")}
            rows.append({**known, **size, **dict(zip(names, self._rows[row], strict=True))})
        return arrow.Table.from_pylist(rows, schema=rejected_schema())


def filter_images(scan: Scan, filters: FilterConfig, rejections: Rejections) -> np.ndarray:
    """Pool rows of the images that are decoded and of use, in pool order."""
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


def undrawn(rows: Sequence[int], clusters: Sequence[str], drawn: Sequence[bool]) -> list[tuple[int, str]]:
    """(row, why) of the pictures that are not ``drawn`` into any part; the arguments are of one order."""
    members = Counter(clusters)
    chosen = Counter(name for name, taken in zip(clusters, drawn, strict=True) if taken)
    return [
        (row, f"cluster {name}: {chosen[name]} of {members[name]} images drawn")
        for row, name, taken in zip(rows, clusters, drawn, strict=True)
        if not taken
    ]
