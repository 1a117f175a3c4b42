"""Inputs that several steps take."""

from __future__ import annotations

from components.common.step import InputSpec

DATASET = InputSpec("dataset", "curated dataset: the result of curation")
EVALUATION = InputSpec(
    "evaluation", "labelled images for the k-NN during training: folder, archive or URL", required=False, kind="url"
)
