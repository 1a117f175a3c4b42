"""One line, told three times: the graph, dvc.yaml and the steps' own declarations say the same."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.common.kfp_face import step_named
from components.common.params import InputsConfig, load_params
from foundry.errors import UserError
from foundry.settings import Settings
from pipelines.stations import STATIONS

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = {station.task: station.step for station in STATIONS}
LINE = set(TASKS) - {"adopt", "evaluate-family"}
FAMILY = set(TASKS) - {"pretrain", "refine", "evaluate"}
STEPS = [TASKS[task] for task in TASKS if task in LINE and TASKS[task]]


def compile_line(path: Path, *arguments: str, **variables: str) -> list[dict[str, Any]]:
    """The documents that ``python -m pipelines compile`` writes to ``path``."""
    command = [sys.executable, "-m", "pipelines", "compile", str(path), *arguments]
    subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **variables}, check=True, capture_output=True)
    return list(yaml.safe_load_all(path.read_bytes()))


ELSEWHERE = {"evaluate": {"teacher"}, "evaluate-family": {"pretrained", "refined"}}
"""Inputs that a task leaves out: a teacher is made by the line, or was there."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(file, pipeline document, platform document) of two compilations in processes of different hash seeds."""
    folder = tmp_path_factory.mktemp("compiled")
    texts = []
    for seed in ("1", "2"):
        path = folder / f"line-{seed}.yaml"
        compile_line(path, "--image", "registry/x/python@sha256:0123", PYTHONHASHSEED=seed)
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    pipeline, platform = yaml.safe_load_all(texts[0])
    return path, pipeline, platform


def test_the_stations_are_the_tasks_of_the_graph(compiled: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, pipeline, platform = compiled
    tasks = pipeline["root"]["dag"]["tasks"]
    assert set(tasks) == LINE
    for name, task in tasks.items():
        assert task["taskInfo"]["name"] == next(station.title for station in STATIONS if station.task == name)
        assert not task["cachingOptions"].get("enableCache", False)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors} == set(tasks)
    assert all(executor["pvcMount"][0]["mountPath"] == "/foundry" for executor in executors.values())


