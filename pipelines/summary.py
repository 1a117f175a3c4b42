"""What a person wants to know when the line has ended: one document, and the lines printed from it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.common.params import Params
from foundry.progress import duration
from pipelines.stations import STATIONS

SCHEMA = 1


def build_summary(
    params: Params,
    folder: Path,
    outcomes: Mapping[str, Mapping[str, Any]],
    *,
    started: datetime.datetime,
    seconds: float,
    tracking: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``summary.json``; puts the report and the page of the dataset beside it.

    ``outcomes`` are the records of the steps by name (see :class:`components.common.execution.Outcome`), ``tracking``
    what the run in MLflow is called. Everything is read from the results themselves.
    """
    report = Path(outcomes["evaluation"]["path"])
    metrics, verdict = _read(report / "metrics.json"), _read(report / "verdict.json")
    copy, page = folder / "report.html", folder / "curation.html"
    shutil.copyfile(report / "report.html", copy)
    shutil.copyfile(Path(outcomes["curation"]["path"]) / "report.html", page)
    curated = outcomes["curation"]["metrics"]
    return {
        "schema": SCHEMA,
        "run": folder.name,
        "state": "finished",
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "inputs": {
            "images": params.inputs.images,
            "evaluation": params.inputs.evaluation_url(),
            "teacher": params.inputs.teacher or None,
        },
        "report": str(copy),
        "dataset": {
            "digest": curated["digest"],
            "files": curated["files"],
            "samples": curated["samples"],
            "rejected": curated["reasons"],
            "page": str(page),
            "dvc": tracking.get("dvc"),
        },
        "protocol": metrics["protocol"],
        "scores": _scores(metrics),
        "verdict": {
            "passed": verdict["passed"],
            "summary": verdict["summary"],
            "students": {name: judgement["passed"] for name, judgement in verdict["students"].items()},
            "failed": [
                f"{name}: {gate['explanation']}"
                for group in ("teachers", "students")
                for name, judgement in verdict[group].items()
                for gate in judgement["gates"]
                if not gate["passed"]
            ],
        },
        "registered": outcomes["registration"]["metrics"]["students"],
        "deployment": _read(Path(outcomes["deployment"]["path"]) / "deployment.json"),
        "tracking": {"uri": tracking["uri"], "run_id": tracking["run_id"]},
        "steps": _steps(outcomes),
    }


def _scores(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every network and baseline: its names and measures, networks in the order of the report."""
    models = metrics["models"]
    rows = []
    for name, measures in metrics["measures"].items():
        about = models.get(name, {})
        row = {"network": name, "title": about.get("title", name), "kind": about.get("kind", "baseline")}
        rows.append({**row, "random": about.get("random"), "measures": measures})
    return rows


def _steps(outcomes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    kept = ("step", "reused", "seconds", "fingerprint", "digest", "path")
    order = dict.fromkeys(station.step for station in STATIONS if station.step in outcomes)
    return [{key: outcomes[step][key] for key in kept} for step in order if step is not None]


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def describe(summary: Mapping[str, Any]) -> Iterator[str]:
    """The summary as lines for people."""
    reused = [step["step"] for step in summary["steps"] if step["reused"]]
    everything = " (every result was there already)" if _all_pure_reused(summary) else ""
    yield ""
    yield f"The line ended in {duration(summary['seconds'])}{everything}"
    yield f"verdict   {_verdict(summary['verdict'])}: {summary['verdict']['summary']}"
    yield f"report    {_shown(summary['report'])}"
    yield from _dataset_lines(summary["dataset"])
    yield ""
    yield from _table(summary["scores"])
    if summary["protocol"] == "label-free":
        yield "  (no labels were given: label-free measures)"
    yield ""
    yield from _registered_lines(summary["registered"])
    yield ""
    yield from _endpoint_lines(summary["deployment"])
    yield ""
    yield from _time_lines(summary["steps"], summary["seconds"], reused)
    yield ""
    yield f"runs and models in MLflow: {summary['tracking']['uri']} (run {summary['tracking']['run_id']})"


def _verdict(verdict: Mapping[str, Any]) -> str:
    if verdict["passed"]:
        return "passed"
    good = [name for name, passed in verdict["students"].items() if passed]
    return f"passed for {', '.join(good)} only" if good else "FAILED"


def _all_pure_reused(summary: Mapping[str, Any]) -> bool:
    acting = {"registration", "deployment"}
    return all(step["reused"] for step in summary["steps"] if step["step"] not in acting)


def _dataset_lines(dataset: Mapping[str, Any]) -> Iterator[str]:
    reasons = ", ".join(f"{count} {reason}" for reason, count in dataset["rejected"].items())
    rest = f"; rejected: {reasons}" if reasons else ""
    yield f"dataset   {dataset['samples']} samples of {dataset['files']} files{rest}"
    yield f"          digest {dataset['digest']}"
    yield f"          page {_shown(dataset['page'])}"
    version = dataset["dvc"]
    if version and "md5" in version:
        pushed = "" if version["pushed"] else ", not pushed to the remote"
        yield f"          DVC {version['md5']} in {version['file']}{pushed}"


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    from components.evaluation.measure import MEASURES

    columns = [name for name in MEASURES if any(name in row["measures"] for row in rows)]
    width = max(len(row["title"]) for row in rows)
    yield "  ".join(["scores".ljust(width), *(MEASURES[name].title.rjust(14) for name in columns)])
    for row in rows:
        cells = []
        for name in columns:
            value = row["measures"].get(name)
            text = "" if value is None else f"{100 * value:.1f} %" if MEASURES[name].share else f"{value:.2f}"
            cells.append(text.rjust(14))
        yield "  ".join([row["title"].ljust(width), *cells]).rstrip()


def _registered_lines(registered: Mapping[str, Any]) -> Iterator[str]:
    for row in registered.values():
        aliases = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
        new = "registered" if row["new"] else "registered before"
        yield f"model     {row['model']} version {row['version']}{aliases}: {new}; {row['outcome']}"


def _endpoint_lines(deployment: Mapping[str, Any]) -> Iterator[str]:
    query = deployment["query"]
    if query is None:
        yield "endpoint  nothing is served: no student is a champion"
        return
    for name, model in deployment["models"].items():
        difference = model["golden"]["largest_difference"]
        yield f"endpoint  {name} version {model['version']} (golden images differ by {difference:.1e} at most)"
    if query["start"]:
        yield f"  start it:    {query['start']}"
    else:
        yield f"  it is up:    {deployment['server']['url']}"
    yield f"  ask it:      {query['command']}"
    yield f"  stop it:     {query['stop']}"


def _time_lines(steps: list[dict[str, Any]], total: float, reused: list[str]) -> Iterator[str]:
    width = max(len(step["step"]) for step in steps)
    for step in steps:
        mark = "  reused" if step["step"] in reused else ""
        yield f"time      {step['step']:<{width}}  {duration(step['seconds']):>12}{mark}"
    rest = max(total - sum(step["seconds"] for step in steps), 0.0)
    yield f"          {'between steps':<{width}}  {duration(rest):>12}"


def _shown(path: str) -> str:
    with contextlib.suppress(ValueError):
        return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
    return path
