"""What decides a promotion beyond having learned: absolute bounds, and the comparison with the champion.

Against the champion chance counts: both networks are measured on the same images, and a gate is decided by the
one-sided bound of a paired bootstrap (:mod:`components.evaluation.bootstrap`). Non-inferiority (the bound is not below
minus a margin) and superiority (it is above zero) are those of clinical trials (Piaggio et al. 2012, the CONSORT
statement on non-inferiority). A student that must pass several gates passes all of them by mistake no more often than
the one it should fail, so nothing is corrected for their number (Berger 1982, intersection-union tests).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from components.evaluation.bootstrap import Comparison, compare, interval
from components.evaluation.config import HEADLINE, GateSettings
from components.evaluation.subjects import Subject
from training.probes.measures import MEASURES
from training.probes.outcome import Items

Protocol = Literal["classification", "segmentation", "label-free"]
"""Which measures gate: given labels, given masks only, or nothing given."""

Measures = Mapping[str, float]
"""Name of a measure -> value."""
Kind = Literal["non_inferior", "superior"]


@dataclass(frozen=True)
class Gate:
    """One condition: ``measured`` ``comparison`` ``bound``."""

    name: str
    measured: float
    """A measure; against the champion, how much better the challenger is at least, for certain (or, where a measure
    has no parts to draw again, how much better it is)."""
    bound: float
    comparison: Literal[">", ">=", "<="]
    passed: bool
    explanation: str
    """In words, without a full stop."""
    difference: float | None = None
    """How much better than the champion; negative is worse, also for errors."""
    low: float | None = None
    """Lower end of the two-sided interval: of the difference, or of the measure itself for a bound."""
    high: float | None = None
    certainty: float | None = None
    images: int | None = None
    detectable: float | None = None
    """The true gain that would have been seen as one, four times in five."""


def headline_measure(protocol: Protocol) -> str:
    """The one measure that summaries and the champion's gate use."""
    return {"classification": "knn_top1", "segmentation": "miou", "label-free": "copy_retrieval"}[protocol]


def show(measure: str, value: float) -> str:
    """A value as people read it: per cent for fractions."""
    if not math.isfinite(value):
        return "not a number"
    if MEASURES[measure].share:
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if abs(value) >= 4 else f"{value:.3g}"


@dataclass(frozen=True)
class WantedGates:
    """The gates that decide a promotion, by measure."""

    bounds: Mapping[str, float]
    margins: Mapping[str, float]
    superior: str


def wanted_gates(
    settings: GateSettings, protocol: Protocol, measured: Collection[str]
) -> tuple[WantedGates, tuple[str, ...]]:
    """(what ``settings`` ask for, the settings that are left out for want of labels).

    ``measured`` are the measures of any network. What is said of a measure by its name goes before ``headline``.
    """
    left_out: list[str] = []

    def named(setting: str, given: Mapping[str, float]) -> dict[str, float]:
        chosen: dict[str, float] = {}
        for name in sorted(given, key=lambda name: name != HEADLINE):
            measure = headline_measure(protocol) if name == HEADLINE else name
            if protocol == "label-free" and MEASURES[measure].labelled and measure not in measured:
                left_out.append(f"{setting}.{name}" if setting != "superiority" else f"{setting} in {name}")
            else:
                chosen[measure] = given[name]
        return chosen

    bounds, margins = named("bounds", settings.bounds), named("non_inferiority", settings.non_inferiority)
    superior = next(iter(named("superiority", {settings.superiority: 0.0} if settings.superiority else {})), "")
    return WantedGates(bounds, margins, superior), tuple(left_out)


def promotion_gates(
    subject: Subject,
    found: Mapping[str, Measures],
    wanted: WantedGates,
    settings: GateSettings,
    items: Mapping[str, Mapping[str, Items]],
) -> list[Gate]:
    """Absolute bounds, then the comparisons with the champion."""
    own = found[subject.name]
    parts = items.get(subject.name, {})
    gates = []
    for measure, bound in wanted.bounds.items():
        if measure in own:
            gates.append(_bound_gate(measure, own[measure], bound, parts.get(measure), settings))
        else:
            gates.append(_unmeasured("bound", measure, bound))
    if not subject.champion:
        return gates
    theirs, their_parts = found[subject.champion], items.get(subject.champion, {})
    compared: dict[str, Comparison | None] = {}
    for measure in {**wanted.margins, **({wanted.superior: 0.0} if wanted.superior else {})}:
        if measure in parts and measure in their_parts:
            compared[measure] = compare(
                parts[measure],
                their_parts[measure],
                larger_is_better=not MEASURES[measure].smaller_is_better,
                resamples=settings.resamples,
                certainty=settings.certainty,
            )
    asked: list[tuple[Kind, str, float]] = [("non_inferior", *row) for row in wanted.margins.items()]
    if wanted.superior:
        asked.append(("superior", wanted.superior, 0.0))
    for kind, measure, margin in asked:
        if measure in own and measure in theirs:
            values = own[measure], theirs[measure]
            gates.append(_champion_gate(kind, measure, *values, margin, compared.get(measure), settings))
        else:
            gates.append(_unmeasured(kind, measure, -margin))
    return gates


