from __future__ import annotations

from pathlib import Path

import pytest

from components.common.model_inputs import network_folder, settled
from components.common.networks import network_digest
from foundry.errors import UserError


def export(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir(parents=True)
    for name, data in {"config.json": b"{}", "preprocessor_config.json": b"{}", "model.safetensors": weights}.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_run_gives_its_newest_export_and_a_folder_itself(tmp_path: Path) -> None:
    newest = export(tmp_path / "run" / "export" / "step-000000020")
    export(tmp_path / "run" / "export" / "step-000000010")
    (tmp_path / "run" / "export" / "latest").write_text("step-000000020\n")
    assert network_folder(str(tmp_path / "run")) == newest == network_folder(str(newest))
    assert network_folder(f"file://{tmp_path}/run") == newest


def test_what_is_no_network_is_told(tmp_path: Path) -> None:
    (tmp_path / "d" / "students" / "vit").mkdir(parents=True)
    for value, message in {
        str(tmp_path / "absent"): "no such folder",
        str(tmp_path): "neither a training run",
        str(tmp_path / "d"): "name one of its students, as in .*/students/vit",
        "s3://bucket/run": "copy it there",
    }.items():
        with pytest.raises(UserError, match=message):
            network_folder(value)
    for value in ("models:/name", "models:/a@b@c"):
        with pytest.raises(UserError, match="write models:/NAME@ALIAS"):
            settled(value)


def test_the_digest_is_that_of_description_preprocessing_and_weights(tmp_path: Path) -> None:
    first, same, other = (export(tmp_path / name, data) for name, data in (("a", b"w"), ("b", b"w"), ("c", b"x")))
    (same / "heads.safetensors").write_bytes(b"heads")
    assert network_digest(first) == network_digest(same) != network_digest(other)
