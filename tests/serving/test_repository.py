"""The model repository as files, and a version folder run by the serving environment without Triton."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from foundry.errors import UserError
from foundry.images import Preprocessing, decode_image
from serving.export import OnnxExport
from serving.installation import serving_environment
from serving.model_config import ServingOptions, config_text, served_versions
from serving.repository import ModelRepository
from tests.serving.tiny_models import encoded, picture, torch_outputs

Onnx = dict[str, tuple[Path, OnnxExport]]
OPTIONS = ServingOptions(environment=Path("/some where/env"))


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "repository")


def test_versions_arrive_whole_and_are_served_only_when_told(repository: ModelRepository, onnx: Onnx) -> None:
    repository.write_version("vit", 1, *onnx["vit"])
    assert (repository.names(), repository.versions("vit"), repository.served("vit")) == ([], [1], [])
    repository.serve("vit", [1], OPTIONS)
    repository.write_version("vit", 12, *onnx["convnext"])
    assert (repository.versions("vit"), repository.served("vit")) == ([1, 12], [1])
    repository.serve("vit", [12, 1], OPTIONS)
    assert (repository.names(), repository.served("vit")) == (["vit"], [1, 12])
    assert repository.describe("vit", 12)["digest"] == onnx["convnext"][1].digest
    # Triton takes every folder inside for a model.
    assert sorted(path.name for path in repository.root.iterdir()) == ["vit"]
    assert sorted(path.name for path in (repository.root / "vit").iterdir()) == ["1", "12", "config.pbtxt"]


def test_equal_content_is_recognised_and_other_content_replaced(repository: ModelRepository, onnx: Onnx) -> None:
    assert not repository.holds("m", 3, *onnx["vit"])
    repository.write_version("m", 3, *onnx["vit"])
    place = repository.root / "m" / "3"
    first = place.stat().st_ino
    assert repository.holds("m", 3, *onnx["vit"]) and not repository.holds("m", 3, *onnx["convnext"])
    repository.write_version("m", 3, *onnx["vit"])
    assert place.stat().st_ino == first
    repository.write_version("m", 3, *onnx["convnext"])
    assert repository.holds("m", 3, *onnx["convnext"])
    assert (place / "model.onnx").read_bytes() == (onnx["convnext"][0] / "model.onnx").read_bytes()


def test_an_unchanged_configuration_is_not_touched(repository: ModelRepository, onnx: Onnx) -> None:
    repository.write_version("m", 1, *onnx["vit"])
    repository.serve("m", [1], OPTIONS)
    file = repository.root / "m" / "config.pbtxt"
    before = (file.stat().st_ino, file.stat().st_mtime_ns)
    repository.serve("m", [1], OPTIONS)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


@pytest.mark.parametrize("versions", [[2], []])
def test_only_present_versions_can_be_served(repository: ModelRepository, onnx: Onnx, versions: list[int]) -> None:
    repository.write_version("m", 1, *onnx["vit"])
    with pytest.raises(UserError, match="has no version"):
        repository.serve("m", versions, OPTIONS)


@pytest.mark.parametrize("name", ["../up", "a/b", "", "-x", "a b"])
def test_names_that_are_no_folder_names_are_refused(repository: ModelRepository, onnx: Onnx, name: str) -> None:
    with pytest.raises(UserError, match="model name"):
        repository.write_version(name, 1, *onnx["vit"])
    assert not repository.root.exists()


def test_remove_leaves_nothing(repository: ModelRepository, onnx: Onnx) -> None:
    for version in (1, 2):
        repository.write_version("m", version, *onnx["vit"])
    repository.remove("m", 1)
    assert repository.versions("m") == [2]
    repository.remove("m")
    repository.remove("m")
    assert list(repository.root.iterdir()) == []
    assert [path for path in (repository.root.parent / "repository.staging").iterdir() if path.is_dir()] == []


def test_staging_of_a_dead_process_is_cleared_and_that_of_a_living_one_kept(
    repository: ModelRepository, onnx: Onnx
) -> None:
    from foundry.lifetime import process_identity

    staging = repository.root.parent / "repository.staging"
    dead, living = staging / "999999:1-x", staging / f"{process_identity(1)}-x"
    for folder in (dead, living):
        folder.mkdir(parents=True)
    repository.write_version("m", 1, *onnx["vit"])
    assert not dead.exists() and living.exists()


def test_configuration_lists_versions_in_order_and_quotes_paths() -> None:
    text = config_text("vit", [3, 1], OPTIONS)
    assert served_versions(text) == [1, 3]
    assert served_versions("max_batch_size: 8") == []
    assert 'key: "EXECUTION_ENV_PATH" value { string_value: "/some where/env" }' in text
    assert "EXECUTION_ENV_PATH" not in config_text("vit", [1], ServingOptions())


def test_version_folder_runs_in_the_serving_environment_by_itself(
    repository: ModelRepository, onnx: Onnx, exports: dict[str, Path], tmp_path: Path
) -> None:
    """numpy < 2, an isolated interpreter, ASCII as default encoding, no checkout on the path: as inside Triton."""
    repository.write_version("vit", 1, *onnx["vit"])
    folder = repository.root / "vit" / "1"
    images = [encoded(picture(1)), encoded(picture(2, 97, 300), "PNG"), b"no image"]
    for index, image in enumerate(images):
        (tmp_path / str(index)).write_bytes(image)
    program = f"""
import json, sys
sys.path.insert(0, {str(folder / "code")!r})
from pathlib import Path
import numpy
from serving.triton_backend.embedding import EmbeddingModel
model = EmbeddingModel(Path({str(folder)!r}), threads=2)
model.warm_up(4)
first, second, refused = model.decode([(Path({str(tmp_path)!r}) / name).read_bytes() for name in "012"])
embedding, features = model.run(numpy.stack([first, second]), patch_features=True)
none = model.run(numpy.stack([first, second]), patch_features=False)[1]
numpy.savez({str(tmp_path / "answer.npz")!r}, embedding=embedding, features=features)
model.close()
print(json.dumps([numpy.__version__, refused.reason, none, "torch" in sys.modules, model.digest]))
"""
    python = serving_environment() / "bin" / "python"
    result = subprocess.run(
        [str(python), "-I", "-X", "utf8=0", "-c", program],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    numpy_version, reason, none, torch, digest = json.loads(result.stdout)
    assert numpy_version.startswith("1.") and reason == "not-an-image" and none is None and not torch
    assert digest == onnx["vit"][1].digest
    preprocessing = Preprocessing.from_config(json.loads((exports["vit"] / "preprocessor_config.json").read_text()))
    pixels = np.stack([preprocessing(decode_image(image)) for image in images[:2]])
    expected, expected_features = torch_outputs(exports["vit"], pixels)
    answer = np.load(tmp_path / "answer.npz")
    np.testing.assert_allclose(answer["embedding"], expected, atol=1e-4)
    np.testing.assert_allclose(answer["features"], expected_features, atol=1e-4)
