from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from components.common.command import describe_settings, main_for, parse_inputs, type_name
from components.common.kfp_face import step_named
from components.pretraining.step import STEP as PRETRAINING
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.settings import Settings


class Inner(Settings):
    depth: int = 2
    """How deep."""


class Outer(Settings):
    name: str
    mode: Literal["fast", "slow"] = "fast"
    """How it is
    done."""
    sizes: tuple[int, ...] | None = (1, 2)
    inner: Inner = Inner()


def test_every_setting_is_described() -> None:
    assert list(describe_settings(Outer)) == [
        "  name: str = required",
        "  mode: 'fast' | 'slow' = \"fast\"",
        "      How it is done.",
        "  sizes: tuple[int, ...] | None = [1, 2]",
        "  inner.depth: int = 2",
        "      How deep.",
    ]
    assert type_name(dict[str, float | None]) == "dict[str, float | None]"


def test_inputs_are_names_and_urls() -> None:
    assert parse_inputs(PRETRAINING, ["dataset=a=b", "evaluation=s3://x?y=1"]) == {
        "dataset": "a=b",
        "evaluation": "s3://x?y=1",
    }
    for argument, words in [
        ("dataset", "write it as NAME=URL"),
        ("datset=x", "pretraining: no input named 'datset'; did you mean 'dataset'?"),
        ("colour=x", "it has: dataset, evaluation"),
    ]:
        with pytest.raises(UserError, match=words.replace("?", r"\?")):
            parse_inputs(PRETRAINING, [argument])
    with pytest.raises(UserError, match="given twice"):
        parse_inputs(PRETRAINING, ["dataset=a", "dataset=b"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "dataset=/no/such/folder"], "input dataset=/no/such/folder: no such file or folder"),
        (["--input", "datset=x"], "did you mean 'dataset'?"),
        ([], "input 'dataset' is missing"),
        (["--set", "pretraining.overrides.stepz=1"], "recipe embedded: unknown setting 'stepz'; did you mean 'steps'?"),
        (["--set", "pretraining.overrides.steps=many"], "setting 'steps' = 'many'"),
        (["--set", "pretraining.recipe=embeded"], "recipe 'embeded': no such recipe; did you mean 'embedded'?"),
        (["--set", "pretraining.processes=65"], "batch 64 is too small for 65 processes"),
        (["--set", "pretraning.processes=1"], "unknown setting 'pretraning'; did you mean 'pretraining'?"),
        (["--set", "pretraining.processes"], "write it as name.of.setting=value"),
        (["--params", "nowhere.yaml"], "nowhere.yaml: no such settings file"),
        (["--store", "s3://bucket/x", "--input", "dataset=/"], "the store must be a local or mounted folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], words: str, capsys, fresh_home: Path) -> None:
    assert main_for(PRETRAINING, arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) == 1
    assert words in captured.err
    with pytest.raises(UserError):
        main_for(PRETRAINING, [*arguments, "--debug"])


@pytest.mark.parametrize(
    "name", ["curation", "adoption", "pretraining", "refinement", "distillation", "evaluation", "deployment"]
)
def test_help_answers_at_once_and_imports_nothing_heavy(name: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module('components.{name}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'mlflow', 'kfp', 'pandas', 'transformers', 'cv2', 'pyarrow', 'torchx', 'sklearn', 'numpy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m components.{name}" in done.stdout and "settings (section" in done.stdout
    assert "HEAVY []" in done.stdout


def test_inputs_that_are_not_given_come_from_params_on_request(fresh_home: Path, tmp_path: Path, capsys) -> None:
    """A network of which nothing is there: asked for by params.yaml, and only where that is wanted."""
    (tmp_path / "params.yaml").write_text("inputs: {backbone: /no/such/network}\n")
    arguments = ["--params", str(tmp_path / "params.yaml"), "--input", "pool=/no/such/pool"]
    assert main_for(step_named("curation"), [*arguments, "--inputs-from-params"]) == 2
    assert "/no/such/network" in capsys.readouterr().err
    assert main_for(step_named("curation"), arguments) == 2
    assert "/no/such/network" not in capsys.readouterr().err