def _unmeasured(kind: str, measure: str, bound: float) -> Gate:
    text = f"{MEASURES[measure].sentence} was not measured, so nothing can be said of it; give what it is measured on"
    return Gate(f"{kind}_{measure}", math.nan, bound, ">=", False, text)


def _bound_gate(measure: str, value: float, bound: float, items: Items | None, settings: GateSettings) -> Gate:
    smaller = MEASURES[measure].smaller_is_better
    passed = value <= bound if smaller else value >= bound
    relation = ("is within" if passed else "is above") if smaller else ("reaches" if passed else "is below")
    text = f"{MEASURES[measure].sentence} ({show(measure, value)}) {relation} the bound ({show(measure, bound)})"
    if not passed and math.isfinite(value):
        text += f" by {_amount(measure, value - bound)}"
    comparison: Literal["<=", ">="] = "<=" if smaller else ">="
    if items is None or not len(items):
        return Gate(f"bound_{measure}", value, bound, comparison, passed, text)
    known = interval(items, resamples=settings.resamples, certainty=settings.certainty)
    text += (
        f"; with {100 * known.certainty:g} % certainty it is {show(measure, known.low)} to {show(measure, known.high)} "
        f"on {known.images:,} images"
    )
    gate = Gate(f"bound_{measure}", value, bound, comparison, passed, text)
    return replace(gate, low=known.low, high=known.high, certainty=known.certainty, images=known.images)


def _champion_gate(
    kind: Kind,
    measure: str,
    value: float,
    champion: float,
    margin: float,
    compared: Comparison | None,
    settings: GateSettings,
) -> Gate:
    """The gate ``non_inferior`` or ``superior`` (``kind``) of one measure.

    ``value`` and ``champion`` are the measures of both networks, ``compared`` the same with its certainty; None where
    the measure has no parts to draw again.
    """
    superior = kind == "superior"
    name = f"{kind}_{measure}"
    comparison: Literal[">", ">="] = ">" if superior else ">="
    head = f"{MEASURES[measure].sentence} ({show(measure, value)}) against the champion's {show(measure, champion)}: "
    allowed = "better is asked for" if superior else f"{_amount(measure, margin)} worse is allowed"
    if compared is None:
        difference = champion - value if MEASURES[measure].smaller_is_better else value - champion
        passed = difference > 0 if superior else difference >= -margin
        text = f"{head}{_told(measure, difference)}, as single figures, of unknown certainty; {allowed}"
        return Gate(name, difference, -margin, comparison, passed, text, difference)
    enough = compared.images >= settings.minimum_images
    within = compared.low > 0 if superior else compared.low >= -margin
    passed = within and (enough or compared.equal)
    certainty = f"{100 * compared.certainty:g} %"
    if compared.equal:
        text = f"{head}the same on each of {compared.images:,} images; {allowed}"
    else:
        least = _told(measure, compared.low, "at least " if compared.low > 0 else "at most ")
        text = f"{head}{_told(measure, compared.difference)}, with {certainty} certainty {least} on "
        text += f"{compared.images:,} images; {allowed}"
        if not within and math.isfinite(compared.low):
            text += f", {_amount(measure, -margin - compared.low)} too little"
        text += f", and a gain of {_amount(measure, compared.detectable)} could have been seen"
        if not within and margin > 0 and compared.difference >= -margin:
            needed = math.ceil(compared.images * (compared.detectable / margin) ** 2)
            text += f"; of a network as good as the champion about {needed:,} images would show that"
        if not enough:
            text += f"; {compared.images:,} images decide nothing, {settings.minimum_images:,} are needed at least"
    low, high = compared.interval
    return Gate(
        name,
        compared.low,
        -margin,
        comparison,
        passed,
        text,
        compared.difference,
        low,
        high,
        compared.certainty,
        compared.images,
        compared.detectable,
    )


def _amount(measure: str, difference: float) -> str:
    """How large a difference is, whatever its sign."""
    size = abs(difference)
    if not MEASURES[measure].share:
        return f"{size:.3g}"
    size *= 100
    return f"{size:.1f} points" if size >= 0.05 or size == 0 else f"{size:.1g} points"


def _told(measure: str, difference: float, limit: str = "") -> str:
    if not math.isfinite(difference):
        return "not to be compared"
    if difference == 0:
        return "no worse" if limit else "equal"
    return f"{limit}{_amount(measure, difference)} {'better' if difference > 0 else 'worse'}"
