"""The step on a real registry (SQLite): versions, aliases, lineage, and what a second registration changes."""

from pathlib import Path

import pytest

from components.common import tracking
from components.registration.champions import download_version
from components.registration.config import RegistrationConfig
from components.registration.pickles import find_pickles
from components.registration.publishing import pixels_digest
from components.registration.registry import ModelRegistry
from components.registration.step import STEP, run
from foundry.errors import UserError


def test_the_first_students_become_champions(registered):
    _, students, run_id = registered
    assert sorted(students) == ["convnext", "vit"]
    for name, row in students.items():
        assert row["model"] == f"shared-{name}" and row["version"] == "1" and row["run_id"] == run_id
        assert row["aliases"] == ["challenger", "champion"] and row["verdict"] == "passed" and row["new"]


def test_a_version_leads_back_to_where_it_came_from(registered):
    _, students, run_id = registered
    version = ModelRegistry().version("shared-vit", "champion")
    tags = {name.removeprefix("foundry."): value for name, value in version.tags.items()}
    steps = ("curation", "pretraining", "refinement", "distillation", "evaluation")
    assert {step: tags[f"fingerprint.{step}"] for step in steps} == {step: f"{step}-fingerprint" for step in steps}
    assert tags["dataset_digest"] == "d" * 64 and tags["pool"] == "s3://bucket/pool" and tags["pool_digest"] == "p" * 64
    assert tags["git_commit"] == "c" * 40 and len(tags["recipe_digest"]) == 64 and tags["student"] == "vit"
    assert tags["export_digest"] == students["vit"]["digest"] and tags["verdict"] == "passed"
    model = tracking.client().get_logged_model(students["vit"]["model_id"])
    assert model.status == "READY" and model.source_run_id == run_id
    assert {metric.key: metric.value for metric in model.metrics} == {"vit/knn_top1": 0.5, "vit/miou": 0.25}
    assert tracking.client().get_run(run_id).data.metrics["vit/knn_top1"] == 0.5


def test_the_files_of_a_version(registered, line, tmp_path, register):
    inputs, students, _ = registered
    folder = download_version("shared-vit", "champion", tmp_path).folder
    assert find_pickles(folder) == []
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "MLmodel", "model_code.py", "requirements.txt", "code/foundry/images/decode.py", "artifacts/model_card.md",
        "artifacts/golden/golden.json", "artifacts/golden/embeddings.npy",
    } <= names  # fmt: skip
    assert not [name for name in names if "pycache" in name or name.endswith((".pkl", ".pyc", ".bin"))]
    source = Path(inputs["students"], "students/vit/export/step-000000010")
    for file in source.iterdir():
        assert (folder / "artifacts" / "export" / file.name).read_bytes() == file.read_bytes()
    card = (folder / "artifacts" / "model_card.md").read_text()
    for words in (
        "DINOv3ViTModel",
        "d" * 64,
        "| knn_top1 | 0.5 | 0.375 | 0.125 |",
        "CC0",
        "Passed",
        "evaluation-fingerprint",
        "| size | 1.2 MB |",
        "| operations | 0.5 GFLOP an image |",
        "| speed | 1,234 images a second, 16 at a time (a machine) |",
    ):
        assert words in card
    parameters = sum(tensor.numel() for tensor in line.networks["vit", 1].state_dict().values())
    assert students["vit"]["parameters"] == parameters and f"{parameters:,}" in card
    pins = dict(row.split("==") for row in (folder / "requirements.txt").read_text().split())
    assert {"torch", "transformers", "safetensors", "pillow", "numpy", "mlflow"} <= set(pins)
    assert "+" not in pins["torch"]


def test_registering_the_same_network_again_makes_no_version(registered, tmp_path, capfd, register):
    inputs, before, _ = registered
    registry = ModelRegistry()
    models = len(tracking.client().search_logged_models([registry.experiment_id]))
    registry.client.delete_registered_model_alias("shared-vit", "challenger")
    after, _ = register(RegistrationConfig(prefix="shared"), inputs, tmp_path / "again")
    for name in before:
        assert {**after[name], "outcome": ""} == {**before[name], "outcome": "", "new": False}
        assert [version.version for version in registry.versions(f"shared-{name}")] == [1]
    assert len(tracking.client().search_logged_models([registry.experiment_id])) == models
    assert len(registry.history("shared-vit")) == 1
    assert "registered before" in capfd.readouterr().out


