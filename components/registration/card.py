"""The model card that travels with a version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from components.registration.packaging import count_parameters
from components.registration.report import Scores, Verdict
from components.registration.students import Student


def model_card(
    model: str, student: Student, lineage: Mapping[str, Any], scores: Scores, verdict: Verdict, licence: str
) -> str:
    """Markdown: what the network is, how it is called, what it scored beside random weights, where it comes from."""
    config = json.loads((student.export / "config.json").read_text(encoding="utf-8"))
    side = json.loads((student.export / "preprocessor_config.json").read_text(encoding="utf-8"))["crop_size"]["height"]
    parts = [
        f"# {model}\n\nA frozen vision backbone: one embedding an image, and features of its patches. Distilled "
        f"without labels into this student (`{student.name}`) from {_kind(lineage)}.",
        _rows(
            "Network",
            {
                "architecture": (config.get("architectures") or [config.get("model_type")])[0],
                "parameters": f"{count_parameters(student.export):,}",
                "input": f"{side} x {side} pixels, RGB; see preprocessor_config.json",
                "weights": "safetensors, float32",
                **scores.speed(student.name),
                "digest": f"`{student.digest}`",
            },
        ),
        _score_table(student.name, scores),
        f"## Verdict\n\n{verdict.word.capitalize()}."
        + "".join(f"\n- {reason[0].upper()}{reason[1:]}." for reason in verdict.reasons),
        _rows(
            "Where it comes from",
            {
                "pool": lineage.get("pool"),
                "teacher": _teacher(lineage),
                "dataset digest": lineage.get("dataset_digest"),
                "DVC hash of the dataset": lineage.get("dataset_dvc_md5"),
                "recipe digest": lineage.get("recipe_digest"),
                "Git commit": lineage.get("git_commit"),
                "uncommitted changes": lineage.get("git_dirty_digest"),
                "container image": lineage.get("image"),
                **{f"{step} (fingerprint)": value for step, value in lineage.get("fingerprint", {}).items()},
            },
        ),
        f"## Licence\n\nWeights: {licence}. They are learnt from the images of the pool above and may fall under its "
        "terms; the golden images kept with this version are copies of images of that pool. Code: Apache-2.0.",
        "## Limits\n\nThe scores are measured on the evaluation data of the report, nothing else. Features follow what "
        "the pool shows: check them on your own images before you rely on them, above all where people are concerned.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _kind(lineage: Mapping[str, Any]) -> str:
    return "a teacher that was given" if lineage.get("teacher") else "a teacher trained by self-distillation"


def _teacher(lineage: Mapping[str, Any]) -> str | None:
    """A teacher that was given, not trained by the same line."""
    if not lineage.get("teacher"):
        return None
    return f"{lineage['teacher']} (digest {lineage['teacher_digest'][:12]}…); its terms may hold for its students too"


def _rows(title: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _score_table(student: str, scores: Scores) -> str:
    columns = {title: values for title, values in scores.beside(student).items() if values}
    if not columns:
        return ""
    measures = list(next(iter(columns.values())))
    lines = []
    for measure in measures:
        cells = [f"{values[measure]:.4g}" if measure in values else "" for values in columns.values()]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    head = ["## Scores", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*head, *lines])
