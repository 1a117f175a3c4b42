"""What to worry about: plain sentences that follow from what was measured and from what the runs wrote down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from components.common.follow import RowReader
from components.common.report.html import Markup, text
from components.evaluation.curves import Curve
from training.engine.decay import find_decay

Severity = Literal["serious", "caution", "good"]
"""``serious``: do not trust or promote before it is understood. ``caution``: know it when you read the figures.
``good``: something that could have been wrong and is not."""

WORDS: dict[Severity, str] = {"serious": "Serious", "caution": "Caution", "good": "Good news"}
QUIET = "All quiet: none of the checks behind this list found anything to worry about."
SEVERAL = 4
"""Evaluations that a curve needs before its end is compared with its peak; names that a sentence lists at most."""


@dataclass(frozen=True)
class Limits:
    """From where on something is worth a sentence. Widths, gaps and falls are in units of the headline measure."""

    interval_width: float = 0.10
    """Width of a 95 % interval of a share that is called wide (0.10 is plus or minus 5 points)."""
    test_images: int = 200
    """Fewer test images are few, where no interval is known."""
    class_images: int = 20
    """Fewer test images of a class are few."""
    decay_share: float = 0.03
    """Part of the way from chance to its peak that a curve has to fall (and more than its noise)."""
    rank_share: float = 0.10
    """Feature rank over dimensions (or images, where they are fewer) that is low."""
    dead_share: float = 0.02
    """Share of dead dimensions that is worth a sentence."""
    gap: float = 0.02
    """By how much a network has to beat the best baseline, so that the gap is not small (shares)."""
    student_gap: float = 0.05
    """How far a student may lie below its teacher (shares)."""
    parameters_an_image: float = 2000.0
    """Parameters for each training image from which the training set is called small."""
    skipped_share: float = 0.01
    """Share of steps skipped from which it is serious."""


@dataclass(frozen=True)
class Facts:
    """What :func:`concerns` looks at. Everything may be left out; what is left out is not judged.

    Networks and runs go by the titles that people read ("Teacher, refined"). Shares are fractions.
    """

    measure: str = "k-NN top-1"
    """Name of the headline measure."""
    share: bool = True
    """Whether that measure is a fraction, shown in per cent."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Trained network -> headline measure."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Trained network -> 95 % interval of it."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Features without a network -> the same measure."""
    untrained: Mapping[str, float] = field(default_factory=dict)
    """Trained network -> the same measure of the same network with random weights."""
    teachers: Mapping[str, str] = field(default_factory=dict)
    """Student -> its teacher; both are in ``scores``."""
    labels: bool | None = None
    """Whether labels of any kind were given; None: not known."""
    test_images: int | None = None
    class_images: Mapping[str, int] = field(default_factory=dict)
    """Class -> test images."""
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    """Run -> its series (:func:`components.evaluation.curves.read_curves`)."""
    chance: Mapping[str, float] = field(default_factory=dict)
    """Series (its last part, ``knn_top1``) -> value of features that say nothing; 0.5 for ``patch_coherence``."""
    events: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Run -> its events (:func:`read_events`)."""
    ranks: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """Trained network -> (feature rank, largest rank it could have: min(images, dimensions))."""
    dead: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Trained network -> (dead dimensions, dimensions); see :func:`dead_dimensions`."""
    training_images: int | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Trained network -> its parameters; those of teachers are compared with the training images."""
    copies_removed: int | None = None
    """Images of the pool that curation left out because they are in the evaluation set; None: it did not look."""


@dataclass(frozen=True)
class Concern:
    """One sentence and how much it matters."""

    severity: Severity
    sentence: str


def concerns(facts: Facts, limits: Limits | None = None) -> list[Concern]:
    """Everything that ``facts`` give reason to say, serious things first, good news last."""
    limits = limits or Limits()
    rules = (_scores, _students, _training, _guards, _features, _test_set, _pool)
    found = [concern for rule in rules for concern in rule(facts, limits)]
    order = list(WORDS)
    return sorted(found, key=lambda concern: order.index(concern.severity))


def concerns_section(found: Sequence[Concern]) -> Markup:
    """The list as HTML; a sentence that all is quiet where nothing is there to worry about."""
    quiet = [] if any(concern.severity != "good" for concern in found) else [Concern("good", QUIET)]
    items = "".join(
        f'<li class="{each.severity}"><b>{WORDS[each.severity]}</b><span>{text(each.sentence)}</span></li>'
        for each in (*quiet, *found)
    )
    return Markup(f'<ul class="concerns">{items}</ul>')


def read_events(run: Path) -> list[dict[str, Any]]:
    """The events of a training run folder; empty where it has none. A half-written last line is left out."""
    return RowReader(run / "events.jsonl").new_rows()


def dead_dimensions(embeddings: np.ndarray, share: float = 1e-3) -> tuple[int, int]:
    """(dead, all) dimensions of ``embeddings`` (N, D): dead is a standard deviation over the images that is below
    ``share`` of the median of all."""
    spread = np.asarray(embeddings, np.float64).std(axis=0)
    middle = float(np.median(spread[spread > 0])) if (spread > 0).any() else 0.0
    return int((spread <= share * middle).sum()), len(spread)


def _scores(facts: Facts, limits: Limits) -> Iterator[Concern]:
    """Networks against what needs no training."""
    for name, score in facts.scores.items():
        others = dict(facts.baselines)
        if name in facts.untrained:
            others["the same network with random weights"] = facts.untrained[name]
        if not others:
            continue
        best = max(others, key=lambda other: others[other])
        gap, what = score - others[best], best if best.startswith("the ") else f"the baseline {best}"
        told = f"{name}: {facts.measure} {_show(facts, score)} against {_show(facts, others[best])} of {what}"
        low = facts.intervals.get(name, (score, score))[0]
        if gap <= 0:
            yield Concern("serious", f"{told}; training has not helped.")
        elif low <= others[best]:
            yield Concern("caution", f"{told}, which lies within the 95 % interval; the gap may be chance.")
        elif facts.share and gap < limits.gap:
            yield Concern("caution", f"{told}, a gap of only {_points(gap)}.")


def _students(facts: Facts, limits: Limits) -> Iterator[Concern]:
    for student, teacher in facts.teachers.items():
        if student not in facts.scores or teacher not in facts.scores:
            continue
        lost = facts.scores[teacher] - facts.scores[student]
        if facts.share and lost > limits.student_gap:
            yield Concern(
                "caution",
                f"{student} lies {_points(lost)} below {_inside(teacher)} in {facts.measure} "
                f"({_show(facts, facts.scores[student])} against {_show(facts, facts.scores[teacher])}); a longer "
                "distillation or a larger student may help.",
            )


def _training(facts: Facts, limits: Limits) -> Iterator[Concern]:
    """Measures that were better earlier, and more than noise explains."""
    titles = {"knn_top1": "k-NN top-1", "segmentation_miou": "segmentation mIoU", "patch_coherence": "patch coherence"}
    chances = {"patch_coherence": 0.5, **facts.chance}
    for run, curves in facts.curves.items():
        for name, (steps, values) in curves.items():
            *student, last = name.split("/")
            if last not in titles or len(values) < SEVERAL:
                continue
            decay = find_decay(steps, values, chance=chances.get(last, 0.0), share=limits.decay_share)
            if decay.last >= decay.bound:
                continue
            of = f" of {'/'.join(student)}" if student else ""
            remedy = (
                "refinement with a Gram teacher is meant for this"
                if last != "knn_top1"
                else "look for a learning rate that is too high, or too many passes over too few images"
            )
            yield Concern(
                "caution",
                f"{run}: {titles[last]}{of} was best at step {decay.peak_step + 1:,} ({100 * decay.peak:.1f} %) and "
                f"ended at {100 * decay.last:.1f} %, a fall that is more than its noise; {remedy}.",
            )


def _guards(facts: Facts, limits: Limits) -> Iterator[Concern]:
    """What the guards of the runs wrote down."""
    for run, events in facts.events.items():
        kinds = Counter(str(event.get("event")) for event in events)
        steps = max((int(event["step"]) + 1 for event in events if isinstance(event.get("step"), int)), default=0)
        if skipped := kinds["skipped-step"]:
            severity: Severity = "serious" if steps and skipped > limits.skipped_share * steps else "caution"
            yield Concern(
                severity, f"{run}: {_count(skipped, 'step')} skipped, the loss or a gradient not being finite."
            )
        if alarms := kinds["collapse-alarm"]:
            last = next(event for event in reversed(events) if event.get("event") == "collapse-alarm")
            yield Concern(
                "serious",
                f"{run}: {_count(alarms, 'alarm')} of collapse, the last at step {last.get('step')}"
                f" ({last.get('message', 'no reason given')}).",
            )
        if restarts := kinds["resumed"]:
            times = "once" if restarts == 1 else f"{restarts} times"
            yield Concern("caution", f"{run}: restarted {times}; what is learned is the same, the time is not.")
        if unreadable := kinds["unreadable-image"]:
            yield Concern("caution", f"{run}: {_count(unreadable, 'image')} not readable; others took their place.")


def _features(facts: Facts, limits: Limits) -> Iterator[Concern]:
    for name, (rank, largest) in facts.ranks.items():
        if largest and rank < max(limits.rank_share * largest, 1.5):
            severity: Severity = "serious" if rank < 2 else "caution"
            yield Concern(
                severity,
                f"{name}: the feature rank is {rank:.1f} of at most {largest}; the embeddings use few directions"
                + (" (collapse)." if rank < 2 else "."),
            )
    for name, (dead, dimensions) in facts.dead.items():
        if dead > limits.dead_share * dimensions:
            yield Concern("caution", f"{name}: {dead} of {dimensions} dimensions of the embedding are dead (constant).")


def _test_set(facts: Facts, limits: Limits) -> Iterator[Concern]:
    if facts.labels is False:
        yield Concern(
            "caution",
            "No labels were given, so nothing here says whether classes are told apart; a few hundred labelled images "
            "(EVAL=) would.",
        )
    widths = {name: high - low for name, (low, high) in facts.intervals.items()}
    if facts.share and widths and max(widths.values()) > limits.interval_width:
        widest = max(widths, key=lambda name: widths[name])
        few = f" of {facts.test_images:,} test images" if facts.test_images else ""
        yield Concern(
            "caution",
            f"The 95 % intervals are up to {_points(widths[widest])} wide ({widest}), which is as much as the "
            f"figures{few} can tell; smaller differences may be chance.",
        )
    elif not widths and facts.test_images is not None and 0 < facts.test_images < limits.test_images:
        yield Concern("caution", f"There are only {facts.test_images:,} test images; small differences may be chance.")
    small = sorted((count, name) for name, count in facts.class_images.items() if count < limits.class_images)
    if small:
        shown = ", ".join(f"{name} ({count})" for count, name in small[:SEVERAL])
        more = f" and {len(small) - SEVERAL} more" if len(small) > SEVERAL else ""
        are = "1 class has" if len(small) == 1 else f"{len(small)} of {len(facts.class_images)} classes have"
        yield Concern(
            "caution", f"{are} fewer than {limits.class_images} test images, so one image moves them: {shown}{more}."
        )


def _pool(facts: Facts, limits: Limits) -> Iterator[Concern]:
    images = facts.training_images
    students = set(facts.teachers)
    large = {name: count for name, count in facts.parameters.items() if name not in students}
    if images and large:
        name = max(large, key=lambda each: large[each])
        if large[name] > limits.parameters_an_image * images:
            yield Concern(
                "caution",
                f"{images:,} training images are few for the {large[name] / 1e6:.1f} million parameters of "
                f"{_inside(name)}: a smaller network may do as well, more images may do better.",
            )
    if facts.copies_removed:
        yield Concern(
            "good",
            f"Curation left out {_count(facts.copies_removed, 'image')} of the pool as copies of evaluation images, so "
            "the figures are not flattered by them.",
        )
    elif facts.copies_removed == 0:
        yield Concern("good", "Curation looked for copies of evaluation images in the pool and found none.")
    elif facts.labels and images:
        yield Concern(
            "caution",
            "Curation was not told the evaluation set, so copies of its images may be among the training images.",
        )


def _show(facts: Facts, value: float) -> str:
    return f"{100 * value:.1f} %" if facts.share else f"{value:.3g}"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _inside(title: str) -> str:
    """A title inside a sentence: "Teacher, refined" is "the refined teacher"."""
    what, comma, kind = title.partition(", ")
    return f"the {kind} {what.lower()}" if comma and what == "Teacher" else title
