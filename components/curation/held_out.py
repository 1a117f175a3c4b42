"""Which images of an evaluation set no dataset may hold a copy of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np

from foundry.errors import UserError

if TYPE_CHECKING:
    from components.curation.scan import Scan

TRAIN = "train"


def held_out_rows(scan: Scan, url: str, splits: Literal["test", "all"]) -> np.ndarray:
    """Rows of ``scan``, that of the evaluation set at ``url``, that are held out: (m,) int64.

    Where the set says which images it has, those, with ``test`` those of other splits than ``train``; otherwise every
    image. Raises :class:`UserError` where the tables are wrong.
    """
    listed = listed_rows(scan, url, lambda split: splits == "all" or split != TRAIN)
    return np.flatnonzero(np.array([not reason for reason in scan.reason], bool)) if listed is None else listed


def listed_rows(scan: Scan, url: str, wanted: Callable[[str], bool]) -> np.ndarray | None:
    """Rows of the decoded images that the tables of the set at ``url`` list in a wanted split: (m,) int64.

    None where the set has neither tables nor a layout that tells its splits. Raises :class:`UserError` where tables are
    wrong.
    """
    from training.data.evaluation_set import EvaluationSet
    from training.data.evaluation_tables import TABLES

    try:
        known = EvaluationSet.open(url)
    except UserError:
        if any(PurePosixPath(path).name.removesuffix(".gz") in TABLES for path in scan.path):
            raise
        return None  # images without any truth
    listed = {name for split in known.splits if wanted(split) for name in known.images(split)}
    rows = [row for row, reason in enumerate(scan.reason) if not reason and _is_listed(scan.path[row], listed)]
    return np.array(rows, dtype=np.int64)


def _is_listed(path: str, names: set[str]) -> bool:
    """Whether ``path``, perhaps inside an archive of the set, is one of ``names``, which leave the archive out."""
    parts = path.split("/")
    return any("/".join(parts[start:]) in names for start in range(len(parts)))
