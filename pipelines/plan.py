"""What a run would do on this machine, found without doing it."""

from __future__ import annotations

import datetime
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from components.common.execution import SAMPLE_FOLDERS, describe_input, sample_step
from components.common.fingerprint import code_digest, fingerprint_of
from components.common.kfp_face import step_named
from components.common.manifest import Manifest, find_damage, read_manifest
from components.common.params import Params
from components.common.step import Step
from components.common.store import Store
from foundry.progress import duration
from foundry.settings import Settings
from pipelines.stations import STATIONS

Action = Literal["reuse", "continue", "run"]


@dataclass(frozen=True)
class Planned:
    """What would become of one step."""

    step: str
    action: Action
    """``reuse`` a stored result, ``continue`` unfinished work, or ``run``."""
    reason: str
    fingerprint: str | None = None
    """None where it depends on a result that is not there yet."""
    manifest: Manifest | None = None
    """Of the result that would be reused."""
    details: tuple[str, ...] = ()
    """Lines for people about what it would do."""


@dataclass(frozen=True)
class _Node:
    """One task of the compiled graph: where each of its inputs comes from."""

    artifacts: dict[str, str] = field(default_factory=dict)
    """Input name to the task that makes it."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Input name to its value."""
    looked_up: frozenset[str] = frozenset()
    """Parameters that another task finds out during the run."""


def plan_line(params: Params, store: Store | None = None) -> list[Planned]:
    """The steps of the graph in order, each with what would become of it with ``params`` and what is stored now.

    Inputs are read as a run would read them (their digests are remembered); nothing is made.
    """
    store = store or Store()
    planned: list[Planned] = []
    results: dict[str, Path] = {}
    for station, node in _nodes(params):
        if station.step is None:
            continue
        step = step_named(station.step)
        found = _plan_step(step, node, getattr(params, step.name), results, store, params)
        if step.name == "distillation" and params.distillation.divide and found.action != "reuse":
            teacher = results.get(node.artifacts["teacher"])
            begun = store.folder(step.name, f"{found.fingerprint}.partial") if found.action == "continue" else None
            found = replace(found, details=tuple(_division(params, teacher, begun)))
        planned.append(found)
        if found.manifest is not None:
            results[station.task] = store.folder(step.name, found.manifest.fingerprint)
    return planned


def _plan_step(
    step: Step, node: _Node, config: Settings, results: Mapping[str, Path], store: Store, params: Params
) -> Planned:
    absent = sorted({task for task in node.artifacts.values() if task not in results})
    if not step.pure:
        return Planned(step.name, "run", "acts on the world, so it always runs; what is there already stays as it is")
    if absent:
        names = ", ".join(str(found.step) for found in STATIONS if found.task in absent)
        return Planned(step.name, "run", f"its input is made anew by {names}")
    given = {name: str(results[task]) for name, task in node.artifacts.items()}
    given |= {name: str(value) for name, value in node.parameters.items()}
    given |= {name: _look_up(name, given, params) for name in node.looked_up}
    given = step.check_inputs(given)
    if given.get("evaluation") == "auto":
        del given["evaluation"]
        if (url := params.inputs.evaluation_url()) is not None:
            given["evaluation"] = url
    digests = {}
    for name, value in given.items():
        digest = _digest(step, name, value, store)
        if digest is None:
            return Planned(step.name, "run", f"its input {name}={value} is made first")
        digests[name] = digest
    environment = step.environment(config) if step.environment else {}
    fingerprint = fingerprint_of(step, config, digests, code_digest(step.code), environment)
    folder = store.folder(step.name, fingerprint)
    manifest = read_manifest(folder)
    if manifest is not None and (damage := find_damage(folder, manifest)):
        return Planned(step.name, "run", f"the stored result is damaged: {damage}", fingerprint)
    if manifest is not None:
        made = datetime.datetime.fromisoformat(manifest.started).astimezone()
        return Planned(
            step.name, "reuse", f"made {made:%Y-%m-%d %H:%M} in {duration(manifest.seconds)}", fingerprint, manifest
        )
    if folder.with_name(f"{fingerprint}.partial").is_dir():
        return Planned(step.name, "continue", "unfinished work of an earlier run is there", fingerprint)
    return Planned(step.name, "run", "no result with these settings, inputs and this code", fingerprint)


