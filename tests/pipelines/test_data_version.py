"""The curated dataset under DVC, with the real dvc in a repository of its own; Git is only read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.common.manifest import Manifest, content_digest_of, describe_files, write_manifest
from components.common.params import Params, load_params
from pipelines.data_version import version_dataset

REPOSITORY = Path(__file__).resolve().parents[2]


def run(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What DVC needs of this checkout, in a folder without Git; FOUNDRY_HOME is its .foundry."""
    folder = tmp_path / "checkout"
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("components/curation", "training"):  # dependencies of stages
        (folder / name).mkdir(parents=True)
        (folder / name / "source.py").touch()
    monkeypatch.setenv("FOUNDRY_HOME", str(folder / ".foundry"))
    return folder


@pytest.fixture
def repository(checkout: Path) -> Path:
    """The same in Git, with one commit."""
    run(checkout, "git", "init", "-q")
    run(checkout, "git", "add", ".")
    run(checkout, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return checkout


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "curation" / "abc"
    folder.mkdir(parents=True)
    (folder / "shard-000000.tar").write_bytes(os.urandom(5000))
    files = describe_files(folder)
    write_manifest(
        folder,
        Manifest(
            step="curation", fingerprint="abc", digest=content_digest_of(files), files=files, config={}, inputs={},
            code_digest="", environment={}, metrics={}, started="2026-01-01T00:00:00+00:00", seconds=1.0, git={},
        ),
    )  # fmt: skip
    return folder


def test_the_dataset_of_params_becomes_the_output_of_its_stage(repository: Path, dataset: Path) -> None:
    git_before = run(repository, "git", "rev-parse", "HEAD"), (repository / ".git" / "index").read_bytes()
    version = version_dataset(dataset, load_params(repository / "params.yaml"), repository)

    recorded = yaml.safe_load((repository / "dvc.lock").read_text())["stages"]["curation"]["outs"][0]
    assert version == {"md5": recorded["md5"], "file": "dvc.lock", "target": "curation", "pushed": True}
    assert git_before == (run(repository, "git", "rev-parse", "HEAD"), (repository / ".git" / "index").read_bytes())

    shutil.rmtree(repository / "artifacts")
    shutil.rmtree(repository / ".dvc" / "cache")
    dvc(repository, "pull", "-q", version["target"])
    pulled = repository / "artifacts" / "curation" / "shard-000000.tar"
    assert pulled.read_bytes() == (dataset / "shard-000000.tar").read_bytes()

    assert version_dataset(dataset, load_params(repository / "params.yaml"), repository) == version


def test_another_dataset_gets_its_own_pointer(repository: Path, dataset: Path) -> None:
    params = Params.model_validate({"inputs": {"images": "/elsewhere"}})
    version = version_dataset(dataset, params, repository)
    assert not (repository / "dvc.lock").exists()
    pointer = repository / version["file"]
    assert pointer.parent.name == "datasets" and pointer.suffix == ".dvc"
    assert yaml.safe_load(pointer.read_text())["outs"][0]["md5"] == version["md5"]
    status = run(repository, "git", "status", "--porcelain", "--untracked-files=all").splitlines()
    assert sorted(status) == ["?? datasets/.gitignore", f"?? {version['file']}"]


def test_it_works_without_git_and_with_another_home(
    checkout: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    version = version_dataset(dataset, load_params(checkout / "params.yaml"), checkout)
    assert version["pushed"] is True
    assert any((tmp_path / "home" / "dvc-remote").rglob("*.dir"))


def test_a_remote_that_cannot_be_written_costs_a_warning(
    repository: Path, dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (repository / ".foundry").mkdir()
    (repository / ".foundry" / "dvc-remote").write_text("a file where the folder should be")
    version = version_dataset(dataset, load_params(repository / "params.yaml"), repository)
    assert version["pushed"] is False and len(version["md5"]) > 30
    assert "warning: the dataset was not pushed" in capfd.readouterr().err


def test_a_dvc_that_does_not_work_costs_a_warning(
    repository: Path, dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (repository / "dvc.yaml").write_text("stages: [no, stages]\n")
    version = version_dataset(dataset, load_params(repository / "params.yaml"), repository)
    assert set(version) == {"error"}
    assert "warning: the dataset was not put under DVC" in capfd.readouterr().err