def test_a_change_of_the_decoding_makes_a_version(line, register, tmp_path, monkeypatch):
    """Old golden embeddings would never be met again by a server with the new code."""
    from components.registration import publishing

    inputs, config = line.inputs(seed=4, students=("vit",)), RegistrationConfig(prefix="pixels")
    assert register(config, inputs, tmp_path / "1")[0]["vit"]["version"] == "1"
    monkeypatch.setattr(publishing, "pixels_digest", lambda: "of another Pillow")
    rows = [register(config, inputs, tmp_path / name)[0]["vit"] for name in ("2", "3")]
    assert [(row["version"], row["new"], row["champion"]) for row in rows] == [("2", True, "2"), ("2", False, "2")]
    registry = ModelRegistry()
    one, two = (registry.version("pixels-vit", number).tags for number in ("1", "2"))
    assert one["foundry.export_digest"] == two["foundry.export_digest"]
    assert (len(one["foundry.pixels_digest"]), two["foundry.pixels_digest"]) == (64, "of another Pillow")


def test_the_version_of_pillow_counts(monkeypatch):
    before = pixels_digest()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert before != pixels_digest() == pixels_digest()


def test_a_failed_student_leaves_the_champion_alone(line, tmp_path, register):
    config = RegistrationConfig(prefix="verdict-test")
    vit = {"students": ("vit",)}
    registry = ModelRegistry()

    rows = register(config, line.inputs(seed=1, failed=("vit",), **vit), tmp_path / "1")[0]["vit"]
    assert rows["aliases"] == ["challenger"] and rows["champion"] is None and rows["verdict"] == "failed"
    assert "no champion yet" in rows["outcome"] and "k-NN top-1 of vit against random weights" in rows["outcome"]

    good = line.inputs(seed=2, **vit)
    rows = register(config, good, tmp_path / "2")[0]["vit"]
    assert (rows["version"], rows["champion"], rows["aliases"]) == ("2", "2", ["challenger", "champion"])

    rows = register(config, line.inputs(seed=3, failed=("vit",), **vit), tmp_path / "3")[0]["vit"]
    assert (rows["version"], rows["champion"], rows["aliases"]) == ("3", "2", ["challenger"])
    assert "version 2 stays the champion" in rows["outcome"]

    # A person overrules: the same verdict again does not undo that.
    registry.promote("verdict-test-vit", "1", "it is smaller")
    rows = register(config, good, tmp_path / "4")[0]["vit"]
    assert (rows["version"], rows["champion"]) == ("2", "1") and "it is smaller" in rows["outcome"]
    assert [(move.version, move.action) for move in registry.history("verdict-test-vit")] == [
        ("2", "verdict"), ("1", "promote"),
    ]  # fmt: skip


def test_results_of_different_lines_are_refused(line, tmp_path, register):
    one, other = line.inputs(seed=1, students=("vit",)), line.inputs(seed=2, students=("vit",))
    with pytest.raises(UserError, match="'report'.*another students"):
        run(RegistrationConfig(prefix="mixed"), {**one, "report": other["report"]}, tmp_path)
    with pytest.raises(UserError, match="no manifest.json"):
        run(RegistrationConfig(prefix="mixed"), {**one, "dataset": str(tmp_path)}, tmp_path)
    assert ModelRegistry().find_model("mixed-vit") is None


def test_a_network_that_disagrees_with_itself_is_not_registered(line, tmp_path, monkeypatch, register):
    """Should our own network and transformers' ever differ on an export, nothing reaches the registry."""
    import torch

    from training.models import interchange

    class Other(torch.nn.Module):
        def forward(self, pixels):
            return {"cls": torch.ones(len(pixels), 32), "patches": torch.ones(len(pixels), 16, 32)}

    inputs = line.inputs(seed=5, students=("vit",))
    monkeypatch.setattr(interchange, "load_export", lambda folder: (Other(), None))
    with pytest.raises(RuntimeError, match="disagree"):
        run(RegistrationConfig(prefix="odd"), inputs, tmp_path)
    assert ModelRegistry().find_model("odd-vit") is None


def test_the_step_is_declared_as_one_that_acts_on_the_world():
    assert not STEP.pure and [spec.name for spec in STEP.inputs] == ["students", "report", "dataset", "refined"]
