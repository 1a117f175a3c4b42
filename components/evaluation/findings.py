"""What the report says beside its table: what the line cost, and what gives reason to worry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluation.bootstrap import interval
from components.evaluation.concerns import Concern, Facts, concerns, dead_dimensions, read_events
from components.evaluation.config import EnergySettings
from components.evaluation.costs import Cost, EnergyRule, cost_of_run
from components.evaluation.curated import CuratedFacts
from components.evaluation.curves import read_curves
from components.evaluation.gates import HISTOGRAM, RAW_PIXELS, Protocol, headline_measure
from components.evaluation.measure import MEASURES, Examination
from components.evaluation.subjects import Subject
from training.probes.material import Material


def energy_rule(settings: EnergySettings) -> EnergyRule:
    """The rule of the estimate, from settings."""
    board, emissions = settings.watts_a_gpu or None, settings.grams_a_kwh or None
    return EnergyRule(settings.watts_a_core, board, pue=settings.pue, grams_a_kwh=emissions)


def costs_of(inputs: Mapping[str, str], runs: Sequence[tuple[str, str]], rule: EnergyRule) -> list[Cost]:
    """Curation and the training ``runs`` (name of an input, title) that tell what they cost."""
    found = [
        cost_of_run(Path(inputs[name]), title, rule=rule)
        for name, title in (("dataset", "Curation"), *runs)
        if name in inputs
    ]
    return [cost for cost in found if cost is not None]


def concerns_of(
    subjects: Sequence[Subject],
    found: Mapping[str, Examination],
    protocol: Protocol,
    material: Material,
    curated: CuratedFacts,
    networks: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Path],
) -> list[Concern]:
    """Everything that gives reason to worry. ``runs`` are training runs by their titles."""
    measure = headline_measure(protocol)
    own = [subject for subject in subjects if subject.kind in ("teacher", "student")]
    teachers = [subject.title for subject in own if subject.kind == "teacher"]
    classes: dict[str, int] = {}
    test_images = None
    if material.classification:
        task = material.classification[0]
        counts = np.bincount(task.test.truth, minlength=len(task.classes))
        classes = {name: int(count) for name, count in zip(task.classes, counts, strict=True) if count}
        test_images = len(task.test.truth)
    elif material.segmentation:
        test_images = len(material.segmentation[0].test.truth)
    intervals = {}
    for subject in own:
        parts = found[subject.name].items.get(measure)
        if parts is not None and len(parts) > 1:
            sure = interval(parts)
            intervals[subject.title] = (sure.low, sure.high)
    images = len(material.images)
    return concerns(
        Facts(
            measure=MEASURES[measure].sentence,
            share=MEASURES[measure].share,
            scores={subject.title: found[subject.name].measures[measure] for subject in own},
            intervals=intervals,
            baselines={name: found[name].measures[measure] for name in (RAW_PIXELS, HISTOGRAM)},
            untrained={subject.title: found[subject.random].measures[measure] for subject in own if subject.random},
            teachers={subject.title: teachers[-1] for subject in own if subject.kind == "student"},
            labels=protocol != "label-free",
            test_images=test_images,
            class_images=classes,
            curves={title: read_curves(run) for title, run in runs.items()},
            chance={"patch_coherence": 0.5},
            events={title: read_events(run) for title, run in runs.items()},
            ranks={
                subject.title: (
                    found[subject.name].measures["feature_rank"],
                    min(images, next(iter(found[subject.name].embeddings.values())).shape[1]),
                )
                for subject in own
                if "feature_rank" in found[subject.name].measures
            },
            dead={
                subject.title: dead_dimensions(next(iter(found[subject.name].embeddings.values()))) for subject in own
            },
            training_images=curated.kept,
            parameters={subject.title: networks[subject.name]["parameters"] for subject in own},
            copies_removed=curated.rejected.get("evaluation-copy") if protocol != "label-free" else None,
        )
    )
