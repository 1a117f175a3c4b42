"""What the set ``webpool`` knows of copies, and how well those found agree with it.

Pictures are split into two halves by a digest, so that bounds are chosen on one (``TUNED``) and reported on the other
(``REPORTED``). ``webpool_pairs.csv`` settles joined pairs of which the set's truth says nothing; its header says how.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

TUNED, REPORTED = 0, 1
KINDS = {
    "gray": "grey",
    "bright": "brightness",
    "flip": "mirror",
    "rotate": "rotation",
    "exact+png_named_jpg": "exact",
    **{kind: kind for kind in ("exact", "png", "jpeg", "resize", "caption", "watermark", "border", "crop")},
}
"""Transform in the truth -> kind of copy; files with other transforms are no copies."""
GEOMETRIC = ("crop", "mirror", "rotation")
CHECKED = Path(__file__).with_name("webpool_pairs.csv")


@dataclass(frozen=True)
class Scores:
    """Of one half: ``found`` and ``known`` pairs of each kind; ``joined`` pairs, and those that nobody calls copies."""

    found: Counter[str]
    known: Counter[str]
    joined: int
    wrong: list[tuple[str, str]]

    def recall(self, geometric: bool) -> float:
        """Share of the known pairs that is found, over crops, mirrors and rotations or over all other kinds."""
        kinds = [kind for kind in self.known if (kind in GEOMETRIC) == geometric]
        return sum(self.found[kind] for kind in kinds) / sum(self.known[kind] for kind in kinds)

    @property
    def precision(self) -> float:
        """Share of the joined pairs that are copies."""
        return 1 - len(self.wrong) / self.joined


class Truth:
    """truth.csv of webpool."""

    def __init__(self, folder: Path) -> None:
        with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
            self.rows = {row["filename"]: row for row in csv.DictReader(file)}
        links = [(name, row["near_dup_of"]) for name, row in self.rows.items() if row["near_dup_of"] in self.rows]
        for column in ("exact_group", "natural_group"):
            first: dict[str, str] = {}
            links += [(name, first.setdefault(row[column], name)) for name, row in self.rows.items() if row[column]]
        self.picture = _components(self.rows, links)
        """File -> the first, by name, of those that show the same picture."""

    def half(self, name: str) -> int:
        """``TUNED`` or ``REPORTED``."""
        return hashlib.sha256(self.picture[name].encode()).digest()[-1] & 1

    def copies(self, present: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
        """(kind, copy, original) of all made copies of which both files are ``present``."""
        for name, row in self.rows.items():
            if row["transform"] in KINDS and {name, row["near_dup_of"]} <= present.keys():
                yield KINDS[row["transform"]], name, row["near_dup_of"]

    def same(self, one: str, other: str) -> bool:
        """Whether the truth, or its natural group, says that two files show the same picture."""
        return self.picture[one] == self.picture[other]

    def score(self, group: Mapping[str, int], checked: set[tuple[str, str]], half: int) -> Scores:
        """How well ``group`` (usable file -> its group) agrees. ``checked``: sorted pairs that are copies by eye.

        All pairs of a group count as joined; a pair of two halves counts in that of the first name.
        """
        found, known = Counter[str](), Counter[str]()
        for kind, copy, original in self.copies(group):
            if self.half(copy) == half:
                known[kind] += 1
                found[kind] += group[copy] == group[original]
        joined = [pair for pair in joined_pairs(group) if self.half(pair[0]) == half]
        wrong = [pair for pair in joined if not self.same(*pair) and pair not in checked]
        return Scores(found, known, len(joined), wrong)


def _components(names: Mapping[str, object], links: list[tuple[str, str]]) -> dict[str, str]:
    import numpy as np

    from components.curation.duplicates import connected_components

    order = sorted(names)
    place = {name: number for number, name in enumerate(order)}
    pairs = np.array([[place[one], place[other]] for one, other in links])
    return {name: order[first] for name, first in zip(order, connected_components(len(order), pairs), strict=True)}


def joined_pairs(group: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of files of one group, sorted."""
    members = defaultdict(list)
    for name in sorted(group):
        members[group[name]].append(name)
    return sorted(pair for names in members.values() for pair in combinations(names, 2))


def checked_pairs(verdict: str = "same") -> set[tuple[str, str]]:
    """Pairs of ``webpool_pairs.csv`` with this verdict."""
    with CHECKED.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if not line.startswith("#")]
    return {(row["first"], row["second"]) for row in csv.DictReader(lines) if row["verdict"] == verdict}
