"""``python -m serving``: what it prints, and one plain line with status 2 for what a person can mend."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from foundry.errors import run_command
from serving.__main__ import main
from serving.export import OnnxExport
from serving.installation import serving_environment
from serving.model_config import ServingOptions
from serving.repository import ModelRepository, candidate_of
from serving.server import RunningServer, find_server, stop_server
from tests.conftest import REPOSITORY
from tests.serving.tiny_models import encoded, picture

HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "onnx",
    "onnxruntime",
    "tritonclient",
    "gevent",
    "pyarrow",
    "pydantic",
    "mlflow",
)


@pytest.mark.parametrize("command", ["up", "stop", "status", "embed", "export", "install", None])
def test_help_answers_without_heavy_imports(command: str | None) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    program = f"""
import runpy, sys
sys.argv = ["serving", *{arguments!r}]
try:
    runpy.run_module("serving", run_name="__main__")
except SystemExit as end:
    print(end.code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.stdout.startswith("usage: python -m serving") and result.stdout.endswith("0 []\n"), result


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that ends with status 2."""
    capsys.readouterr()
    assert run_command(main, list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_embed_prints_what_the_client_gets(
    served: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.client import EmbeddingClient

    images = [encoded(picture(1)), encoded(picture(2), "PNG")]
    paths = [tmp_path / "one.jpg", tmp_path / "two.png"]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    with EmbeddingClient(served.url, "vit") as client:
        expected = client.embed(images, patch_features=True)
    assert expected.patch_features is not None

    command = ["embed", "--name", "tests", "--model", "vit", str(paths[0])]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(images[1])))
    assert run_command(main, [*command, "-", "--patch-features"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [str(paths[0]), "-"]
    assert {(row["model"], row["version"], row["digest"]) for row in rows} == {("vit", 1, expected.digest)}
    np.testing.assert_allclose([row["embedding"] for row in rows], expected.embedding, atol=1e-6)
    np.testing.assert_allclose([row["patch_features"] for row in rows], expected.patch_features, atol=1e-6)

    saved = tmp_path / "vectors.npy"
    assert run_command(main, [*command, str(paths[1]), "--output", str(saved)]) == 0
    assert capsys.readouterr().out == f"{saved}: float32 [2, 64]\n"
    np.testing.assert_allclose(np.load(saved), expected.embedding, atol=1e-6)

    patches = expected.patch_features
    for ending in ("npy", "parquet"):
        assert run_command(main, [*command, str(paths[1]), "--patch-features", "--output", f"{saved}.{ending}"]) == 0
    np.testing.assert_allclose(np.load(f"{saved}.npy"), patches, atol=1e-6)
    table = parquet.read_table(f"{saved}.parquet")
    np.testing.assert_allclose(table.column("patch_features").to_pylist(), patches, atol=1e-6)
    np.testing.assert_allclose(table.column("embedding").to_pylist(), expected.embedding, atol=1e-6)
    capsys.readouterr()

    assert run_command(main, ["embed", "--url", served.url, "--model", "vit", "--version", "1", str(paths[0])]) == 0
    assert json.loads(capsys.readouterr().out)[0]["version"] == 1


def test_embed_tells_good_answers_and_refusals_apart(
    served: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    good.write_bytes(encoded(picture(1)))
    bad.write_bytes(b"GIF89a")
    command = ["embed", "--name", "tests", "--model", "vit", str(good), str(bad)]
    assert run_command(main, command) == 3
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert len(first["embedding"]) == 64 and second["error"].endswith("]") and second["image"] == str(bad)
    assert captured.err == f"refused: {bad}: {second['error']} (reason in the output)\n"
    assert run_command(main, [*command, "--output", str(tmp_path / "x.npy")]) == 3
    saved = np.load(tmp_path / "x.npy")
    assert np.isfinite(saved[0]).all() and np.isnan(saved[1]).all()


def test_embed_says_what_is_missing(served: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image.jpg"
    image.write_bytes(encoded(picture(1)))
    assert "no embedded server 'none' runs; start one" in error_line(capsys, "embed", "--name", "none", str(image))
    several = error_line(capsys, "embed", "--name", "tests", str(image))
    assert "serves convnext, vit; say which to ask: --model NAME" in several
    assert "say which of its models" in error_line(capsys, "embed", "--url", served.url, str(image))
    lost = str(tmp_path / "lost.jpg")
    assert f"{lost}: cannot be read (no such file" in error_line(
        capsys, "embed", "--name", "tests", "--model", "vit", lost
    )
    unknown = error_line(capsys, "embed", "--name", "tests", "--model", "vti", str(image))
    assert "model 'vti'" in unknown and served.url in unknown


def test_status_tells_what_is_served(served: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["status", "--name", "tests"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["running"] and status["models"] == {"convnext": [1], "vit": [1]} and status["url"] == served.url
    assert served.admin_key not in json.dumps(status)
    assert run_command(main, ["status", "--name", "other"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "other", "running": False}


@pytest.mark.usefixtures("needs_triton")
def test_up_serves_the_repository_until_stop(
    fresh_home: Path, onnx: dict[str, tuple[Path, OnnxExport]], capsys: pytest.CaptureFixture[str]
) -> None:
    repository = ModelRepository(fresh_home / "model_repository")
    options = ServingOptions(environment=serving_environment(), threads=1)
    for name in ("vit", candidate_of("vit")):
        repository.write_version(name, 4, *onnx["vit"])
        repository.serve(name, [4], options)
    program = [sys.executable, "-m", "serving"]
    up = subprocess.run([*program, "up"], capture_output=True, text=True, cwd=REPOSITORY)
    try:
        assert up.returncode == 0, up.stderr
        assert json.loads(up.stdout)["models"] == {"vit": [4]}, "candidates are not for clients"
        server = find_server()
        assert server is not None and server.url == json.loads(up.stdout)["url"]
        assert "runs already at" in error_line(capsys, "up")
        image = fresh_home / "image.jpg"
        image.write_bytes(encoded(picture(1)))
        assert run_command(main, ["embed", str(image)]) == 0, "the only model needs no name"
        assert json.loads(capsys.readouterr().out)[0]["version"] == 4
    finally:
        stopped = subprocess.run([*program, "stop"], capture_output=True, text=True, cwd=REPOSITORY)
    assert stopped.stdout == "server 'default' stopped\n"
    assert find_server() is None and not stop_server()


def test_export_command(
    exports: dict[str, Path],
    onnx: dict[str, tuple[Path, OnnxExport]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(main, ["export", str(exports["convnext"]), str(tmp_path / "onnx")]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == onnx["convnext"][1].digest
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert re.search("no such folder", error_line(capsys, "export", str(tmp_path / "nothing"), str(tmp_path / "x")))
