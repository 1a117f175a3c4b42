"""Where things are in an image: object discovery and correspondence, on annotated images or on ones of known truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.probes.correspondence import PckResult, WarpedPairs, match, pair_scores, pck, warped_pairs
from training.probes.discovery import Box, corloc, lost, tokencut
from training.probes.material import BoxTask, Material, PairTask, spread
from training.probes.options import ProbeOptions
from training.probes.outcome import Outcome
from training.probes.passes import ImageList, Passes, Request, View
from training.probes.planted import planted_scenes
from training.probes.protocols.base import Protocol

ALPHA = 0.1
"""The share of the scale that a point may be off, in the table."""
PLANTED = 64
"""Images of the dataset, evenly spread, that get a planted object: TokenCut takes most of a second an image."""
METHODS = {"tokencut": tokencut, "lost": lost}
"""The first is the table's."""


class Discovery(Protocol):
    """``corloc`` (``planted_corloc``) by TokenCut; LOST in the details."""

    measure_name, detail = "corloc", "discovery"

    def __init__(self, options: ProbeOptions, prefix: str, images: str, boxes: Sequence[np.ndarray]) -> None:
        self.prefix, self.images, self.boxes = prefix, images, boxes
        self.view = View("native", grid=options.discovery_grid)

    @classmethod
    def of_task(cls, options: ProbeOptions, task: BoxTask) -> Discovery:
        return cls(options, task.prefix, task.images, task.boxes)

    def requests(self) -> tuple[Request, ...]:
        return (Request(self.images, self.view),)

    def measure(self, passes: Passes) -> Outcome:
        found: dict[str, list[Box]] = {name: [] for name in METHODS}
        sizes = [image.shape[:2] for image in passes.lists[self.images]]
        for features, size in zip(passes.maps(self.images, self.view), sizes, strict=True):
            for name, method in METHODS.items():
                found[name].append(method(features).scaled(features.shape[:2], size))
        results = {name: corloc(boxes, self.boxes) for name, boxes in found.items()}
        first = results["tokencut"]
        return Outcome(
            measures={self.measure_name: first.corloc},
            items={self.measure_name: first.items},
            details={self.detail: {name: result.corloc for name, result in results.items()}},
        )


class Planted(Discovery):
    """Discovery of pieces of images planted into others."""

    measure_name, detail = "planted_corloc", "planted"

    @classmethod
    def of_images(cls, options: ProbeOptions, material: Material) -> Planted:
        scenes, boxes = planted_scenes(spread(material.images, PLANTED), options.seed)
        material.lists["planted"] = ImageList(len(scenes), scenes.__getitem__)
        return cls(options, "", "planted", boxes)


class Correspondence(Protocol):
    """``pck``; in the details other shares of the scale."""

    def __init__(self, options: ProbeOptions, task: PairTask) -> None:
        self.task, self.prefix = task, task.prefix
        self.view = View("native", grid=options.correspondence_grid)

    def requests(self) -> tuple[Request, ...]:
        return (Request(self.task.images, self.view),)

    def measure(self, passes: Passes) -> Outcome:
        maps = passes.maps(self.task.images, self.view)
        found = []
        for points, source in zip(self.task.source, maps, strict=False):
            found.append(match(source, next(maps), points))
        # in units of the scale, which may differ along x and y in fractions of an image
        units = [points / scale for points, scale in zip(found, self.task.scale, strict=True)]
        truth = [points / scale for points, scale in zip(self.task.target, self.task.scale, strict=True)]
        return _scored("pck", "correspondence", pck(units, truth, 1.0))


class Warps(Protocol):
    """``warp_pck``: correspondence between images of the dataset and their known warps."""

    def __init__(self, options: ProbeOptions, pairs: WarpedPairs) -> None:
        self.pairs = pairs
        self.view = View("whole", grid=options.correspondence_grid)

    @classmethod
    def of_images(cls, options: ProbeOptions, material: Material) -> Warps:
        pairs = warped_pairs(material.images, options.seed)
        for name, views in (("first", pairs.first), ("second", pairs.second)):
            material.lists[f"warps/{name}"] = ImageList(len(views), views.__getitem__)
        return cls(options, pairs)

    def requests(self) -> tuple[Request, ...]:
        return tuple(Request(f"warps/{name}", self.view, patches=True) for name in ("first", "second"))

    def measure(self, passes: Passes) -> Outcome:
        first, second = (passes.features(request.images, self.view).patches for request in self.requests())
        assert first is not None and second is not None
        return _scored("warp_pck", "warps", pair_scores(first, second, self.pairs))


def _scored(name: str, detail: str, result: PckResult) -> Outcome:
    return Outcome(
        measures={name: result.per_pair[ALPHA]},
        items={name: result.items[ALPHA]},
        details={
            detail: {
                "per_image": {str(alpha): value for alpha, value in result.per_pair.items()},
                "per_point": {str(alpha): value for alpha, value in result.per_point.items()},
            }
        },
    )
