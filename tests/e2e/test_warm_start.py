"""A backbone without heads goes on learning and is never far below where it began (minutes: make test-slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.learning import dataset_of
from training.data.evaluation_set import EvaluationSet
from training.engine.exports import latest_export
from training.engine.loop import Trainer
from training.models.interchange import load_export
from training.probes.knn import KnnProbe
from training.recipe import load_recipe


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_stages_never_fall_two_points_below_the_start(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, fold=0, test_per_class=100)
    labelled = tmp_path / "sample" / "evaluation"
    quick = {"workers": 0, "cadence": {"evaluate": 0, "checkpoint": 100, "coherence_images": 0}}
    first = load_recipe("embedded", {**quick, "steps": 150})
    Trainer(first, str(dataset), str(tmp_path / "first")).run()
    start = latest_export(tmp_path / "first")
    (start / "heads.safetensors").unlink()
    model, preprocessing = load_export(start)
    began = KnnProbe(EvaluationSet.open(str(labelled)), preprocessing, limit=2000)(model)["knn_top1"]

    stages = {"warm_start": {"freeze_steps": 40, "ramp_steps": 40}, "batch": 32, "steps": 120, "model": None}
    cadence = {"evaluate": 10, "checkpoint": 100, "coherence_images": 0}
    second = load_recipe("embedded", {**quick, **stages, "cadence": cadence})
    run = tmp_path / "second"
    Trainer(second, str(dataset), str(run), start=str(start), evaluation=str(labelled)).run()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [row["knn_top1"] for row in rows if "knn_top1" in row]
    print(f"began at {began:.4f}: {curve}")
    assert len(curve) == 12 and min(curve) > began - 0.02
