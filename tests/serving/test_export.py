"""The ONNX graph against transformers, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import serving.export
from foundry.errors import UserError
from serving.export import OnnxExport, cached_export, export_onnx, read_export
from tests.serving.tiny_models import SIZE, torch_outputs


@pytest.mark.parametrize(("architecture", "patches"), [("vit", 36), ("convnext", 9)])
@pytest.mark.parametrize("count", [1, 5])
def test_graph_gives_what_transformers_gives(
    exports: dict[str, Path],
    onnx: dict[str, tuple[Path, OnnxExport]],
    architecture: str,
    patches: int,
    count: int,
) -> None:
    import onnxruntime

    folder, description = onnx[architecture]
    pixels = np.random.default_rng(3).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    embedding, features = session.run(["embedding", "patch_features"], {"pixels": pixels})
    expected, expected_features = torch_outputs(exports[architecture], pixels)
    assert embedding.shape == (count, 64) and features.shape == (count, patches, 64)
    np.testing.assert_allclose(embedding, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(features, expected_features, atol=1e-5 * np.abs(expected_features).max())
    assert (description.dimension, description.patches, description.resolution) == (64, patches, SIZE)
    assert max(description.parity.values()) <= 1e-5
    assert read_export(folder) == description


def test_equal_weights_give_equal_bytes_without_traces_of_this_machine(
    exports: dict[str, Path], onnx: dict[str, tuple[Path, OnnxExport]], tmp_path: Path
) -> None:
    moved = shutil.copytree(exports["vit"], tmp_path / "elsewhere")
    again = export_onnx(moved, tmp_path / "again")
    folder, first = onnx["vit"]
    content = (folder / "model.onnx").read_bytes()
    assert content == (tmp_path / "again" / "model.onnx").read_bytes()
    assert again == first
    for trace in (b"site-packages", str(Path(serving.export.__file__).parent).encode(), b"stack_trace"):
        assert trace not in content


def test_export_that_differs_from_pytorch_is_not_kept(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.export, "PARITY", 1e-12)
    with pytest.raises(UserError, match=r"gives another \w+ than PyTorch .*allowed 1e-12"):
        export_onnx(exports["vit"], tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def _without_a_tensor(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def _with(file: str, **changes: object):  # type: ignore[no-untyped-def]
    def change(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(document | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "cannot be loaded by transformers"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (_with("config.json", model_type="swin"), "model of type 'swin'; supported: dinov3_convnext, dinov3_vit"),
        (_with("config.json", num_channels=4), "takes 4 channels"),
        (_with("preprocessor_config.json", crop_size={"height": 96, "width": 64}), "a square crop is needed"),
        (_without_a_tensor, "no weights for norm.weight"),
    ],
)
def test_what_is_no_export_is_refused(exports: dict[str, Path], tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(exports["vit"], tmp_path / "export")
    damage(folder)
    with pytest.raises(UserError, match=message):
        export_onnx(folder, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_existing_destination_is_not_touched(exports: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export_onnx(exports["vit"], tmp_path)


def test_cache_is_used_once_made_and_made_again_when_damaged(exports: dict[str, Path], tmp_path: Path) -> None:
    folder, first = cached_export(exports["convnext"], tmp_path)
    graph = folder / "model.onnx"
    made = graph.stat().st_mtime_ns
    assert cached_export(exports["convnext"], tmp_path) == (folder, first)
    assert graph.stat().st_mtime_ns == made
    graph.write_bytes(graph.read_bytes()[:-1])
    assert cached_export(exports["convnext"], tmp_path) == (folder, first)
    assert graph.stat().st_mtime_ns != made
