"""What registration reads of an evaluation report: the verdict on each student and its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.settings import digest_of


@dataclass(frozen=True)
class Verdict:
    """What ``verdict.json`` says of one student."""

    passed: bool
    reasons: tuple[str, ...]
    """The gates that failed, in words; empty where all passed."""
    digest: str
    """Of what it says, so that the same verdict is recognised."""

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
    if document.get("schema") != 1:
        raise UserError(f"{report}/verdict.json: schema {document.get('schema')} is not the supported 1")
    try:
        return {
            student: Verdict(
                passed=judgement["passed"] is True,
                reasons=tuple(gate["explanation"] for gate in judgement["gates"] if not gate["passed"]),
                digest=digest_of(judgement),
            )
            for student, judgement in document["students"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{report}/verdict.json: not a verdict ({error!r})") from None


@dataclass(frozen=True)
class Scores:
    """The measures of every network of a report, by the name of the network there."""

    networks: Mapping[str, Mapping[str, float]]

    def of(self, student: str) -> Mapping[str, float]:
        """Measures of a student; empty where the report has none."""
        return self.networks.get(f"student-{student}", {})

    def beside(self, student: str) -> dict[str, Mapping[str, float]]:
        """Columns of a table: student, random twin, champion and the plain baselines, as far as measured."""
        names = {
            "this network": f"student-{student}",
            "random weights": f"student-{student}-random",
            "champion before": f"student-{student}-champion",
            "raw pixels": "raw pixels",
            "colour histogram": "colour histogram",
        }
        return {title: self.networks[name] for title, name in names.items() if name in self.networks}


def read_scores(report: Path) -> Scores:
    """The measures in ``metrics.json``."""
    document = read_document(report, "metrics.json")
    try:
        return Scores({name: dict(row["measures"]) for name, row in document["networks"].items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{report}/metrics.json: not the measures of an evaluation ({error!r})") from None
