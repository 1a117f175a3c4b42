import json
import shutil
from pathlib import Path

import pytest

from components.common import tracking
from components.registration.champions import champions_for_students, download_version, folder_digest, resolve_champions
from components.registration.registry import ModelRegistry
from components.registration.students import export_digests
from foundry.errors import UserError


def test_a_downloaded_version(registered, downloaded):
    _, students, run_id = registered
    version = downloaded["vit"]
    assert version.folder.name == "shared-vit-v1"
    assert version.metadata["digest"] == students["vit"]["digest"] == folder_digest(version.export)
    assert version.metadata["run_id"] == run_id and version.metadata["tags"]["student"] == "vit"
    assert {path.name for path in version.export.iterdir()} >= {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }


def test_a_complete_download_is_kept_and_a_damaged_one_replaced(registered, downloaded, tmp_path):
    source = download_version("shared-vit", "1", tmp_path).folder
    marker = source / "marker"
    marker.write_text("")
    assert download_version("shared-vit", "champion", tmp_path).folder == source and marker.exists()
    weights = source / "artifacts" / "export" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    download_version("shared-vit", "1", tmp_path)
    assert weights.read_bytes() != b"damaged" and not marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["shared-vit-v1"]


def test_files_changed_in_the_registry_are_refused(registered, line, register, tmp_path, monkeypatch):
    from components.registration.config import RegistrationConfig

    rows, _ = register(RegistrationConfig(prefix="tampered"), line.inputs(seed=8, students=("vit",)), tmp_path / "out")
    model = tracking.client().get_logged_model(rows["vit"]["model_id"])
    weights = Path(model.artifact_location.removeprefix("file://")) / "artifacts" / "export" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(UserError, match="tampered-vit' version 1: its files have digest"):
        download_version("tampered-vit", "1", tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_students_are_judged_against_the_champion_they_would_replace(registered, line, register, tmp_path):
    from components.registration.config import RegistrationConfig

    config, only = RegistrationConfig(prefix="resolve"), ("vit",)
    one, two = line.inputs(seed=1, students=only), line.inputs(seed=2, students=only)

    def champion_for(inputs):
        return resolve_champions("resolve", export_digests(Path(inputs["students"])), tmp_path / "files").get("vit")

    assert champion_for(one) is None
    register(config, one, tmp_path / "1")
    assert champion_for(one) is None, "asked again, the first student still has nobody to beat"
    against_one = champion_for(two)
    assert (against_one["model"], against_one["version"]) == ("resolve-vit", "1")
    assert against_one["digest"] == export_digests(Path(one["students"]))["vit"]
    assert against_one["digest"] == folder_digest(Path(against_one["path"]))
    register(config, two, tmp_path / "2")
    assert champion_for(two) == against_one, "the same question has the same answer, so its report is reused"
    assert champion_for(one)["version"] == "2"
    by_name = resolve_champions("resolve", ["vit", "absent"], tmp_path / "files")
    assert {name: row["version"] for name, row in by_name.items()} == {"vit": "2"}
    text = champions_for_students({"prefix": "resolve"}, two["students"])
    assert json.loads(text)["vit"]["digest"] == against_one["digest"]
    ModelRegistry().rollback("resolve-vit", "")
    assert champion_for(two) == against_one


def test_no_champions_is_an_empty_answer(registered):
    inputs, _, _ = registered
    assert champions_for_students({"prefix": "nobody"}, inputs["students"]) == "{}"


def test_an_export_digest_is_that_of_the_manifest(registered):
    from components.common.manifest import read_manifest

    folder = Path(registered[0]["students"])
    digest = read_manifest(folder).digest_under("students/vit/export/step-000000010")
    assert export_digests(folder)["vit"] == digest


def test_a_distillation_without_students_or_exports(registered, tmp_path):
    with pytest.raises(UserError, match="no students"):
        export_digests(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(registered[0]["students"], copy)
    (copy / "students" / "vit" / "export" / "step-000000010" / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        export_digests(copy)
    (copy / "students" / "convnext" / "export" / "latest").unlink()
    with pytest.raises(UserError, match="export/latest is missing"):
        export_digests(copy)


@pytest.mark.slow
def test_a_tracking_server_serves_as_registry(mlflow_server, line, register, fresh_home, tmp_path, monkeypatch):
    """On a cluster the registry is an HTTP server, and files go through it."""
    from components.registration.config import RegistrationConfig

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server[0])
    inputs = line.inputs(seed=1, students=("vit",))
    rows, _ = register(RegistrationConfig(), inputs, tmp_path / "1")
    again, _ = register(RegistrationConfig(), inputs, tmp_path / "2")
    assert (rows["vit"]["new"], again["vit"]["new"], again["vit"]["version"]) == (True, False, "1")
    version = download_version("dino-foundry-vit", "champion", tmp_path / "files")
    assert version.metadata["digest"] == rows["vit"]["digest"] == folder_digest(version.export)
    assert [move.action for move in ModelRegistry().history("dino-foundry-vit")] == ["verdict"]
    assert not list((fresh_home / "mlflow").glob("*.db")), "nothing is kept on this side"


def test_an_alias_is_an_input_of_steps_by_its_version(registered):
    from components.common.execution import describe_input
    from components.common.model_inputs import network_folder
    from components.common.networks import network_digest
    from components.common.step import InputSpec
    from training.models.interchange import load_export

    row = describe_input(InputSpec("backbone", "a network", kind="model"), "models:/shared-vit@champion")
    assert row.url == "models:/shared-vit/1"
    folder = network_folder(row.url)
    assert row.digest == network_digest(folder)
    load_export(folder)
