from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.curated import write_dataset
from tests.training.small_runs import train, write_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated dataset."""
    return write_dataset(tmp_path_factory.mktemp("curated") / "dataset")


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining of four steps on ``data``."""
    folder = tmp_path_factory.mktemp("pretrained")
    train(1, write_recipe(folder / "recipe.yaml", steps=4), data, folder / "run")
    return folder / "run"
