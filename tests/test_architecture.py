"""The import arrows of the design: pipelines -> components -> {training, serving} -> foundry."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("foundry", "training", "serving", "components", "pipelines")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--config", "pyproject.toml"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "PYTHONUTF8": "1"},
    )


def test_the_arrows_hold() -> None:
    result = lint_imports(REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("foundry.wrong", "import training"),
        ("training.wrong", "import serving"),
        ("serving.wrong", "import training"),
        ("training.wrong", "from components import anything"),
        ("components.wrong", "import pipelines"),
        ("training.wrong", "import mlflow"),
        ("serving.wrong", "def later():\n    import kfp"),
        ("foundry.wrong", "import torch"),
    ],
)
def test_an_arrow_in_the_wrong_direction_is_found(tmp_path: Path, module: str, line: str) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / module.replace(".", "/")).with_suffix(".py").write_text(line + "\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert module in result.stdout


def test_every_top_level_folder_with_code_is_under_the_contract() -> None:
    folders = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert folders - {"tests"} <= set(PACKAGES)
