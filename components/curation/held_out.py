"""Which images of an evaluation set no dataset may hold a copy of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from components.curation.scan import Scan

TABLES = ("labels.csv", "masks.csv")
TRAIN = "train"


def held_out_rows(scan: Scan, url: str, splits: Literal["test", "all"]) -> np.ndarray:
    """Rows of ``scan``, that of the evaluation set at ``url``, that are held out: (m,) int64.

    Where the set has tables, the images they list, with ``test`` those of other splits than ``train``; otherwise every
    image. Raises :class:`UserError` where the tables are wrong.
    """
    listed = listed_rows(scan, url, lambda split: splits == "all" or split != TRAIN)
    return np.flatnonzero(np.array([not reason for reason in scan.reason], bool)) if listed is None else listed


def listed_rows(scan: Scan, url: str, wanted: Callable[[str], bool]) -> np.ndarray | None:
    """Rows of the decoded images that the tables of the set at ``url`` list in a wanted split: (m,) int64.

    None where the set has no tables. Raises :class:`UserError` where they are wrong.
    """
    if not any(PurePosixPath(path).name.removesuffix(".gz") in TABLES for path in scan.path):
        return None
    from training.data.evaluation_set import EvaluationSet

    known = EvaluationSet.open(url)
    listed = {name for split in known.splits if wanted(split) for name in known.images(split)}
    rows = [row for row, reason in enumerate(scan.reason) if not reason and _is_listed(scan.path[row], listed)]
    return np.array(rows, dtype=np.int64)


def _is_listed(path: str, names: set[str]) -> bool:
    """Whether ``path``, perhaps inside an archive of the set, is one of ``names``, which leave the archive out."""
    parts = path.split("/")
    return any("/".join(parts[start:]) in names for start in range(len(parts)))
