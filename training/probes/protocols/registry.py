"""Protocols by the names that settings use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from training.probes.material import FIRST, Material
from training.probes.options import ProtocolName
from training.probes.protocols.base import Protocol
from training.probes.protocols.classification import FewShot, Knn, Linear, Logistic, Robustness
from training.probes.protocols.dense import Depth, Segmentation
from training.probes.protocols.instances import Retrieval, Tracking
from training.probes.protocols.label_free import Copies, Health
from training.probes.protocols.places import Correspondence, Discovery, Planted, Warps

Maker = Callable[[Material], Sequence[Protocol]]
"""Makes one protocol for each set that has what it measures."""


def _copies(material: Material) -> Sequence[Protocol]:
    return [Copies(material.seen)] if material.seen is not None else []


MAKERS: Mapping[ProtocolName, Maker] = {
    "knn": lambda material: [Knn(material.options, task) for task in material.classification],
    "linear": lambda material: [Linear(material.options, task) for task in material.classification],
    "logistic": lambda material: [Logistic(material.options, task) for task in material.classification],
    "few_shot": lambda material: [FewShot(material.options, task) for task in material.classification],
    "robustness": lambda material: [Robustness(material.options, task, material) for task in material.classification],
    "segmentation": lambda material: [Segmentation(material.options, task) for task in material.segmentation],
    "depth": lambda material: [Depth(material.options, task) for task in material.depth],
    "retrieval": lambda material: [Retrieval(material.options, task) for task in material.retrieval],
    "tracking": lambda material: [Tracking(material.options, task) for task in material.tracking],
    "discovery": lambda material: [Discovery.of_task(material.options, task) for task in material.boxes],
    "correspondence": lambda material: [Correspondence(material.options, task) for task in material.pairs],
    "planted": lambda material: [Planted.of_images(material.options, material)] if len(material.images) > 1 else [],
    "warps": lambda material: [Warps.of_images(material.options, material)] if len(material.images) else [],
    "copies": _copies,
    "health": lambda material: [Health()] if FIRST in material.lists else [],
}
"""What may stand in ``protocols``."""


def make(names: Sequence[ProtocolName], material: Material) -> list[Protocol]:
    """The protocols called ``names``, in this order, for everything in ``material`` that they can measure."""
    return [protocol for name in names for protocol in MAKERS[name](material)]
