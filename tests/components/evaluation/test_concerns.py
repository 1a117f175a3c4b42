from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.evaluation.concerns import (
    QUIET,
    Concern,
    Facts,
    Limits,
    concerns,
    concerns_section,
    dead_dimensions,
    read_events,
)

GOOD = Facts(
    scores={"Teacher, refined": 0.70, "Student vit": 0.68},
    intervals={"Teacher, refined": (0.67, 0.73), "Student vit": (0.65, 0.71)},
    baselines={"raw pixels": 0.3, "colour histogram": 0.45},
    untrained={"Teacher, refined": 0.4, "Student vit": 0.41},
    teachers={"Student vit": "Teacher, refined"},
    labels=True,
    test_images=1000,
    class_images={"cat": 500, "dog": 500},
    curves={"Pretraining": {"knn_top1": ([9, 19, 29, 39, 49], [0.3, 0.5, 0.6, 0.66, 0.7]), "loss": ([0], [1.0])}},
    events={"Pretraining": [{"event": "started", "step": 0}, {"event": "finished", "step": 999}]},
    ranks={"Teacher, refined": (60.0, 96)},
    dead={"Teacher, refined": (0, 96)},
    training_images=50_000,
    parameters={"Teacher, refined": 5_000_000, "Student vit": 300_000_000},
    copies_removed=0,
)
"""A line without anything to worry about."""


def told(facts: Facts, limits: Limits | None = None) -> dict[str, str]:
    """Sentence -> severity, without what is good."""
    return {each.sentence: each.severity for each in concerns(facts, limits) if each.severity != "good"}


def test_nothing_to_worry_about() -> None:
    assert told(GOOD) == {} and told(Facts()) == {}
    html = concerns_section(concerns(GOOD))
    assert QUIET in html and "found none" in html and "Caution" not in html
    assert QUIET in concerns_section([])


CASES = [
    (
        {"scores": {"Teacher, refined": 0.44}, "intervals": {}},
        "serious",
        "Teacher, refined: k-NN top-1 44.0 % against 45.0 % of the baseline colour histogram; training has not helped.",
    ),
    (
        {"untrained": {"Student vit": 0.68}},
        "serious",
        "Student vit: k-NN top-1 68.0 % against 68.0 % of the same network with random weights; training has not",
    ),
    ({"baselines": {"raw pixels": 0.655}}, "caution", "65.5 % of the baseline raw pixels, which lies within the 95 %"),
    ({"baselines": {"raw pixels": 0.665}, "intervals": {}}, "caution", "a gap of only 1.5 points"),
    (
        {"scores": {"Teacher, refined": 0.75, "Student vit": 0.68}},
        "caution",
        "Student vit lies 7.0 points below the refined teacher in k-NN top-1 (68.0 % against 75.0 %)",
    ),
    ({"intervals": {"Student vit": (0.6, 0.76)}}, "caution", "up to 16.0 points wide (Student vit)"),
    ({"intervals": {}, "test_images": 150}, "caution", "only 150 test images"),
    ({"class_images": {"cat": 5, "dog": 500, "emu": 19}}, "caution", "2 of 3 classes have fewer than 20"),
    ({"class_images": {"cat": 5, "dog": 500}}, "caution", "1 class has fewer than 20 test images"),
    ({"ranks": {"Student vit": (5.0, 96)}}, "caution", "the feature rank is 5.0 of at most 96"),
    ({"ranks": {"Student vit": (1.2, 96)}}, "serious", "(collapse)"),
    ({"dead": {"Student vit": (8, 96)}}, "caution", "8 of 96 dimensions"),
    (
        {"training_images": 2000},
        "caution",
        "2,000 training images are few for the 5.0 million parameters of",
    ),
    ({"labels": False, "copies_removed": None}, "caution", "No labels were given"),
    ({"copies_removed": None}, "caution", "Curation was not told the evaluation set"),
]


@pytest.mark.parametrize(("changes", "severity", "words"), CASES)
def test_one_thing_that_is_wrong_gives_one_sentence(changes: dict, severity: str, words: str) -> None:
    found = told(replace(GOOD, **changes))
    matching = [(sentence, each) for sentence, each in found.items() if words in sentence]
    assert len(matching) == 1 and matching[0][1] == severity, found
    assert len(found) == 1, found


