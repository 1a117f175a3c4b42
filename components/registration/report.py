"""What registration reads of an evaluation report: the verdict on each student and its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.settings import digest_of

SCHEMAS = (1, 2)
"""Of verdict.json. 2 adds how certain a gate is."""


@dataclass(frozen=True)
class Verdict:
    """What ``verdict.json`` says of one student."""

    passed: bool
    reasons: tuple[str, ...]
    """The gates that failed, in words: by how much, how certain, and the gate's name; empty where all passed."""
    digest: str
    """Of what it says, so that the same verdict is recognised."""
    comparisons: tuple[str, ...] = ()
    """What the comparisons with the champion found, in words."""

    @property
    def word(self) -> str:
        """``passed`` or ``failed``."""
        return "passed" if self.passed else "failed"


def read_document(report: Path, name: str) -> Mapping[str, Any]:
    """A JSON object of the report folder. Raises :class:`UserError` where it is missing or no such thing."""
    try:
        document = json.loads((report / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{report}/{name}: not readable ({error}); give the result of evaluation") from None
    if not isinstance(document, dict):
        raise UserError(f"{report}/{name}: expected a JSON object")
    return document


def read_verdicts(report: Path) -> dict[str, Verdict]:
    """The verdict on each student, by its name. Raises :class:`UserError` for a ``verdict.json`` of no use."""
    document = read_document(report, "verdict.json")
    if document.get("schema") not in SCHEMAS:
        known = " or ".join(map(str, SCHEMAS))
        raise UserError(f"{report}/verdict.json: schema {document.get('schema')} is not the supported {known}")
    try:
        return {
            student: Verdict(
                passed=judgement["passed"] is True,
                reasons=tuple(
                    f"{gate['explanation']} (gate {gate['name']})" for gate in judgement["gates"] if not gate["passed"]
                ),
                digest=digest_of(judgement),
                comparisons=tuple(gate["explanation"] for gate in judgement["gates"] if "difference" in gate),
            )
            for student, judgement in document["students"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{report}/verdict.json: not a verdict ({error!r})") from None


@dataclass(frozen=True)
class Scores:
    """The measures of every network of a report."""

    measures: Mapping[str, Mapping[str, float]]
    """By name of the network in the report: ``student-vit``, ``student-vit-random``, ``raw pixels``."""
    models: Mapping[str, Mapping[str, Any]]
    """By the same names: ``kind``, ``student``, ``random`` (name of the same network untrained)."""
    speeds: Mapping[str, Any]
    """``speed.json``: ``device``, ``batch`` and ``networks`` by the same names."""

    def of(self, student: str) -> Mapping[str, float]:
        """Measures of a student; empty where the report has none."""
        return self.measures.get(self._name(student, "student"), {})

    def beside(self, student: str) -> dict[str, Mapping[str, float]]:
        """Columns of a table: student, random twin, champion and the plain baselines, as far as measured."""
        name = self._name(student, "student")
        columns = {
            "this network": name,
            "random weights": self.models.get(name, {}).get("random") or "",
            "champion before": self._name(student, "champion"),
            "raw pixels": "raw pixels",
            "colour histogram": "colour histogram",
        }
        return {title: self.measures[column] for title, column in columns.items() if column in self.measures}

    def speed(self, student: str) -> dict[str, str]:
        """Size and speed of a student, in words; empty where the report has none."""
        found = self.speeds.get("networks", {}).get(self._name(student, "student"))
        if found is None:
            return {}
        batch, device = self.speeds["batch"], self.speeds["device"]
        return {
            "size": f"{found['megabytes']:.1f} MB",
            "operations": f"{found['gflop']:.3g} GFLOP an image",
            "speed": f"{found['images_per_second']:,.0f} images a second, {batch} at a time ({device})",
        }

    def _name(self, student: str, kind: str) -> str:
        named = (name for name, row in self.models.items() if (row.get("student"), row.get("kind")) == (student, kind))
        return next(named, "")


def read_scores(report: Path) -> Scores:
    """The measures in ``metrics.json``. Raises :class:`UserError` where it holds none."""
    document = read_document(report, "metrics.json")
    measures, models = document.get("measures"), document.get("models")
    if not isinstance(measures, dict) or not isinstance(models, dict):
        raise UserError(f"{report}/metrics.json: it holds no measures of networks; give the result of evaluation")
    speeds = read_document(report, "speed.json") if (report / "speed.json").is_file() else {}
    return Scores(measures, models, speeds)
