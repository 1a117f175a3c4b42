"""Whether a network may be promoted: what it measured against what it had to reach.

That a network learned is a comparison of figures with those of random weights and plain features. What decides a
promotion beyond that is in :mod:`components.evaluation.promotion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from components.evaluation.config import GateSettings
from components.evaluation.promotion import (
    Gate,
    Measures,
    Protocol,
    headline_measure,
    promotion_gates,
    show,
    wanted_gates,
)
from components.evaluation.subjects import Subject
from training.probes.measures import MEASURES
from training.probes.outcome import Items

__all__ = [
    "HISTOGRAM",
    "RAW_PIXELS",
    "SCHEMA",
    "Gate",
    "Judgement",
    "Protocol",
    "Verdict",
    "headline_measure",
    "judge",
    "show",
]

SCHEMA = 1
"""Of metrics.json."""
VERDICT_SCHEMA = 2
"""Of verdict.json. 2 adds what is known of the certainty of a gate."""
RAW_PIXELS, HISTOGRAM = "raw pixels", "colour histogram"


@dataclass(frozen=True)
class Judgement:
    """All gates of one network."""

    passed: bool
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Verdict:
    """What the line may promote. ``students`` are by their recipe's names."""

    passed: bool
    summary: str
    protocol: Protocol
    teachers: dict[str, Judgement]
    students: dict[str, Judgement]
    left_out: tuple[str, ...] = ()
    """Settings of gates on labelled measures, which there were no labels for."""

    def document(self) -> dict[str, Any]:
        """As verdict.json; what a gate does not know is left out."""
        document = {"schema": VERDICT_SCHEMA, **asdict(self)}
        for group in (document["teachers"], document["students"]):
            for judgement in group.values():
                judgement["gates"] = [
                    {key: value for key, value in gate.items() if value is not None} for gate in judgement["gates"]
                ]
        return document


def judge(
    subjects: Sequence[Subject],
    found: Mapping[str, Measures],
    protocol: Protocol,
    settings: GateSettings,
    items: Mapping[str, Mapping[str, Items]] | None = None,
) -> Verdict:
    """The verdict on every teacher and student of ``subjects``.

    ``found`` has the measures of each subject by name, and those of ``raw pixels`` and ``colour histogram``; ``items``
    the parts of those measures that have some, image by image, for comparisons with the champion: a measure without
    is compared as a single figure. A student passes when all its gates do and every teacher learned. Gates against the
    champion are left out where there is none, and those on labelled measures where nothing has labels.

    Raises:
        ValueError: the items of a student and its champion are not of the same images.
    """
    wanted, left_out = wanted_gates(settings, protocol, {name for each in found.values() for name in each})
    teachers: dict[str, Judgement] = {}
    students: dict[str, Judgement] = {}
    for subject in subjects:
        if subject.kind == "teacher":
            teachers[subject.name] = _judgement(_gates(subject, found, protocol, settings))
    failed = [name for name, judgement in teachers.items() if not judgement.passed]
    for subject in subjects:
        if subject.kind == "student":
            gates = _gates(subject, found, protocol, settings)
            promotion = promotion_gates(subject, found, wanted, settings, items or {})
            students[subject.student] = _judgement([*gates, *promotion, _teacher_gate(failed)])
    passed = not failed and all(judgement.passed for judgement in students.values())
    summary = _summary(subjects, found, protocol, teachers, students)
    if left_out:
        summary += f" Not judged, since nothing has labels: {', '.join(left_out)}."
    return Verdict(passed, summary, protocol, teachers, students, left_out)


def _judgement(gates: Sequence[Gate]) -> Judgement:
    return Judgement(all(gate.passed for gate in gates), tuple(gates))


def _gates(subject: Subject, found: Mapping[str, Measures], protocol: Protocol, settings: GateSettings) -> list[Gate]:
    own, random = found[subject.name], found[subject.random]
    gates = []

    def above(name: str, measure: str, other: float, margin: float, what: str) -> None:
        gates.append(_above(name, measure, own[measure], other, margin, what))

    untrained = "that of the same network with random weights"
    if protocol == "classification":
        above("knn_above_random", "knn_top1", random["knn_top1"], settings.knn_margin, untrained)
        for baseline, gate in ((RAW_PIXELS, "knn_above_raw_pixels"), (HISTOGRAM, "knn_above_colour_histogram")):
            above(gate, "knn_top1", found[baseline]["knn_top1"], settings.knn_margin, f"that of the {baseline}")
    else:
        if protocol == "segmentation":
            above("miou_above_random", "miou", random["miou"], settings.miou_margin, untrained)
        for name, measure, margin in (
            ("retrieval_above_random", "copy_retrieval", settings.retrieval_margin),
            ("coherence_above_random", "patch_coherence", settings.coherence_margin),
        ):
            above(name, measure, random[measure], margin, untrained)
        gates.append(_at_least("feature_rank", "feature_rank", own["feature_rank"], settings.rank_bound, "the bound"))
    return gates


def _above(name: str, measure: str, value: float, other: float, margin: float, what: str) -> Gate:
    bound = other + margin
    passed = value > bound
    more = f" plus the margin of {show(measure, margin)}" if margin else ""
    relation = "is above" if passed else "is not above"
    text = f"{MEASURES[measure].sentence} ({show(measure, value)}) {relation} {what} ({show(measure, other)}){more}"
    return Gate(name, value, bound, ">", passed, text)


def _at_least(name: str, measure: str, value: float, bound: float, what: str) -> Gate:
    passed = value >= bound
    relation = "reaches" if passed else "is below"
    text = f"{MEASURES[measure].sentence} ({show(measure, value)}) {relation} {what} ({show(measure, bound)})"
    return Gate(name, value, bound, ">=", passed, text)


def _called(teacher: str) -> str:
    """A teacher in a sentence: one of a line's two, or the one that was given."""
    return "the teacher" if teacher == "teacher" else f"the {teacher} teacher"


def _teacher_gate(failed: Sequence[str]) -> Gate:
    text = f"{_called(failed[0])} did not learn" if failed else "the teacher learned"
    return Gate("teacher_learned", float(not failed), 1.0, ">=", not failed, text)


def _summary(
    subjects: Sequence[Subject],
    found: Mapping[str, Measures],
    protocol: Protocol,
    teachers: Mapping[str, Judgement],
    students: Mapping[str, Judgement],
) -> str:
    """One plain sentence."""
    for name, judgement in teachers.items():
        for gate in judgement.gates:
            if not gate.passed:
                told = _called(name)
                return f"{told[0].upper()}{told[1:]} did not learn: its {gate.explanation}. Nothing may be promoted."
    failed = [
        f"student {name}: {gate.explanation}"
        for name, judgement in students.items()
        for gate in judgement.gates
        if not gate.passed
    ]
    if failed:
        good = [name for name, judgement in students.items() if judgement.passed]
        rest = f" May be promoted: {', '.join(good)}." if good else " No student may be promoted."
        return f"Not every student passed; {'; '.join(failed)}.{rest}"
    measure = headline_measure(protocol)
    scores = ", ".join(
        f"{subject.student or subject.name} {show(measure, found[subject.name][measure])}"
        for subject in subjects
        if subject.kind in ("teacher", "student")
    )
    return f"Teacher and students learned and may be promoted ({MEASURES[measure].sentence}: {scores})."
