"""Which images make the dataset: its parts (balanced, retrieved by seed sets, taken as they are) and their images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.curation.config import CurationConfig
from components.curation.sources import labels_of
from foundry.errors import UserError

BALANCED, RETRIEVED, RAW = "balanced", "retrieved", "raw"


@dataclass(frozen=True)
class Selection:
    """The images of a dataset. ``rows``: one for each content, in the order of its digest; ``parts``: the parts that
    each belongs to; ``again``: row -> the row of equal bytes that stands for it."""

    rows: list[int]
    parts: list[list[str]]
    again: dict[int, int]

    def members(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Places of the images of each part, (m,) int64."""
        return {name: np.array([place for place, own in enumerate(self.parts) if name in own], int) for name in names}


def part_names(config: CurationConfig, inputs: Mapping[str, str]) -> list[str]:
    """The parts that a dataset of these inputs has.

    Raises :class:`UserError` where there is none, and where the settings name a part or a seed set that is none.
    """
    seeds = labels_of(inputs, "seeds")
    parts = [BALANCED] if config.balance.enabled else []
    parts += [f"{RETRIEVED}:{label}" for label in seeds]
    parts += [f"{RAW}:{label}" for label in labels_of(inputs, "raw")]
    if not parts:
        raise UserError("balance.enabled: without a balanced part give --input seeds=URL or --input raw=URL")
    for name in (*config.mix.weights, *config.mix.homogeneous):
        if name not in parts:
            raise UserError(f"mix: no part '{name}'; there are: {', '.join(parts)}")
    for label in config.retrieval_of:
        if label not in seeds:
            raise UserError(f"retrieval_of: no seed set '{label}'; there are: {', '.join(seeds) or 'none'}")
    return parts


def select(members: Mapping[str, np.ndarray], sha256: Sequence[str]) -> Selection:
    """Join the parts ``members`` (name -> rows): rows of equal ``sha256`` are one image, the first of them."""
    first: dict[str, int] = {}
    parts: dict[int, list[str]] = {}
    again: dict[int, int] = {}
    for row in np.unique(np.concatenate(list(members.values()))).tolist():
        if (stands := first.setdefault(sha256[row], row)) != row:
            again[row] = stands
        else:
            parts[row] = []
    for name, rows in members.items():
        for row in rows.tolist():
            own = parts[again.get(row, row)]
            if name not in own:
                own.append(name)
    ordered = sorted(parts, key=lambda row: sha256[row])
    return Selection(ordered, [parts[row] for row in ordered], again)
