"""Measure teacher, students, the same networks untrained and two baselines in one table; report and verdict."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.accelerator import accelerator_name, default_device
from components.common.inputs import DATASET
from components.common.step import InputSpec, Step
from components.evaluation.config import EvaluationConfig


def run(config: EvaluationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Write ``report.html``, ``metrics.json``, ``verdict.json`` and ``plots/`` into ``output``."""
    from components.evaluation.compare import compare

    return compare(config, inputs, output)


def environment(config: EvaluationConfig) -> dict[str, Any]:
    """Fingerprint facts: what the networks run on, and the versions that decide figures and pictures."""
    return {
        "device": config.device if config.device != "auto" else default_device(),
        "accelerator": accelerator_name() if config.device != "cpu" else None,
        **{name: importlib.metadata.version(name) for name in ("torch", "pillow", "matplotlib")},
    }


def _network_digest(value: str) -> str:
    from components.evaluation.networks import digest_of_network

    return digest_of_network(value)


STEP = Step(
    name="evaluation",
    summary="Measure teacher and students beside untrained networks and baselines; write a report and a verdict.",
    config=EvaluationConfig,
    inputs=(
        DATASET,
        InputSpec("pretrained", "training run: the result of pretraining", required=False),
        InputSpec("refined", "training run: the result of refinement", required=False),
        InputSpec("teacher", "a teacher that was there: the result of adoption", required=False),
        InputSpec("students", "training run with students/: the result of distillation"),
        InputSpec("evaluation", "labelled images or masks: folder, archive or URL", required=False, kind="url"),
        InputSpec(
            "benchmarks",
            "further labelled sets (labels, masks, depths, videos ...): a URL, or NAME=URL;NAME=URL",
            required=False,
            kind="url",
            several=True,
        ),
        InputSpec(
            "peers",
            "networks to measure beside them: a Hugging Face folder or model id, a run or models:/NAME@ALIAS, or "
            "NAME=...;NAME=...",
            required=False,
            kind="url",
            digest=_network_digest,
            several=True,
        ),
        InputSpec(
            "champion",
            "JSON of the registered champions, or the path of such a file (docs/evaluation.md)",
            required=False,
            kind="text",
        ),
    ),
    run=run,
    code=("components.evaluation", "components.common.report"),
    transient=("workers",),
    environment=environment,
    disk_bytes=lambda *_: 64 << 20,
    shown=("report.html", "verdict.json", "metrics.json"),
    records=("report.html", "curation.html", "speed.json"),  # times; the second is the dataset's
)
