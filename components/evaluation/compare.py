"""The evaluation from inputs to files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from components.common.accelerator import accelerator_name, default_device
from components.evaluation.config import EvaluationConfig
from components.evaluation.curated import cluster_sheet, read_facts
from components.evaluation.curves import plot_gram_choice, plot_run, read_curves
from components.evaluation.gallery import draw, images_to_show
from components.evaluation.gates import (
    HISTOGRAM,
    RAW_PIXELS,
    SCHEMA,
    Protocol,
    Verdict,
    judge,
)
from components.evaluation.measure import Examination, Examiner, Material
from components.evaluation.pictures import pca_tiles
from components.evaluation.report import DATASET_PAGE, Content, RunSummary, render
from components.evaluation.speed import BATCH, Speed, measure_speed
from components.evaluation.subjects import TEACHERS, Subject, describe_network, find_subjects, read_champions
from foundry.errors import UserError
from foundry.images import Preprocessing
from foundry.progress import Progress
from foundry.storage import is_local, local_path, shown_url, write_atomically
from training.data.evaluation_set import EvaluationSet
from training.data.shards import ShardDataset
from training.engine.anchoring import FILE as GRAM_TEACHER
from training.models.interchange import load_export

RUNS = (("pretrained", "Pretraining"), ("refined", "Refinement"), ("students", "Distillation"))
"""Inputs that are training runs, and their headings."""


def compare(config: EvaluationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Measure every network, write all files of the result and return its main figures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core a batch: figures depend on no machine's number of cores
    try:
        return _compare(config, inputs, output)
    finally:
        torch.set_num_threads(threads)


def _compare(config: EvaluationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    champions = read_champions(inputs.get("champion", ""))
    subjects = find_subjects(inputs, champions)
    if not is_local(inputs["dataset"]):
        raise UserError(f"{inputs['dataset']}: evaluation reads the curated dataset from a local folder")
    folder = local_path(inputs["dataset"])
    dataset = ShardDataset(str(folder))
    evaluation = EvaluationSet.open(inputs["evaluation"]) if inputs.get("evaluation") else None
    material = Material(config, dataset, evaluation)
    device = default_device() if config.device == "auto" else config.device
    examiner = Examiner(material, device)
    shown = images_to_show(material, config.pictures)

    found: dict[str, Examination] = {}
    colours: dict[str, list[np.ndarray]] = {}
    speeds: dict[str, Speed] = {}
    first: tuple[Preprocessing, int] | None = None
    with Progress("evaluation", len(subjects) + 2, "networks") as progress:
        for subject in subjects:
            model, preprocessing = load_export(subject.export)
            model = model.eval().to(device)
            found[subject.name] = examiner.examine(model, preprocessing)
            if subject.kind != "random":
                speeds[subject.name] = measure_speed(model, preprocessing, device)
            colours[subject.name] = pca_tiles(model, preprocessing, shown, device)
            first = first or (preprocessing, found[subject.name].details["patch_grid"])
            progress.advance(note=subject.name)
        assert first is not None
        for name in (RAW_PIXELS, HISTOGRAM):
            found[name] = examiner.examine_baseline(name, *first)
            progress.advance(note=name)

    protocol: Protocol = "classification" if material.names else "segmentation" if material.masks else "label-free"
    measures = {name: each.measures for name, each in found.items()}
    verdict = judge(subjects, measures, protocol, config.gates)
    networks = {subject.name: describe_network(subject.export) for subject in subjects}
    runs = [_run_summary(Path(inputs[name]), title, found, protocol) for name, title in RUNS if name in inputs]
    facts = read_facts(folder)
    pictures = draw(config, material, subjects, found, colours, shown, protocol, cluster_sheet(dataset, facts))
    evaluated = _describe_evaluation(evaluation, material)
    content = Content(
        verdict=verdict,
        subjects=subjects,
        networks=networks,
        speeds=speeds,
        device="CPU, one core" if device == "cpu" else accelerator_name() or device,
        found=found,
        runs=runs,
        pictures=pictures,
        facts=facts,
        evaluation=evaluated,
        lineage=_lineage(inputs, evaluated),
        neighbours=config.neighbours,
    )
    _write(output, content, champions={name: _champion_record(each) for name, each in champions.items()})
    return _figures(verdict, subjects, measures)


def _run_summary(run: Path, title: str, found: Mapping[str, Examination], protocol: Protocol) -> RunSummary:
    recipe: dict[str, Any] = {}
    if (run / "recipe.yaml").is_file():
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    lines = {}
    if protocol == "classification":
        lines = {name: found[name].measures["knn_top1"] for name in (RAW_PIXELS, HISTOGRAM)}
    return RunSummary(title, recipe, plot_run(read_curves(run), lines), *_gram_choice(run, recipe))


def _gram_choice(run: Path, recipe: Mapping[str, Any]) -> tuple[str, bytes | None]:
    """What a refinement is anchored to, in words, and the curve that it was chosen by."""
    if recipe.get("stage") != "gram":
        return "", None
    record = run / GRAM_TEACHER
    if not record.is_file():
        return "Gram teacher: the pretraining's newest checkpoint.", None
    choice = json.loads(record.read_text(encoding="utf-8"))
    told = f"Gram teacher: the pretraining after {choice['step']:,} steps"
    if "decay" not in choice:
        return f"{told}, as the settings say.", None
    decay = choice["decay"]
    measure = "segmentation mIoU" if choice["measure"] == "segmentation_miou" else "patch coherence"
    told += f", where its {measure} was best ({decay['peak']:.3f}); since step {decay['established']:,} it is below "
    return f"{told}{decay['bound']:.3f}.", plot_gram_choice(choice)


def _describe_evaluation(evaluation: EvaluationSet | None, material: Material) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {
        "url": shown_url(evaluation.url),
        "digest": evaluation.digest(),
        "classes": list(material.classes),
        "train": len(material.names.get("train", [])),
        "test": len(material.names.get("test", [])),
        "train_masks": len(material.masks.get("train", [])),
        "test_masks": len(material.masks.get("test", [])),
    }


def _lineage(inputs: Mapping[str, str], evaluation: Mapping[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """What each input's manifest says of itself; an input without one (a folder made by hand) is named only."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for name in ("dataset", *TEACHERS, "students"):
        if name not in inputs:
            continue
        manifest = Path(inputs[name]) / "manifest.json"
        facts: dict[str, Any] = {"folder": shown_url(inputs[name])}
        if manifest.is_file():
            document = json.loads(manifest.read_text(encoding="utf-8"))
            git = document.get("git") or {}
            facts = {
                "step": document.get("step"),
                "fingerprint": document.get("fingerprint"),
                "digest": document.get("digest"),
                "made": document.get("started"),
                "git_commit": git.get("commit"),
                "uncommitted_changes": git.get("dirty_digest"),
                **{f"from_{key}": row.get("digest") for key, row in (document.get("inputs") or {}).items()},
            }
        rows.append((name, facts))
    if evaluation is not None:
        rows.append(("evaluation", {"url": evaluation["url"], "digest": evaluation["digest"]}))
    return rows