def _division(params: Params, teacher: Path | None, begun: Path | None) -> Iterator[str]:
    """How the processes of distillation are divided, by what the run ``begun`` has measured, else by costs that are
    measured now. ``teacher``: its result; where it is not there yet, the network that it will be."""
    from components.common.model_inputs import network_folder, settled
    from components.distillation.division import RECORD, describe, measure_division
    from training.recipe import dump_recipe

    if begun is not None and (begun / RECORD).is_file():
        yield from describe(json.loads((begun / RECORD).read_text(encoding="utf-8")))
        return
    recipe, processes = params.distillation.resolved_recipe(), params.distillation.processes
    with tempfile.TemporaryDirectory() as scratch:
        if teacher is None and params.inputs.teacher:
            teacher = network_folder(settled(params.inputs.teacher))
        elif teacher is None:
            teacher = Path(scratch)
            (teacher / "recipe.yaml").write_text(dump_recipe(params.pretraining.resolved_recipe()), encoding="utf-8")
        yield from describe(measure_division(recipe, teacher, processes))


def _digest(step: Step, name: str, value: str, store: Store) -> str | None:
    """Digest of one input as :func:`components.common.execution.execute` finds it; None where it must be made first."""
    if value in SAMPLE_FOLDERS:
        sample = sample_step()
        environment = sample.environment(Settings()) if sample.environment else {}
        fingerprint = fingerprint_of(sample, Settings(), {}, code_digest(sample.code), environment)
        manifest = read_manifest(store.folder(sample.name, fingerprint))
        return manifest.digest_under(SAMPLE_FOLDERS[value]) if manifest else None
    return describe_input(step.input(name), value).digest


def _look_up(name: str, given: Mapping[str, str], params: Params) -> str:
    """A value that a task of the graph finds out during a run."""
    if name != "champion":
        raise ValueError(f"the graph looks up '{name}', which the plan does not know")
    from components.registration.champions import champions_for_students

    return champions_for_students(params.registration.model_dump(mode="json"), given["students"])


def _nodes(params: Params) -> Iterator[tuple[Any, _Node]]:
    """The tasks of the compiled graph in the order of the line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pipelines.graph import pipeline_of

        spec = pipeline_of(params).pipeline_spec
    arguments = {name: value.default_value for name, value in spec.root.input_definitions.parameters.items()}
    tasks = spec.root.dag.tasks
    for station in STATIONS:
        if station.task not in tasks:
            continue
        inputs = tasks[station.task].inputs
        parameters, looked_up = {}, set()
        for name, source in inputs.parameters.items():
            if source.HasField("task_output_parameter"):
                looked_up.add(name)
            elif name != "config":
                parameters[name] = _plain(arguments[source.component_input_parameter])
        artifacts = {name: source.task_output_artifact.producer_task for name, source in inputs.artifacts.items()}
        yield station, _Node(artifacts, parameters, frozenset(looked_up))


def _plain(value: Any) -> Any:
    from google.protobuf import json_format

    return json_format.MessageToDict(value)


def describe(planned: list[Planned]) -> Iterator[str]:
    """The plan as lines for people."""
    width = max(len(found.step) for found in planned)
    for found in planned:
        name = f"{found.fingerprint[:12]}" if found.fingerprint else "-" * 12
        yield f"{found.step:<{width}}  {found.action:<8}  {name}  {found.reason}"
        yield from (f"{'':<{width}}  {line}" for line in found.details)
    spent = sum(found.manifest.seconds for found in planned if found.manifest)
    if spent:
        count = sum(found.action == "reuse" for found in planned)
        yield f"{count} results are there; making them took {duration(spent)}"
