from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from components.common import kfp_face
from components.common.image import IMAGE
from components.common.kfp_face import FAILURE_VARIABLE, run_step, scalars, step_named

STEPS = [
    "curation",
    "adoption",
    "pretraining",
    "refinement",
    "distillation",
    "evaluation",
    "registration",
    "deployment",
]


class Artifact:
    """What a KFP artifact has that matters here."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.metadata: dict = {}
        self.numbers: dict[str, float] = {}

    def log_metric(self, name: str, value: float) -> None:
        self.numbers[name] = value


@pytest.fixture
def named_toy(toy, monkeypatch: pytest.MonkeyPatch):
    """The toy, found by name as a step of components/ is."""
    monkeypatch.setitem(sys.modules, "components.toy", types.ModuleType("components.toy"))
    monkeypatch.setitem(sys.modules, "components.toy.step", sys.modules[type(toy.config()).__module__])
    monkeypatch.setenv("FOUNDRY_STORE", str(toy.store.root))
    return toy


def test_values_of_kfp_reach_the_step_and_its_result_reaches_kfp(named_toy, tmp_path: Path) -> None:
    artifact, metrics = Artifact(tmp_path / "out" / "toy"), Artifact(tmp_path / "metrics")
    outcome = run_step("toy", {"rows": 4.0}, {"champion": "c", "source": ""}, artifact, metrics)
    assert (tmp_path / "out" / "toy" / "part" / "table.txt").read_text().count("row") == 4
    assert metrics.numbers == {"rows": 4.0, "nested/half": 0.5}
    assert artifact.metadata["fingerprint"] == outcome.fingerprint and artifact.metadata["reused"] is False
    again = run_step("toy", {"rows": 4}, {"champion": "c"}, Artifact(tmp_path / "again"))
    assert again.reused
    after = Artifact(tmp_path / "after")
    run_step("toy", {}, {"before": artifact}, after)
    assert after.metadata["reused"] is False


def test_a_mistake_of_a_person_is_one_line_and_left_for_the_pipeline(
    named_toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv(FAILURE_VARIABLE, str(tmp_path / "failure.json"))
    with pytest.raises(SystemExit) as end:
        run_step("toy", {"row": 4}, {}, Artifact(tmp_path / "out"))
    assert end.value.code == 2
    line = "toy: unknown setting 'row'; did you mean 'rows'?"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert json.loads((tmp_path / "failure.json").read_text()) == {"step": "toy", "error": line}


def test_scalars_are_flat_numbers() -> None:
    assert scalars({"a": 1, "b": {"c": 0.5, "d": "x"}, "e": [1], "f": True}) == {"a": 1.0, "b/c": 0.5, "f": 1.0}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_found_by_its_name_and_its_sources_exist(name: str) -> None:
    from components.common.fingerprint import code_digest, lasting_settings

    step = step_named(name)
    assert step.name == name and step.summary.endswith(".")
    assert len(code_digest(step.code)) == 64
    lasting_settings(step.config(), step.transient)


def test_the_local_runner_accepts_the_image_name() -> None:
    assert "python" in IMAGE


def test_an_error_of_the_program_keeps_its_traceback(
    named_toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", "1")
    monkeypatch.setenv(FAILURE_VARIABLE, str(tmp_path / "failure.json"))
    with pytest.raises(RuntimeError, match="the toy broke"):
        run_step("toy", {}, {}, Artifact(tmp_path / "out"))
    assert not (tmp_path / "failure.json").exists()
    assert kfp_face.step_named("toy") is named_toy.step
