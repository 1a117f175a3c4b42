"""The reasons of rejected.parquet in the order in which files meet them, with the words that a page has for them."""

from __future__ import annotations

from dataclasses import dataclass

from foundry.images import REASONS


@dataclass(frozen=True)
class Group:
    """Reasons of one kind."""

    name: str
    """As a legend names it."""
    sentence: str
    """What the page's summary says of its files, after their number."""
    reasons: dict[str, str]
    """Reason -> what the file is or does."""


UNREADABLE = Group(
    "not decoded",
    "could not be read or decoded",
    {
        "unreadable": "could not be read",
        **REASONS,
        "timeout": "took too much processor time",
        "crashed": "killed the process that decoded it",
    },
)
UNFIT = Group(
    "filtered",
    "are too small, too elongated or blank",
    {
        "too-small": "has a short side below the limit",
        "too-elongated": "is a strip",
        "blank": "shows next to nothing",
    },
)
COPIES = Group(
    "copies",
    "are copies of another file",
    {
        "exact-duplicate": "has the bytes of another file",
        "same-pixels": "has the pixels of another file, encoded differently",
        "near-duplicate": "shows the picture of another file, changed",
    },
)
HELD_OUT = Group(
    "held out",
    "are copies of images that models are measured on",
    {"evaluation-copy": "is a copy of an image of the evaluation set, or of a copy of one"},
)
DELETED = Group(
    "deleted",
    "show what was deleted from the dataset",
    {"deleted": "was deleted from the dataset, or is a copy of what was"},
)
BALANCE = Group(
    "not drawn",
    "were not drawn, so that common concepts do not outweigh rare ones",
    {"balance": "was not drawn: its concept had enough"},
)
GROUPS = (UNREADABLE, UNFIT, COPIES, HELD_OUT, DELETED, BALANCE)
OTHER = Group("other", "were left out for other reasons", {})
"""Of reasons that are in none of :data:`GROUPS`."""


def group_of(reason: str) -> Group:
    """The group that ``reason`` belongs to."""
    return next((group for group in GROUPS if reason in group.reasons), OTHER)
