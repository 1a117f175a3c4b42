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
from components.evaluation.findings import concerns_of, costs_of, energy_rule
from components.evaluation.gallery import Looks, draw, images_to_show, look
from components.evaluation.gates import (
    HISTOGRAM,
    RAW_PIXELS,
    SCHEMA,
    Protocol,
    Verdict,
    judge,
)
from components.evaluation.measure import Examination, Examiner, material_of, patch_of
from components.evaluation.overlays import plot_dense_against_global
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
from training.probes.material import Material

BENCHMARKS = "benchmarks."
"""What the names of further labelled sets begin with, among the inputs."""

EXPLORED = 3
"""Images whose patches the reader may click."""

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
    sets = open_sets(inputs)
    material = material_of(config, dataset, sets)
    device = default_device() if config.device == "auto" else config.device
    examiner = Examiner(config, material, device)
    shown = images_to_show(material, config.pictures)

    found: dict[str, Examination] = {}
    colours: dict[str, list[np.ndarray]] = {}
    looks: dict[str, Looks] = {}
    into = _looked_into(subjects)
    speeds: dict[str, Speed] = {}
    networks: dict[str, dict[str, Any]] = {}
    first: tuple[Preprocessing, int] | None = None
    with Progress("evaluation", len(subjects) + 2, "networks") as progress:
        for subject in subjects:
            model, preprocessing, networks[subject.name] = _opened(subject)
            model = model.eval().to(device)
            found[subject.name] = examiner.examine(model, preprocessing)
            if subject.kind != "random":
                speeds[subject.name] = measure_speed(model, preprocessing, device)
            colours[subject.name] = pca_tiles(model, preprocessing, shown, device)
            explored = EXPLORED if subject.name in into else 0
            if subject.kind != "random":
                looks[subject.name] = look(model, preprocessing, shown, explored, device)
            first = first or (preprocessing, patch_of(model))
            progress.advance(note=subject.name)
        assert first is not None
        for name in (RAW_PIXELS, HISTOGRAM):
            found[name] = examiner.examine_baseline(name, *first)
            progress.advance(note=name)

    protocol: Protocol = "label-free"
    if material.classification or material.segmentation:
        protocol = "classification" if material.classification else "segmentation"
    measures = {name: each.measures for name, each in found.items()}
    items = {name: each.items for name, each in found.items()}
    verdict = judge(subjects, measures, protocol, config.gates, items)
    runs = [_run_summary(Path(inputs[name]), title, found, protocol) for name, title in RUNS if name in inputs]
    facts = read_facts(folder)
    clusters = cluster_sheet(dataset, facts)
    pictures = draw(config, material, subjects, found, colours, shown, protocol, clusters, looks)
    rule = energy_rule(config.energy)
    folders = {title: Path(inputs[name]) for name, title in RUNS if name in inputs}
    evaluated = [_describe_set(name, each, material) for name, each in sets.items()]
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
        sets=evaluated,
        lineage=_lineage(inputs, evaluated),
        neighbours=config.neighbours,
        costs=costs_of(inputs, RUNS, rule),
        rule=rule,
        concerns=concerns_of(subjects, found, protocol, material, facts, networks, folders),
    )
    _write(output, content, champions={name: _champion_record(each) for name, each in champions.items()})
    return _figures(verdict, subjects, measures)


def _looked_into(subjects: Sequence[Subject]) -> set[str]:
    """Names of the last teacher and the first student: the networks that the reader may look into."""
    teachers = [subject.name for subject in subjects if subject.kind == "teacher"]
    students = [subject.name for subject in subjects if subject.kind == "student"]
    return {*teachers[-1:], *students[:1]}


def _opened(subject: Subject) -> tuple[Any, Preprocessing, dict[str, Any]]:
    """A subject's network, its preprocessing and what the table says about it."""
    if not subject.source:
        model, preprocessing = load_export(subject.export)
        return model, preprocessing, describe_network(subject.export)
    from components.evaluation.networks import open_network

    network = open_network(subject.source, subject.title)
    told = dict(network.description)
    return network.model, network.preprocessing, {**told, "sha256": told["digest"], "source": network.source}


def _run_summary(run: Path, title: str, found: Mapping[str, Examination], protocol: Protocol) -> RunSummary:
    recipe: dict[str, Any] = {}
    if (run / "recipe.yaml").is_file():
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    lines = {}
    if protocol == "classification":
        lines = {name: found[name].measures["knn_top1"] for name in (RAW_PIXELS, HISTOGRAM)}
    curves = read_curves(run)
    return RunSummary(
        title, recipe, plot_run(curves, lines), *_gram_choice(run, recipe), plot_dense_against_global(curves)
    )


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


def open_sets(inputs: Mapping[str, str]) -> dict[str, EvaluationSet]:
    """The labelled sets among ``inputs`` by name: ``evaluation`` first, then each of ``benchmarks.NAME``."""
    urls = {"evaluation": inputs["evaluation"]} if inputs.get("evaluation") else {}
    for name, url in inputs.items():
        if name.startswith(BENCHMARKS):
            urls[name.removeprefix(BENCHMARKS)] = url
    return {name: EvaluationSet.open(url) for name, url in urls.items()}


def _describe_set(name: str, found: EvaluationSet, material: Material) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for kind, tasks in (("", material.classification), ("_masks", material.segmentation), ("_depths", material.depth)):
        for task in tasks:
            if task.owner == name:
                counts |= {f"train{kind}": len(task.train.names), f"test{kind}": len(task.test.names)}
    classes = next((list(task.classes) for task in material.classification if task.owner == name), [])
    return {
        "name": name,
        "url": shown_url(found.url),
        "digest": found.digest(),
        "tasks": list(found.tasks),
        "classes": classes,
        **counts,
    }


def _lineage(inputs: Mapping[str, str], sets: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
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
    rows += [(each["name"], {"url": each["url"], "digest": each["digest"]}) for each in sets]
    return rows


def _champion_record(champion: Any) -> dict[str, str]:
    record = asdict(champion)
    return {name: str(record[name]) for name in ("model", "version", "digest")}


def _write(output: Path, content: Content, champions: Mapping[str, Any]) -> None:
    pictures = content.pictures
    plots = {"headline": pictures.bars, "pca": pictures.pca}
    if pictures.segmentation is not None:
        plots["segmentation"] = pictures.segmentation
    for name, png in (("clusters", pictures.clusters), ("attention", pictures.attention), ("depth", pictures.depth)):
        if png is not None:
            plots[name] = png
    plots |= {f"tracking-{name}": png for name, png in pictures.tracking.items()}
    for subject in content.subjects:
        if subject.title in pictures.neighbours:
            plots[f"neighbours-{subject.name}"] = pictures.neighbours[subject.title]
    for run in content.runs:
        if run.curves is not None:
            plots[f"curves-{run.title.lower()}"] = run.curves
        if run.gram_choice is not None:
            plots["gram-teacher"] = run.gram_choice
        if run.dense_against_global is not None:
            plots[f"dense-{run.title.lower()}"] = run.dense_against_global
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
        "sets": list(content.sets),
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