def test_every_step_gets_each_of_its_inputs(compiled: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, pipeline, _ = compiled
    for name, task in pipeline["root"]["dag"]["tasks"].items():
        if TASKS[name] is None:
            continue
        inputs = task["inputs"]
        given = {*inputs.get("artifacts", {}), *inputs.get("parameters", {})} - {"config"}
        assert given == {spec.name for spec in step_named(TASKS[name]).inputs} - ELSEWHERE.get(name, set())
        assert inputs["parameters"]["config"]["componentInputParameter"] == TASKS[name]


def test_a_family_has_a_teacher_that_is_there_and_nothing_that_makes_one(tmp_path: Path) -> None:
    pipeline, _ = compile_line(tmp_path / "family.yaml", "--teacher", "models:/vit@champion")
    tasks = pipeline["root"]["dag"]["tasks"]
    assert pipeline["pipelineInfo"]["name"] == "dino-foundry-family" and set(tasks) == FAMILY
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert parameters["teacher"]["defaultValue"] == "models:/vit@champion"
    assert {"pretraining", "refinement"}.isdisjoint(parameters)
    assert all(len(parameter["description"]) > 20 for parameter in parameters.values())
    assert tasks["adopt"]["inputs"]["parameters"]["network"]["componentInputParameter"] == "teacher"
    for task, name in (("distil", "teacher"), ("evaluate-family", "teacher"), ("register", "refined")):
        assert tasks[task]["inputs"]["artifacts"][name]["taskOutputArtifact"]["producerTask"] == "adopt"
    for name, task in tasks.items():
        if TASKS[name] is not None:
            given = {*task["inputs"].get("artifacts", {}), *task["inputs"].get("parameters", {})} - {"config"}
            assert given == {spec.name for spec in step_named(TASKS[name]).inputs} - ELSEWHERE.get(name, set())


def test_the_image_is_the_one_named(compiled: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, pipeline, _ = compiled
    images = {executor["container"]["image"] for executor in pipeline["deploymentSpec"]["executors"].values()}
    assert images == {"registry/x/python@sha256:0123"}


def test_parameters_have_types_descriptions_and_the_defaults_of_params(
    compiled: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    _, pipeline, _ = compiled
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    types = {name: parameter["parameterType"] for name, parameter in parameters.items()}
    texts = ("images", "labels", "benchmarks", "peers", "backbone", "embeddings", "seeds", "raw", "previous", "volume")
    assert types == {**dict.fromkeys(texts, "STRING"), **dict.fromkeys(STEPS, "STRUCT")}
    assert all(len(parameter["description"]) > 20 for parameter in parameters.values())
    written = load_params(REPOSITORY / "params.yaml")
    assert parameters["images"]["defaultValue"] == written.inputs.images
    assert parameters["labels"]["defaultValue"] == written.inputs.evaluation
    assert parameters["previous"]["defaultValue"] == written.inputs.previous
    for step in STEPS:  # numbers went through doubles and nulls were left out: the settings are the same
        values = parameters[step]["defaultValue"]
        assert type(getattr(written, step)).model_validate(values) == getattr(written, step)
    assert len(pipeline["pipelineInfo"]["description"]) > 200


def test_the_compiled_file_loads_back(compiled: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import components

        loaded = components.load_component_from_file(str(compiled[0]))
    assert loaded.name == "dino-foundry-line"
    assert {"images", "labels", *STEPS} <= set(loaded.component_spec.inputs)


def test_a_pool_is_embedded_by_as_many_pods_as_the_settings_say(tmp_path: Path) -> None:
    file = tmp_path / "line.yaml"
    command = [sys.executable, "-m", "pipelines", "compile", str(file), "--set", "curation.embedding.fan_out=3"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    pipeline, platform = yaml.safe_load_all(file.read_text())
    tasks = pipeline["root"]["dag"]["tasks"]
    (loop,) = set(tasks) - set(TASKS)
    assert json.loads(tasks[loop]["parameterIterator"]["items"]["raw"]) == [0, 1, 2]
    embedded = tasks["curate"]["inputs"]["parameters"]["embedded"]
    assert embedded["taskOutputParameter"]["producerTask"] == loop and loop in tasks["curate"]["dependentTasks"]
    inner = pipeline["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"]["embed"]
    parameters = inner["inputs"]["parameters"]
    assert parameters["parts"]["runtimeValue"]["constant"] == 3
    assert "loop-item" in parameters["part"]["componentInputParameter"]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    (mount,) = executors["exec-embed"]["pvcMount"]
    volume = mount["pvcNameParameter"]["componentInputParameter"]
    assert mount["mountPath"] == "/foundry"
    assert tasks[loop]["inputs"]["parameters"][volume]["componentInputParameter"] == "volume"


def stage_inputs(stage: dict[str, Any]) -> dict[str, str]:
    words = shlex.split(stage["cmd"])
    return dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "--input")


def test_dvc_has_the_same_steps_with_the_same_inputs(compiled: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    _, pipeline, _ = compiled
    tasks = pipeline["root"]["dag"]["tasks"]
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert list(stages) == STEPS
    for name, task in tasks.items():
        step = TASKS[name]
        if step is None:
            continue
        inputs = stage_inputs(stages[step])
        artifacts = task["inputs"].get("artifacts", {})
        expected = {
            key: f"artifacts/{TASKS[source['taskOutputArtifact']['producerTask']]}" for key, source in artifacts.items()
        }
        assert {key: value for key, value in inputs.items() if value.startswith("artifacts/")} == expected
        if "--inputs-from-params" in stages[step]["cmd"]:
            known = {spec.name for spec in step_named(step).inputs} - {"teacher"}
            inputs |= {name: "" for name in InputsConfig.model_fields if name in known}
        assert set(inputs) == {spec.name for spec in step_named(step).inputs} - ELSEWHERE.get(name, set())
        assert f"python -m components.{step} --params params.yaml" in stages[step]["cmd"]
        assert f"--output artifacts/{step}" in stages[step]["cmd"]
        assert set(expected.values()) <= set(stages[step]["deps"])


def test_dvc_watches_every_setting_that_a_stage_reads() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for step, stage in stages.items():
        templated = {
            name for name in re.findall(r"\$\{([\w.]+)\}", stage["cmd"]) if not name.startswith("registration")
        }
        if "--inputs-from-params" in stage["cmd"]:
            templated = {name for name in templated if not name.startswith("inputs.")} | {"inputs"}
        assert {step} | templated == set(stage["params"])


def test_a_null_that_says_something_cannot_go_through_kubeflow() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pipelines.graph import as_struct

    class Inner(Settings):
        size: int | None = None
        limit: int | None = 3

    class Outer(Settings):
        inner: Inner = Inner()
        free: dict[str, Any] = {}

    assert as_struct(Outer(), "outer") == {"inner": {"limit": 3}, "free": {}}
    with pytest.raises(UserError, match="outer.inner.limit"):
        as_struct(Outer(inner=Inner(limit=None)), "outer")
    with pytest.raises(UserError, match="outer.free"):
        as_struct(Outer(free={"a": [{"b": None}]}), "outer")
