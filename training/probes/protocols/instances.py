"""The same thing again: retrieval of instances, and objects tracked through videos."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from training.probes.material import Clip, RetrievalTask, TrackingTask
from training.probes.options import ProbeOptions
from training.probes.outcome import Items, Outcome
from training.probes.passes import Passes, Request, View
from training.probes.protocols.base import Protocol
from training.probes.ranking import retrieval
from training.probes.tracking import propagate, sequence_scores, tracking_result


class Retrieval(Protocol):
    """``retrieval_map`` and ``recall_at_1`` with easy and hard positives; the other conventions in the details."""

    def __init__(self, options: ProbeOptions, task: RetrievalTask) -> None:
        self.task, self.prefix = task, task.prefix

    def requests(self) -> tuple[Request, ...]:
        return Request(self.task.queries), Request(self.task.gallery)

    def measure(self, passes: Passes) -> Outcome:
        queries, gallery = (passes.features(request.images).cls for request in self.requests())
        found = retrieval(queries, gallery, self.task.relations)
        first = found.medium
        conventions = {"easy": found.easy, "medium": found.medium, "hard": found.hard}
        return Outcome(
            measures={"retrieval_map": first.mean_ap, "recall_at_1": first.recall[1]},
            items={
                "retrieval_map": Items.of_mean(first.average_precision),
                "recall_at_1": Items.of_mean(first.first < 1),
            },
            details={
                "retrieval": {
                    name: {
                        "map": each.mean_ap,
                        "map_plain": each.mean_ap_plain,
                        "recall": {str(k): share for k, share in each.recall.items()},
                        "queries": len(each.queries),
                    }
                    for name, each in conventions.items()
                    if len(each.queries)
                }
            },
        )


class Tracking(Protocol):
    """``tracking_jf``; in the details J, F and each video, in what is shown some frames' masks of the first ones."""

    SHOWN = 5
    """Frames, evenly spread, of each of the first videos."""

    def __init__(self, options: ProbeOptions, task: TrackingTask) -> None:
        self.options, self.task, self.prefix = options, task, task.prefix
        self.view = View("native", grid=options.tracking.grid)

    def requests(self) -> tuple[Request, ...]:
        return tuple(Request(clip.frames, self.view) for clip in self.task.clips)

    def measure(self, passes: Passes) -> Outcome:
        options, scores = self.options.tracking, {}
        strips: dict[str, dict[int, np.ndarray]] = {}
        for clip in self.task.clips:
            first = clip.masks[0]
            assert first is not None
            start = first()
            strip: dict[int, np.ndarray] = {}
            wanted = {number * (len(clip.masks) - 1) // (self.SHOWN - 1) for number in range(self.SHOWN)}
            found = propagate(
                passes.maps(clip.frames, self.view),
                start,
                context=options.context,
                radius=options.radius,
                k=options.neighbours,
                temperature=options.temperature,
            )
            truths = (read() for read in clip.masks if read is not None)
            objects = [int(label) for label in np.unique(start) if label]
            scores[clip.name] = sequence_scores(_scored(found, clip, wanted, strip), truths, objects)
            if len(strips) < self.options.pictures:
                strips[clip.name] = strip
        result = tracking_result(scores)
        by_clip = {name: {"j": float(each.j.mean()), "f": float(each.f.mean())} for name, each in scores.items()}
        return Outcome(
            measures={"tracking_jf": result.j_and_f},
            items={"tracking_jf": result.items["j_and_f"]},
            details={"tracking": {"j": result.j, "f": result.f, "videos": by_clip}},
            shown={"tracking": strips},
        )


def _scored(
    found: Iterator[np.ndarray], clip: Clip, wanted: set[int], strip: dict[int, np.ndarray]
) -> Iterator[np.ndarray]:
    """The masks of frames that have a true one; those of the ``wanted`` frames are put into ``strip``."""
    for number, (mask, truth) in enumerate(zip(found, clip.masks, strict=True)):
        if number in wanted:
            strip[number] = mask
        if truth is not None:
            yield mask