def test_limits_decide() -> None:
    facts = replace(GOOD, class_images={"cat": 15, "dog": 500})
    assert told(facts) and not told(facts, Limits(class_images=10))


STEPS = [100 * place - 1 for place in range(1, 21)]


def curve(fall: float, noise: float, seed: int = 0) -> list[float]:
    """Rises to 0.8 in half of the time, then falls by ``fall``."""
    rng = np.random.default_rng(seed)
    rising = np.linspace(0.55, 0.8, 10)
    return [*rising + noise * rng.normal(size=10), *np.linspace(0.8, 0.8 - fall, 10) + noise * rng.normal(size=10)]


def test_a_fall_is_told_and_noise_is_not() -> None:
    def found(values: list[float], name: str = "patch_coherence") -> list[str]:
        return list(told(replace(GOOD, curves={"Pretraining": {name: (STEPS, values)}})))

    (sentence,) = found(curve(0.1, 0.002))
    assert "patch coherence was best at step 1,0" in sentence and "Gram teacher" in sentence
    assert f"({100 * 0.8:.0f}." in sentence.replace("79.", "80.")
    (sentence,) = found(curve(0.1, 0.002), "vit/knn_top1")
    assert sentence.startswith("Pretraining: k-NN top-1 of vit was best at step 1,")
    assert found(curve(0.0, 0.02)) == [], "noise about a plateau"
    assert found([0.8, 0.7, 0.6]) == [], "too few values"
    assert found(curve(0.1, 0.002), "feature_rank") == [], "no measure of quality"


def test_events_of_guards(tmp_path: Path) -> None:
    events = [{"event": "skipped-step", "step": step} for step in (3, 4)]
    events += [{"event": "collapse-alarm", "step": 7, "message": "feature rank 1.20 is below 2"}]
    events += [{"event": "resumed", "step": 8}] * 2 + [{"event": "unreadable-image", "step": 9}]
    events += [{"event": "finished", "step": 999}]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "events.jsonl").write_text(lines + '{"event": "resu')
    assert read_events(tmp_path) == events and read_events(tmp_path / "nowhere") == []
    found = told(replace(GOOD, events={"Refinement": read_events(tmp_path)}))
    assert found == {
        "Refinement: 1 alarm of collapse, the last at step 7 (feature rank 1.20 is below 2).": "serious",
        "Refinement: 2 steps skipped, the loss or a gradient not being finite.": "caution",
        "Refinement: restarted 2 times; what is learned is the same, the time is not.": "caution",
        "Refinement: 1 image not readable; others took their place.": "caution",
    }
    many = [{"event": "skipped-step", "step": step} for step in range(20)] + events[-1:]
    assert "serious" in told(replace(GOOD, events={"Refinement": many})).values(), "20 of 1,000 steps"


def test_serious_things_come_first_and_good_ones_last() -> None:
    facts = replace(GOOD, dead={"Student vit": (9, 96)}, ranks={"Student vit": (1.1, 96)}, copies_removed=12)
    assert [each.severity for each in concerns(facts)] == ["serious", "caution", "good"]
    assert "left out 12 images" in concerns(facts)[-1].sentence


def test_other_units_than_shares_are_not_called_points() -> None:
    facts = replace(GOOD, measure="feature rank", share=False, scores={"Student vit": 12.0}, intervals={})
    facts = replace(facts, baselines={"raw pixels": 30.0}, untrained={})
    (sentence,) = told(facts)
    assert sentence == "Student vit: feature rank 12 against 30 of the baseline raw pixels; training has not helped."


def test_dead_dimensions_against_planted_ones() -> None:
    embeddings = np.random.default_rng(0).normal(2.0, 1.0, (200, 64)).astype(np.float32)
    assert dead_dimensions(embeddings) == (0, 64)
    embeddings[:, [3, 7, 60]] = [0.0, 5.0, -2.5]
    embeddings[:, 11] *= 1e-6
    assert dead_dimensions(embeddings) == (4, 64)
    assert dead_dimensions(np.ones((5, 8))) == (8, 8)


def test_names_cannot_disturb_the_page() -> None:
    html = concerns_section([Concern("caution", "<script>alert(1)</script>")])
    assert "<script>" not in html and "&lt;script&gt;" in html
