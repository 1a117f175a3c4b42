"""Dense protocols: segmentation and depth by a linear head on frozen patch features."""

from __future__ import annotations

from training.probes.depth import depth_probe
from training.probes.material import Task
from training.probes.options import ProbeOptions
from training.probes.outcome import Outcome
from training.probes.passes import Passes, Request, View
from training.probes.protocols.base import Protocol
from training.probes.segmentation import segmentation_probe


class _Dense(Protocol):
    def __init__(self, options: ProbeOptions, task: Task) -> None:
        self.options, self.task, self.prefix = options, task, task.prefix
        self.view = View("whole", options.segmentation_size, options.dense_grid)

    def requests(self) -> tuple[Request, ...]:
        return tuple(Request(split.images, self.view, patches=True) for split in (self.task.train, self.task.test))


class Segmentation(_Dense):
    """``miou``; in the details every class, in what is shown the first predictions."""

    def measure(self, passes: Passes) -> Outcome:
        train, test = (passes.features(request.images, self.view).patches for request in self.requests())
        assert train is not None and test is not None
        found = segmentation_probe(
            train,
            self.task.train.truth,
            test,
            self.task.test.truth,
            classes=len(self.task.classes),
            steps=self.options.segmentation_steps,
            seed=self.options.seed,
            keep=self.options.pictures,
        )
        iou = {self.task.classes[label]: value for label, value in found.iou.items()}
        return Outcome(
            measures={"miou": found.miou},
            items={"miou": found.items},
            details={"segmentation": {"pixel_accuracy": found.pixel_accuracy, "iou": iou}},
            shown={"segmentations": found.predictions},
        )


class Depth(_Dense):
    """``depth_rmse`` and ``depth_delta1``; in the details the other errors."""

    def measure(self, passes: Passes) -> Outcome:
        train, test = (passes.features(request.images, self.view).patches for request in self.requests())
        assert train is not None and test is not None
        options = self.options.depth
        found = depth_probe(
            train,
            self.task.train.truth,
            test,
            self.task.test.truth,
            nearest=options.nearest,
            farthest=options.farthest,
            steps=options.steps,
            seed=self.options.seed,
            keep=self.options.pictures,
        )
        return Outcome(
            measures={"depth_rmse": found.measures["rmse"], "depth_delta1": found.measures["delta1"]},
            items={"depth_rmse": found.items["rmse"], "depth_delta1": found.items["delta1"]},
            details={"depth": found.measures},
            shown={"depths": found.predictions},
        )