def _champion_record(champion: Any) -> dict[str, str]:
    record = asdict(champion)
    return {name: str(record[name]) for name in ("model", "version", "digest")}


def _write(output: Path, content: Content, champions: Mapping[str, Any]) -> None:
    pictures = content.pictures
    plots = {"headline": pictures.bars, "pca": pictures.pca}
    if pictures.segmentation is not None:
        plots["segmentation"] = pictures.segmentation
    if pictures.clusters is not None:
        plots["clusters"] = pictures.clusters
    for subject in content.subjects:
        if subject.title in pictures.neighbours:
            plots[f"neighbours-{subject.name}"] = pictures.neighbours[subject.title]
    for run in content.runs:
        if run.curves is not None:
            plots[f"curves-{run.title.lower()}"] = run.curves
        if run.gram_choice is not None:
            plots["gram-teacher"] = run.gram_choice
    for name, png in plots.items():
        write_atomically(output / "plots" / f"{name}.png", png)
    models = {}
    for subject in content.subjects:
        models[subject.name] = {
            "title": subject.title,
            "kind": subject.kind,
            "student": subject.student or None,
            "random": subject.random or None,
            **content.networks[subject.name],
        }
    document = {
        "schema": SCHEMA,
        "protocol": content.verdict.protocol,
        "evaluation": content.evaluation,
        "dataset": {"kept": content.facts.kept, "rejected": content.facts.rejected},
        "champions": champions,
        "models": models,
        "measures": {name: each.measures for name, each in content.found.items()},
        "details": {name: each.details for name, each in content.found.items()},
        "per_class": {name: each.per_class for name, each in content.found.items() if each.per_class},
    }
    write_atomically(output / "metrics.json", _json(document))
    write_atomically(output / "scores.json", _json(document["measures"]))
    speeds = {name: asdict(speed) for name, speed in content.speeds.items()}
    write_atomically(output / "speed.json", _json({"device": content.device, "batch": BATCH, "networks": speeds}))
    write_atomically(output / "verdict.json", _json(content.verdict.document()))
    write_atomically(output / "report.html", render(content))
    if content.facts.page is not None:
        write_atomically(output / DATASET_PAGE, content.facts.page.read_bytes())


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _figures(
    verdict: Verdict, subjects: Sequence[Subject], measures: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What the step returns: flat names ``<network>/<measure>``, the verdict and its sentence."""
    names = [*(subject.name for subject in subjects), RAW_PIXELS, HISTOGRAM]
    figures: dict[str, Any] = {
        "passed": verdict.passed,
        "summary": verdict.summary,
        "protocol": verdict.protocol,
        "promotable": [name for name, judgement in verdict.students.items() if judgement.passed],
    }
    for name in names:
        for measure, value in measures[name].items():
            figures[f"{name.replace(' ', '_')}/{measure}"] = round(value, 6)
    return figures
