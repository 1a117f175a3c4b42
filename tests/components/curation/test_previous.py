"""Where the dataset that is added to may lie."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from components.curation import previous
from foundry.errors import UserError
from tests.components.curation.growing import curate
from tests.components.curation.pictures import write_pool
from tests.components.curation.test_step import files_of


def test_a_dataset_elsewhere_is_fetched(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 12)
    here = curate(tmp_path / "pool", tmp_path / "dataset").folder
    files = fsspec.filesystem("memory")
    files.put(f"{here}/", "/increment-test/dataset/", recursive=True)
    url = "memory://increment-test/dataset"
    assert previous.dataset_digest(url) == previous.dataset_digest(str(here))
    opened = previous.open_previous(url, tmp_path / "fetched")
    assert files_of(opened.dataset.folder) == files_of(here)
    with pytest.raises(UserError, match="no such folder"):
        previous.dataset_digest("memory://increment-test/nothing")


def test_a_path_at_a_revision_is_one_of_its_dvc_repository(tmp_path: Path) -> None:
    (tmp_path / "home" / ".dvc").mkdir(parents=True)
    url = str(tmp_path / "home" / "artifacts" / "curation")
    assert previous.resolve(f"{url}@v1.2") == f"dvc://artifacts/curation?repo={tmp_path / 'home'}&rev=v1.2"
    assert previous.resolve(url) == url
    (tmp_path / "a@b").mkdir()
    assert previous.resolve(str(tmp_path / "a@b")) == str(tmp_path / "a@b")
    with pytest.raises(UserError, match="PATH@REVISION"):
        previous.resolve(str(tmp_path / "other" / "curation@v1"))
